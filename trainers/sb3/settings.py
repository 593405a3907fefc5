"""Settings of the commands, and the preset of each algorithm."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from diamond_gym import cli
from diamond_gym.backends.names import BACKENDS
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.export_onnx.settings import DTYPES, MAX_OPSET, MIN_OPSET, check_format

_ON_POLICY = {"gamma": 0.985, "ent_coef": 0.01}
_PPO = _ON_POLICY | {"n_steps": 64, "batch_size": 256, "n_epochs": 4, "learning_rate": 2.5e-4}
_DQN = {
    "buffer_size": 20_000,  # 2 GB: stacks of 4 frames before and after each step
    "learning_starts": 5_000,
    "train_freq": 1,
    "target_update_interval": 1_000,
    "learning_rate": 1e-4,
    "gamma": 0.985,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.02,
}
PRESETS: dict[str, dict[str, Any]] = {
    "ppo": _PPO | {"clip_range": 0.2, "learning_rate": 1e-3, "ent_coef": 0.003},
    "a2c": _ON_POLICY | {"n_steps": 15, "learning_rate": 7e-4},
    "dqn": _DQN,
    "recurrent_ppo": _PPO | {"clip_range": 0.1},
    "qrdqn": _DQN,
}
"""Keyword arguments of each algorithm, where they differ from Stable-Baselines3's own."""
OFF_POLICY = ("dqn", "qrdqn")
"""Algorithms that learn from a replay buffer, once for every 4 steps, and play without noise when scored."""
RECURRENT = ("recurrent_ppo",)
"""Algorithms whose policy has a memory of its own: they see single frames."""
LR_SCHEDULES = ("constant", "linear")
WHERE = ("imagination", "real")
BOTH = "both"
"""Where an agent plays when it is compared: the real game and imagination, from the same contexts."""
TRUST = "unpickle agents' zips, which can run anything: only those of people you trust"


@dataclass
class TrainSettings:
    """What to train.

    Raises:
        InvalidInputError: An algorithm or a place is unknown, or a number is out of range.
    """

    game: str = option("Breakout", "the game")
    algo: str = option("ppo", "the algorithm", choices=tuple(PRESETS))
    where: str = option("imagination", "where it learns", choices=WHERE)
    total_timesteps: int = option(500_000, "steps of all games together", least=1)
    num_envs: int = option(32, "games at once", least=1)
    horizon: int = option(50, "steps after which an imagined game is cut short", least=1)
    frame_stack: int | None = option(
        None, "frames that the policy sees; by default 4, and 1 for recurrent policies", least=1
    )
    initial_agent: str | None = option(
        None,
        "an agent's zip or run folder, or embedded, that continues to learn, instead of a new agent; "
        "total_timesteps and the fall of the learning rate count its steps, too, and other numbers of the "
        "preset are its own",
        is_path=True,
    )
    checkpoint: str = option("auto", "the world model: auto, embedded, hub, or a path", is_path=True)
    contexts: str | None = option(
        None, "where imagined games start: a file of contexts, or recorded episodes", is_path=True
    )
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own", least=1
    )
    learning_rate: float | None = option(
        None, "learning rate instead of the preset's; a resumed run takes it as well", above=0
    )
    lr_schedule: str | None = option(
        None,
        "linear: the learning rate falls to 0 at total_timesteps, or constant; by default constant for "
        f"{' and '.join(OFF_POLICY)}, linear for the others",
        choices=LR_SCHEDULES,
    )
    ent_coef: float | None = option(None, "weight of the entropy bonus, instead of the preset's")
    seed: int = option(0, "fixes the games and the agent")
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    backend: str = option("auto", "what runs the world model's networks", choices=BACKENDS)
    eval_every: int = option(50_000, "steps between evaluations in the real game", least=1)
    eval_episodes: int = option(5, "real games of each evaluation", least=1)
    final_episodes: int = option(30, "real games that the trained agent is scored by", least=1)
    max_game_steps: int = option(5_000, "steps after which a real game is cut short", least=1)
    out: str | None = option(None, "run folder; by default outputs/sb3/GAME-ALGO-WHERE-SEED", is_path=True)
    beside: str | None = option(
        None, "another agent's zip or run folder, or embedded, for the table", is_path=True
    )
    trust: bool = option(False, TRUST)

    def __post_init__(self) -> None:
        cli.check(self)
        cli.check_seed(self.seed, 31)
        if self.ent_coef is not None and not math.isfinite(self.ent_coef):
            raise InvalidInputError(f"ent_coef must be finite, got {self.ent_coef}")
        if self.ent_coef is not None and self.algo in OFF_POLICY:
            raise InvalidInputError(f"{self.algo} has no entropy bonus: leave out ent_coef")

    @property
    def stacked(self) -> int:
        """Frames that the policy sees."""
        return self.frame_stack or (1 if self.algo in RECURRENT else 4)

    @property
    def folder(self) -> str:
        """The run folder."""
        return self.out or f"outputs/sb3/{self.game}-{self.algo}-{self.where}-{self.seed}"

    @property
    def falls(self) -> bool:
        """Whether the learning rate falls to 0 at the end."""
        return (self.lr_schedule or ("constant" if self.algo in OFF_POLICY else "linear")) == "linear"

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of the algorithm."""
        given = {"learning_rate": self.learning_rate, "ent_coef": self.ent_coef}
        keywords = PRESETS[self.algo] | {name: x for name, x in given.items() if x is not None}
        if self.algo in OFF_POLICY:
            keywords["gradient_steps"] = max(1, self.num_envs // 4)
        return keywords


@dataclass
class EvaluateSettings:
    """What to score, and where.

    Raises:
        InvalidInputError: A place is unknown, or a number is out of range.
    """

    agent: str = option(MISSING, "the agent's zip, the folder of its run or loop, or embedded", is_path=True)
    game: str = option("Breakout", "the game")
    where: str = option("real", "where it plays; both compares", choices=(*WHERE, BOTH))
    episodes: int = option(
        30,
        "games, from their start to game over (imagined: to a lost life or the horizon; both: about as many "
        "contexts in real games to play on from)",
        least=1,
    )
    horizon: int = option(
        50, "steps after which an imagined game (with both, also the real one) is cut short", least=1
    )
    checkpoint: str = option("auto", "the world model: auto, embedded, hub, or a path", is_path=True)
    contexts: str | None = option(
        None, "where imagined games start: a file of contexts, or recorded episodes", is_path=True
    )
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own", least=1
    )
    max_game_steps: int = option(5_000, "steps after which a real game is cut short", least=1)
    deterministic: bool = option(
        False, "take the likeliest action instead of drawing one; dqn and qrdqn always take the best"
    )
    seed: int = option(0, "fixes the games and the drawn actions")
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    backend: str = option("auto", "what runs the world model's networks", choices=BACKENDS)
    trust: bool = option(False, TRUST)

    def __post_init__(self) -> None:
        cli.check(self)
        cli.check_seed(self.seed, 30 if self.where == BOTH else 31)


@dataclass
class ExportOnnxSettings:
    """Which agent to export, and where to.

    Raises:
        InvalidInputError: A number is out of range, or a dtype is not known.
    """

    out: Path = option(MISSING, "folder to write, which must not exist or be empty")
    game: str = option("Breakout", "the game")
    agent: str = option(
        "embedded", "the agent's zip, the folder of its run or loop, or embedded", is_path=True
    )
    dtype: str = option("float16", "how weights are stored; computations are in float32", choices=DTYPES)
    opset: int = option(MIN_OPSET, f"version of ONNX's operators, {MIN_OPSET} to {MAX_OPSET}")
    trust: bool = option(False, TRUST)

    def __post_init__(self) -> None:
        check_format(self.dtype, self.opset)
        cli.check(self)


@dataclass
class DemoSettings:
    """Who plays the game that is shown, real and imagined.

    Raises:
        InvalidInputError: A number is out of range.
    """

    game: str = option("Breakout", "the game")
    agent: str = option(
        "embedded", "the agent's zip, the folder of its run or loop, or embedded", is_path=True
    )
    checkpoint: str = option("auto", "the world model: auto, embedded, hub, or a path", is_path=True)
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own", least=1
    )
    steps: int = option(200, "steps to show", least=1)
    seed: int = option(0, "fixes the games and the drawn actions")
    device: str = option("auto", "where the agent runs: auto, cpu, cuda, ...")
    backend: str = option("auto", "what runs the world model's networks", choices=BACKENDS)
    out: str = option(".", "folder for agent.mp4", is_path=True)
    trust: bool = option(False, TRUST)

    def __post_init__(self) -> None:
        cli.check(self)
        cli.check_seed(self.seed, 31)

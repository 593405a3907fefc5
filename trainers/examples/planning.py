"""Model-predictive control: an agent without any training plans in imagination and acts in the real game.

    python -m trainers.examples.planning game=Breakout episodes=2 num_sequences=32 horizon=15

Before every few real steps it draws action sequences, imagines what each of them leads to from the real
game's last frames, and takes the first actions of the best one ("random shooting"). All are imagined
in one batch under the same noise, so they differ only in their actions.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import diamond_gym
from diamond_gym import cli
from diamond_gym.backends.names import BACKENDS
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.score import Score, real_scores
from diamond_gym.registration import env_id, game_name

gym.register_envs(diamond_gym)

LONGEST_HOLD = 4
"""Largest number of steps for which a drawn action is held: short holds would cancel each other out."""

Policy = Callable[[dict[str, NDArray]], Sequence[int]]
"""The next actions, one or more, at a context: the latest frames and actions."""


@dataclass
class PlannerConfig:
    """Length and number of the imagined sequences.

    Raises:
        InvalidInputError: A number is out of range.
    """

    num_sequences: int = option(32, "action sequences that are imagined")
    horizon: int = option(15, "steps imagined")
    num_taken: int = option(
        2, "actions of the best one that are taken before planning again, at most horizon"
    )
    gamma: float = option(0.97, "discount of a reward per step, from 0 to 1")
    end_penalty: float = option(2.0, "what an imagined end costs, in rewards")

    def __post_init__(self) -> None:
        if min(self.num_sequences, self.horizon, self.num_taken) < 1 or self.num_taken > self.horizon:
            raise InvalidInputError(
                "counts must be at least 1, and num_taken at most horizon, got "
                f"num_sequences={self.num_sequences} horizon={self.horizon} num_taken={self.num_taken}"
            )
        if not 0 <= self.gamma <= 1:
            raise InvalidInputError(f"gamma must be in [0, 1], got {self.gamma}")
        if not math.isfinite(self.end_penalty):
            raise InvalidInputError(f"end_penalty must be finite, got {self.end_penalty}")


@dataclass
class Settings(PlannerConfig):
    """What is played, and how it is planned.

    Raises:
        InvalidInputError: A number is out of range.
    """

    game: str = option("Breakout", "the game")
    episodes: int = option(2, "real games", least=1)
    max_steps: int = option(1000, "steps of each game", least=1)
    checkpoint: str = option("auto", "the world model, as in gymnasium.make", is_path=True)
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own", least=1
    )
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    backend: str = option("auto", "what runs the world model's networks", choices=BACKENDS)
    seed: int = option(0, "fixes the games and the plans", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        cli.check(self)


class Planner:
    """A planner by random shooting in a batch of imagined games.

    Args:
        envs: A `DiamondVectorEnv` of `config.num_sequences` games.
        config: Length and number of the sequences.
        seed: Fixes the drawn sequences and the noise.
    """

    def __init__(self, envs: Any, config: PlannerConfig, seed: int) -> None:
        self.envs, self.config = envs, config
        self._rng = np.random.default_rng(seed)
        self.envs.reset(seed=seed)

    def __call__(self, context: dict[str, NDArray]) -> list[int]:
        """The first actions of the best of the drawn sequences."""
        self.envs.reset(options={"context": context})
        state = self.envs.clone_state()
        self.envs.restore_state(state.select([0] * len(state)))  # one noise for all
        sequences = self._draw()
        returns = self._imagine(sequences)
        best = np.flatnonzero(returns >= returns.max() - 1e-9)
        return sequences[self._rng.choice(best), : self.config.num_taken].tolist()

    def _draw(self) -> NDArray[np.int64]:
        """Sequences (num_sequences, horizon) of actions that are held for some steps each."""
        shape = (self.config.num_sequences, self.config.horizon)
        acts = self._rng.integers(self.envs.single_action_space.n, size=shape)
        changes = self._rng.random(shape) < 2 / (1 + LONGEST_HOLD)
        changes[:, 0] = True
        latest = np.maximum.accumulate(np.where(changes, np.arange(shape[1]), 0), axis=1)
        return np.take_along_axis(acts, latest, axis=1)

    def _imagine(self, sequences: NDArray[np.int64]) -> NDArray[np.float64]:
        """The discounted return of each sequence up to its end or the horizon."""
        returns, alive = np.zeros(len(sequences)), np.ones(len(sequences), bool)
        for t, acts in enumerate(sequences.T):
            _, rew, end, _, _ = self.envs.step(acts)
            gain = rew - self.config.end_penalty * end
            returns += self.config.gamma**t * gain * alive
            alive &= ~end
        return returns


class ContextPlayer:
    """A player that asks a policy for the next actions whenever it has taken the last ones.

    It does nothing until there are enough frames for a context.

    Args:
        policy: Chooses actions at the latest frames and actions of the game.
        num_conditioning: Frames of a context.
    """

    def __init__(self, policy: Policy, num_conditioning: int) -> None:
        self.policy, self.num_conditioning = policy, num_conditioning
        self.reset()

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Forget the last game; the policy's random numbers continue."""
        self._frames = deque[NDArray[np.uint8]](maxlen=self.num_conditioning)
        self._acts = deque[int](maxlen=self.num_conditioning - 1)
        self._planned = deque[int]()

    def act(self, obs: NDArray[np.uint8]) -> int:
        """Return the next action."""
        self._frames.append(obs)
        if len(self._frames) < self.num_conditioning:
            self._planned = deque([0])
        elif not self._planned:
            context = {"obs": np.stack(self._frames), "act": np.array(self._acts, np.int64)}
            self._planned.extend(self.policy(context))
        act = self._planned.popleft()
        self._acts.append(act)
        return act


def play(settings: Settings) -> dict[str, list[float]]:
    """Scores of the planner, and of a random player in the same games."""
    game = game_name(settings.game)
    envs: Any = gym.make_vec(
        env_id(game),
        num_envs=settings.num_sequences,
        max_episode_steps=-1,
        checkpoint=settings.checkpoint,
        num_denoising_steps=settings.num_denoising_steps,
        device=settings.device,
        backend=settings.backend,
    )
    n, num_actions = envs.world.world_model.num_steps_conditioning, int(envs.single_action_space.n)
    rng = np.random.default_rng(settings.seed)
    policies: dict[str, Policy] = {
        "planner": Planner(envs, settings, settings.seed),
        "random": lambda context: [int(rng.integers(num_actions))],
    }
    games = {"num_games": settings.episodes, "seed": settings.seed, "max_steps": settings.max_steps}
    scores = {name: real_scores(ContextPlayer(policy, n), game, **games) for name, policy in policies.items()}
    envs.close()
    return scores


def run(settings: Settings) -> None:
    """Play and print scores."""
    for name, values in play(settings).items():
        print(f"{name}: {Score.of(name, values).in_words()}, each: {values}")


COMMAND = cli.Command("python -m trainers.examples.planning", __doc__ or "", Settings, run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play and print scores; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

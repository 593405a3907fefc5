"""Model-predictive control: an agent that has learned nothing plans in imagination and acts in the real game.

    python -m trainers.examples.planning --game Breakout --episodes 2 --num-sequences 32 --horizon 15

Before every few real steps it draws action sequences, imagines what each of them leads to from the real
game's last frames, and takes the first actions of the best one ("random shooting"). All are imagined
in one batch under the same noise, so they differ by nothing but their actions.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import diamond_gym
from diamond_gym.errors import DiamondGymError, InvalidInputError, UnknownGameError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.options import positive_int
from diamond_gym.registration import env_id, game_name
from trainers.arguments import new_parser, world_of

gym.register_envs(diamond_gym)

LONGEST_HOLD = 4
"""Steps for which a drawn action is held, at most: a paddle that is pushed to and fro goes nowhere."""

Policy = Callable[[dict[str, NDArray]], Sequence[int]]
"""The next actions, one or more, at a context: the latest frames and actions."""


@dataclass(frozen=True)
class PlannerConfig:
    """How far and how widely to look.

    Attributes:
        num_sequences: Action sequences that are imagined, at least 1.
        horizon: Steps imagined, at least 1.
        num_taken: Actions taken of the best one before planning anew, 1 to `horizon`.
        gamma: Discount of a reward per step, in [0, 1].
        end_penalty: What an imagined end costs, in rewards.
    """

    num_sequences: int = 32
    horizon: int = 15
    num_taken: int = 2
    gamma: float = 0.97
    end_penalty: float = 2.0

    def __post_init__(self) -> None:
        if min(self.num_sequences, self.horizon, self.num_taken) < 1 or self.num_taken > self.horizon:
            raise InvalidInputError(f"counts must be at least 1, and num_taken at most horizon, got {self}")
        if not 0 <= self.gamma <= 1:
            raise InvalidInputError(f"gamma must be in [0, 1], got {self.gamma}")
        if not math.isfinite(self.end_penalty):
            raise InvalidInputError(f"end_penalty must be finite, got {self.end_penalty}")


class Planner:
    """Plans by random shooting in a batch of imagined games.

    Args:
        envs: A `DiamondVectorEnv` of `config.num_sequences` games.
        config: How far to look.
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
        """What each sequence brings up to its end or the horizon."""
        returns, alive = np.zeros(len(sequences)), np.ones(len(sequences), bool)
        for t, acts in enumerate(sequences.T):
            _, rew, end, _, _ = self.envs.step(acts)
            gain = rew - self.config.end_penalty * end
            returns += self.config.gamma**t * gain * alive
            alive &= ~end
        return returns


def play_game(policy: Policy, game: str, seed: int, max_steps: int, num_conditioning: int) -> float:
    """The score of one real game.

    Until there are enough frames for a context, nothing is pressed.
    """
    env = AtariEnv(game, training=False)
    obs, _ = env.reset(seed=seed)
    frames, acts = deque([obs], maxlen=num_conditioning), deque[int](maxlen=num_conditioning - 1)
    planned: deque[int] = deque()
    score, over = 0.0, False
    with tqdm(total=max_steps, unit="step", desc=f"game {seed}") as bar:
        while not over and bar.n < max_steps:
            if len(frames) < num_conditioning:
                planned = deque([0])
            elif not planned:
                planned.extend(policy({"obs": np.stack(frames), "act": np.array(acts, np.int64)}))
            act = planned.popleft()
            obs, reward, terminated, truncated, _ = env.step(act)
            frames.append(obs)
            acts.append(act)
            score, over = score + reward, terminated or truncated
            bar.update()
            bar.set_postfix_str(f"score {score:.0f}")
    env.close()
    return score


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    defaults = PlannerConfig()
    parser = new_parser("planning", __doc__)
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--episodes", type=positive_int, default=2, help="real games")
    parser.add_argument("--max-steps", type=positive_int, default=1000, help="of each game")
    parser.add_argument("--num-sequences", type=int, default=defaults.num_sequences)
    parser.add_argument("--horizon", type=int, default=defaults.horizon, help="steps imagined")
    parser.add_argument("--num-taken", type=int, default=defaults.num_taken, help="actions of each plan")
    parser.add_argument("--gamma", type=float, default=defaults.gamma)
    parser.add_argument("--end-penalty", type=float, default=defaults.end_penalty)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, list[float]]:
    """Scores of the planner, and of a random player in the same games."""
    config = PlannerConfig(args.num_sequences, args.horizon, args.num_taken, args.gamma, args.end_penalty)
    game = game_name(args.game)
    envs: Any = gym.make_vec(
        env_id(game),
        num_envs=config.num_sequences,
        max_episode_steps=-1,
        **world_of(args),
    )
    n, num_actions = envs.world.world_model.num_steps_conditioning, int(envs.single_action_space.n)
    rng = np.random.default_rng(args.seed)
    players: dict[str, Policy] = {
        "planner": Planner(envs, config, args.seed),
        "random": lambda context: [int(rng.integers(num_actions))],
    }
    seeds = range(args.seed, args.seed + args.episodes)
    scores = {
        name: [play_game(policy, game, seed, args.max_steps, n) for seed in seeds]
        for name, policy in players.items()
    }
    envs.close()
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    """Plays and prints scores; returns the exit status."""
    args = parse_args(argv)
    try:
        scores = run(args)
    except DiamondGymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError | UnknownGameError) else 1
    for name, values in scores.items():
        print(f"{name}: mean score {np.mean(values):.2f} of {len(values)} real games {values}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

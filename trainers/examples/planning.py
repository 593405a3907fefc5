"""Model-predictive control: an agent without any training plans in imagination and acts in the real game.

    python -m trainers.examples.planning game=Breakout episodes=2 num_sequences=32 horizon=15
    python -m trainers.examples.planning env=my_module:MyGame-v0 checkpoint=RUN num_iterations=4

Before every few real steps it draws action sequences, imagines what each of them leads to from the real
game's last frames, and takes the first actions of the best one ("random shooting"). With more iterations it
draws again from a distribution fitted to the best sequences: the cross-entropy method (Rubinstein 1999; for
planning, Chua et al. 2018), which continuous actions need. All sequences are imagined in one batch under the
same noise, so they differ only in their actions.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
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
from diamond_gym.players import loop
from diamond_gym.registration import env_id, game_name

gym.register_envs(diamond_gym)

LONGEST_HOLD = 4
"""Largest number of steps for which a drawn action is held: short holds would cancel each other out."""

Policy = Callable[[dict[str, NDArray]], Sequence[Any]]
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
    num_iterations: int = option(1, "draws of all sequences; more than 1 is the cross-entropy method")
    elite_share: float = option(0.15, "share of the sequences to which the next draw is fitted")

    def __post_init__(self) -> None:
        if min(self.num_sequences, self.horizon, self.num_taken) < 1 or self.num_taken > self.horizon:
            raise InvalidInputError(
                "counts must be at least 1, and num_taken at most horizon, got "
                f"num_sequences={self.num_sequences} horizon={self.horizon} num_taken={self.num_taken}"
            )
        if not 0 <= self.gamma <= 1:
            raise InvalidInputError(f"gamma must be in [0, 1], got {self.gamma}")
        if self.num_iterations < 1 or not 0 < self.elite_share <= 1:
            raise InvalidInputError(
                "num_iterations must be at least 1 and elite_share above 0 and at most 1, got "
                f"{self.num_iterations} and {self.elite_share}"
            )
        if not math.isfinite(self.end_penalty):
            raise InvalidInputError(f"end_penalty must be finite, got {self.end_penalty}")


@dataclass
class Settings(PlannerConfig):
    """What is played, and how it is planned.

    Raises:
        InvalidInputError: A number is out of range.
    """

    game: str = option("Breakout", "the game")
    env: str | None = option(
        None, "instead of a game: id of the real environment, for gymnasium.make; needs checkpoint"
    )
    render: bool = option(False, "with env: plan on what it draws, resized to the world's frames")
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
        if self.env is not None and self.checkpoint == "auto":
            raise InvalidInputError(f"env={self.env} needs checkpoint=RUN, a world model of it")


class SequenceDistribution:
    """The distribution of action sequences that the cross-entropy method narrows.

    Each step of each part of an action is independent: a categorical, or a Gaussian that is clipped to the
    part's bounds.

    Args:
        space: The action space.
        elites: Sequences (k, horizon, *shape of an action) that it is fitted to.
    """

    SMOOTHING = 0.1
    """Weight of the uniform distribution, and least standard deviation in units of the range."""

    def __init__(self, space: gym.Space[Any], elites: NDArray[Any]) -> None:
        self.shape = elites.shape[1:]
        self.is_continuous = isinstance(space, gym.spaces.Box)
        flat = elites.reshape(*elites.shape[:2], -1)
        self.low, self.high = (np.asarray(x).ravel() for x in _bounds(space))
        self._mean = flat.mean(axis=0)
        self._std = np.maximum(flat.std(axis=0), self.SMOOTHING / 2 * (self.high - self.low))
        choices = np.arange(int(self.high.max()) + 1) if not self.is_continuous else np.zeros(0)
        allowed = choices <= self.high[:, None]
        shares = (flat[..., None] == choices).mean(axis=0)
        uniform = allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
        self._cumulative = ((1 - self.SMOOTHING) * shares + self.SMOOTHING * uniform).cumsum(axis=-1)

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[Any]:
        """Draw sequences."""
        if self.is_continuous:
            drawn = self._mean + self._std * rng.standard_normal((count, *self._mean.shape))
            return drawn.clip(self.low, self.high).astype(np.float32).reshape(count, *self.shape)
        u = rng.random((count, *self._mean.shape, 1))
        return (u >= self._cumulative[..., :-1]).sum(axis=-1).reshape(count, *self.shape)


def _bounds(space: gym.Space[Any]) -> tuple[Any, Any]:
    """Least and greatest value of each part of an action; choices begin at 0."""
    if isinstance(space, gym.spaces.Box):
        return space.low, space.high
    if isinstance(space, gym.spaces.MultiBinary):
        return np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    most = np.asarray(space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else space.n) - 1  # pyright: ignore[reportAttributeAccessIssue]
    return np.zeros_like(most), most


class Planner:
    """A planner in a batch of imagined games, by random shooting or the cross-entropy method.

    Args:
        envs: A `DiamondVectorEnv` of `config.num_sequences` games.
        config: Length and number of the sequences.
        seed: Fixes the drawn sequences and the noise.
    """

    def __init__(self, envs: Any, config: PlannerConfig, seed: int) -> None:
        self.envs, self.config = envs, config
        self._rng = np.random.default_rng(seed)
        self.envs.reset(seed=seed)

    def __call__(self, context: dict[str, NDArray]) -> list[Any]:
        """The first actions of the best of the drawn sequences."""
        self.envs.reset(options={"context": context})
        state = self.envs.clone_state()
        state = state.select([0] * len(state))  # one noise for all
        self.envs.restore_state(state)
        sequences = self._draw()
        returns = self._imagine(sequences)
        for _ in range(self.config.num_iterations - 1):
            elites = sequences[np.argsort(-returns, kind="stable")[: self._num_elites]]
            best, best_return = elites[0], returns.max()
            self.envs.restore_state(state)
            sequences = SequenceDistribution(self.envs.single_action_space, elites).draw(
                self._rng, len(sequences)
            )
            returns = self._imagine(sequences)
            sequences[returns.argmin()], returns[returns.argmin()] = best, best_return  # it is never lost
        best = np.flatnonzero(returns >= returns.max() - 1e-9)
        return sequences[self._rng.choice(best), : self.config.num_taken].tolist()

    @property
    def _num_elites(self) -> int:
        return max(2, round(self.config.elite_share * self.config.num_sequences))

    def _draw(self) -> NDArray[Any]:
        """Sequences (num_sequences, horizon, *shape) of uniform actions that are held for some steps each."""
        shape = (self.config.num_sequences, self.config.horizon)
        acts = uniform_actions(self.envs.single_action_space, self._rng, shape)
        changes = self._rng.random(shape) < 2 / (1 + LONGEST_HOLD)
        changes[:, 0] = True
        latest = np.maximum.accumulate(np.where(changes, np.arange(shape[1]), 0), axis=1)
        return acts[np.arange(shape[0])[:, None], latest]

    def _imagine(self, sequences: NDArray[Any]) -> NDArray[np.float64]:
        """The discounted return of each sequence up to its end or the horizon."""
        returns, alive = np.zeros(len(sequences)), np.ones(len(sequences), bool)
        for t, acts in enumerate(sequences.swapaxes(0, 1)):
            _, rew, end, _, _ = self.envs.step(acts)
            gain = rew - self.config.end_penalty * end
            returns += self.config.gamma**t * gain * alive
            alive &= ~end
        return returns


def uniform_actions(space: gym.Space[Any], rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """Draw actions (*shape, *shape of an action) uniformly."""
    low, high = _bounds(space)
    shape = (*shape, *np.shape(low))
    if isinstance(space, gym.spaces.Box):
        return rng.uniform(low, high, shape).astype(np.float32)
    return rng.integers(high + 1, size=shape)


class ContextPlayer:
    """A player that asks a policy for the next actions whenever it has taken the last ones.

    It does nothing until there are enough frames for a context.

    Args:
        policy: Chooses actions at the latest frames and actions of the game.
        num_conditioning: Frames of a context.
        idle: The action that does nothing.
    """

    def __init__(self, policy: Policy, num_conditioning: int, idle: Any = 0) -> None:
        self.policy, self.num_conditioning, self.idle = policy, num_conditioning, idle
        self.reset()

    def reset(self, seed: int | None = None, past: Iterable[NDArray[np.uint8]] = ()) -> None:
        """Forget the last game; the policy's random numbers continue."""
        self._frames = deque[NDArray[np.uint8]](maxlen=self.num_conditioning)
        self._acts = deque[Any](maxlen=self.num_conditioning - 1)
        self._planned = deque[Any]()

    def act(self, obs: NDArray[np.uint8]) -> Any:
        """Return the next action."""
        self._frames.append(obs)
        if len(self._frames) < self.num_conditioning:
            self._planned = deque([self.idle])
        elif not self._planned:
            context = {
                "obs": np.stack(self._frames),
                "act": np.array(self._acts, np.asarray(self.idle).dtype),
            }
            self._planned.extend(self.policy(context))
        act = self._planned.popleft()
        self._acts.append(act)
        return act


def play(settings: Settings) -> dict[str, list[float]]:
    """Scores of the planner, and of a random player in the same games."""
    game = None if settings.env is not None else game_name(settings.game)
    envs: Any = gym.make_vec(
        env_id(game or "Breakout"),
        game=game,
        num_envs=settings.num_sequences,
        max_episode_steps=-1,
        checkpoint=settings.checkpoint,
        num_denoising_steps=settings.num_denoising_steps,
        device=settings.device,
        backend=settings.backend,
    )
    n, space = envs.world.world_model.num_steps_conditioning, envs.single_action_space
    rng = np.random.default_rng(settings.seed)
    policies: dict[str, Policy] = {
        "planner": Planner(envs, settings, settings.seed),
        "random": lambda context: [uniform_actions(space, rng, ()).tolist()],
    }
    idle = envs.world.action_space.idle
    idle = int(idle) if idle.ndim == 0 else idle
    players = {name: ContextPlayer(policy, n, idle) for name, policy in policies.items()}
    if game is None:
        scores = {name: env_scores(player, envs, settings) for name, player in players.items()}
        envs.close()
        return scores
    games = {"num_games": settings.episodes, "seed": settings.seed, "max_steps": settings.max_steps}
    scores = {name: real_scores(player, game, **games) for name, player in players.items()}
    envs.close()
    return scores


def env_scores(player: ContextPlayer, envs: Any, settings: Settings) -> list[float]:
    """Sums of rewards of a player in the real environment."""
    assert settings.env is not None
    env = gym.make(settings.env, render_mode="rgb_array" if settings.render else None)
    env = gym.wrappers.AddRenderObservation(env) if settings.render else env
    h, w, c = envs.single_observation_space.shape
    if (env.observation_space.shape or ())[:2] != (h, w):
        env = gym.wrappers.ResizeObservation(env, (h, w))
    scores = []
    for number in range(settings.episodes):
        obs, _ = env.reset(seed=settings.seed + number)
        player.reset()
        steps = loop.play(_Reshaped(env, (h, w, c)), player, np.asarray(obs).reshape(h, w, c))
        scores.append(sum(step.rew for step in islice(steps, settings.max_steps)))
    env.close()
    return scores


class _Reshaped(gym.ObservationWrapper):
    """Frames of one shape, since resizing drops the channel of grey ones."""

    def __init__(self, env: gym.Env[Any, Any], shape: tuple[int, ...]) -> None:
        super().__init__(env)
        self.shape = shape

    def observation(self, observation: Any) -> Any:
        return np.asarray(observation).reshape(self.shape)


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

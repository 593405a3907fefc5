"""Let a player play a game and collect the episodes.

A player is any callable from a frame to an action, and a game is any Gymnasium environment with uint8
(h, w, 3) or (h, w, 1) frames; a string names a real Atari game. The module does not depend on
networks or on training.
"""

from __future__ import annotations

import itertools
import multiprocessing
import operator
import pickle
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray

from diamond_gym.data.builder import EpisodeBuilder
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import DiamondGymError, InvalidInputError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players.loop import play
from diamond_gym.players.player import Player, Policy, PolicyPlayer, check_epsilon
from diamond_gym.progress import Bar
from diamond_gym.registration import game_name
from diamond_gym.signals import leave_to_parent
from diamond_gym.world.action_space import ActionSpace

Frame = NDArray[np.uint8]


@dataclass
class CollectReport:
    """The result of `collect`.

    Attributes:
        lengths: Steps of each episode, in the order played; an unfinished last one included.
        returns: Sum of raw rewards of each.
        seconds: Time that it took.
        episodes: The episodes themselves; empty when they went to a dataset.
    """

    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    seconds: float = 0.0
    episodes: list[Episode] = field(default_factory=list)

    @property
    def num_episodes(self) -> int:
        """Number of episodes, an unfinished last one included."""
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return sum(self.lengths)

    @property
    def steps_per_second(self) -> float:
        """Steps of the environment (4 raw frames each in Atari) per second."""
        return self.num_steps / self.seconds


def collect(
    game: str | gymnasium.Env[Any, Any],
    player: Player | Policy,
    *,
    num_steps: int,
    seed: int,
    dataset: EpisodeDataset | None = None,
    training: bool = True,
    epsilon: float = 0.0,
    progress: bool = True,
    num_workers: int = 1,
) -> CollectReport:
    """Let a player play for a number of steps.

    Each episode is written to the dataset when it ends, so an interrupted collection keeps the finished ones.
    The last episode is cut where the steps run out and stored as unfinished: no end, no truncation, no final
    observation. Calls with the same arguments give the same episodes in the same order.

    Args:
        game: An Atari game's name, or an environment with uint8 (h, w, c) frames and actions that can be
            learned, choices from 0 on; it is not closed.
        player: A `Player`, reset with a seed of its own at the start of every episode, or a policy: any
            callable from a frame to an action. A policy's `reset(seed)`, if it has one, is called likewise.
        num_steps: Number of steps, at least 1.
        seed: Non-negative; fixes the game, the random actions and the seeds given to the player.
        dataset: The dataset that gets the episodes; None keeps them in the report.
        training: End episodes at lost lives; only if `game` is a name.
        epsilon: Probability in [0, 1] that a uniformly random action replaces the player's.
        progress: Show a bar with steps per second on stderr.
        num_workers: Number of processes; each plays a part of the steps with its own game and copy of the
            player. More than one needs a game's name, a player that can be pickled and (as processes always
            do) a main module that can be imported.

    Returns:
        Lengths, returns, time, and the episodes if there is no dataset.

    Raises:
        InvalidInputError: An argument is out of range, the environment does not fit, or the player gave no
            valid action.
        UnknownGameError: ale_py has no such game.
        CacheError: The dataset cannot be written.
        DiamondGymError: A worker process was killed.
    """
    player = player if isinstance(player, Player) else PolicyPlayer(player)
    _check_arguments(player, num_steps, seed, dataset, epsilon, num_workers)
    report = CollectReport()
    start = time.perf_counter()
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(total=num_steps, unit="step", desc="collect", disable=not progress))
        if num_workers == 1:
            env = game
            if isinstance(env, str):
                env = stack.enter_context(closing(AtariEnv(env, training=training)))
            episodes = _play(env, player, num_steps, seed, epsilon, bar.update)
        else:
            shares = _shares(game, player, num_steps, seed, training, epsilon, num_workers)
            episodes = _play_in_processes(shares, bar.update)
        for episode in stack.enter_context(closing(episodes)):
            report.lengths.append(len(episode))
            report.returns.append(episode.total_reward)
            if dataset is None:
                report.episodes.append(episode)
            else:
                dataset.append(episode)
    report.seconds = time.perf_counter() - start
    return report


def _play(
    env: gymnasium.Env[Any, Any],
    player: Player,
    num_steps: int,
    seed: int,
    epsilon: float,
    on_steps: Callable[[int], object],
) -> Generator[Episode, None, None]:
    """Yield episodes with `num_steps` steps in total; the last one may be unfinished."""
    _check_env(env)
    rng = np.random.default_rng(seed)
    space = ActionSpace.of(env.action_space)
    chooser = PolicyPlayer(lambda obs: _choose(player, obs, space, rng, epsilon))
    env_seed, num_left = seed, num_steps
    while num_left > 0:
        player.reset(int(rng.integers(2**31)))
        obs, _ = env.reset(seed=env_seed)
        builder, env_seed = EpisodeBuilder(), None
        final: dict[str, Any] = {}
        for step in itertools.islice(play(env, chooser, np.array(obs)), num_left):
            builder.add(step.obs, step.act, step.rew)
            on_steps(1)
            if step.is_over:
                final = {"end": step.terminated, "trunc": step.truncated, "final_obs": step.next_obs}
        num_left -= len(builder)
        yield builder.episode(**final)


def _choose(player: Player, obs: Frame, space: ActionSpace, rng: np.random.Generator, epsilon: float) -> Any:
    """Return the player's action, checked, or a random one; the player sees every frame in any case."""
    choice: Any = player.act(obs)
    action = _checked_index(choice, space) if space.is_discrete else _checked_array(choice, space)
    if action is None:
        one = f"an integer in 0..{space.choices[0] - 1}" if space.is_discrete else space.accepted()
        raise InvalidInputError(f"the player must return {one}, it returned {choice!r}")
    return space.sample(rng) if epsilon > 0 and rng.random() < epsilon else action


def _checked_index(choice: Any, space: ActionSpace) -> int | None:
    try:
        action = operator.index(choice)
    except TypeError:
        return None
    return action if 0 <= action < space.choices[0] else None


def _checked_array(choice: Any, space: ActionSpace) -> NDArray[Any] | None:
    given = np.asarray(choice)
    return space.convert(given) if given.shape == space.shape else None


@dataclass(frozen=True)
class _Share:
    """The part of a collection that one process plays."""

    game: str
    player: Player
    num_steps: int
    seed: int
    training: bool
    epsilon: float


def _shares(
    game: object,
    player: Player,
    num_steps: int,
    seed: int,
    training: bool,
    epsilon: float,
    num_workers: int,
) -> list[_Share]:
    if not isinstance(game, str):
        raise InvalidInputError(f"num_workers > 1 needs a game's name, got {type(game).__name__}")
    name = game_name(game)
    try:
        pickle.dumps(player)
    except Exception as error:  # any error that the player's own pickling raises
        raise InvalidInputError(f"num_workers > 1 needs a player that can be pickled: {error}") from error
    steps = [num_steps // num_workers + (i < num_steps % num_workers) for i in range(num_workers)]
    seeds = np.random.SeedSequence(seed).generate_state(num_workers).tolist()
    return [_Share(name, player, n, s, training, epsilon) for n, s in zip(steps, seeds, strict=True) if n > 0]


def _play_in_processes(
    shares: list[_Share], on_steps: Callable[[int], object]
) -> Generator[Episode, None, None]:
    """Yield the episodes of all workers, one of each in turn, so that timing does not change their order."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        inboxes: list[Connection] = []
        for share in shares:
            inbox, outbox = context.Pipe(duplex=False)
            worker = context.Process(target=_play_share, args=(share, outbox), daemon=True)
            worker.start()
            stack.callback(worker.join)
            stack.callback(worker.terminate)
            outbox.close()  # now only the worker holds it, so reading fails when the worker dies
            inboxes.append(inbox)
        while inboxes:
            for inbox in tuple(inboxes):
                episode = _receive(inbox)
                if episode is None:
                    inboxes.remove(inbox)
                else:
                    on_steps(len(episode))
                    yield episode


def _play_share(share: _Share, outbox: Connection) -> None:
    """In a worker, send every episode as arrays, then None, or the exception that stopped it."""
    torch.set_num_threads(1)
    leave_to_parent()
    try:
        env = AtariEnv(share.game, training=share.training)
        for episode in _play(env, share.player, share.num_steps, share.seed, share.epsilon, lambda _: None):
            outbox.send(_to_arrays(episode))
        outbox.send(None)
    except Exception as error:
        outbox.send(error)


def _receive(inbox: Connection) -> Episode | None:
    """Return the next episode of a worker, None when it is done; raise the exception that stopped it."""
    try:
        message = inbox.recv()
    except EOFError:
        raise DiamondGymError("a worker process was killed, perhaps for lack of memory") from None
    if isinstance(message, Exception):
        raise message
    return None if message is None else _from_arrays(message)


_TENSORS = ("obs", "act", "rew", "end", "trunc")


def _to_arrays(episode: Episode) -> dict[str, NDArray[Any]]:
    """Turn an episode into arrays; tensors would be sent as shared memory, which ends with the sender."""
    tensors = {name: getattr(episode, name) for name in _TENSORS} | episode.info
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> Episode:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Episode(*(tensors.pop(name) for name in _TENSORS), info=tensors)


def _check_arguments(
    player: Player, num_steps: int, seed: int, dataset: object, epsilon: float, num_workers: int
) -> None:
    if isinstance(player, PolicyPlayer) and not callable(player.policy):
        raise InvalidInputError(
            f"player must be a Player, or a callable from a frame to an action, got {player.policy!r}"
        )
    if not _is_integer(num_steps) or num_steps <= 0:
        raise InvalidInputError(f"num_steps must be an integer of at least 1, got {num_steps!r}")
    if not _is_integer(seed) or seed < 0:
        raise InvalidInputError(f"seed must be a non-negative integer, got {seed!r}")
    if not _is_integer(num_workers) or num_workers <= 0:
        raise InvalidInputError(f"num_workers must be an integer of at least 1, got {num_workers!r}")
    if dataset is not None and not isinstance(dataset, EpisodeDataset):
        raise InvalidInputError(f"dataset must be an EpisodeDataset or None, got {dataset!r}")
    check_epsilon(epsilon)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_env(env: gymnasium.Env[Any, Any]) -> None:
    if not isinstance(env, gymnasium.Env):
        raise InvalidInputError(f"game must be a name or a gymnasium.Env, got {type(env).__name__}")
    frames, actions = env.observation_space, env.action_space
    is_image = isinstance(frames, Box) and len(frames.shape) == 3 and frames.shape[2] in (1, 3)
    if not is_image or frames.dtype != np.uint8:
        raise InvalidInputError(
            f"the environment must give uint8 (h, w, 3) or (h, w, 1) frames, got {frames}"
        )
    if np.any(ActionSpace.of(actions).first(actions)):
        raise InvalidInputError(f"the environment must take actions 0..n-1, got {actions}")

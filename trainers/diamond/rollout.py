"""Rollouts: the actor-critic in real and imagined games, and segments that continue in imagination."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol

import ale_py
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from diamond_gym.data.builder import EpisodeBuilder
from diamond_gym.data.episodes import Episode, EpisodeDataset, channels_first
from diamond_gym.evaluate.score import bootstrap_interval
from diamond_gym.games.atari import AtariEnv, AtariState
from diamond_gym.progress import Bar
from diamond_gym.world import policy
from diamond_gym.world.models import ActorCritic, LSTMState
from diamond_gym.world.pixels import to_float, to_uint8
from diamond_gym.world.world_model import WorldModel, WorldModelState, blank
from trainers.diamond.config import SamplingConfig
from trainers.diamond.losses import PlayedSteps
from trainers.diamond.replay import Replay, SegmentBatch, concatenated

# --- rollout


class Outcome(NamedTuple):
    """The result of one step of b games; `obs` is the final frame of a game that is over."""

    obs: UInt8[Tensor, "b c h w"]
    rew: Float[Tensor, " b"]
    end: Bool[Tensor, " b"]
    trunc: Bool[Tensor, " b"]


class Games(Protocol):
    """b games that are played in step."""

    def step(self, act: Shaped[Tensor, "b *a"]) -> Outcome:
        """Take one action in each game."""
        ...

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k n c h w"]:
        """Restart some games; return n frames, the last of which is where they start.

        Frames are floats in [-1, 1], because padding, mid grey, has no value as a byte.
        """
        ...


class SavedGames(Games, Protocol):
    """Games whose state can be saved and restored at any step."""

    def start(self) -> Float[Tensor, "b n c h w"]:
        """Start all games; return frames as `restart` does."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state of the games, as plain data and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        ...


@dataclass
class PlayerState:
    """The state of the player of b games: the frames to act at, and the LSTM's memory."""

    obs: UInt8[Tensor, "b c h w"]
    hx: Float[Tensor, "b d"]
    cx: Float[Tensor, "b d"]

    def state_dict(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> PlayerState:
        """Restore what `state_dict` returned, on a device."""
        return cls(**{f.name: state[f.name].to(device) for f in fields(cls)})


def begin(actor_critic: ActorCritic, frames: Float[Tensor, "b n c h w"]) -> PlayerState:
    """The state at the last of n frames: the LSTM starts at zero and is burned in on the frames before.

    Gradients flow into the burn-in where they are enabled, as they do in the published code.
    """
    hx_cx = actor_critic.initial_state(len(frames))
    for obs in frames[:, :-1].unbind(1):
        _, _, hx_cx = actor_critic.predict_act_value(obs, hx_cx)
    return PlayerState(to_uint8(frames[:, -1]), *_float(hx_cx))


def play(
    actor_critic: ActorCritic,
    games: Games,
    state: PlayerState,
    u: Float[Tensor, "t b *k"],
) -> tuple[PlayerState, PlayedSteps]:
    """Play t steps of each game, with gradients; games that are over restart, burned in with gradients.

    The value after a step comes from the frame it led to and the LSTM's memory of the episode so far; where
    the episode was over, from its final frame, before the memory is cleared.

    Args:
        actor_critic: The policy; actions are sampled from it.
        games: The games, at the frames of `state`.
        state: The state of the player; no gradient flows into it.
        u: Numbers in [0, 1) that decide the actions (as many an action as `policy.draws_shape` says), with t
            at least 1, on the device of the networks.

    Returns:
        The new state of the player, and the steps.
    """
    obs, hx_cx, space = state.obs, (state.hx, state.cx), actor_critic.action_space
    logits, val, next_hx_cx = actor_critic.predict_act_value(to_float(obs), hx_cx)
    steps: list[tuple[Tensor, ...]] = []
    for t in range(len(u)):
        hx_cx = _float(next_hx_cx)
        act = policy.draw(space, logits.detach().double(), u[t])
        outcome = games.step(policy.to_actions(space, act))
        obs = outcome.obs
        over = (outcome.end | outcome.trunc).nonzero().flatten()
        final_val = _values(actor_critic, obs[over], (hx_cx[0][over], hx_cx[1][over]))
        with torch.set_grad_enabled(t + 1 < len(u)):  # the loss does not look beyond the last step
            if len(over):
                fresh = begin(actor_critic, games.restart(over))
                obs = obs.index_copy(0, over, fresh.obs)
                hx_cx = (hx_cx[0].index_copy(0, over, fresh.hx), hx_cx[1].index_copy(0, over, fresh.cx))
            next_logits, next_val, next_hx_cx = actor_critic.predict_act_value(to_float(obs), hx_cx)
        bootstrap = next_val.detach().float().index_copy(0, over, final_val)
        steps.append((logits.float(), act, outcome.rew, outcome.end, outcome.trunc, val.float(), bootstrap))
        logits, val = next_logits, next_val
    played = PlayedSteps(*(torch.stack(x, dim=1) for x in zip(*steps, strict=True)))
    return PlayerState(obs, hx_cx[0].detach(), hx_cx[1].detach()), played


@torch.no_grad()
def _values(
    actor_critic: ActorCritic, obs: UInt8[Tensor, "k c h w"], hx_cx: LSTMState
) -> Float[Tensor, " k"]:
    if not len(obs):
        return torch.zeros(0, device=obs.device)
    return actor_critic.predict_act_value(to_float(obs), hx_cx)[1].float()


def _float(hx_cx: LSTMState) -> LSTMState:
    return hx_cx[0].float(), hx_cx[1].float()


# --- real games
# Several real games at once, whose state can be saved and restored at any step.
#
# The only random numbers are the games' own, fixed by the seed. This section does not know who plays.


class RealGames:
    """b games of one kind, played in step.

    Args:
        game: Name of an Atari game.
        num_envs: Number of games (b), at least 1.
        training: Whether a lost life ends an episode (the game itself continues), as for training data.
        seed: Fixes the games, >= 0.

    Attributes:
        obs: The frame each game is at.

    Raises:
        UnknownGameError: ale-py has no such game.
    """

    def __init__(self, game: str, num_envs: int, *, training: bool, seed: int, first: int = 0) -> None:
        self.envs = [AtariEnv(game, training=training) for _ in range(num_envs)]
        seeds = np.random.SeedSequence(seed).generate_state(first + num_envs)[first:].tolist()
        frames = [env.reset(seed=s)[0] for env, s in zip(self.envs, seeds, strict=True)]
        self.obs = torch.stack([channels_first(frame) for frame in frames])

    def __len__(self) -> int:
        return len(self.envs)

    def start(self) -> Float[Tensor, "b 1 c h w"]:
        """The current frames, in [-1, 1]: the games have begun already."""
        return to_float(self.obs[:, None])

    def step(self, act: Int64[Tensor, " b"]) -> Outcome:
        """Take one action in each game; those that are over wait for `restart`."""
        steps = [env.step(a) for env, a in zip(self.envs, act.tolist(), strict=True)]
        self.obs = torch.stack([channels_first(frame) for frame, *_ in steps])
        return Outcome(
            obs=self.obs,
            rew=torch.tensor([rew for _, rew, *_ in steps], dtype=torch.float32),
            end=torch.tensor([end for _, _, end, _, _ in steps]),
            trunc=torch.tensor([trunc for *_, trunc, _ in steps]),
        )

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k 1 c h w"]:
        """Start the next episode of some games; return their first frames, in [-1, 1]."""
        self.obs = self.obs.clone()
        for i in index.tolist():
            self.obs[i] = channels_first(self.envs[i].reset()[0])
        return to_float(self.obs[index][:, None])

    def state_dict(self) -> dict[str, Any]:
        """The state of the games, as plain data and tensors."""
        return {"envs": [_to_plain(env.clone_state()) for env in self.envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state of the same number of games of the same kind.

        Raises:
            ValueError: The state is of another number of games.
        """
        if len(state["envs"]) != len(self.envs):
            raise ValueError(f"the state holds {len(state['envs'])} games, but {len(self.envs)} are played")
        frames = [env.restore_state(_from_plain(s)) for env, s in zip(self.envs, state["envs"], strict=True)]
        self.obs = torch.stack([channels_first(frame) for frame in frames])


class GamesOnDevice:
    """Real games for a player on another device."""

    def __init__(self, games: RealGames, device: torch.device) -> None:
        self.games, self.device = games, device

    def start(self) -> Float[Tensor, "b 1 c h w"]:
        """See `RealGames`."""
        return self.games.start().to(self.device)

    def step(self, act: Int64[Tensor, " b"]) -> Outcome:
        """See `RealGames`."""
        return Outcome(*(x.to(self.device) for x in self.games.step(act.cpu())))

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k 1 c h w"]:
        """See `RealGames`."""
        return self.games.restart(index.cpu()).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """See `RealGames`."""
        return self.games.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `RealGames`."""
        self.games.load_state_dict(state)


def _to_plain(state: AtariState) -> dict[str, Any]:
    plain = {name: getattr(state, name) for name in state.__dataclass_fields__}
    emulator = bytearray(state.emulator.serialize())
    return plain | {
        "emulator": torch.frombuffer(emulator, dtype=torch.uint8).clone(),
        "screens": torch.from_numpy(state.screens.copy()),
    }


def _from_plain(plain: dict[str, Any]) -> AtariState:
    emulator = ale_py.ALEState(plain["emulator"].numpy().tobytes())
    return AtariState(**plain | {"emulator": emulator, "screens": plain["screens"].numpy()})


# --- collector
# The actor-critic plays the real game: episodes for the datasets, and returns.
#
# A collector can be stopped after any step, saved, loaded and continued exactly: its state holds games,
# memory, random numbers and the steps that are not in the dataset yet.


@dataclass
class _Recording(EpisodeBuilder):
    """The steps of an episode so far, and, once it is in the dataset, its number and its stored length."""

    number: int | None = None
    num_stored: int = 0

    def state_dict(self) -> dict[str, Any]:
        """The location of the stored steps, and the other steps themselves."""
        first = self.num_stored
        frames = torch.stack([channels_first(x) for x in self.obs[first:]]) if self.obs[first:] else None
        return {"number": self.number, "obs": frames, "act": self.act[first:], "rew": self.rew[first:]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], dataset: EpisodeDataset) -> _Recording:
        """Restore what `state_dict` returned, with the stored steps read from the dataset."""
        recording = cls(number=state["number"])
        if recording.number is not None:
            stored = dataset.load(recording.number)
            recording.num_stored = len(stored)
            recording.obs += stored.obs.unbind()
            recording.act, recording.rew = stored.act.tolist(), stored.rew.tolist()
        recording.obs += [] if state["obs"] is None else list(state["obs"])
        recording.act += state["act"]
        recording.rew += state["rew"]
        return recording


@dataclass
class PlayReport:
    """Lengths and returns (raw rewards) of finished episodes."""

    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    num_steps: int = 0
    seconds: float = 0.0

    def __add__(self, other: PlayReport) -> PlayReport:
        return PlayReport(
            self.lengths + other.lengths,
            self.returns + other.returns,
            self.num_steps + other.num_steps,
            self.seconds + other.seconds,
        )

    def metrics(self) -> dict[str, Any]:
        """Mean with its 95 % interval, spread and extremes of the returns, and steps a second."""
        result: dict[str, Any] = {"num_episodes": len(self.returns)}
        if self.returns:
            returns = torch.tensor(self.returns, dtype=torch.float64)
            low, high = bootstrap_interval(self.returns)
            result |= {
                "return": returns.mean().item(),
                "return_std": returns.std(correction=0).item(),
                "return_low": low,
                "return_high": high,
                "return_min": returns.min().item(),
                "return_max": returns.max().item(),
                "length": sum(self.lengths) / len(self.lengths),
            }
        if self.seconds > 0:
            result["steps_per_s"] = self.num_steps / self.seconds
        return result


class Collector:
    """A collector plays some games and records them.

    Args:
        actor_critic: The policy, with the weights that it has at each step.
        games: The games.
        sampling: How actions are chosen.
        seed: Fixes the actions, >= 0.
        keeps_frames: Whether frames are recorded; False for lengths and returns alone.
        max_episode_steps: Steps after which an episode is cut short and a new game begins; None for no limit.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        games: RealGames,
        sampling: SamplingConfig,
        *,
        seed: int,
        keeps_frames: bool = True,
        max_episode_steps: int | None = None,
    ) -> None:
        self.actor_critic, self.games, self.sampling = actor_critic, games, sampling
        self.keeps_frames, self.max_episode_steps = keeps_frames, max_episode_steps
        self._generator = torch.Generator().manual_seed(seed)
        self._device = actor_critic.lstm.weight_hh.device
        with torch.no_grad():
            self._state = begin(actor_critic, games.start().to(self._device))
        self._recordings = [_Recording() for _ in range(len(games))]

    def collect(
        self,
        dataset: EpisodeDataset,
        replay: Replay,
        num_steps: int,
        *,
        bar: Bar,
        should_stop: Callable[[], bool],
        on_episode: Callable[[int, float, int], object] = lambda number, episode_return, length: None,
    ) -> PlayReport:
        """Play, and store every step; steps of unfinished episodes are left out if it is stopped early.

        Args:
            dataset: Dataset to which episodes are added.
            replay: The content of the dataset in memory.
            num_steps: Least number of steps to play, in all games together.
            bar: Progress bar, which is updated with the number of steps played.
            should_stop: Called after every step; True stops the collection.
            on_episode: Called with number, return and length of every finished episode.
        """
        report, start = PlayReport(), time.perf_counter()
        while report.num_steps < num_steps and not should_stop():
            for _, recording, episode in self.step():
                report.lengths.append(len(recording))
                report.returns.append(recording.total_reward)
                assert episode is not None, "a collector that keeps frames"
                _store(recording, episode, dataset, replay)
                assert recording.number is not None
                on_episode(recording.number, recording.total_reward, len(recording))
            report.num_steps += len(self.games)
            bar.update(len(self.games))
        if report.num_steps >= num_steps:  # else their numbers would depend on when it was stopped
            for recording in self._recordings:
                if len(recording):
                    _store(recording, recording.episode(), dataset, replay)
        report.seconds = time.perf_counter() - start
        return report

    @property
    def num_pending(self) -> int:
        """Number of played steps that are not in the dataset yet; above 0 only after an interruption."""
        return sum(len(recording) - recording.num_stored for recording in self._recordings)

    @property
    def stored_numbers(self) -> set[int]:
        """Numbers of the unfinished episodes whose beginning is in the dataset."""
        return {recording.number for recording in self._recordings if recording.number is not None}

    @torch.no_grad()
    def step(self) -> list[tuple[int, _Recording, Episode | None]]:
        """Play one step of each game.

        Returns:
            For each game whose episode is over: its index, the recording, and the episode if frames are kept.
        """
        obs = self.games.obs
        act = self._choose()
        outcome = self.games.step(act)
        for i, recording in enumerate(self._recordings):
            recording.add(obs[i] if self.keeps_frames else None, int(act[i]), float(outcome.rew[i]))
        limit = self.max_episode_steps
        too_long = torch.tensor([limit is not None and len(x) >= limit for x in self._recordings])
        trunc = outcome.trunc | (too_long & ~outcome.end)
        over = (outcome.end | trunc).nonzero().flatten()
        finished = []
        for i in over.tolist():
            recording = self._recordings[i]
            episode = None
            if self.keeps_frames:
                end = bool(outcome.end[i])
                episode = recording.episode(end=end, trunc=bool(trunc[i]), final_obs=outcome.obs[i])
            finished.append((i, recording, episode))
            self._recordings[i] = _Recording()
        if finished:
            self._forget(over)
        self._state.obs = self.games.obs.to(self._device)
        return finished

    def _choose(self) -> Int64[Tensor, " b"]:
        state, sampling = self._state, self.sampling
        logits, _, (state.hx, state.cx) = self.actor_critic.predict_act_value(
            to_float(state.obs), (state.hx, state.cx)
        )
        u = torch.rand(len(logits), generator=self._generator)
        act = policy.draw_class(logits.cpu().double(), u, sampling.temperature)  # real games are discrete
        explores, anything = torch.rand(2, len(act), generator=self._generator)
        return torch.where(explores < sampling.epsilon, (anything * logits.shape[1]).long(), act)

    def _forget(self, over: Int64[Tensor, " k"]) -> None:
        """Start the next episodes of some games, without memory of the last ones."""
        fresh = begin(self.actor_critic, self.games.restart(over).to(self._device))
        over = over.to(self._device)
        self._state.hx = self._state.hx.index_copy(0, over, fresh.hx)
        self._state.cx = self._state.cx.index_copy(0, over, fresh.cx)

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`."""
        return {
            "games": self.games.state_dict(),
            "player": self._state.state_dict(),
            "generator": self._generator.get_state(),
            "recordings": [recording.state_dict() for recording in self._recordings],
        }

    def load_state_dict(self, state: dict[str, Any], dataset: EpisodeDataset) -> None:
        """Restore a saved state.

        Args:
            state: State from `state_dict`.
            dataset: The dataset as it was at that time.
        """
        self.games.load_state_dict(state["games"])
        self._state = PlayerState.from_state_dict(state["player"], self._device)
        self._generator.set_state(state["generator"])
        self._recordings = [_Recording.from_state_dict(x, dataset) for x in state["recordings"]]


def _store(recording: _Recording, episode: Episode, dataset: EpisodeDataset, replay: Replay) -> None:
    if recording.number is None:
        recording.number = dataset.append(episode)
        number = replay.add(episode)
        assert number == recording.number, "the replay holds what the dataset holds"
    elif len(episode) > replay.lengths[recording.number]:
        dataset.replace(recording.number, episode)
        replay.extend(recording.number, episode)
    recording.num_stored = len(episode)


def play_whole_games(
    collector: Collector,
    num_episodes: int,
    *,
    bar: Bar,
    should_stop: Callable[[], bool],
    on_episode: Callable[[Episode], object] = lambda episode: None,
) -> PlayReport:
    """Play a number of episodes, equally many in each game, so that short ones are not preferred.

    Args:
        collector: A collector whose games have just begun.
        num_episodes: Number of episodes, at least 1.
        bar: Progress bar, which is updated with every episode that counts.
        should_stop: Called after every step; True stops the play.
        on_episode: Called with every episode that counts, if the collector keeps frames.
    """
    report, start = PlayReport(), time.perf_counter()
    b = len(collector.games)
    left = [num_episodes // b + (i < num_episodes % b) for i in range(b)]
    while any(left) and not should_stop():
        report.num_steps += b
        for i, recording, episode in collector.step():
            if left[i]:
                left[i] -= 1
                report.lengths.append(len(recording))
                report.returns.append(recording.total_reward)
                bar.update(1)
                if episode is not None:
                    on_episode(episode)
    report.seconds = time.perf_counter() - start
    return report


# --- imagined games
# Imagined games for the actor-critic: they start at replay segments and last for a horizon.
#
# Random numbers are functions of counts, not a stream: start number k of game i is the same whenever it
# happens, and whichever games are played beside it.


class ImaginedGames:
    """b imagined games, played in step.

    Args:
        world_model: Imagines the games.
        draw: Draws one replay segment of n steps.
        num_games: Number of games (b), at least 1.
        horizon: Steps after which a game is cut short, at least 1.
        seed: Fixes where games start and what happens in them, two numbers >= 0.
        first: Number of the first game, >= 0.

    Attributes:
        num_starts: How often each game was started.
    """

    def __init__(
        self,
        world_model: WorldModel,
        draw: Callable[[np.random.Generator], SegmentBatch],
        num_games: int,
        horizon: int,
        seed: tuple[int, int],
        first: int = 0,
    ) -> None:
        self.world_model, self.num_games, self.horizon, self.seed = world_model, num_games, horizon, seed
        self._draw, self._first = draw, first
        self._state: WorldModelState | None = None
        self.num_starts = torch.zeros(num_games, dtype=torch.int64)

    def start(self) -> Float[Tensor, "b n c h w"]:
        """Start all games; return the frames up to where they start, in [-1, 1]."""
        self._state = self._start(torch.arange(self.num_games))
        return blank(to_float(self._state.obs), self._state.padding)

    def step(self, act: Shaped[Tensor, "b *a"]) -> Outcome:
        """Take one action in each game."""
        assert self._state is not None, "start() comes first"
        self._state, step = self.world_model.step(self._state, act)
        return Outcome(step.obs, step.rew, step.end, self._state.time >= self.horizon)

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k n c h w"]:
        """Restart some games at newly drawn segments; return the frames up to their start, in [-1, 1]."""
        assert self._state is not None, "start() comes first"
        fresh = self._start(index.cpu())
        self._state = self._state.replace(index, fresh)
        return blank(to_float(fresh.obs), fresh.padding)

    def _start(self, index: Int64[Tensor, " k"]) -> WorldModelState:
        numbers = zip((self._first + index).tolist(), self.num_starts[index].tolist(), strict=True)
        rngs = [np.random.default_rng([*self.seed, game, start]) for game, start in numbers]
        self.num_starts[index] += 1
        batch = concatenated([self._draw(rng) for rng in rngs])
        keys = torch.tensor([int(rng.integers(2**62)) for rng in rngs])
        return self.world_model.start(batch.obs, batch.act, keys, batch.padding_before())

    def state_dict(self) -> dict[str, Any]:
        """The state of the games."""
        state = self._state
        names = [f.name for f in fields(WorldModelState)]
        tensors = {} if state is None else dict(zip(names, state.tensors(), strict=True))
        return {"num_starts": self.num_starts.clone(), "state": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.num_starts = (
            torch.as_tensor(state["num_starts"]).expand(self.num_games).clone()
        )  # earlier versions saved one number
        device = self.world_model.device
        tensors = {name: x.to(device) for name, x in state["state"].items()}
        if tensors and "padding" not in tensors:  # saved by an earlier version, which had mid grey frames
            tensors["padding"] = torch.zeros_like(tensors["time"])
        self._state = WorldModelState(**tensors) if tensors else None


# --- imagined segments
# Segments whose later frames are imagined, with real labels: what the reward/end model meets at play.
#
# A model that learns from real frames judges imagined ones at play. Where these look a little different, it
# overlooks ends, and a lost ball costs an agent nothing. This section does not depend on the loss.


AGREEMENT_RADIUS = 2
"""Frames are compared by averages over windows of 2 r + 1 pixels: a ball may be a pixel off."""
AGREEMENT_TOLERANCE = 0.05
"""Largest difference of such averages, for values in [-1, 1], at which two frames agree; a missing ball in
Atari makes a difference of 0.06 to 0.1."""


def with_imagined_frames(
    batch: SegmentBatch, world_model: WorldModel, fraction: float, rng: np.random.Generator
) -> SegmentBatch:
    """Let a share of the segments of a batch continue in imagination, from a drawn step on.

    Actions stay, and so do rewards and ends, as long as the imagined game is still the real one; the rest of
    the segment is then masked. The frame after an end, which the denoiser never learns, need not be alike.

    Args:
        batch: Segments that are longer than the world model's context.
        world_model: Imagines the frames; it is not trained here.
        fraction: Share of the segments, in [0, 1]; the first ones are taken.
        rng: Draws the step, the same for all, and the noise.
    """
    n, length = world_model.num_steps_conditioning, batch.obs.shape[1]
    size = round(fraction * len(batch.obs))
    first = int(rng.integers(n, length))
    keys = torch.from_numpy(rng.integers(2**62, size=size))
    if size == 0:
        return batch
    changed = batch.select(slice(0, size))
    frames = _imagined(changed, world_model, first, keys)
    changed = _judged(changed, frames, first)
    return concatenated([changed, batch.select(slice(size, None))])


def _imagined(
    batch: SegmentBatch, world_model: WorldModel, first: int, keys: Tensor
) -> UInt8[Tensor, "b k c h w"]:
    """Imagine the frames from `first` on, up to the one after the segment's last step."""
    n = world_model.num_steps_conditioning
    past = slice(first - n, first)
    padding = (n - first - batch.start).clamp(min=0)
    actions = batch.act[:, first - 1 :]
    return world_model.imagine(batch.obs[:, past], batch.act[:, past], keys, actions, padding)


def _judged(batch: SegmentBatch, frames: UInt8[Tensor, "b k c h w"], first: int) -> SegmentBatch:
    """The segments with imagined frames; what follows a frame unlike the real one is masked."""
    real = torch.cat([batch.obs[:, first:], batch.final_obs[:, None]], dim=1)
    is_over = (batch.end | batch.trunc)[:, first - 1 :]
    real = torch.where(is_over[:, :, None, None, None], batch.final_obs[:, None], real)
    agrees = (agreement(real, frames) | is_over).cumprod(dim=1).bool()
    mask = batch.mask_padding.clone()
    mask[:, first - 1 :] &= agrees
    last = is_over.int().argmax(dim=1)
    final = frames[torch.arange(len(frames), device=frames.device), last]
    return replace(
        batch,
        obs=torch.cat([batch.obs[:, :first], frames[:, :-1]], dim=1),
        final_obs=torch.where(is_over.any(dim=1)[:, None, None, None], final, batch.final_obs),
        mask_padding=mask,
    )


def agreement(real: UInt8[Tensor, "b k c h w"], imagined: UInt8[Tensor, "b k c h w"]) -> Bool[Tensor, "b k"]:
    """Whether two frames agree up to small shifts of objects."""
    difference = (to_float(real) - to_float(imagined)).flatten(0, 1)
    return (_blurred(difference).abs().amax(dim=(1, 2, 3)) <= AGREEMENT_TOLERANCE).unflatten(
        0, real.shape[:2]
    )


def _blurred(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return F.avg_pool2d(x, 2 * AGREEMENT_RADIUS + 1, stride=1, padding=AGREEMENT_RADIUS)

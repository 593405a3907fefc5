"""The actor-critic plays the real game: episodes for the datasets, and returns.

A collector that is stopped after any step, saved and loaded goes on exactly: games, memory, random numbers
and the steps that are not in the dataset yet are part of its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.world.models import ActorCritic
from diamond_gym.world.pixels import to_float
from trainers.diamond.config import SamplingConfig
from trainers.diamond.real_games import RealGames
from trainers.diamond.replay import Replay
from trainers.diamond.rollout import PlayerState, begin, sample


@dataclass
class _Recording:
    """The steps of an episode so far; its number and how much of it is stored, once it is in the dataset."""

    keeps_frames: bool
    number: int | None = None
    num_stored: int = 0
    obs: list[Tensor] = field(default_factory=list)
    act: list[int] = field(default_factory=list)
    rew: list[float] = field(default_factory=list)

    def add(self, obs: Tensor, act: int, rew: float) -> None:
        if self.keeps_frames:
            self.obs.append(obs)
        self.act.append(act)
        self.rew.append(rew)

    def __len__(self) -> int:
        return len(self.act)

    @property
    def total_reward(self) -> float:
        return sum(self.rew)

    def episode(self, end: bool = False, trunc: bool = False, final_obs: Tensor | None = None) -> Episode:
        flags = torch.zeros(2, len(self.act), dtype=torch.uint8)
        flags[0, -1], flags[1, -1] = end, trunc
        return Episode(
            obs=torch.stack(self.obs),
            act=torch.tensor(self.act, dtype=torch.int64),
            rew=torch.tensor(self.rew, dtype=torch.float32),
            end=flags[0],
            trunc=flags[1],
            info={} if final_obs is None else {"final_observation": final_obs},
        )

    def state_dict(self) -> dict[str, Any]:
        """Where its stored steps are, and the others."""
        first = self.num_stored
        frames = torch.stack(self.obs[first:]) if self.obs[first:] else None
        return {"number": self.number, "obs": frames, "act": self.act[first:], "rew": self.rew[first:]}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], dataset: EpisodeDataset) -> _Recording:
        """What `state_dict` returned, with the stored steps out of the dataset."""
        recording = cls(True, state["number"])
        if recording.number is not None:
            stored = dataset.load(recording.number)
            recording.obs, recording.num_stored = list(stored.obs), len(stored)
            recording.act, recording.rew = stored.act.tolist(), stored.rew.tolist()
        recording.obs += [] if state["obs"] is None else list(state["obs"])
        recording.act += state["act"]
        recording.rew += state["rew"]
        return recording


@dataclass
class PlayReport:
    """What was played: lengths and returns (raw rewards) of the episodes that came to an end."""

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
        """Means, spread and extremes of the returns, and steps a second."""
        result: dict[str, Any] = {"num_episodes": len(self.returns)}
        if self.returns:
            returns = torch.tensor(self.returns, dtype=torch.float64)
            result |= {
                "return": returns.mean().item(),
                "return_std": returns.std(correction=0).item(),
                "return_min": returns.min().item(),
                "return_max": returns.max().item(),
                "length": sum(self.lengths) / len(self.lengths),
            }
        if self.seconds > 0:
            result["steps_per_s"] = self.num_steps / self.seconds
        return result


class Collector:
    """Plays some games and records them.

    Args:
        actor_critic: The policy, used as it is when it is called.
        games: The games.
        sampling: How actions are chosen.
        seed: Fixes them, >= 0.
        keeps_frames: False for lengths and returns alone.
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
        self._recordings = [_Recording(keeps_frames) for _ in range(len(games))]

    def collect(
        self,
        dataset: EpisodeDataset,
        replay: Replay,
        num_steps: int,
        *,
        bar: tqdm,
        should_stop: Callable[[], bool],
        on_episode: Callable[[int, float, int], object] = lambda number, episode_return, length: None,
    ) -> PlayReport:
        """Plays, and stores every step, those of unfinished episodes too unless it is stopped before.

        Args:
            dataset: Where episodes go.
            replay: What it holds, in memory.
            num_steps: Steps to play at least, in all games together.
            bar: Told how many steps were played.
            should_stop: Asked after every step whether to leave it at that.
            on_episode: Given number, return and length of every episode that is over.
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
        """Steps played that are not in the dataset yet; some only after an interruption."""
        return sum(len(recording) - recording.num_stored for recording in self._recordings)

    @property
    def stored_numbers(self) -> set[int]:
        """Of the episodes under way, the numbers of those whose beginning is in the dataset."""
        return {recording.number for recording in self._recordings if recording.number is not None}

    @torch.no_grad()
    def step(self) -> list[tuple[int, _Recording, Episode | None]]:
        """Plays one step of each game.

        Returns:
            Of each game whose episode is over: its index, the recording, and the episode if frames are kept.
        """
        obs = self.games.obs
        act = self._choose()
        outcome = self.games.step(act)
        for i, recording in enumerate(self._recordings):
            recording.add(obs[i], int(act[i]), float(outcome.rew[i]))
        limit = self.max_episode_steps
        too_long = torch.tensor([limit is not None and len(x) >= limit for x in self._recordings])
        trunc = outcome.trunc | (too_long & ~outcome.end)
        over = (outcome.end | trunc).nonzero().flatten()
        finished = []
        for i in over.tolist():
            recording = self._recordings[i]
            last = bool(outcome.end[i]), bool(trunc[i]), outcome.obs[i]
            finished.append((i, recording, recording.episode(*last) if self.keeps_frames else None))
            self._recordings[i] = _Recording(self.keeps_frames)
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
        act = sample(logits.float().cpu(), u, sampling.temperature)
        explores, anything = torch.rand(2, len(act), generator=self._generator)
        return torch.where(explores < sampling.epsilon, (anything * logits.shape[1]).long(), act)

    def _forget(self, over: Int64[Tensor, " k"]) -> None:
        """Starts the next episodes of some games, without memory of the last ones."""
        fresh = begin(self.actor_critic, self.games.restart(over).to(self._device))
        over = over.to(self._device)
        self._state.hx = self._state.hx.index_copy(0, over, fresh.hx)
        self._state.cx = self._state.cx.index_copy(0, over, fresh.cx)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {
            "games": self.games.state_dict(),
            "player": self._state.state_dict(),
            "generator": self._generator.get_state(),
            "recordings": [recording.state_dict() for recording in self._recordings],
        }

    def load_state_dict(self, state: dict[str, Any], dataset: EpisodeDataset) -> None:
        """Goes on from a saved moment.

        Args:
            state: From `state_dict`.
            dataset: As it was then.
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
        replay.go_on(recording.number, episode)
    recording.num_stored = len(episode)


def play_whole_games(
    collector: Collector,
    num_episodes: int,
    *,
    bar: tqdm,
    should_stop: Callable[[], bool],
    on_episode: Callable[[Episode], object] = lambda episode: None,
) -> PlayReport:
    """Plays a number of episodes, each game its share, so that short ones are not preferred.

    Args:
        collector: Its games have just begun.
        num_episodes: How many, at least 1.
        bar: Told of every episode that counts.
        should_stop: Asked after every step whether to leave it at that.
        on_episode: Given every episode that counts, if the collector keeps frames.
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

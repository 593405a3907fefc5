"""Run the world model: imagination from starts, and its reward/end model on real episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from diamond_gym.data.episodes import Episode
from diamond_gym.evaluate.heldout import Starts, all_frames
from diamond_gym.players.player import Player
from diamond_gym.progress import Bar
from diamond_gym.world.interface import StateLike, WorldModelLike
from diamond_gym.world.pixels import to_float
from diamond_gym.world.world_model import WorldModel

Choose = Callable[[Tensor], Tensor]
"""Maps the latest frames, uint8 (b, c, h, w), to actions, int64 (b,)."""

_CHUNK = 128
"""Steps that the reward/end model sees at once; the state of its LSTM is passed between chunks."""


@dataclass(frozen=True)
class Imagined:
    """Imagined futures of the starts' actions; they continue past imagined ends.

    Attributes:
        obs: Frames.
        rew: Sampled rewards in {-1, 0, 1}.
        end: Sampled ends.
    """

    obs: UInt8[Tensor, "b t c h w"]
    rew: Float[Tensor, "b t"]
    end: Bool[Tensor, "b t"]


@dataclass(frozen=True)
class Transitions:
    """Real transitions of all episodes in order: the class that occurred and the likeliest class predicted.

    Reward classes 0, 1, 2 are rewards of sign -1, 0, 1; end classes are 0 and 1.
    """

    rew: Int64[Tensor, " t"]
    predicted_rew: Int64[Tensor, " t"]
    end: Int64[Tensor, " t"]
    predicted_end: Int64[Tensor, " t"]


@dataclass(frozen=True)
class Imaginer:
    """Imagines from starts, in batches.

    A start's random numbers depend on the seed and its index, not on its batch.

    Attributes:
        world_model: The world model, in eval mode.
        seed: At least 0.
        batch_size: Starts imagined at once.
        progress: Show a bar on stderr.
    """

    world_model: WorldModelLike
    seed: int
    batch_size: int = 32
    progress: bool = True

    def future(self, starts: Starts) -> Imagined:
        """Imagine from every start under the real actions."""
        everything = torch.arange(len(starts))
        return self.under(starts, everything, starts.future_act, "imagine")

    def under(
        self,
        starts: Starts,
        rows: Int64[Tensor, " k"],
        act: Int64[Tensor, "k t"],
        what: str,
        sample: int = 0,
    ) -> Imagined:
        """Imagine from some of the starts under any actions.

        Args:
            starts: Contexts.
            rows: Indices of starts; one may occur several times.
            act: The actions taken from each start.
            what: Text beside the progress bar.
            sample: Selects the random numbers; at least 0 and below 2^8.

        Returns:
            Imagined steps, as many as `act` has, on the CPU.
        """
        acts = act.to(self.world_model.device)
        return self._imagine(starts, rows, lambda part: _one_by_one(acts[part]), act.shape[1], what, sample)

    def played(
        self,
        starts: Starts,
        rows: Int64[Tensor, " k"],
        new_player: Callable[[], Player],
        num_steps: int,
    ) -> Imagined:
        """Imagine from some of the starts under players that act on the imagined frames.

        Args:
            starts: Contexts.
            rows: Indices of starts.
            new_player: Makes the player of a start; its seed is the start's index.
            num_steps: Steps from each start.

        Returns:
            Frames, rewards and ends (k, num_steps), on the CPU.
        """

        def choose(part: slice) -> Choose:
            players = [new_player() for _ in rows[part]]
            for player, row in zip(players, rows[part].tolist(), strict=True):
                player.reset(row)
            return _each_its_own(players, self.world_model.device)

        return self._imagine(starts, rows, choose, num_steps, "play")

    def _imagine(
        self,
        starts: Starts,
        rows: Tensor,
        choose_in: Callable[[slice], Choose],
        num_steps: int,
        what: str,
        sample: int = 0,
    ) -> Imagined:
        """Imagine the rows batch after batch, with the actions that are chosen in each."""
        keys = rows + (self.seed << 32) + (sample << 24)
        parts = []
        with Bar(total=len(rows) * num_steps, unit="step", desc=what, disable=not self.progress) as bar:
            for first in range(0, len(rows), self.batch_size):
                part = slice(first, first + self.batch_size)
                state = self.world_model.start(starts.obs[rows[part]], starts.act[rows[part]], keys[part])
                parts.append(_imagine(self.world_model, state, choose_in(part), num_steps, bar))
        return Imagined(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _imagine(
    world_model: WorldModelLike, state: StateLike, choose: Choose, num_steps: int, bar: Bar
) -> tuple[Tensor, Tensor, Tensor]:
    steps = []
    for _ in range(num_steps):
        state, step = world_model.step(state, choose(state.obs[:, -1]))
        steps.append((step.obs, step.rew, step.end))
        bar.update(len(step.obs))
    frames, rew, end = (torch.stack(column, 1).cpu() for column in zip(*steps, strict=True))
    return frames, rew, end


def _one_by_one(acts: Int64[Tensor, "b t"]) -> Choose:
    """Return a function that takes these actions, whatever the frames."""
    left = iter(acts.unbind(1))
    return lambda frames: next(left)


def _each_its_own(players: Sequence[Player], device: torch.device) -> Choose:
    """Return a function in which each game's player chooses the action at its frame."""

    def choose(frames: Tensor) -> Tensor:
        images = frames.permute(0, 2, 3, 1).cpu().numpy()
        acts = [player.act(image) for player, image in zip(players, images, strict=True)]
        return torch.tensor(acts, device=device)

    return choose


@torch.no_grad()
def predict_transitions(world_model: WorldModelLike, episodes: Sequence[Episode]) -> Transitions:
    """Predict rewards and ends of real transitions, by the reward/end model on real frames.

    Its LSTM runs through each whole episode; the first n - 1 transitions of an episode only warm it up, as a
    context does at play time, and are not counted. A custom world model takes a single step from each context
    of real frames.
    """
    if isinstance(world_model, WorldModel):
        rows = [_predict_episode(world_model, episode) for episode in episodes]
    else:
        rows = [_step_through(world_model, episode) for episode in episodes]
    return Transitions(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _step_through(world_model: WorldModelLike, episode: Episode) -> tuple[Tensor, ...]:
    """Real and predicted classes of rewards and ends, by one step from each context."""
    n = world_model.num_steps_conditioning
    if len(episode) < n:
        return (torch.zeros(0, dtype=torch.int64),) * 4
    predicted_rew, predicted_end = [], []
    obs, act = (x.unfold(0, n, 1).movedim(-1, 1) for x in (all_frames(episode)[:-1], episode.act))
    for first in range(0, len(act), _CHUNK):
        part = slice(first, first + _CHUNK)
        keys = torch.arange(first, first + len(act[part]))
        state = world_model.start(obs[part].contiguous(), act[part].contiguous(), keys)
        _, step = world_model.step(state, state.act[:, -1])
        predicted_rew.append(step.rew.sign().long().cpu() + 1)
        predicted_end.append(step.end.long().cpu())
    warm = slice(n - 1, None)
    rew, end = episode.rew.sign().long()[warm] + 1, episode.end.long()[warm]
    return rew, torch.cat(predicted_rew), end, torch.cat(predicted_end)


def _predict_episode(world_model: WorldModel, episode: Episode) -> tuple[Tensor, ...]:
    frames, act = all_frames(episode), episode.act
    hx_cx, rew_logits, end_logits = None, [], []
    for first in range(0, len(act), _CHUNK):
        obs = to_float(frames[first : first + _CHUNK + 1].to(world_model.device))[None]
        now = act[first : first + _CHUNK].to(world_model.device)[None]
        logits_rew, logits_end, hx_cx = world_model.rew_end_model.predict_rew_end(
            obs[:, :-1], now, obs[:, 1:], hx_cx
        )
        rew_logits.append(logits_rew[0])
        end_logits.append(logits_end[0])
    warm = slice(world_model.num_steps_conditioning - 1, None)
    return (
        episode.rew.sign().long()[warm] + 1,
        torch.cat(rew_logits).argmax(-1).cpu()[warm],
        episode.end.long()[warm],
        torch.cat(end_logits).argmax(-1).cpu()[warm],
    )

"""Episodes in memory as uint8, and the segments and crops that training draws from them.

Every draw is a pure function of the generator it is given: a batch can be drawn again, and a resumed run sees
the batches it would have seen. This module does not depend on networks, losses or files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym.data.episodes import Episode
from diamond_gym.errors import DatasetError
from diamond_gym.world.pixels import to_float
from trainers.diamond.frames import CompressedFrames, PlainFrames, grown

# --- crops
# Crops of segments: the part of a frame that a training step uses.
#
# A frame of a game is mostly still, and what decides how it continues, such as a ball that meets a paddle, is
# small. Training on crops around what moves costs a fraction of a whole frame (Patch Diffusion, arXiv
# 2304.12526). Only pixels are used: no objects of a game, no networks.


MOTION_CELL = 4
"""Side, in pixels, of the cells among which a moving place is drawn: all moving cells are equally likely, so
that a ball is drawn as often as a paddle."""
MOTION_THRESHOLD = 16
"""Smallest change of a colour channel, out of 255, that counts as motion."""


@dataclass(frozen=True)
class Crop:
    """Size and alignment of crops.

    Attributes:
        size: Side in pixels.
        multiple: Divisor of the rows and columns of their upper left corners, so that the network
            downsamples a crop as it downsamples the frame around it.
    """

    size: int
    multiple: int

    def corners(
        self, rng: np.random.Generator, place: Int64[np.ndarray, "b 2"], frame: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Draw corners (b, 2) of crops that hold a place in their middle half, where the frame allows it.

        Args:
            rng: Source of randomness.
            place: Row and column of the place.
            frame: Height and width of the frames.
        """
        low = -(-(place - 3 * self.size // 4) // self.multiple)
        high = (place - self.size // 4) // self.multiple
        corner = self.multiple * rng.integers(low, np.maximum(high, low), endpoint=True)
        return corner.clip(0, np.array(frame) - self.size)


def is_moving(
    before: UInt8[np.ndarray, "b c h w"], after: UInt8[np.ndarray, "b c h w"]
) -> Bool[np.ndarray, "b h2 w2"]:
    """Which cells of side `MOTION_CELL` change between two frames; narrower cells at an edge are ignored."""
    change = np.where(after > before, after - before, before - after).max(1) >= MOTION_THRESHOLD
    b, h, w = change.shape
    h, w = h // MOTION_CELL, w // MOTION_CELL
    cells = change[:, : h * MOTION_CELL, : w * MOTION_CELL]
    return np.asarray(cells.reshape(b, h, MOTION_CELL, w, MOTION_CELL).any((2, 4)))


def moving_places(rng: np.random.Generator, moves: Bool[np.ndarray, "b h w"]) -> Int64[np.ndarray, "b 2"]:
    """Draw a pixel (row, column) from each frame's moving cells; any pixel where nothing moves."""
    b, _, w = moves.shape
    order = rng.random(moves.shape) + moves  # those that move come last
    cell = order.reshape(b, -1).argmax(1)
    inside = rng.integers(MOTION_CELL, size=(b, 2))
    return np.stack([cell // w, cell % w], axis=1) * MOTION_CELL + inside


def cut(
    frames: UInt8[np.ndarray, "b *t c h w"], corner: Int64[np.ndarray, "b 2"], size: int
) -> UInt8[np.ndarray, "b *t c s s"]:
    """Cut a square out of every frame; all frames of a segment are cut alike."""
    windows = np.empty((*frames.shape[:-2], size, size), frames.dtype)
    for i, (row, column) in enumerate(corner.tolist()):
        windows[i] = frames[i, ..., row : row + size, column : column + size]
    return windows


# --- hard steps
# Which steps of the replay are predicted badly: prioritised replay (Schaul et al. 2016), proportional.
#
# Most steps of a game are easy; what makes an imagined game depart from the real one, such as a bounce of the
# ball, is rare and looks like the rest. This section does not depend on networks.


_NUM_LEVELS = 15
_LEVELS = (-0.4, 1.1)
"""Number of equal bins of noise levels, as the network sees them, and the range that they divide."""
_MEAN_DECAY = 0.99
"""Decay of the usual error of a kind of prediction with every noted error."""


class StepErrors(NamedTuple):
    """Prediction errors of k steps; the arrays may have any number type.

    Attributes:
        episode: Number of the episode.
        time: Number of the step in the episode.
        error: Error, at least 0.
        c_noise: Noise level, as the network sees it.
        kind: Kind of prediction, at least 0; only errors of the same kind are compared.
        row: Row in the frame of the largest error.
        column: Column in the frame of the largest error.
        is_usual: Whether the step was drawn in the usual way; hard steps must not decide what is usual.
    """

    episode: Shaped[Tensor, " k"]
    time: Shaped[Tensor, " k"]
    error: Shaped[Tensor, " k"]
    c_noise: Shaped[Tensor, " k"]
    kind: Shaped[Tensor, " k"]
    row: Shaped[Tensor, " k"]
    column: Shaped[Tensor, " k"]
    is_usual: Shaped[Tensor, " k"]


class HardSteps:
    """How badly each step was predicted when it was last seen, and where in the frame.

    Errors are noted as multiples of the usual error of their kind, that is of predictions at the same noise
    level and as far into a segment; otherwise a plain step under much noise would look as hard as a bounce
    under little noise. A step that was never seen has weight 0.
    """

    def __init__(self) -> None:
        self._lengths = np.zeros(0, np.int64)
        self._errors = np.zeros(0, np.float32)
        self._places = np.zeros((0, 2), np.uint8)
        self._means: dict[int, float] = {}

    def weights(self, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """How much each step should be drawn, episode after episode.

        Args:
            lengths: Lengths of the episodes; they may grow in length and number, but never shrink.
        """
        if not np.array_equal(lengths, self._lengths):
            self._errors = self._with_room(self._errors, lengths)
            self._places = self._with_room(self._places, lengths)
            self._lengths = lengths.copy()
        return self._errors

    @property
    def places(self) -> NDArray[np.uint8]:
        """Row and column, in pixels, of each step's largest error; in the order of `weights`."""
        return self._places

    def note(self, seen: StepErrors) -> None:
        """Note errors of steps that were covered by `weights`; errors that are not finite are left out."""
        seen = StepErrors(*(x[seen.error.isfinite()] for x in seen))
        episode, time = seen.episode.long().numpy(), seen.time.long().numpy()
        index = (self._lengths.cumsum() - self._lengths)[episode] + time
        kind = (_bins(seen.c_noise) + _NUM_LEVELS * seen.kind.long()).numpy()
        error = seen.error.double().numpy()
        self._update_means(error, kind, seen.is_usual.bool().numpy())
        self._errors[index] = error / np.exp([self._means[k] for k in kind.tolist()])
        self._places[index] = torch.stack([seen.row, seen.column], dim=1).clamp(0, 255).numpy()

    def _update_means(
        self, error: NDArray[np.float64], kind: NDArray[np.int64], is_usual: NDArray[np.bool_]
    ) -> None:
        """Update the usual error of every kind, a geometric mean, from steps drawn in the usual way."""
        logs = np.log(np.maximum(error, np.finfo(np.float32).tiny))
        for k in np.unique(kind).tolist():
            of_kind = kind == k
            chosen = of_kind & is_usual
            if k not in self._means:
                chosen = chosen if chosen.any() else of_kind
                self._means[k] = float(logs[chosen].mean())
            elif chosen.any():
                decay = _MEAN_DECAY ** int(chosen.sum())
                self._means[k] = decay * self._means[k] + (1 - decay) * float(logs[chosen].mean())

    def _with_room(self, known: NDArray, lengths: NDArray[np.int64]) -> NDArray:
        """Extend the noted values to episodes that have grown to `lengths`."""
        grown = np.zeros((int(lengths.sum()), *known.shape[1:]), known.dtype)
        first, first_before = 0, 0
        for length, before in zip(lengths, self._lengths, strict=False):
            grown[first : first + before] = known[first_before : first_before + before]
            first, first_before = first + length, first_before + before
        return grown

    def state_dict(self) -> dict[str, Any]:
        """The noted errors, for `load_state_dict`."""
        return {
            "lengths": torch.from_numpy(self._lengths.copy()),
            "errors": torch.from_numpy(self._errors.copy()),
            "places": torch.from_numpy(self._places.copy()),
            "means": dict(self._means),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved errors."""
        self._lengths, self._errors, self._places = (
            state[name].numpy().copy() for name in ("lengths", "errors", "places")
        )
        self._means = dict(state["means"])


def _bins(c_noise: Float[Tensor, " k"]) -> Int64[Tensor, " k"]:
    low, high = _LEVELS
    return ((c_noise - low) / (high - low) * _NUM_LEVELS).long().clamp(0, _NUM_LEVELS - 1)


# --- replay


PADDING_LEVEL = 0.0
"""Padding frames in [-1, 1] space: mid grey."""


@dataclass(frozen=True)
class SegmentBatch:
    """b segments of l steps.

    Attributes:
        obs: Frames; arbitrary where `mask_padding` is False.
        episode: Number of the episode.
        start: Time of the first step in the episode, negative where that step is padding.
        act: Actions, int64 or float32, 0 where padded.
        rew: Raw rewards, 0 where padded.
        end: Whether the episode terminated at the step.
        trunc: Whether the episode was cut short at the step.
        mask_padding: True where the segment holds a step of the episode.
        final_obs: The frame after each segment's last step of the episode, where the segment reaches it
            (`has_final`); else arbitrary.
        has_final: Whether `final_obs` is known and the segment holds the episode's last step.
        corner: Row and column of the upper left pixel in the episode's frames; 0 except in crops.
        is_hard: Whether the segment was drawn around a hard step.
    """

    obs: UInt8[Tensor, "b l c h w"]
    episode: Int64[Tensor, " b"]
    start: Int64[Tensor, " b"]
    act: Shaped[Tensor, "b l *a"]
    rew: Float[Tensor, "b l"]
    end: Bool[Tensor, "b l"]
    trunc: Bool[Tensor, "b l"]
    mask_padding: Bool[Tensor, "b l"]
    final_obs: UInt8[Tensor, "b c h w"]
    has_final: Bool[Tensor, " b"]
    corner: Int64[Tensor, "b 2"]
    is_hard: Bool[Tensor, " b"]

    def frames(self) -> Float[Tensor, "b l c h w"]:
        """Frames in [-1, 1], mid grey where padded."""
        return to_float(self.obs).masked_fill_(~self.mask_padding[:, :, None, None, None], PADDING_LEVEL)

    def padding_before(self) -> Int64[Tensor, " b"]:
        """Number of steps of each segment that lie before its episode."""
        return (-self.start).clamp(min=0)

    def select(self, segments: slice) -> SegmentBatch:
        """Select some of the segments."""
        return SegmentBatch(**{name: x[segments] for name, x in vars(self).items()})

    def to(self, device: torch.device | str) -> SegmentBatch:
        """Copy the batch to a device, with frames as uint8; the host does not wait for a GPU."""
        tensors = vars(self)
        if torch.device(device).type == "cuda":
            tensors = {name: x.pin_memory() for name, x in tensors.items()}
        return SegmentBatch(**{name: x.to(device, non_blocking=True) for name, x in tensors.items()})


@dataclass(frozen=True)
class Hard:
    """How segments are drawn around hard steps.

    Attributes:
        fraction: Share of the segments, in [0, 1].
        weights: How much each step should be drawn, >= 0, episode after episode.
        places: Row and column of what is hard in each step, for crops.
    """

    fraction: float
    weights: NDArray[np.float32]
    places: NDArray[np.uint8]


def concatenated(batches: list[SegmentBatch]) -> SegmentBatch:
    """Concatenate batches of segments of one length."""
    return SegmentBatch(**{x: torch.cat([vars(batch)[x] for batch in batches]) for x in vars(batches[0])})


class Replay:
    """All steps of a growing set of episodes in flat arrays.

    Steps are stored in the order in which they were added; an index maps an episode's steps to rows, so that
    any episode can continue after others have begun.

    Args:
        episodes: Episodes to begin with, all with frames of the same shape.
        num_steps: Number of steps to make room for; more room is made when it is needed.
        compress: Whether frames are kept compressed, without loss, instead of one byte a pixel.

    Raises:
        DatasetError: Their frames or actions differ in shape.
    """

    def __init__(
        self, episodes: Iterable[Episode] = (), num_steps: int = 0, *, compress: bool = False
    ) -> None:
        self.lengths: NDArray[np.int64] = np.zeros(0, np.int64)
        self.num_steps = 0
        self._capacity = num_steps
        self._rows: list[NDArray[np.int64]] = []
        self._flat_rows: NDArray[np.int64] | None = None
        self._new_frames = CompressedFrames if compress else PlainFrames
        self._frames = self._new_frames((0, 0, 0))
        self._final_obs = np.zeros((0, 0, 0, 0), np.uint8)
        self._act = np.zeros(0, np.int64)
        self._rew = np.zeros(0, np.float32)
        self._end = self._trunc = np.zeros(0, bool)
        self._has_final = np.zeros(0, bool)
        for episode in episodes:
            self.add(episode)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, episode: Episode) -> int:
        """Add an episode; return its number."""
        e = len(self.lengths)
        shape = tuple(episode.obs.shape[1:])
        if e and shape != self.frame_shape:
            raise DatasetError(f"episodes have frames of {self.frame_shape} and of {shape}; they must agree")
        act = episode.act[:0].numpy()
        if not e:
            self._act, self._frames = act, self._new_frames(shape)
            self._final_obs = np.zeros((0, *shape), np.uint8)
        elif (act.shape[1:], act.dtype) != (self._act.shape[1:], self._act.dtype):
            raise DatasetError(
                f"episodes have actions of {self._act.dtype} {self._act.shape[1:]} and of {act.dtype} "
                f"{act.shape[1:]}; they must agree"
            )
        if e >= len(self._has_final):
            self._final_obs = grown(self._final_obs, max(64, 2 * e))
            self._has_final = grown(self._has_final, max(64, 2 * e))
        self._rows.append(np.zeros(0, np.int64))
        self.lengths = np.append(self.lengths, 0)
        self.extend(e, episode)
        return e

    def extend(self, e: int, episode: Episode) -> None:
        """Add the new steps of episode `e`; `episode` is the whole episode."""
        known, added = int(self.lengths[e]), len(episode) - int(self.lengths[e])
        first, last = self.num_steps, self.num_steps + added
        if last > len(self._act):
            self._reserve(max(last, self._capacity, 3 * len(self._act) // 2))
        self._frames.write(first, episode.obs[known:].numpy(), len(self._act))
        self._act[first:last] = episode.act[known:].numpy()
        self._rew[first:last] = episode.rew[known:].numpy()
        self._end[first:last] = episode.end[known:].numpy()
        self._trunc[first:last] = episode.trunc[known:].numpy()
        final_obs = episode.final_observation
        if final_obs is not None:
            self._final_obs[e] = final_obs.numpy()
            self._has_final[e] = True
        self._rows[e] = np.concatenate([self._rows[e], np.arange(first, last)])
        self._flat_rows = None
        self.lengths[e] = len(episode)
        self.num_steps = last

    @property
    def _index(self) -> NDArray[np.int64]:
        """Rows of all steps, episode after episode."""
        if self._flat_rows is None:
            self._flat_rows = np.concatenate(self._rows)
        return self._flat_rows

    def _reserve(self, capacity: int) -> None:
        self._act, self._rew = grown(self._act, capacity), grown(self._rew, capacity)
        self._end, self._trunc = grown(self._end, capacity), grown(self._trunc, capacity)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape (c, h, w) of a frame."""
        return self._frames.shape

    @property
    def frame_bytes(self) -> int:
        """Memory that the frames take."""
        return self._frames.num_bytes

    def reward_sign_counts(self) -> dict[int, int]:
        """Number of steps with a reward of each sign (-1, 0, 1)."""
        signs = np.sign(self._rew[: self.num_steps])
        return {sign: int((signs == sign).sum()) for sign in (-1, 0, 1)}

    def segments(self, episode: NDArray[np.int64], start: NDArray[np.int64], length: int) -> SegmentBatch:
        """Cut segments `start .. start + length` out of episodes; steps outside an episode are padding."""
        lengths = self.lengths[episode]
        time = start[:, None] + np.arange(length)
        mask = (time >= 0) & (time < lengths[:, None])
        index = self._rows_at(episode, time)
        return SegmentBatch(
            obs=torch.from_numpy(self._frames.take(index)),
            episode=torch.from_numpy(episode),
            start=torch.from_numpy(start),
            act=torch.from_numpy(np.where(_broadcast(mask, self._act.ndim - 1), self._act[index], 0)),
            rew=torch.from_numpy(np.where(mask, self._rew[index], np.float32(0))),
            end=torch.from_numpy(self._end[index] & mask),
            trunc=torch.from_numpy(self._trunc[index] & mask),
            mask_padding=torch.from_numpy(mask),
            final_obs=torch.from_numpy(self._final_obs[episode]),
            has_final=torch.from_numpy(self._has_final[episode] & (start + length >= lengths)),
            corner=torch.zeros(len(episode), 2, dtype=torch.int64),
            is_hard=torch.zeros(len(episode), dtype=torch.bool),
        )

    def _rows_at(self, episode: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the steps of episodes (b,) at times (b, l); the nearest step where there is none."""
        lengths, firsts = self.lengths[episode], (self.lengths.cumsum() - self.lengths)[episode]
        return self._index[firsts[:, None] + time.clip(0, lengths[:, None] - 1)]

    def episode_probabilities(self, sample_weights: list[float] | None) -> NDArray[np.float64]:
        """Probability of drawing each episode.

        Args:
            sample_weights: Weight of each part of the episodes by age, oldest first (equal within a part);
                with None, or fewer episodes than parts, the probability is proportional to length.
        """
        if sample_weights is None or len(self.lengths) < len(sample_weights):
            return self.lengths / self.num_steps
        size = len(self.lengths) // len(sample_weights)
        sizes = [size] * (len(sample_weights) - 1)
        sizes.append(len(self.lengths) - sum(sizes))
        p = np.concatenate([np.full(s, w / s) for w, s in zip(sample_weights, sizes, strict=True)])
        return p / p.sum()

    def draw(
        self,
        rng: np.random.Generator,
        batch_size: int,
        length: int,
        *,
        sample_weights: list[float] | None,
        pad_after: bool,
        num_learned: int | None = None,
        event_fraction: float = 0.0,
        hard: Hard | None = None,
        crop: Crop | None = None,
        share: slice = slice(None),
    ) -> SegmentBatch:
        """Draw segments around uniformly drawn steps of drawn episodes.

        Args:
            rng: Source of all randomness.
            batch_size: Number of segments.
            length: Number of steps of each segment.
            sample_weights: See `episode_probabilities`.
            pad_after: False: a segment ends within its episode, so only its beginning can be padding
                (denoiser, actor-critic). True: it may also run past the end (reward/end).
            num_learned: Number of last steps of a segment that are learned from (the others are context);
                None for all. Events and hard steps lie among them.
            event_fraction: Share of the segments drawn around a step with a reward or an end instead.
            hard: How segments are drawn around hard steps instead; None for none.
            crop: Cuts each segment to a square around what is hard in it, or around motion in its learned
                frames.
            share: Segments to return; all are drawn, so that processes draw the same batch.
        """
        num_learned = length if num_learned is None else num_learned
        episode, start = self._starts(
            rng, batch_size, length, num_learned, sample_weights, pad_after, event_fraction
        )
        place = np.full((batch_size, 2), -1)
        if hard is not None and hard.weights.any():
            episode, start, place = self._hard_starts(rng, hard, episode, start, length, num_learned)
        batch = self.segments(episode[share], start[share], length)
        batch = replace(batch, is_hard=torch.from_numpy(place[share, 0] >= 0))
        if crop is None:
            return batch
        corner = self._corners(rng, crop, episode, start + length - num_learned, num_learned, place)
        return _cropped(batch, corner[share], crop.size)

    def _starts(
        self,
        rng: np.random.Generator,
        batch_size: int,
        length: int,
        num_learned: int,
        sample_weights: list[float] | None,
        pad_after: bool,
        event_fraction: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw episodes and first times of segments, by age and around events; see `draw`."""
        p = self.episode_probabilities(sample_weights)
        episode = rng.choice(len(p), batch_size, p=p)
        time = rng.integers(self.lengths[episode])
        jitter = rng.integers(length, size=batch_size)
        if event_fraction > 0:
            around_event = rng.random(batch_size) < event_fraction
            event_episode, event_time = self._draw_events(rng, batch_size)
            episode = np.where(around_event, event_episode, episode)
            time = np.where(around_event, event_time, time)
            learned = length - 1 - rng.integers(num_learned, size=batch_size)
            jitter = np.where(around_event, learned if pad_after else length - 1 - learned, jitter)
        start = time - jitter if pad_after else np.minimum(self.lengths[episode], time + 1 + jitter) - length
        return episode, start

    def _hard_starts(
        self,
        rng: np.random.Generator,
        hard: Hard,
        episode: NDArray[np.int64],
        start: NDArray[np.int64],
        length: int,
        num_learned: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Redraw a share of the segments around hard steps; return also their places (b, 2), else -1."""
        batch_size = len(episode)
        around_hard = rng.random(batch_size) < hard.fraction
        total = hard.weights.cumsum(dtype=np.float64)
        step = np.searchsorted(total, rng.random(batch_size) * total[-1], side="right")
        hard_episode, hard_time = self._located(step)
        hard_start = hard_time - (length - num_learned) - rng.integers(num_learned, size=batch_size)
        hard_start = np.minimum(hard_start, self.lengths[hard_episode] - length)
        place = np.where(around_hard[:, None], hard.places[step].astype(np.int64), -1)
        return np.where(around_hard, hard_episode, episode), np.where(around_hard, hard_start, start), place

    def _corners(
        self,
        rng: np.random.Generator,
        crop: Crop,
        episode: NDArray[np.int64],
        first: NDArray[np.int64],
        num_steps: int,
        place: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Draw corners of crops around given places or, where these are negative, around motion.

        Args:
            rng: Source of randomness.
            crop: Size and alignment of the crops.
            episode: Episode of each segment.
            first: Time of its first learned step.
            num_steps: Number of learned steps.
            place: Rows and columns (b, 2) of the places.
        """
        rows = self._rows_at(episode, first[:, None] + np.arange(-1, num_steps))
        frames = self._frames.take(rows)
        moves = [is_moving(frames[:, i], frames[:, i + 1]) for i in range(num_steps)]
        place = np.where(place < 0, moving_places(rng, np.logical_or.reduce(moves)), place)
        return crop.corners(rng, place, frames.shape[-2:])

    def _draw_events(
        self, rng: np.random.Generator, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw episodes and times of steps with a reward or an end; of any steps if there are none."""
        rows = self._index
        events = np.flatnonzero((self._rew[rows] != 0) | self._end[rows])
        return self._located(rng.choice(events if len(events) else len(rows), count))

    def _located(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episodes and times of steps, numbered episode after episode."""
        stops = self.lengths.cumsum()
        episode = np.searchsorted(stops, index, side="right")
        return episode, index - (stops - self.lengths)[episode]


def _cropped(batch: SegmentBatch, corner: NDArray[np.int64], size: int) -> SegmentBatch:
    """Segments cut to squares whose upper left pixels are at `corner` (b, 2)."""
    return replace(
        batch,
        obs=torch.from_numpy(cut(batch.obs.numpy(), corner, size)),
        final_obs=torch.from_numpy(cut(batch.final_obs.numpy(), corner, size)),
        corner=torch.from_numpy(corner),
    )


def _broadcast(mask: NDArray[np.bool_], num_dims: int) -> NDArray[np.bool_]:
    """The mask with further dimensions of size 1."""
    return mask.reshape(*mask.shape, *[1] * num_dims)

"""What episodes of others become before they are converted: frames that are read one by one, short arrays.

A source (a folder of recordings or videos, an HDF5 file, a dataset of Minari or LeRobot) lists its episodes
and reads one at a time. The module does not depend on files' formats or on the dataset's layout.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diamond_gym.data.recorder import RecordedEpisode, actions, actions_of, rewards
from diamond_gym.errors import DatasetError
from diamond_gym.world.action_space import ActionSpace

MAX_FRAME = 2**26
"""Largest size of a frame in bytes; the largest are photographs of 20 million pixels."""


MEANING_OF_MISSING = {"rew": "all rewards are 0", "terminated": "no episode terminates"}
"""What it means that a source has none of these, for its notes."""


@dataclass(frozen=True)
class ActionRange:
    """The least and the greatest action, where a source does not say them.

    Attributes:
        low: Least value of each part of an action; empty when unknown.
        high: Greatest value, likewise.
    """

    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


UNKNOWN = ActionRange()


@dataclass
class StreamedEpisode:
    """The t steps of an episode, whose frames are read when they are iterated over, once.

    Attributes:
        frames: uint8 (h, w), (h, w, 1) or (h, w, 3): t of them, or t+1, the last of which is after the end.
        act: Actions (t, *shape), see `learnable`; after construction those that training takes.
        rew: Numbers (t,), raw rewards.
        terminated: Whether the last step ended the episode.
        truncated: Whether the last step cut it short.
        num_actions: Number of actions (n); None when unknown.
        action_range: The least and greatest action.
        space: The action space where it is not discrete; None until it is known.
        left_out: What of the episode was left out, and why; empty for nothing.

    Raises:
        DatasetError: There is no step, an array has another shape or type, or the actions cannot be learned.
    """

    frames: Iterable[NDArray[np.uint8]]
    act: NDArray[Any]
    rew: NDArray[np.float32]
    terminated: bool
    truncated: bool
    num_actions: int | None = None
    action_range: ActionRange = UNKNOWN
    space: ActionSpace | None = None
    left_out: str = ""

    def __post_init__(self) -> None:
        if len(self.act) == 0:
            raise DatasetError("an episode needs at least one step")
        if self.space is None:
            known = learnable(self.act, self.num_actions, self.action_range)
            self.act, self.num_actions, self.space = known
        self.rew = rewards(self.rew)
        if len(self.rew) != len(self.act):
            raise DatasetError(f"there are {len(self.act)} actions and {len(self.rew)} rewards")

    def __len__(self) -> int:
        return len(self.act)

    @property
    def is_finished(self) -> bool:
        """Whether the last step ended or truncated the episode."""
        return self.terminated or self.truncated

    @classmethod
    def until_its_end(
        cls,
        frames: Callable[[int], Iterable[NDArray[np.uint8]]],
        act: NDArray[Any],
        rew: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        action_range: ActionRange,
    ) -> StreamedEpisode:
        """The steps up to the first that ends the episode; those after it are left out.

        Args:
            frames: Function of the number of steps; returns their frames and, if it is known, the next one.
            act: Actions (t, *shape).
            rew: Rewards (t,).
            terminated: Booleans (t,).
            truncated: Booleans (t,).
            action_range: The least and greatest action.
        """
        ends = np.flatnonzero(terminated | truncated)
        num_steps = int(ends[0]) + 1 if len(ends) else len(act)
        over = [bool(x[:num_steps].any()) for x in (terminated, truncated)]
        rest = len(act) - num_steps
        return cls(
            frames=frames(num_steps),
            act=act[:num_steps],
            rew=rew[:num_steps],
            terminated=over[0],
            truncated=over[1],
            action_range=action_range,
            left_out=f"{rest} steps after its end" if rest else "",
        )

    @classmethod
    def of(cls, recorded: RecordedEpisode) -> StreamedEpisode:
        """The steps of an episode that is in memory."""
        ends = bool(recorded.terminated[-1]), bool(recorded.truncated[-1])
        num_actions, space = recorded.num_actions, recorded.action_space
        return cls(recorded.obs, recorded.act, recorded.rew, *ends, num_actions, space=space)


def learnable(
    act: ArrayLike, num_actions: int | None, action_range: ActionRange
) -> tuple[NDArray[Any], int | None, ActionSpace | None]:
    """Return actions as training takes them, the number of discrete ones, and the space of any others.

    This is the one place that decides what the actions of a source are: one integer a step is discrete,
    several integers are multi-discrete, booleans multi-binary, and floats a box.

    Args:
        act: Actions (t, *shape).
        num_actions: Number of discrete actions; None when unknown.
        action_range: The least and greatest action; choices are counted from the least.

    Raises:
        DatasetError: They are of another kind, out of range, or their range is needed and unknown.
    """
    found = np.asarray(act)
    if found.dtype.kind in "iub" and found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]  # one choice in an array of one
    if found.dtype.kind in "iu" and found.ndim == 1:
        low, high = _whole("action_low", action_range.low), _whole("action_high", action_range.high)
        if high is not None:
            num_actions = high - (low or 0) + 1
        return actions(found.astype(np.int64) - (low or 0), num_actions), num_actions, None
    if found.dtype.kind not in "biuf":
        raise DatasetError(f"the actions are {found.dtype}, accepted are integers, booleans and floats")
    found = found.reshape(len(found), -1) if found.ndim == 1 else found
    space, first = _space(found, action_range)
    return actions_of(space, found - first if found.dtype.kind != "b" else found), None, space


def _space(act: NDArray[Any], action_range: ActionRange) -> tuple[ActionSpace, Any]:
    """Return the space of actions that are not discrete, and what to subtract from them."""
    shape = act.shape[1:]
    if act.dtype.kind == "b":
        return ActionSpace("multi_binary", shape, (2,) * math.prod(shape)), 0
    low = action_range.low or ((0.0,) if act.dtype.kind in "iu" else ())
    given = [np.array(x, np.float64) for x in (low, action_range.high)]
    if any(x.size not in (1, math.prod(shape)) for x in given):
        raise DatasetError(
            f"the actions are {act.dtype} of {'x'.join(map(str, shape))} number(s) a step, here from "
            f"{act.min():g} to {act.max():g}: say the least and the greatest of each, action_low= and "
            f"action_high=, each one number or {math.prod(shape)}"
        )
    least, most = (np.broadcast_to(x, math.prod(shape)) if x.size == 1 else x for x in given)
    if act.dtype.kind == "f":
        return ActionSpace("box", shape, (), tuple(least.tolist()), tuple(most.tolist())), np.float32(0)
    choices = tuple(int(n) for n in most - least + 1)
    return ActionSpace("multi_discrete", shape, choices), least.astype(np.int64).reshape(shape)


def _whole(name: str, values: Sequence[float]) -> int | None:
    """Return the only value as an integer; None where there is none.

    Raises:
        DatasetError: There are several, or it is no integer.
    """
    if values and (len(values) > 1 or not float(values[0]).is_integer()):
        given = ",".join(f"{value:g}" for value in values)
        raise DatasetError(f"an action is one integer, so {name} must be one, got {given}")
    return int(values[0]) if values else None


class Source(Protocol):
    """Episodes to import."""

    @property
    def num_actions(self) -> int | None:
        """Number of actions; None when the source does not state it."""
        ...

    @property
    def num_steps(self) -> int | None:
        """Number of steps in all episodes; None when only reading them tells."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Remarks about the source, each a sentence."""
        ...

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """Name an episode, such as its file."""
        ...

    def files(self, number: int) -> Sequence[Path]:
        """Return the files that an episode is read from."""
        ...

    def load(self, number: int) -> StreamedEpisode:
        """Read an episode.

        Raises:
            DatasetError: It is damaged, incomplete or of another form; the message names it.
        """
        ...


# --- what all sources need


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which "demo_2" comes before "demo_10"."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def stamp(path: Path) -> list[int]:
    """Return what changes when a file is changed: its size in bytes and its time in nanoseconds.

    Raises:
        DatasetError: It is gone.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    return [status.st_size, status.st_mtime_ns]


def check_frame(shape: Sequence[int], dtype: Any) -> None:
    """Check that a frame is uint8 (h, w), (h, w, 1) or (h, w, 3) of bounded size.

    Raises:
        ValueError: It is not.
    """
    if dtype != np.uint8:
        raise ValueError(f"frames must be uint8, 0..255, got {dtype}: scale and convert them")
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    if not is_image or 0 in shape:
        raise ValueError(f"a frame must be (h, w), (h, w, 1) or (h, w, 3), got {tuple(shape)}")
    size = int(np.prod([int(n) for n in shape], dtype=object))
    if size > MAX_FRAME:
        raise ValueError(f"a frame has {size / 1e6:.0f} MB, accepted are {MAX_FRAME / 1e6:.0f}")

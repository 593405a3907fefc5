"""The action space of a world: what an action is, how it is checked, drawn, and written down.

It is Gymnasium's `Discrete`, `MultiDiscrete`, `MultiBinary` or bounded `Box`, with choices from 0 on. An
action is an int64 scalar, an int64 array or a float32 array. The module does not depend on networks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Shaped
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym.errors import InvalidInputError

KINDS = ("discrete", "multi_discrete", "multi_binary", "box")
MAX_CHOICES = 2**14
MAX_PARTS = 256
_FORM = re.compile(r"(\w+)(?:\[(\d+(?:x\d+)*)\])?\((.*)\)")
_EXAMPLES = "discrete(4), multi_discrete(3, 2), multi_binary(4), box(-1.0..1.0, 0.0..1.0)"
_OTHERS = (
    "wrap the environment in gymnasium.wrappers.TransformAction, which takes actions of one of these spaces "
    "and turns each into one of yours"
)


@dataclass(frozen=True)
class ActionSpace:
    """A space of actions with k parts.

    Attributes:
        kind: One of `KINDS`.
        shape: Shape of an action, () for "discrete".
        choices: Number of choices of each part, in C order; empty for "box".
        low: Least value of each part; empty unless "box".
        high: Greatest value of each part, above the least.

    Raises:
        InvalidInputError: It cannot be learned: no part or too many, or a part without finite bounds.
    """

    kind: str
    shape: tuple[int, ...] = ()
    choices: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        size = math.prod(self.shape)
        if self.kind not in KINDS or not 1 <= size <= MAX_PARTS or (not self.shape) != self.is_discrete:
            raise InvalidInputError(
                f"an action space is one of {', '.join(KINDS)}, with 1 to {MAX_PARTS} parts in an array "
                f"unless it is discrete, got {self.kind} of shape {self.shape}"
            )
        if self.is_continuous:
            _check_bounds(self.low, self.high, size)
        elif len(self.choices) != size or not all(1 <= n <= MAX_CHOICES for n in self.choices):
            raise InvalidInputError(
                f"each of {size} discrete part(s) needs 1 to {MAX_CHOICES} choices, got {list(self.choices)}"
            )

    @classmethod
    def discrete(cls, num_actions: int) -> ActionSpace:
        """The space of one choice among `num_actions`."""
        return cls("discrete", (), (int(num_actions),))

    @classmethod
    def of(cls, space: spaces.Space[Any]) -> ActionSpace:
        """The space of an environment; choices that start elsewhere are counted from 0 (see `first`).

        Raises:
            InvalidInputError: It cannot be learned; the message says how to change it.
        """
        if isinstance(space, spaces.Discrete):
            return cls.discrete(int(space.n))
        if isinstance(space, spaces.MultiDiscrete):
            return cls("multi_discrete", space.nvec.shape, tuple(space.nvec.ravel().tolist()))
        if isinstance(space, spaces.MultiBinary):
            shape = tuple(space.shape)
            return cls("multi_binary", shape, (2,) * math.prod(shape))
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            return _of_box(space)
        hint = "use MultiDiscrete for a Box of integers: " if isinstance(space, spaces.Box) else ""
        raise InvalidInputError(
            f"actions must be Discrete, MultiDiscrete, MultiBinary or a Box of floats, the environment takes "
            f"{' '.join(str(space).split())}: {hint}{_OTHERS}"
        )

    @classmethod
    def parse(cls, text: str) -> ActionSpace:
        """Read what `str()` wrote, such as "box(-1.0..1.0, 0.0..1.0)".

        Raises:
            InvalidInputError: It has another form, or cannot be learned.
        """
        match = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
        try:
            if match is None or match[1] not in KINDS:
                raise ValueError("it has another form")
            return cls._parsed(match[1], match[2], [x.strip() for x in match[3].split(",")])
        except ValueError as error:
            raise InvalidInputError(
                f"{text!r} is not an action space ({error}): accepted are {_EXAMPLES}"
            ) from error

    @classmethod
    def _parsed(cls, kind: str, sizes: str | None, parts: list[str]) -> ActionSpace:
        shape = None if sizes is None else tuple(int(n) for n in sizes.split("x"))
        if kind == "box":
            pairs = [part.partition("..")[::2] for part in parts]
            low, high = (tuple(float(pair[i]) for pair in pairs) for i in (0, 1))
            return cls(kind, shape or (len(parts),), (), low, high)
        choices = tuple(int(part) for part in parts)
        if kind == "multi_binary":
            shape = shape or choices
            return cls(kind, shape, (2,) * math.prod(shape))
        return cls(kind, () if kind == "discrete" else shape or (len(parts),), choices)

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        if self.kind == "multi_binary" and len(self.shape) == 1:
            return f"multi_binary({sizes})"
        brackets = f"[{sizes}]" if len(self.shape) > 1 else ""
        parts = [f"{low!r}..{high!r}" for low, high in zip(self.low, self.high, strict=True)]
        return f"{self.kind}{brackets}({', '.join(parts or map(str, self.choices))})"

    @property
    def is_discrete(self) -> bool:
        """Whether an action is one choice."""
        return self.kind == "discrete"

    @property
    def is_continuous(self) -> bool:
        """Whether an action is an array of numbers."""
        return self.kind == "box"

    @property
    def size(self) -> int:
        """Number of parts (k)."""
        return math.prod(self.shape)

    @property
    def num_actions(self) -> int | None:
        """Number of actions of a discrete space; None for any other."""
        return self.choices[0] if self.is_discrete else None

    @property
    def dtype(self) -> type[np.int64] | type[np.float32]:
        """NumPy's type of an action."""
        return np.float32 if self.is_continuous else np.int64

    @property
    def torch_dtype(self) -> torch.dtype:
        """PyTorch's type of an action."""
        return torch.float32 if self.is_continuous else torch.int64

    @property
    def bounds(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Least and greatest value of each part, arrays of the shape of an action."""
        if self.is_continuous:
            low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        else:
            low, high = np.zeros(self.size, np.int64), np.array(self.choices, np.int64) - 1
        return low.reshape(self.shape), high.reshape(self.shape)

    @property
    def idle(self) -> NDArray[Any]:
        """The action 0, or what is nearest to it: it stands where an action is not known."""
        return np.asarray(np.zeros(self.shape, self.dtype).clip(*self.bounds))

    def to_gymnasium(self, seed: int | None = None) -> spaces.Space[Any]:
        """The space as Gymnasium has it."""
        if self.is_continuous:
            return spaces.Box(*self.bounds, dtype=np.float32, seed=seed)
        if self.is_discrete:
            return spaces.Discrete(self.choices[0], seed=seed)
        if self.kind == "multi_binary":
            return spaces.MultiBinary(self.shape if len(self.shape) > 1 else self.size, seed=seed)
        return spaces.MultiDiscrete(np.array(self.choices).reshape(self.shape), seed=seed)

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw an action uniformly: an int where the space is discrete, else an array."""
        low, high = self.bounds
        if self.is_discrete:
            return int(rng.integers(self.choices[0]))
        if self.is_continuous:
            return rng.uniform(low, high).astype(np.float32).clip(low, high)
        return rng.integers(high + 1)

    def accepted(self) -> str:
        """Say which actions there are, for error messages."""
        if self.is_discrete:
            return f"integers in 0..{self.choices[0] - 1}"
        if self.is_continuous:
            return f"finite numbers of shape {self.shape} from {list(self.low)} to {list(self.high)}"
        return f"integers of shape {self.shape} from 0 to {[n - 1 for n in self.choices]}"

    def has_dtype(self, act: NDArray[Any] | Tensor) -> bool:
        """Whether the numbers are of a kind that can be actions: integers, or floats where continuous."""
        name = str(act.dtype).removeprefix("torch.")
        accepted = ("int", "uint") + (("float", "bfloat") if self.is_continuous else ())
        return name.startswith(accepted) or (name == "bool" and self.kind == "multi_binary")

    def convert(self, act: NDArray[Any]) -> NDArray[Any] | None:
        """Turn actions (..., *shape) of any fitting type into `dtype`; None where one is not in the space."""
        fits = self.has_dtype(act) and act.shape[act.ndim - len(self.shape) :] == self.shape
        if not fits or act.ndim < len(self.shape):
            return None
        converted = act.astype(self.dtype)
        return converted if bool(self.contains(torch.from_numpy(converted)).all()) else None

    def contains(self, act: Shaped[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Whether each of the actions (..., *shape) is in bounds, on their device."""
        if self.is_discrete:
            return (act >= 0) & (act < self.choices[0])
        low, high = (torch.as_tensor(x, device=act.device) for x in self.bounds)
        return ((act >= low) & (act <= high)).flatten(act.ndim - len(self.shape)).all(dim=-1)

    def first(self, space: spaces.Space[Any]) -> NDArray[np.int64] | int:
        """What to subtract from an environment's actions: its first choices."""
        start = getattr(space, "start", 0)
        return int(start) if self.is_discrete else np.asarray(start)


def _of_box(space: spaces.Box) -> ActionSpace:
    low, high = (x.astype(np.float32).ravel().tolist() for x in (space.low, space.high))
    if not np.isfinite([low, high]).all():
        raise InvalidInputError(
            f"actions must have bounds, the environment takes {' '.join(str(space).split())}: choose some, "
            "gymnasium.wrappers.TransformAction(env, lambda act: act, gymnasium.spaces.Box(-1, 1, "
            f"{space.shape}))"
        )
    return ActionSpace("box", tuple(space.shape), (), tuple(low), tuple(high))


def _check_bounds(low: tuple[float, ...], high: tuple[float, ...], size: int) -> None:
    if not len(low) == len(high) == size or not all(
        math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(low, high, strict=True)
    ):
        raise InvalidInputError(
            f"each of {size} continuous part(s) needs finite bounds, low below high, got {list(low)} and "
            f"{list(high)}"
        )

"""What environments and measurements use of a world model, DIAMOND's or a custom one's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from diamond_gym.world.action_space import ActionSpace


class StateLike(Protocol):
    """The state of b games, plain data: see `WorldModelState` and `CustomState`."""

    @property
    def obs(self) -> UInt8[Tensor, "b n c h w"]:
        """The last n frames, oldest first."""
        ...

    @property
    def act(self) -> Shaped[Tensor, "b n *a"]:
        """The last n actions."""
        ...

    @property
    def key(self) -> Int64[Tensor, " b"]:
        """Key of each game's random numbers."""
        ...

    @property
    def time(self) -> Int64[Tensor, " b"]:
        """Steps imagined since `start`."""
        ...

    def __len__(self) -> int: ...

    def clone(self) -> Any:
        """Return a copy that shares no memory."""
        ...

    def select(self, index: Int64[Tensor, " k"]) -> Any:
        """Select the state of some of the games."""
        ...

    def replace(self, index: Int64[Tensor, " k"], other: Any) -> Any:
        """Return this state with the games at `index` replaced by those of `other`."""
        ...


class StepLike(Protocol):
    """The result of one step: see `WorldModelStep` and `CustomStep`."""

    @property
    def obs(self) -> UInt8[Tensor, "b c h w"]:
        """The next frame."""
        ...

    @property
    def rew(self) -> Float[Tensor, " b"]:
        """Reward."""
        ...

    @property
    def end(self) -> Bool[Tensor, " b"]:
        """Whether the episode ended."""
        ...

    @property
    def trajectory(self) -> Sequence[Tensor]:
        """The frame at every noise level; empty where frames are not denoised."""
        ...


class WorldModelLike(Protocol):
    """A world model: see `WorldModel` and `AdaptedWorldModel`."""

    @property
    def device(self) -> torch.device:
        """The device of the states."""
        ...

    @property
    def num_steps_conditioning(self) -> int:
        """Number of frames and actions of a context (n)."""
        ...

    @property
    def action_space(self) -> ActionSpace:
        """The actions."""
        ...

    def start(
        self, obs: UInt8[Tensor, "b n c h w"], act: Shaped[Tensor, "b n *a"], key: Int64[Tensor, " b"]
    ) -> Any:
        """Start b games from contexts."""
        ...

    def step(self, state: Any, act: Shaped[Tensor, "b *a"]) -> tuple[Any, StepLike]:
        """Take one action in each game; the given state is not modified."""
        ...

    def adopt(self, state: Any, num_games: int) -> Any:
        """Check the part of a cloned state that only this kind of model has; move it to this device."""
        ...

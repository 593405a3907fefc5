"""World models of any make, behind the interface of `WorldModel`.

A `CustomWorldModel` has two spaces, `start(contexts, keys)` and `step(state, actions)`, on batches of games.
What its state holds is its own matter: tensors whose first axis counts the games, in tuples, dicts or
dataclasses. `AdaptedWorldModel` gives it what environments expect: states that can be cloned, selected,
replaced and checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from diamond_gym.errors import InvalidInputError, WorldModelError
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.world_model import moved_on, with_action

MAX_SIZE = 4096
"""Largest height and width of frames."""


class CustomWorldModel(Protocol):
    """A world model that is not DIAMOND's.

    Attributes:
        observation_space: `Box(0, 255, (h, w, c), uint8)`, grey (c = 1) or RGB (c = 3).
        action_space: `Discrete`, `MultiDiscrete`, `MultiBinary`, or a `Box` of floats with finite bounds.
        num_steps_conditioning: Number of frames and actions of a context (n), at least 1.

    Optional attributes:
        contexts: Where games start: arrays {"obs": uint8 (k, n, h, w, c), "act": (k, n, *shape of an action)}
            or a `ContextBank`; without it `contexts=` names a file of contexts or recorded episodes.
        action_meanings: A name for each action of a discrete space, or for each part of another one.
    """

    observation_space: Box
    action_space: Space[Any]
    num_steps_conditioning: int

    def start(self, contexts: Mapping[str, Tensor], keys: Int64[Tensor, " b"]) -> Any:
        """Start b games.

        Args:
            contexts: {"obs": uint8 (b, n, h, w, c), "act": (b, n, *shape of an action)}, on the model's
                device; the oldest frame comes first; the last action is not to be used: `step` gives it.
            keys: A number >= 0 for each game, from which alone its random numbers may come, as those of
                `diamond_gym.world.noise` do; equal keys and actions give equal games.

        Returns:
            The state: tensors with first axis b, in any nesting of tuples, lists, dicts and dataclasses.
        """
        ...

    def step(
        self, state: Any, actions: Shaped[Tensor, "b *a"]
    ) -> tuple[Any, UInt8[Tensor, "b h w c"], Float[Tensor, " b"], Bool[Tensor, " b"]]:
        """Take one action in each game; `state` must not be modified.

        Args:
            state: What `start` or `step` returned, with its games selected or mixed with those of others.
            actions: int64, or float32 where the space is continuous.

        Returns:
            The next state; the frames, uint8; the rewards, floats; whether each game has ended, booleans.
        """
        ...


@dataclass(frozen=True)
class CustomState:
    """The state of b games of a custom world model, with what every environment needs of it.

    Attributes:
        obs: The last n frames, oldest first.
        act: The last n actions.
        key: Key of each game's random numbers, >= 0.
        time: Steps imagined since `start`.
        inner: The model's own state.
    """

    obs: UInt8[Tensor, "b n c h w"]
    act: Shaped[Tensor, "b n *a"]
    key: Int64[Tensor, " b"]
    time: Int64[Tensor, " b"]
    inner: Any

    def __len__(self) -> int:
        return self.key.shape[0]

    def clone(self) -> CustomState:
        """Return a copy that shares no memory."""
        return map_tensors(torch.clone, self)

    def select(self, index: Int64[Tensor, " k"]) -> CustomState:
        """Select the state of some of the games; a repeated index forks a game."""
        return map_tensors(lambda x: x[index], self)

    def replace(self, index: Int64[Tensor, " k"], other: CustomState) -> CustomState:
        """Return this state with the games at `index` replaced by those of `other`."""
        return map_tensors(lambda x, y: x.index_copy(0, index, y), self, other)


@dataclass(frozen=True)
class CustomStep:
    """The result of one step: as `WorldModelStep`, without what only DIAMOND has.

    Attributes:
        obs: The next frame.
        rew: Reward.
        end: Whether the episode ended.
        trajectory: Always empty: no frame is denoised.
    """

    obs: UInt8[Tensor, "b c h w"]
    rew: Float[Tensor, " b"]
    end: Bool[Tensor, " b"]
    trajectory: tuple[Tensor, ...] = ()


def map_tensors(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """Apply a function to the corresponding tensors of trees of the same form.

    Args:
        function: Takes one tensor of each tree.
        tree: Tensors and None in any nesting of tuples, lists, dicts and dataclasses.
        *others: Trees of the same form.

    Raises:
        WorldModelError: A tree holds anything else, or their forms differ.
    """
    if any(type(other) is not type(tree) for other in others):
        kinds = ", ".join(type(x).__name__ for x in (tree, *others))
        raise WorldModelError(f"the states of a world model must have one form, got {kinds} in one place")
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if tree is None:
        return None
    if isinstance(tree, dict):
        _check_same([sorted(map(str, x)) for x in (tree, *others)])
        return {name: map_tensors(function, *(x[name] for x in (tree, *others))) for name in tree}
    if isinstance(tree, tuple | list):
        _check_same([len(x) for x in (tree, *others)])
        parts = [map_tensors(function, *row) for row in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in fields(tree)]
        parts = {n: map_tensors(function, *(getattr(x, n) for x in (tree, *others))) for n in names}
        return replace(tree, **parts)
    raise WorldModelError(
        "the state of a world model holds tensors and None, in tuples, lists, dicts and dataclasses, got "
        f"{type(tree).__name__}"
    )


def _check_same(sizes: list[Any]) -> None:
    if any(size != sizes[0] for size in sizes):
        raise WorldModelError(f"the states of a world model must have one form, got {sizes}")


class AdaptedWorldModel:
    """A custom world model with the methods of `WorldModel` that environments use.

    Args:
        model: The model, on its device.
        device: The device of its tensors.

    Raises:
        WorldModelError: A space is missing or cannot be used.
    """

    def __init__(self, model: CustomWorldModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.frame_shape = _frame_shape(model)
        self.action_space = _action_space(model)
        n = getattr(model, "num_steps_conditioning", None)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise WorldModelError(f"num_steps_conditioning must be an int >= 1, got {n!r}")
        self.num_steps_conditioning = n
        self._example: Any = None
        """The model's own state of one game, once there was one: the form of all its states."""

    @torch.no_grad()
    def start(
        self, obs: UInt8[Tensor, "b n c h w"], act: Shaped[Tensor, "b n *a"], key: Int64[Tensor, " b"]
    ) -> CustomState:
        """Start b games, see `WorldModel.start`.

        Raises:
            WorldModelError: The model's state is not made of tensors with first axis b.
        """
        obs, act, key = (x.to(self.device) for x in (obs, act, key))
        contexts = {"obs": obs.permute(0, 1, 3, 4, 2).contiguous(), "act": act}
        inner = self.model.start(contexts, key)
        return self._checked(CustomState(obs, act, key, torch.zeros_like(key), inner))

    @torch.no_grad()
    def step(self, state: CustomState, act: Shaped[Tensor, "b *a"]) -> tuple[CustomState, CustomStep]:
        """Take one action in each game, see `WorldModel.step`.

        Raises:
            WorldModelError: The model returned other shapes, types or devices than `CustomWorldModel` says.
        """
        inner, frames, rew, end = self._unpacked(self.model.step(state.inner, act))
        b = len(state)
        _check_result("frames", frames, torch.uint8, (b, *self.frame_shape), self.device)
        _check_result("rewards", rew, None, (b,), self.device)
        _check_result("ends", end, torch.bool, (b,), self.device)
        frame = frames.permute(0, 3, 1, 2).contiguous()
        after = CustomState(
            *moved_on(state.obs, with_action(state.act, act), frame),
            key=state.key,
            time=state.time + 1,
            inner=inner,
        )
        return self._checked(after), CustomStep(frame, rew.float(), end)

    def adopt(self, state: Any, num_games: int) -> CustomState:
        """Check a cloned state's own part and move it to this model's device.

        Raises:
            InvalidInputError: It is not a state of this model and number of games.
        """
        if not isinstance(state, CustomState):
            raise InvalidInputError(f"the state is of another world model: it is a {type(state).__name__}")
        if self._example is None:
            self.start(state.obs[:1], state.act[:1], torch.zeros(1, dtype=torch.int64))

        def move(x: Tensor, like: Tensor) -> Tensor:
            shape = (num_games, *like.shape[1:])
            if tuple(x.shape) != shape or x.dtype != like.dtype:
                raise InvalidInputError(
                    f"the state is of another world model: this one's holds {like.dtype} {shape}, the state "
                    f"{x.dtype} {tuple(x.shape)}"
                )
            return x.to(like.device)

        moved = map_tensors(lambda x: x.to(self.device), replace(state, inner=None))
        return replace(moved, inner=map_tensors(move, state.inner, self._example))

    def _unpacked(self, result: Any) -> tuple[Any, Any, Any, Any]:
        if not isinstance(result, tuple) or len(result) != 4:
            got = f"{len(result)} of them" if isinstance(result, tuple) else type(result).__name__
            raise WorldModelError(f"step() must return (state, frames, rewards, ends), got {got}")
        return result

    def _checked(self, state: CustomState) -> CustomState:
        """Check that every tensor of the model's state is on its device and has one row for each game."""

        def check(x: Tensor) -> Tensor:
            if x.ndim == 0 or len(x) != len(state) or x.device != state.key.device:
                raise WorldModelError(
                    f"every tensor of the state needs first axis {len(state)}, on {state.key.device}, got "
                    f"{tuple(x.shape)} on {x.device}"
                )
            return x

        map_tensors(check, state.inner)
        if self._example is None and len(state):
            self._example = map_tensors(lambda x: x[:1].clone(), state.inner)
        return state


def _frame_shape(model: CustomWorldModel) -> tuple[int, ...]:
    space = getattr(model, "observation_space", None)
    if (
        not isinstance(space, Box)
        or space.dtype != np.uint8
        or len(space.shape) != 3
        or space.shape[2] not in (1, 3)
        or not all(1 <= size <= MAX_SIZE for size in space.shape)
    ):
        raise WorldModelError(
            "observation_space must be Box(0, 255, (h, w, c), uint8), with h and w at most "
            f"{MAX_SIZE} and c 1 or 3, got {space}"
        )
    return space.shape


def _action_space(model: CustomWorldModel) -> ActionSpace:
    space = getattr(model, "action_space", None)
    if not isinstance(space, Space):
        raise WorldModelError(f"action_space must be a space of gymnasium, got {space!r}")
    try:
        return ActionSpace.of(space)
    except InvalidInputError as error:
        raise WorldModelError(f"action_space: {error}") from error


def _check_result(
    name: str, x: Any, dtype: torch.dtype | None, shape: tuple[int, ...], device: torch.device
) -> None:
    """Raise `WorldModelError` unless a result is a tensor of a type (or of floats), shape and device."""
    wanted = f"{dtype or 'floats'} of shape {shape} on {device}"
    if not isinstance(x, Tensor):
        raise WorldModelError(f"step() must return {name} as {wanted}, got {type(x).__name__}")
    is_of_type = x.dtype == dtype if dtype else x.is_floating_point()
    if not is_of_type or tuple(x.shape) != shape or x.device != device:
        raise WorldModelError(
            f"step() must return {name} as {wanted}, got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
        )

"""Checks of the tensors of a state that a caller hands back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diamond_gym.errors import InvalidInputError


def check_tensor(name: str, x: Any, dtype: torch.dtype | None, shape: tuple[int, ...]) -> None:
    """Check that a field of a state is a dense tensor of a type, or of finite floats where that is None.

    Raises:
        InvalidInputError: It is not.
    """
    is_dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
    if not is_dense or tuple(x.shape) != shape or (x.dtype != dtype if dtype else not x.is_floating_point()):
        got = f"{x.dtype} {tuple(x.shape)}, {x.layout}, on {x.device}" if isinstance(x, Tensor) else repr(x)
        raise InvalidInputError(f"the state's {name} must be {dtype or 'floats'} of shape {shape}, got {got}")
    if dtype is None and not bool(x.isfinite().all()):
        raise InvalidInputError(f"the state's {name} holds numbers that are not finite")


def check_range(name: str, x: Tensor, limit: int) -> None:
    """Check that the integers of a field of a state are in 0..limit-1.

    Raises:
        InvalidInputError: One is not.
    """
    if not bool(((x >= 0) & (x <= limit - 1)).all()):
        raise InvalidInputError(f"the state's {name} must be in 0..{limit - 1}, got {x.tolist()}")

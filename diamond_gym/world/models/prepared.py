"""What layers compute from their weights alone, kept for inference until the weights change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


class Prepared:
    """A value that a layer computed from its weights; copies and pickles of it begin empty."""

    def __init__(self) -> None:
        self._kept: tuple[list[Any], Any] = [], None

    def get(self, weights: Sequence[Tensor], compute: Callable[[], _T]) -> _T:
        """Return what `compute` gives for these weights; it is only called again after one has changed."""
        if any(weight.is_inference() for weight in weights):
            return compute()  # the changes of these are not counted
        made_of = [(weight.data_ptr(), weight._version) for weight in weights]
        if self._kept[0] != made_of:
            self._kept = made_of, compute()  # in one assignment, since threads may share a network
        return self._kept[1]

    def __reduce__(self) -> tuple[type[Prepared], tuple[()]]:
        return Prepared, ()


def applies() -> bool:
    """Whether layers may use what was prepared: in inference, without autocast, a compiler or tracing."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
    )

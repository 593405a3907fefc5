"""Losses and their gradients as CUDA graphs: what they launch is recorded once and launched again as a whole.

A training step of a small network launches some thousand kernels, which takes longer than they run. Weights
are read, and gradients written, where they are; autograd sees a graph as one operation. Knows nothing of what
is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

Loss = Callable[..., tuple[Tensor, ...]]
"""Tensors on one device in, tensors out, the loss first; without random numbers and without waiting."""
Run = Callable[..., tuple[Tensor, ...]]
"""Computes a loss, given the network it trains, the function and its inputs."""


def plainly(network: nn.Module, loss: Loss, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Computes a loss as it is, operation by operation."""
    return loss(*inputs)


class _WithParameters(nn.Module):
    """A function as a module with the network's parameters: gradients are recorded for those alone."""

    def __init__(self, network: nn.Module, function: Loss) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


class _Setting(NamedTuple):
    """What a recording depends on besides the shapes of its inputs."""

    places: tuple[int, ...]
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, network: nn.Module) -> _Setting:
        places = tuple(p.data_ptr() for p in network.parameters())
        return cls(places, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))


class GraphedLoss:
    """Computes losses of one network by one function as CUDA graphs, one for each shape of the inputs.

    The first computation of each shape is slow, because it is recorded; so is the first one after the weights
    have moved to other memory. Autocast is honoured.
    """

    def __init__(self) -> None:
        self._setting: _Setting | None = None
        self._graphs: dict[Hashable, Loss] = {}

    def __call__(self, network: nn.Module, loss: Loss, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function returns for these inputs, in fresh memory; gradients flow to the network only.

        They are written to the same memory every time: a second backward pass would spoil what is kept of the
        first.
        """
        if not torch.is_grad_enabled():
            return loss(*inputs)
        setting = _Setting.of(network)
        if setting != self._setting:
            self._setting, self._graphs = setting, {}
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = _record(network, loss, inputs, setting)
        value, *others = self._graphs[shapes](*inputs)
        return value.clone(), *(x.detach().clone() for x in others)


def _record(network: nn.Module, loss: Loss, inputs: tuple[Tensor, ...], setting: _Setting) -> Loss:
    static = tuple(x.clone(memory_format=torch.contiguous_format) for x in inputs)
    # weights must be cast anew each time
    with torch.autocast("cuda", dtype=setting.dtype, enabled=setting.autocast, cache_enabled=False):
        module = _WithParameters(network, loss)
        return cast(Loss, torch.cuda.make_graphed_callables(module, static, allow_unused_input=True))

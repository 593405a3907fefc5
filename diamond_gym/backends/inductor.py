"""A network's forward pass compiled by TorchInductor, PyTorch's compiler."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import torch
from torch import nn

from diamond_gym.backends.waiting import log_if_slow
from diamond_gym.errors import MissingDependencyError


class InductorForward:
    """A compiled network, which logs how long the compilation took.

    PyTorch compiles for the first batch size, then once more for any other; size 1 always separately.
    """

    def __init__(self, network: nn.Module) -> None:
        self.name = type(network).__name__
        self.forward = torch.compile(network.forward)
        self.batch_sizes: set[int] = set()

    def __call__(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        """The network's output for a batch x."""
        if len(x) in self.batch_sizes:
            return self.forward(x, *args)
        self.batch_sizes.add(len(x))
        with log_if_slow(f"compiled {self.name} for batches of {len(x)}"):
            return self.forward(x, *args)


def require_inductor(device: torch.device) -> None:
    """Make sure that the compiler can work for a device.

    Raises:
        MissingDependencyError: It generates C++ for the CPU, and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise MissingDependencyError(
            f'backend="inductor" needs a C++ compiler on the CPU, and {compiler} is not installed: install '
            'it, name another by the environment variable CXX, or choose another backend, "auto" or "eager"'
        )

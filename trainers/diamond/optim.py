"""AdamW as DIAMOND uses it, Muon instead where asked for, and the moving average of weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diamond_gym.backends.cuda_graphs import Graphs
from trainers.diamond.config import OptimizerConfig

# --- muon
# Muon (Jordan et al. 2024): every matrix of momenta is made orthogonal before it becomes an update.
#
# Gradients of weight matrices lie mostly in a few directions; here an update is equally large in all of them.
# A small denoiser needs about half of AdamW's steps (docs/experiments.md).


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration of Jordan et al., which takes singular values in (0, 1] to about 1
in five steps."""
_NUM_ITERATIONS = 5
_RMS = 0.2
"""Root mean square of AdamW's updates, in learning rates (Liu et al. 2025, section 2.2)."""
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Muon in the parameter groups with `muon=True`, AdamW in the others.

    Muon's parameters have 2 dimensions or more; a kernel (out, in, h, w) is the matrix (out, in * h * w).
    Updates are scaled to the size of AdamW's, so that
    learning rates and weight decay mean the same in both kinds of group.
    """

    _graphs: Graphs | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have gradients, and drop the gradients of those in Muon's groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._step(group)
        super().step()  # updates the parameters that still have a gradient
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        updates = self._orthogonalized(*map(_as_matrix, self._momenta(parameters)))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for p, update in zip(parameters, updates, strict=True):
            p.add_(_as_shaped(update, p), alpha=-group["lr"] * _RMS * max(update.shape) ** 0.5)
            p.grad = None

    def _orthogonalized(self, *matrices: Tensor) -> tuple[Tensor, ...]:
        """Orthogonalise; on CUDA as a graph, because launching many small products takes longest."""
        if not matrices[0].is_cuda:
            return orthogonalized(*matrices)
        if self._graphs is None:
            self._graphs = Graphs(matrices[0].device)
        return self._graphs.run(orthogonalized, *matrices)

    def _momenta(self, parameters: list[Tensor]) -> tuple[Tensor, ...]:
        """Nesterov momenta: one step ahead of the averages of the gradients."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if not self.state[p]:  # AdamW expects a step
                self.state[p] |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(p)}
        averages = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_add_([self.state[p]["step"] for p in parameters], 1)
        torch._foreach_lerp_(averages, gradients, 1 - MOMENTUM)
        return torch._foreach_lerp(gradients, averages, MOMENTUM)


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _as_matrix(x: Tensor) -> Float[Tensor, "rows columns"]:
    """View a kernel as a matrix without a copy; its columns are in the order of memory."""
    return (x.permute(0, 2, 3, 1) if _is_channels_last(x) else x).flatten(1)


def _as_shaped(matrix: Float[Tensor, "rows columns"], like: Tensor) -> Tensor:
    """The inverse of `_as_matrix`."""
    if not _is_channels_last(like):
        return matrix.view(like.shape)
    rows, channels, height, width = like.shape
    return matrix.view(rows, height, width, channels).permute(0, 3, 1, 2)


def orthogonalized(*matrices: Float[Tensor, "_ _"]) -> tuple[Float[Tensor, "_ _"], ...]:
    """Approximately the nearest matrices with orthonormal rows (or columns, where there are fewer columns).

    Their singular values lie between 0.7 and 1.2; those of zero matrices stay 0.

    Every iteration multiplies a matrix X by a polynomial of X X^T, so the products of the polynomials are
    computed from X X^T alone, which is small, and multiply X once: 0.4 of the arithmetic.
    """
    wide = [x if x.shape[0] <= x.shape[1] else x.mT for x in matrices]
    by_size: dict[int, list[int]] = defaultdict(list)
    for i, x in enumerate(wide):
        by_size[len(x)].append(i)
    results = list(matrices)
    for places in by_size.values():
        grams = torch.stack([wide[i] @ wide[i].mT for i in places])
        norms = grams.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=1e-7)[:, None, None]
        factors = _iterated(grams / norms.square()) / norms
        for i, factor in zip(places, factors, strict=True):
            y = factor @ wide[i]
            results[i] = y if wide[i] is matrices[i] else y.mT
    return tuple(results)


def _iterated(grams: Float[Tensor, "n a a"]) -> Float[Tensor, "n a a"]:
    """The factor by which the iterations multiply matrices X of norm 1, given X X^T."""
    a, b, c = _COEFFICIENTS
    product = torch.eye(grams.shape[1], dtype=grams.dtype, device=grams.device).expand_as(grams)
    for _ in range(_NUM_ITERATIONS):
        step = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        product = step @ product
        grams = step @ grams @ step
    return product


# --- optimizer
# AdamW as DIAMOND uses it, Muon instead where asked for, and the moving average of weights.


_DECAYED = (nn.Linear, nn.Conv2d, nn.LSTM, nn.LSTMCell)


def weight_decay_groups(module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the parameters with and without weight decay: biases, norms and embeddings have none."""
    decay = {
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules()
        if isinstance(owner, _DECAYED)
        for name, _ in owner.named_parameters(recurse=False)
        if "weight" in name
    }
    names = [name for name, _ in module.named_parameters()]
    return sorted(decay), sorted(set(names) - decay)


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Make an optimiser of the two groups of `weight_decay_groups`: AdamW, or Muon for the first one."""
    decay, no_decay = weight_decay_groups(module)
    parameters = dict(module.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in decay], "weight_decay": config.weight_decay},
        {"params": [parameters[name] for name in no_decay], "weight_decay": 0.0},
    ]
    if config.name == "muon":
        for group, is_muon in zip(groups, (True, False), strict=True):
            group["muon"] = is_muon
        on_cpu = next(module.parameters()).device.type == "cpu"
        return Muon(groups, lr=config.lr, eps=config.eps, foreach=not on_cpu, fused=on_cpu)
    on_gpu = next(
        module.parameters()
    ).is_cuda  # one kernel updates all parameters, and nothing waits for the GPU
    return torch.optim.AdamW(groups, lr=config.lr, eps=config.eps, foreach=not on_gpu, fused=on_gpu)


@dataclass
class ExponentialMovingAverage:
    """Moving average of a module's parameters; the decay is at most (1 + k) / (10 + k) at update k."""

    decay: float
    num_updates: int
    values: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, decay: float) -> ExponentialMovingAverage:
        """Start an average at the module's current weights."""
        return cls(decay, 0, {name: p.detach().clone() for name, p in module.named_parameters()})

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average with the module's current weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.values.values()), [parameters[name].data for name in self.values], 1 - decay
        )

    def state_dict(self) -> dict[str, object]:
        """The state for `load_state_dict`."""
        return {"num_updates": self.num_updates, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        """Restore a saved average."""
        self.num_updates = state["num_updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)

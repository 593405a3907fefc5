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
# Muon (Jordan et al. 2024): momentum whose every matrix is made orthogonal before it is taken as a step.
#
# Gradients of weight matrices lie mostly in a few directions; all of them move equally far here. A small
# denoiser needs about half of AdamW's steps (docs/experiments.md).


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration of Jordan et al.: it takes singular values in (0, 1] to about 1 in five steps."""
_NUM_ITERATIONS = 5
_RMS = 0.2
"""AdamW's steps have about this root mean square, in learning rates (Liu et al. 2025, section 2.2)."""
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Muon in the parameter groups with `muon=True`, whose parameters have 2 dimensions or more, AdamW else.

    A kernel (out, in, h, w) is the matrix (out, in * h * w). Steps are scaled to the size of AdamW's, so that
    learning rates and weight decay mean the same in both kinds of group.
    """

    _graphs: Graphs | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Moves all parameters that have gradients, and drops the gradients of those in Muon's groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._step(group)
        super().step()  # sees what has a gradient left
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        updates = self._orthogonalized(*(self._momentum(p).flatten(1) for p in parameters))
        for p, update in zip(parameters, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-group["lr"] * _RMS * max(update.shape) ** 0.5)
            p.grad = None

    def _orthogonalized(self, *matrices: Tensor) -> tuple[Tensor, ...]:
        """On CUDA as a graph: of many small products, launching takes longer than computing."""
        if not matrices or not matrices[0].is_cuda:
            return orthogonalized(*matrices)
        if self._graphs is None:
            self._graphs = Graphs(matrices[0].device)
        return self._graphs.run(orthogonalized, *matrices)

    def _momentum(self, p: Tensor) -> Tensor:
        """Nesterov's: a step ahead of the average of the gradients."""
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state |= {
                "step": torch.zeros(()),
                "momentum_buffer": torch.zeros_like(p),
            }  # AdamW looks for a step
        state["step"] += 1
        average = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(average, MOMENTUM)


def orthogonalized(*matrices: Float[Tensor, "_ _"]) -> tuple[Float[Tensor, "_ _"], ...]:
    """About the nearest matrices with orthonormal rows (or columns, where there are fewer of those).

    Their singular values end between 0.7 and 1.2; those of zeros stay 0.
    """
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    results = list(matrices)
    for i, x in enumerate(matrices):
        by_shape[x.shape].append(i)
    for shape, places in by_shape.items():
        tall = shape[0] > shape[1]
        x = torch.stack([results[i].mT if tall else results[i] for i in places])
        x = _iterated(x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None])
        for i, y in zip(places, x.mT if tall else x, strict=True):
            results[i] = y
    return tuple(results)


def _iterated(x: Float[Tensor, "n a b"]) -> Float[Tensor, "n a b"]:
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


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
    """The two groups of `weight_decay_groups`, both AdamW's, or the first one Muon's."""
    decay, no_decay = weight_decay_groups(module)
    parameters = dict(module.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in decay], "weight_decay": config.weight_decay},
        {"params": [parameters[name] for name in no_decay], "weight_decay": 0.0},
    ]
    if config.name == "muon":
        for group, is_muon in zip(groups, (True, False), strict=True):
            group["muon"] = is_muon
        return Muon(groups, lr=config.lr, eps=config.eps, foreach=True)
    on_gpu = next(module.parameters()).is_cuda  # there one kernel does it all, and nothing waits for the GPU
    return torch.optim.AdamW(groups, lr=config.lr, eps=config.eps, foreach=not on_gpu, fused=on_gpu)


@dataclass
class ExponentialMovingAverage:
    """Moving average of a module's parameters; the decay is at most (1 + k) / (10 + k) at update k."""

    decay: float
    num_updates: int
    values: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, decay: float) -> ExponentialMovingAverage:
        """Starts at the module's present weights."""
        return cls(decay, 0, {name: p.detach().clone() for name, p in module.named_parameters()})

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves towards the module's weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(
            list(self.values.values()), [parameters[name].data for name in self.values], 1 - decay
        )

    def state_dict(self) -> dict[str, object]:
        """What `load_state_dict` needs to go on."""
        return {"num_updates": self.num_updates, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        """Goes on from a saved average."""
        self.num_updates = state["num_updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)

"""AdamW as DIAMOND uses it, Muon instead where asked for, and the moving average of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.diamond.config import OptimizerConfig
from trainers.diamond.muon import Muon

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

"""Encoders of actions, built from the action space. Knows nothing of environments or training."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diamond_gym.world.action_space import ActionSpace


class PartsEmbedding(nn.Module):
    """The sum of an embedding of each discrete part, at the scale of one."""

    def __init__(self, space: ActionSpace, dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Embedding(n, dim) for n in space.choices)
        self.num_dims = len(space.shape)

    def forward(self, act: Int64[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Encode actions (..., *shape) as (..., dim)."""
        choices = act.flatten(act.ndim - self.num_dims).unbind(-1)
        encoded = torch.stack([part(x) for part, x in zip(self.parts, choices, strict=True)])
        return encoded.sum(dim=0) / len(self.parts) ** 0.5


class BoxEmbedding(nn.Module):
    """A linear layer over continuous parts, each scaled from its bounds to [-1, 1]."""

    def __init__(self, space: ActionSpace, dim: int) -> None:
        super().__init__()
        low, high = (torch.tensor(x, dtype=torch.float32) for x in (space.low, space.high))
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.num_dims = len(space.shape)
        self.linear = nn.Linear(space.size, dim)
        nn.init.normal_(self.linear.weight, std=space.size**-0.5)

    def forward(self, act: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Encode actions (..., *shape) as (..., dim)."""
        act, low, high = (x.float() for x in (act.flatten(act.ndim - self.num_dims), self.low, self.high))
        scaled = (2 * act - low - high) / (high - low)
        return self.linear(scaled.to(self.linear.weight.dtype))


def action_embedding(space: ActionSpace, dim: int) -> nn.Module:
    """Make the encoder of actions (..., *shape) as (..., dim); of one choice, it is `nn.Embedding`."""
    if space.is_discrete:
        return nn.Embedding(space.choices[0], dim)
    return BoxEmbedding(space, dim) if space.is_continuous else PartsEmbedding(space, dim)

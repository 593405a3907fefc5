"""Distributions of actions, from the outputs of a policy network: categorical parts, or a Gaussian.

A choice is drawn by inversion from numbers in [0, 1), so that it is a function of its arguments. A continuous
choice is in units of the bounds, [-1, 1], before it is clipped: `to_actions` makes it an action.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from diamond_gym.world.action_space import ActionSpace

LOG_STD_RANGE = (-3.0, 0.5)
"""Least and greatest logarithm of the Gaussian's standard deviation, in units of the bounds."""
_CLOSEST = 1e-6


def num_outputs(space: ActionSpace) -> int:
    """Outputs of a policy network: a logit per choice, or mean and log standard deviation per part."""
    return 2 * space.size if space.is_continuous else sum(space.choices)


def draws_shape(space: ActionSpace) -> tuple[int, ...]:
    """Shape of the numbers that decide one choice."""
    return () if space.is_discrete else (space.size,)


def draw_class(
    logits: Float[Tensor, "b k"], u: Float[Tensor, " b"], temperature: float = 1.0
) -> Int64[Tensor, " b"]:
    """Draw from each categorical, by inversion of its cumulative distribution.

    Args:
        logits: Logits of the classes; computations are in float64 where the logits are, else in float32.
        u: Uniform in [0, 1).
        temperature: Divides the logits, >= 0; 0 takes the likeliest class.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cumulative = (logits if temperature == 1 else logits / temperature).softmax(dim=-1).cumsum(dim=-1)
    return (u[:, None] >= cumulative[:, :-1]).sum(dim=-1)


def draw(
    space: ActionSpace, outputs: Float[Tensor, "b a"], u: Float[Tensor, "b *k"], temperature: float = 1.0
) -> Shaped[Tensor, "b *k"]:
    """Draw a choice from each distribution.

    Args:
        space: The actions.
        outputs: Outputs of a policy network.
        u: Uniform in [0, 1), of shape (b, *shape) where `draws_shape` gives the shape.
        temperature: Divides logits, or multiplies standard deviations, >= 0; 0 takes the likeliest choice.
    """
    if space.is_discrete:
        return draw_class(outputs, u, temperature)
    if space.is_continuous:
        mean, std = _gaussian(outputs)
        z = torch.erfinv((2 * u.to(mean) - 1).clamp(_CLOSEST - 1, 1 - _CLOSEST)) * math.sqrt(2)
        return (mean + temperature * std * z).float()
    parts = zip(outputs.split(space.choices, dim=-1), u.unbind(-1), strict=True)
    return torch.stack([draw_class(logits, x, temperature) for logits, x in parts], dim=-1)


def to_actions(space: ActionSpace, choice: Shaped[Tensor, "b *k"]) -> Shaped[Tensor, "b *shape"]:
    """Turn choices into actions of the environment."""
    if space.is_discrete:
        return choice
    if space.is_continuous:
        low, high = (torch.as_tensor(x, device=choice.device).flatten() for x in space.bounds)
        choice = torch.lerp(low, high, (choice.clamp(-1, 1) + 1) / 2).clamp(low, high)
    return choice.unflatten(-1, space.shape)


def log_prob(
    space: ActionSpace, outputs: Float[Tensor, "*b a"], choice: Shaped[Tensor, "*b *k"]
) -> Float[Tensor, "*b"]:
    """The logarithm of the probability, or density, of choices."""
    if space.is_continuous:
        mean, std = _gaussian(outputs)
        density = -((choice - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2
        return density.sum(dim=-1)
    choices = choice[..., None] if space.is_discrete else choice
    parts = zip(outputs.split(space.choices, dim=-1), choices.unbind(-1), strict=True)
    logs = [x.log_softmax(dim=-1).gather(-1, chosen[..., None])[..., 0] for x, chosen in parts]
    return logs[0] if len(logs) == 1 else torch.stack(logs).sum(dim=0)


def entropy(space: ActionSpace, outputs: Float[Tensor, "*b a"]) -> Float[Tensor, "*b"]:
    """The entropy of each distribution, in nats; of a Gaussian, its differential entropy."""
    if space.is_continuous:
        _, std = _gaussian(outputs)
        return (std.log() + (1 + math.log(2 * math.pi)) / 2).sum(dim=-1)
    logs = [x.log_softmax(dim=-1) for x in outputs.split(space.choices, dim=-1)]
    parts = [-(log.exp() * log).sum(dim=-1) for log in logs]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)


def _gaussian(outputs: Float[Tensor, "*b a"]) -> tuple[Float[Tensor, "*b k"], Float[Tensor, "*b k"]]:
    """Mean in (-1, 1) and standard deviation of each part, in units of the bounds."""
    mean, raw = outputs.chunk(2, dim=-1)
    low, high = LOG_STD_RANGE
    return mean.tanh(), (low + (high - low) * torch.sigmoid(raw)).exp()

"""Distributions of actions against those of torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Normal

from diamond_gym.world import policy
from diamond_gym.world.action_space import ActionSpace

SPACES = [
    ActionSpace.parse(x)
    for x in ("discrete(4)", "multi_discrete(3, 2)", "multi_binary(3)", "box(-1..3, 0..1)")
]


def references(space, outputs):
    """The same distribution, part by part."""
    if space.is_continuous:
        mean, raw = outputs.chunk(2, dim=-1)
        low, high = policy.LOG_STD_RANGE
        return [Normal(mean[:, i].tanh(), (low + (high - low) * raw[:, i].sigmoid()).exp()) for i in range(2)]
    return [Categorical(logits=x) for x in outputs.split(space.choices, dim=-1)]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_log_prob_entropy_and_draws(space):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(1, policy.num_outputs(space), generator=generator, dtype=torch.float64)
    many = outputs.expand(20_000, -1)
    u = torch.rand(20_000, *policy.draws_shape(space), generator=generator, dtype=torch.float64)
    choice = policy.draw(space, many, u)
    parts = choice[:, None] if space.is_discrete else choice
    expected = references(space, many)
    log_prob = torch.stack([p.log_prob(x) for p, x in zip(expected, parts.unbind(1), strict=True)]).sum(0)
    assert torch.allclose(policy.log_prob(space, many, choice), log_prob, atol=1e-5)
    entropy = torch.stack([p.entropy() for p in expected]).sum(0)
    assert torch.allclose(policy.entropy(space, many), entropy)
    # a draw's surprise is the entropy on average: they come from that distribution
    assert -log_prob.mean().item() == pytest.approx(entropy[0].item(), abs=0.03)
    likeliest = policy.draw(space, outputs, u[:1], temperature=0)
    assert policy.log_prob(space, outputs, likeliest) >= log_prob.max() - 1e-5


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_choices_become_actions(space):
    outputs = 3 * torch.randn(200, policy.num_outputs(space), generator=torch.Generator().manual_seed(1))
    u = torch.rand(200, *policy.draws_shape(space), generator=torch.Generator().manual_seed(2))
    act = policy.to_actions(space, policy.draw(space, outputs, u))
    assert act.dtype == space.torch_dtype and act.shape[1:] == space.shape and space.contains(act).all()
    assert len(act.unique(dim=0)) > 3


def test_gradients_move_a_gaussian_to_the_better_actions():
    space = ActionSpace.parse("box(0.0..10.0)")
    outputs = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        many = outputs.expand(256, -1)
        choice = policy.draw(space, many.detach(), torch.rand(256, 1, generator=generator))
        reward = -(policy.to_actions(space, choice)[:, 0] - 8).abs()
        loss = -(policy.log_prob(space, many, choice) * (reward - reward.mean())).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best = policy.to_actions(space, policy.draw(space, outputs.detach(), torch.rand(1, 1), temperature=0))
    assert best.item() == pytest.approx(8, abs=1)

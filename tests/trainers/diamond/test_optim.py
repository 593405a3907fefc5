"""Weight decay, the moving average, and Muon."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diamond_gym.errors import InvalidInputError
from diamond_gym.world.models import Agent
from tests import parity
from trainers.diamond.config import OptimizerConfig, PartTrainingConfig
from trainers.diamond.learner import Example, Learner
from trainers.diamond.optim import (
    ExponentialMovingAverage,
    make_optimizer,
    orthogonalized,
    weight_decay_groups,
)
from trainers.diamond.replay import Replay


def test_weight_decay_groups_are_the_published_ones():
    agent = Agent(parity.agent_config("tiny"))
    for part, groups in parity.description("tiny")["optimizer_groups"].items():
        decay, no_decay = weight_decay_groups(getattr(agent, part))
        assert decay == sorted(groups["decay"])
        assert no_decay == sorted(next(v for k, v in groups.items() if k != "decay"))


def test_moving_average_follows_the_weights():
    module = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(module.weight)
    ema = ExponentialMovingAverage.of(module, decay=0.5)
    nn.init.ones_(module.weight)
    ema.update(module)  # warm-up: decay 2 / 11
    assert_close(ema.values["weight"], torch.full((1, 2), 1 - 2 / 11))
    for _ in range(60):
        ema.update(module)
    assert_close(ema.values["weight"], torch.ones(1, 2))


def test_learning_rate_schedules():
    constant = PartTrainingConfig(lr_warmup_steps=100)
    factors = [constant.lr_factor(step, 1000) for step in (0, 1, 50, 99, 100, 999)]
    assert factors == [0, 0.01, 0.5, 0.99, 1, 1]
    cosine = PartTrainingConfig(lr_warmup_steps=0, lr_schedule="cosine")
    factors = [cosine.lr_factor(step, 1000) for step in range(1001)]
    assert factors[0] == 1 and factors[1000] == 0 and factors == sorted(factors, reverse=True)
    assert abs(factors[500] - 0.5) < 1e-9


@pytest.mark.parametrize("shapes", [[(4, 30), (4, 30), (30, 4)], [(5, 5)], [(1, 7)]])
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_sizes(shapes):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=generator) * 10.0**i for i, shape in enumerate(shapes, -1)]
    for x, y in zip(matrices, orthogonalized(*matrices), strict=True):
        u, _, v = torch.linalg.svd(x, full_matrices=False)
        inner = u.mT @ y @ v.mT
        assert_close(inner, torch.diag(inner.diagonal()), atol=1e-3, rtol=0)
        assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3


def test_orthogonalizing_nothing_is_nothing():
    assert_close(orthogonalized(torch.zeros(3, 4))[0], torch.zeros(3, 4))


def test_orthogonalizing_is_five_iterations_of_the_quintic():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 2, generator=generator) @ torch.randn(2, 40, generator=generator)  # of rank 2
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    for ours, theirs in zip(orthogonalized(matrix, 1e-3 * matrix.mT), (x, x.mT), strict=True):
        assert_close(ours, theirs.float(), atol=1e-4, rtol=0)


def test_muon_moves_weights_alike_in_every_memory_layout():
    (module, muon), (other, others) = learner("muon"), learner("muon")
    other.to(memory_format=torch.channels_last)
    steps(module, muon, 3)
    steps(other, others, 3)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert_close(dict(other.named_parameters()), dict(module.named_parameters()), atol=1e-4, rtol=1e-4)


def learner(name, lr=0.02):
    """A network with every kind of parameter, and its optimiser."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.SiLU(), nn.Flatten(), nn.Linear(72, 4))
    return module, make_optimizer(module, OptimizerConfig(name=name, lr=lr, weight_decay=0.1))


def steps(module, optimizer, num_steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 3, 5, 5, generator=generator), torch.randn(16, 4, generator=generator)
    loss = torch.zeros(())
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_muon_moves_layers_by_its_own_rule_and_the_rest_as_adamw():
    (with_muon, muon), (with_adamw, adamw) = learner("muon"), learner("adamw")
    before = {name: p.detach().clone() for name, p in with_muon.named_parameters()}
    steps(with_muon, muon, 1)
    steps(with_adamw, adamw, 1)
    theirs = dict(with_adamw.named_parameters())
    for name, p in with_muon.named_parameters():
        if p.ndim == 1:
            assert_close(p, theirs[name])
        else:
            step = (p - before[name] * (1 - 0.02 * 0.1)).detach().flatten(1) / 0.02
            singular = torch.linalg.svdvals(step) / (0.2 * max(step.shape) ** 0.5)
            assert singular.min() > 0.6 and singular.max() < 1.3


def test_muon_learns():
    module, optimizer = learner("muon")
    assert steps(module, optimizer, 60) < 0.02 < steps(*learner("adamw", lr=1e-4), 60)


def test_muon_goes_on_from_its_state():
    module, optimizer = learner("muon")
    steps(module, optimizer, 5)
    again, other = learner("muon")
    again.load_state_dict(module.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(module, optimizer, 5) == steps(again, other, 5)


def test_unknown_optimizers_are_refused():
    with pytest.raises(InvalidInputError, match=r"optimizer\.name='sgd': accepted are adamw, muon"):
        OptimizerConfig(name="sgd")


class SameLoss:
    """An objective whose batches are all the same."""

    def __init__(self, module):
        self.module = module

    def example(self, replay, rng, step):
        loss = (self.module(torch.ones(1, 2)) - 3).square().sum()
        return Example(loss, {}, {})

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_gradients_of_accumulated_batches_add_up():
    """Clipping and AdamW's eps apply to the sum, as published."""
    norms = []
    for count in (1, 3):
        torch.manual_seed(0)
        module = nn.Linear(2, 1)
        training = PartTrainingConfig(grad_acc_steps=count, max_grad_norm=1e6)
        part = Learner.of("denoiser", module, training, OptimizerConfig(), SameLoss(module))
        metrics = part.step(Replay(), seed=0, lr_factor=1.0)
        norms.append((metrics["loss"].item(), metrics["grad_norm"].item()))
    (loss, norm), (mean_loss, sum_norm) = norms
    assert mean_loss == pytest.approx(loss) and sum_norm == pytest.approx(3 * norm)

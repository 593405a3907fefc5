"""Which weights decay, and the moving average."""

import torch
from torch import nn
from torch.testing import assert_close

from diamond_gym.models import Agent
from tests import parity
from trainers.diamond.config import PartTrainingConfig
from trainers.diamond.optimizer import ExponentialMovingAverage, weight_decay_groups


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
    assert constant.lr_factor(0, 1000) == 0.01
    assert constant.lr_factor(99, 1000) == constant.lr_factor(999, 1000) == 1
    cosine = PartTrainingConfig(lr_warmup_steps=0, lr_schedule="cosine")
    factors = [cosine.lr_factor(step, 1000) for step in range(1001)]
    assert factors[0] == 1 and factors[1000] == 0 and factors == sorted(factors, reverse=True)
    assert abs(factors[500] - 0.5) < 1e-9

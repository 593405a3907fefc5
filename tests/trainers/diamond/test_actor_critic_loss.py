"""Lambda-returns and the actor-critic's loss equal those of the published implementation."""

import pytest
import torch
from torch.testing import assert_close

from diamond_gym.errors import InvalidInputError
from tests import parity
from trainers.diamond.losses import (
    ActorCriticLossConfig,
    PlayedSteps,
    actor_critic_loss,
    lambda_returns,
)


@pytest.fixture
def d():
    numbers = parity.numbers("tiny")
    return {k.removeprefix("ac_loss_"): v for k, v in numbers.items() if k.startswith("ac_loss_")}


def returns_of(rew, end, trunc, bootstrap, gamma=0.985, lambda_=0.95):
    end, trunc = (torch.tensor([x], dtype=torch.bool) for x in (end, trunc))
    rew, bootstrap = torch.tensor([rew]), torch.tensor([bootstrap])
    return lambda_returns(rew, end, trunc, bootstrap, gamma=gamma, lambda_=lambda_)[0].tolist()


def test_loss_and_its_terms(d):
    logits, val = d["logits_act"].clone().requires_grad_(), d["val"].clone().requires_grad_()
    steps = PlayedSteps(
        logits_act=logits,
        act=d["act"],
        rew=d["rew"],
        end=d["end"].bool(),
        trunc=d["trunc"].bool(),
        val=val,
        val_bootstrap=d["val_bootstrap"],
    )
    loss, metrics = actor_critic_loss(steps, ActorCriticLossConfig())
    for name, key in {
        "loss_actions": "actions",
        "loss_values": "values",
        "loss_entropy": "entropy",
        "policy_entropy": "policy_entropy_bits",
    }.items():
        assert_close(metrics[name], d[key], rtol=1e-4, atol=1e-6)
    assert_close(loss.detach(), d["total"], rtol=1e-4, atol=1e-6)
    loss.backward()
    assert logits.grad is not None and val.grad is not None
    # the baseline is not part of the policy's gradient: the values learn from their own error alone
    assert_close(val.grad, 2 * (d["val"] - d["lambda_returns"]) / d["val"].numel(), rtol=1e-4, atol=1e-6)


def test_lambda_returns(d):
    arguments = d["rew"], d["end"].bool(), d["trunc"].bool(), d["val_bootstrap"]
    assert_close(lambda_returns(*arguments, gamma=0.985, lambda_=0.95), d["lambda_returns"])


def test_an_end_has_no_future_and_a_cut_has_a_value():
    assert returns_of([0.0, 7.0], [0, 1], [0, 0], [5.0, 9.0], gamma=0.5, lambda_=1.0) == [0.5, 1.0]
    assert returns_of([0.0, 7.0], [0, 0], [0, 1], [5.0, 9.0], gamma=0.5, lambda_=1.0) == [2.75, 5.5]
    assert returns_of([0.0, 7.0], [0, 0], [1, 0], [5.0, 9.0], gamma=0.5, lambda_=1.0) == [2.5, 5.5]
    assert returns_of([-3.0, 0.0], [0, 0], [0, 0], [5.0, 9.0], gamma=0.5, lambda_=0.0) == [1.5, 4.5]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gamma": 1.1}, r"gamma must be in \[0, 1\], got 1.1"),
        ({"lambda_": -0.1}, "lambda_ must be"),
        ({"backup_every": 0}, "at least 1, or null"),
        ({"weight_entropy_loss": -1.0}, "weight_entropy_loss must not be negative"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(InvalidInputError, match=message):
        ActorCriticLossConfig(**values)

"""What layers keep of their weights for inference: equal results, never of old weights, never in training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from diamond_gym.backends.build import build_world_model
from diamond_gym.world.models.blocks import AdaGroupNorm, Conv2d, Modulator, Upsample
from diamond_gym.world.models.prepared import Prepared
from diamond_gym.world.sampler import DiffusionSamplerConfig
from tests.worlds import PLAIN, starts, tiny_agent

CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)


def convolution(**options) -> Conv2d:
    torch.manual_seed(0)
    return Conv2d(8, 16, **{"kernel_size": 3, "padding": 1, **options})


def upsample() -> Upsample:
    torch.manual_seed(0)
    layer = Upsample(8)
    layer.merges_copies = True
    return layer


class Norms(nn.Module):
    """An adaptive norm, and the modulation that it needs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = AdaGroupNorm(8, 4)
        self.modulator = Modulator(self)

    def forward(self, x):
        return self.norm.silu(x, self.modulator(torch.ones(len(x), 4)))


def with_preparation(layer: nn.Module) -> nn.Module:
    prepared = copy.deepcopy(layer)
    for part in prepared.modules():
        if isinstance(part, (Conv2d, Modulator, Upsample)):
            part.prepared = Prepared()
    return prepared


LAYERS = {
    "3x3": convolution,
    "strided": lambda: convolution(stride=2),
    "1x1": lambda: convolution(kernel_size=1, padding=0),
    "upsample": upsample,
    "norms": Norms,
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


@torch.no_grad()
@pytest.mark.parametrize("num_images", [1, 3])
def test_the_results_are_the_same_also_with_new_weights(layer, num_images):
    prepared = with_preparation(layer)
    weights = [weight for weight in layer.parameters() if weight.ndim > 1]
    for i in range(3):
        x = torch.randn(num_images, 8, 8 + i, 6)
        assert_close(prepared(x.clone()), layer(x.clone()), rtol=1e-4, atol=1e-5)
        for one, other in zip(layer.parameters(), prepared.parameters(), strict=True):
            one.add_(1)
            other.add_(1)
    assert weights, "the layer has something to prepare"


@torch.no_grad()
def test_loaded_weights_count(layer):
    prepared, x = with_preparation(layer), torch.randn(1, 8, 8, 8)
    before = prepared(x.clone())
    prepared.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})
    layer.load_state_dict(prepared.state_dict())
    assert_close(prepared(x.clone()), layer(x.clone()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(prepared(x.clone()), before)


def test_gradients_flow_and_autocast_is_left_alone(layer):
    prepared, x = with_preparation(layer), torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        prepared(x.clone())
    prepared(x.clone()).sum().backward()
    layer(x.clone()).sum().backward()
    for one, other in zip(layer.parameters(), prepared.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepared(x.clone()), layer(x.clone()))


@torch.no_grad()
def test_copies_and_pickles_begin_empty(layer):
    prepared, x = with_preparation(layer), torch.randn(1, 8, 8, 8)
    y = prepared(x.clone())
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert_close(other(x.clone()), y)
        for weight in other.parameters():
            weight.zero_()
        assert not torch.allclose(other(x.clone()), y)
    assert torch.equal(prepared(x.clone()), y)


def test_it_is_computed_once():
    weight, calls = torch.zeros(2), []
    prepared = Prepared()
    for _ in range(3):
        prepared.get([weight], lambda: calls.append(1))
    assert len(calls) == 1


@pytest.mark.parametrize("num_games", [1, 3])
def test_a_world_model_with_new_weights_imagines_by_them(num_games):
    agents = tiny_agent(), tiny_agent(seed=1)
    ours, other = (build_world_model(agent, CONFIG, **PLAIN) for agent in agents)
    act, key = torch.ones(num_games, dtype=torch.int64), torch.arange(num_games)

    def step(world_model):
        return world_model.step(world_model.start(*starts(num_games), key), act)[1]

    assert not torch.equal(step(ours).obs, step(other).obs)
    agents[0].load_state_dict(agents[1].state_dict())
    assert torch.equal(step(ours).obs, step(other).obs)
    assert torch.equal(step(ours).logits_rew, step(other).logits_rew)

"""The code around CUDA graphs, without a GPU: plain calls replace the graphs. See test_cuda.py too."""

from __future__ import annotations

import pytest
import torch

from diamond_gym.backends import cuda_graphs
from diamond_gym.backends.cuda_graphs import GraphedWorldModel
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests.worlds import starts, tiny_agent

CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)


class PlainCalls:
    """A replacement of `Graphs` that records the batch sizes of its calls."""

    def __init__(self, device):
        self.calls = []

    def run(self, function, *inputs, key=None):
        self.calls.append((function.__name__, len(inputs[0]), key))
        return tuple(x.clone() for x in function(*inputs))


@pytest.fixture
def pair(monkeypatch):
    """A graphed and a plain world model on the same networks."""
    monkeypatch.setattr(cuda_graphs, "Graphs", PlainCalls)
    agent = tiny_agent()
    return [kind(agent.denoiser, agent.rew_end_model, CONFIG) for kind in (GraphedWorldModel, WorldModel)]


def start(world_model, num_games, padding=None):
    return world_model.start(*starts(num_games), torch.arange(num_games), padding)


@pytest.mark.parametrize("padding", [None, torch.tensor([0, 1, 3])])
def test_a_step_is_that_of_the_plain_world_model(pair, padding):
    states = [start(world_model, 3, padding) for world_model in pair]
    act = torch.tensor([0, 1, 2])
    (state, step), (plain_state, plain) = (w.step(s, act) for w, s in zip(pair, states, strict=True))
    for x, y in zip(state.tensors(), plain_state.tensors(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    for name in ("obs", "rew", "end"):
        assert torch.equal(getattr(step, name), getattr(plain, name))
    assert len(step.trajectory) == len(plain.trajectory) == 3
    assert all(torch.equal(x, y) for x, y in zip(step.trajectory, plain.trajectory, strict=True))


@pytest.mark.parametrize(("num_games", "size"), [(1, 1), (3, 4), (4, 4), (5, 8)])
def test_starts_are_rounded_up_to_powers_of_two(pair, num_games, size):
    graphed, plain = (start(world_model, num_games) for world_model in pair)
    assert [(name, count) for name, count, _ in pair[0].graphs.calls] == [("_burn_in_tensors", size)]
    torch.testing.assert_close(graphed.hx, plain.hx, atol=1e-5, rtol=0)
    assert graphed.hx.is_contiguous() and graphed.cx.is_contiguous()


def test_padding_is_burned_in_as_by_the_plain_world_model(pair):
    padding = torch.tensor([0, 1, 3])
    graphed, plain = (start(world_model, 3, padding) for world_model in pair)
    torch.testing.assert_close(graphed.hx, plain.hx, atol=1e-5, rtol=0)
    without = start(pair[1], 3)
    changed = (without.hx != plain.hx).any(dim=1)
    assert changed.tolist() == [False, True, True]


def test_many_starts_need_no_graph(pair, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHED_STARTS", 2)
    assert torch.equal(start(pair[0], 3).hx, start(pair[1], 3).hx)
    assert not pair[0].graphs.calls


def test_converted_networks_are_recorded_anew(pair):
    graphed, _ = pair
    start(graphed, 1)
    graphed.rew_end_model.encoder.to(torch.bfloat16)
    graphed.rew_end_model.act_emb.to(torch.bfloat16)
    start(graphed, 1)
    first, second = (key for _, _, key in graphed.graphs.calls)
    assert first != second


def test_resampled_is_of_the_same_kind(pair):
    for world_model in pair:
        other = world_model.resampled(DiffusionSamplerConfig(num_steps_denoising=1))
        assert type(other) is type(world_model) and other.denoiser is world_model.denoiser
        assert other.config.num_steps_denoising == 1

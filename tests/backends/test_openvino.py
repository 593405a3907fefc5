"""Single games in OpenVINO: the same game, the same argument everywhere, a clear error without it."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import pytest
import torch

pytest.importorskip("openvino")
import openvino

import diamond_gym  # noqa: F401  registers the games
from diamond_gym.backends import waiting
from diamond_gym.backends.build import backend_of, build_world_model
from diamond_gym.backends.choose import pick_backend
from diamond_gym.backends.openvino import OpenVinoForward
from diamond_gym.checkpoints import load_world
from diamond_gym.errors import DeviceError, MissingDependencyError
from diamond_gym.world.sampler import DiffusionSamplerConfig
from tests.worlds import PLAIN, starts, tiny_agent

CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)
OPENVINO = {"device": "cpu", "dtype": "float32", "backend": "openvino"}


def imagine(world_model, num_games, num_steps=3):
    """Imagine frames (t b c h w) and logits of rewards and ends (t b 5) under fixed actions."""
    state = world_model.start(*starts(num_games), torch.arange(3, 3 + num_games))
    steps = []
    for i in range(num_steps):
        state, step = world_model.step(state, torch.full((num_games,), i % 4))
        steps.append(step)
    logits = [torch.cat([step.logits_rew, step.logits_end], dim=1) for step in steps]
    return torch.stack([step.obs for step in steps]).int(), torch.stack(logits)


def test_one_game_is_the_same_in_openvino_and_says_what_took_time(caplog, monkeypatch):
    monkeypatch.setattr(waiting, "WORTH_A_MESSAGE_SECONDS", 0.0)
    ours, plain = (build_world_model(tiny_agent(), CONFIG, **how) for how in (OPENVINO, PLAIN))
    frames, logits = imagine(ours, 1)
    plain_frames, plain_logits = imagine(plain, 1)
    assert (frames - plain_frames).abs().max() <= 1  # one level of 256, where rounding differs
    torch.testing.assert_close(logits, plain_logits, rtol=1e-3, atol=1e-3)
    told = caplog.text
    assert told.count("converted InnerModel to OpenVINO") == told.count("converted RewEndEncoder") == 1


def test_several_games_stay_in_pytorch(caplog):
    ours, plain = (build_world_model(tiny_agent(), CONFIG, **how) for how in (OPENVINO, PLAIN))
    for one, other in zip(imagine(ours, 2), imagine(plain, 2), strict=True):
        assert torch.equal(one, other)
    assert "OpenVINO" not in caplog.text


def test_the_weights_stay_where_they_were():
    agent = tiny_agent()
    keys = list(agent.state_dict())
    world_model = build_world_model(agent, CONFIG, device="cpu", dtype="bfloat16", backend="openvino")
    assert list(agent.state_dict()) == keys and agent.denoiser.dtype == torch.bfloat16
    assert list(world_model.denoiser.inner_model.parameters()) == list(
        agent.denoiser.inner_model.parameters()
    )


def test_bfloat16_is_what_openvino_computes_in():
    forward = OpenVinoForward(torch.nn.Conv2d(3, 4, kernel_size=3), torch.bfloat16)
    x = torch.randn(1, 3, 16, 16).bfloat16()
    with torch.no_grad():
        y = forward(x)
        torch.testing.assert_close(y, forward._network(x.float()), rtol=0.05, atol=0.05)
    (request,) = forward._requests.values()
    precision = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
    assert y.dtype == torch.float32 and precision == openvino.Type.bf16


def test_inputs_of_other_shapes_get_a_network_of_their_own():
    network = torch.nn.Conv2d(3, 4, kernel_size=3)
    forward = OpenVinoForward(network, torch.float32)
    for size in (16, 8, 16):
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(forward(x), network(x))
    assert len(forward._requests) == 2


def test_a_network_can_be_copied_and_placed_again():
    agent = tiny_agent()
    build_world_model(agent, CONFIG, **OPENVINO)
    network = agent.denoiser.inner_model
    assert isinstance(copy.deepcopy(network).forward, OpenVinoForward)
    world_model = build_world_model(agent, CONFIG, **PLAIN)
    assert backend_of(world_model, 1) == "eager"


def test_what_runs_depends_on_the_number_of_games():
    world_model = build_world_model(tiny_agent(), CONFIG, **OPENVINO)
    assert [backend_of(world_model, num_games) for num_games in (1, 2)] == ["openvino", "eager"]


def test_threads_take_turns():
    network = torch.nn.Conv2d(3, 4, kernel_size=3)
    forward = OpenVinoForward(network, torch.float32)
    images = torch.randn(64, 1, 3, 32, 32)
    with torch.no_grad():
        expected = [network(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for y, other in zip(pool.map(forward, images), expected, strict=True):
            torch.testing.assert_close(y, other)


@pytest.mark.slow
def test_the_embedded_game_is_the_same():
    options = {"checkpoint": "embedded", "device": "cpu", "dtype": "float32"}
    ours = gymnasium.make("DiamondBreakout-v0", backend="openvino", **options)
    plain = gymnasium.make("DiamondBreakout-v0", backend="eager", **options)
    first = [env.reset(seed=1)[0] for env in (ours, plain)]
    assert (first[0] == first[1]).all()
    for action in (1, 2, 3):
        steps = [env.step(action) for env in (ours, plain)]
        frames = [step[0].astype(int) for step in steps]
        assert abs(frames[0] - frames[1]).max() <= 2 and steps[0][1:4] == steps[1][1:4]


def test_without_openvino_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    agent = tiny_agent()
    with pytest.raises(MissingDependencyError, match=r"pip install 'diamond-gym\[openvino\]'"):
        build_world_model(agent, CONFIG, device="cpu", dtype="bfloat16", backend="openvino")
    weight = agent.denoiser.inner_model.conv_in.weight
    assert weight.dtype == torch.float32 and weight.is_contiguous(), "nothing is changed by a refused choice"


def test_it_is_for_the_cpu():
    with pytest.raises(DeviceError, match='needs the CPU, and the device is cuda: pass device="cpu"'):
        pick_backend("openvino", torch.device("cuda"))


def test_a_loaded_world_takes_it():
    world = load_world("Pong", "embedded", **OPENVINO)
    assert isinstance(world.world_model.denoiser.inner_model.forward, OpenVinoForward)

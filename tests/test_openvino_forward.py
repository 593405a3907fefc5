"""Single games in OpenVINO: the same game, the same argument everywhere, a clear error without it."""

from __future__ import annotations

import sys

import gymnasium
import pytest
import torch

import diamond_gym  # noqa: F401  registers the games
from diamond_gym import acceleration
from diamond_gym.acceleration import build_world_model
from diamond_gym.checkpoints import load_world
from diamond_gym.errors import InvalidInputError, MissingDependencyError
from diamond_gym.openvino_forward import OpenVinoForward
from diamond_gym.play.settings import WorldOptions
from diamond_gym.sampler import DiffusionSamplerConfig
from tests.worlds import PLAIN, starts, tiny_agent

CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)
OPENVINO = {"device": "cpu", "dtype": "float32", "compile": "openvino"}


def imagine(world_model, num_games, num_steps=3):
    """Frames (t b c h w) and logits of rewards and ends (t b 5) under fixed actions."""
    state = world_model.start(*starts(num_games), torch.arange(3, 3 + num_games))
    steps = []
    for i in range(num_steps):
        state, step = world_model.step(state, torch.full((num_games,), i % 4))
        steps.append(step)
    logits = [torch.cat([step.logits_rew, step.logits_end], dim=1) for step in steps]
    return torch.stack([step.obs for step in steps]).int(), torch.stack(logits)


def test_one_game_is_the_same_in_openvino_and_says_what_took_time(capfd):
    ours, plain = (build_world_model(tiny_agent(), CONFIG, **how) for how in (OPENVINO, PLAIN))
    frames, logits = imagine(ours, 1)
    plain_frames, plain_logits = imagine(plain, 1)
    assert (frames - plain_frames).abs().max() <= 1  # a level of 256, where rounding falls otherwise
    torch.testing.assert_close(logits, plain_logits, rtol=1e-3, atol=1e-3)
    told = capfd.readouterr().err
    assert told.count("converted InnerModel to OpenVINO") == told.count("converted RewEndEncoder") == 1


def test_several_games_stay_in_pytorch(capfd):
    ours, plain = (build_world_model(tiny_agent(), CONFIG, **how) for how in (OPENVINO, PLAIN))
    for one, other in zip(imagine(ours, 2), imagine(plain, 2), strict=True):
        assert torch.equal(one, other)
    assert "OpenVINO" not in capfd.readouterr().err


def test_the_weights_stay_where_they_were():
    agent = tiny_agent()
    keys = list(agent.state_dict())
    world_model = build_world_model(agent, CONFIG, device="cpu", dtype="bfloat16", compile="openvino")
    assert list(agent.state_dict()) == keys and agent.denoiser.dtype == torch.bfloat16
    frames, _ = imagine(world_model, 1)
    plain, _ = imagine(build_world_model(tiny_agent(), CONFIG, **PLAIN), 1)
    assert (frames - plain).abs().float().mean() < 2


def test_inputs_of_other_shapes_get_a_network_of_their_own(capfd):
    network = torch.nn.Conv2d(3, 4, kernel_size=3)
    forward = OpenVinoForward(network, torch.float32)
    for size in (16, 8, 16):
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(forward(x), network(x))
    assert capfd.readouterr().err.count("converted Conv2d to OpenVINO") == 2


@pytest.mark.slow
def test_the_embedded_game_is_the_same():
    options = {"checkpoint": "embedded", "device": "cpu", "dtype": "float32"}
    ours = gymnasium.make("DiamondBreakout-v0", compile="openvino", **options)
    plain = gymnasium.make("DiamondBreakout-v0", compile=False, **options)
    frames = [env.reset(seed=1)[0].astype(int) for env in (ours, plain)]
    for action in (1, 2, 3):
        steps = [env.step(action) for env in (ours, plain)]
        frames = [step[0].astype(int) for step in steps]
        assert abs(frames[0] - frames[1]).max() <= 2 and steps[0][1:4] == steps[1][1:4]


def test_without_openvino_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    agent = tiny_agent()
    with pytest.raises(MissingDependencyError, match=r"pip install 'diamond-gym\[openvino\]'"):
        build_world_model(agent, CONFIG, device="cpu", dtype="bfloat16", compile="openvino")
    assert agent.denoiser.dtype == torch.float32


def test_it_is_for_the_cpu():
    with pytest.raises(InvalidInputError, match="for the CPU, and the device is cuda"):
        acceleration._check_compilation("openvino", torch.device("cuda"))


@pytest.mark.parametrize(("given", "expected"), [("false", False), ("true", True), ("openvino", "openvino")])
def test_the_play_options_name_the_same_choices(given, expected):
    assert WorldOptions(compile=given).compile_choice == expected


def test_a_wrong_choice_of_the_play_options_is_refused():
    with pytest.raises(InvalidInputError, match="compile must be one of false, true, openvino, got 'maybe'"):
        WorldOptions(compile="maybe")


def test_a_loaded_world_takes_it(capfd):
    world = load_world("Pong", "embedded", **OPENVINO)
    assert isinstance(world.world_model.denoiser.inner_model.forward, OpenVinoForward)

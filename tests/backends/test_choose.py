"""The choice of device, precision and backend: defaults, errors, and the same game in all of them."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch

from diamond_gym.backends.build import backend_of, build_world_model
from diamond_gym.backends.choose import (
    available_devices,
    choose,
    has_fast_bfloat16,
    pick_backend,
    pick_device,
    pick_dtype,
)
from diamond_gym.errors import DeviceError, InvalidInputError, MissingDependencyError
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests.worlds import PLAIN, starts, tiny_agent

CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)
CPU = torch.device("cpu")


def imagine(world_model, num_steps=3):
    """Imagine frames (t b c h w) and reward logits (t b 3) under fixed actions, from two contexts."""
    state = world_model.start(*starts(2), torch.tensor([3, 4]))
    steps = []
    for i in range(num_steps):
        state, step = world_model.step(state, torch.tensor([i % 4, 1]))
        steps.append(step)
    return torch.stack([s.obs for s in steps]), torch.stack([s.logits_rew for s in steps])


def psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


@pytest.fixture
def plain():
    agent = tiny_agent()
    return WorldModel(agent.denoiser, agent.rew_end_model, CONFIG)


def test_networks_are_ready_to_imagine():
    agent = tiny_agent().train()
    keys = list(agent.state_dict())
    build_world_model(agent, CONFIG, **PLAIN)
    assert not agent.denoiser.training and not agent.rew_end_model.training
    assert agent.denoiser.inner_model.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert agent.denoiser.dtype == torch.float32
    assert list(agent.state_dict()) == keys


def test_float32_imagines_as_plain_networks_do(plain):
    frames, logits = imagine(build_world_model(tiny_agent(), CONFIG, **PLAIN))
    plain_frames, plain_logits = imagine(plain)
    torch.testing.assert_close(logits, plain_logits, atol=1e-3, rtol=0)
    assert psnr(frames, plain_frames) > 60  # some pixels differ by a level, where rounding crosses a boundary


def test_network_output_is_that_of_the_plain_network():
    agent = tiny_agent()
    placed = build_world_model(copy.deepcopy(agent), CONFIG, **PLAIN).denoiser
    g = torch.Generator().manual_seed(0)
    noisy, obs = torch.randn(2, 3, 64, 64, generator=g), torch.rand(2, 12, 64, 64, generator=g) * 2 - 1
    act, c = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]]), placed.conditioners(torch.tensor([0.1, 4.0]))
    with torch.no_grad():
        expected = agent.denoiser.model_output(noisy, c, agent.denoiser.fold_past(obs), act)
        output = placed.model_output(noisy, c, placed.fold_past(obs), act)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)


def test_bfloat16_imagines_nearly_the_same(plain):
    world_model = build_world_model(tiny_agent(), CONFIG, device="cpu", dtype="bfloat16", backend="eager")
    assert world_model.denoiser.dtype == torch.bfloat16
    frames, logits = imagine(world_model, num_steps=1)
    plain_frames, plain_logits = imagine(plain, num_steps=1)
    assert logits.dtype == torch.float32
    assert psnr(frames, plain_frames) > 45
    assert (logits.softmax(-1) - plain_logits.softmax(-1)).abs().max() < 0.02


def test_lstm_stays_in_float32():
    agent = tiny_agent()
    build_world_model(agent, CONFIG, device="cpu", dtype="bfloat16", backend="eager")
    assert {p.dtype for p in agent.rew_end_model.lstm.parameters()} == {torch.float32}
    assert {p.dtype for p in agent.rew_end_model.encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in agent.actor_critic.parameters()} == {torch.float32}


def test_automatic_choices():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_dtype("auto", CPU) == (torch.bfloat16 if has_fast_bfloat16(CPU) else torch.float32)
    if torch.cuda.is_available():
        is_fast = torch.cuda.get_device_capability() >= (8, 0)
        assert pick_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if is_fast else torch.float32)


BFLOAT16_UNITS = ("amx_tile", "avx512_bf16")


@pytest.mark.parametrize("there", [*BFLOAT16_UNITS, "neither"])
def test_either_unit_of_a_cpu_makes_bfloat16_the_choice(monkeypatch, there):
    for unit in BFLOAT16_UNITS:
        is_there = unit == there
        monkeypatch.setattr(torch.cpu, f"_is_{unit}_supported", lambda is_there=is_there: is_there)
    assert pick_dtype("auto", CPU) == (torch.float32 if there == "neither" else torch.bfloat16)


def test_old_torch_without_the_questions_about_the_cpu(monkeypatch):
    for unit in BFLOAT16_UNITS:
        monkeypatch.delattr(torch.cpu, f"_is_{unit}_supported", raising=False)
    assert pick_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize("device", ["", "CUDA", "cpu:", "cuda:x", "cuda:-1", "a b", 3, None])
def test_malformed_devices(device):
    with pytest.raises(InvalidInputError, match="device"):
        pick_device(device)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "cpu:1"])
def test_unavailable_devices_list_those_there_are(device):
    with pytest.raises(DeviceError, match=f"{device}.*{', '.join(available_devices())}"):
        pick_device(device)


def test_int8_is_refused_with_the_reason():
    with pytest.raises(InvalidInputError, match=r"got 'int8'; in int8 worlds get worse: .* 45.6 instead of"):
        pick_dtype("int8", CPU)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "", None, torch.float16])
def test_dtypes_not_for_cpu(dtype):
    with pytest.raises(InvalidInputError, match="float32, bfloat16"):
        pick_dtype(dtype, CPU)


@pytest.mark.parametrize("backend", ["Eager", "yes", "", None, True, 1])
def test_wrong_backends_list_those_that_are_accepted(backend):
    with pytest.raises(
        InvalidInputError, match=f"auto, eager, inductor, openvino, cuda_graph, got {backend!r}"
    ):
        pick_backend(backend, CPU)


def test_nothing_is_changed_by_a_refused_choice():
    agent = tiny_agent()
    with pytest.raises(InvalidInputError):
        build_world_model(agent, CONFIG, dtype="bfloat16", device="cpu", backend="perhaps")
    assert agent.denoiser.dtype == torch.float32


def test_inductor_without_a_compiler_says_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match=r"no-such-compiler is not installed.* choose another"):
        pick_backend("inductor", CPU)
    assert pick_backend("inductor", torch.device("cuda")) == "inductor"  # generates no C++ there


def test_cuda_graphs_elsewhere_say_what_to_do():
    accepted = r"the device is cpu: pass device=.cuda. .*\(auto, eager, inductor, openvino\)"
    with pytest.raises(DeviceError, match=accepted):
        build_world_model(tiny_agent(), CONFIG, device="cpu", backend="cuda_graph")


@pytest.mark.parametrize(("device", "expected"), [("cpu", "eager"), ("cuda", "cuda_graph"), ("mps", "eager")])
def test_automatic_backends(device, expected):
    assert pick_backend("auto", torch.device(device)) == expected


def test_automatic_is_eager_on_a_cpu():
    world_model = build_world_model(tiny_agent(), CONFIG, device="cpu", backend="auto")
    assert backend_of(world_model, 1) == backend_of(world_model, 32) == "eager"


@pytest.mark.slow
def test_compiled_imagines_the_same_and_settles(plain, caplog, without_shape_checks):
    world_model = build_world_model(tiny_agent(), CONFIG, device="cpu", dtype="float32", backend="inductor")
    frames, _ = imagine(world_model)
    assert psnr(frames, imagine(plain)[0]) > 60
    assert "compiled InnerModel for batches of 2" in caplog.text
    with torch.compiler.set_stance("fail_on_recompile"):
        imagine(world_model)


def test_the_environment_can_say_what_automatic_is(monkeypatch):
    assert choose(device="cpu").backend == "eager" and not choose(device="cpu").tries_openvino
    monkeypatch.setenv("DIAMOND_GYM_BACKEND", "openvino")
    assert choose(device="cpu").backend == "openvino"
    assert choose(device="cpu", backend="eager").backend == "eager", "an argument says more"
    monkeypatch.setenv("DIAMOND_GYM_BACKEND", "fast")
    with pytest.raises(InvalidInputError, match=r"DIAMOND_GYM_BACKEND is one of auto, .*got 'fast'"):
        choose(device="cpu")
    monkeypatch.setenv("DIAMOND_GYM_BACKEND", "")
    assert choose(device="cpu").tries_openvino == (find_spec("openvino") is not None)

"""A few games in OpenVINO: the same games, the same argument everywhere, a clear error without it."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import pytest
import torch

pytest.importorskip("openvino")
import openvino

import diamond_gym  # noqa: F401  registers the games
from diamond_gym.backends import choose, waiting
from diamond_gym.backends import openvino as openvino_backend
from diamond_gym.backends.build import backend_of, build_world_model
from diamond_gym.backends.choose import has_fast_bfloat16, pick_backend
from diamond_gym.backends.openvino import OpenVinoForward
from diamond_gym.checkpoints import load_world
from diamond_gym.errors import DeviceError, MissingDependencyError
from diamond_gym.world.sampler import DiffusionSamplerConfig
from tests.worlds import PLAIN, starts, tiny_agent

CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)
OPENVINO = {"device": "cpu", "dtype": "float32", "backend": "openvino"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def talkative(monkeypatch):
    monkeypatch.setattr(waiting, "WORTH_A_MESSAGE_SECONDS", 0.0)


@pytest.fixture
def automatic(monkeypatch):
    """The choice of "auto" as users have it."""
    monkeypatch.delenv("DIAMOND_GYM_BACKEND")
    return {"device": "cpu", "dtype": "float32", "backend": "auto"}


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


def test_what_was_converted_from_other_code_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    outputs = []
    for factor in (2, 3):
        lines = [
            "import torch",
            "class Times(torch.nn.Module):",
            f" def forward(self, x): return {factor} * x",
        ]
        (tmp_path / "times_a_number.py").write_text("\n".join(lines))
        sys.modules.pop("times_a_number", None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        network = importlib.import_module("times_a_number").Times()
        outputs.append(float(OpenVinoForward(network, torch.float32)(torch.ones(1, 1))))
    assert outputs == [2, 3]


def test_the_expected_number_of_games_is_the_same_in_openvino():
    ours = build_world_model(tiny_agent(), CONFIG, num_games=3, **OPENVINO)
    plain = build_world_model(tiny_agent(), CONFIG, **PLAIN)
    (frames, logits), (plain_frames, plain_logits) = imagine(ours, 3), imagine(plain, 3)
    assert (frames - plain_frames).abs().max() <= 1
    torch.testing.assert_close(logits, plain_logits, rtol=1e-3, atol=1e-3)
    assert [backend_of(ours, num_games) for num_games in (1, 2, 3)] == ["openvino", "eager", "openvino"]


def test_large_batches_stay_in_pytorch():
    num_games = openvino_backend.MAX_BATCH + 1
    world_model = build_world_model(tiny_agent(), CONFIG, num_games=num_games, **OPENVINO)
    assert backend_of(world_model, num_games) == "eager"


def test_a_vector_environment_converts_once_and_replays(tiny_world):
    env = gymnasium.make_vec("DiamondBreakout-v0", num_envs=4, checkpoint=tiny_world, **OPENVINO)
    forwards = [
        env.unwrapped.world.world_model.denoiser.inner_model.forward,
        env.unwrapped.world.world_model.rew_end_model.encoder.forward,
    ]
    runs = []
    for _ in range(2):
        frames = [env.reset(seed=3)[0]]
        for i in range(6):
            frames.append(env.step([i % 4] * 4)[0])
        state = env.unwrapped.clone_state()
        after = env.step([1] * 4)[0]
        env.unwrapped.restore_state(state)
        assert (env.step([1] * 4)[0] == after).all(), "a restored state has the same future"
        runs.append([*frames, after])
    assert all((one == other).all() for one, other in zip(*runs, strict=True))
    for size in (1, 2, 3):  # fewer games begin anew, in batches of other sizes
        mask = torch.arange(4).numpy() < size
        env.reset(options={"reset_mask": mask})
        env.step([0] * 4)
    assert [len(forward._requests) for forward in forwards] == [1, 1]
    env.close()


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


def test_bfloat16_is_what_openvino_computes_in_where_the_processor_has_it():
    forward = OpenVinoForward(torch.nn.Conv2d(3, 4, kernel_size=3), torch.bfloat16)
    x = torch.randn(1, 3, 16, 16).bfloat16()
    with torch.no_grad():
        y = forward(x)
        torch.testing.assert_close(y, forward._network(x.float()), rtol=0.05, atol=0.05)
    (request,) = forward._requests.values()
    precision = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
    expected = openvino.Type.bf16 if has_fast_bfloat16(torch.device("cpu")) else openvino.Type.f32
    assert y.dtype == torch.float32 and precision == expected


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


def convolution(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Conv2d(3, 4, kernel_size=3)


@torch.no_grad()
def test_what_was_converted_is_kept(cache, caplog, talkative):
    x = torch.randn(1, 3, 16, 16)
    first = OpenVinoForward(convolution(), torch.float32)(x)
    caplog.clear()
    assert torch.equal(OpenVinoForward(convolution(), torch.float32)(x), first)
    assert "converted" not in caplog.text and len(list(cache.rglob("*.blob"))) == 1


@torch.no_grad()
@pytest.mark.parametrize(("seed", "precision", "size"), [(1, "f", 16), (0, "b", 16), (0, "f", 12)])
def test_other_weights_precisions_and_shapes_are_converted_anew(cache, seed, precision, size):
    OpenVinoForward(convolution(), torch.float32)(torch.randn(1, 3, 16, 16))
    network, x = convolution(seed), torch.randn(1, 3, size, size)
    y = OpenVinoForward(network, {"f": torch.float32, "b": torch.bfloat16}[precision])(x)
    torch.testing.assert_close(y, network(x), rtol=0.05, atol=0.05)
    assert len(list(cache.rglob("*.blob"))) == 2


@torch.no_grad()
@pytest.mark.parametrize("damage", [b"", b"no model", "cut", "changed"])
def test_a_damaged_file_is_converted_again(cache, caplog, damage):
    network, x = convolution(), torch.randn(1, 3, 16, 16)
    OpenVinoForward(network, torch.float32)(x)
    (file,) = cache.rglob("*.blob")
    whole = file.read_bytes()
    changed = {"cut": whole[: len(whole) // 2], "changed": whole[:-1] + bytes([whole[-1] ^ 1])}
    file.write_bytes(changed.get(damage, damage))
    torch.testing.assert_close(OpenVinoForward(network, torch.float32)(x), network(x))
    assert caplog.text.count("converting again") == 1 and str(file) in caplog.text
    caplog.clear()
    OpenVinoForward(network, torch.float32)(x)
    assert not caplog.text, "the damaged file was replaced"


@torch.no_grad()
def test_a_folder_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(tmp_path / "file"))
    network, x = convolution(), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(OpenVinoForward(network, torch.float32)(x), network(x))
    assert caplog.text.count("is not kept") == 1


@torch.no_grad()
def test_only_the_last_used_are_kept(cache, monkeypatch):
    monkeypatch.setattr(openvino_backend, "MAX_KEPT", 2)
    for size in (8, 9, 10):
        OpenVinoForward(convolution(), torch.float32)(torch.randn(1, 3, size, size))
    assert len(list(cache.rglob("*.blob"))) == 2


def test_auto_tries_openvino_for_one_game_once(automatic, cache, caplog):
    first, second = (build_world_model(tiny_agent(), CONFIG, **automatic) for _ in range(2))
    frames, logits = imagine(first, 1)
    assert caplog.text.count("trying OpenVINO") == 2, "for each of the two networks"
    answers = [json.loads(file.read_text()) for file in cache.rglob("*.json")]
    is_faster = {answer["what"]: answer["is_faster"] for answer in answers}
    assert backend_of(first, 1) == (
        "openvino" if is_faster["OpenVINO for InnerModel, batches of 1"] else "eager"
    )
    caplog.clear()
    for one, other in zip(imagine(second, 1), (frames, logits), strict=True):
        assert torch.equal(one, other), "the same choice, so the same game"
    assert "trying" not in caplog.text


def test_auto_tries_it_for_the_expected_number_of_games(automatic, cache, caplog, monkeypatch):
    monkeypatch.setattr(openvino_backend, "measured", lambda usual, other: (2.0, 1.0))
    monkeypatch.setattr(openvino_backend, "MAX_TRIAL_SECONDS", 100.0)  # on a busy machine
    results = []
    for _ in range(2):
        world_model = build_world_model(tiny_agent(), CONFIG, num_games=3, **automatic)
        results.append(imagine(world_model, 3))
        assert backend_of(world_model, 3) == "openvino"
        assert backend_of(world_model, 1) == "eager", "not tried yet"
    assert caplog.text.count("trying OpenVINO") == caplog.text.count("batches of 3") == 2
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_auto_does_not_try_it_for_other_batches(automatic, cache):
    world_model = build_world_model(tiny_agent(), CONFIG, **automatic)
    plain = build_world_model(tiny_agent(), CONFIG, **PLAIN)
    for one, other in zip(imagine(world_model, 2), imagine(plain, 2), strict=True):
        assert torch.equal(one, other)
    assert not cache.exists() and backend_of(world_model, 1) == "eager"


def test_a_conversion_that_takes_too_long_is_given_up(automatic, cache, caplog, monkeypatch):
    monkeypatch.setattr(openvino_backend, "MAX_TRIAL_SECONDS", 0.0)
    plain = imagine(build_world_model(tiny_agent(), CONFIG, **PLAIN), 1)
    for _ in range(2):
        ours = imagine(build_world_model(tiny_agent(), CONFIG, **automatic), 1)
        assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
    assert caplog.text.count("stays in PyTorch: converting it takes longer") == 2
    assert all(f"remove {file}" in caplog.text for file in cache.rglob("*.json"))


def test_a_forked_process_stays_in_pytorch(automatic, cache, monkeypatch):
    monkeypatch.setattr(openvino_backend, "_IMPORTING_PROCESS", -1)
    imagine(build_world_model(tiny_agent(), CONFIG, **automatic), 1)
    assert not cache.exists()


def test_auto_without_openvino_is_eager(automatic, monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    world_model = build_world_model(tiny_agent(), CONFIG, **automatic)
    assert not isinstance(world_model.denoiser.inner_model.forward, OpenVinoForward)

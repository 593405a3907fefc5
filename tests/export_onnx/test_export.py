from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from jaxtyping import config

from diamond_gym.checkpoints import World, load_world
from diamond_gym.export_onnx.__main__ import main
from diamond_gym.export_onnx.export import export_world
from diamond_gym.export_onnx.graphs import NextFrame, to_onnx
from diamond_gym.world import noise
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models import Agent, AgentConfig
from diamond_gym.world.pixels import to_float
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests import worlds
from tests.export_onnx import reference
from tests.paths import ROOT

CPU = ["CPUExecutionProvider"]
SEEDS = [0, 1, 2**32 + 5, 3**60]


def run(folder: Path, name: str, feeds: dict[str, torch.Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / name, providers=CPU)
    return session.run(None, {key: x.numpy() for key, x in feeds.items()})


@pytest.fixture(scope="module")
def folder(tiny_world: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world with two passes and churn, exported in float32."""
    config.update("jaxtyping_disable", True)  # PyTorch cannot trace through checks of shapes
    out = tmp_path_factory.mktemp("onnx") / "world"
    keys = ["num_denoising_steps=2", "s_churn=1", "dtype=float32"]
    assert main([f"checkpoint={tiny_world}", f"out={out}", *keys]) == 0
    return out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_contexts", [1, 2, 800, 3_000_000_000])
def test_a_seed_draws_the_context_and_key_of_numpy(seed, num_contexts):
    rng = np.random.default_rng(seed)
    expected = int(rng.integers(num_contexts)), int(rng.integers(2**63))
    assert reference.context_and_key(seed, num_contexts) == expected


@pytest.mark.parametrize(("key", "step", "draw"), [(0, 0, 0), (2**63 - 1, 2**40 + 3, 17), (3**39, 7, 1)])
def test_noise_without_pytorch_is_the_same(key, step, draw):
    here = torch.tensor([key]), torch.tensor([step])
    assert np.array_equal(reference.uniform(key, step, draw, 7), noise.uniform(*here, draw, (7,))[0].numpy())
    expected = noise.normal(*here, draw, (3, 64, 64))[0].numpy()
    np.testing.assert_allclose(
        reference.normal(key, step, draw, (3, 64, 64)), expected, rtol=2e-7, atol=1e-12
    )


def test_the_examples_of_the_page_are_right():
    page = (ROOT / "docs" / "onnx.md").read_text("utf-8")
    keys = []
    for seed in (0, 12345):
        context, key = reference.context_and_key(seed, 800)
        assert f"| seed {seed}, 800 contexts | context {context}, key `{key}` |" in page
        keys.append(key)
    for key, step, draw in ((0, 0, 0), (keys[1], 7, 1)):
        assert ", ".join(f"`{word}`" for word in reference.philox(key, step, draw, 1)[0]) in page
    for numbers in (reference.normal(keys[0], 0, 0, (4,)), reference.uniform(keys[0], 0, 1, 2)):
        assert ", ".join(f"`{number:.7g}`" for number in numbers) in page


def test_a_seed_is_the_same_game(folder, tiny_world):
    game = reference.Game(folder)
    env = gymnasium.make(
        "DiamondBreakout-v0", checkpoint=tiny_world, num_denoising_steps=2, s_churn=1, **worlds.PLAIN
    )
    num_ends = 0
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        assert np.array_equal(game.reset(seed), obs)
        for action in (2, 3, 0, 1, 2, 2):
            obs, rew, terminated, _, _ = env.step(action)
            frame, game_rew, game_end = game.step(action)
            # levels are rounded to their neighbours, as between any two backends
            assert np.abs(frame.astype(int) - obs).max() <= 2
            assert (game_rew, game_end) == (rew, terminated)
            num_ends += terminated
            if terminated:
                break
    env.close()
    assert num_ends > 0


def test_any_number_of_games(folder):
    about = json.loads((folder / "world.json").read_text("utf-8"))
    assert about["noise"]["frame"] == [0, 16, 17]
    rng = np.random.default_rng(0)
    feeds = {
        "obs": torch.from_numpy(rng.integers(0, 256, (3, 4, 64, 64, 3), np.uint8)),
        "act": torch.from_numpy(rng.integers(0, 4, (3, 4), np.int32)),
        "noise": torch.from_numpy(rng.standard_normal((3, 3, 3, 64, 64), np.float32)),
    }
    (together,) = run(folder, "denoiser.onnx", feeds)
    for i in range(3):
        (alone,) = run(folder, "denoiser.onnx", {name: x[i : i + 1] for name, x in feeds.items()})
        assert np.abs(alone[0].astype(int) - together[i]).max() <= 2


def test_the_description_says_what_the_files_hold(folder, tiny_world):
    about = json.loads((folder / "world.json").read_text("utf-8"))
    assert (about["format"], about["format_version"], about["game"]) == ("diamond_gym.onnx", 1, "Breakout")
    assert [action["name"] for action in about["actions"]] == worlds.ACTION_MEANINGS
    assert [action["keys"] for action in about["actions"]] == [[], [" "], ["d"], ["a"]]
    assert about["sampler"]["num_denoising_steps"] == 2 and about["idle"] == 0
    for name in ("denoiser", "rew_end_model"):
        session = onnxruntime.InferenceSession(
            folder / about[name]["file"], providers=["CPUExecutionProvider"]
        )
        for part, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert {value.name: value.shape for value in values} == {
                key: kind["shape"] for key, kind in about[name][part].items()
            }
    bank = load_world("Breakout", tiny_world, **worlds.PLAIN).contexts
    game = reference.Game(folder)
    assert np.array_equal(game.frames, bank.obs) and np.array_equal(game.acts, bank.act)


def test_files_name_no_paths(folder):
    for file in folder.glob("*.onnx"):
        assert b"site-packages" not in file.read_bytes() and b".py" not in file.read_bytes()
        onnx.checker.check_model(file, full_check=True)


@pytest.mark.slow
def test_float16_is_exact_where_weights_are(tmp_path, without_shape_checks):
    agent = worlds.tiny_agent()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.copy_(parameter.half().float())
    world = _world(agent)
    sizes = {
        dtype: export_world(world, tmp_path / dtype, dtype=dtype, opset=18)
        for dtype in ("float32", "float16")
    }
    assert sizes["float16"]["denoiser.onnx"] < 0.65 * sizes["float32"]["denoiser.onnx"]
    frames = []
    for dtype in sizes:
        game = reference.Game(tmp_path / dtype)
        game.reset(3)
        frames.append([game.step(action) for action in (2, 0, 3)])
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(*frames, strict=True))


def _world(agent: Agent, sampler: DiffusionSamplerConfig | None = None) -> World:
    model = WorldModel(agent.denoiser, agent.rew_end_model, sampler)
    return World(model, worlds.contexts(), "Breakout", worlds.ACTION_MEANINGS, agent, "a tiny world")


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2])
def test_heun_and_ddpm(order, tmp_path, without_shape_checks):
    agent = worlds.tiny_agent()
    if order == 1:
        agent.denoiser.config.objective = "ddpm"
    sampler = DiffusionSamplerConfig(num_steps_denoising=3, order=order)
    world = _world(agent, sampler)
    module = NextFrame(world.world_model)
    graph = module.graph(64, 64)
    assert module.draws == ([0, 16, 17] if order == 1 else [0])
    (tmp_path / "denoiser.onnx").write_bytes(to_onnx(graph, 18, "it").SerializeToString())
    obs, act = worlds.starts(2)
    feeds = {"obs": obs.permute(0, 1, 3, 4, 2).contiguous(), "act": act.int()}
    feeds["noise"] = torch.randn(2, len(module.draws), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (got,) = run(tmp_path, "denoiser.onnx", feeds)
    expected = world.world_model.sample_frame(
        obs, act, feeds["noise"][:, 0], lambda i: feeds["noise"][:, 1 + i]
    )[-1]
    expected = expected.detach().add(1).mul(127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(got - expected).max() <= 1 and (got != expected).mean() < 0.01


def test_the_actor_critic(folder, tiny_world):
    agent = load_world("Breakout", tiny_world, **worlds.PLAIN).agent
    assert agent.actor_critic is not None
    obs, _ = worlds.starts(3)
    hx, cx = (torch.randn(3, 16, generator=torch.Generator().manual_seed(i)) for i in range(2))
    frames = obs[:, 0].permute(0, 2, 3, 1).contiguous()
    logits, value, next_hx, _ = run(folder, "actor_critic.onnx", {"obs": frames, "hx": hx, "cx": cx})
    expected = agent.actor_critic.predict_act_value(to_float(obs[:, 0]), (hx, cx))
    for got, tensor in zip((logits, value, next_hx), (*expected[:2], expected[2][0]), strict=True):
        np.testing.assert_allclose(got, tensor.detach().numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("game", ["Breakout", "Pong"])
def test_embedded_worlds(game, dtype, tmp_path, without_shape_checks):
    assert main([f"game={game}", "checkpoint=embedded", f"out={tmp_path / 'world'}", f"dtype={dtype}"]) == 0
    size = sum(file.stat().st_size for file in (tmp_path / "world").iterdir())
    assert dtype != "float16" or size <= 4_000_000
    played = reference.Game(tmp_path / "world")
    env = gymnasium.make(f"Diamond{game}-v0", checkpoint="embedded", **worlds.PLAIN)
    for seed in (0, 1):
        obs, _ = env.reset(seed=seed)
        assert np.array_equal(played.reset(seed), obs)
        for action in np.random.default_rng(seed).integers(0, 4, 10).tolist():
            obs, rew, terminated, _, _ = env.step(action)
            frame, game_rew, game_end = played.step(action)
            # single levels are rounded to their neighbours, and more of them with every step: 60 dB
            assert np.square(frame.astype(float) - obs).mean() < 255**2 / 1e6
            assert (game_rew, game_end) == (rew, terminated)
            if terminated:
                break
    env.close()


@pytest.mark.slow
def test_paper_size(tmp_path, without_shape_checks):
    torch.manual_seed(0)
    agent = Agent(AgentConfig(num_actions=4)).eval()
    with torch.no_grad():
        for parameter in agent.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    world = _world(agent, DiffusionSamplerConfig())
    export_world(world, tmp_path / "world", dtype="float32", opset=18)
    game = reference.Game(tmp_path / "world")
    game.reset(0)
    index, key = reference.context_and_key(0, len(game.frames))
    bank = world.contexts
    obs = torch.from_numpy(bank.obs[[index]]).permute(0, 1, 4, 2, 3).contiguous()
    state = world.world_model.start(obs, torch.from_numpy(bank.act[[index]]), torch.tensor([key]))
    for action in (2, 3):
        frame, rew, end = game.step(action)
        state, step = world.world_model.step(state, torch.tensor([action]))
        expected = step.obs[0].permute(1, 2, 0).numpy()
        assert np.abs(frame.astype(int) - expected).max() <= 2 and (frame != expected).mean() < 5e-3
        assert (rew, end) == (step.rew.item(), step.end.item())
        np.testing.assert_allclose(game.hx, state.hx.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dtype=float8"], "dtype must be one of float32, float16"),
        (["dtype=int8"], "45.6 instead of 47.3 dB"),
        (["opset=11"], "opset must be in 18..23, got 11"),
        (["opset=99"], "opset must be in 18..23, got 99"),
        (["checkpoint=auto"], "needs a game"),
        (["num_denoising_steps=0"], "num_denoising_steps must be at least 1"),
        (["order=3"], "order must be 1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tiny_world, tmp_path, capsys):
    given = [f"checkpoint={tiny_world}", f"out={tmp_path / 'out'}"]
    keys = {argument.partition("=")[0] for argument in arguments}
    given = [x for x in given if x.partition("=")[0] not in keys]
    assert main([*given, *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept(tiny_world, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("kept")
    assert main([f"checkpoint={tiny_world}", f"out={tmp_path}"]) == 1
    assert "choose a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


class Unknown(torch.nn.Module):
    """A layer that ONNX has no operator for."""

    def forward(self, x: torch.Tensor, *args: object) -> torch.Tensor:
        return x * torch.linalg.eigvalsh(x[:, :1] @ x[:, :1].transpose(-1, -2))[..., None]


@pytest.mark.slow
def test_an_operator_that_onnx_lacks(tmp_path, without_shape_checks):
    agent = worlds.tiny_agent()
    agent.denoiser.inner_model.conv_in = torch.nn.Sequential(agent.denoiser.inner_model.conv_in, Unknown())
    agent.denoiser.inner_model.conv_in.weight = agent.denoiser.inner_model.conv_in[0].weight
    with pytest.raises(Exception, match="cannot be written as ONNX with opset=18") as caught:
        export_world(_world(agent), tmp_path / "out", dtype="float32", opset=18)
    assert type(caught.value).__name__ == "CheckpointError" and "eigh" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_actions_are_refused_and_frames_need_not_be_square(tmp_path, capsys):
    config.update("jaxtyping_disable", True)  # PyTorch cannot trace through checks of shapes
    box = worlds.save_tiny_world_of(tmp_path / "box", ActionSpace.parse("box(-1.0..1.0)"))
    assert main([f"checkpoint={box}", f"out={tmp_path / 'refused'}"]) == 2
    assert "only worlds of discrete ones are exported" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    wide = worlds.save_tiny_world_of(tmp_path / "wide", ActionSpace.discrete(3), frame_shape=(1, 40, 60))
    assert main([f"checkpoint={wide}", f"out={tmp_path / 'onnx'}"]) == 0
    described = json.loads((tmp_path / "onnx" / "world.json").read_text())
    assert described["frame"] == {"height": 40, "width": 60, "channels": 1}

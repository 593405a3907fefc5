"""On a CUDA device: imagination, graphs, seeds, training and Stable-Baselines3 as on the CPU."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diamond_gym.backends.build import build_world_model
from diamond_gym.backends.cuda_graphs import GraphedWorldModel, Graphs
from diamond_gym.checkpoints import load_world
from diamond_gym.errors import InvalidInputError
from diamond_gym.world.models import fused_norm
from diamond_gym.world.models.blocks import num_groups
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests import worlds
from tests.worlds import tiny_agent

pytestmark = pytest.mark.gpu

BREAKOUT = "DiamondBreakout-v0"
CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)
CUDA = {"device": "cuda", "dtype": "float32"}


@pytest.fixture
def full_float32() -> Iterator[None]:
    """Turn TF32 off, so that numbers can be compared with the CPU's."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def starts(num_games):
    """Frames, actions and keys of games."""
    return *worlds.starts(num_games), torch.arange(num_games)


def pair(seed=0):
    """Two world models on the same networks, with and without graphs."""
    agent = tiny_agent(seed=seed)
    graphed = build_world_model(agent, CONFIG, **CUDA)
    return graphed, WorldModel(graphed.denoiser, graphed.rew_end_model, CONFIG)


def assert_same_step(ours, theirs):
    (state, step), (expected_state, expected) = ours, theirs
    for x, y in zip(step.trajectory, expected.trajectory, strict=True):
        assert (x - y).abs().mean() < 1e-3
    torch.testing.assert_close(step.logits_rew, expected.logits_rew, atol=1e-2, rtol=0)
    torch.testing.assert_close(state.hx, expected_state.hx, atol=1e-2, rtol=0)
    for name in ("act", "key", "time"):
        assert torch.equal(getattr(state, name), getattr(expected_state, name))


def psnr(a, b):
    mse = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()
    return 10 * np.log10(255**2 / max(mse, 1e-10))


def play(envs, num_steps, seed=0):
    """Frames, rewards and ends under fixed actions."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_steps):
        *step, _ = envs.step(rng.integers(4, size=envs.num_envs))
        found.append([x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in step])
    return [np.stack(column) for column in zip(*found, strict=True)]


def make_vec(num_envs, **kwargs) -> Any:
    return gymnasium.make_vec(BREAKOUT, num_envs, device="cuda", **kwargs)


def test_graphs_are_the_default_and_false_is_plain():
    assert type(build_world_model(tiny_agent(), CONFIG, device="cuda")) is GraphedWorldModel
    assert type(build_world_model(tiny_agent(), CONFIG, device="cuda", backend="eager")) is WorldModel


def test_single_game():
    env = gymnasium.make(BREAKOUT, device="cuda")
    obs, _ = env.reset(seed=0)
    for action in range(8):
        obs, reward, terminated, truncated, _ = env.step(action % 4)
        assert env.observation_space.contains(obs) and isinstance(reward, float)
        assert isinstance(terminated, bool) and not truncated
        if terminated:
            env.reset()
    env.close()


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_many_games_beyond_the_horizon(mode, output):
    envs = make_vec(32, output=output, autoreset_mode=mode, max_episode_steps=12)
    envs.reset(seed=0)
    for _ in range(29):
        envs.step(np.ones(32, np.int64))
    obs, rewards, terminated, truncated, _ = envs.step(np.ones(32, np.int64))
    if output == "torch":
        assert all(x.device.type == "cuda" for x in (obs, rewards, terminated, truncated))
    else:
        assert all(isinstance(x, np.ndarray) for x in (obs, rewards, terminated, truncated))
        assert rewards.dtype == np.float64 and obs.flags.c_contiguous and obs.flags.writeable
    assert obs.shape == (32, 64, 64, 3) and terminated.shape == truncated.shape == (32,)
    envs.close()


def test_numpy_and_torch_output_agree():
    envs = [make_vec(8, output=output) for output in ("numpy", "torch")]
    results = []
    for env in envs:
        env.reset(seed=3)
        results.append(play(env, 10))
        env.close()
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)


def test_network_output_is_the_cpus(full_float32):
    both = [load_world("Breakout", device=d, dtype="float32", backend="eager") for d in ("cpu", "cuda")]
    n = both[0].world_model.num_steps_conditioning
    g = torch.Generator().manual_seed(0)
    noisy, obs = torch.randn(4, 3, 64, 64, generator=g), torch.rand(4, 3 * n, 64, 64, generator=g) * 2 - 1
    act = torch.randint(4, (4, n), generator=g)
    outputs = []
    for world in both:
        denoiser, place = world.world_model.denoiser, world.world_model.device
        c = denoiser.conditioners(torch.tensor([0.01, 0.1, 1.0, 5.0], device=place))
        with torch.no_grad():
            past = denoiser.fold_past(obs.to(place))
            outputs.append(denoiser.model_output(noisy.to(place), c, past, act.to(place)).cpu())
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)


def test_imagines_what_the_cpu_imagines(full_float32):
    frames, rewards = [], []
    for device in ("cpu", "cuda"):
        envs = gymnasium.make_vec(BREAKOUT, 4, device=device, dtype="float32")
        envs.reset(seed=0)
        obs, rew, *_ = play(envs, 5)
        frames.append(obs)
        rewards.append(rew)
        envs.close()
    assert psnr(*frames) > 45  # some pixels differ by a level, where rounding crosses a boundary
    np.testing.assert_array_equal(*rewards)


def test_bfloat16_imagines_nearly_the_same():
    frames = []
    for dtype in ("float32", "bfloat16"):
        envs = make_vec(16, dtype=dtype)
        envs.reset(seed=0)
        frames.append(play(envs, 1)[0])
        envs.close()
    assert psnr(*frames) > 45


def test_graphed_steps_are_eager_steps():
    graphed, eager = pair()
    for num_games in (1, 3, 5, 3):
        state = eager.start(*starts(num_games))
        for i in range(3):
            act = torch.full((num_games,), i, device="cuda")
            step = eager.step(state, act)
            assert_same_step(graphed.step(state, act), step)
            state = step[0]


def test_what_a_step_returned_stays():
    graphed, _ = pair()
    state = graphed.start(*starts(2))
    act = torch.zeros(2, dtype=torch.int64, device="cuda")
    first, step = graphed.step(state, act)
    kept = [x.clone() for x in (*first.tensors(), step.obs, *step.trajectory)]
    graphed.step(first, act + 1)
    for x, y in zip((*first.tensors(), step.obs, *step.trajectory), kept, strict=True):
        assert torch.equal(x, y)


def test_burn_in_of_any_number_of_games():
    graphed, eager = pair()
    for num_games in (1, 3, 5):
        state, expected = (world.start(*starts(num_games)) for world in (graphed, eager))
        torch.testing.assert_close(state.hx, expected.hx, atol=1e-3, rtol=0)
        torch.testing.assert_close(state.cx, expected.cx, atol=1e-3, rtol=0)


def test_games_that_start_with_padding():
    graphed, eager = pair()
    padding = torch.tensor([0, 1, 3], device="cuda")
    states = [world.start(*starts(3), padding) for world in (graphed, eager)]
    torch.testing.assert_close(states[0].hx, states[1].hx, atol=1e-3, rtol=0)
    act = torch.zeros(3, dtype=torch.int64, device="cuda")
    assert_same_step(graphed.step(states[1], act), eager.step(states[1], act))


def test_inputs_in_any_layout():
    graphed, eager = pair()
    state = eager.start(*starts(3))
    act = torch.zeros(3, dtype=torch.int64, device="cuda")
    by_pixel = state.obs.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    every_second = torch.zeros(6, dtype=torch.int64, device="cuda")[::2]
    for given in (state, replace(state, obs=by_pixel)):
        for taken in (act, every_second):
            assert_same_step(graphed.step(given, taken), eager.step(state, act))


def test_weights_loaded_in_place_are_used():
    graphed, eager = pair()
    state = eager.start(*starts(2))
    act = torch.ones(2, dtype=torch.int64, device="cuda")
    before = graphed.step(state, act)[1]
    other = tiny_agent(seed=1)
    graphed.denoiser.load_state_dict(other.denoiser.state_dict())
    graphed.rew_end_model.load_state_dict(other.rew_end_model.state_dict())
    after = graphed.step(state, act)
    assert not torch.equal(after[1].obs, before.obs)
    assert_same_step(after, eager.step(state, act))


def test_moved_weights_are_used():
    graphed, eager = pair()
    state = eager.start(*starts(2))
    act = torch.ones(2, dtype=torch.int64, device="cuda")
    graphed.step(state, act)
    graphed.denoiser.to(torch.bfloat16)
    assert_same_step(graphed.step(state, act), eager.step(state, act))


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_in_every_mode_of_autograd(first):
    graphed, eager = pair()
    state = eager.start(*starts(2))
    act = torch.ones(2, dtype=torch.int64, device="cuda")
    for mode in (first, torch.inference_mode, torch.enable_grad):
        with mode():
            ours = graphed.step(state, act)
            assert not any(x.requires_grad for x in ours[0].tensors())
        assert_same_step(ours, eager.step(state, act))


def test_autocast_is_honoured():
    graphed, eager = pair()
    state = eager.start(*starts(2))
    act = torch.ones(2, dtype=torch.int64, device="cuda")
    graphed.step(state, act)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        ours, theirs = graphed.step(state, act)[1], eager.step(state, act)[1]
    torch.testing.assert_close(ours.logits_rew.float(), theirs.logits_rew.float(), atol=1e-2, rtol=0)
    with torch.no_grad():  # casts must not be kept from the recording
        for p in graphed.rew_end_model.encoder.parameters():
            p.mul_(1.5)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        ours, theirs = graphed.step(state, act)[1], eager.step(state, act)[1]
    torch.testing.assert_close(ours.logits_rew.float(), theirs.logits_rew.float(), atol=1e-2, rtol=0)


def test_too_many_shapes_go_on_without_graphs():
    graphs = Graphs(torch.device("cuda", torch.cuda.current_device()), max_graphs=1)

    def double(x):
        return (2 * x,)

    for size in (3, 4, 3, 5):
        x = torch.arange(size, device="cuda")
        assert torch.equal(graphs.run(double, x)[0], 2 * x)
    assert len(graphs) == 1


def test_other_sampling_on_the_same_networks():
    world = load_world("Breakout", device="cuda")
    other = world.resampled(num_denoising_steps=1).world_model
    assert isinstance(other, GraphedWorldModel) and other.denoiser is world.world_model.denoiser


@pytest.mark.slow
def test_compiled_and_graphed(without_shape_checks):
    agent = tiny_agent()
    eager = build_world_model(copy.deepcopy(agent), CONFIG, **CUDA, backend="eager")
    compiled = build_world_model(agent, CONFIG, **CUDA, backend="inductor")
    for num_games in (2, 3):
        state = eager.start(*starts(num_games))
        act = torch.ones(num_games, dtype=torch.int64, device="cuda")
        assert_same_step(compiled.step(state, act), eager.step(state, act))


def test_seeds_fix_everything():
    results = []
    for _ in range(2):
        envs = make_vec(8, max_episode_steps=6)
        envs.reset(seed=5)
        results.append(play(envs, 15))
        envs.close()
    for x, y in zip(*results, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_restored_moment_has_the_same_future():
    envs = make_vec(4)
    envs.reset(seed=0)
    play(envs, 3)
    moment = envs.clone_state()
    futures = []
    for _ in range(2):
        envs.restore_state(moment)
        futures.append(play(envs, 5))
    for x, y in zip(*futures, strict=True):
        np.testing.assert_array_equal(x, y)
    envs.close()


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_some_games_are_reset(output):
    envs = make_vec(6, autoreset_mode="DISABLED", max_episode_steps=4, output=output)
    before, _ = envs.reset(seed=0)
    mask = np.array([True, False, True, True, False, False])
    after, infos = envs.reset(options={"reset_mask": mask})
    is_same = (before == after).reshape(6, -1).all(1)
    assert np.array_equal(infos["_context"], mask)
    assert all(is_same[i] for i in np.flatnonzero(~mask))
    envs.step(np.zeros(6, np.int64))
    envs.close()


def test_bad_actions_on_the_gpu_are_refused():
    envs = make_vec(2, output="torch")
    envs.reset(seed=0)
    with pytest.raises(InvalidInputError):
        envs.step(torch.tensor([0, 9], device="cuda"))
    envs.step(torch.tensor([0, 1], device="cuda"))
    envs.close()


def test_memory_is_flat():
    envs = make_vec(16, output="torch", max_episode_steps=5)
    envs.reset(seed=0)
    for num_games in (1, 2, 4, 8):  # the graphs of starts are recorded first
        envs.reset(options={"reset_mask": np.arange(16) < num_games})
    play(envs, 20)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    play(envs, 200)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 2**20
    envs.close()


def test_a_closed_world_leaves_no_memory():
    def imagine():
        envs = make_vec(64)
        envs.reset(seed=0)
        play(envs, 2)
        envs.close()

    imagine()
    gc.collect()
    before = torch.cuda.memory_allocated()
    imagine()
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 2**20


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_part_trains_and_is_played(optimizer, tmp_path):
    pytest.importorskip("hydra")
    from tests.recordings import save_dataset
    from tests.trainers.diamond.test_trainer import arguments
    from trainers.diamond.config import parse
    from trainers.diamond.run import train

    for name, size in (("train", 6), ("test", 2)):
        save_dataset(tmp_path / "recordings" / name, size)
    more = ["common.device=cuda", "training.num_epochs=2", f"denoiser.optimizer.name={optimizer}"]
    config = parse(arguments(tmp_path / "recordings", *more))
    run = train(config, outputs=tmp_path / "runs", command="train", progress=False)
    world = load_world(None, run, device="cuda")
    obs, acts, keys = starts(2)  # its game has more actions
    state = world.world_model.start(obs, torch.zeros_like(acts), keys)
    act = torch.zeros(2, dtype=torch.int64, device="cuda")
    assert torch.isfinite(world.world_model.step(state, act)[1].logits_rew).all()


def test_training_steps_as_graphs_are_the_plain_ones(full_float32, tmp_path):
    pytest.importorskip("hydra")
    from tests.recordings import save_dataset
    from tests.trainers.diamond.test_trainer import arguments
    from trainers.diamond.config import parse
    from trainers.diamond.run import train

    save_dataset(tmp_path / "recordings" / "train", 6)
    parts = "training.parts=[denoiser,rew_end_model]"
    more = ["common.device=cuda", parts, "training.num_epochs=2", "training.tf32=false"]
    epochs = []
    for backend in ("cuda_graph", "eager"):
        config = parse(arguments(tmp_path / "recordings", *more, f"training.backend={backend}"))
        run = train(config, outputs=tmp_path / backend, command="train", progress=False)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        names = ("denoiser/loss", "denoiser/grad_norm", "rew_end_model/loss", "rew_end_model/grad_norm")
        epochs.append([[json.loads(line)[name] for name in names] for line in lines])
    np.testing.assert_allclose(*epochs, rtol=1e-3)


def test_graphed_losses_of_other_shapes_and_of_weights_that_have_moved():
    from trainers.diamond.learner import GraphedLoss

    network, graphed = torch.nn.Linear(4, 2, device="cuda"), GraphedLoss()

    def loss(x):
        return network(x).square().mean(), x.sum()

    for size in (3, 5, 3):
        for _ in range(2):
            x = torch.randn(size, 4, device="cuda")
            ours, total = graphed(network, loss, x)
            (gradient,) = torch.autograd.grad(ours, network.weight)
            (expected,) = torch.autograd.grad(loss(x)[0], network.weight)
            torch.testing.assert_close(gradient, expected)
            torch.testing.assert_close(total, x.sum())
        network.weight.data = 2 * network.weight.data
    with torch.no_grad():
        assert not graphed(network, loss, torch.ones(3, 4, device="cuda"))[0].requires_grad


def test_stable_baselines3_learns():
    sb3 = pytest.importorskip("stable_baselines3")
    from diamond_gym.adapters.sb3 import ContextFrameStack, make_sb3_vec_env

    env = ContextFrameStack(make_sb3_vec_env(BREAKOUT, 8, seed=0, max_episode_steps=5, device="cuda"), 4)
    agent = sb3.PPO("CnnPolicy", env, n_steps=8, batch_size=32, n_epochs=1, device="cuda")
    agent.learn(128)
    env.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 64, 64, 64), (3, 128, 9, 17), (1, 16, 4, 4), (2, 48, 32, 32), (5, 32, 1, 1)]
)
def test_fused_norms(shape, dtype):
    pytest.importorskip("triton")
    assert fused_norm.is_available(torch.device("cuda", torch.cuda.current_device()))
    b, c = shape[:2]
    groups = num_groups(c)
    x = (3 * torch.randn(shape, device="cuda") + 5).to(dtype)
    modulation = torch.randn(b, 2 * c + 10, device="cuda").to(dtype)
    for scale in (modulation[:, :c], modulation[0, :c].expand(b, -1)):
        shift = modulation[:, c + 5 : 2 * c + 5]
        y = fused_norm.norm_scale_shift_silu(x, groups, scale, shift, 1e-5)
        a, d = (v.double()[:, :, None, None] for v in (scale, shift))
        expected = F.silu(F.group_norm(x.double(), groups, eps=1e-5) * a + d)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)

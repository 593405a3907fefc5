"""A denoiser with several outcomes: its noise chooses one as often as it is likely, on every backend."""

import gymnasium
import numpy as np
import pytest
import torch

from diamond_gym.backends.build import build_world_model
from diamond_gym.checkpoints import save_world
from diamond_gym.export_onnx.__main__ import main
from diamond_gym.world.models.outcomes import choose, uniform_of
from diamond_gym.world.sampler import DiffusionSamplerConfig
from tests import worlds
from tests.export_onnx import reference

ONE_PASS = DiffusionSamplerConfig(num_steps_denoising=1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (12, 7, 5)])
def test_noise_is_a_uniform_number(shape):
    u = uniform_of(normal(4_000, *shape)).sort().values
    assert u.min() >= 0 and u.max() < 1
    distance = (u - torch.linspace(0, 1, 4_000)).abs().max()
    assert distance < 0.03, "by the test of Kolmogorov and Smirnov, beyond 1 in 1 000"


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), -1.0)])
def test_a_frame_without_noise_chooses_too(image):
    assert uniform_of(image) == 0.5


def test_an_outcome_comes_as_often_as_its_logits_say():
    shares = torch.tensor([0.1, 0.6, 0.0, 0.3])
    chosen = choose(shares.log().expand(4_000, 4), normal(4_000, 3, 16, 16))
    counts = chosen.bincount(minlength=4) / 4_000
    assert (counts - shares).abs().max() < 0.03 and counts[2] == 0


def test_a_game_is_the_same_alone_and_in_a_batch_and_outcomes_differ():
    agent = worlds.tiny_agent(num_outcomes=3)
    world_model = build_world_model(agent, ONE_PASS, **worlds.PLAIN)
    obs, act = worlds.starts(4)
    keys = torch.arange(4)
    together = world_model.step(world_model.start(obs, act, keys), act[:, -1])[1].obs
    for i in range(4):
        one = slice(i, i + 1)
        alone = world_model.step(world_model.start(obs[one], act[one], keys[one]), act[one, -1])[1].obs
        assert (alone.int() - together[one].int()).abs().max() <= 1
    denoiser = agent.denoiser
    past, noise = denoiser.fold_frames(obs), normal(4, 3, 64, 64)
    with torch.no_grad():
        c = denoiser.conditioners(torch.tensor([5.0]))
        features = denoiser.encode(noise, c, past, act)
        frames = [denoiser.inner_model.decode(features, torch.full((4,), k)) for k in range(3)]
        chosen = choose(features.logits, denoiser.inner_model.fold(noise))
        expected = torch.stack([frames[k][i] for i, k in enumerate(chosen.tolist())])
        torch.testing.assert_close(denoiser.model_output(noise, c, past, act), expected)
    assert (frames[0] - frames[1]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcomes")
    save_world(
        folder,
        worlds.tiny_agent(num_outcomes=3),
        game=worlds.GAME,
        action_meanings=worlds.ACTION_MEANINGS,
        sampler=ONE_PASS,
        contexts=worlds.contexts(),
    )
    return folder


@pytest.mark.parametrize("backend", ["openvino", pytest.param("inductor", marks=pytest.mark.slow)])
def test_backends_choose_the_same_outcome(saved, backend, without_shape_checks):
    frames = []
    for name in ("eager", backend):
        env = gymnasium.make("DiamondBreakout-v0", checkpoint=saved, **worlds.PLAIN | {"backend": name})
        seen = []
        for seed in range(12):  # one step each: after a rounded level another outcome may be chosen
            env.reset(seed=seed)
            seen.append(env.step(seed % 4)[0].astype(int))
        frames.append(np.stack(seen))
        env.close()
    assert np.abs(frames[0] - frames[1]).max() <= 2


def test_onnx_chooses_the_same_outcome(saved, tmp_path, without_shape_checks):
    assert main([f"checkpoint={saved}", f"out={tmp_path / 'onnx'}", "dtype=float32"]) == 0
    game = reference.Game(tmp_path / "onnx")
    env = gymnasium.make("DiamondBreakout-v0", checkpoint=saved, **worlds.PLAIN)
    for seed in range(12):
        assert np.array_equal(game.reset(seed), env.reset(seed=seed)[0])
        assert np.abs(game.step(seed % 4)[0].astype(int) - env.step(seed % 4)[0]).max() <= 2
    env.close()

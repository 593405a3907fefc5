"""The reward/end model learns from imagined frames with real labels, as long as both games agree."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diamond_gym.errors import InvalidInputError
from diamond_gym.world.models import Denoiser
from diamond_gym.world.world_model import WorldModel
from tests import worlds
from tests.recordings import episode
from trainers.diamond import rollout as imagined_segments
from trainers.diamond.config import parse
from trainers.diamond.learner import Draw, RewEndObjective, autocast_of
from trainers.diamond.replay import Replay
from trainers.diamond.rollout import agreement, with_imagined_frames
from trainers.diamond.run import describe

CPU = torch.device("cpu")
N = worlds.NUM_STEPS_CONDITIONING
LENGTH = 8


@pytest.fixture
def world_model():
    agent = worlds.tiny_agent()
    return WorldModel(agent.denoiser, agent.rew_end_model)


@pytest.fixture
def brightening(world_model, monkeypatch):
    """A correct world model, whose next frame of `recordings.episode` is one level brighter."""

    def denoise(self, noisy, conditioners, past, act):
        last = past[:, -3:] if past.shape[1] >= 3 * N else past
        return (last + 2 / 255).clamp(-1, 1)

    monkeypatch.setattr(Denoiser, "fold_frames", lambda self, obs: obs.flatten(1, 2).div(255).mul(2).sub(1))
    monkeypatch.setattr(Denoiser, "denoise", denoise)
    return world_model


def segments(starts, length=LENGTH):
    replay = Replay([episode(20, number=i) for i in range(len(starts))])
    return replay.segments(np.arange(len(starts)), np.array(starts), length)


def levels(batch):
    return batch.obs[:, :, 0, 0, 0].tolist()


def drawn_first(seed):
    return int(np.random.default_rng(seed).integers(N, LENGTH))


def early():
    """Draw the first possible step."""
    return np.random.default_rng(next(seed for seed in range(100) if drawn_first(seed) == N))


@pytest.mark.parametrize("seed", range(4))
def test_only_later_frames_of_the_share_change(world_model, seed):
    batch = segments([3, 5, 7, 2])
    changed = with_imagined_frames(batch, world_model, 0.5, np.random.default_rng(seed))
    first = drawn_first(seed)
    assert torch.equal(changed.obs[:2, :first], batch.obs[:2, :first])
    assert (changed.obs[:2, first:] != batch.obs[:2, first:]).flatten(2).any(dim=2).all()
    assert torch.equal(changed.obs[2:], batch.obs[2:])
    for name in ("act", "rew", "end", "trunc", "start", "episode", "has_final"):
        assert torch.equal(getattr(changed, name), getattr(batch, name)), name


def test_without_a_share_nothing_changes(world_model):
    batch = segments([3, 5])
    assert with_imagined_frames(batch, world_model, 0.0, np.random.default_rng(0)) is batch


def test_what_is_unlike_the_real_game_is_masked(world_model):
    batch = segments([3, 5])
    changed = with_imagined_frames(batch, world_model, 1.0, np.random.default_rng(0))
    first = drawn_first(0)
    assert not changed.mask_padding[:, first - 1 :].any(), "random weights imagine something else"
    assert changed.mask_padding[:, : first - 1].all()


@pytest.mark.parametrize("seed", range(4))
def test_a_world_that_is_right_gives_the_real_segments(brightening, seed):
    batch = segments([3, 14, -2])  # the second runs past its episode's end, the third begins before its start
    changed = with_imagined_frames(batch, brightening, 1.0, np.random.default_rng(seed))
    inside = batch.mask_padding
    assert torch.equal(changed.obs[inside], batch.obs[inside])
    assert torch.equal(changed.mask_padding[:, :-1], inside[:, :-1])
    assert torch.equal(changed.final_obs[1], batch.final_obs[1])


def test_a_segment_is_real_up_to_where_the_games_part(brightening, monkeypatch):
    monkeypatch.setattr(imagined_segments, "AGREEMENT_TOLERANCE", 1e-4)
    batch = segments([0])
    batch.obs[:, -2:] = 200  # the last step cannot be predicted
    changed = with_imagined_frames(batch, brightening, 1.0, early())
    assert changed.mask_padding[0].tolist() == [True] * (LENGTH - 3) + [False] * 3
    assert levels(changed)[0] == list(range(LENGTH))


def test_an_end_counts_whatever_the_frame_after_it_shows(brightening):
    batch = segments([14])
    batch.final_obs[:] = 200
    changed = with_imagined_frames(batch, brightening, 1.0, early())
    assert changed.end.sum() == 1 and changed.mask_padding[changed.end].all()
    assert changed.final_obs[0, 0, 0, 0] == 20, "what the world imagines"


def test_a_missing_ball_is_no_agreement_and_a_shifted_one_is():
    real = torch.zeros(1, 3, 3, 64, 64, dtype=torch.uint8)
    real[:, :, :, 30, 30:32] = 100  # as large as Breakout's
    shifted, missing = real.roll(1, dims=-1), torch.zeros_like(real[:, 0])
    imagined = torch.stack([real[:, 0], shifted[:, 1], missing], dim=1)
    assert agreement(real, imagined).tolist() == [[True, True, False]]


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_the_model_learns_from_them_and_the_denoiser_does_not(world_model, monkeypatch, precision):
    config = parse(["preset=smoke", "game=Breakout"]).rew_end_model
    config.training = replace(config.training, imagined_fraction=0.5, seq_length=LENGTH)
    monkeypatch.setattr(imagined_segments, "AGREEMENT_TOLERANCE", 9.0)
    objective = RewEndObjective(
        world_model, config, Draw(config.training, False, CPU), autocast_of(precision, CPU)
    )
    replay = Replay([episode(20, number=i) for i in range(3)])
    example = objective.example(replay, np.random.default_rng(0), 0)
    real = replace(objective, config=replace(config, training=replace(config.training, imagined_fraction=0)))
    plain = real.example(replay, np.random.default_rng(0), 0)
    assert example.loss != plain.loss and torch.isfinite(example.loss)
    assert torch.equal(plain.batch["act"], example.batch["act"])
    example.loss.backward()
    assert all(p.grad is not None for p in world_model.rew_end_model.parameters())
    assert all(p.grad is None for p in world_model.denoiser.parameters())


def test_segments_must_be_longer_than_the_past():
    arguments = ["preset=smoke", "game=Breakout", "rew_end_model.training.imagined_fraction=0.5"]
    config = parse([*arguments, f"rew_end_model.training.seq_length={N}"])
    with pytest.raises(InvalidInputError, match=f"longer than the {N} frames.*seq_length is {N}"):
        describe(config, "")


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_a_share_is_a_share(value):
    with pytest.raises(InvalidInputError, match="imagined_fraction must be in"):
        parse(["preset=smoke", "game=Breakout", f"rew_end_model.training.imagined_fraction={value}"])

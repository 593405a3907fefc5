"""Crops are placed around motion and large errors, and are aligned with the network's grid."""

import dataclasses

import numpy as np
import pytest
import torch

from diamond_gym.errors import InvalidInputError
from tests import worlds
from tests.recordings import episode
from trainers.diamond.config import DenoiserTrainingConfig, parse
from trainers.diamond.learner import DenoiserObjective, Draw, autocast_of
from trainers.diamond.replay import MOTION_CELL, Crop, Hard, Replay, cut, is_moving, moving_places
from trainers.diamond.run import prepare

CPU = torch.device("cpu")
CROP = Crop(32, 8)


def moving_dot(length=40, size=64):
    """Make frames with a bright dot in another row at each step, and a large blinking square far from it."""
    dots = episode(length, size=size)
    dots.obs[:] = 90
    for t in range(length):
        dots.obs[t, :, 8 + t, 12] = 255
    dots.obs[::2, :, 40:60, 44:60] = 200
    return dots


def test_what_moves_is_found_and_every_part_of_it_as_often_as_another():
    frames = moving_dot().obs.numpy()
    moves = is_moving(frames[19:20], frames[20:21])[0]
    rows, columns = np.nonzero(moves)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) >= {(27 // 4, 3), (28 // 4, 3), (10, 11)}
    places = moving_places(np.random.default_rng(0), moves[None].repeat(4000, 0)) // MOTION_CELL
    counts = np.zeros_like(moves, int)
    np.add.at(counts, tuple(places.T), 1)
    assert not counts[~moves].any()
    assert counts[moves].min() > 0.6 * 4000 / moves.sum() and counts[moves].max() < 1.5 * 4000 / moves.sum()


def test_where_nothing_moves_any_place_is_drawn():
    still = np.zeros((2000, 3, 16, 16), np.uint8)
    places = moving_places(np.random.default_rng(0), is_moving(still, still))
    assert places.min() == 0 and places.max() == 15


@pytest.mark.parametrize("place", [(0, 0), (63, 63), (31, 9), (5, 60)])
def test_a_crop_holds_its_place_and_is_divided_as_the_frame_is(place):
    corner = CROP.corners(np.random.default_rng(0), np.array([place] * 500), (64, 64))
    inside = np.array(place) - corner
    assert (corner % 8 == 0).all() and (corner >= 0).all() and (corner <= 32).all()
    assert (inside >= 0).all() and (inside < 32).all()
    if place == (31, 9):
        assert set(inside[:, 0]) == {15, 23}, "in the middle half"


def test_all_frames_of_a_segment_are_cut_alike():
    frames = np.arange(2 * 3 * 1 * 8 * 8, dtype=np.int64).reshape(2, 3, 1, 8, 8).astype(np.uint8)
    crops = cut(frames, np.array([[0, 4], [4, 0]]), 4)
    np.testing.assert_array_equal(crops[0], frames[0, :, :, :4, 4:])
    np.testing.assert_array_equal(crops[1], frames[1, :, :, 4:, :4])


def draw(hard=None, count=400):
    return Replay([moving_dot()]).draw(
        np.random.default_rng(0),
        count,
        5,
        sample_weights=None,
        pad_after=False,
        num_learned=1,
        hard=hard,
        crop=CROP,
    )


def test_a_drawn_crop_shows_what_moves_in_its_last_frame():
    batch = draw()
    assert batch.obs.shape == (400, 5, 3, 32, 32) and batch.final_obs.shape == (400, 3, 32, 32)
    with_past = batch.mask_padding.all(dim=1)
    moves = (batch.obs[:, -1].int() - batch.obs[:, -2].int()).abs().amax(dim=(1, 2, 3)) > 16
    assert with_past.sum() > 300 and moves[with_past].all()
    whole = moving_dot().obs
    for i in range(20):
        row, column = batch.corner[i].tolist()
        t = int(batch.start[i]) + 4
        assert torch.equal(batch.obs[i, -1], whole[t, :, row : row + 32, column : column + 32])


def test_a_hard_step_is_cut_where_it_was_hard():
    weights, places = np.zeros(40, np.float32), np.zeros((40, 2), np.uint8)
    weights[20], places[20] = 1.0, (60, 8)  # nothing moves there
    batch = draw(Hard(1.0, weights, places))
    assert (batch.start + 4 == 20).all()
    assert torch.equal(batch.corner.unique(dim=0), torch.tensor([[32, 0]]))


def test_steps_on_crops_lie_evenly_among_the_others():
    training = DenoiserTrainingConfig(crop_size=32, crop_fraction=0.25, crops_only_until_step=10)
    on_crops = [training.is_on_crops(step) for step in range(110)]
    assert all(on_crops[:10]) and sum(on_crops[10:]) == 25
    assert {sum(on_crops[i : i + 4]) for i in range(10, 106)} == {1}
    assert not any(DenoiserTrainingConfig(crop_fraction=1.0).is_on_crops(step) for step in range(10))


def test_the_objective_learns_from_crops_and_remembers_where():
    config = parse(["preset=smoke", "game=Breakout", "denoiser.training.crop_size=32"]).denoiser
    config.training.crop_fraction, config.training.crop_batch_size = 1.0, 12
    config.training.hard_fraction = 0.5
    objective = DenoiserObjective(
        worlds.tiny_agent().denoiser, config, Draw(config.training, False, CPU), autocast_of(None, CPU)
    )
    replay = Replay([moving_dot()])
    example = objective.example(replay, np.random.default_rng(0), 0)
    n = worlds.NUM_STEPS_CONDITIONING
    assert example.batch["obs"].shape == (12, n + 1, 3, 32, 32)
    example.loss.backward()
    noted = objective.hard_steps.weights(replay.lengths) > 0
    assert noted.any() and objective.hard_steps.places[noted].max() < 64
    assert all(batch.obs.shape[-1] == 64 for batch in objective.test_batches(replay))


def test_crops_may_be_predicted_further_than_one_step():
    training = DenoiserTrainingConfig(crop_size=32, crop_autoregressive_steps=2, autoregressive_from_step=5)
    assert [training.num_predictions(step, on_crops=True) for step in (4, 5)] == [1, 3]
    assert [training.num_predictions(step, on_crops=False) for step in (4, 5)] == [1, 2]
    training = dataclasses.replace(training, autoregressive_from_step=0, crop_fraction=1.0)
    config = parse(["preset=smoke", "game=Breakout"]).denoiser
    config.training = dataclasses.replace(training, crop_batch_size=3, displacement_radius=2)
    objective = DenoiserObjective(
        worlds.tiny_agent().denoiser, config, Draw(config.training, False, CPU), autocast_of(None, CPU)
    )
    example = objective.example(Replay([moving_dot()]), np.random.default_rng(0), 0)
    assert example.batch["obs"].shape == (3, worlds.NUM_STEPS_CONDITIONING + 3, 3, 32, 32)
    example.loss.backward()


def test_pure_noise_has_the_first_level_of_the_sampler():
    config = parse(["preset=smoke", "game=Breakout", "denoiser.training.pure_noise_fraction=0.5"])
    config = config.denoiser
    draws = Draw(config.training, False, CPU)
    objective = DenoiserObjective(
        worlds.tiny_agent().denoiser, config, draws, autocast_of(None, CPU), first_level=3.0
    )
    level, _, _, is_pure = objective._noise(np.random.default_rng(0), 4, (3, 8, 8), 1)
    assert is_pure.tolist() == [False, True, False, True] == (level == 3).tolist()
    example = objective.example(Replay([moving_dot()]), np.random.default_rng(0), 0)
    assert torch.isfinite(example.loss)


def test_pure_noise_needs_noise_levels():
    arguments = ["game=Breakout", "denoiser.objective=ddpm", "denoiser.training.pure_noise_fraction=1"]
    with pytest.raises(
        InvalidInputError, match=r"pure_noise_fraction=1.* needs denoiser\.objective=edm, got ddpm"
    ):
        prepare(parse(arguments))


@pytest.mark.parametrize("name", ["displacement_radius", "max_displacement"])
@pytest.mark.parametrize("pixels", [-1, 9])
def test_a_displacement_out_of_range_is_refused(name, pixels):
    with pytest.raises(InvalidInputError, match=rf"{name} must be in 0\.\.8.*, got {pixels}"):
        DenoiserTrainingConfig(**{name: pixels})


@pytest.mark.parametrize("size", [72, 30, 4])
def test_a_crop_that_does_not_fit_is_refused(size):
    config = parse(["game=Breakout", "preset=small", f"denoiser.training.crop_size={size}"])
    with pytest.raises(InvalidInputError, match=f"crop_size={size}.*accepted are 8, 16, 24, 32"):
        prepare(config)

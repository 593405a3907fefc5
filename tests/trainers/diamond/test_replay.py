"""Segments are drawn and padded as published, from one uint8 copy of the episodes."""

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import DatasetError
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.pixels import to_float
from tests.recordings import episode
from trainers.diamond import data
from trainers.diamond.losses import next_frames
from trainers.diamond.replay import Hard, Replay

PUBLISHED_WEIGHTS = [0.1, 0.1, 0.1, 0.7]


def replay(*lengths, size=4, **kwargs):
    return Replay(episode(length, number=i, size=size, **kwargs) for i, length in enumerate(lengths))


def draw(replay, batch_size, length, *, pad_after, seed=0, sample_weights=None):
    rng = np.random.default_rng(seed)
    return replay.draw(rng, batch_size, length, sample_weights=sample_weights, pad_after=pad_after)


def first_real_steps(batch):
    """Return each segment's position of the first real step, that step's time, and number of real steps.

    Times are read off the frames, which hold them.
    """
    first = batch.mask_padding.int().argmax(dim=1)
    time = batch.obs[torch.arange(len(first)), first, 0, 0, 0]
    return zip(first.tolist(), time.tolist(), batch.mask_padding.sum(dim=1).tolist(), strict=True)


def expected_segments(num_steps, length, start_of):
    """Return the probability of every (start, real steps) when step and jitter are uniform."""
    counts = Counter()
    for time, jitter in itertools.product(range(num_steps), range(length)):
        start = start_of(time, jitter)
        counts[start, min(start + length, num_steps) - max(start, 0)] += 1 / (num_steps * length)
    return counts


@pytest.mark.parametrize(
    "pad_after, start_of",
    [
        (False, lambda time, jitter: min(7, time + 1 + jitter) - 5),
        (True, lambda time, jitter: time - jitter),
    ],
    ids=["denoiser", "rew_end_model"],
)
def test_segments_start_where_the_rule_says_as_often_as_it_says(pad_after, start_of):
    num_draws = 20_000
    batch = draw(replay(7), num_draws, 5, pad_after=pad_after)
    drawn = Counter((time - first, count) for first, time, count in first_real_steps(batch))
    expected = expected_segments(7, 5, start_of)
    assert set(drawn) == set(expected)
    frequencies = [drawn[segment] / num_draws for segment in expected]
    assert_allclose(frequencies, list(expected.values()), atol=0.012)


@pytest.mark.parametrize("pad_after", [False, True])
def test_a_segment_holds_the_steps_of_one_episode_and_padding_around_them(pad_after):
    episodes = [episode(length, number=i, size=4) for i, length in enumerate((3, 9, 6))]
    batch = draw(Replay(episodes), 200, 5, pad_after=pad_after)
    frames = batch.frames()
    assert frames.dtype == torch.float32 and batch.obs.dtype == torch.uint8
    seen = Counter()
    for i in range(200):
        real = batch.mask_padding[i].nonzero().flatten()
        assert (real.diff() == 1).all(), "real steps lie together"
        assert pad_after or real[-1] == 4, "padding comes only before"
        padding = ~batch.mask_padding[i]
        assert (frames[i, padding] == 0).all(), "mid grey"
        for name in ("act", "rew", "end", "trunc"):
            assert not getattr(batch, name)[i, padding].any()
        level = int(batch.obs[i, real[0], 0, 0, 0])
        source, start = episodes[level // 10], level % 10
        seen[level // 10] += 1
        stop = start + len(real)
        assert torch.equal(frames[i, real], to_float(source.obs[start:stop]))
        for name in ("act", "rew"):
            assert torch.equal(getattr(batch, name)[i, real], getattr(source, name)[start:stop])
        assert torch.equal(batch.end[i, real], source.end[start:stop].bool())
        assert batch.has_final[i] == (stop == len(source))
        if batch.has_final[i]:
            assert torch.equal(batch.final_obs[i], source.final_observation)
    assert set(seen) == {0, 1, 2}


def test_targets_of_a_transition_are_those_of_its_step():
    """At an end the next frame is the episode's final observation, elsewhere the frame that follows."""
    source = episode(4, size=4)
    batch = Replay([source]).segments(np.array([0]), np.array([-1]), 7)
    following = next_frames(batch, batch.frames())[0]
    expected = to_float(torch.cat([source.obs[1:], source.final_observation[None]]))
    assert torch.equal(following[1:5], expected)
    assert batch.mask_padding[0].tolist() == [False, True, True, True, True, False, False]
    assert batch.rew[0, 1:5].tolist() == source.rew.tolist()
    assert batch.end[0].tolist() == [False, False, False, False, True, False, False]


def test_an_unfinished_episode_has_no_final_frame():
    batch = draw(replay(5, finished=False), 50, 4, pad_after=True)
    assert not batch.has_final.any() and not batch.end.any()


@pytest.mark.parametrize(
    "num_episodes, parts", [(4, [1, 1, 1, 1]), (8, [2, 2, 2, 2]), (11, [2, 2, 2, 5]), (103, [25, 25, 25, 28])]
)
def test_newer_episodes_are_drawn_more_often(num_episodes, parts):
    p = replay(*[3] * num_episodes).episode_probabilities(PUBLISHED_WEIGHTS)
    stops = np.cumsum(parts)
    sums = [p[stop - size : stop].sum() for stop, size in zip(stops, parts, strict=True)]
    assert_allclose(sums, PUBLISHED_WEIGHTS)
    assert_allclose(p, np.repeat(np.array(PUBLISHED_WEIGHTS) / parts, parts))


@pytest.mark.parametrize("weights", [PUBLISHED_WEIGHTS, None])
def test_few_or_static_episodes_are_drawn_by_length(weights):
    assert_allclose(replay(2, 5, 3).episode_probabilities(weights), [0.2, 0.5, 0.3])


def test_episodes_are_drawn_with_their_probabilities():
    source = replay(*[3] * 4)
    batch = draw(source, 20_000, 1, pad_after=True, sample_weights=PUBLISHED_WEIGHTS)
    drawn = np.bincount(batch.obs[:, 0, 0, 0, 0].numpy() // 10, minlength=4) / 20_000
    assert_allclose(drawn, PUBLISHED_WEIGHTS, atol=0.015)


def quiet_episode(length, *, number=0, finished, reward_at=None):
    quiet = episode(length, number=number, finished=finished, size=4)
    quiet.rew.zero_()
    if reward_at is not None:
        quiet.rew[reward_at] = 1.0
    return quiet


@pytest.mark.parametrize("pad_after", [False, True])
def test_segments_around_events_hold_one(pad_after):
    source = Replay(
        quiet_episode(length, number=i, finished=True, reward_at=7) for i, length in enumerate((40, 30, 50))
    )
    rng = np.random.default_rng(0)
    batch = source.draw(rng, 200, 5, sample_weights=None, pad_after=pad_after, event_fraction=1.0)
    assert (batch.end | (batch.rew != 0)).any(dim=1).all()
    rng = np.random.default_rng(0)
    batch = source.draw(rng, 2000, 5, sample_weights=None, pad_after=pad_after, event_fraction=0.5)
    share = (batch.end | (batch.rew != 0)).any(dim=1).float().mean()
    assert 0.5 < share < 0.8


@pytest.mark.parametrize("num_learned", [1, 3])
def test_events_lie_where_they_are_learned_from(num_learned):
    source = Replay([quiet_episode(40, finished=True, reward_at=15)])
    batch = source.draw(
        np.random.default_rng(0),
        3000,
        6,
        sample_weights=None,
        pad_after=False,
        num_learned=num_learned,
        event_fraction=1.0,
    )
    assert (batch.end | (batch.rew != 0))[:, -num_learned:].any(dim=1).all()
    inside = batch.rew[~batch.end.any(dim=1)] != 0  # an end is always the last step of its segment
    shares = inside.float().mean(dim=0)
    assert_allclose(shares[-num_learned:], num_learned * [1 / num_learned], atol=0.05)


def test_without_events_segments_are_drawn_as_ever():
    source = Replay([quiet_episode(40, finished=False)])
    batch = source.draw(
        np.random.default_rng(0), 50, 5, sample_weights=None, pad_after=True, event_fraction=1.0
    )
    assert batch.mask_padding.any(dim=1).all()


def hard_draw(source, steps, fraction, *, num_steps=2, count=2000):
    """Draw segments of 6 steps; `steps` maps (episode, time) to weights."""
    firsts = source.lengths.cumsum() - source.lengths
    weights = np.zeros(source.num_steps, np.float32)
    for (e, time), weight in steps.items():
        weights[firsts[e] + time] = weight
    hard = Hard(fraction, weights, np.zeros((source.num_steps, 2), np.uint8))
    rng = np.random.default_rng(0)
    return source.draw(rng, count, 6, sample_weights=None, pad_after=False, num_learned=num_steps, hard=hard)


def where(batch, e, time):
    """Return whether each place of each segment holds a step of an episode."""
    times = batch.start[:, None] + torch.arange(batch.act.shape[1])
    return (batch.episode[:, None] == e) & (times == time) & batch.mask_padding


def test_hard_steps_are_drawn_by_weight_and_lie_among_the_last_of_their_segments():
    source = replay(20, 30, 25)
    batch = hard_draw(source, {(0, 8): 3.0, (1, 20): 1.0}, 1.0, num_steps=3)
    place = where(batch, 0, 8) | where(batch, 1, 20)
    assert (place.sum(dim=1) == 1).all()
    shares = np.bincount(place.nonzero()[:, 1], minlength=6) / 2000
    assert_allclose(shares, [0, 0, 0, *3 * [1 / 3]], atol=0.03)
    assert abs(where(batch, 0, 8).any(dim=1).float().mean() - 0.75) < 0.03


def test_a_hard_step_at_the_edge_of_an_episode_is_drawn_without_leaving_it():
    source = replay(20, 30)
    for e, time in ((0, 0), (0, 19), (1, 0), (1, 29)):
        batch = hard_draw(source, {(e, time): 1.0}, 1.0, count=50)
        assert where(batch, e, time).any(dim=1).all()
        assert batch.mask_padding[:, -1].all()


def test_the_other_segments_are_drawn_as_ever():
    source = replay(20, 30, 25)
    batch = hard_draw(source, {(2, 10): 2.0}, 0.5)
    assert 0.5 < where(batch, 2, 10).any(dim=1).float().mean() < 0.62
    plain = draw(source, 2000, 6, pad_after=False)
    kept = (batch.episode == plain.episode) & (batch.start == plain.start)
    assert kept.float().mean() > 0.45
    nothing_known = hard_draw(source, {}, 1.0)
    assert torch.equal(nothing_known.start, plain.start)


def test_segments_say_which_steps_they_hold_however_the_episodes_came():
    whole = [episode(7, number=0, size=4), episode(5, number=1, size=4)]
    grown = Replay([episode(4, number=0, size=4), whole[1]])
    grown.extend(0, whole[0])
    for source in (Replay(whole), grown):
        batch = draw(source, 50, 3, pad_after=False)
        for i, place in batch.mask_padding.nonzero().tolist():
            frame = whole[batch.episode[i]].obs[batch.start[i] + place]
            assert torch.equal(batch.obs[i, place], frame)


def test_a_batch_is_a_function_of_its_generator():
    source = replay(9, 8, 7)
    one, same, other = (draw(source, 16, 4, pad_after=True, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(vars(one).values(), vars(same).values(), strict=True))
    assert not torch.equal(one.obs, other.obs)


def test_added_episodes_are_found():
    source = replay(5)
    source.add(episode(7, number=3, size=4))
    assert source.lengths.tolist() == [5, 7] and source.num_steps == 12
    batch = source.segments(np.array([1, 0]), np.array([0, 0]), 5)
    assert batch.obs[:, :, 0, 0, 0].tolist() == [[30, 31, 32, 33, 34], [0, 1, 2, 3, 4]]


def test_rewards_are_counted_by_sign():
    assert replay(7).reward_sign_counts() == {-1: 3, 0: 2, 1: 2}


def test_frames_take_one_byte_a_pixel_and_one_copy():
    num_frames, size = 2_000, 32
    tracemalloc.start()
    try:
        source = Replay((episode(100, size=size) for _ in range(num_frames // 100)), num_frames)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    num_bytes = num_frames * 3 * size * size
    assert source.num_steps == num_frames
    assert num_bytes <= peak < 1.1 * num_bytes


def test_frames_must_agree():
    with pytest.raises(DatasetError, match=r"\(3, 4, 4\).*\(3, 8, 8\)"):
        Replay([episode(3, size=4), episode(3, size=8)])


def test_an_index_that_claims_more_steps_than_its_files_hold_makes_no_room_for_them(tmp_path):
    EpisodeDataset(tmp_path, create=True).extend([episode(3, size=4), episode(2, size=4)])
    index = torch.load(tmp_path / "info.pt", weights_only=False)
    index |= {"lengths": np.array([10**12, 2]), "num_steps": 10**12 + 2}
    torch.save(index, tmp_path / "info.pt")
    fits = data._Fits((3, 4, 4), ActionSpace.discrete(4))
    assert data._replay(EpisodeDataset(tmp_path), range(2), fits, progress=False).num_steps == 5


def test_compressed_frames_give_the_same_batches_in_less_memory():
    episodes = [episode(length, number=i, size=8) for i, length in enumerate([40, 7, 30])]
    plain, compressed = Replay(), Replay(compress=True)
    for source in (plain, compressed):
        source.add(episodes[0])
        source.add(episode(3, number=1, size=8))
        source.add(episodes[2])
        source.extend(1, episodes[1])
    ours, theirs = (draw(source, 64, 5, pad_after=True) for source in (compressed, plain))
    for name, values in vars(theirs).items():
        assert torch.equal(vars(ours)[name], values), name
    assert compressed.frame_shape == plain.frame_shape == (3, 8, 8)
    assert plain.frame_bytes == 77 * 3 * 8 * 8
    assert 0 < compressed.frame_bytes < plain.frame_bytes / 4


def test_a_run_keeps_its_train_frames_compressed_where_that_is_asked_for(tmp_path):
    folders = tmp_path / "train", tmp_path / "test"
    for folder in folders:
        EpisodeDataset(folder, create=True).extend([episode(60, size=16)])
    loaded = data.load_replays(folders, (3, 16, 16), ActionSpace.discrete(4), compress=True, progress=False)
    train, test = (replay.frame_bytes for replay in loaded)
    assert 0 < train < test / 4 and test == 60 * 3 * 16 * 16

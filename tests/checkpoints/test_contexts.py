"""Start contexts: cut from episodes, played, saved compressed, and refused when damaged."""

import json
import zlib

import numpy as np
import pytest
import torch

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.checkpoints.contexts import (
    ContextBank,
    collect_contexts,
    contexts_from_episodes,
    num_windows,
    starts_before_losses,
)
from diamond_gym.data.collect import collect
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import (
    CacheError,
    CheckpointError,
    CheckpointNotFoundError,
    DatasetError,
    InvalidInputError,
    UnknownGameError,
)
from diamond_gym.players.player import RandomPlayer

N = 4


def numbered_episode(number, length):
    """Make an episode whose frames contain the indices of episode and step."""
    obs = torch.zeros(length, 3, 8, 8, dtype=torch.uint8)
    obs[:, 0] = number
    obs[:, 1] = torch.arange(length)[:, None, None]
    zeros = torch.zeros(length, dtype=torch.uint8)
    return Episode(obs, torch.arange(length) % 3, torch.zeros(length), zeros, zeros.clone())


def steps_of(bank):
    """(episode, step) of every frame of the contexts of numbered episodes: two arrays (k, n)."""
    return bank.obs[..., 0, 0, 0].astype(int), bank.obs[..., 0, 0, 1].astype(int)


@pytest.fixture
def episodes():
    return [numbered_episode(i, length) for i, length in enumerate((20, 3, 50, 4))]


@pytest.fixture(scope="module")
def breakout_bank():
    return collect_contexts(
        "Breakout", RandomPlayer(4), num_contexts=20, num_steps_conditioning=N, progress=False
    )


@pytest.fixture
def bank(episodes):
    return contexts_from_episodes(episodes, num_contexts=10, num_steps_conditioning=N, seed=0)


def test_contexts_are_windows_inside_episodes(bank):
    episode, step = steps_of(bank)
    assert bank.obs.shape == (10, N, 8, 8, 3) and len(bank) == 10
    assert (episode == episode[:, :1]).all()
    assert (np.diff(step, axis=1) == 1).all()
    assert (bank.act == step % 3).all()
    assert len({(e[0], s[0]) for e, s in zip(episode, step, strict=True)}) == 10


def test_number_of_windows(episodes):
    assert num_windows(episodes, N).tolist() == [17, 0, 47, 1]


def test_every_window_is_equally_likely(episodes):
    counts = np.zeros(65)
    for seed in range(400):
        bank = contexts_from_episodes(episodes, num_contexts=13, num_steps_conditioning=N, seed=seed)
        episode, step = steps_of(bank)
        first = np.array([0, 17, 17, 64])[episode[:, 0]] + step[:, 0]
        counts[first] += 1
    assert np.abs(counts - 400 / 5).max() < 6 * np.sqrt(400 / 5)


def test_all_windows_can_be_had_and_no_more(episodes):
    bank = contexts_from_episodes(episodes, num_contexts=65, num_steps_conditioning=N, seed=0)
    assert len(np.unique(bank.obs.reshape(65, -1), axis=0)) == 65
    with pytest.raises(DatasetError, match=r"65 contexts of 4 steps, 66 were"):
        contexts_from_episodes(episodes, num_contexts=66, num_steps_conditioning=N, seed=0)
    with pytest.raises(DatasetError, match="0 episode"):
        contexts_from_episodes([], num_contexts=1, num_steps_conditioning=N, seed=0)


def test_the_seed_fixes_the_draw(episodes):
    a, b, c = (
        contexts_from_episodes(episodes, num_contexts=9, num_steps_conditioning=N, seed=s) for s in (1, 1, 2)
    )
    assert np.array_equal(a.obs, b.obs) and np.array_equal(a.act, b.act)
    assert not np.array_equal(a.obs, c.obs)


def test_a_dataset_gives_the_same_as_its_episodes(episodes, tmp_path, bank):
    dataset = EpisodeDataset(tmp_path, create=True)
    dataset.extend(episodes)
    from_disk = contexts_from_episodes(dataset, num_contexts=10, num_steps_conditioning=N, seed=0)
    assert np.array_equal(from_disk.obs, bank.obs) and np.array_equal(from_disk.act, bank.act)


def test_windows_before_losses_end_so_many_steps_before_them(episodes):
    episodes[0].end[-1] = 1  # step 19
    episodes[2].rew[[4, 30]] = torch.tensor([-1.0, 1.0])
    starts = starts_before_losses(episodes, N, steps=(1, 3))
    assert starts == [[13, 14, 15], [], [0], []]
    bank = contexts_from_episodes(episodes, num_contexts=4, num_steps_conditioning=N, seed=0, starts=starts)
    assert sorted(zip(*(x[:, 0] for x in steps_of(bank)), strict=True)) == [(0, 13), (0, 14), (0, 15), (2, 0)]
    for steps in ((0, 3), (3, 1)):
        with pytest.raises(InvalidInputError, match="two positive numbers"):
            starts_before_losses(episodes, N, steps=steps)


def test_banks_of_the_same_kind_add_up(bank, breakout_bank):
    both = bank + bank.latest(N)
    assert (
        len(both) == 20
        and np.array_equal(both.obs[10:], bank.obs)
        and np.array_equal(both.act[:10], bank.act)
    )
    with pytest.raises(InvalidInputError, match="cannot be joined"):
        bank + breakout_bank


def test_frames_of_different_sizes_are_refused(episodes):
    small = numbered_episode(9, 60)
    small.obs = small.obs[..., :4]
    with pytest.raises(DatasetError, match="different sizes"):
        contexts_from_episodes([*episodes, small], num_contexts=60, num_steps_conditioning=N, seed=0)


@pytest.mark.parametrize("sizes", [{"num_contexts": 0}, {"num_steps_conditioning": 0}])
def test_sizes_must_be_positive(episodes, sizes):
    with pytest.raises(InvalidInputError):
        contexts_from_episodes(
            episodes, **{"num_contexts": 1, "num_steps_conditioning": 1, "seed": 0, **sizes}
        )


def test_collected_contexts_are_of_the_real_game(breakout_bank):
    played = collect("Breakout", RandomPlayer(4), num_steps=400, seed=0, progress=False)
    frames = {
        frame.tobytes() for episode in played.episodes for frame in episode.obs.permute(0, 2, 3, 1).numpy()
    }
    assert breakout_bank.obs.shape == (20, N, 64, 64, 3)
    ours = {frame.tobytes() for frame in breakout_bank.obs.reshape(-1, 64, 64, 3)}
    assert len(ours) > 20 and len(ours & frames) > 0.9 * len(ours)


def test_collecting_for_an_unknown_game():
    with pytest.raises(UnknownGameError):
        collect_contexts(
            "Brickout", RandomPlayer(4), num_contexts=1, num_steps_conditioning=N, progress=False
        )


def test_saving_is_lossless_and_small(breakout_bank, tmp_path):
    path = tmp_path / "new" / "contexts.safetensors"
    breakout_bank.save(path)
    loaded = ContextBank.load(path)
    assert np.array_equal(loaded.obs, breakout_bank.obs) and np.array_equal(loaded.act, breakout_bank.act)
    assert loaded.obs.flags.c_contiguous and loaded.obs.flags.writeable
    assert path.stat().st_size < breakout_bank.obs.nbytes / 20
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_fewer_steps_are_the_newest(bank):
    short = bank.latest(2)
    assert np.array_equal(short.obs, bank.obs[:, 2:]) and np.array_equal(short.act, bank.act[:, 2:])
    for n in (0, 5):
        with pytest.raises(InvalidInputError):
            bank.latest(n)


@pytest.mark.parametrize(
    ("obs", "act"),
    [
        (np.zeros((1, 2, 8, 8, 3), np.float32), np.zeros((1, 2), np.int64)),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 2), np.int64)),
        (np.zeros((0, 2, 8, 8, 3), np.uint8), np.zeros((0, 2), np.int64)),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), np.zeros((1, 3), np.int64)),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), np.zeros((1, 2), np.int32)),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), np.full((1, 2), -1)),
    ],
)
def test_malformed_banks_are_refused(obs, act):
    with pytest.raises(InvalidInputError):
        ContextBank(obs, act)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"nothing\.safetensors"):
        ContextBank.load(tmp_path / "nothing.safetensors")


def test_more_than_one_file_holds_are_not_written(tmp_path):
    frame = np.zeros((1, 1, 1024, 1024, 1), np.uint8)
    too_many = ContextBank(np.broadcast_to(frame, (513, 1, 1024, 1024, 1)), np.zeros((513, 1), np.int64))
    with pytest.raises(InvalidInputError, match=r"513 contexts of frames .* at most 512 do"):
        too_many.save(tmp_path / "contexts.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder(bank, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError):
        bank.save(tmp_path / "file" / "contexts.safetensors")


def truncate(path, tensors, metadata):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path, tensors, metadata):
    path.write_bytes(b"")


def damage_the_frames(path, tensors, metadata):
    tensors["frames"][len(tensors["frames"]) // 2] ^= 255
    disk.write_tensors(path, tensors, metadata)


def cut_the_frames(path, tensors, metadata):
    disk.write_tensors(path, {**tensors, "frames": tensors["frames"][:-20]}, metadata)


def unpack_to_more(path, tensors, metadata):
    bomb = zlib.compress(bytes(10**7))
    frames = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    disk.write_tensors(path, {**tensors, "frames": frames}, metadata)


def other_actions(path, tensors, metadata):
    disk.write_tensors(path, {**tensors, "act": tensors["act"][1:]}, metadata)


def no_bank(path, tensors, metadata):
    disk.write_tensors(path, {"conv1.weight": torch.zeros(3)}, {})


def stated(**fields):
    def write(path, tensors, metadata):
        header = {"format_version": 1, "shape": [10, 4, 8, 8, 3], **fields}
        disk.write_tensors(path, tensors, {"diamond_gym.contexts": json.dumps(header)})

    return write


def header(text):
    def write(path, tensors, metadata):
        disk.write_tensors(path, tensors, {"diamond_gym.contexts": text})

    return write


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        empty,
        damage_the_frames,
        cut_the_frames,
        unpack_to_more,
        other_actions,
        no_bank,
        stated(format_version=2),
        stated(shape=[10, 4, 8, 8]),
        stated(shape=[10, 4, 8, 8, 4]),
        stated(shape=[10**5, 10**5, 64, 64, 3]),
        stated(shape=[10, 4, 8, 8, -3]),
        stated(shape="10"),
        header("[]"),
        header("{"),
    ],
)
def test_damaged_files_are_refused(bank, tmp_path, damage):
    path = tmp_path / "contexts.safetensors"
    bank.save(path)
    damage(path, *untrusted.read_tensors(path))
    with pytest.raises(CheckpointError, match=r"contexts\.safetensors"):
        ContextBank.load(path)

"""Episodes on disk: the published layout both ways, and datasets that survive all kinds of failures."""

import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import CacheError, DatasetError

FIELDS = ("obs", "act", "rew", "end", "trunc")


def make_episode(length: int = 5, seed: int = 0, finished: bool = True, size: int = 8) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (length + 1, 3, size, size), dtype=torch.uint8, generator=generator)
    end = torch.zeros(length, dtype=torch.uint8)
    end[-1] = finished
    return Episode(
        obs=frames[:-1],
        act=torch.randint(0, 4, (length,), generator=generator),
        rew=torch.randint(-1, 8, (length,), generator=generator).float(),
        end=end,
        trunc=torch.zeros(length, dtype=torch.uint8),
        info={"final_observation": frames[-1]} if finished else {},
    )


def assert_same(one: Episode, other: Episode) -> None:
    for name in FIELDS:
        assert getattr(one, name).dtype == getattr(other, name).dtype
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.info.keys() == other.info.keys()
    for key, value in one.info.items():
        assert value.dtype == other.info[key].dtype
        assert torch.equal(value, other.info[key])


def fill_with(path, episodes: list[Episode]) -> EpisodeDataset:
    dataset = EpisodeDataset(path, create=True)
    dataset.extend(episodes)
    return dataset


def fill(path, num_episodes: int) -> EpisodeDataset:
    return fill_with(
        path, [make_episode(length=3 + i, seed=i, finished=i % 2 == 0) for i in range(num_episodes)]
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint16, torch.int8, torch.bool])
def test_flags_of_any_integer_type_are_read(tmp_path, dtype):
    """The published viewer's recordings in its world model hold int64."""
    written = [make_episode(length=3 + i, seed=i) for i in range(2)]
    dataset = fill_with(tmp_path / "data", written)
    for number in range(2):
        path = dataset.episode_path(number)
        content = torch.load(path, weights_only=True)
        torch.save(content | {name: content[name].to(dtype) for name in ("end", "trunc")}, path)
    dataset = EpisodeDataset(tmp_path / "data")
    dataset.check()
    for one, other in zip(dataset, written, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (torch.tensor([0, 0, 0, 0, 2]), "end must be 0 or 1, got values from 0 to 2"),
        (torch.tensor([0, -1, 0, 0, 1]), "end must be 0 or 1, got values from -1 to 1"),
        (torch.tensor([0.0, 0, 0, 0, 1]), "end must be torch.uint8"),
    ],
)
def test_flags_that_are_none_are_refused(tmp_path, end, message):
    path = tmp_path / "0.pt"
    make_episode().save(path)
    torch.save(torch.load(path, weights_only=True) | {"end": end}, path)
    with pytest.raises(DatasetError, match=message):
        Episode.load(path)


def test_what_is_written_is_read_again(tmp_path):
    episodes = [make_episode(length=2 + i, seed=i, finished=i != 1) for i in range(3)]
    dataset = EpisodeDataset(tmp_path / "data", create=True)
    assert [dataset.append(episode) for episode in episodes] == [0, 1, 2]
    for there in (dataset, EpisodeDataset(tmp_path / "data")):
        for expected, episode in zip(episodes, there, strict=True):
            assert_same(expected, episode)
        assert (len(there), there.num_episodes, there.num_steps) == (3, 3, 9)
        assert there.lengths.tolist() == [2, 3, 4]
        assert there.start_indices.tolist() == [0, 2, 5]
        rewards = torch.cat([episode.rew for episode in episodes]).sign().tolist()
        assert there.reward_counts == {sign: rewards.count(sign) for sign in (-1, 0, 1)}
        assert there.end_counts == {0: 7, 1: 2}
        there.check()


def test_every_level_of_the_final_frame_survives(tmp_path):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    episode = replace(make_episode(size=16), info={"final_observation": levels})
    episode.save(tmp_path / "0.pt")
    assert torch.equal(Episode.load(tmp_path / "0.pt").final_observation, levels)


def test_a_part_of_a_bigger_tensor_is_written_without_the_rest(tmp_path):
    whole = make_episode(length=500)
    Episode(**{name: getattr(whole, name)[-2:] for name in FIELDS}).save(tmp_path / "0.pt")
    assert (tmp_path / "0.pt").stat().st_size < 6000


@pytest.mark.parametrize(
    ("episode_id", "path"),
    [
        (0, "000/00/0/0.pt"),
        (7, "000/00/7/7.pt"),
        (42, "000/40/2/42.pt"),
        (999, "900/90/9/999.pt"),
        (1234, "200/30/4/1234.pt"),
    ],
)
def test_paths_are_those_of_the_published_layout(tmp_path, episode_id, path):
    assert EpisodeDataset(tmp_path, create=True).episode_path(episode_id) == tmp_path / path


def test_files_are_those_of_the_published_layout(tmp_path):
    episode = make_episode(length=4)
    EpisodeDataset(tmp_path, create=True).append(episode)
    content = torch.load(tmp_path / "000/00/0/0.pt", weights_only=True)
    assert set(content) == {*FIELDS, "info"}
    dtypes = [content[name].dtype for name in FIELDS]
    assert dtypes == [torch.uint8, torch.int64, torch.float32, torch.uint8, torch.uint8]
    assert content["obs"].shape == (4, 3, 8, 8)
    final = content["info"]["final_observation"]
    assert final.dtype == torch.float32 and final.min() >= -1 and final.max() <= 1

    index = torch.load(tmp_path / "info.pt", weights_only=False)
    keys = {"is_static", "num_episodes", "num_steps", "start_idx", "lengths", "counter_rew", "counter_end"}
    assert set(index) == keys
    assert isinstance(index["lengths"], np.ndarray) and isinstance(index["counter_rew"], Counter)
    assert index["start_idx"].tolist() == [0] and index["lengths"].dtype == np.int64


def write_as_published(path, episodes: list[Episode]) -> None:
    """Write a dataset as the published code does, without this package."""
    for i, episode in enumerate(episodes):
        info = {}
        if episode.final_observation is not None:
            info = {"final_observation": episode.final_observation / 255 * 2 - 1}
        file = path / "000" / "00" / str(i) / f"{i}.pt"
        file.parent.mkdir(parents=True)
        torch.save({**{name: getattr(episode, name) for name in FIELDS}, "info": info}, file)
    lengths = np.array([len(episode) for episode in episodes])
    index = {
        "is_static": True,
        "num_episodes": len(episodes),
        "num_steps": int(lengths.sum()),
        "start_idx": np.cumsum(lengths) - lengths,
        "lengths": lengths,
        "counter_rew": Counter(torch.cat([episode.rew for episode in episodes]).sign().tolist()),
        "counter_end": Counter(torch.cat([episode.end for episode in episodes]).tolist()),
    }
    torch.save(index, path / "info.pt")


def rewrite_pickle(path, old: bytes, new: bytes) -> None:
    """Edit the pickled part of a file that torch wrote."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    assert any(old in data for data in entries.values())
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("numpy_core", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_a_dataset_of_the_published_code_is_read_and_continued(tmp_path, numpy_core):
    episodes = [make_episode(length=3 + i, seed=i, finished=i < 2) for i in range(3)]
    write_as_published(tmp_path, episodes)
    if numpy_core == b"numpy.core.multiarray":  # the name that numpy 1 gives
        rewrite_pickle(tmp_path / "info.pt", b"numpy._core.multiarray", numpy_core)
    dataset = EpisodeDataset(tmp_path)
    dataset.check()
    for expected, episode in zip(episodes, dataset, strict=True):
        assert_same(expected, episode)
    assert dataset.append(make_episode(seed=9)) == 3
    EpisodeDataset(tmp_path).check()


def test_an_empty_dataset_is_read_again(tmp_path):
    EpisodeDataset(tmp_path, create=True).extend([])
    dataset = EpisodeDataset(tmp_path)
    assert (dataset.num_episodes, dataset.num_steps, list(dataset)) == (0, 0, [])
    dataset.check()
    assert dataset.append(make_episode()) == 0
    EpisodeDataset(tmp_path).check()


def test_an_episode_that_went_on_is_replaced(tmp_path):
    dataset = fill(tmp_path, 4)
    longer = make_episode(length=20, seed=50)
    dataset.replace(1, longer)
    for there in (dataset, EpisodeDataset(tmp_path)):
        there.check()
        assert_same(there[1], longer)
        assert there.lengths.tolist() == [3, 20, 5, 6]
        assert there.start_indices.tolist() == [0, 3, 23, 28]
        assert there.num_steps == 34


def test_interrupted_between_the_episode_and_the_index(tmp_path):
    dataset = fill(tmp_path / "data", 3)
    shutil.copy(tmp_path / "data/info.pt", tmp_path / "older_info.pt")
    dataset.append(make_episode(seed=9))
    shutil.copy(tmp_path / "older_info.pt", tmp_path / "data/info.pt")
    reopened = EpisodeDataset(tmp_path / "data")
    assert reopened.num_episodes == 4
    reopened.check()
    assert reopened.append(make_episode(seed=10)) == 4


def killed() -> None:
    raise KeyboardInterrupt


def test_interrupted_while_replacing(tmp_path, monkeypatch):
    dataset = fill(tmp_path, 3)
    with monkeypatch.context() as patch:  # the index is not written, as if the process had been killed before
        patch.setattr(dataset, "_write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            dataset.replace(0, make_episode(length=30))
    reopened = EpisodeDataset(tmp_path)
    reopened.check()
    assert reopened.lengths.tolist() == [30, 4, 5]
    reopened.replace(0, make_episode(length=2))
    assert EpisodeDataset(tmp_path).lengths.tolist() == [2, 4, 5]


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits are Unix's")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    dataset = fill(tmp_path, 2)
    files = sorted(tmp_path.rglob("*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # as if the disk were full after 4 kB
    try:
        with pytest.raises(CacheError, match="cannot write"):
            dataset.append(make_episode(length=50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dataset.check()
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        f for f in files if f.is_file()
    ]
    assert dataset.append(make_episode(length=50)) == 2


def test_a_lost_index_is_rebuilt_from_the_episodes(tmp_path):
    lengths = fill(tmp_path, 12).lengths
    (tmp_path / "info.pt").unlink()
    reopened = EpisodeDataset(tmp_path)
    assert reopened.lengths.tolist() == lengths.tolist()
    reopened.check()


def test_a_killed_process_leaves_a_readable_dataset(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_episodes import EpisodeDataset, make_episode\n"
        "dataset = EpisodeDataset(sys.argv[1], create=True)\n"
        "while True:\n"
        "    dataset.append(make_episode(finished=False))\n"
        "    dataset.replace(dataset.num_episodes - 1, make_episode(length=9))"
    )
    folder = os.path.dirname(__file__)
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), folder])
    try:
        while not (tmp_path / "000/00/5/5.pt").exists():
            assert worker.poll() is None
            time.sleep(0.01)
        time.sleep(random.random() / 10)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    dataset = EpisodeDataset(tmp_path)
    dataset.check()
    assert dataset.num_episodes >= 5
    assert set(dataset.lengths[:-1].tolist()) == {9}
    dataset.append(make_episode())
    EpisodeDataset(tmp_path).check()


def test_check_names_every_bad_file(tmp_path):
    dataset = fill(tmp_path, 6)
    truncated, missing, flipped, other = (dataset.episode_path(i) for i in (0, 2, 3, 5))
    truncated.write_bytes(truncated.read_bytes()[:400])
    missing.unlink()
    data = bytearray(flipped.read_bytes())
    position = data.index(dataset[3].obs.numpy().tobytes()[:64])
    data[position] ^= 255
    flipped.write_bytes(data)
    make_episode(length=50).save(other)
    with pytest.raises(DatasetError) as caught:
        dataset.check()
    message = str(caught.value)
    assert "4 problem(s)" in message
    for path, what in (
        (truncated, "cannot be read as"),
        (missing, "missing"),
        (flipped, "checksum"),
        (other, "50 steps"),
    ):
        assert re.search(f"^{re.escape(str(path))}.*{what}", message, re.MULTILINE), what
    assert str(dataset.episode_path(1)) not in message
    with pytest.raises(DatasetError, match="missing"):
        dataset[2]


def test_check_finds_counts_that_are_not_those_of_the_episodes(tmp_path):
    dataset = fill(tmp_path, 2)
    episode = dataset[0]
    replace(episode, rew=-episode.rew - 1).save(dataset.episode_path(0))
    with pytest.raises(DatasetError, match="counts of rewards"):
        EpisodeDataset(tmp_path).check()


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["000/00/0/0.pt", "info.pt"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, name):
    fill(tmp_path / "data", 1)
    torch.save({"obs": _Payload(tmp_path / "ran")}, tmp_path / "data" / name)
    with pytest.raises(DatasetError, match="more than plain data"):
        EpisodeDataset(tmp_path / "data").check()
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(_Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the payload is a working one"


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ({"a": 1}, "not a dataset index"),
        (None, "contradicts itself"),
        (b"junk", "cannot be read as"),
        (b"", "cannot be read as"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, index, what):
    fill(tmp_path, 2)
    path = tmp_path / "info.pt"
    if isinstance(index, bytes):
        path.write_bytes(index)
    elif index is None:
        good = torch.load(path, weights_only=False)
        torch.save({**good, "num_steps": 1}, path)
    else:
        torch.save(index, path)
    with pytest.raises(DatasetError, match=what):
        EpisodeDataset(tmp_path)


def test_no_dataset_is_told_with_a_hint(tmp_path):
    fill(tmp_path / "dataset" / "train", 1)
    with pytest.raises(DatasetError, match=r"no dataset at .*did you mean .*dataset/train\?"):
        EpisodeDataset(tmp_path / "dataset")
    with pytest.raises(DatasetError, match="no dataset at"):
        EpisodeDataset(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_index_out_of_range_is_an_index_error(tmp_path):
    dataset = fill(tmp_path, 2)
    for episode_id in (-1, 2):
        with pytest.raises(IndexError, match="of 2"):
            dataset[episode_id]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"obs": torch.zeros(5, 3, 8, 8)}, "obs must be torch.uint8"),
        ({"obs": np.zeros((5, 3, 8, 8), np.uint8)}, "must be a tensor"),
        ({"obs": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, "at least one step"),
        ({"act": torch.zeros(4, dtype=torch.int64)}, "act has 4"),
        ({"act": torch.zeros(5, dtype=torch.int32)}, "act must be torch.int64"),
        ({"rew": torch.zeros(5, 1)}, r"rew must be .* got torch.float32 \(5, 1\)"),
        ({"end": torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)}, "last step only"),
        ({"info": {"final_observation": torch.zeros(3, 4, 4, dtype=torch.uint8)}}, "final_observation is"),
    ],
)
def test_a_malformed_episode_is_refused(tmp_path, change, what):
    with pytest.raises(DatasetError, match=what):
        replace(make_episode(), **change)
    path = tmp_path / "0.pt"
    content = {name: getattr(make_episode(), name) for name in FIELDS}
    torch.save({**content, "info": {}, **change}, path)
    with pytest.raises(DatasetError, match=r"0\.pt"):
        Episode.load(path)


def test_several_writers_append_to_one_dataset(tmp_path):
    writers = [EpisodeDataset(tmp_path, create=True) for _ in range(3)]  # all have seen an empty folder
    numbers = [writer.append(make_episode(length)) for length, writer in enumerate(writers * 2, start=1)]
    assert numbers == list(range(6))
    dataset = EpisodeDataset(tmp_path)
    assert dataset.lengths.tolist() == [1, 2, 3, 4, 5, 6]
    dataset.check()


def test_what_is_in_the_way_of_an_episode_is_named(tmp_path):
    dataset = EpisodeDataset(tmp_path, create=True)
    dataset.episode_path(0).parent.mkdir(parents=True)
    dataset.episode_path(0).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=r"0\.pt is in the way of an episode"):
        dataset.append(make_episode(3))
    assert not (tmp_path / "elsewhere").exists()

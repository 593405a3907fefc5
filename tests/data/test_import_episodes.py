"""The import of episodes: recordings, Minari datasets, and datasets that need no import."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import cv2
import gymnasium
import numpy as np
import pytest
import torch

import tests.moving_dot  # noqa: F401 (registers MovingDot-v0)
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.data.import_episodes import ImportOptions, convert, import_episodes, split
from diamond_gym.data.recorder import RecordedEpisode
from diamond_gym.errors import CacheError, DatasetError, FolderInUseError, InvalidInputError
from diamond_gym.files import locked
from tests.recordings import episode as made_up_episode
from trainers.diamond import data
from trainers.diamond.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*share an object"),
    pytest.mark.filterwarnings("ignore:::minari"),
]


def recorded(length=4, *, seed=0, shape=(100, 80, 3), terminated=True, num_actions=None):
    rng = np.random.default_rng(seed)
    last = np.arange(length) == length - 1
    return RecordedEpisode(
        obs=rng.integers(0, 256, (length + 1, *shape), np.uint8),
        act=rng.integers(0, 3, length),
        rew=rng.normal(size=length).astype(np.float32),
        terminated=last & terminated,
        truncated=np.zeros(length, bool),
        num_actions=num_actions,
    )


def save(folder, episodes):
    for i, episode in enumerate(episodes):
        episode.save(folder / f"{i:03d}.npz")
    return folder


def imported(**options):
    given = {name: str(v) if isinstance(v, os.PathLike) else v for name, v in options.items()}
    report = import_episodes(ImportOptions(**given), progress=False)
    datasets = [EpisodeDataset(report.out / name) for name in report.num_episodes]
    for dataset in datasets:
        dataset.check()
    return report, datasets


def test_folder_of_recordings(tmp_path):
    episodes = [recorded(3 + i, seed=i, terminated=i != 2) for i in range(12)]
    report, (train, test) = imported(
        episodes=save(tmp_path / "recordings", episodes), out=tmp_path / "data", size="64"
    )
    assert [len(train), len(test)] == [11, 1]
    assert report.num_steps == {"train": train.num_steps, "test": test.num_steps}
    assert report.num_actions == 3 and report.num_ends == 11
    for one, other in zip([*episodes[:9], *episodes[10:], episodes[9]], [*train, *test], strict=True):
        assert other.obs.shape == (len(one), 3, 64, 64)
        assert other.act.tolist() == one.act.tolist()
        assert other.rew.tolist() == one.rew.tolist()
        assert other.end.tolist() == one.terminated.tolist() and not other.trunc.any()
        assert (other.final_observation is not None) == one.is_finished
        by_area = cv2.resize(one.obs[0], (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(other.obs[0].permute(1, 2, 0), by_area)
    final = train[0].final_observation
    assert final is not None
    by_area = cv2.resize(episodes[0].obs[-1], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.array_equal(final.permute(1, 2, 0), by_area)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "recordings"]
    data.check_static_dataset(tmp_path / "data")


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (30, 50), (30, 50, 1)])
def test_grey_frames_have_one_channel(shape):
    assert convert(recorded(shape=shape), (64, 48)).obs.shape == (4, 1, 64, 48)
    assert convert(recorded(shape=shape), None).obs.shape == (4, 1, *shape[:2])


@pytest.mark.parametrize("size", [None, (32, 50)])
def test_frames_of_the_right_size_stay_as_they_are(size):
    one = recorded(shape=(32, 50, 3))
    other = convert(one, size)
    assert np.array_equal(other.obs.permute(0, 2, 3, 1), one.obs[:-1])
    final = other.final_observation
    assert final is not None and np.array_equal(final.permute(1, 2, 0), one.obs[-1])


def test_large_frames_need_a_size(tmp_path):
    folder = save(tmp_path / "large", [recorded(shape=(210, 160, 3)), recorded(shape=(210, 160, 3))])
    with pytest.raises(
        DatasetError, match=r"210x160 are too large .* take 1\.0 GB of memory\): give size=64"
    ):
        imported(episodes=folder, out=tmp_path / "data")
    _, (train, _) = imported(episodes=folder, out=tmp_path / "data", size="52x40")
    assert train[0].obs.shape == (4, 3, 52, 40)


def test_frames_of_all_episodes_are_alike(tmp_path):
    folder = save(tmp_path / "mixed", [recorded(shape=(32, 32, 3)), recorded(shape=(32, 40, 3))])
    with pytest.raises(DatasetError, match="give size=64 to make them alike"):
        imported(episodes=folder, out=tmp_path / "data")


def test_the_source_says_how_many_actions_there_are(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(num_actions=9), recorded(num_actions=9)])
    report, _ = imported(episodes=folder, out=tmp_path / "data")
    assert report.num_actions == 9 and "agent.num_actions=9" in str(report)


@pytest.mark.parametrize(
    "num_episodes, test_every, test",
    [(2, 10, [1]), (10, 10, [9]), (25, 10, [9, 19]), (5, 2, [1, 3]), (5, 0, None), (1, 0, None)],
)
def test_split(num_episodes, test_every, test):
    parts = split(num_episodes, test_every)
    assert parts.get("test") == test
    assert sorted(parts["train"] + (test or [])) == list(range(num_episodes))


def test_the_command_says_what_to_do_next(tmp_path, capsys):
    folder = save(tmp_path / "recordings", [recorded(), recorded()])
    out = tmp_path / "data"
    assert main(["import-episodes", f"episodes={folder}", f"out={out}", "size=32"]) == 0
    output = capsys.readouterr().out
    assert f"{out}/train: 1 episodes, 4 steps" in output and f"static_dataset.path={out}" in output
    assert EpisodeDataset(out / "train")[0].obs.shape == (4, 3, 32, 32)


def break_file(path):
    """Cut a file, and return its content."""
    content = path.read_bytes()
    path.write_bytes(content[:300])
    return content


def test_a_bad_first_file_is_named_and_nothing_is_left(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(4)])
    break_file(folder / "000.npz")
    with pytest.raises(DatasetError, match=r"000\.npz cannot be read"):
        imported(episodes=folder, out=tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]


def test_after_a_bad_file_is_repaired_the_same_command_continues(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(4)])
    content = break_file(folder / "002.npz")
    with pytest.raises(DatasetError, match=r"002\.npz cannot be read"):
        imported(episodes=folder, out=tmp_path / "data")
    kept = tmp_path / "data.partial" / "train" / "000" / "00" / "1" / "1.pt"
    number = kept.stat().st_ino
    (folder / "002.npz").write_bytes(content)
    report, (train, test) = imported(episodes=folder, out=tmp_path / "data")
    assert [len(train), len(test)] == [3, 1] and report.num_steps == {"train": 12, "test": 4}
    assert train.episode_path(1).stat().st_ino == number, "it was not written again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "recordings"]


def test_bad_files_can_be_skipped_and_are_reported(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(4)])
    break_file(folder / "001.npz")
    report, (train, test) = imported(episodes=folder, out=tmp_path / "data", skip_bad=True)
    assert [len(train), len(test)] == [2, 1]
    (line,) = report.skipped
    assert line.startswith("001.npz: ") and "cannot be read" in line
    assert f"left out: {line}" in str(report)
    for i in (0, 2, 3):
        break_file(folder / f"{i:03d}.npz")
    with pytest.raises(DatasetError, match=r"no episode could be imported; the first: .*000\.npz"):
        imported(episodes=folder, out=tmp_path / "other", skip_bad=True)
    assert not (tmp_path / "other.partial").exists()


def test_a_complete_import_is_not_done_again(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(3)])
    first, _ = imported(episodes=folder, out=tmp_path / "data")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    again, _ = imported(episodes=folder, out=tmp_path / "data")
    assert str(again) == str(first)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == written
    with pytest.raises(CacheError, match="not empty"):
        imported(episodes=folder, out=tmp_path / "data", test_every=2)
    recorded(seed=9).save(folder / "003.npz")
    with pytest.raises(CacheError, match="not empty"):
        imported(episodes=folder, out=tmp_path / "data")


def test_a_part_of_another_import_is_kept(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(4)])
    content = break_file(folder / "002.npz")
    for _ in range(2):
        with pytest.raises(DatasetError, match="cannot be read"):
            imported(episodes=folder, out=tmp_path / "data")
    (folder / "002.npz").write_bytes(content)
    with pytest.raises(InvalidInputError, match="holds a part of another import"):
        imported(episodes=folder, out=tmp_path / "data", size="32")
    os.utime(folder / "000.npz", (1, 1))
    with pytest.raises(DatasetError, match=r"000\.npz was changed since a part of it was imported"):
        imported(episodes=folder, out=tmp_path / "data")
    shutil.rmtree(tmp_path / "data.partial")
    imported(episodes=folder, out=tmp_path / "data")


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch):
    """Another program is still writing the file: it grows after it was read."""
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(3)])
    load = RecordedEpisode.load

    def load_while_it_grows(path):
        episode = load(path)
        if path.name == "001.npz":
            with path.open("ab") as file:
                file.write(b"more")
        return episode

    monkeypatch.setattr(RecordedEpisode, "load", load_while_it_grows)
    with pytest.raises(DatasetError, match=r"001\.npz was changed while it was read"):
        imported(episodes=folder, out=tmp_path / "data", skip_bad=True)


@pytest.mark.slow
def test_a_killed_import_continues_and_writes_nothing_twice(tmp_path):
    """It is killed at several moments, then the same command ends as if nothing had happened."""
    folder = save(tmp_path / "recordings", [recorded(6, seed=i) for i in range(30)])
    words = [sys.executable, "-m", "trainers.diamond", "import-episodes", f"episodes={folder}", "size=256"]
    out, partial = tmp_path / "data", tmp_path / "data.partial"
    written: dict[str, int] = {}
    for wanted in (1, 9, 20):
        child = subprocess.Popen([*words, f"out={out}"], stderr=subprocess.DEVNULL)
        while child.poll() is None and len(episodes_in(partial)) < wanted:
            time.sleep(0.002)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        now = episodes_in(partial)
        assert written.items() <= now.items(), "no episode is written again"
        written = now
    subprocess.run([*words, f"out={out}"], check=True, stdout=subprocess.DEVNULL)
    assert written.items() <= episodes_in(out).items() and not partial.exists()
    assert_same_import(out, folder, tmp_path, size="256")


def assert_same_import(out, folder, tmp_path, **options):
    """Check that a dataset is what an undisturbed import of a folder makes."""
    imported(episodes=folder, out=tmp_path / "whole", **options)
    for name in ("train", "test"):
        one, other = EpisodeDataset(out / name), EpisodeDataset(tmp_path / "whole" / name)
        one.check()
        assert one.lengths.tolist() == other.lengths.tolist()
        pairs = list(zip(one, other, strict=True))
        assert all(torch.equal(a.obs, b.obs) and torch.equal(a.act, b.act) for a, b in pairs)
    texts = [(x / "import.jsonl").read_text() for x in (out, tmp_path / "whole")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("torn", [b"", b'{"number": 3, "na'])
def test_a_line_without_its_episode_is_dropped(tmp_path, torn):
    """The process was killed between the line of an episode and its file, or within the line."""
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(6)])
    content = break_file(folder / "003.npz")
    with pytest.raises(DatasetError, match="cannot be read"):
        imported(episodes=folder, out=tmp_path / "data")
    log = tmp_path / "data.partial" / "import.jsonl"
    line = json.loads(log.read_bytes().splitlines()[-1])
    begun = json.dumps(line | {"number": 3, "name": "003.npz", "index": 3, "stamps": {}})
    log.write_bytes(log.read_bytes() + f"{begun}\n".encode() + torn)
    (folder / "003.npz").write_bytes(content)
    imported(episodes=folder, out=tmp_path / "data")
    assert_same_import(tmp_path / "data", folder, tmp_path)


def episodes_in(folder):
    """Return the number of each episode's file, by its path."""
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.glob("*/*/*/*/[0-9]*.pt")}


def test_two_imports_at_once_are_kept_apart(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(seed=i) for i in range(3)])
    (tmp_path / "data.partial").mkdir()
    with locked(tmp_path / "data.partial"), pytest.raises(FolderInUseError, match="working on the import"):
        imported(episodes=folder, out=tmp_path / "data")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    folder = save(tmp_path / "recordings", [recorded(), recorded()])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("precious")
    with pytest.raises(CacheError, match="not empty"):
        imported(episodes=folder, out=tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (
            [],
            2,
            "give one of episodes=FOLDER, minari=ID, hdf5=FILE, videos=FOLDER and lerobot=FOLDER; got none",
        ),
        (["episodes=a", "minari=b"], 2, "got episodes and minari"),
        (
            ["episodes=a", "obs_key=image"],
            2,
            "obs_key=image is for minari=, hdf5=, lerobot=; episodes= does not",
        ),
        (["minari=a", "act_key=x"], 2, "act_key=x is for hdf5=, videos=, lerobot=; minari= does not need it"),
        (["episodes=a", "action_low=1"], 2, "action_low=[1.0] is for hdf5="),
        (["episodes=a", "size=0"], 2, "size must be a number in 1..1024, or two, such as 48x64, got 0"),
        (["episodes=a", "size=64x"], 2, "size must be a number in 1..1024"),
        (["episodes=a", "test_every=1"], 2, "test_every must be 0 for no test episodes, or at least 2"),
        (["episode=a"], 2, "unknown key episode: did you mean episodes?"),
        (["episodes=nowhere"], 1, "episodes=nowhere: there is no such folder"),
        (["episodes=."], 1, "holds no .npz files, one an episode; found notes.txt"),
    ],
)
def test_errors_are_one_line(arguments, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no episode")
    assert main(["import-episodes", "out=data", *arguments]) == code
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["record", "import-episodes", "push-to-hub"])
def test_help_tells_the_keys(command, capsys):
    assert main([command, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert help_text.startswith(f"usage: python -m trainers.diamond {command} ")
    assert max(map(len, help_text.splitlines())) <= 112
    assert main(["--help"]) == 0
    assert f"  {command} " in capsys.readouterr().out


def test_a_single_episode_cannot_be_split(tmp_path):
    folder = save(tmp_path / "recordings", [recorded()])
    with pytest.raises(DatasetError, match="there is one episode"):
        imported(episodes=folder, out=tmp_path / "data")


def test_a_published_dataset_needs_no_import(tmp_path, capsys):
    """`static_dataset.path` reads the published code's datasets, and the importer says so."""
    write_as_published(tmp_path / "train", [made_up_episode(8, number=i) for i in range(3)])
    write_as_published(tmp_path / "test", [made_up_episode(5, number=9)])
    data.check_static_dataset(tmp_path)
    assert data.count_actions(tmp_path) == 3
    assert EpisodeDataset(tmp_path / "train")[1].obs[2, 0, 0, 0] == 12
    for folder in (tmp_path, tmp_path / "train"):
        assert main(["import-episodes", f"episodes={folder}", f"out={tmp_path / 'out'}"]) == 1
        assert f"static_dataset.path={tmp_path}\n" in capsys.readouterr().err


def write_as_published(path, episodes):
    """Write a dataset as the published code does, without this package."""
    names = ("obs", "act", "rew", "end", "trunc")
    for i, episode in enumerate(episodes):
        file = path / "000" / "00" / str(i) / f"{i}.pt"
        file.parent.mkdir(parents=True)
        info = {"final_observation": episode.final_observation / 255 * 2 - 1}
        torch.save({**{name: getattr(episode, name) for name in names}, "info": info}, file)
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


@pytest.mark.parametrize(
    "package, source",
    [
        ("h5py", "hdf5=a.hdf5"),
        ("av", "videos=films"),
        ("pyarrow", "videos=films"),
        ("pyarrow", "lerobot=robot"),
    ],
)
def test_without_a_package_the_extra_is_named(package, source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("films/a.mp4", "films/a.csv", "robot/meta/info.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["import-episodes", source, "out=data"]) == 1
    assert "pip install 'diamond-gym[data]'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


# --- Minari


def test_without_minari_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    assert main(["import-episodes", "minari=dot/random-v0", f"out={tmp_path / 'out'}"]) == 1
    assert "pip install 'diamond-gym[minari]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def minari(tmp_path, monkeypatch):
    """The Minari library, with its datasets in the test's folder."""
    library = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return library


def make_minari_dataset(minari, env, name, *, key=None, num_episodes=4, **kwargs):
    """Play at random; return each episode's observations and actions."""
    from minari.data_collector import EpisodeBuffer

    played, buffers = [], []
    for i in range(num_episodes):
        obs, _ = env.reset(seed=i)
        env.action_space.seed(i)
        frames, act, rest, is_over = [obs.copy()], [], [], False
        while not is_over and len(act) < 30:
            act.append(env.action_space.sample())
            obs, *outcome, _ = env.step(act[-1])
            frames.append(obs.copy())
            rest.append(outcome)
            is_over = outcome[1] or outcome[2]
        played.append((np.stack(frames), act))
        obs = frames if key is None else {key: frames}
        buffers.append(EpisodeBuffer(i, None, None, obs, act, *(list(x) for x in zip(*rest, strict=True))))
    space = env.observation_space
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=space if key is None else gymnasium.spaces.Dict({key: space}),
        action_space=env.action_space,
        data_format="hdf5",
        description="for a test",
        **kwargs,
    )
    return played


@pytest.mark.parametrize("key", [None, "image"])
def test_minari_dataset(minari, key, tmp_path):
    env = gymnasium.make("MovingDot-v0", start=1)
    played = make_minari_dataset(minari, env, "dot/random-v0", key=key, jpeg_encoding=False)
    chosen = {} if key is None else {"obs_key": key}
    report, (train, test) = imported(minari="dot/random-v0", out=tmp_path / "data", **chosen)
    assert report.num_actions == 3
    assert [len(train), len(test)] == [3, 1]
    for (frames, act), episode in zip(played, [*train, *test], strict=True):
        assert np.array_equal(episode.obs.permute(0, 2, 3, 1), frames[:-1])
        assert (episode.act + 1).tolist() == act
        assert episode.is_finished
        final = episode.final_observation
        assert final is not None and np.array_equal(final.permute(1, 2, 0), frames[-1])


def test_what_minari_datasets_cannot_be(minari, tmp_path, capsys):
    def error_of(*arguments):
        assert main(["import-episodes", f"out={tmp_path / 'out'}", *arguments]) in (1, 2)
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    make_minari_dataset(minari, gymnasium.make("MovingDot-v0"), "dot/dict-v0", key="image")
    make_minari_dataset(minari, gymnasium.make("Pendulum-v1"), "pendulum/random-v0", num_episodes=2)
    make_minari_dataset(minari, gymnasium.make("CartPole-v1"), "cartpole/random-v0", num_episodes=2)
    assert "obs_key must be one of image; got none" in error_of("minari=dot/dict-v0")
    assert "obs_key must be one of image; got pixels" in error_of("minari=dot/dict-v0", "obs_key=pixels")
    assert "leave out obs_key" in error_of("minari=cartpole/random-v0", "obs_key=image")
    assert "episode 0 cannot be read as an episode of images" in error_of("minari=pendulum/random-v0")
    assert "episode 0 cannot be read as an episode of images: obs must be uint8" in error_of(
        "minari=cartpole/random-v0"
    )
    assert "`minari download dot/other-v0`" in error_of("minari=dot/other-v0")


def test_jpeg_is_warned_of(minari, tmp_path):
    make_minari_dataset(minari, gymnasium.make("MovingDot-v0"), "dot/jpeg-v0")
    folder = tmp_path / "minari" / "dot" / "jpeg-v0"
    report, _ = imported(minari=folder, out=tmp_path / "data")
    assert "jpeg_encoding=False" in str(report)


def test_what_file_managers_leave_beside_recordings_is_skipped(tmp_path):
    folder = tmp_path / "recordings"
    save(folder, [recorded(seed=i) for i in range(2)])
    (folder / "._000.npz").write_bytes(b"\0\5\x16\7")  # a Mac's companion of 000.npz
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    _, (train, test) = imported(episodes=folder, out=tmp_path / "data")
    assert [len(train), len(test)] == [1, 1]
    for path in folder.glob("0*.npz"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"holds no \.npz files, one an episode; found nothing"):
        imported(episodes=folder, out=tmp_path / "other")

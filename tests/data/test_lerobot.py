"""The import of LeRobot's datasets, in the layouts of versions 2.1 and 3.0."""

import json

import numpy as np
import pytest

from tests.others_data import assert_same, importer, made, smooth, write_lerobot
from trainers.diamond.cli import main

pytest.importorskip("av")
pytest.importorskip("pyarrow")

NEWER, OLDER = "v3.0", "v2.1"

imported = importer("lerobot")


@pytest.mark.parametrize("codec", ["libx264rgb", "image"])
@pytest.mark.parametrize("version", [OLDER, NEWER])
def test_lossless_pictures_are_exact(tmp_path, version, codec):
    episodes = [made(5 + i, i) for i in range(5)]
    folder = write_lerobot(tmp_path / "robot", episodes, version, codec=codec)
    report, (train, test) = imported(folder, tmp_path / "data", test_every=3)
    assert [len(train), len(test)] == [4, 1] and report.num_actions == 3
    for episode, source in zip([*train, *test], [*episodes[:2], *episodes[3:], episodes[2]], strict=True):
        assert_same(episode, source, has_final=False)
    assert "5 of 5 ends lack the frame after them" in str(report)


@pytest.mark.parametrize("version", [OLDER, NEWER])
def test_lossy_pictures_are_those_of_their_episode(tmp_path, version):
    """Episodes of a film begin between its key frames."""
    episodes = [smooth(9 + i, i) for i in range(3)]
    folder = write_lerobot(tmp_path / "robot", episodes, version, codec="libx264", per_file=3)
    _, (train,) = imported(folder, tmp_path / "data", test_every=0)
    for episode, source in zip(train, episodes, strict=True):
        error = episode.obs.float().mean(dim=(1, 2, 3)).numpy() - source.obs[:-1].mean(axis=(1, 2, 3))
        assert len(episode) == len(source) and np.abs(error).max() < 3


def test_what_a_dataset_does_not_have_is_said(tmp_path):
    folder = write_lerobot(tmp_path / "robot", [made(5, i) for i in range(2)])
    change_info(folder, lambda info: [info["features"].pop(name) for name in ("next.reward", "next.done")])
    report, (train, _) = imported(folder, tmp_path / "data")
    assert "there is no feature next.reward: all rewards are 0" in str(report)
    assert "there is no feature next.done: no episode terminates" in str(report)
    assert not train[0].rew.any() and not train[0].is_finished


def test_bounds_of_actions_are_those_of_the_statistics(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write_lerobot(tmp_path / "robot", [made(5, i) for i in range(2)], per_file=2)
    (path,) = folder.glob(TABLES)
    act = np.random.default_rng(0).uniform(-2, 3, (10, 2)).astype(np.float32)
    table = pq.read_table(path).drop_columns(["action"])
    pq.write_table(table.append_column("action", pa.array(list(act))), path)
    change_info(folder, lambda info: info["features"].update(action={"dtype": "float32", "shape": [2]}))
    low, high = act.min(axis=0).tolist(), act.max(axis=0).tolist()
    (folder / "meta" / "stats.json").write_text(json.dumps({"action": {"min": low, "max": high}}))
    report, (train,) = imported(folder, tmp_path / "data", test_every=0)
    assert np.array_equal(np.concatenate([episode.act for episode in train]), act)
    space = report.action_space
    assert space is not None and (list(space.low), list(space.high)) == (low, high)


# --- what cannot be read


def change_info(folder, change):
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def put(**values):
    return lambda folder: change_info(folder, lambda info: info.update(values))


def two_cameras(folder):
    feature = {"dtype": "video", "shape": [64, 64, 3]}
    change_info(folder, lambda info: info["features"].update({"observation.images.wrist": feature}))


def no_cameras(folder):
    change_info(folder, lambda info: info["features"].pop("observation.images.top"))


def no_actions(folder):
    change_info(folder, lambda info: info["features"].pop("action"))


def without(pattern):
    return lambda folder: min(folder.glob(pattern)).unlink()


def cut(pattern):
    def change(folder):
        path = min(folder.glob(pattern))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def another_rate(folder):
    change_info(folder, lambda info: info.update(fps=5))


FILMS, TABLES = "videos/**/*.mp4", "data/**/*.parquet"
OUTSIDE = "../{video_key}/{chunk_index:03d}.mp4"


@pytest.mark.parametrize(
    "version, change, message",
    [
        (NEWER, put(codebase_version="v1.6"), "its version is v1.6, accepted are v2.0, v2.1 and v3.0"),
        (NEWER, put(fps=0), "at 0.0 pictures a second"),
        (NEWER, put(total_frames=10**13), "10000000000000 steps need"),
        (NEWER, put(video_path=OUTSIDE), f"its path {OUTSIDE!r} does not lie in its folder"),
        (NEWER, put(data_path="/etc/passwd"), "its path '/etc/passwd' does not lie in its folder"),
        (NEWER, put(data_path="{chunk_index.real}"), "does not lie in its folder"),
        (NEWER, put(data_path="{chunk}"), "cannot be read"),
        (NEWER, put(features=[]), "cannot be read as the description of a dataset of LeRobot"),
        (NEWER, two_cameras, "choose one with obs_key=; got none"),
        (NEWER, no_cameras, "it has no pictures"),
        (NEWER, no_actions, "there is no feature action (act_key)"),
        (NEWER, without("meta/info.json"), "is no dataset of LeRobot: there is no"),
        (NEWER, cut("meta/info.json"), "info.json cannot be read"),
        (NEWER, without("meta/episodes/*/*"), "holds no episodes: it is incomplete"),
        (NEWER, without(FILMS), "file-000.mp4"),
        (OLDER, without(FILMS), "episode_000000.mp4"),
        (OLDER, without(TABLES), "episode_000000.parquet"),
        (OLDER, cut(FILMS), "episode_000000.mp4 cannot be read as a film"),
        (OLDER, cut(TABLES), "episode_000000.parquet cannot be read"),
        (NEWER, another_rate, "pictures are missing"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, version, change, message, capsys):
    folder = write_lerobot(tmp_path / "robot", [made(5, i) for i in range(2)], version)
    change(folder)
    assert main(["import-episodes", f"lerobot={folder}", f"out={tmp_path / 'data'}"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize("kept", [4, 6])
def test_films_of_another_length(tmp_path, kept, capsys):
    from tests.others_data import write_video

    episode = made(5)
    folder = write_lerobot(tmp_path / "robot", [episode], OLDER)
    film = min(folder.glob(FILMS))
    write_video(film, made(8).obs[:kept], "libx264rgb", crf="0")
    assert main(["import-episodes", f"lerobot={folder}", "test_every=0", f"out={tmp_path / 'data'}"]) == 1
    found = "more than 5" if kept > 5 else kept
    assert f"episode 0: it has {found} pictures and 5 actions" in capsys.readouterr().err

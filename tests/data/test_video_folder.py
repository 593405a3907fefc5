"""The import of videos with tables of actions, made by real encoders."""

import numpy as np
import pytest

from tests.others_data import assert_same, importer, made, smooth, write_table, write_video, write_videos
from trainers.diamond.cli import main

pytest.importorskip("av")
pytest.importorskip("pyarrow")

imported = importer("videos")


@pytest.mark.parametrize(
    "suffix, codec, options",
    [("mkv", "ffv1", {}), ("avi", "ffv1", {}), ("mp4", "libx264rgb", {"crf": "0"})],
)
def test_lossless_videos_are_exact(tmp_path, suffix, codec, options):
    episodes = [made(5 + i, i) for i in range(3)]
    for i, episode in enumerate(episodes):
        write_video(tmp_path / "films" / f"{i}.{suffix}", episode.obs, codec, **options)
        write_table(tmp_path / "films" / f"{i}.csv", episode)
    report, (train, test) = imported(tmp_path / "films", tmp_path / "data")
    assert report.num_actions == 3 and report.num_ends == 3
    for episode, source in zip([*train, *test], episodes, strict=True):
        assert_same(episode, source, has_final=True)


def test_h264_keeps_pictures_in_their_order(tmp_path):
    """Lossy pictures are near, and none is exchanged with another: B-frames are stored in another order."""
    episode = smooth(20)
    write_video(tmp_path / "films" / "a.mp4", episode.obs, "libx264", bf="3", g="12")
    write_table(tmp_path / "films" / "a.csv", episode)
    _, (train,) = imported(tmp_path / "films", tmp_path / "data", test_every=0)
    found = train[0].obs.float().mean(dim=(1, 2, 3)).numpy()
    assert np.abs(found - episode.obs[:-1].mean(axis=(1, 2, 3))).max() < 3
    assert train[0].act.tolist() == episode.act.tolist()


def test_other_columns_in_parquet(tmp_path):
    """As many pictures as rows: the frame after the last step is not known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    episode = made(6)
    write_video(tmp_path / "films" / "a.mkv", episode.obs[:-1])
    columns = {"key": episode.act - 1, "points": episode.rew, "over": np.arange(6) == 5, "time": np.arange(6)}
    pq.write_table(pa.table(columns), tmp_path / "films" / "a.parquet")
    keys = {"act_key": "key", "rew_key": "points", "terminated_key": "over", "action_low": [-1]}
    report, (train,) = imported(tmp_path / "films", tmp_path / "data", test_every=0, **keys)
    assert_same(train[0], episode, has_final=False)
    assert "1 of 1 ends lack the frame after them" in str(report)


def test_one_table_of_all_videos(tmp_path):
    episodes = [made(4 + i, i) for i in range(3)]
    rows = ["video,action"]
    for i, episode in enumerate(episodes):
        write_video(tmp_path / "films" / f"play_{i}.mkv", episode.obs)
        rows += [f"play_{i}.mkv,{act}" for act in episode.act]
    (tmp_path / "films" / "actions.csv").write_text("\n".join(rows))
    report, (train,) = imported(tmp_path / "films", tmp_path / "data", test_every=0)
    assert [episode.act.tolist() for episode in train] == [source.act.tolist() for source in episodes]
    assert "actions.csv has no column reward: all rewards are 0" in str(report)


def test_rows_after_an_end_are_left_out(tmp_path):
    episode = made(8)
    write_video(tmp_path / "films" / "a.mkv", episode.obs)
    write_table(tmp_path / "films" / "a.csv", episode, terminated=(np.arange(8) >= 4).astype(int))
    report, (train,) = imported(tmp_path / "films", tmp_path / "data", test_every=0)
    assert len(train[0]) == 5 and report.skipped == ["a.mkv: 3 steps after its end"]
    final = train[0].final_observation
    assert final is not None and np.array_equal(final.permute(1, 2, 0), episode.obs[5])


def test_bad_videos_can_be_skipped(tmp_path):
    folder = write_videos(tmp_path / "films", [made(5, i) for i in range(4)])
    (folder / "play_1.csv").unlink()
    (folder / "play_2.mkv").write_bytes((folder / "play_2.mkv").read_bytes()[:40_000])
    report, (train, test) = imported(folder, tmp_path / "data", skip_bad=True)
    assert [len(train), len(test)] == [1, 1]
    assert "play_1.mkv has no actions" in report.skipped[0] and "play_2.mkv" in report.skipped[1]


# --- what cannot be read


def no_table(folder):
    (folder / "play_0.csv").unlink()


def no_video(folder):
    (folder / "play_0.mkv").unlink()


def shorter_table(folder):
    lines = (folder / "play_0.csv").read_text().splitlines()
    (folder / "play_0.csv").write_text("\n".join(lines[:3]))


def longer_table(folder):
    write_table(folder / "play_0.csv", made(9))


def cut(name, share):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


def flip(folder):
    """Change bytes inside of a picture, which FFV1 finds by its checksums."""
    content = bytearray((folder / "play_0.mkv").read_bytes())
    for i in range(len(content) // 2, len(content) // 2 + 100, 3):
        content[i] ^= 0x5A
    (folder / "play_0.mkv").write_bytes(content)


def table(text):
    return lambda folder: (folder / "play_0.csv").write_text(text)


def list_of_others(folder):
    """A playlist in disguise must not make FFmpeg open what it names."""
    (folder / "play_0.mkv").unlink()
    text = f"#EXTM3U\n#EXTINF:10,\n{folder / 'play_1.mkv'}\n"
    (folder / "play_0.mp4").write_text(text)


@pytest.mark.parametrize(
    "change, message",
    [
        (no_table, "play_0.mkv has no actions: expected a table play_0.csv or play_0.parquet beside it"),
        (no_video, "play_0.csv has rows of actions but no video"),
        (shorter_table, "play_0.mkv has at least 4 pictures and 2 rows of actions: t actions need t or t+1"),
        (longer_table, "play_0.mkv has 6 pictures and 9 rows of actions"),
        (cut("play_0.mkv", 0), "play_0.mkv cannot be read as a film"),
        (cut("play_0.mkv", 0.01), "play_0.mkv"),
        (cut("play_0.mkv", 0.5), "play_0.mkv has 2 pictures and 5 rows of actions"),
        (flip, "play_0.mkv cannot be read as a film: a picture is damaged (slice CRC mismatch"),
        (list_of_others, "play_0.mp4 cannot be read as a film"),
        (table("time,reward\n0,1\n"), "play_0.csv has no column action; found time, reward"),
        (table(""), "play_0.csv cannot be read as a table"),
        (table("action\n"), "an episode needs at least one step"),
        (
            table("action\nup\ndown\n" + "up\n" * 3),
            "the actions are object, accepted are integers, booleans and floats",
        ),
        (
            table("action\n0.5\n" + "0\n" * 4),
            "the actions are float32 of 1 number(s) a step, here from 0 to 0.5: say",
        ),
        (table("action\n1\n\n0\n0\n0"), "play_0"),
        (table("action,reward\n1,\n0,1\n0,1\n0,1\n0,1\n"), "empty fields"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, change, message, capsys):
    folder = write_videos(tmp_path / "films", [made(5, i) for i in range(2)])
    change(folder)
    assert main(["import-episodes", f"videos={folder}", f"out={tmp_path / 'data'}"]) == 1
    error = capsys.readouterr().err
    assert message in error and "play_0" in error
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.partial").exists()


def test_folders_without_videos(tmp_path, capsys):
    for folder, message in ((tmp_path / "no", "there is no such folder"), (tmp_path, "found notes.txt")):
        (tmp_path / "notes.txt").write_text("no video")
        assert main(["import-episodes", f"videos={folder}", f"out={tmp_path / 'data'}"]) == 1
        assert message in capsys.readouterr().err


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, capsys):
    """A film of one colour is a few kilobytes; in memory a picture would take 68 megabytes."""
    folder = tmp_path / "films"
    write_video(folder / "a.mp4", np.zeros((1, 4704, 4800, 3), np.uint8), "libx264", preset="ultrafast")
    write_table(folder / "a.csv", made(1))
    assert (folder / "a.mp4").stat().st_size < 1e6
    assert main(["import-episodes", f"videos={folder}", "test_every=0", f"out={tmp_path / 'data'}"]) == 1
    assert "a frame has 68 MB, accepted are 67" in capsys.readouterr().err

"""The demo: its files and output, and errors in one line."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import imageio.v2 as imageio
import pytest

from diamond_gym import demo
from tests import worlds


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return worlds.save_tiny_world(tmp_path_factory.mktemp("world"), end_bias=-30)


def test_it_writes_a_video_and_a_strip(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new folder"
    assert demo.main([f"--checkpoint={checkpoint}", "--game=breakout", "--steps=6", f"--out={out}"]) == 0
    assert sorted(os.listdir(out)) == ["demo.mp4", "demo.png"]
    with imageio.get_reader(out / "demo.mp4") as video:
        frames = [video.get_data(i) for i in range(video.count_frames())]
    assert len(frames) == 6 and frames[0].shape == (816, 384, 3)
    strip = cv2.imread(str(out / "demo.png"))
    assert strip.shape == (44 + 2 * 268, 164 + 2 * 268, 3)  # steps 1 and 5
    assert (strip[:, 164:176] == 255).all() and (strip[:, 432:444][44:] == 255).all(), "frames are apart"
    printed = capsys.readouterr().out
    assert "6 steps imagined" in printed and "steps/s" in printed
    assert str(out / "demo.mp4") in printed and str(out / "demo.png") in printed


def test_a_game_without_a_scripted_player_is_played_at_random(tmp_path: Path):
    folder = tmp_path / "world"
    worlds.save_world_of(folder, "Freeway", ["NOOP", "UP", "DOWN"])
    assert demo.main([f"--checkpoint={folder}", "--game=Freeway", "--steps=2", f"--out={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--game=Brekout"], 2, "did you mean Breakout"),
        (["game=Brekout"], 2, "did you mean Breakout"),
        (["checkpoint=nowhere"], 1, "no file or folder nowhere"),
        (["--out=/dev/null/folder"], 1, "cannot write to the folder"),
        (["--game=Adventure"], 1, "no world model of Adventure"),
        (["--steps=0"], 2, "steps must be at least 1, got 0"),
        (["--seed=-1"], 2, "seed must be at least 0, got -1"),
        (["--player=scriptd"], 2, "got 'scriptd': did you mean scripted?"),
        (["--steps=many"], 2, "steps must be an integer, got 'many'"),
    ],
)
def test_what_cannot_be_done(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main(arguments) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and message in printed.err
    assert printed.err.count("\n") == 1 and not printed.out and not os.listdir(tmp_path)

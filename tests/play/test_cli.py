"""The command line of play: its meaning, its output, and errors in one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pygame
import pytest

from diamond_gym.errors import InvalidInputError, UnknownGameError
from diamond_gym.play import released
from diamond_gym.play.__main__ import main
from diamond_gym.play.settings import parse
from diamond_gym.registration import ATARI_100K
from tests import recordings, worlds


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    return worlds.save_tiny_world(tmp_path_factory.mktemp("world"), end_bias=-30)


@pytest.mark.parametrize(
    "arguments, game, checkpoint",
    [
        ([], "Breakout", "auto"),
        (["game=Pong"], "Pong", "auto"),
        (["DiamondBreakout-v0"], "Breakout", "auto"),
        (["ms_pacman", "device=cpu"], "MsPacman", "auto"),
        (["game=outputs/run"], None, "outputs/run"),
        (["model.pt"], None, "model.pt"),
        (["hub:me/mine"], None, "hub:me/mine"),
        (["game=Pong", "checkpoint=run"], "Pong", "run"),
        (["checkpoint=run"], None, "run"),
        (["--pretrained", "3"], "Assault", "hub"),
        (["--pretrained", "pong"], "Pong", "hub"),
        (["-p", "game=Pong", "seed=1"], "Pong", "hub"),
        (["-p", "Pong", "seed=1"], "Pong", "hub"),
        (["-r", "game=Pong", "--fps", "30", "device=cpu"], "Pong", "auto"),
    ],
)
def test_what_is_played(arguments: list[str], game: str | None, checkpoint: str):
    settings = parse(arguments)
    assert (settings.world.game, settings.world.checkpoint) == (game, checkpoint)


def test_a_folder_here_is_a_run_unless_it_is_called_like_a_game(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("run1", "Pong"):
        (tmp_path / name).mkdir()
    assert parse(["run1"]).world.checkpoint == "run1"
    assert parse(["Pong"]).world.game == "Pong"


@pytest.mark.parametrize("file", ["config/trainer.yaml", "model.safetensors"])
def test_in_a_worlds_folder_it_is_played(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / file).touch()
    assert (parse([]).world.game, parse([]).world.checkpoint) == (None, ".")
    assert parse(["Pong"]).world.checkpoint == "auto"


def test_keys_and_flags_are_the_same():
    flags = parse(["-r", "--fps", "30", "--no-header", "--captures", "~/x", "--human"])
    assert flags == parse(["record=true", "fps=30", "header=false", "captures=~/x", "human=true"])
    assert flags.captures == Path("~/x").expanduser()


@pytest.mark.parametrize(
    "arguments, folder", [([], None), (["-d"], ""), (["-d", "data"], "data"), (["-d", "game=Pong"], "")]
)
def test_dataset_mode(arguments: list[str], folder: str | None):
    assert parse(arguments).dataset_mode == folder


def test_other_options():
    settings = parse(
        "-n 40 --fps 30 --size 645 --no-header --horizon 9 num_denoising_steps=2 order=2".split()
    )
    assert settings.num_steps_initial_collect == 40 and settings.fps == 30 and settings.size == 640
    assert not settings.has_header and settings.horizon == 9
    assert settings.world.num_denoising_steps == 2 and settings.world.order == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gaem=Pong"], "did you mean game"),
        (["--size", "10"], "size must be in 256..4096, got 10"),
        (["--fps", "0"], r"fps must be in 1..1000, got 0"),
        (["--fps", "nan"], r"fps must be in 1..1000, got nan"),
        (["--horizon", "0"], "horizon must be at least 1"),
        (["-n", "-1"], "num_steps_initial_collect must be at least 0"),
        (["--frames", "0"], "frames must be at least 1"),
        (["--store-original-obs"], r"need record=true \(-r\)"),
        (["seed=-1"], "seed must be at least 0"),
        (["--pretrained", "27"], "numbered 1 to 26, got 27"),
        (["--pretrained", "Adventure"], "no model of Adventure has been released"),
        (["--pretrained", "Pong", "checkpoint=x"], "do not give them too"),
        (["Pong", "Breakout"], "written key=value, got 'Breakout'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str):
    with pytest.raises(InvalidInputError, match=message):
        parse(arguments)


def test_unknown_games_are_neither_games_nor_folders():
    with pytest.raises(UnknownGameError, match=r"did you mean Breakout.*nor is there a run folder"):
        parse(["game=Brekout"])


def test_a_released_model_is_chosen_from_a_menu():
    answers, written = iter(["0", "Brekout", "11"]), []
    assert released.ask(lambda prompt: next(answers), written.append) == ATARI_100K[10]
    assert "11 DemonAttack" in written[0] and all(game in written[0] for game in ATARI_100K)
    assert "got 0" in written[1] and "did you mean Breakout" in written[2]


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def no_input(prompt: str) -> str:
        raise EOFError

    with pytest.raises(InvalidInputError, match="which released model"):
        released.ask(no_input, lambda text: None)


# --- the whole program, under SDL's dummy driver


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_play(world: str, capsys: pytest.CaptureFixture[str]):
    assert (
        main([world, "--frames", "4", "--fps", "200", "--size", "256", "--policy", "-r", "--horizon", "2"])
        == 0
    )
    printed = capsys.readouterr().out
    assert f"Breakout, imagined by {world}" in printed and "policy: the checkpoint's actor-critic" in printed
    assert "Space            FIRE" in printed and "frame pacing: p50" in printed and "p95" in printed
    assert "1 episode(s) saved under dataset" in printed and os.listdir("dataset") == ["rec_Breakout-wm_π"]


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_film_from_the_start(world: str, name: str):
    size = ["--size", "256", "--fps", "200", "--frames", "3"]
    assert main([world, "--film", f"films/{name}", "--no-header", *size]) == 0
    assert Path("films", name).stat().st_size > 500 and os.listdir("films") == [name]


def test_ctrl_c_keeps_the_film(
    world: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pictures = iter([[], []])

    def get() -> Any:
        try:
            return next(pictures)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(pygame.event, "get", get)
    assert main([world, "--film", "film.mp4", "--size", "256", "--fps", "200"]) == 130
    assert os.listdir() == ["film.mp4"] and "frame pacing" in capsys.readouterr().out


def test_dataset_mode_of_a_run_folder_and_of_this_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (tmp_path / "run" / "dataset", tmp_path / "dataset"):
        recordings.save_dataset(folder / "train", 2)
    for arguments in ([str(tmp_path / "run"), "-d"], ["-d"], ["-d", "game=Pong"], ["-d", "run/dataset"]):
        assert main([*arguments, "--frames", "2", "--fps", "200", "--size", "256"]) == 0
        assert "frame pacing" in capsys.readouterr().out


ERRORS = [
    (["game=Brekout"], 2, "did you mean Breakout"),
    (["game=outputs/nowhere"], 1, "no file or folder outputs/nowhere"),
    (["game=Adventure"], 1, "no world model of Adventure"),
    (["WORLD", "game=Pong"], 2, "given twice"),
    (["game=Pong", "checkpoint=WORLD"], 1, "is a world model of Breakout, not of Pong"),
    (["."], 1, "holds no world model"),
    (["-d"], 1, "no datasets: there is no folder dataset"),
    (["-d", "nowhere"], 1, "there is no folder nowhere"),
    (["-d", "."], 1, "no datasets in ."),
    (["WORLD", "device=tpu"], 1, "'tpu' is not available"),
    (["WORLD", "order=3"], 2, "order must be 1"),
    (["WORLD", "-n", "2"], 2, "at least the 4 steps"),
    (["WORLD", "--film", "film.avi"], 2, ".mp4 or .gif"),
    (["WORLD", "--film", "/dev/null/film.mp4"], 1, "cannot write to the folder"),
    (["export-minari", "dataset=nowhere", "id=a/b-v0"], 1, "no dataset at nowhere"),
    (["export-minari"], 2, "missing: dataset=... id=..."),
]


@pytest.mark.parametrize("arguments, code, message", ERRORS)
def test_errors_are_one_line(
    world: str, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
):
    assert main([argument.replace("WORLD", world) for argument in arguments]) == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1
    assert not os.listdir()


def test_recording_to_a_read_only_folder(world: str, capsys: pytest.CaptureFixture[str]):
    Path("dataset").write_text("a file, so that even root cannot make a folder here")
    assert main([world, "-r"]) == 1
    assert "cannot write to the folder dataset" in capsys.readouterr().err


def test_no_display(world: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    pygame.display.quit()
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main([world]) == 1
    errors = capsys.readouterr().err
    assert "there is no display" in errors and "--film FILE --frames N" in errors and errors.count("\n") == 1
    assert "in a browser, here or elsewhere, with `--web`" in errors


def test_no_pygame(world: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert main([world]) == 1
    assert 'pip install "diamond-gym[play]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["export-minari", "--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    try:
        assert main(arguments) == 0
    except SystemExit as stopped:
        assert stopped.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m diamond_gym.play") and "dataset/rec_<env>_<H or π>" in printed

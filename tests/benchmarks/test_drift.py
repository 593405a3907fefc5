"""The drift benchmark on tiny worlds of both objectives."""

import json
import math

import cv2
import pytest

from benchmarks import drift
from diamond_gym.checkpoints import save_world
from diamond_gym.world.sampler import DiffusionSamplerConfig
from tests import worlds
from tests.world.test_ddpm import ddpm_agent


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    edm = worlds.save_tiny_world(folder / "edm")
    save_world(
        folder / "ddpm",
        ddpm_agent(),
        game=worlds.GAME,
        action_meanings=worlds.ACTION_MEANINGS,
        sampler=DiffusionSamplerConfig(),
        contexts=worlds.contexts(),
    )
    return {"edm": edm, "ddpm": str(folder / "ddpm")}


SHORT = "--horizon 4 --episodes 2 --starts 4 --policy random --device cpu --num-denoising-steps 1 3".split()


def run(out, checkpoints, *more, names=("edm", "ddpm")):
    given = [f"{name}={checkpoints[name]}" for name in names]
    return drift.main([*given, *SHORT, "--out", str(out), *more])


def test_the_whole_command(checkpoints, tmp_path, capsys):
    assert run(tmp_path / "out", checkpoints) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["drift.json", "drift.png"]
    result = json.loads((tmp_path / "out" / "drift.json").read_text())
    curves = result["curves"]
    kinds = [(curve["objective"], curve["num_denoising_steps"]) for curve in curves]
    assert kinds == [("edm", 1), ("edm", 3), ("ddpm", 1), ("ddpm", 3)]
    assert [curve["noise_levels"] for curve in curves[2:]] == [[500.0], [666.0, 333.0, 0.0]]
    for curve in curves:
        assert [row["step"] for row in curve["steps"]] == [1, 2, 3, 4]
        assert all(math.isfinite(row["psnr"]) for row in curve["steps"] if row["frames"])
        same = [(row["frames"], row["psnr_repeat"]) for row in curve["steps"]]
        assert same == [(row["frames"], row["psnr_repeat"]) for row in curves[0]["steps"]]
    assert len({curve["steps"][0]["psnr"] for curve in curves}) == 4
    text = capsys.readouterr().out
    for curve in curves:
        assert f"{curve['steps'][0]['psnr']:.2f}" in text
    assert cv2.imread(str(tmp_path / "out" / "drift.png")).std() > 0


def test_one_objective(checkpoints, tmp_path):
    assert run(tmp_path, checkpoints, names=["ddpm"]) == 0
    curves = json.loads((tmp_path / "drift.json").read_text())["curves"]
    assert [curve["noise_levels"] for curve in curves] == [[500.0], [666.0, 333.0, 0.0]]


def test_a_checkpoint_of_the_other_objective_is_refused(checkpoints, tmp_path, capsys):
    assert drift.main([f"ddpm={checkpoints['edm']}", *SHORT, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "its denoiser was trained with objective edm" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    assert drift.main([f"edm={tmp_path / 'none'}", *SHORT, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give edm=PATH, ddpm=PATH or both"),
        (["vae=x"], "unknown key vae: "),
        (["edm="], "key edm needs a value"),
        (["edm=x", "edm=y"], "key edm is given twice"),
        (["edm=x", "--horizon", "0"], "horizon must be at least 1, got 0"),
        (["edm=x", "--seed", "-1"], "seed must be at least 0"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert drift.main(arguments) == 2
    assert message in capsys.readouterr().err

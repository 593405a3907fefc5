"""The benchmark of training on tiny networks: every row exists, and its numbers are consistent."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
import torch

from benchmarks import training
from benchmarks.rows import MIN_REPEATS
from diamond_gym.data.episodes import EpisodeDataset
from tests.paths import ROOT
from trainers.diamond.config import PARTS


def measure(*arguments):
    return training.main(["--preset", "smoke", "--device", "cpu", "--seconds", "0.01", *arguments])


@pytest.mark.slow
def test_rows_of_tiny_networks(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    assert measure("--frames", "1200", "--json", str(file), "actor_critic.training.batch_size=2") == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    replay = [row for row in rows if "num_frames" in row]
    collected = [row for row in rows if row["part"] == training.COLLECTION]
    steps = [row for row in rows if "cpu_ratio" in row]
    assert [row["part"] for row in replay] == ["denoiser", "rew_end_model"]
    assert [row["part"] for row in steps] == list(PARTS)
    assert [row["batch_size"] for row in steps] == [4, 4, 2]
    (row,) = collected
    assert row["num_steps"] == 50 and row["repeats"] >= MIN_REPEATS
    assert row["ratio"] == pytest.approx(row["baseline_seconds"] / row["seconds"])
    for row in replay:
        assert row["num_frames"] == 1200 and 0 < row["draw_ms"] <= row["draw_p95_ms"]
    for row in steps:
        assert row["overrides"] == ["actor_critic.training.batch_size=2"]
        assert row["repeats"] >= MIN_REPEATS and row["device"] == "cpu" and row["torch"]
        assert row["ratio"] == pytest.approx(row["steps_per_second"] / row["baseline_steps_per_second"])
        assert row["cpu_ratio"] == pytest.approx(row["baseline_cpu_seconds"] / row["cpu_seconds"])
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 2


def test_collects_the_steps_of_an_epoch(tmp_path):
    config = training.configuration("smoke", [], "cpu")
    with training.collecting(training.Case(config, training.COLLECTION, False, None), tmp_path) as collect:
        assert [collect().num_steps for _ in range(2)] == [50, 50]
    assert EpisodeDataset(tmp_path).num_steps == 100


def test_the_batch_is_of_crops_where_a_preset_begins_with_them():
    config = training.configuration("embedded", [], "cpu")
    parts = config.denoiser, config.rew_end_model
    assert [training.first_batch_size(part.training) for part in parts] == [128, 32]


@pytest.mark.parametrize("part", PARTS)
def test_the_baseline_makes_the_same_steps(part, monkeypatch):
    monkeypatch.setattr(training, "NUM_TRAINING_FRAMES", 200)
    parts = []
    for is_plain in (False, True):
        config = training.configuration("smoke", [], "cpu")
        trained, replay = training.build_part(training.Case(config, part, is_plain, threads=None))
        with trained.as_trained():
            losses = [float(trained.step(replay, seed=0, lr_factor=1.0)["loss"]) for _ in range(3)]
        parts.append(losses)
    assert parts[0] == pytest.approx(parts[1], rel=1e-3)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_trains_in_the_layout_that_trains_fastest_and_plays_in_channels_last(capability, monkeypatch):
    monkeypatch.setattr(training, "NUM_TRAINING_FRAMES", 200)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    config = training.configuration("smoke", [], "cpu")
    part, _ = training.build_part(training.Case(config, "denoiser", False, threads=None))
    weight = part.module.get_parameter("inner_model.unet.mid_blocks.resblocks.0.conv1.weight")
    before = weight.detach().clone()
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    with part.as_trained():
        assert weight.is_contiguous() == (capability == "AVX2") and part.module.training
        assert weight.is_contiguous(memory_format=torch.channels_last) == (capability == "AVX512")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not part.module.training
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["denoiser.training.batch_sise=2"], 2, "batch_size"),
        (["--device", "cuda:99"], 1, "cuda:99"),
    ],
)
def test_what_cannot_be_measured(arguments, code, message, capsys):
    assert measure("--no-replay", "--no-collection", *arguments) == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_dies_is_reported():
    case = training.Case(training.configuration("smoke", [], "cpu"), "no such part", False, threads=None)
    with training.Measured(case) as measured, pytest.raises(training.ProcessEndedError, match="batch_size"):
        measured.step()


@pytest.mark.parametrize("run", [runpy.run_path, runpy.run_module])
def test_help_of_the_file_and_of_the_module(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training", "--help"])
    name = str(ROOT / "benchmarks" / "training.py") if run is runpy.run_path else "benchmarks.training"
    with pytest.raises(SystemExit) as ended:
        run(name, run_name="__main__")
    assert ended.value.code == 0 and "key=value" in capsys.readouterr().out

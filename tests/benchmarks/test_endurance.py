"""The endurance benchmark: a tiny world passes, a world that leaks or slows down does not."""

from __future__ import annotations

import json
import mmap
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import endurance
from benchmarks.memory import resident_bytes
from diamond_gym.envs.vector_env import DiamondVectorEnv

TENTH = endurance.Tenth(1, 320, 1.0, 320.0, 10.0, 10**9, None)


@pytest.fixture
def run(tiny_world):
    given = ["--checkpoint", tiny_world, "--device", "cpu", "--dtype", "float32", "--num-envs", "2"]
    return lambda *arguments: endurance.main([*given, *arguments])


def test_a_tiny_world_passes(run, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    tolerances = ["--memory-tolerance", "1", "--speed-tolerance", "0.99"]
    assert run("--steps", "47", "--json", str(file), *tolerances) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["tenth"] for row in rows] == list(range(1, 11))
    assert sum(row["env_steps"] for row in rows) == 46
    for row in rows:
        assert row["env_steps_per_second"] == pytest.approx(row["env_steps"] / row["seconds"])
        assert row["num_envs"] == 2 and row["game"] == "Breakout" and row["torch"]
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 3


@pytest.mark.skipif(resident_bytes() is None, reason="this system does not tell")
def test_a_leak_fails(run, monkeypatch, capsys):
    kept, step = [], DiamondVectorEnv.step

    def leaking(self, actions):
        pages = np.frombuffer(mmap.mmap(-1, 8 * 10**6), np.uint8)  # new ones, not some that were freed before
        pages[:] = 1
        kept.append(pages)
        return step(self, actions)

    monkeypatch.setattr(DiamondVectorEnv, "step", leaking)
    assert run("--steps", "60", "--speed-tolerance", "0.99") == 1
    assert "failed: memory of the process grew from" in capsys.readouterr().err


def test_a_slowdown_fails(run, monkeypatch, capsys):
    steps, step = iter(range(1000)), DiamondVectorEnv.step

    def slower(self, actions):
        time.sleep(0.3 if next(steps) >= 18 else 0)
        return step(self, actions)

    monkeypatch.setattr(DiamondVectorEnv, "step", slower)
    assert run("--steps", "40", "--memory-tolerance", "1") == 1
    assert "fewer a second (tolerated: 20 %)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"resident_bytes": 1_019_000_000}, None),
        ({"resident_bytes": 1_021_000_000}, "by 2.1 % (tolerated: 2 %)"),
        ({"resident_bytes": None}, None),
        ({"allocated_bytes": 2_000}, "PyTorch on CUDA"),
        ({"p50_ms": 12.4}, None),
        ({"p50_ms": 12.6}, "20.6 % fewer"),
        ({"p50_ms": 1.0}, None),
    ],
)
def test_tolerances(last, message):
    second = replace(TENTH, tenth=2, allocated_bytes=1_000)
    first = replace(TENTH, resident_bytes=1, p50_ms=0.1)  # does not count
    found = endurance.failures([first, second, replace(second, tenth=10, **last)], 0.02, 0.2)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_too_few_steps(run, capsys):
    assert run("--steps", "19") == 2
    assert "2 games need at least steps=20, got 19" in capsys.readouterr().err


def test_a_missing_checkpoint(run, capsys):
    assert run("--checkpoint", "no/such/file.safetensors") == 1
    assert "file.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"],
        ["--num-envs", "0"],
        ["--memory-tolerance", "-1"],
        ["--speed-tolerance", "much"],
        ["--json", "/"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    assert endurance.main(arguments) == 2
    assert arguments[0].strip("-").replace("-", "_") in capsys.readouterr().err

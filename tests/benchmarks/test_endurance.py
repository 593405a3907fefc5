"""The endurance benchmark: a tiny world passes, a world that leaks or slows down does not."""

from __future__ import annotations

import json
import mmap
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from benchmarks import endurance, memory
from benchmarks.rows import MIN_REPEATS
from diamond_gym.envs.vector_env import DiamondVectorEnv
from tests.worlds import PLAIN

TENTH = endurance.Tenth("32 games", 1, 320, 320.0, 10.0, 10**9, None, 40, 4)
POINT = endurance.Point("num_envs", "Breakout", 2, PLAIN, 0.01, 1)
TOLERANT = ["--memory-tolerance", "1", "--speed-tolerance", "0.99"]
NO_SCALING = ["--max-envs", "0", "--denoising-steps"]


@pytest.fixture
def run(tiny_world, monkeypatch):
    given = ["--checkpoint", tiny_world, "--device", "cpu", "--dtype", "float32", "--seconds", "0.01"]
    monkeypatch.setattr(endurance, "in_fresh_process", endurance.measure_point)
    return lambda *arguments: endurance.main([*given, *arguments])


@pytest.fixture
def steps(run):
    """Run steps of two games, without the other parts."""
    return lambda *arguments: run(*NO_SCALING, "--cycles", "0", "--num-envs", "2", *arguments)


def test_cycles_and_long_runs_of_a_tiny_world(run, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    arguments = ["--cycles", "10", "--steps", "47", "--num-envs", "1", "2", "--json", str(file)]
    assert run(*NO_SCALING, *arguments, *TOLERANT) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    expected = ["make and close"] * 10 + ["1 game"] * 10 + ["2 games"] * 10
    assert [row["what"] for row in rows] == expected
    assert [row["tenth"] for row in rows] == 3 * list(range(1, 11))
    counts = [sum(row["count"] for row in rows[i : i + 10]) for i in (0, 10, 20)]
    assert counts == [10, 47, 46]
    for row in rows:
        assert row["per_second"] > 0 and row["p50_ms"] > 0 and row["torch"]
        assert row["open_files"] is None or 0 < row["open_files"] < 1000
        assert row["threads"] is None or 0 < row["threads"] < 1000
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 4


@pytest.mark.skipif(memory.resident_bytes() is None, reason="this system does not tell")
def test_a_leak_fails(steps, monkeypatch, tmp_path, capsys):
    kept, step = [], DiamondVectorEnv.step
    (tmp_path / "file").touch()
    stop = threading.Event()

    def leaking(self, actions):
        pages = np.frombuffer(mmap.mmap(-1, 8 * 10**6), np.uint8)  # new memory, none that was freed before
        pages[:] = 1
        kept.extend([pages, (tmp_path / "file").open()])
        threading.Thread(target=stop.wait, daemon=True).start()
        return step(self, actions)

    monkeypatch.setattr(DiamondVectorEnv, "step", leaking)
    assert steps("--steps", "60", "--speed-tolerance", "0.99") == 1
    stop.set()
    for file in kept[1::2]:
        file.close()
    errors = capsys.readouterr().err
    for what in ("MB of memory", "open files", "threads"):
        assert f"{what} in the second tenth" in errors


def test_a_slowdown_fails(steps, monkeypatch, capsys):
    calls, step = iter(range(1000)), DiamondVectorEnv.step

    def slower(self, actions):
        time.sleep(0.5 if next(calls) >= 18 else 0)
        return step(self, actions)

    monkeypatch.setattr(DiamondVectorEnv, "step", slower)
    assert steps("--steps", "40", "--memory-tolerance", "1") == 1
    assert "ms each in the second tenth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"resident_bytes": 1_019_000_000}, None),
        ({"resident_bytes": 1_021_000_000}, "2.1 % more (tolerated: 2 %)"),
        ({"resident_bytes": None}, None),
        ({"allocated_bytes": 2_000}, "MB of memory on CUDA"),
        ({"p50_ms": 12.4}, None),
        ({"p50_ms": 12.6}, "26.0 % more (tolerated: 25 %)"),
        ({"p50_ms": 1.0}, None),
        ({"open_files": 41}, "40 open files in the second tenth, 41 in the last"),
        ({"threads": 5}, "4 threads in the second tenth, 5 in the last"),
        ({"threads": 3, "open_files": None}, None),
    ],
)
def test_tolerances(last, message):
    second = replace(TENTH, tenth=2, allocated_bytes=1_000)
    first = replace(TENTH, resident_bytes=1, p50_ms=0.1, open_files=1, threads=1)  # does not count
    found = endurance.failures([first, second, replace(second, tenth=10, **last)], 0.02, 0.2)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


def test_the_scaling(run, tmp_path, capsys):
    files = ["--json", str(tmp_path / "rows.jsonl"), "--plot", str(tmp_path / "plot.png")]
    points = ["--max-envs", "5", "--denoising-steps", "1", "2", "--at", "3"]
    assert run(*points, *files, "--cycles", "0", "--steps", "0") == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["against"], row["num_envs"], row["num_denoising_steps"]) for row in rows] == [
        *(("num_envs", n, 1) for n in (1, 2, 4)),
        *(("num_denoising_steps", 3, n) for n in (1, 2)),
    ]
    for row in rows:
        assert row["repeats"] >= MIN_REPEATS and 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["env_steps_per_second"] == pytest.approx(1e3 * row["num_envs"] / row["p50_ms"])
        assert row["peak_bytes"] is None or row["peak_bytes"] > 10**7
        assert row["device"] == "cpu" and row["dtype"] == "float32" and row["torch"]
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 4


def test_a_process_that_is_ended():
    with pytest.raises(endurance.MemoryEndedError, match="BrokenProcessPool"):
        endurance.in_fresh_process(Killed())  # pyright: ignore[reportArgumentType]


class Killed:
    def __reduce__(self):
        return __import__("os")._exit, (1,)


@pytest.mark.slow
def test_a_point_in_a_process_of_its_own(tiny_world):
    row = endurance.in_fresh_process(replace(POINT, options=PLAIN | {"checkpoint": tiny_world}))
    assert row.num_envs == 2 and row.repeats >= MIN_REPEATS


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError("no more"), endurance.MemoryEndedError),
        (torch.OutOfMemoryError("no more"), endurance.MemoryEndedError),
        (RuntimeError("can't allocate memory, no more"), endurance.MemoryEndedError),
        (RuntimeError("no more of something else"), RuntimeError),
    ],
)
def test_a_process_without_memory(error, raised, monkeypatch):
    monkeypatch.setattr(endurance, "ProcessPoolExecutor", lambda *_: FailingPool(error))
    with pytest.raises(raised, match="no more"):
        endurance.in_fresh_process(POINT)


class FailingPool:
    def __init__(self, error):
        self.error = error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def submit(self, function, point):
        return self

    def result(self):
        raise self.error


def test_stops_where_a_process_ends(run, tmp_path, monkeypatch, capsys):
    def measure(point):
        if point.num_envs == 4 or point.options["num_denoising_steps"] == 2:
            raise endurance.MemoryEndedError("killed")
        return endurance.measure_point(point)

    monkeypatch.setattr(endurance, "in_fresh_process", measure)
    points = ["--max-envs", "8", "--denoising-steps", "1", "2", "--at", "1", "--cycles", "0", "--steps", "0"]
    assert run(*points, "--json", str(tmp_path / "rows.jsonl")) == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3
    error = capsys.readouterr().err
    assert "stopped at 4 games, default denoising steps: killed" in error
    assert "stopped at 1 games, 2 denoising steps: killed" in error


def test_what_cannot_be_measured(run, capsys):
    assert run("--game", "Brekout") == 2
    assert "Breakout" in capsys.readouterr().err
    assert run("--checkpoint", "no/such/file.safetensors") == 1
    assert "file.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cycles", "9"], "cycles must be 0 or at least 10, got 9"),
        (["--steps", "19", "--num-envs", "2"], "steps must be 0 or at least 20 for 2 games, got 19"),
        (["--steps", "-1"], "steps must be at least 0"),
        (["--num-envs", "0"], "num_envs must be at least 1"),
        (["--memory-tolerance", "-1"], "memory_tolerance"),
        (["--speed-tolerance", "much"], "speed_tolerance"),
        (["--max-envs", "-1"], "max_envs"),
        (["--denoising-steps", "0"], "denoising_steps"),
        (["--at", "0"], "at must be at least 1"),
        (["--plot", "no/such/folder/plot.png"], "plot: there is no folder"),
        (["--json", "/"], "json: / is a folder"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert endurance.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(memory.resident_bytes() is None, reason="this system does not tell")
def test_what_this_process_holds(tmp_path):
    resident, peak = memory.resident_bytes(), memory.peak_resident_bytes()
    assert resident is not None and 10**7 < resident < 10**11
    assert peak is not None and peak >= 0.9 * resident
    files, threads = memory.num_open_files(), memory.num_threads()
    stop = threading.Event()
    with (tmp_path / "file").open("w"):
        thread = threading.Thread(target=stop.wait)
        thread.start()
        assert (memory.num_open_files(), memory.num_threads()) == (files + 1, threads + 1)
        stop.set()
        thread.join()


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(memory, "_FILES", tmp_path / "none")
    told = (memory.resident_bytes(), memory.peak_resident_bytes(), memory.num_threads())
    assert told == (None, None, None) and memory.num_open_files() is None

"""The scaling benchmark on a tiny world; points are measured in this process, but for one."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import cv2
import pytest
import torch

from benchmarks import memory, scaling
from benchmarks.rows import MIN_REPEATS
from tests.worlds import PLAIN

POINT = scaling.Point("num_envs", "Breakout", 2, PLAIN, 0.01, 1)
ROW = scaling.ScalingRow("num_envs", "Breakout", "auto", 1, 1, "cpu", "float32", 9, 9, 9, 10**9, 3)


@pytest.fixture
def run(tiny_world, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "in_fresh_process", lambda function, point: function(point))

    def run(*arguments):
        given = ["--checkpoint", tiny_world, "--device", "cpu", "--dtype", "float32", "--seconds", "0.01"]
        files = ["--json", str(tmp_path / "rows.jsonl"), "--plot", str(tmp_path / "plot.png")]
        return scaling.main([*given, *files, *arguments])

    return run


def test_the_whole_command(run, tmp_path, capsys):
    assert run("--max-envs", "5", "--denoising-steps", "1", "2", "--at", "3") == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    sizes = [(row["against"], row["num_envs"], row["num_denoising_steps"]) for row in rows]
    assert sizes == [
        *(("num_envs", n, 1) for n in (1, 2, 4)),
        *(("num_denoising_steps", 3, n) for n in (1, 2)),
    ]
    for row in rows:
        assert row["repeats"] >= MIN_REPEATS and 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["env_steps_per_second"] == pytest.approx(1e3 * row["num_envs"] / row["p50_ms"])
        assert row["peak_bytes"] is None or row["peak_bytes"] > 10**7
        assert row["device"] == "cpu" and row["dtype"] == "float32" and row["torch"]
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 3


def test_a_point_in_a_process_of_its_own(tiny_world):
    row = scaling.in_fresh_process(
        scaling.measure, replace(POINT, options=PLAIN | {"checkpoint": tiny_world})
    )
    assert row.num_envs == 2 and row.repeats >= MIN_REPEATS


def test_a_process_that_is_ended():
    with pytest.raises(scaling.MemoryEndedError, match="BrokenProcessPool"):
        scaling.in_fresh_process(os._exit, 1)


@pytest.mark.parametrize(
    "error",
    [MemoryError("no more"), torch.OutOfMemoryError("no more"), RuntimeError("can't allocate memory")],
)
def test_a_process_without_memory(error, monkeypatch):
    monkeypatch.setattr(scaling, "ProcessPoolExecutor", lambda *_: FailingPool(error))
    with pytest.raises(scaling.MemoryEndedError, match=r"memory|no more"):
        scaling.in_fresh_process(scaling.measure, POINT)


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(scaling, "ProcessPoolExecutor", lambda *_: FailingPool(RuntimeError("else")))
    with pytest.raises(RuntimeError, match="else"):
        scaling.in_fresh_process(scaling.measure, POINT)


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


def test_stops_where_memory_would_not_suffice(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling.memory, "peak_resident_bytes", lambda: 10**9)
    monkeypatch.setattr(scaling.memory, "available_bytes", lambda: 10**9 - 1)
    assert run("--max-envs", "8", "--denoising-steps") == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
    assert "stopped at 1 games: 2 games would take about 1.0 GB, 1.0 GB are left" in capsys.readouterr().err


def test_stops_where_a_process_ends(run, tmp_path, monkeypatch, capsys):
    def measure(function, point):
        if point.num_envs == 4 or point.options["num_denoising_steps"] == 2:
            raise scaling.MemoryEndedError("killed")
        return function(point)

    monkeypatch.setattr(scaling, "in_fresh_process", measure)
    assert run("--max-envs", "8", "--denoising-steps", "1", "2", "--at", "1") == 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3
    error = capsys.readouterr().err
    assert "stopped at 2 games: the process of 4 games ended (killed)" in error
    assert "stopped before 2 denoising steps" in error


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [([], None), ([5], 5), ([5, 8], 14), ([1, 5, 8], 14), ([8, 5], 5), ([5, None], None)],
)
def test_memory_is_expected_to_grow_as_it_did(peaks, expected):
    assert scaling.expected_bytes([replace(ROW, peak_bytes=peak) for peak in peaks]) == expected


def test_what_no_process_can_measure(run, capsys):
    assert run("--game", "Brekout") == 2
    assert "Breakout" in capsys.readouterr().err
    assert run("--checkpoint", "no/such/file.safetensors") == 1
    assert "file.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-envs", "0"],
        ["--denoising-steps", "0"],
        ["--at", "-1"],
        ["--plot", "no/such/folder/plot.png"],
        ["--plot", "/"],
        ["--json", "no/such/folder/rows.jsonl"],
    ],
)
def test_wrong_arguments(arguments, tmp_path, capsys):
    assert scaling.main(["--plot", str(tmp_path / "plot.png"), *arguments]) == 2
    assert arguments[0].strip("-").replace("-", "_") in capsys.readouterr().err


def test_memory_of_this_process_and_of_the_machine():
    resident, peak, available = (
        memory.resident_bytes(),
        memory.peak_resident_bytes(),
        memory.available_bytes(),
    )
    if resident is not None:
        assert 10**7 < resident < 10**11 and peak is not None and peak > resident / 2
        assert available is not None and available > 0


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   8 kB\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    assert memory.available_bytes() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 8 * 1024
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.available_bytes() is None

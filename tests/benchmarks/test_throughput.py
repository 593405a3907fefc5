"""The benchmark on a tiny world: every row exists, and its numbers are consistent."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

from benchmarks import throughput
from benchmarks.rows import MIN_REPEATS
from tests.paths import ROOT
from tests.worlds import save_tiny_world


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_world(tmp_path_factory.mktemp("world"))


def test_rows_of_a_tiny_world(checkpoint, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    arguments = ["--checkpoint", checkpoint, "--num-envs", "1", "2", "--dtype", "float32", "--no-paper"]
    assert throughput.main([*arguments, "--seconds", "0.02", "--json", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = {n: {row["name"] for row in rows if row["num_envs"] == n} for n in (1, 2)}
    of_any_size = {"networks", "WorldModel", "DiamondVectorEnv", "DiamondVectorEnv + wrappers", "baseline"}
    of_any_size.add("BatchedVecEnv (SB3)")
    assert names[2] == of_any_size | {"AtariVectorEnv"}
    assert names[1] == names[2] | {"DiamondEnv", "DiamondEnv + wrappers", "AtariEnv"}
    for row in rows:
        assert row["repeats"] >= MIN_REPEATS
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["env_steps_per_second"] == pytest.approx(1e3 * row["num_envs"] / row["p50_ms"])
        assert row["num_threads"] >= 1 and row["torch"] and row["python"]
        assert (row["game"], row["checkpoint"]) == ("Breakout", checkpoint)
        assert (row["speedup"] is not None) == (row["name"] == "WorldModel")
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 2


def test_measures_in_turns():
    order = []
    cases = [throughput.Case("m", name, 1, lambda name=name: order.append(name)) for name in ("a", "b")]
    throughput.measure(cases, seconds=1e-9)
    assert order == ["a", "b"] * (1 + MIN_REPEATS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-envs", "0"],
        ["--seconds", "-1"],
        ["--seconds", "inf"],
        ["--backend", "maybe"],
        ["--compile", "maybe"],
        ["--threads", "two"],
        ["--unknown"],
        ["--json", "no/such/folder/rows.jsonl"],
        ["--json", "/"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    assert throughput.main(arguments) == 2
    assert arguments[0].strip("-").replace("-", "_") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--game", "Brekout"], 2, "Breakout"),
        (["--checkpoint", "no/such/file.safetensors"], 1, "file.safetensors"),
        (["--device", "cuda:99"], 1, "cuda:99"),
        (["--dtype", "int8"], 2, "int8"),
    ],
)
def test_what_cannot_be_measured(arguments, code, message, checkpoint, capsys):
    given = [] if "--checkpoint" in arguments else ["--checkpoint", checkpoint]
    assert throughput.main([*given, "--num-envs", "1", "--no-paper", *arguments]) == code
    assert message in capsys.readouterr().err


def test_help_is_a_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / "throughput.py"), run_name="__main__")
    assert ended.value.code == 0 and "num_envs=" in capsys.readouterr().out

"""The floor benchmark: its counts on operators whose work is known, and the whole command on a tiny world."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floor
from benchmarks.rows import MIN_REPEATS
from benchmarks.throughput import denoiser_passes, random_state
from diamond_gym.checkpoints import load_world
from tests.worlds import PLAIN


def count(step, weights=()):
    with torch.no_grad(), floor.WorkCounter(weights) as counter:
        step()
    return counter.work


def test_work_of_a_convolution():
    x, weight = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 3, 3)
    work = count(lambda: F.silu(F.conv2d(x, weight, padding=1)), [weight])
    assert work.flops == {torch.float32: 2 * 2 * 64 * 5 * 3 * 9}
    assert work.weight_bytes == 4 * weight.numel()
    output = 4 * 2 * 5 * 64
    assert work.activation_bytes == 4 * x.numel() + output
    assert work.all_bytes == work.weight_bytes + work.activation_bytes + 2 * output


def test_work_of_a_product_in_another_precision():
    a, b = torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(4, 5, dtype=torch.bfloat16)
    work = count(lambda: a.view(3, 4) @ b.t().t(), [b])
    assert work.flops == {torch.bfloat16: 2 * 3 * 4 * 5}
    assert (work.weight_bytes, work.activation_bytes) == (2 * 20, 2 * (12 + 15))


def test_work_of_an_lstm():
    lstm, x = nn.LSTM(6, 5, batch_first=True), torch.zeros(3, 2, 6)
    work = count(lambda: lstm(x), lstm.parameters())
    assert work.total_flops == 2 * 3 * 2 * 4 * 5 * (6 + 5)
    assert work.weight_bytes == pytest.approx(4 * 4 * 5 * (6 + 5 + 2), abs=4 * 4 * 5)  # one bias or two


def test_flops_of_the_denoiser_are_those_that_pytorch_counts(tiny_world):
    world_model = load_world("Breakout", tiny_world, **PLAIN).world_model
    step = denoiser_passes(world_model, 3)
    with FlopCounterMode(display=False) as counter:
        step()
    assert floor.work_of(step, world_model).total_flops == counter.get_total_flops() > 0
    weights = sum(4 * x.numel() for x in world_model.denoiser.parameters() if x.ndim > 1)
    assert floor.work_of(step, world_model).weight_bytes == pytest.approx(weights, rel=0.2)


def test_calls_of_a_step():
    x = torch.zeros(3)
    assert floor.count_calls(lambda: x.add(1).mul(2)) == 2
    assert floor.count_calls(lambda: F.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))) == 3


@pytest.fixture
def run(tiny_world):
    given = ["--checkpoint", tiny_world, "--no-paper", "--device", "cpu", "--dtype", "float32"]
    given += ["--seconds", "0.01", "--matmul-size", "32", "--copy-megabytes", "1"]
    return lambda *arguments: floor.main([*given, *arguments])


def test_the_whole_command(run, tmp_path, capsys, tiny_world):
    file, readme = tmp_path / "rows.jsonl", tmp_path / "README.md"
    readme.write_text("before <!-- floor -->old<!-- /floor --> after")
    assert run("--num-envs", "1", "2", "--json", str(file), "--readme", str(readme)) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["num_envs"] for row in rows] == [1, 2] and rows[0]["model"] == tiny_world
    for row in rows:
        assert row["floor_ms"] == max(row["flops_ms"], row["bytes_ms"]) > 0
        assert row["gap"] == pytest.approx(row["measured_ms"] / row["floor_ms"])
        flops = row["denoiser_flops"] + row["rew_end_flops"]
        assert row["flops_ms"] == pytest.approx(1e3 * flops / row["flops_per_second"]["float32"])
        moved = row["weight_bytes"] + row["activation_bytes"]
        assert row["bytes_ms"] == pytest.approx(1e3 * moved / row["bytes_per_second"])
        assert moved < row["all_operators_bytes"]
        assert row["num_calls"] > 50 and row["repeats"] >= MIN_REPEATS and row["torch"]
    for name in ("denoiser_flops", "rew_end_flops"):
        assert rows[1][name] == pytest.approx(2 * rows[0][name], rel=0.05)
    text = readme.read_text()
    section = text.removeprefix("before <!-- floor -->\n").removesuffix("\n<!-- /floor --> after")
    assert len(section) < len(text) and section in capsys.readouterr().out
    assert len([line for line in section.splitlines() if line.startswith("|")]) == 2 + len(rows)


def test_a_step_is_more_than_its_networks_in_no_flops(tiny_world):
    world_model = load_world("Breakout", tiny_world, **PLAIN).world_model
    state = random_state(world_model, 2)
    step = floor.work_of(lambda: world_model.step(state, state.act[:, -1]), world_model)
    parts = [
        floor.work_of(part(world_model, 2), world_model) for part in (denoiser_passes, floor.rew_end_pass)
    ]
    assert step.total_flops == sum(part.total_flops for part in parts)


def test_a_text_without_a_place_for_the_table(run, tmp_path, capsys):
    (tmp_path / "README.md").write_text("no comments")
    assert run("--readme", str(tmp_path / "README.md")) == 2
    assert "<!-- floor -->" in capsys.readouterr().err
    assert run("--readme", str(tmp_path / "none.md")) == 2
    assert "none.md" in capsys.readouterr().err


def test_a_missing_checkpoint(run, capsys):
    assert run("--checkpoint", "no/such/file.safetensors") == 1
    assert "file.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-envs", "0"],
        ["--matmul-size", "0"],
        ["--copy-megabytes", "-1"],
        ["--compile", "true"],
        ["--json", "/"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    assert floor.main(arguments) == 2
    assert arguments[0].strip("-").replace("-", "_") in capsys.readouterr().err

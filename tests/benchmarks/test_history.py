"""What became slower since an earlier measurement."""

from __future__ import annotations

import json

import pytest

from benchmarks import history, report
from tests.benchmarks.test_report import ABOUT, TEXT, THROUGHPUT, TRAINING, throughput_row


@pytest.fixture
def compare(tmp_path, capsys):
    """Compare rows with earlier ones; return the exit code, standard output and error."""

    def compare(rows, before):
        for name, some in (("now", rows), ("before", before)):
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in some))
        status = report.main([str(tmp_path / "now"), "--against", str(tmp_path / "before")])
        return status, *capsys.readouterr()

    return compare


def test_nothing_is_slower_than_itself(compare):
    rows = [*THROUGHPUT, *TRAINING]
    assert compare(rows, rows)[:2] == (0, "0 of 16 measurements are slower by more than 10%\n")


@pytest.mark.parametrize(("ms", "is_slower"), [(10.9, False), (11.1, True), (5.0, False)])
def test_more_than_a_tenth_counts(compare, ms, is_slower):
    before, now = (throughput_row("embedded", "DiamondEnv", 1, ms=x) for x in (10.0, ms))
    status, out, _ = compare([now], [before])
    assert status == is_slower and f"{int(is_slower)} of 1 " in out
    said = "slower: Breakout embedded embedded DiamondEnv 1 cpu bfloat16 eager takes 1.11 times as long\n"
    assert (said in out) == is_slower


def test_beside_plain_pytorch_where_that_was_measured_too(compare):
    """A machine that was busy the second time makes both slower."""
    before, busy = (throughput_row("embedded", "WorldModel", 1, ms=x, speedup=2.0) for x in (10.0, 30.0))
    assert compare([busy], [before])[0] == 0
    status, out, _ = compare([{**busy, "speedup": 1.6}], [before])
    assert status == 1 and "takes 1.25 times as long, beside plain PyTorch" in out


def test_training_steps_are_compared_by_their_ratio(compare):
    slower = [{**row, "ratio": row["ratio"] / 1.5} if "ratio" in row else row for row in TRAINING]
    status, out, _ = compare(slower, TRAINING)
    num_steps = sum("ratio" in row for row in TRAINING)
    assert status == 1 and out.count("takes 1.50 times as long") == num_steps > 0


def test_only_the_same_thing_is_compared(compare):
    before, now = THROUGHPUT[0], {**THROUGHPUT[0], "backend": "openvino"}
    status, _, error = compare([now], [before])
    assert status == 2 and "measured nothing of what these did" in error


@pytest.mark.parametrize("key", ["cpu", "num_threads", "gpu"])
def test_machines_are_not_compared_with_each_other(compare, key):
    status, _, error = compare(THROUGHPUT, [{**row, key: "other"} for row in THROUGHPUT])
    assert status == 2 and f"{key} is" in error and "other" in error


def test_an_incomplete_row_is_an_error(compare):
    row = {**THROUGHPUT[0], "p50_ms": "fast"}
    status, _, error = compare([row], [row])
    assert status == 2 and "a row is incomplete" in error


def test_rows_are_kept_by_processor_and_commit(tmp_path, capsys):
    rows, page, kept = tmp_path / "rows.jsonl", tmp_path / "page.md", tmp_path / "bench"
    rows.write_text("".join(json.dumps(row) + "\n" for row in THROUGHPUT))
    page.write_text(TEXT)
    for _ in range(2):
        assert report.main([str(rows), "--page", str(page), "--history", str(kept)]) == 0
    file = kept / "a-CPU-2-threads" / "0123456789.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == THROUGHPUT
    assert [path for path in kept.rglob("*") if path.is_file()] == [file]
    assert str(file) in capsys.readouterr().out
    assert report.main([str(rows), "--against", str(file)]) == 0


def test_a_gpu_has_a_folder_of_its_own(tmp_path):
    file = history.keep([{**ABOUT, "gpu": "NVIDIA H200", "cpu": "Intel(R) Xeon(R)"}], tmp_path)
    assert file == tmp_path / "NVIDIA-H200-Intel-R-Xeon-R-2-threads" / "0123456789.jsonl"

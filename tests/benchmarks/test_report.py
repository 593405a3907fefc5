"""The table of speeds, which is made from rows and put between two comments."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import report
from benchmarks.rows import read_rows, short_commit

ABOUT = {
    "cpu": "a CPU",
    "gpu": None,
    "num_threads": 2,
    "python": "3.12.1",
    "torch": "2.13.0",
    "gymnasium": "1.4.0",
    "openvino": "2026.4.1",
    "commit": "0123456789abcdef",
}
TEXT = "before\n<!-- bench-cpu -->\nold\n<!-- /bench-cpu -->\nafter\n"


def throughput_row(model, name, num_envs, *, rate=100.0, ms=10.0, speedup=None, overhead=None, **more):
    return {
        **ABOUT,
        "game": "Breakout",
        "checkpoint": "embedded",
        "model": model,
        "name": name,
        "num_envs": num_envs,
        "device": "cpu",
        "dtype": "" if model == "the real game" else "bfloat16",
        "backend": "eager",
        "env_steps_per_second": rate,
        "p50_ms": ms,
        "speedup": speedup,
        "overhead_ms": overhead,
        **more,
    }


def training_row(part, seconds, plain_seconds, **more):
    about = {"preset": "paper", "part": part, "device": "cpu", "overrides": ["training.autocast=auto"]}
    if part == "collection":
        measured = {"num_steps": 100, "seconds": seconds, "baseline_seconds": plain_seconds}
    else:
        rates = {"steps_per_second": 1 / seconds, "baseline_steps_per_second": 1 / plain_seconds}
        measured = {"batch_size": 32, "ratio": plain_seconds / seconds, **rates}
    return {**ABOUT, **about, **measured, **more}


THROUGHPUT = [
    throughput_row("paper size", "WorldModel", 1, ms=40.0, speedup=2.5),
    throughput_row("paper size", "baseline", 1, ms=100.0, dtype="float32"),
    throughput_row("paper size", "WorldModel", 1, ms=32.0, speedup=3.0, backend="inductor"),
    throughput_row("embedded", "DiamondEnv", 1, rate=90.0, overhead=9.9, backend="openvino"),
    throughput_row("paper size", "WorldModel", 32, ms=1360.0, speedup=1.5),
    throughput_row("paper size", "baseline", 32, ms=2040.0, dtype="float32"),
    throughput_row("embedded", "DiamondEnv", 1, rate=61.24, overhead=1.25),
    throughput_row("embedded", "WorldModel", 1, speedup=1.75),
    throughput_row("embedded", "DiamondVectorEnv", 32, rate=299.0, ms=107.0),
    throughput_row("embedded", "BatchedVecEnv (SB3)", 32, rate=290.9, ms=110.0),
    throughput_row("the real game", "AtariVectorEnv", 32, rate=2720.4),
]
TRAINING = [
    training_row("collection", 1.0, 2.0),
    training_row("denoiser", 0.01, 0.02),
    training_row("denoiser", 0.3, 0.6, preset="embedded", batch_size=128, overrides=[]),
    training_row("rew_end_model", 0.005, 0.01),
    training_row("actor_critic", 0.0225, 0.045),
]


@pytest.fixture
def run(tmp_path, capsys):
    """Write rows to files, report on them; return the status, the page, standard output and error."""
    page = tmp_path / "performance.md"

    def run(*groups, text=TEXT, more=()):
        page.write_text(text)
        files = [tmp_path / f"{i}.jsonl" for i in range(len(groups))]
        for file, rows in zip(files, groups, strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        status = report.main([*map(str, files), "--page", str(page), *more])
        return status, page.read_text(), *capsys.readouterr()

    return run


def cells(text):
    """Return the table's lines by their name, without text in brackets."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return {re.sub(r" \((?!`).*\)", "", first): rest for first, *rest in rows}


def test_the_table_holds_what_the_rows_say(run):
    status, text, out, _ = run(THROUGHPUT, TRAINING)
    assert status == 0 and text.startswith("before\n<!-- bench-cpu -->\n|") and text.endswith("after\n")
    assert "old" not in text and text.partition("-->\n")[2].partition("\n<!--")[0] in out
    table = cells(text)
    assert table["paper-size step, 1 game"] == ["40.0 ms", "100 ms", "2.50x", "2x: met"]
    compiled = table['paper-size step, 1 game, `backend="inductor"`']
    assert compiled == ["32.0 ms", "96.0 ms", "3.00x", ""]
    assert table['embedded Breakout, 1 game, `backend="openvino"`'][0] == "90.0 env-steps/s"
    assert table['embedded Breakout, 1 game, `backend="inductor"`'] == ["not measured", "", "", ""]
    assert table["paper-size step, 32 games"] == ["1 360 ms", "2 040 ms", "1.50x", "2.5x: missed"]
    env = table["embedded Breakout, 1 game"]
    assert env == ["61.2 env-steps/s", "", "1.75x, world model alone", "60 env-steps/s: met"]
    assert table["embedded Breakout, 32 games"] == ["299 env-steps/s", "", "", "300 env-steps/s: missed"]
    adapter = table["embedded Breakout, 32 games for Stable-Baselines3"]
    assert adapter == ["291 env-steps/s", "", "0.97x of `DiamondVectorEnv`", "0.95x: met"]
    step = table["denoiser training step, batch 32, paper size"]
    assert step == ["0.0100 s", "0.0200 s", "2.00x", "1.5x: met"]
    crops = table["denoiser training step, 128 crops of 32 x 32, embedded size"]
    assert crops == ["0.300 s", "0.600 s", "2.00x", ""]
    assert table["embedded Breakout outside its networks, 1 game"][0] == "1.25 ms"
    assert table["the real Breakout (`AtariVectorEnv`), 32 games"][0] == "2 720 env-steps/s"
    assert table["the real Breakout (`AtariVectorEnv`), 1 game"][0] == "not measured"
    assert "paper-size step, 1 game (bfloat16)" in text and "(training.autocast=auto)" in text
    assert "5 of 7 targets are met." in text
    for about in (
        "a CPU, threads: 2",
        "Python 3.12.1",
        "PyTorch 2.13.0",
        "OpenVINO 2026.4.1",
        "commit 0123456789.",
    ):
        assert about in text


def test_the_epoch_and_the_full_game_are_sums_of_their_parts(run):
    _, text, _, _ = run(TRAINING)
    assert cells(text)[report.EPOCH] == ["16.0 s", "32.0 s", "2.00x", "1.5x: met"]  # 1 + 400 * 0.0375
    # 1000 epochs: 100 000 steps collected, 409 600 updates of two networks and 404 600 of the third
    hours = (1000 + 409_600 * 0.015 + 404_600 * 0.0225) / 3600
    assert (
        f"(1000 epochs, without test games) takes {hours:.2f} hours, in plain PyTorch {2 * hours:.2f};"
        in text
    )


def test_what_was_not_measured_says_so(run):
    status, text, _, _ = run(THROUGHPUT[:2], TRAINING[:3])
    table = cells(text)
    assert status == 0 and table[report.EPOCH] == ["not measured", "", "", "1.5x: not measured"]
    assert table["embedded Breakout, 32 games"][0] == "not measured"
    assert "hours" not in text and "2 of 7 targets are met." in text


@pytest.mark.parametrize(
    "rows",
    [
        [throughput_row("embedded", "DiamondEnv", 1, game="Pong")],
        [throughput_row("my/world", "DiamondEnv", 1, checkpoint="my/world")],
        [training_row("denoiser", 0.01, 0.02, batch_size=8)],
        [training_row("denoiser", 0.01, 0.02, preset="small")],
        [training_row("denoiser", 0.01, 0.02, overrides=["denoiser.training.num_autoregressive_steps=0"])],
    ],
)
def test_rows_of_something_else_are_not_shown(run, rows):
    status, text, _, error = run(rows)
    assert status == 2 and text == TEXT and "hold no measurement of the table" in error


def test_an_overhead_that_drowned_in_noise(run):
    _, text, _, _ = run([throughput_row("embedded", "DiamondEnv", 1, overhead=-0.5)])
    assert cells(text)["embedded Breakout outside its networks, 1 game"][0] == "within noise"


def test_the_last_of_several_rows_counts(run):
    _, text, _, _ = run(THROUGHPUT, [throughput_row("embedded", "DiamondVectorEnv", 32, rate=301.0)])
    assert cells(text)["embedded Breakout, 32 games"][0] == "301 env-steps/s"


def test_twice_is_once(run):
    _, once, _, _ = run(THROUGHPUT, TRAINING)
    _, twice, out, _ = run(THROUGHPUT, TRAINING, text=once)
    assert once == twice and "says so already" in out


def test_print_only_changes_nothing(run):
    status, text, out, _ = run(THROUGHPUT, more=["--print-only"])
    assert status == 0 and text == TEXT and "| paper-size step, 1 game" in out


def test_a_gpu_has_its_own_table_and_targets(run):
    on_gpu = {"device": "cuda:0", "gpu": "a GPU"}
    rows = [{**row, **on_gpu} for row in THROUGHPUT[:2]] + [{**THROUGHPUT[-1], "gpu": "a GPU"}]
    trained = [{**row, "device": "cuda", "gpu": "a GPU"} for row in TRAINING]
    status, text, _, _ = run(rows, trained, text=TEXT + TEXT.replace("cpu", "cuda"))
    assert status == 0 and text.startswith(TEXT) and "a CPU, threads: 2, a GPU;" in text
    table = cells(text)
    assert table["paper-size step, 1 game"][-1] == "5x: missed"
    assert table["paper-size step, 256 games"] == ["not measured", "", "", "3x: not measured"]
    assert table["denoiser training step, batch 32, paper size"][-1] == "2.5x: missed"
    assert table[report.EPOCH][-1] == "2.5x: missed"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([THROUGHPUT[0], {**THROUGHPUT[1], "commit": "other"}], "commit is 0123456789abcdef and other"),
        ([THROUGHPUT[0], {**THROUGHPUT[1], "device": "cuda"}], "one device, cpu or cuda, got cpu, cuda"),
        ([THROUGHPUT[-1]], "got none"),
        ([TRAINING[0], *[{**row, "overrides": []} for row in TRAINING[1:]]], "different settings"),
        ([{key: value for key, value in row.items() if key != "p50_ms"} for row in THROUGHPUT], "p50_ms"),
    ],
)
def test_rows_that_cannot_be_reported(run, rows, message):
    status, text, _, error = run(rows)
    assert status == 2 and text == TEXT
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "no comments",
        "<!-- bench-cpu -->",
        "<!-- /bench-cpu --><!-- bench-cpu -->",
        "<!-- bench-cpu --><!-- bench-cpu --><!-- /bench-cpu -->",
    ],
)
def test_a_text_without_its_comments_is_left_alone(run, text):
    status, after, _, error = run(THROUGHPUT, text=text)
    assert status == 2 and after == text and "bench-cpu -->" in error


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), ("", "hold rows"), ("[1]", "hold rows"), ("{", "JSON")]
)
def test_files_without_rows(content, message, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    assert report.main([str(file), "--page", str(tmp_path / "none.md")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(file) in error and error.count("\n") == 1


def test_a_missing_page(run, tmp_path, capsys):
    assert run(THROUGHPUT)[0] == 0
    assert report.main([str(tmp_path / "0.jsonl"), "--page", str(tmp_path / "none.md")]) == 2
    assert "none.md" in capsys.readouterr().err


def test_rows_are_read_as_they_were_written(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_rows(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("commit", "short"), [("0" * 40, "0" * 10), ("0" * 40 + "-dirty", "0" * 10 + "-dirty"), (None, "unknown")]
)
def test_commits_as_people_write_them(commit, short):
    assert short_commit({"commit": commit}) == short

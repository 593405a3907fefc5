"""Every writer is killed at its file operations; a writer that is not whole at every moment is found."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import kills
from benchmarks.kill_writers import WRITERS, Writer
from diamond_gym import cli

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

LONG = "[" + ",".join("0" * 1000) + "]"


def write_in_place(folder: Path, inputs: Path) -> None:
    (folder / "file.json").write_text(LONG)


def write_and_leave_something(folder: Path, inputs: Path) -> None:
    (folder / f"{len(list(folder.iterdir()))}.note").touch()
    (folder / "file.json").touch()


def fail_where_it_was(folder: Path, inputs: Path) -> None:
    (folder / "made").mkdir()
    (folder / "file.json").write_text("1")


def read(folder: Path, inputs: Path) -> list[int]:
    return [json.loads(file.read_text()) for file in folder.glob("*.json")]


def nothing(folder: Path, inputs: Path) -> None:
    pass


def test_a_few_kills_of_the_cheap_writers(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    names = ["add without links", "RecordEpisodes", "test episodes"]
    assert kills.main(["--writers", *names, "--kills", "2", "--removals", "1", "--json", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["writer"] for row in rows] == names
    assert all(row["operations"] >= 6 and row["removals"] == 1 and not row["faults"] for row in rows)
    assert sum(row["kills"] for row in rows) == 6
    assert "6 kills, 3 removals, 0 faults" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_in_place, "killed within open file.json: file.json is damaged: JSONDecodeError"),
        (write_and_leave_something, "then again: 1.note is left behind"),
        (fail_where_it_was, "then again: FileExistsError"),
    ],
)
def test_a_writer_with_a_fault_is_found(write, message, tmp_path):
    settings = kills.Settings(kills=0, removals=0, processes=1)
    reader = nothing if write is write_and_leave_something else read
    row = kills.try_writer(Writer("faulty", write, reader), settings, tmp_path, tmp_path)
    assert any(message in fault for fault in row.faults), row.faults


def test_processes_that_overwrite_each_other_are_found(tmp_path):
    def count_up(folder: Path, inputs: Path) -> None:
        (folder / "one").touch()

    def count(folder: Path, inputs: Path) -> int:
        return len(list(folder.iterdir()))

    settings = kills.Settings(kills=1, removals=1, processes=3)
    row = kills.try_writer(Writer("one name", count_up, count, adds=True), settings, tmp_path, tmp_path)
    assert row.faults == ["one name, 3 at once: 1 instead of 3"]


def test_a_thread_is_killed_within_its_file(tmp_path):
    def write_in_thread(folder: Path, inputs: Path) -> None:
        thread = threading.Thread(target=write_in_place, args=(folder, inputs))
        thread.start()
        thread.join()

    settings = kills.Settings(kills=0, removals=0, processes=1)
    row = kills.try_writer(Writer("threaded", write_in_thread, nothing), settings, tmp_path, tmp_path)
    assert row.operations == row.kills == 2, row.faults
    assert "killed within open file.json: file.json is damaged" in row.faults[0] and len(row.faults) == 1


def test_operations_are_spread():
    assert kills.spread(3, 0) == kills.spread(3, 5) == [1, 2, 3]
    assert kills.spread(101, 3) == [1, 51, 101]
    assert kills.spread(9, 1) == [1]


def test_an_unknown_writer(capsys):
    assert kills.main(["--writers", "replace", "nobody"]) == 2
    assert "there is no nobody; accepted are all, replace, add," in capsys.readouterr().err


def test_every_writer_can_be_chosen_alone():
    for name in WRITERS:
        chosen = cli.parse(kills.Settings, ["--writers", name]).chosen()
        assert [writer.name for writer in chosen] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_every_writer(name):
    assert kills.main(["--writers", name, "--kills", "6", "--removals", "2"]) == 0

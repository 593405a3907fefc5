"""Progress of long commands: lines in the log, bars on a terminal, and the levels of messages."""

import contextlib
import io
import logging
import os
import pty
import subprocess
import sys
import termios
import time
from dataclasses import dataclass

import pytest

from diamond_gym import cli, progress
from diamond_gym.progress import Bar


def state(**more):
    known = {"n": 500, "total": 2000, "unit": "step", "elapsed": 100.0, "rate": None, "initial": 0}
    return known | {"prefix": "learn: ", "postfix": ""} | more


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (state(), "learn: 500 of 2,000 steps (25 %), 5 steps/s, 5 min left"),
        (state(postfix="score 3"), "learn: 500 of 2,000 steps (25 %), 5 steps/s, 5 min left, score 3"),
        (state(rate=0.05, prefix=""), "500 of 2,000 steps (25 %), 20 s a step, 8 h 20 min left"),
        (state(total=None), "learn: 500 steps, 5 steps/s"),
        (state(initial=400), "learn: 500 of 2,000 steps (25 %), 1 steps/s, 25 min left"),
        (state(rate=12345.0, total=None), "learn: 500 steps, 12,345 steps/s"),
        (state(n=2000), "learn: 2,000 of 2,000 steps (100 %), 20 steps/s"),
        (state(n=0), "learn: 0 of 2,000 steps (0 %)"),
    ],
)
def test_lines(given, line):
    assert progress.line(given) == line


def test_durations():
    said = [progress.duration(x) for x in (40, 89, 120, 3600, 7500)]
    assert said == ["40 s", "89 s", "2 min", "1 h 0 min", "2 h 5 min"]


def test_a_line_a_minute_where_nobody_watches(monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS", 0.0)  # seconds of a minute
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.0)
    with Bar(total=3, desc="learn", unit="step") as bar:
        for _ in range(3):
            bar.set_postfix_str("score 1", refresh=False)
            bar.update()
    messages = [record.message for record in caplog.records]
    assert any(x.startswith("learn: 1 of 3 steps (33 %)") and x.endswith("score 1") for x in messages)
    assert messages[-1].startswith("learn: 3 of 3 steps (100 %)")
    assert capsys.readouterr().err == "", "no bar"


def test_many_short_bars_make_a_line_a_minute(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "_last_line", time.monotonic() - 61)
    for _ in range(5):
        Bar(total=2, desc="denoiser").close()
    assert [record.message for record in caplog.records] == ["denoiser: 0 of 2 its (0 %)"] * 2


def test_short_work_is_silent(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "_last_line", time.monotonic())
    with Bar(total=3) as bar:
        bar.update(3)
    assert list(Bar(range(3))) == [0, 1, 2]
    assert not caplog.records


def test_where_it_is_shown(capsys):
    log = logging.getLogger("trainers.somewhere")
    log.warning("nobody listens to this handler")
    capsys.readouterr()
    with progress.shown():
        log.info("told")
        log.debug("not told")
        log.warning("beware")
    told, beware = capsys.readouterr().err.splitlines()
    assert told.endswith(" told") and told[:2] == "20" and beware.endswith(" warning: beware")
    assert log.getEffectiveLevel() == logging.WARNING


@dataclass
class Nothing:
    """No settings."""


@pytest.mark.parametrize(("flag", "levels"), [("", "IW"), ("-q", "W"), ("--verbose", "DIW"), ("-v", "DIW")])
def test_v_and_q(flag, levels, capsys):
    def run(_):
        log = logging.getLogger("diamond_gym.test")
        log.debug("D")
        log.info("I")
        log.warning("W")

    assert cli.main(cli.Command("prog", "Does.", Nothing, run), [flag] if flag else []) == 0
    assert "".join(line[-1] for line in capsys.readouterr().err.splitlines()) == levels


def test_a_comment_that_was_copied_is_left_out(capsys):
    command = cli.Command("prog", "Does.", Nothing, lambda settings: print("done"))
    assert cli.main(command, ["#", "as", "zsh=hands", "it on"]) == 0 and capsys.readouterr().out == "done\n"


def test_verbose_errors_say_where_it_happened(capsys):
    def run(_):
        raise FileNotFoundError("gone")

    command = cli.Command("prog", "Does.", Nothing, run)
    assert cli.main(command, ["-v"]) == 1 and "Traceback" in capsys.readouterr().err
    assert cli.main(command, []) == 1 and capsys.readouterr().err == "error: gone\n"


def test_a_bar_on_a_terminal():
    code = "from diamond_gym.progress import Bar\nfor _ in Bar(range(3), desc='learn'): pass"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    ended = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of what was written
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert ended.returncode == 0 and b"learn: 100%" in shown


def test_a_terminal_that_was_closed_ends_nothing(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Closed())
    with progress.shown():
        logging.getLogger("trainers").info("nobody reads this")

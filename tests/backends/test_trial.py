"""Trials of a faster way: one measurement, remembered on the disk."""

from __future__ import annotations

import time

import pytest

from diamond_gym.backends import trial
from diamond_gym.backends.trial import measured, tried


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Trial:
    """A trial with a known result, which counts its runs."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds or None
        self.runs = 0

    def __call__(self):
        self.runs += 1
        return self.seconds


@pytest.mark.parametrize(
    ("trial", "expected"), [(Trial(1.0, 0.5), True), (Trial(1.0, 0.9), False), (Trial(), False)]
)
def test_a_clear_gain_is_needed_and_the_answer_is_remembered(trial, expected, caplog):
    assert [tried("X", ["key"], trial) for _ in range(3)] == [expected] * 3
    assert trial.runs == 1 and caplog.text.count("trying X") == 1


def test_each_key_and_processor_has_its_own_answer(monkeypatch):
    trial_of_all = Trial(2.0, 1.0)
    tried("X", ["one"], trial_of_all)
    tried("X", ["another"], trial_of_all)
    monkeypatch.setattr(trial, "cpu_name", lambda: "another processor")
    tried("X", ["one"], trial_of_all)
    assert trial_of_all.runs == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"is_faster": "yes"}', '{"seconds": [1, 2]}'])
def test_a_damaged_answer_is_measured_again(cache, caplog, content):
    again = Trial(2.0, 1.0)
    tried("X", [], again)
    (file,) = cache.rglob("*.json")
    file.write_text(content)
    assert tried("X", [], again) and tried("X", [], again)
    assert again.runs == 2 and caplog.text.count("trying again") == 1 and str(file) in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(tmp_path / "file"))
    assert tried("X", [], Trial(2.0, 1.0))
    assert caplog.text.count("is not remembered") == 1


def test_the_measurement():
    usual, other = measured(lambda: time.sleep(0.02), lambda: time.sleep(0.002))
    assert usual >= 0.02 and 0.002 <= other < usual


def test_a_long_measurement_ends_early(monkeypatch):
    monkeypatch.setattr(trial, "_MAX_SECONDS", 0.0)
    calls = []
    measured(lambda: calls.append("usual"), lambda: calls.append("other"))
    assert calls == ["usual", "other"] * 2, "one pair warms up, one counts"

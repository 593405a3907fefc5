"""Signals that end a loop after its step or save, and signals that are left to others."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from diamond_gym import signals
from diamond_gym.signals import Terminated
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def default_handlers():
    """Signals as a program finds them: other tests' libraries, and nohup, set handlers of their own."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in {signal.SIGINT: interrupt, **before}.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, Terminated)],
)
def test_a_loop_finishes_its_step(number, error):
    steps, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(error) as raised, signals.handled(), signals.deferred() as requests:
        while not requests.stop:
            signal.raise_signal(number)
            steps.append("finished")
    assert steps == ["finished"]
    if error is Terminated:
        assert raised.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait():
    reached = []
    with pytest.raises(KeyboardInterrupt), signals.deferred():
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)
    assert reached == [1]


def test_sigusr1_asks_to_save_and_ends_nothing():
    with signals.handled(), signals.deferred() as requests:
        signal.raise_signal(signal.SIGUSR1)
        assert requests.save and not requests.stop
    with signals.handled():  # where there is nothing to save
        signal.raise_signal(signal.SIGUSR1)


def test_a_stage_in_which_nothing_is_learned_is_broken_off():
    with pytest.raises(Terminated), signals.handled(), signals.deferred() as requests, requests.at_once():
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the loop continued")
    with pytest.raises(KeyboardInterrupt), signals.deferred() as requests:
        signal.raise_signal(signal.SIGINT)
        with requests.at_once():
            pytest.fail("it began")


def test_handlers_of_others_are_left_alone():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with signals.handled(), signals.deferred() as requests:
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM] and not requests.stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_program_sigterm_is_not_ours():
    with signals.deferred():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_under_torchrun_a_loop_that_can_be_resumed_saves(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with signals.handled():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a waiting process sees no exception"
        with pytest.raises(Terminated), signals.deferred() as requests:
            signal.raise_signal(signal.SIGTERM)
            assert requests.stop


def test_in_other_threads_nothing_is_asked_for():
    seen = []

    def work():
        with signals.deferred() as requests:
            seen.append(requests.stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def interrupted_at_import(folder, *arguments):
    """Run Python, with a Ctrl-C at the moment at which it imports PyTorch."""
    (folder / "torch.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("module", ["diamond_gym.demo", "trainers.contexts", "benchmarks.throughput"])
def test_ctrl_c_while_a_command_imports_is_quiet(module, tmp_path):
    done = interrupted_at_import(tmp_path, "-m", module, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_programs_of_others_keep_their_tracebacks(tmp_path):
    done = interrupted_at_import(tmp_path, "-c", "import diamond_gym, trainers, torch", "-m", "trainers.x")
    assert done.returncode == -signal.SIGINT and "KeyboardInterrupt" in done.stderr
    (tmp_path / "mine.py").write_text("import trainers\nimport torch\n")
    assert "KeyboardInterrupt" in interrupted_at_import(tmp_path, "-m", "mine").stderr

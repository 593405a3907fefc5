"""One run of a sweep, on whichever machine Ray has chosen: started or continued, followed, and scored.

The run is a process of its own, the trainer's usual command: what it writes, how it stops and how it resumes
is the trainer's business. The module does not import Ray.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diamond_gym import untrusted
from diamond_gym.errors import CacheError, DatasetError, DiamondGymError
from diamond_gym.files import open_itself, write_file
from trainers.diamond.errors import PROCESS_LOST
from trainers.report.results import Plan, RunResult, read_result, write_result
from trainers.sweep.folder import SweepFolder, Trial
from trainers.sweep.runs import RUNS, Runs, State

ROOT = Path(__file__).resolve().parents[2]
"""Where the package lies, installed or not."""
_POLL_S = 5.0
"""How often is looked where a run stands."""
_LOCK_WAIT_S = 600.0
"""How long a run that is resumed waits for its former process to save and leave."""
_STOP_WAIT_S = 600.0
_STOPPED = (130, 143)
"""Exit codes of a run that was interrupted or terminated."""


class RunLostError(DiamondGymError, RuntimeError):
    """The process of a run is gone, and did not say why: it was killed, or preempted. It can be resumed."""


class RunRefusedError(DiamondGymError, RuntimeError):
    """The trainer has said why it cannot train the run; another try would end alike."""


@dataclass(frozen=True)
class Job:
    """What a worker has to know.

    Attributes:
        sweep: The sweep's folder.
        trial: Which run.
        plan: The sweep's plan.
        processes: Processes of the run.
        threads: CPU threads of each.
    """

    sweep: Path
    trial: Trial
    plan: Plan
    processes: int
    threads: int


def work(job: Job, report: Callable[[State], None]) -> State:
    """Brings a run to its end and writes its result.

    Args:
        job: Which run.
        report: Is called whenever the run has come further.

    Returns:
        Where it stands in the end.

    Raises:
        RunRefusedError: The trainer refuses it.
        RunLostError: Its process was killed, or preempted.
        SweepInUseError: Another process works on it.
    """
    folder, runs = SweepFolder(job.sweep), RUNS[job.plan.run]
    if not folder.plan_file.is_file():
        raise RunRefusedError(
            f"{socket.gethostname()} does not see {folder.plan_file}: a cluster needs out= in a folder that "
            "all machines share"
        )
    with folder.run_locked(job.trial, _LOCK_WAIT_S) as lock:
        if not folder.result(job.trial).is_file():  # of a try whose end nobody was told
            _train(job, folder, runs, lock.fileno(), report)
    return State(1.0, read_result(folder.result(job.trial)).score)


def _train(job: Job, folder: SweepFolder, runs: Runs, lock: int, report: Callable[[State], None]) -> None:
    run, output = folder.run(job.trial), folder.output(job.trial)
    begin = time.time()
    with _appending(output) as log:
        start = log.tell()
        arguments = runs.arguments(run, job.trial.game, job.trial.seed, job.plan.keys, job.sweep.name)
        command = [*launcher(job.processes), *arguments]
        log.write(f"$ python {' '.join(command)}\n".encode())
        log.flush()
        with _following(command, job, log, lock) as process:
            last = None
            while process.poll() is None:
                state = runs.state(run)
                if state != last:
                    report(state)
                    last = state
                _wait(process)
    seconds = _add_seconds(output.with_suffix(".seconds"), time.time() - begin)
    _check_end(process.returncode, output, start)
    outcome = runs.outcome(run)
    result = RunResult(
        job.trial.game,
        job.trial.seed,
        outcome.score,
        outcome.protocol,
        outcome.curve,
        seconds,
        socket.gethostname(),
    )
    write_result(job.sweep, result)


def _appending(output: Path) -> BinaryIO:
    """Opens what a run prints, at its end.

    Raises:
        CacheError: It cannot be written, or is a link or not a regular file.
    """
    try:
        log = os.fdopen(open_itself(output, os.O_WRONLY | os.O_APPEND), "ab")
    except OSError as error:
        raise CacheError(f"cannot write {output}: {error.strerror or error}") from error
    log.seek(0, os.SEEK_END)
    return log


def launcher(processes: int) -> list[str]:
    """What comes before the name of the trainer's module: torchrun for several processes."""
    if processes == 1:
        return ["-m"]
    rendezvous = ["--standalone", "--master-addr=127.0.0.1"]
    return ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={processes}", "-m"]


@contextmanager
def _following(command: list[str], job: Job, log: Any, lock: int) -> Iterator[subprocess.Popen]:
    """The run's process; it is told to stop, and waited for, when the block ends early.

    It holds the lock as long as it lives, and has a session of its own: Ray kills the groups of its workers.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainers.sweep.follow", str(os.getpid()), sys.executable, *command],
        cwd=job.plan.cwd,
        env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen) -> None:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return


def _add_seconds(file: Path, seconds: float) -> float:
    """Adds up the time of the parts of a run, each of which ends here unless its worker is killed."""
    with untrusted.reading(file, DatasetError, "a number of seconds"):
        total = seconds + (float(file.read_text()) if file.is_file() else 0.0)
    write_file(file, f"{total:.1f}".encode())
    return total


def _check_end(code: int, output: Path, start: int) -> None:
    """Tells a run that was refused, and one that was lost, from one that is done."""
    if code == 0:
        return
    with output.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    errors = [line for line in lines if line.startswith("error: ") and PROCESS_LOST not in line]
    if errors and code not in _STOPPED:
        raise RunRefusedError(errors[-1].removeprefix("error: "))
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise RunLostError(f"its process {how}; {output} tells more")

"""Ray: this machine or a cluster, what its machines have, and runs as trials of Tune."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from diamond_gym import signals
from diamond_gym.errors import InvalidInputError, MissingDependencyError, first_line
from trainers.sweep.board import Board
from trainers.sweep.errors import ClusterError, SweepInUseError
from trainers.sweep.runs import State
from trainers.sweep.settings import SweepSettings
from trainers.sweep.trial import ROOT, Job, RunRefusedError, work

_KNOCK_S, _ANSWER_S = 5.0, 120.0
_CONNECT = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
_STARTS = 3
"""How often Ray is started on this machine: it gives its processes 30 seconds, too little for a busy one."""
_OBJECT_STORE_BYTES = 100 * 2**20
"""Runs pass files to each other, no objects: the least that Ray takes, or nearly."""
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # without a share of a GPU, a run sees none
    "RAY_AIR_NEW_OUTPUT": "0",  # the table is ours
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # runs are as nice as the command
    "RAY_worker_register_timeout_seconds": "600",  # a busy machine imports slowly
    "RAY_kill_child_processes_on_worker_exit": "false",  # runs are told to stop, and save
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs log by themselves
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, and its runs save
}
_LINE_EVERY_S, _TABLE_EVERY_S = 60.0, 0.5


def require_ray() -> None:
    """Makes sure that Ray is there, before anything is done.

    Raises:
        MissingDependencyError: It is not.
    """
    for name, value in _ENVIRONMENT.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray.tune  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"sweeps need Ray Tune and rich ({first_line(error)}): pip install 'diamond-gym[sweep]'"
        ) from error


@contextlib.contextmanager
def connected(settings: SweepSettings) -> Iterator[None]:
    """A Ray of this machine alone, or a running cluster, for the block; both are left tidily.

    Raises:
        ClusterError: No cluster answers at the address, or no machine has the CPUs and GPUs of one run.
        InvalidInputError: The address is malformed.
    """
    import ray

    if settings.address is not None:
        probe(settings.address)
    local: dict[str, Any] = {
        "num_cpus": settings.num_cpus or len(os.sched_getaffinity(0)),
        "num_gpus": settings.num_gpus,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    shared: dict[str, Any] = {"runtime_env": {"env_vars": _worker_environment()}}
    handlers = _handlers()
    for left in reversed(range(1 if settings.address else _STARTS)):
        try:
            ray.init(
                address=settings.address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **(shared if settings.address else local),
            )
            break
        except Exception as error:  # Ray's own kinds, and whatever its processes and sockets raise
            ray.shutdown()
            if not left:
                where = f"at address={settings.address}" if settings.address else "on this machine"
                raise ClusterError(f"Ray cannot be reached {where}: {first_line(error)}") from error
    _give_back(handlers)
    try:
        check_shares(settings, [node for node in ray.nodes() if node["Alive"]])
        yield
    finally:
        ray.shutdown()


def _worker_environment() -> dict[str, str]:
    """Workers of a cluster that was started elsewhere find this package, too, where the path is the same."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


def _handlers() -> dict[int, Any]:
    """The handlers of signals that Ray and Tune set, too."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last is not on every system
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return {number: signal.getsignal(number) for number in numbers}


def _give_back(handlers: dict[int, Any]) -> None:
    with contextlib.suppress(ValueError):  # outside the main thread, where there is nothing to give back
        for number, handler in handlers.items():
            signal.signal(number, handler)


def probe(address: str) -> None:
    """Asks whether a cluster answers, in a process of its own: Ray ends the one that asks in vain.

    Raises:
        ClusterError: None does.
        InvalidInputError: The address is malformed.
    """
    if address != "auto":
        _knock(address)
    command = [sys.executable, "-c", _CONNECT, address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(address, f"no answer within {_ANSWER_S:.0f} s") from error
    if answer.returncode:
        raise _no_cluster(address, _reason(f"{answer.stdout}\n{answer.stderr}"))


def _reason(output: str) -> str:
    """Why Ray did not connect: what it says last, which is not enough where a token is missing."""
    if "InvalidAuthToken" in output:
        return (
            "it asks for another token: `export RAY_AUTH_MODE=token`, with the token of the cluster's first "
            "machine in ~/.ray/auth_token"
        )
    lines = [line.strip() for line in output.splitlines()]
    return next(filter(None, reversed(lines)), "it does not say why")


def _knock(address: str) -> None:
    """Tries whether anybody listens there."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or "/" in address:
        raise InvalidInputError(
            f"address={address}: accepted are auto and HOST:PORT, as `ray start --head` prints it. Where a "
            "cluster is reached through ray:// or the web, run the command on its head: `ray job submit`"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, reason: object) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers at address={address} ({reason}): start one with `ray start --head`, or "
        "leave address out to use this machine alone"
    )


def check_shares(settings: SweepSettings, nodes: list[dict[str, Any]]) -> None:
    """Makes sure that some machine has room for a run."""
    need = {"CPU": settings.cpus, "GPU": settings.gpus}
    if any(all(node["Resources"].get(kind, 0) >= n for kind, n in need.items()) for node in nodes):
        return
    sizes = sorted({tuple(int(node["Resources"].get(kind, 0)) for kind in need) for node in nodes})
    have = ", ".join(f"{cpus} CPUs and {gpus} GPUs" for cpus, gpus in sizes)
    raise ClusterError(
        f"no machine has cpus={settings.cpus:g} and gpus={settings.gpus:g} for a run; machines have {have}. "
        "Ask for less, or start a larger machine first"
    )


def run_trials(settings: SweepSettings, jobs: list[Job], board: Board) -> None:
    """Runs everything as trials of Tune, which places them, notices what is lost, and starts it again.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Terminated: SIGTERM or SIGHUP.
    """
    with signals.deferred() as requests, requests.at_once():  # Ray forgets which signal it was
        _fit(settings, jobs, board)
    assert board.count("done") + board.count("failed") == len(board.trials), board.line()


def _fit(settings: SweepSettings, jobs: list[Job], board: Board) -> None:
    from ray import tune

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # its warnings are about files that we do not want
    trainable = tune.with_resources(_trainable(jobs), {"cpu": settings.cpus, "gpu": settings.gpus})
    display = _Display(board)
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([job.trial.name for job in jobs])},
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_dirname_creator=lambda trial: _name(trial),
            trial_name_creator=lambda trial: _name(trial),
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y-%m-%d_%H-%M-%S"),
            storage_path=str(settings.folder / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=settings.retries),
            callbacks=[_callback(board, display)],
        ),
    )
    try:
        tuner.fit()
    finally:
        display.close()


def _trainable(jobs: list[Job]) -> Callable[[dict[str, Any]], None]:
    """What a Ray worker does. What another try would not change is reported, not raised."""
    by_name = {job.trial.name: job for job in jobs}

    def train(config: dict[str, Any]) -> None:
        from ray import tune

        def report(status: str, state: State | None, message: str = "") -> None:
            share, score = (None, None) if state is None else (state.share, state.score)
            tune.report({"status": status, "share": share, "score": score, "message": message})

        report("running", None)
        try:
            report("done", work(by_name[config["trial"]], lambda state: report("running", state)))
        except (RunRefusedError, SweepInUseError) as error:
            report("failed", None, str(error))

    return train


def _callback(board: Board, display: _Display) -> Any:
    """Tells a board what Tune tells, and has it shown; gives handlers of signals back when Tune has begun."""
    from ray import tune

    handlers = _handlers()

    class ShowBoard(tune.Callback):
        def setup(self, *args: Any, **info: Any) -> None:
            _give_back(handlers)

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict, **info: Any) -> None:
            status = result.get("status")
            if status is not None:
                state = None if result["share"] is None else State(result["share"], result["score"])
                board.update(_name(trial), status, state, result["message"])

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            board.update(_name(trial), "lost")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            board.update(_name(trial), "failed", message=_last_error(trial))

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            display.show()

    return ShowBoard()


def _name(trial: Any) -> str:
    return trial.config["trial"]


def _last_error(trial: Any) -> str:
    """What a trial said that was lost too often."""
    error = trial.get_error()
    return (
        "it was lost too often" if error is None else f"it was lost too often: {str(error).splitlines()[-1]}"
    )


class _Display:
    """Shows a board: on a terminal as a table that stays in its place, elsewhere as a line a minute."""

    def __init__(self, board: Board) -> None:
        from rich.live import Live

        self.board = board
        self._last = -_LINE_EVERY_S
        self._live = Live(auto_refresh=False) if sys.stdout.isatty() else None
        if self._live is not None:
            self._live.start()

    def __getstate__(self) -> dict[str, Any]:
        """Without the terminal: Tune pickles its callbacks, and what they show."""
        return self.__dict__ | {"_live": None}

    def show(self) -> None:
        """Shows where the sweep stands, if it is time to."""
        now = time.monotonic()
        if now - self._last < (_LINE_EVERY_S if self._live is None else _TABLE_EVERY_S):
            return
        self._last = now
        if self._live is None:
            print(self.board.line(), flush=True)
        else:
            self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        """Leaves the last table where it is, and the terminal as it was."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        head, rows = self.board.table()
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        return Group(table, self.board.line())  # a caption would be as narrow as the table

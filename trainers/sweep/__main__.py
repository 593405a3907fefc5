"""`python -m trainers.sweep`: a trainer over games and seeds, on this machine or on a Ray cluster."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress

from diamond_gym import cli
from diamond_gym.cli import Command
from diamond_gym.files import prepare_folder
from trainers.report.results import Plan, read_result
from trainers.sweep import cluster
from trainers.sweep.board import Board
from trainers.sweep.errors import RunsFailedError, SweepInUseError
from trainers.sweep.folder import SweepFolder, Trial
from trainers.sweep.runs import RUNS
from trainers.sweep.settings import SweepSettings
from trainers.sweep.trial import Job

PROG = "python -m trainers.sweep"
ABOUT = """\
Trains every game with every seed, each in a run folder of its own, on Ray: on this machine, or on all
machines of a cluster. The same command continues what was stopped or lost, and adds games and seeds; Ctrl-C
saves.

  game=[Breakout,Pong] seed=[0,1,2] preset=small
  game=[Breakout,Pong] seed=[0,1,2] run=sb3 total_timesteps=100000
  game=[Breakout,Pong] preset=paper address=auto gpus=0.5         (a cluster, two runs a GPU)
  game=[Breakout,Pong] preset=paper address=auto gpus=4 cpus=16   (four GPUs a run, by torchrun)

The folder gets runs/GAME-SEED, output/GAME-SEED.txt and results/GAME-SEED.json; on a cluster all machines
must see it. Then: python -m trainers.report results=FOLDER beside=published"""
_SAVE_WAIT_S = 300.0


def sweep(settings: SweepSettings) -> Board:
    """Trains what is missing of a sweep.

    Everything that can be wrong with the command is found before a trial starts or a file is written.

    Returns:
        Where the sweep stands in the end.

    Raises:
        MissingDependencyError: Ray, or what the trainer needs, is not installed.
        DiamondGymError: What the trainer says of its keys.
        ClusterError: No cluster answers, or no machine has room for a run.
        InvalidInputError: The folder holds another sweep.
        SweepInUseError: Another process works in it.
        RunsFailedError: Some runs cannot be finished; all others are.
        KeyboardInterrupt: Ctrl-C; the runs have saved, and the same command continues.
    """
    cluster.require_ray()
    folder = SweepFolder(settings.folder)
    given = Plan(settings.run, settings.keys, settings.game, settings.seed, os.getcwd())
    plan = folder.merged(given)
    runs, is_here = RUNS[plan.run], settings.address is None
    runs.check(plan.games, plan.seeds, plan.keys, settings.num_processes)
    runs.check_device(plan.games[0], plan.keys, settings.gpus, is_here=is_here)
    board, missing = _board(folder, plan)
    if not missing:
        return board
    with cluster.connected(settings):
        prepare_folder(folder.path)
        with folder.locked():
            folder.write_plan(plan)
            print(f"{len(missing)} of {len(board.trials)} runs to train in {folder.path}", flush=True)
            jobs = [
                Job(folder.path, trial, plan, settings.num_processes, settings.num_threads)
                for trial in missing
            ]
            try:
                cluster.run_trials(settings, jobs, board)
            except KeyboardInterrupt:
                _interrupted(folder, board)
                raise
            finally:
                shutil.rmtree(folder.path / "tune", ignore_errors=True)
    if failures := board.failures():
        raise RunsFailedError(
            f"{len(failures)} runs have failed; the same command tries them again. "
            + "; ".join(f"{name}: {message}" for name, message in failures.items())
        )
    return board


def _board(folder: SweepFolder, plan: Plan) -> tuple[Board, list[Trial]]:
    """All runs, and those that are missing."""
    missing = folder.missing(plan)
    every = [Trial(game, seed) for game in plan.games for seed in plan.seeds]
    done = {trial: read_result(folder.result(trial)).score for trial in every if trial not in missing}
    return Board(every, done), missing


def _interrupted(folder: SweepFolder, board: Board) -> None:
    """Ends the workers, and waits until their runs have saved."""
    import ray

    ray.shutdown()
    print("\nstopping: the runs save", flush=True)
    for trial in board.running():
        with suppress(SweepInUseError), folder.run_locked(trial, _SAVE_WAIT_S):
            pass
    print("stopped; the same command continues", flush=True)


def _run(settings: SweepSettings) -> None:
    board = sweep(settings)
    print(board.line())
    print(f"to compare: python -m trainers.report results={settings.folder} beside=published")


COMMAND = Command(
    PROG, ABOUT, SweepSettings, _run, rest="keys", usage_of_arguments="game=[...] seed=[...] [key=value ...]"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the arguments say and returns the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

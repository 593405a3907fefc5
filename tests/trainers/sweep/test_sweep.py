"""`python -m trainers.sweep` without Ray: what is planned, refused, followed and shown."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diamond_gym import cli
from diamond_gym.errors import (
    CacheError,
    CheckpointNotFoundError,
    DatasetError,
    DeviceError,
    InvalidInputError,
    UnknownGameError,
)
from diamond_gym.evaluate.report import write_json
from tests.paths import ROOT
from trainers.report.results import Curve, Plan, Protocol, RunResult, read_result
from trainers.sweep import cluster, trial
from trainers.sweep.__main__ import COMMAND, main
from trainers.sweep.board import Board, duration
from trainers.sweep.errors import ClusterError, SweepInUseError
from trainers.sweep.folder import SweepFolder, Trial
from trainers.sweep.runs import RUNS, State
from trainers.sweep.settings import SweepSettings

PARENT = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "trainers.sweep.follow", str(os.getpid()), "sleep", "600"]
print(subprocess.Popen(command, start_new_session=True).pid, flush=True)
time.sleep(600)
"""
PLAN = Plan("diamond", ["preset=smoke"], ["Pong", "Boxing"], [0, 1], "/")


def parse(*arguments):
    return cli.parse(SweepSettings, arguments, rest="keys")


def test_lists_and_keys_of_the_trainer():
    settings = parse("game=[breakout,Pong]", "seed=[3,1]", "preset=small", "training.parts=[denoiser]")
    assert settings.game == ["Breakout", "Pong"]
    assert settings.seed == [3, 1]
    assert settings.keys == ["preset=small", "training.parts=[denoiser]"]
    assert settings.folder == Path("outputs/sweeps/diamond").absolute()
    assert parse("game=Pong").seed == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "processes", "threads"),
    [
        ([], 1, 1),
        (["cpus=4"], 1, 4),
        (["cpus=0.5", "gpus=0.25"], 1, 1),
        (["cpus=16", "gpus=4"], 4, 4),
        (["cpus=4", "processes=2"], 2, 2),
    ],
)
def test_shares(arguments, processes, threads):
    settings = parse("game=Pong", *arguments)
    assert (settings.num_processes, settings.num_threads) == (processes, threads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["game=[Pong,pong]"], "game=Pong,Pong gives Pong twice"),
        (["game=Pong", "seed=[1,2,1]"], "seed=1,2,1 gives 1 twice"),
        (["game=Pong", "seed=[]"], "at least one entry each"),
        (["seed=[0]"], "missing: game=..."),
        (["game=Pong", "cpus=0"], "cpus must be finite and above 0"),
        (["game=Pong", "gpus=1.5"], "gpus=1.5 must be a whole number, or below 1"),
        (["game=Pong", "gpus=2", "processes=3"], "cannot share gpus=2"),
        (["game=Pong", "address=auto", "num_cpus=1"], "leave them out with address="),
        (["game=Pong", "run=sb4"], "did you mean sb3?"),
        (["game=Pong", "retries=-2"], "retries must be at least -1"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        parse(*arguments)


def test_an_unknown_game_is_named():
    with pytest.raises(UnknownGameError, match="did you mean"):
        parse("game=[Pong,Breakot]")


@pytest.mark.parametrize(
    ("run", "processes", "keys", "message"),
    [
        ("diamond", 1, ["preset=smoke", "trainin.parts=[denoiser]"], "unknown key trainin.parts"),
        ("diamond", 1, ["preset=smoke", "common.seed=3"], r"the sweep chooses that; give seed=\[0,1,...\]"),
        ("diamond", 2, ["preset=smoke", "denoiser.training.batch_size=5"], "accepted are multiples of 2"),
        ("sb3", 1, ["algo=pppo"], "did you mean ppo?"),
        ("sb3", 2, [], "processes=2 must be 1"),
    ],
)
def test_mistakes_in_the_keys_are_found_before_any_run(run, processes, keys, message):
    with pytest.raises(InvalidInputError, match=message):
        RUNS[run].check(["Pong"], [0], keys, processes)


def test_worlds_are_looked_for_before_any_run(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no embedded world model of Boxing"):
        RUNS["sb3"].check(["Pong", "Boxing"], [0], ["checkpoint=embedded"], 1)
    RUNS["sb3"].check(["Pong", "Boxing"], [0], ["where=real"], 1)
    with pytest.raises(InvalidInputError, match="there is no such file"):
        RUNS["sb3"].check(["Pong"], [0], [f"contexts={tmp_path / 'none'}"], 1)


@pytest.mark.parametrize(
    ("run", "key", "gpus", "kind", "message"),
    [
        ("diamond", "common.device=cuda", 0, InvalidInputError, "common.device=cuda needs a share of a GPU"),
        ("diamond", "common.device=cuda:1", 1, InvalidInputError, "Ray chooses the GPU of each run"),
        ("diamond", "common.device=vulkan", 0, DeviceError, "common.device=vulkan: .* this machine has cpu"),
        ("diamond", "training.backend=cuda_graph", 0, DeviceError, "needs a CUDA device"),
        ("sb3", "device=cuda", 0, InvalidInputError, "device=cuda needs a share of a GPU"),
        ("sb3", "backend=cuda_graph", 0, DeviceError, "needs a CUDA device"),
    ],
)
def test_devices_that_a_run_would_not_have(run, key, gpus, kind, message):
    with pytest.raises(kind, match=message):
        RUNS[run].check_device("Pong", [key], gpus, is_here=True)


def test_devices_of_a_cluster_are_not_looked_for_here():
    for run, key in (("diamond", "common.device=vulkan"), ("sb3", "device=vulkan")):
        RUNS[run].check_device("Pong", [key], 0, is_here=False)
        with pytest.raises(DeviceError):
            RUNS[run].check_device("Pong", [key], 0, is_here=True)
    for run in RUNS:
        RUNS[run].check_device("Pong", [], 0, is_here=True)


def test_a_correct_configuration_is_accepted():
    RUNS["diamond"].check(["Pong"], [0, 1], ["preset=smoke"], 2)


def test_seeds_come_one_after_the_other_and_finished_runs_are_left_out(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.write_plan(PLAN)
    trials = [Trial("Pong", 0), Trial("Boxing", 0), Trial("Pong", 1), Trial("Boxing", 1)]
    assert folder.missing(PLAN) == trials
    write_json({}, folder.result(trials[1]))
    assert folder.missing(PLAN) == [trials[0], *trials[2:]]


def test_the_same_command_continues_and_more_games_and_seeds_are_added(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    assert folder.merged(PLAN) == PLAN
    folder.path.mkdir()
    folder.write_plan(PLAN)
    assert folder.merged(PLAN) == PLAN
    more = folder.merged(Plan("diamond", ["preset=smoke"], ["Freeway"], [2, 0], "/"))
    assert (more.games, more.seeds) == (["Pong", "Boxing", "Freeway"], [0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": ["preset=small"]}, "with the keys preset=smoke, not preset=small"),
        ({"run": "sb3"}, "with the trainer diamond, not sb3"),
        ({"cwd": "/tmp"}, "with the working folder /, not /tmp"),
    ],
)
def test_another_sweep_in_the_folder_is_refused(tmp_path, change, message):
    folder = SweepFolder(tmp_path)
    folder.write_plan(PLAN)
    with pytest.raises(InvalidInputError, match=message):
        folder.merged(Plan(**PLAN.__dict__ | change))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InvalidInputError, match="holds something else than a sweep"):
        SweepFolder(tmp_path).merged(PLAN)


def test_without_ray_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    assert main(["game=Pong", "preset=smoke", f"out={tmp_path / 'sweep'}"]) == 1
    assert "pip install 'diamond-gym[sweep]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("ray://head:10001", InvalidInputError, "accepted are auto and HOST:PORT"),
        ("head", InvalidInputError, "accepted are auto and HOST:PORT"),
        ("127.0.0.1:9", ClusterError, "no Ray cluster answers at address=127.0.0.1:9"),
        ("127.0.0.1:99999", ClusterError, "no Ray cluster answers"),
    ],
)
def test_an_address_where_no_cluster_answers(address, kind, message):
    with pytest.raises(kind, match=message):
        cluster.probe(address)


def test_a_share_that_no_machine_has():
    nodes = [{"Resources": {"CPU": 2.0}}, {"Resources": {"CPU": 8.0, "GPU": 1.0}}]
    cluster.check_shares(parse("game=Pong", "cpus=8", "gpus=0.5"), nodes)
    with pytest.raises(ClusterError, match=r"cpus=4 and gpus=2 .* 2 CPUs and 0 GPUs, 8 CPUs and 1 GPUs"):
        cluster.check_shares(parse("game=Pong", "cpus=4", "gpus=2"), nodes)


def test_a_new_run_is_started_and_an_old_one_resumed(tmp_path):
    folder = tmp_path / "Pong-1"
    folder.mkdir()
    (folder / ".lock").write_text("")  # a process was killed before it had written what it will do
    command = RUNS["diamond"].arguments(folder, "Pong", 1, ["preset=smoke"], "mine")
    assert command[:5] == ["trainers.diamond", "train", "game=Pong", "common.seed=1", f"out={folder}"]
    assert {"wandb.group=mine", "wandb.name=Pong-1", "preset=smoke"} <= set(command)
    assert not folder.exists()
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "trainer.yaml").write_text("")
    command = RUNS["diamond"].arguments(folder, "Pong", 1, ["preset=smoke"], "mine")
    assert command == ["trainers.diamond", "resume", f"run={folder}"]
    assert trial.launcher(1) == ["-m"]
    assert "--nproc-per-node=4" in trial.launcher(4)


def diamond_run(folder, lines, *keys):
    from trainers.diamond.config import parse as parse_keys
    from trainers.diamond.config import to_yaml

    (folder / "config").mkdir(parents=True)
    (folder / "config" / "trainer.yaml").write_text(to_yaml(parse_keys(["game=Pong", "preset=smoke", *keys])))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_where_a_run_of_diamond_stands_and_what_it_leaves(tmp_path):
    runs = RUNS["diamond"]
    assert runs.state(tmp_path / "nothing") == State(0.0, None)
    lines = [
        {"epoch": 1, "collect/dataset_steps": 900},
        {"epoch": 2, "collect/dataset_steps": 950, "test/return": -20.0},
        {"epoch": 3, "collect/dataset_steps": 1000, "test/return": -19.0},
    ]
    assert runs.state(diamond_run(tmp_path / "a", lines[:2])) == State(2 / 3, -20.0)
    outcome = runs.outcome(diamond_run(tmp_path / "b", [*lines, {"epoch": 3, "final/return": -18.5}]))
    assert outcome.score == -18.5
    assert outcome.protocol == Protocol(frames=4_000, episodes=2, max_frames=108_000)
    assert outcome.curve == Curve("steps of the real game", [950, 1000], [-20.0, -18.5])
    fixed = [{"epoch": 1, "test/return": 1.0}]
    keys = ["static_dataset.path=x", "collection.test.max_episode_steps=300"]
    outcome = runs.outcome(diamond_run(tmp_path / "c", fixed, *keys))
    assert (outcome.protocol.frames, outcome.protocol.max_frames) == (None, 1200)
    assert outcome.curve == Curve("epochs", [1], [1.0])
    worlds = runs.outcome(diamond_run(tmp_path / "d", [{"epoch": 3, "denoiser/loss": 0.1}]))
    assert (worlds.score, worlds.curve) == (None, None)


def test_where_a_run_of_sb3_stands_and_what_it_leaves(tmp_path):
    runs = RUNS["sb3"]
    assert runs.state(tmp_path) == State(0.0, None)
    settings = {"where": "imagination", "total_timesteps": 400, "final_episodes": 30, "max_game_steps": 5_000}
    write_json(settings, tmp_path / "settings.json")
    # the first part was killed at step 300 and had saved step 200: its evaluation at 300 was done again
    for number, steps in ((1, [100, 200, 300]), (2, [250, 400])):
        log = tmp_path / f"log-00{number}"
        log.mkdir()
        np.savez(log / "evaluations.npz", timesteps=steps, results=[[s, s + 2.0] for s in steps])
        (log / "progress.csv").write_text(f"time/total_timesteps,x\n{steps[-1]},0\n")
    assert runs.state(tmp_path) == State(1.0, 401.0)
    for number, size in ((3, 0), (4, 100)):  # just being written, and left by a killed process
        log = tmp_path / f"log-00{number}"
        log.mkdir()
        whole = (tmp_path / "log-002" / "evaluations.npz").read_bytes()
        (log / "evaluations.npz").write_bytes(whole[:size])
        (log / "progress.csv").write_text("time/total_timesteps,x\n4")
    assert runs.state(tmp_path) == State(1.0, 401.0)
    write_json({"steps": 400, "scores": [{"mean": 7.0}, {"mean": 1.0}]}, tmp_path / "score.json")
    outcome = runs.outcome(tmp_path)
    assert outcome.score == 7.0
    assert outcome.curve == Curve("imagined steps", [100, 200, 250, 400], [101, 201, 251, 7])
    assert outcome.protocol == Protocol(frames=None, episodes=30, max_frames=20_000)
    write_json(settings | {"where": "real"}, tmp_path / "settings.json")
    assert runs.outcome(tmp_path).protocol.frames == 1_600


def test_the_board():
    now = 0.0
    trials = [Trial(game, seed) for game in ("Pong", "Boxing") for seed in (0, 1)]
    board = Board(trials, {trials[0]: -20.0}, clock=lambda: now)
    assert board.line() == "1 of 4 runs done, 0 running, unknown time left"
    board.update("Pong-1", "running", State(0.2))
    now = 60.0
    board.update("Pong-1", "running", State(0.7, -19.0))
    board.update("Boxing-0", "failed", message="no disk")
    # half a run a minute, and 1.3 runs are left
    assert board.line() == "1 of 4 runs done, 1 running, 1 failed, 2 min 36 s left"
    assert board.table() == (
        ["game", "seed 0", "seed 1"],
        [["Pong", "-20.0", "running 70 % (-19.0)"], ["Boxing", "failed 0 %", "waiting"]],
    )
    board.update("Pong-1", "lost")
    assert board.table()[1][0][2] == "lost 70 % (-19.0)"
    board.update("Boxing-1", "running", State(1.0))
    board.update("Pong-1", "done", State(1.0, -18.0))
    assert board.line().endswith(", 1 running, 1 failed, unknown time left; last scores: Pong-1 -18.0")
    board.update("Boxing-1", "done", State(1.0))
    assert ", 0 running, 1 failed, 0 s left; last scores: Pong-1 -18.0, Boxing-1 no score" in board.line()
    assert board.failures() == {"Boxing-0": "no disk"}
    assert board.running() == []


def test_a_table_on_a_terminal_can_be_pickled_as_tune_does(monkeypatch, capsys):
    pytest.importorskip("rich")
    board = Board([Trial("Pong", 0)], {})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    display = cluster._Display(board)
    assert pickle.loads(pickle.dumps(display)).board.line() == board.line()
    display.close()
    assert "Pong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (61, "1 min 1 s"), (7_260, "2 h 1 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_run_is_stopped_when_its_parent_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    await_(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    await_(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())


def await_(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_child_holds_the_lock_of_its_run(tmp_path):
    folder, run = SweepFolder(tmp_path), Trial("Pong", 0)
    with folder.run_locked(run) as lock:
        child = subprocess.Popen(["sleep", "600"], pass_fds=[lock.fileno()])
    with pytest.raises(SweepInUseError, match="Pong-0 is still at work"), folder.run_locked(run):
        pass
    child.kill()
    child.wait()
    with folder.run_locked(run), pytest.raises(SweepInUseError), folder.run_locked(run, 0.1):
        pass


def test_a_lock_that_cannot_be_written(tmp_path):
    (tmp_path / "output").write_text("")
    with pytest.raises(CacheError, match="cannot write"), SweepFolder(tmp_path).run_locked(Trial("Pong", 0)):
        pass


def test_nothing_is_written_through_a_link(tmp_path):
    folder, run, victim = SweepFolder(tmp_path), Trial("Pong", 0), tmp_path / "victim"
    folder.output(run).parent.mkdir()
    victim.write_text("precious")
    lock = tmp_path / "output" / ".Pong-0.lock"
    lock.symlink_to(victim)
    with pytest.raises(CacheError, match=r"\.lock: it is a link to .*victim"), folder.run_locked(run):
        pass
    lock.unlink()
    os.link(victim, lock)
    with folder.run_locked(run):
        pass
    folder.output(run).symlink_to(victim)
    with pytest.raises(CacheError, match=r"Pong-0\.txt: it is a link"):
        trial._appending(folder.output(run))
    assert victim.read_text() == "precious"
    folder.output(run).unlink()
    for line in (b"one\n", b"two\n"):
        with trial._appending(folder.output(run)) as log:
            log.write(line)
    assert folder.output(run).read_bytes() == b"one\ntwo\n"
    (tmp_path / ".lock").unlink(missing_ok=True)
    os.mkfifo(tmp_path / ".lock")  # opening it would wait for a reader
    with pytest.raises(CacheError, match="not a regular file"), folder.locked():
        pass


def test_a_time_that_is_damaged_is_named(tmp_path):
    file = tmp_path / "Pong-0.seconds"
    assert trial._add_seconds(file, 1.5) == 1.5 and trial._add_seconds(file, 2.0) == 3.5
    file.write_text("many")
    with pytest.raises(DatasetError, match=r"Pong-0\.seconds cannot be read as a number of seconds"):
        trial._add_seconds(file, 1.0)


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    job = trial.Job(tmp_path, Trial("Pong", 0), PLAN, 1, 1)
    with pytest.raises(trial.RunRefusedError, match="in a folder that all machines share"):
        trial.work(job, print)


def test_what_the_trainer_refuses_is_told_and_not_tried_again(tmp_path):
    folder = SweepFolder(tmp_path)
    plan = Plan("diamond", ["presett=smoke"], ["Pong"], [0], str(tmp_path))
    folder.write_plan(plan)
    job = trial.Job(tmp_path, Trial("Pong", 0), plan, 1, 1)
    with pytest.raises(trial.RunRefusedError, match="unknown key presett"):
        trial.work(job, print)
    assert "$ python -m trainers.diamond train game=Pong" in folder.output(job.trial).read_text()


def test_a_finished_run_is_not_trained_again(tmp_path):
    folder, run = SweepFolder(tmp_path), Trial("Pong", 0)
    folder.write_plan(PLAN)
    write_json(
        {"game": "Pong", "seed": 0, "score": 1.0, "protocol": {"frames": None}, "curve": None},
        folder.result(run),
    )
    assert read_result(folder.result(run)) == RunResult("Pong", 0, 1.0, Protocol(None))
    assert trial.work(trial.Job(tmp_path, run, PLAN, 1, 1), print).share == 1.0
    assert not folder.output(run).exists()


def test_the_help_lists_every_key(capsys):
    assert COMMAND(["--help"]) == 0
    text = capsys.readouterr().out
    assert "address=null" in text and "cpus=1.0" in text and "Ctrl-C" in text

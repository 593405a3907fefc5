"""Sweeps on a real Ray: two CPUs of this machine, and two raylets; whatever is killed is resumed.

Minutes each, most of them the start of Ray's processes and of the trainers'.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT
from trainers.report.results import Plan, read_result
from trainers.sweep.folder import SweepFolder, Trial
from trainers.sweep.trial import Job, RunLostError, work

pytest.importorskip("ray.tune", reason="needs Ray")
pytestmark = pytest.mark.slow

KEYS = [
    "preset=smoke",
    "common.device=cpu",
    "training.num_epochs=6",
    "evaluation.every=6",
    "collection.test.max_episode_steps=30",
    "collection.test.players=null",
    "collection.train.players=null",
    "collection.train.num_steps_total=300",
    "collection.train.steps_per_epoch=20",
    "collection.train.first_epoch.min=150",
    "collection.train.first_epoch.max=200",
    *(
        f"{part}.training.steps_{which}=4"
        for part in ("denoiser", "rew_end_model", "actor_critic")
        for which in ("first_epoch", "per_epoch")
    ),
]
TIMEOUT_S = 1_800


def start(folder, *arguments, stdout=subprocess.PIPE, **environment):
    """The command of a user, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trainers.sweep", "game=Pong", f"out={folder}", *KEYS, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        return (*process.communicate(timeout=TIMEOUT_S), process.returncode)
    finally:
        process.kill()


def wait_for(condition, process):
    until = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.1)
    return found


def in_mid_training(folder, seed):
    """The process of a run whose first epoch is saved and whose last one is not; None before that."""
    run = SweepFolder(folder).run(Trial("Pong", seed))
    metrics = run / "metrics.jsonl"
    if not (metrics.is_file() and metrics.read_text().count("\n") == 1):
        return None
    return next((int(pid) for pid in process_ids() if f"out={run}" in command_of(pid)), None)


def process_ids():
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def worker_of(pid):
    """The Ray worker that started a run's process."""
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("PPid:")]
    return int(line.split()[1])


def weights(run):
    return torch.load(run / "checkpoints" / "agent_versions" / "agent_epoch_00006.pt", weights_only=True)


def assert_bit_for_bit(ours, theirs):
    ours, theirs = weights(ours), weights(theirs)
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_a_killed_worker_is_resumed_bit_for_bit(tmp_path):
    folder = tmp_path / "sweep"
    process = start(folder, "seed=[0,1]", "num_cpus=2")
    try:
        worker = worker_of(wait_for(lambda: in_mid_training(folder, 0), process))
        assert "ray" in command_of(worker)
        os.kill(worker, 9)
        output, errors, code = finish(process)
    finally:
        process.kill()
    assert code == 0, errors
    assert "2 of 2 runs done" in output
    sweep = SweepFolder(folder)
    assert "trainers.diamond resume run=" in sweep.output(Trial("Pong", 0)).read_text()
    assert read_result(sweep.result(Trial("Pong", 0))).score is not None
    straight = SweepFolder(tmp_path / "straight")
    plan = json.loads(sweep.plan_file.read_text())
    straight.path.mkdir()
    straight.write_plan(Plan(**plan))
    work(Job(straight.path, Trial("Pong", 0), Plan(**plan), 1, 1), print)
    assert_bit_for_bit(sweep.run(Trial("Pong", 0)), straight.run(Trial("Pong", 0)))
    again = finish(start(folder, "seed=[0,1]", "num_cpus=2"))
    assert again[2] == 0 and "2 of 2 runs done" in again[0] and "to train" not in again[0]


def test_a_lost_machine_is_made_up_for_by_the_others(tmp_path):
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    process = None
    try:
        other = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        folder = tmp_path / "sweep"
        process = start(folder, "seed=[0,1]", f"address={cluster.address}")
        raylet = other.all_processes["raylet"][0].process.pid
        lost = wait_for(lambda: [s for s in (0, 1) if is_on(raylet, in_mid_training(folder, s))], process)[0]
        cluster.remove_node(other, allow_graceful=False)
        output, errors, code = finish(process)
        assert code == 0, errors
        assert "2 of 2 runs done" in output
        printed = SweepFolder(folder).output(Trial("Pong", lost)).read_text()
        assert "trainers.diamond resume run=" in printed
    finally:
        if process is not None:
            process.kill()
        cluster.shutdown()


def is_on(raylet, pid):
    """Whether a run's process belongs to a worker of a raylet."""
    return pid is not None and worker_of(worker_of(pid)) == raylet


def test_a_run_that_loses_one_of_its_processes_is_lost_and_not_refused(tmp_path):
    folder, trial = SweepFolder(tmp_path / "sweep"), Trial("Pong", 0)
    plan = Plan("diamond", KEYS, ["Pong"], [0], str(ROOT))
    folder.path.mkdir()
    folder.write_plan(plan)
    job, killed = Job(folder.path, trial, plan, processes=2, threads=1), []

    def kill_one(state):
        ranks = [pid for pid in process_ids() if rank_of(pid, folder.run(trial)) == "1"]
        if state.share and not killed:
            os.kill(int(ranks[0]), 9)
            killed.extend(ranks)

    with pytest.raises(RunLostError):
        work(job, kill_one)
    assert len(killed) == 1
    assert "another process of this run is gone" in folder.output(trial).read_text()
    assert work(job, print).share == 1.0
    assert "trainers.diamond resume run=" in folder.output(trial).read_text()


def rank_of(pid, run):
    """The rank of a process that torchrun started for a run; None for all others."""
    if f"out={run}" not in command_of(pid):
        return None
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((x.removeprefix("RANK=") for x in variables if x.startswith("RANK=")), None)


def test_a_signal_to_save_is_no_end_and_one_to_end_saves(tmp_path):
    """On a terminal, where a table is shown."""
    folder = tmp_path / "sweep"
    (terminal, slave), shown = os.openpty(), []
    process = start(folder, "seed=0", "num_cpus=1", stdout=slave)
    os.close(slave)
    reader = threading.Thread(target=lambda: shown.extend(read_all(terminal)))
    reader.start()
    pid = wait_for(lambda: in_mid_training(folder, 0), process)
    process.send_signal(signal.SIGUSR1)
    time.sleep(2)  # Tune would end the sweep at its next step
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors, code = finish(process)
    reader.join()
    assert code == 143, errors
    table = b"".join(shown).decode()
    assert "seed 0" in table and "│ running " in table
    assert "stopped; the same command continues" in table
    assert not command_of(pid)
    assert "stopped; to resume: " in SweepFolder(folder).output(Trial("Pong", 0)).read_text()
    assert not (folder / "tune").exists()


def read_all(terminal):
    """What is written to a terminal until nobody has it open."""
    with contextlib.suppress(OSError):
        while text := os.read(terminal, 1 << 16):
            yield text
    os.close(terminal)


def test_no_machine_that_is_large_enough_and_no_cluster(tmp_path):
    folder = tmp_path / "sweep"
    _, errors, code = finish(start(folder, "seed=0", "num_cpus=1", "cpus=3"))
    assert code == 1
    assert "error: no machine has cpus=3 and gpus=0 for a run; machines have 1 CPUs and" in errors
    _, errors, code = finish(start(folder, "seed=0", "address=auto", RAY_ADDRESS="127.0.0.1:9"))
    assert code == 1 and "error: no Ray cluster answers at address=auto" in errors
    assert not folder.exists()

"""Several processes under torchrun train like one: with the same losses and nearly the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import InvalidInputError
from tests.paths import ROOT
from tests.recordings import episode, save_dataset
from trainers.diamond import data
from trainers.diamond import run as launch
from trainers.diamond.config import PARTS, from_yaml, parse, to_yaml
from trainers.diamond.distributed import SINGLE_PROCESS, Group
from trainers.diamond.replay import Replay
from trainers.diamond.run_folder import RunFolder

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--standalone"]
TINY = [
    "preset=smoke",
    "common.device=cpu",
    "training.num_threads=1",
    "training.num_epochs=2",
    "logging.every_steps=1",
    "agent.rew_end_model.channels=[8,8]",
    "denoiser.training.num_autoregressive_steps=2",
    "denoiser.training.hard_fraction=0.5",
    *(f"{part}.training.steps_{which}=2" for part in PARTS for which in ("first_epoch", "per_epoch")),
]


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """Return arguments of a run on recorded episodes, short enough for segments with padding."""
    folder = tmp_path_factory.mktemp("recordings")
    save_dataset(folder / "train", 6, length=5)
    save_dataset(folder / "test", 2)
    return [*TINY, f"static_dataset.path={folder}", "rew_end_model.training.event_fraction=0.3"]


def together(folder, *arguments, **kwargs):
    """Start two processes in a folder."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, "-m", "trainers.diamond", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def finish(process, timeout=120):
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()  # the processes of torchrun end with it
    return process.returncode, output, errors


def only_run(folder):
    (path,) = folder.glob("outputs/*/*")
    return RunFolder(path)


def alone(folder, arguments):
    config = parse(arguments)
    return RunFolder(launch.train(config, outputs=folder, command="train", progress=False))


def lines(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def assert_same_curves(ours, theirs):
    assert len(lines(ours)) == len(lines(theirs))
    for one, other in zip(lines(ours), lines(theirs), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if "per_s" not in name:
                near = {"rtol": 1e-3, "atol": 1e-6}
                torch.testing.assert_close(
                    torch.tensor(one[name]), torch.tensor(other[name]), **near, msg=name
                )


def assert_same_steps(ours, theirs):
    """Check that TensorBoard has the same values for every optimiser step."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def losses(run):
        events = accumulators.EventAccumulator(str(run.path / "tensorboard" / "steps" / "rew_end_model"))
        events.Reload()
        names = ("loss", "loss_rew", "loss_end")
        return {x: [(e.step, e.value) for e in events.Scalars(f"steps/rew_end_model/{x}")] for x in names}

    one, other = losses(ours), losses(theirs)
    assert [step for step, _ in one["loss"]] == [1, 2, 3, 4, 5, 6]
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, err_msg=name)


def assert_near(ours, theirs, epoch):
    ours, theirs = (torch.load(run.agent_file(epoch), weights_only=True) for run in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_any_number_goes_on(static, tmp_path):
    code, output, errors = finish(together(tmp_path, "train", *static))
    assert code == 0, errors
    assert errors.count("epoch 1: ") == output.count("finished: ") == 1, "one process shows progress"
    run = only_run(tmp_path)
    straight = alone(tmp_path / "alone", static)
    assert_same_curves(run, straight)
    assert_near(run, straight, 2)
    config = from_yaml(run.config_file)
    config.training.num_epochs = 3
    for r in (run, straight):
        r.config_file.write_text(to_yaml(config))
    code, _, errors = finish(together(tmp_path, "resume", f"run={straight.path}"))
    assert code == 0, errors
    launch.resume(run.path, progress=False)
    assert_same_curves(run, straight)
    assert_same_steps(run, straight)
    assert_near(run, straight, 3)


def test_a_batch_that_cannot_be_shared():
    config = parse(["game=Breakout", "preset=smoke", "denoiser.training.batch_size=3"])
    launch.check_shares(config, SINGLE_PROCESS)
    message = r"denoiser\.training\.batch_size=3 is shared by 2 processes: accepted are multiples of 2"
    with pytest.raises(InvalidInputError, match=message):
        launch.check_shares(config, Group(0, 2))


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_one_clear_error(static, tmp_path):
    more = ["denoiser.training.batch_size=3"]
    code, _, errors = finish(together(tmp_path, "train", *static, *more))
    assert code != 0
    message = "error: denoiser.training.batch_size=3 is shared by 2 processes: accepted are multiples of 2"
    assert errors.count("error: ") == errors.count(message) == 1
    assert not list(tmp_path.iterdir())


def test_shares_are_joined_again():
    first, second = Group(0, 2), Group(1, 2)
    assert (first.shard(6), second.shard(6), SINGLE_PROCESS.shard(6)) == (
        slice(0, 3),
        slice(3, 6),
        slice(0, 6),
    )
    state = {"games": {"envs": ["a", "b"], "time": torch.arange(4)}, "player": {}}
    assert second.shard_state(state)["games"]["envs"] == ["b"]
    assert second.shard_state(state)["games"]["time"].tolist() == [2, 3]
    assert SINGLE_PROCESS.shard_state(state) == SINGLE_PROCESS.gather(state) == state


def test_the_others_catch_up_with_what_the_first_has_collected(tmp_path):
    whole = [episode(8 + i, number=i) for i in range(3)]
    dataset, replay = EpisodeDataset(tmp_path / "train", create=True), Replay()
    begun = Episode(*(getattr(whole[1], name)[:5] for name in ("obs", "act", "rew", "end", "trunc")))
    for first, then in (([whole[0], begun], []), ([], [whole[2]])):
        dataset.extend(first)
        if then:
            dataset.replace(1, whole[1])
            dataset.extend(then)
        data.catch_up(replay, EpisodeDataset(dataset.path))
    kwargs = {"sample_weights": None, "pad_after": True, "event_fraction": 0.5}
    ours, theirs = (x.draw(np.random.default_rng(0), 32, 6, **kwargs) for x in (replay, Replay(whole)))
    assert all(torch.equal(vars(ours)[name], vars(theirs)[name]) for name in vars(ours))


def worker(process, rank):
    """Return the id of one of torchrun's processes."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (pid,) = [x for x in children if f"\0RANK={rank}\0" in Path(f"/proc/{x}/environ").read_text()]
    return int(pid)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
def test_a_stop_request_to_any_process_saves_and_a_process_that_dies_ends_all(tmp_path):
    arguments = [
        *TINY,
        "game=Breakout",
        "collection.train.players=null",
        "collection.train.first_epoch={min:60,max:60}",
        "collection.train.num_envs=2",
        "collection.test.players=null",
        "collection.test.num_final_episodes=1",
        "collection.test.max_episode_steps=20",
        "evaluation.every=10",
        "actor_critic.training.steps_first_epoch=300",
    ]

    def signalled(signal_number, *command):
        """Send a signal to process 1 when all are learning to play; tell how all end, and after how long."""
        process = together(tmp_path, *command, "-v", bufsize=1)
        assert process.stderr is not None
        while "actor_critic begins" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.5)
        os.kill(worker(process, 1), signal_number)
        start = time.monotonic()
        return *finish(process), time.monotonic() - start

    code, _, errors, _ = signalled(signal.SIGTERM, "train", *arguments)
    run = only_run(tmp_path)
    assert code != 0 and errors.count(f"resume run={run.path}") == 1
    assert "error: " not in errors
    state = run.load_state()
    num_steps = state["parts"]["actor_critic"]["num_steps"]
    collected = 60 + 50  # the initial collection, and those of the first epoch
    assert state["epoch"] == 0 and 1 <= num_steps < 300 and sum(state["episode_lengths"]) == collected
    games = state["parts"]["actor_critic"]["objective"]["games"]
    assert games["num_starts"].shape == (4,) and games["state"]["obs"].shape[0] == 4

    before = run.state_file.read_bytes()
    code, _, _, seconds = signalled(signal.SIGKILL, "resume", f"run={run.path}")
    assert code != 0 and seconds < 60
    assert run.state_file.read_bytes() == before

    config = from_yaml(run.config_file)
    config.actor_critic.training.steps_first_epoch = num_steps + 2
    run.config_file.write_text(to_yaml(config))
    launch.resume(run.path, progress=False)
    assert [x.get("actor_critic/num_steps") for x in lines(run)] == [num_steps + 2, num_steps + 4, None]
    assert lines(run)[1]["collect/dataset_steps"] == collected + 50
    assert "final/return" in lines(run)[2]

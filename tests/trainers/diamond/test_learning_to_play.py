"""Runs that learn to play, in imagination and in the real game: what is trained and saved."""

import json
import os
import signal
import subprocess
import sys
import time

import gymnasium
import pytest
import torch

from diamond_gym.checkpoints import load_agent
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import CacheError, DatasetError, InvalidInputError
from diamond_gym.players.actor_critic import ActorCriticPlayer
from diamond_gym.world.action_space import ActionSpace
from tests.paths import ROOT
from tests.recordings import save_dataset
from trainers.diamond import run as launch
from trainers.diamond.config import PARTS, FirstEpochConfig, TrainCollectionConfig, from_yaml, parse, to_yaml
from trainers.diamond.errors import DivergedError
from trainers.diamond.run_folder import RunFolder
from trainers.diamond.trainer import collection_goal

TINY = [
    "game=Breakout",
    "preset=smoke",
    "common.device=cpu",
    "training.num_threads=1",
    "training.num_epochs=2",
    "collection.train.players=null",
    "collection.train.first_epoch={min:60,max:60}",
    "collection.train.steps_per_epoch=20",
    "collection.test.players=null",
    "collection.test.num_final_episodes=1",
    "collection.test.num_episodes=1",
    *(f"{part}.training.{key}=1" for part in PARTS for key in ("steps_first_epoch", "steps_per_epoch")),
]


def train(outputs, *more):
    config = parse([*TINY, *more])
    return RunFolder(launch.train(config, outputs=outputs, command="train", progress=False))


def metrics_of(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of all three parts whose policy collected everything."""
    return train(tmp_path_factory.mktemp("trained"))


def test_the_policy_collects_and_plays_test_games(trained):
    first, second, final = metrics_of(trained)
    assert [m["collect/dataset_steps"] for m in (first, second)] == [80, 100]
    assert "test/return" not in first and second["test/num_episodes"] == 1
    assert second["imagination/psnr_first"] > 0
    assert final["final/num_episodes"] == 1 and final["epoch"] == 2
    train, test = (EpisodeDataset(trained.dataset(split)) for split in ("train", "test"))
    train.check()
    assert (train.num_steps, test.num_episodes) == (100, 1)
    assert {"lr", "loss", "grad_norm", "steps_per_s", "policy_entropy"} <= {
        name.removeprefix("actor_critic/") for name in second
    }
    assert {"test_f1_rew", "test_precision_end", "recall_rew"} <= {
        name.removeprefix("rew_end_model/") for name in second
    }


def test_a_run_of_all_parts_is_a_checkpoint_of_a_world_and_of_a_policy(trained):
    env = gymnasium.make("DiamondBreakout-v0", checkpoint=str(trained.path), device="cpu")
    obs, _ = env.reset(seed=0)
    agent = load_agent(trained.path)
    assert 0 <= ActorCriticPlayer(agent).act(obs) < 4
    env.step(1)
    env.close()
    weights = torch.load(trained.agent_file(2), weights_only=True)
    assert {name.partition(".")[0] for name in weights} == set(PARTS)
    assert "actor_critic.actor_linear.weight" in weights and "actor_critic.lstm.weight_ih" in weights


def test_an_actor_critic_learns_in_a_world_that_stays_as_it_is(trained, tmp_path):
    run = train(
        tmp_path,
        "training.parts=[actor_critic]",
        f"initialization.path_to_ckpt={trained.path}",
        "initialization.load_actor_critic=false",
        f"static_dataset.path={trained.path / 'dataset'}",
        "training.autocast=bfloat16",
        "actor_critic.training.grad_acc_steps=2",
        "actor_critic.training.steps_per_epoch=2",
    )
    given, ours = (load_agent(r.path).state_dict() for r in (trained, run))
    changed = {name.partition(".")[0] for name in given if not torch.equal(given[name], ours[name])}
    assert changed == {"actor_critic"}
    _, second, final = metrics_of(run)
    assert not any(name.startswith(("denoiser", "rew_end", "collect")) for name in second)
    assert second["actor_critic/num_steps"] == 3 and "test/return" in second and "final/return" in final
    assert not run.dataset("train").exists()


def test_an_actor_critic_needs_a_world_to_learn_in(tmp_path):
    with pytest.raises(InvalidInputError, match=r"denoiser and rew_end_model would stay untrained"):
        train(tmp_path, "training.parts=[actor_critic]")
    with pytest.raises(InvalidInputError, match="img_size=32: real games"):
        sizes = [f"agent.{x}.img_size=32" for x in ("actor_critic", "rew_end_model")]
        save_dataset(tmp_path / "train", 2, size=32)
        train(tmp_path, *sizes, f"static_dataset.path={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_run_that_trains_nothing_collects_and_plays(tmp_path):
    run = train(
        tmp_path,
        "training.should=false",
        "training.num_epochs=null",
        "training.num_final_epochs=1",
        "collection.train.num_steps_total=160",
        "collection.train.first_epoch={min:60,max:110,threshold_rew:1000}",
        "evaluation.every=4",
    )
    *epochs, final = metrics_of(run)
    # the initial collection continues until it has rewards, up to its maximum
    assert [m.get("collect/dataset_steps") for m in epochs] == [130, 150, 160, None]
    assert "test/return" in epochs[-1] and "final/return" in final
    assert not any(name.endswith("/loss") for m in epochs for name in m)


def test_model_free_learns_in_the_real_game_and_goes_on_exactly_after_an_interruption(tmp_path):
    more = ["training.model_free=true", "evaluation.should=false", "actor_critic.training.steps_per_epoch=3"]
    straight = train(tmp_path / "straight", *more)
    torch.set_num_threads(1)
    config = parse([*TINY, *more])
    run = RunFolder(tmp_path / "stopped")
    run.config_file.parent.mkdir(parents=True)
    run.config_file.write_text(to_yaml(config))
    description = launch.describe(config, "train")
    description.save(run.world_file)
    replays = launch.load_replays(config, run, ActionSpace.discrete(4), progress=False)

    def new_trainer():
        _, agent = launch.prepare(config)
        return launch.build(config, run, agent.to(memory_format=torch.channels_last), *replays)

    for _ in range(2):
        trainer = new_trainer()
        if run.state_file.is_file():
            trainer.resume()
        trainer.requests.stop = True
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(progress=False)
    assert (trainer.epoch, trainer.learners[0].num_steps) == (1, 2)
    launch.resume(run.path, progress=False)
    ours, theirs = (r.load_state()["parts"] for r in (run, straight))
    assert ours.keys() == {"actor_critic"}
    for name, weights in theirs["actor_critic"]["module"].items():
        assert torch.equal(ours["actor_critic"]["module"][name], weights)
    assert [m["actor_critic/num_steps"] for m in metrics_of(straight)] == [1, 4]


def test_a_stop_before_the_first_step_of_a_collection_saves_and_leaves(tmp_path):
    config, run = parse(TINY), RunFolder(tmp_path)
    _, agent = launch.prepare(config)
    replays = launch.load_replays(config, run, ActionSpace.discrete(4), progress=False)
    trainer = launch.build(config, run, agent, *replays)
    trainer.requests.stop = True
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(progress=False)
    assert run.load_state()["epoch"] == 0 and len(EpisodeDataset(run.dataset("train"), create=True)) == 0


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_exits_with_130(tmp_path):
    more = ["actor_critic.training.steps_first_epoch=1000", "training.num_epochs=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainers.diamond", "train", *TINY, *more, "-v"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    try:
        assert process.stderr is not None
        while "actor_critic begins" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    (run,) = [RunFolder(path) for path in tmp_path.glob("outputs/*/*")]
    assert process.returncode == 130 and f"resume run={run.path}" in told
    state = run.load_state()
    assert state["epoch"] == 0 and 1 <= state["parts"]["actor_critic"]["num_steps"] < 1000
    assert state["metrics"]["denoiser/num_steps"] == 1, "finished stages keep their numbers"


def test_a_loss_that_is_not_finite_leaves_its_batch_and_the_last_good_epoch(trained, tmp_path):
    run = RunFolder(tmp_path / "run")
    subprocess.run(["cp", "-r", str(trained.path), str(run.path)], check=True)
    config = from_yaml(run.config_file)
    config.training.num_epochs = 3
    config.actor_critic.optimizer.lr = 1e30
    config.actor_critic.training.steps_per_epoch = 5
    run.config_file.write_text(to_yaml(config))
    before = run.state_file.read_bytes()
    with pytest.raises(DivergedError, match=r"actor_critic: the .* is (nan|inf) at step \d+; its batch"):
        launch.resume(run.path, progress=False)
    assert run.state_file.read_bytes() == before
    (file,) = (run.path / "diverged").iterdir()
    saved = torch.load(file, weights_only=True)
    assert saved["part"] == "actor_critic" and saved["batch"]["act"].shape == (4, 5)


def test_a_missing_or_corrupt_episode_is_named(trained, tmp_path):
    run = RunFolder(tmp_path / "run")
    subprocess.run(["cp", "-r", str(trained.path), str(run.path)], check=True)
    config = from_yaml(run.config_file)
    config.training.num_epochs = 3
    run.config_file.write_text(to_yaml(config))
    dataset = EpisodeDataset(run.dataset("train"))
    file = dataset.episode_path(0)
    content = file.read_bytes()
    file.write_bytes(content[:-400])
    with pytest.raises(DatasetError, match=r"0\.pt cannot be read as an episode"):
        launch.resume(run.path, progress=False)
    file.unlink()
    with pytest.raises(DatasetError, match=r"0\.pt is missing"):
        launch.resume(run.path, progress=False)
    file.write_bytes(content)
    launch.resume(run.path, progress=False)
    assert run.load_state()["epoch"] == 3
    assert [m["epoch"] for m in metrics_of(run)] == [1, 2, 3, 3] and "final/return" in metrics_of(run)[-1]


def test_a_run_folder_that_cannot_be_written_is_an_error(trained, tmp_path):
    run = RunFolder(tmp_path / "run")
    subprocess.run(["cp", "-r", str(trained.path), str(run.path)], check=True)
    config = from_yaml(run.config_file)
    config.training.num_epochs = 3
    run.config_file.write_text(to_yaml(config))
    state = run.state_file.read_bytes()
    run.metrics_file.unlink()
    run.metrics_file.mkdir()  # root may write what is read-only
    with pytest.raises(CacheError, match=r"cannot write .*metrics\.jsonl"):
        launch.resume(run.path, progress=False)
    assert run.state_file.read_bytes() == state


def test_the_first_epoch_collects_until_it_has_seen_rewards():
    config = TrainCollectionConfig(first_epoch=FirstEpochConfig(min=500, max=900, threshold_rew=10))

    def goal(epoch, num_steps, rewards, first=None):
        counts = {-1: 0, 0: num_steps - rewards, 1: rewards}
        return collection_goal(config, epoch, num_steps, counts, first)

    assert [goal(1, 0, 0), goal(1, 499, 0), goal(1, 500, 9), goal(1, 600, 9)] == [500, 500, 600, 700]
    assert [goal(1, 500, 10), goal(1, 900, 0), goal(1, 850, 0)] == [500, 900, 900]
    assert [goal(2, 500, 0, 500), goal(7, 1000, 0, 500), goal(5000, 1000, 0, 500)] == [700, 1200, 100_000]


def test_a_published_run_has_about_a_thousand_epochs():
    config = parse(["game=Breakout"])
    assert launch.schedule(config).num_epochs(None) is None
    assert launch.schedule(config).num_epochs(5_000) == 950 + 50
    assert launch.schedule(config).num_epochs(10_000) == 900 + 50
    assert collection_goal(config.collection.train, 1, 5_000, {}, 5_000) == 5_100
    assert collection_goal(config.collection.train, 950, 99_900, {}, 5_000) == 100_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("static_dataset.path=anywhere", 50),
        ("static_dataset.path=anywhere training.num_final_epochs=2", 2),
        ("training.model_free=true", 50),
        ("training.model_free=true training.num_final_epochs=2", 2),
        ("training.model_free=true training.num_final_epochs=0", 1),
        ("training.model_free=true training.num_final_epochs=2 training.num_epochs=7", 7),
        ("training.parts=[denoiser,rew_end_model]", 1_000),
        ("training.parts=[denoiser,rew_end_model] training.num_final_epochs=2", 952),
    ],
)
def test_how_long_a_run_without_a_collecting_policy_is(arguments, expected):
    config = parse(["game=Breakout", *arguments.split()])
    assert launch.schedule(config).num_epochs(None) == expected

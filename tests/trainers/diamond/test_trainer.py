"""Runs: the published defaults, exact resume, one process per folder, failures that lose nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import pytest
import torch
from gymnasium.spaces import Discrete

import diamond_gym
from diamond_gym.checkpoints import load_agent
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import (
    CacheError,
    CheckpointError,
    CheckpointNotFoundError,
    DatasetError,
    FolderInUseError,
    InvalidInputError,
    MissingDependencyError,
)
from diamond_gym.files import write_torch
from diamond_gym.world.action_space import ActionSpace
from tests.paths import ROOT
from tests.recordings import NUM_ACTIONS, episode, save_dataset
from trainers.diamond import data, networks
from trainers.diamond import run as launch
from trainers.diamond.config import PARTS, TrainerConfig, from_yaml, parse, to_yaml
from trainers.diamond.errors import DivergedError
from trainers.diamond.run_folder import RunFolder
from trainers.diamond.trainer import Trainer


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    save_dataset(folder / "train", 6)
    save_dataset(folder / "test", 2)
    return folder


def arguments(recordings, *more):
    """Return arguments of a run so small that an epoch is very short."""
    return [
        "preset=smoke",
        f"static_dataset.path={recordings}",
        "common.device=cpu",
        "training.num_threads=1",
        "denoiser.training.steps_first_epoch=3",
        "denoiser.training.steps_per_epoch=2",
        "denoiser.training.hard_fraction=0.5",
        "rew_end_model.training.steps_first_epoch=3",
        "rew_end_model.training.steps_per_epoch=2",
        "actor_critic.training.steps_first_epoch=2",
        "actor_critic.training.steps_per_epoch=1",
        *more,
    ]


def train(recordings, outputs, *more):
    config = parse(arguments(recordings, *more))
    return RunFolder(launch.train(config, outputs=outputs, command="train", progress=False))


@pytest.fixture(scope="module")
def finished(recordings, tmp_path_factory):
    """A run of two epochs."""
    return train(recordings, tmp_path_factory.mktemp("finished"), "training.num_epochs=2")


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(recordings, finished, tmp_path, without_shape_checks):
    compiled = train(recordings, tmp_path, "training.num_epochs=2", "training.backend=inductor")
    ours, theirs = (
        [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
        for run in (compiled, finished)
    )
    for part in ("denoiser", "rew_end_model"):
        losses, expected = ([line[f"{part}/loss"] for line in lines] for lines in (ours, theirs))
        assert losses == pytest.approx(expected, rel=1e-3)
    weights = load_agent(compiled.path)
    assert not any("_orig_mod" in name for name in weights.state_dict())


def test_without_a_compiler_it_says_so_before_a_folder_is_made(recordings, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match="no-such-compiler"):
        train(recordings, tmp_path, "training.num_epochs=1", "training.backend=inductor")
    assert not list(tmp_path.iterdir())


def edit_config(run, *more):
    """Change a run's configuration, as a user with an editor might."""
    config = from_yaml(run.config_file)
    for key, value in more:
        owner = config
        *path, name = key.split(".")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    run.config_file.write_text(to_yaml(config))


def copy_of(run, folder):
    subprocess.run(["cp", "-r", str(run.path), str(folder)], check=True)
    return RunFolder(folder)


def epochs_logged(run):
    return [json.loads(line)["epoch"] for line in run.metrics_file.read_text().splitlines()]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def test_defaults_are_the_papers():
    config = TrainerConfig()
    inner, rew_end = config.agent.denoiser.inner_model, config.agent.rew_end_model
    assert (inner.channels, inner.depths, inner.cond_channels) == ([64] * 4, [2] * 4, 256)
    assert (inner.num_steps_conditioning, inner.patch_size, inner.input_skip) == (4, 1, False)
    assert (rew_end.channels, rew_end.depths, rew_end.cond_channels) == ([32] * 4, [2] * 4, 128)
    assert rew_end.lstm_dim == 512
    sigma = config.denoiser.sigma_distribution
    assert (sigma.loc, sigma.scale, sigma.sigma_min, sigma.sigma_max) == (-0.4, 1.2, 2e-3, 20)
    assert config.agent.denoiser.sigma_data == 0.5 and config.agent.denoiser.sigma_offset_noise == 0.3
    for part, clip in ((config.denoiser, 1.0), (config.rew_end_model, 100.0)):
        training, optimizer = part.training, part.optimizer
        assert (training.batch_size, training.max_grad_norm, training.lr_warmup_steps) == (32, clip, 100)
        assert (training.steps_first_epoch, training.steps_per_epoch) == (10_000, 400)
        assert training.sample_weights == [0.1, 0.1, 0.1, 0.7]
        assert (training.lr_schedule, training.ema_decay) == ("constant", 0)
        assert (optimizer.lr, optimizer.weight_decay, optimizer.eps) == (1e-4, 1e-2, 1e-8)
    denoiser = config.denoiser.training
    assert (denoiser.num_autoregressive_steps, denoiser.autoregressive_from_step) == (1, 0)
    assert denoiser.moving_pixels_weight == 0
    assert config.rew_end_model.training.seq_length == 15 + 4
    player, learning = config.agent.actor_critic, config.actor_critic
    assert (player.channels, player.down, player.lstm_dim) == ([32, 32, 64, 64], [1] * 4, 512)
    assert (learning.training.steps_first_epoch, learning.training.steps_per_epoch) == (5_000, 400)
    assert (learning.training.batch_size, learning.training.max_grad_norm) == (32, 100)
    assert (learning.training.lr_warmup_steps, learning.training.ema_decay) == (100, 0)
    assert (learning.optimizer.lr, learning.optimizer.weight_decay, learning.optimizer.eps) == (1e-4, 0, 1e-8)
    loss = learning.actor_critic_loss
    assert (loss.gamma, loss.lambda_, loss.backup_every) == (0.985, 0.95, None)
    assert (loss.weight_value_loss, loss.weight_entropy_loss) == (1.0, 0.001)
    train, test, first = config.collection.train, config.collection.test, config.collection.train.first_epoch
    assert (train.num_envs, train.epsilon, train.temperature, train.players) == (1, 0.01, 1.0, None)
    assert (train.num_steps_total, train.steps_per_epoch) == (100_000, 100)
    assert (first.min, first.max, first.threshold_rew) == (5_000, 10_000, 10)
    assert (test.num_envs, test.num_episodes, test.num_final_episodes, test.epsilon) == (1, 4, 100, 0)
    assert (config.evaluation.should, config.evaluation.every) == (True, 10)
    training = config.training
    assert training.parts == list(PARTS) and not training.model_free and training.should
    assert (training.num_epochs, training.num_final_epochs, training.autocast) == (None, 50, None)
    sampler = config.world_model_env.diffusion_sampler
    assert (sampler.sigma_min, sampler.sigma_max, sampler.rho) == (2e-3, 5, 7)
    assert (sampler.num_steps_denoising, sampler.order, sampler.s_churn) == (3, 1, 0)
    assert config.world_model_env.horizon == 15
    assert config == parse([]) == parse(["preset=paper"])


def test_a_configuration_survives_its_file(tmp_path):
    config = parse(["game=ms_pacman", "preset=small", "static_dataset.path=a (1)/b=c, d"])
    assert config.game == "MsPacman"
    assert config.static_dataset.path == str(Path.cwd() / "a (1)/b=c, d")
    file = tmp_path / "trainer.yaml"
    file.write_text(to_yaml(config))
    assert from_yaml(file) == config


@pytest.mark.parametrize(
    "after, name, neutral, other",
    [
        ("    seq_length: 8\n", "    event_weight", "1.0", "3.0"),
        ("    num_steps_denoising: 1\n", "    timestep_spacing", "leading", "trailing"),
    ],
)
def test_runs_of_earlier_versions_are_read_where_a_removed_key_did_nothing(
    after, name, neutral, other, tmp_path
):
    file = tmp_path / "trainer.yaml"
    config = parse(["game=Breakout", "preset=small"])
    text = to_yaml(config)
    assert text.count(after) == 1
    file.write_text(text.replace(after, f"{after}{name}: {neutral}\n"))
    assert from_yaml(file) == config
    file.write_text(text.replace(after, f"{after}{name}: {other}\n"))
    with pytest.raises(CheckpointError, match=name.strip()):
        from_yaml(file)


def test_a_game_without_a_scripted_player_falls_back_to_a_random_one():
    players = parse(["preset=small"]).collection.train.players
    assert [data.player_name(p, "Breakout") for p in players] == ["scripted"] * 3 + ["random"]
    assert [data.player_name(p, "Alien") for p in players] == ["random"] * 4
    assert all(p.repeat == 4 for p in players)


def test_a_killed_collection_is_made_again_and_a_finished_one_is_left_alone(tmp_path):
    config = parse(["game=Breakout", "preset=smoke"])
    for split in (config.collection.train, config.collection.test):
        for player in split.players:
            player.num_steps = 30
    run, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    save_dataset(run.path / "dataset" / "train.partial", 3)
    data.collect_datasets(run, "Breakout", config.players, seed=0, progress=False)
    data.collect_datasets(other, "Breakout", config.players, seed=0, progress=False)
    assert sorted(path.name for path in (run.path / "dataset").iterdir()) == ["test", "train"]
    before = run.dataset("train").stat().st_mtime_ns
    data.collect_datasets(run, "Breakout", config.players, seed=0, progress=False)
    assert run.dataset("train").stat().st_mtime_ns == before
    for split, num_steps in (("train", 60), ("test", 30)):
        ours, theirs = EpisodeDataset(run.dataset(split)), EpisodeDataset(other.dataset(split))
        ours.check()
        assert ours.num_steps == num_steps
        assert all(torch.equal(x.obs, y.obs) for x, y in zip(ours, theirs, strict=True))


def test_a_folder_in_which_a_run_was_only_begun_is_taken_again(tmp_path):
    run = RunFolder.at(tmp_path / "run")
    with run.locked():
        run.world_file.parent.mkdir()
        run.world_file.touch()
        run.write_resume_script("python")
    assert RunFolder.at(run.path) == run
    run.config_file.touch()
    with pytest.raises(CacheError, match="is not empty"):
        RunFolder.at(run.path)


def test_data_cut_back_to_nothing_holds_nothing_of_a_process_killed_before(tmp_path):
    dataset = EpisodeDataset(save_dataset(tmp_path / "train", 3, size=8))
    (dataset.path / "info.pt").unlink()
    dataset.episode_path(2).unlink()  # the first two steps, after which a process was killed
    emptied = data.cut_back(EpisodeDataset(dataset.path, create=True), [])
    assert emptied.num_episodes == 0 and not dataset.path.exists()
    emptied.append(episode(4, size=8))
    assert EpisodeDataset(dataset.path).num_episodes == 1


def test_an_interrupted_and_killed_run_ends_with_the_weights_of_one_that_was_not(recordings, tmp_path):
    more = (
        "training.num_epochs=6",
        "denoiser.training.steps_per_epoch=4",
        "rew_end_model.training.steps_per_epoch=4",
        "checkpointing.save_agent_every=1",
        "checkpointing.num_to_keep=3",
    )
    straight = train(recordings, tmp_path / "straight", *more)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def stop(command, epochs, signal_number):
        """Start the trainer, wait until some epochs are logged and the next has begun, and signal it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.diamond", *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            while process.poll() is None:
                logs = list(tmp_path.glob("outputs/*/*/metrics.jsonl"))
                if logs and logs[0].read_bytes().count(b"\n") >= epochs:
                    break
                time.sleep(0.01)
            time.sleep(0.05)
            process.send_signal(signal_number)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, output

    code, output = stop(["train", *arguments(recordings, *more)], 1, signal.SIGINT)
    (run,) = [RunFolder(path) for path in tmp_path.glob("outputs/*/*")]
    assert code == 130
    assert f"resume run={run.path}" in output
    code, _ = stop(["resume", f"run={run.path}"], 3, signal.SIGKILL)
    assert code == -signal.SIGKILL
    state = run.load_state()
    assert 2 <= state["epoch"] < 6
    # as if killed while saving: a half-written state, and an epoch that is logged but not in the state
    next_epoch = state["epoch"] + 1
    half = run.state_file.with_name(".state.pt.1-0a.tmp")
    half.write_bytes(run.state_file.read_bytes()[:1000])
    write_torch(run.agent_file(next_epoch), {})
    with run.metrics_file.open("a") as file:
        file.write(json.dumps({"epoch": next_epoch}) + '\n{"epo')

    launch.resume(Path(os.path.relpath(run.path)), progress=False)
    assert epochs_logged(run) == epochs_logged(straight) == list(range(1, 7))
    assert not half.exists()
    assert [path.name for path in sorted(run.agent_file(0).parent.iterdir())] == [
        f"agent_epoch_{epoch:05d}.pt" for epoch in (4, 5, 6)
    ]
    ours, theirs = (torch.load(r.agent_file(6), weights_only=True) for r in (run, straight))
    assert_same_weights(ours, theirs)
    ours, theirs = (r.load_state()["parts"]["denoiser"]["module"] for r in (run, straight))
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("kills", [(0.5,), pytest.param((0.3, 0.6, 1.0), marks=pytest.mark.slow)])
def test_a_killed_run_that_collects_its_own_data_ends_as_one_that_was_not(kills, tmp_path):
    """With two games at once, evaluations that replace test episodes, and a kill in some stages."""
    more = (
        "game=Breakout",
        "preset=smoke",
        "common.device=cpu",
        "common.seed=3",
        "training.num_threads=1",
        "training.num_epochs=4",
        "collection.train.players=null",
        "collection.train.num_envs=2",
        "collection.train.first_epoch={min:120,max:200,threshold_rew:1000}",
        "collection.test.players=null",
        "collection.test.num_final_episodes=1",
        "evaluation.every=2",
        "actor_critic.training.ema_decay=0.5",
        "denoiser.training.hard_fraction=0.5",
        *(f"{part}.training.{key}=2" for part in PARTS for key in ("steps_first_epoch", "steps_per_epoch")),
    )
    config = parse(more)
    straight = RunFolder(launch.train(config, outputs=tmp_path / "straight", command="train", progress=False))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = None
    for seconds in kills:  # seconds of work after the run (or its state) was found
        command = ["train", *more] if run is None else ["resume", f"run={run.path}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "trainers.diamond", *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            before = None if run is None else run.state_file.stat().st_mtime_ns
            deadline = time.monotonic() + 300  # on a busy machine
            while process.poll() is None and time.monotonic() < deadline:
                states = list(tmp_path.glob("outputs/*/*/checkpoints/state.pt"))
                if states and states[0].stat().st_mtime_ns != before:
                    break
                time.sleep(0.01)
            time.sleep(seconds)
        finally:
            process.kill()
            process.wait()
        (run,) = [RunFolder(path) for path in tmp_path.glob("outputs/*/*")]
    launch.resume(run.path, progress=False)
    ours, theirs = run.load_state(), straight.load_state()
    assert ours["episode_lengths"] == theirs["episode_lengths"]
    for part in PARTS:
        assert_same_weights(ours["parts"][part]["module"], theirs["parts"][part]["module"])
    for split in ("train", "test"):
        one, other = EpisodeDataset(run.dataset(split)), EpisodeDataset(straight.dataset(split))
        one.check()
        assert all(torch.equal(x.obs, y.obs) for x, y in zip(one, other, strict=True))
    kept = [
        {name: value for name, value in json.loads(line).items() if "per_s" not in name}
        for r in (run, straight)
        for line in r.metrics_file.read_text().splitlines()
    ]
    assert len(kept) == 2 * 5 and kept[:5] == kept[5:]


def new_trainer(config: TrainerConfig, run: RunFolder) -> Trainer:
    _, agent = launch.prepare(config)
    replays = launch.load_replays(config, run, ActionSpace.discrete(NUM_ACTIONS), progress=False)
    networks.place(agent, torch.device("cpu"), "eager")
    return launch.build(config, run, agent, *replays)


def test_a_stopped_trainer_goes_on_in_the_middle_of_its_epoch(finished, tmp_path):
    torch.set_num_threads(1)  # as in the other run
    run = RunFolder(tmp_path / "run")
    config = from_yaml(finished.config_file)

    trainer = new_trainer(config, run)
    trainer.requests.stop = True
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(progress=False)
    state = run.load_state()
    assert state["epoch"] == 0 and state["parts"]["denoiser"]["num_steps"] == 1
    trainer = new_trainer(config, run)
    trainer.resume()
    trainer.fit(progress=False)
    assert trainer.epoch == 2
    expected = torch.load(finished.agent_file(2), weights_only=True)
    assert_same_weights(trainer.weights(), expected)


def test_a_trainer_that_is_to_save_continues(finished, tmp_path, monkeypatch):
    torch.set_num_threads(1)  # as in the other run
    run, config = RunFolder(tmp_path / "run"), from_yaml(finished.config_file)
    trainer = new_trainer(config, run)
    saved, save_state = [], trainer.save_state

    def saving():
        saved.append((trainer.epoch, trainer.learners[0].num_steps))
        save_state()

    monkeypatch.setattr(trainer, "save_state", saving)
    trainer.requests.save = True
    trainer.fit(progress=False)
    assert saved[:2] == [(0, 0), (0, 1)], "after the first step"
    assert not trainer.requests.save and trainer.epoch == 2
    expected = torch.load(finished.agent_file(2), weights_only=True)
    assert_same_weights(trainer.weights(), expected)


def test_a_finished_run_is_trained_for_longer(finished, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    run = RunFolder(Path(shutil.copytree(finished.path, tmp_path / "run")))
    with pytest.raises(InvalidInputError, match=r"denoiser.training.batch_size cannot change within a run"):
        launch.resume(run.path, changes=["denoiser.training.batch_size=3"])
    with pytest.raises(InvalidInputError, match=r"has 2 epochs already: training\.num_epochs=1 is too few"):
        launch.resume(run.path, changes=["training.num_epochs=1"])
    with pytest.raises(InvalidInputError, match=r"unknown key training.num_epoch: did you mean"):
        launch.resume(run.path, changes=["training.num_epoch=3"])
    assert run.config_file.read_bytes() == finished.config_file.read_bytes()
    launch.resume(run.path)
    assert f"resume run={run.path} training.num_epochs=N" in capsys.readouterr().out
    launch.resume(run.path, changes=["training.num_epochs=3"], progress=False)
    assert epochs_logged(run) == [1, 2, 3] and run.newest_epoch() == 3
    assert from_yaml(run.config_file).training.num_epochs == 3
    assert "training.num_epochs=3 (was 2)" in caplog.text


def test_a_finished_run_says_so(finished, capsys):
    before = finished.state_file.stat().st_mtime_ns
    launch.resume(finished.path)
    assert "is finished: all 2 epochs" in capsys.readouterr().out
    assert finished.state_file.stat().st_mtime_ns == before


def test_training_changes_weights_and_measures(finished):
    agent = load_agent(finished.path)
    _, fresh = launch.prepare(from_yaml(finished.config_file))
    assert agent.config.num_actions == NUM_ACTIONS
    for part in PARTS:
        ours, theirs = getattr(agent, part).state_dict(), getattr(fresh, part).state_dict()
        assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    metrics = [json.loads(line) for line in finished.metrics_file.read_text().splitlines()]
    assert [m["denoiser/num_steps"] for m in metrics] == [3, 5]
    assert len(metrics[-1]["rew_end_model/test_f1_rew"]) == 3
    assert metrics[-1]["denoiser/loss"] > 0


def test_a_simulator_of_anything_recorded_can_be_registered_and_played(finished):
    diamond_gym.register_world_model("Recorded-v0", finished.path)
    try:
        env = gymnasium.make("Recorded-v0", device="cpu")
        assert env.action_space == Discrete(NUM_ACTIONS)
        env.reset(seed=0)
        obs, *_ = env.step(2)
        assert env.observation_space.contains(obs)
        env.close()
    finally:
        del gymnasium.registry["Recorded-v0"]


def test_two_processes_do_not_share_a_run(finished):
    with finished.locked(), pytest.raises(FolderInUseError, match="another process"):
        launch.resume(finished.path)


def test_two_runs_in_a_second_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(4) as threads:  # within one second, and at the same time
        paths = {run.path for run in threads.map(lambda _: RunFolder.new(tmp_path), range(8))}
    assert len(paths) == 8


def test_a_diverged_loss_stops_the_run_and_keeps_the_last_good_epoch(finished, tmp_path):
    run = copy_of(finished, tmp_path / "run")
    edit_config(run, ("training.num_epochs", 3), ("denoiser.optimizer.lr", 1e30))
    before = run.state_file.read_bytes()
    with pytest.raises(DivergedError, match=r"denoiser.*initialization\.path_to_ckpt"):
        launch.resume(run.path, progress=False)
    assert run.state_file.read_bytes() == before
    assert run.newest_epoch() == 2


def test_a_damaged_or_foreign_state_is_refused(finished, tmp_path):
    run = copy_of(finished, tmp_path / "run")
    edit_config(run, ("training.num_epochs", 3), ("agent.denoiser.inner_model.channels", [16, 32]))
    description = json.loads(run.world_file.read_text())
    description["agent"]["denoiser"]["inner_model"]["channels"] = [16, 32]
    run.world_file.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="cannot be read as the state of a run with this config"):
        launch.resume(run.path, progress=False)
    run.state_file.write_bytes(run.state_file.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be read"):
        launch.resume(run.path, progress=False)
    run.config_file.write_text("common: {seed: x}\n")
    with pytest.raises(CheckpointError, match=r"trainer\.yaml cannot be read as a configuration"):
        launch.resume(run.path, progress=False)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="not a run folder"):
        launch.resume(tmp_path)


def test_weights_come_from_a_checkpoint_part_by_part(finished, recordings, tmp_path):
    checkpoint = copy_of(finished, tmp_path / "checkpoint").path
    run = train(
        recordings,
        tmp_path,
        "training.num_epochs=1",
        "training.parts=[rew_end_model]",
        "common.seed=1",
        f"initialization.path_to_ckpt={checkpoint}",
    )
    given, trained = load_agent(checkpoint), load_agent(run.path)
    assert_same_weights(given.denoiser.state_dict(), trained.denoiser.state_dict())
    # the weights live on in the state, without the checkpoint
    checkpoint.rename(tmp_path / "gone")
    edit_config(run, ("training.num_epochs", 2))
    launch.resume(run.path, progress=False)
    assert_same_weights(given.denoiser.state_dict(), load_agent(run.path).denoiser.state_dict())


def test_weights_of_a_game_with_other_actions(finished, recordings, tmp_path, caplog):
    caplog.set_level("INFO")
    theirs = copy_of(finished, tmp_path / "checkpoint").path
    episodes = [episode(12, number=i) for i in range(4)]
    episodes[0].act[0] = NUM_ACTIONS + 1
    EpisodeDataset(tmp_path / "more" / "train", create=True).extend(episodes)
    one_epoch = ["training.num_epochs=1", "training.parts=[rew_end_model]"]
    start = f"initialization.path_to_ckpt={theirs}"
    with pytest.raises(CheckpointError, match=r"or initialization.new_actions=true"):
        train(tmp_path / "more", tmp_path / "refused", *one_epoch, start)
    run = train(tmp_path / "more", tmp_path, *one_epoch, start, "initialization.new_actions=true")
    assert "so these weights stay random: inner_model.act_emb.0.weight" in caplog.text
    given, taken = (load_agent(path).denoiser.state_dict() for path in (theirs, run.path))
    same = [name for name in given if torch.equal(given[name], taken[name])]
    assert set(given) - set(same) == {"inner_model.act_emb.0.weight"}


def test_outcomes_are_added_and_never_taken_away(finished, recordings, tmp_path, caplog):
    caplog.set_level("INFO")

    def started_from(path, num_outcomes):
        start = (
            f"initialization.path_to_ckpt={path}",
            f"agent.denoiser.inner_model.num_outcomes={num_outcomes}",
        )
        folder = tmp_path / f"{num_outcomes}"
        return train(
            recordings, folder, "training.num_epochs=1", "training.parts=[rew_end_model]", *start
        ).path

    two = started_from(finished.path, 2)
    assert "so these weights stay random: inner_model.outcomes.codes.weight" in caplog.text
    four = started_from(two, 4)
    none, of_two, of_four = (load_agent(path).denoiser.state_dict() for path in (finished.path, two, four))
    assert all(name.startswith("inner_model.outcomes.") for name in of_two.keys() - none.keys())
    assert_same_weights(none, {name: of_two[name] for name in none})
    for name, x in of_two.items():
        same = torch.cat([x, x]) if x.shape != of_four[name].shape else x
        assert torch.allclose(of_four[name], same, atol=0.3 if name.endswith("codes.weight") else 0)
    codes = of_four["inner_model.outcomes.codes.weight"]
    assert len(codes.unique(dim=0)) == 4, "equal codes would stay equal"
    with pytest.raises(CheckpointError, match=r"denoiser of .* other sizes"):
        started_from(four, 3)


def test_weights_of_other_sizes_are_refused_before_anything_is_written(finished, recordings, tmp_path):
    more = (f"initialization.path_to_ckpt={finished.path}", "agent.denoiser.inner_model.channels=[16,32]")
    with pytest.raises(CheckpointError, match=r"denoiser of .* other sizes"):
        train(recordings, tmp_path, *more)
    assert not list(tmp_path.iterdir())


def test_without_test_episodes_some_are_held_out(recordings, tmp_path):
    save_dataset(tmp_path / "train", 23)
    config = parse(arguments(tmp_path))
    train_replay, test_replay = launch.load_replays(
        config, RunFolder(tmp_path), ActionSpace.discrete(NUM_ACTIONS), progress=False
    )
    assert (len(train_replay.lengths), len(test_replay.lengths)) == (21, 2)
    assert train_replay.num_steps + test_replay.num_steps == EpisodeDataset(tmp_path / "train").num_steps


@pytest.mark.parametrize(
    "num_episodes, size, num_actions, message",
    [
        (0, 64, NUM_ACTIONS, r"no folder .*train"),
        (1, 64, NUM_ACTIONS, "one episode"),
        (3, 32, NUM_ACTIONS, r"frames of shape \(3, 32, 32\)"),
        (3, 64, 2, "holds action 2"),
    ],
)
def test_data_that_does_not_fit_is_refused(tmp_path, num_episodes, size, num_actions, message):
    config = parse(arguments(tmp_path))
    with pytest.raises(DatasetError, match=message):
        if num_episodes:
            save_dataset(tmp_path / "train", num_episodes, size=size)
        data.check_static_dataset(tmp_path)
        launch.load_replays(config, RunFolder(tmp_path), ActionSpace.discrete(num_actions), progress=False)

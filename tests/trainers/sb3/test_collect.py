"""An agent plays while it learns, and all its steps are recorded."""

import numpy as np
import torch

from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.games.atari import AtariEnv
from trainers.diamond import data
from trainers.diamond.config import parse
from trainers.diamond.run_folder import RunFolder
from trainers.sb3 import collect
from trainers.sb3.collect import collect_while_learning
from trainers.sb3.settings import PRESETS


def test_every_step_is_kept_and_could_have_been_played(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "NUM_ENVS", 4)
    monkeypatch.setitem(PRESETS, "ppo", PRESETS["ppo"] | {"n_steps": 8, "batch_size": 16, "n_epochs": 1})
    told = []
    dataset = EpisodeDataset(tmp_path / "train", create=True)
    collect_while_learning("Freeway", 80, 3, dataset, on_steps=told.append)
    assert dataset.num_steps == 80 and sum(told) >= 80
    dataset.check()
    again = EpisodeDataset(tmp_path / "again", create=True)
    collect_while_learning("Freeway", 80, 3, again)
    for one, same in zip(dataset, again, strict=True):
        assert torch.equal(one.obs, same.obs) and torch.equal(one.act, same.act)
    episode = dataset[0]
    env = AtariEnv("Freeway", training=True)
    frames = [env.reset(seed=3)[0]]
    for act in episode.act[:-1].tolist():
        frames.append(env.step(act)[0])
    env.close()
    np.testing.assert_array_equal(episode.obs.permute(0, 2, 3, 1).numpy(), np.stack(frames))


def test_a_run_lets_it_play(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "NUM_ENVS", 4)
    players = "[{name:ppo,num_steps:300},{name:random,num_steps:100}]"
    parts = "training.parts=[denoiser,rew_end_model]"
    config = parse(["game=Breakout", "preset=smoke", parts, f"collection.train.players={players}"])
    data.check_players(config.players, "Breakout")
    run = RunFolder(tmp_path)
    data.collect_datasets(run, "Breakout", config.players, seed=0, progress=False)
    dataset = EpisodeDataset(run.dataset("train"))
    assert dataset.num_steps == 400
    assert any(episode.end[-1] for episode in dataset), "lives were lost"

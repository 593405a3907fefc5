"""Data of others, from their files to a learned simulator, by commands."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

import diamond_gym
from tests import others_data
from tests.trainers.diamond.test_other_environments import TRAIN
from trainers.diamond.cli import main

pytest.importorskip("av")
pytest.importorskip("h5py")
pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*share an object")]


def episodes():
    return [others_data.smooth(30, i) for i in range(3)]


def h264(folder):
    for i, episode in enumerate(episodes()):
        others_data.write_video(folder / f"{i}.mp4", episode.obs, "libx264")
        others_data.write_table(folder / f"{i}.csv", episode)
    return folder


def arm(path):
    """Episodes of an arm whose actions are two numbers."""
    made = episodes()
    for episode in made:
        episode.act = np.random.default_rng(0).uniform(-1, 1, (30, 2)).astype(np.float32)
    return others_data.write_robomimic(path / "a.hdf5", made)


SOURCES = {
    "robomimic": lambda path: f"hdf5={others_data.write_robomimic(path / 'a.hdf5', episodes())}",
    "d4rl": lambda path: f"hdf5={others_data.write_d4rl(path / 'a.hdf5', episodes())}",
    "ffv1": lambda path: f"videos={others_data.write_videos(path / 'films', episodes())}",
    "h264": lambda path: f"videos={h264(path / 'films')}",
    "lerobot 2.1": lambda path: f"lerobot={others_data.write_lerobot(path / 'a', episodes(), 'v2.1')}",
    "lerobot 3.0": lambda path: f"lerobot={others_data.write_lerobot(path / 'a', episodes(), 'v3.0')}",
}


def test_actions_of_numbers_become_a_simulator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [f"hdf5={arm(tmp_path)}", "out=data", "action_low=-1", "action_high=1"]
    assert main(["import-episodes", *arguments]) == 0
    assert main(["train", "static_dataset.path=data", "out=run", *TRAIN]) == 0
    diamond_gym.register_world_model("LearnedArm-v0", Path("run"), max_episode_steps=4)
    try:
        env = gymnasium.make("LearnedArm-v0", device="cpu")
        assert env.action_space == gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        env.reset(seed=0)
        obs, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
        env.close()
    finally:
        del gymnasium.registry["LearnedArm-v0"]


@pytest.mark.parametrize("source", SOURCES)
def test_it_becomes_a_simulator(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import-episodes", SOURCES[source](tmp_path), "out=data"]) == 0
    assert main(["train", "static_dataset.path=data", "out=run", *TRAIN]) == 0
    diamond_gym.register_world_model("LearnedFromOthers-v0", Path("run"), max_episode_steps=4)
    try:
        env = gymnasium.make("LearnedFromOthers-v0", device="cpu")
        assert env.action_space.n == 3  # pyright: ignore[reportAttributeAccessIssue]
        obs, info = env.reset(seed=0)
        frame = info["context"]["obs"][-1]
        assert obs.shape == (64, 64, 3) and frame.std() < 3 and 30 < frame.mean() < 210  # of one grey level
        obs, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
        env.close()
    finally:
        del gymnasium.registry["LearnedFromOthers-v0"]

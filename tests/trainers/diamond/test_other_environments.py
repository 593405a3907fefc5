"""An environment that is not an Atari game, from a recording to a learned simulator, by commands."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

import diamond_gym
import tests.moving_dot  # noqa: F401 (registers MovingDot-v0)
from trainers.diamond.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")

TRAIN = [
    "preset=smoke",
    "common.device=cpu",
    "training.num_threads=1",
    "training.num_epochs=1",
    "training.parts=[denoiser,rew_end_model]",
    "denoiser.training.steps_first_epoch=3",
    "rew_end_model.training.steps_first_epoch=3",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that learned MovingDot."""
    folder = tmp_path_factory.mktemp("dot")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["record", "env=MovingDot-v0", "out=recordings", "num_steps=200", "repeat=3"]) == 0
        assert main(["import-episodes", "episodes=recordings", "out=data"]) == 0
        assert main(["train", "static_dataset.path=data", *TRAIN]) == 0
    (run,) = folder.glob("outputs/*-*-*/*-*-*")
    return run


def test_the_run_is_a_simulator(run):
    diamond_gym.register_world_model("LearnedDot-v0", Path(run), max_episode_steps=6)
    try:
        env = gymnasium.make("LearnedDot-v0", device="cpu")
        assert env.action_space.n == 3  # pyright: ignore[reportAttributeAccessIssue]
        obs, info = env.reset(seed=0)
        assert obs.shape == (64, 64, 3) and (info["context"]["obs"] == 250).any()  # the dot's red
        for _ in range(6):
            obs, reward, terminated, *_ = env.step(env.action_space.sample())
            assert env.observation_space.contains(obs) and reward in (-1, 0, 1)
            if terminated:
                env.reset()
        env.close()
        envs = gymnasium.make_vec("LearnedDot-v0", num_envs=2, device="cpu")
        envs.reset(seed=0)
        frames, rewards, *_ = envs.step(np.array([0, 2]))
        assert frames.shape == (2, 64, 64, 3) and rewards.shape == (2,)
        envs.close()
    finally:
        del gymnasium.registry["LearnedDot-v0"]


def test_the_run_can_be_exported_and_published(run, tmp_path):
    dry = ["push-to-hub", "repo_id=me/moving-dot", f"run={run}", "num_contexts=8", "--dry-run"]
    assert main([*dry, f"out={tmp_path / 'world'}"]) == 0
    env = gymnasium.make(
        "diamond_gym:DiamondPong-v0", game=None, checkpoint=str(tmp_path / "world"), device="cpu"
    )
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    env.close()
    card = (tmp_path / "world" / "README.md").read_text()
    assert 'register_world_model("MyWorld-v0", "hub:me/moving-dot")' in card and "atari" not in card

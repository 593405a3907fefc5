"""Frames of other sizes, not square and grey, from a recording to a learned simulator, by commands."""

from collections import namedtuple

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from diamond_gym.checkpoints import load_world
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.vector_env import DiamondVectorEnv
from diamond_gym.errors import DatasetError, InvalidInputError
from diamond_gym.world.models import AgentConfig
from tests import worlds
from tests.moving_dot import SteeredDot
from tests.trainers.diamond.test_other_environments import TRAIN
from trainers.diamond import data
from trainers.diamond.cli import main
from trainers.diamond.config import parse

SHAPES = {"grey": (40, 60, 1), "wide": (32, 88, 3), "largest": (128, 128, 3)}
SLOW = {"largest", "wide"}
Run = namedtuple("Run", "path shape")

for _name, _shape in SHAPES.items():
    gymnasium.register(
        f"SteeredDot-{_name}-v0",
        entry_point=SteeredDot,
        kwargs={"kind": "multi_discrete", "shape": _shape},
        max_episode_steps=20,
    )


@pytest.fixture(
    scope="module", params=[pytest.param(x, marks=[pytest.mark.slow] if x in SLOW else []) for x in SHAPES]
)
def run(request, tmp_path_factory):
    """A run that learned such an environment, its policy included."""
    folder = tmp_path_factory.mktemp("run")
    parts = "training.parts=[denoiser,rew_end_model,actor_critic]"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["record", f"env=SteeredDot-{request.param}-v0", "out=recordings", "num_steps=250"]) == 0
        assert main(["import-episodes", "episodes=recordings", "out=data"]) == 0
        assert main(["train", "static_dataset.path=data", *TRAIN, parts, "out=run"]) == 0
    return Run(folder / "run", SHAPES[request.param])


def test_the_run_is_a_simulator_of_such_frames(run):
    env = DiamondEnv(checkpoint=str(run.path), render_mode="rgb_array", **worlds.PLAIN)
    assert env.observation_space.shape == run.shape
    check_env(env, skip_render_check=True)
    obs, _ = env.reset(seed=0)
    assert (obs >= 240).any()  # the dot
    picture = env.render()
    assert picture is not None and picture.shape[2] == 3 and 256 < max(picture.shape) <= 512
    assert picture.shape[0] * run.shape[1] == picture.shape[1] * run.shape[0]
    env.close()
    envs = DiamondVectorEnv(
        2, checkpoint=str(run.path), output="torch", render_mode="rgb_array", device="cpu"
    )
    envs.reset(seed=0)
    assert envs.step(envs.action_space.sample())[0].shape == (2, *run.shape)
    pictures = envs.render()
    assert pictures is not None and pictures[0].shape == picture.shape
    envs.close()


def test_its_export_keeps_them(run, tmp_path):
    assert main(["export", f"run={run.path}", f"out={tmp_path / 'world'}", "num_contexts=4"]) == 0
    world = load_world(None, tmp_path / "world", device="cpu")
    c, h, w = world.agent.config.frame_shape
    assert (h, w, c) == run.shape == world.contexts.obs.shape[2:]
    video = next((run.path).glob("videos/*.gif"), None) or next(run.path.rglob("*.gif"), None)
    assert video is None or video.stat().st_size > 0


def test_patches_must_divide_frames():
    small = parse(["preset=smoke", "static_dataset.path=x"]).agent
    assert small.with_frames((1, 40, 60)).frame_shape == (1, 40, 60)
    with pytest.raises(InvalidInputError, match=r"50x60 pixels, which patches of 4x4 .* size=48x60"):
        small.with_frames((3, 50, 60))
    assert AgentConfig().with_frames((3, 50, 61)).rew_end_model.img_width == 61  # the paper's have no patches
    assert AgentConfig().with_frames((3, 64, 64)) == AgentConfig()


def test_frames_that_need_too_much_memory(run, monkeypatch):
    monkeypatch.setattr(data, "available_memory", lambda: 1000)
    config = parse(["preset=smoke", f"static_dataset.path={run.path.parent / 'data'}"])
    with pytest.raises(
        DatasetError,
        match=r"frames of \d+x\d+ with [13] channels take 0\.0 GB of memory, 0\.0 GB are available: give "
        "training.compress_frames=true",
    ):
        data.fitted(config)
    config.training.compress_frames = True
    assert data.fitted(config).frame_shape == run.shape[-1:] + run.shape[:2]


def test_sizes_that_are_stated_must_be_those_of_the_frames(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["agent.rew_end_model.img_size=96"]
    assert main(["train", f"static_dataset.path={run.path.parent / 'data'}", *TRAIN, *sizes]) == 1
    assert "the networks take (3, 96, 96)" in capsys.readouterr().err


def test_windows_show_grey_frames():
    from diamond_gym.envs import rendering

    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    picture = rendering.enlarge(grey, 2)
    assert picture.shape == (6, 8, 3) and picture[2, 2].tolist() == [5, 5, 5]
    assert rendering.tile(np.stack([grey] * 3)).shape[2] == 3

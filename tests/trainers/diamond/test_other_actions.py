"""Environments with actions of other kinds, from a recording to a learned simulator, by commands."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Dict, Discrete
from gymnasium.wrappers import TransformAction

import diamond_gym
import tests.moving_dot  # noqa: F401 (registers SteeredDot-*-v0)
from diamond_gym.checkpoints import load_agent, load_world
from diamond_gym.data.collect import collect
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.data.recorder import RecordedEpisode, RecordEpisodes
from diamond_gym.errors import InvalidInputError
from diamond_gym.players.actor_critic import ActorCriticPlayer
from diamond_gym.players.player import RandomPlayer
from diamond_gym.world.action_space import ActionSpace
from tests.trainers.diamond.test_other_environments import TRAIN
from trainers.diamond.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")
ALL_PARTS = [*TRAIN, "training.parts=[denoiser,rew_end_model,actor_critic]", "evaluation.should=false"]
SPACES = {
    "SteeredDot-box-v0": "box(-1.0..1.0, -1.0..2.0)",
    "SteeredDot-multi_discrete-v0": "multi_discrete(3, 3)",
    "SteeredDot-multi_binary-v0": "multi_binary(4)",
    "Pendulum-v1": "box(-2.0..2.0)",
    "CarRacing-v3": "box(-1.0..1.0, 0.0..1.0, 0.0..1.0)",
}
RECORD = {"Pendulum-v1": ["render=true", "size=64"]}
FRAME_SHAPES = {"CarRacing-v3": (96, 96, 3)}
SLOW = set(SPACES) - {"SteeredDot-box-v0"}


@pytest.fixture(
    scope="module", params=[pytest.param(x, marks=[pytest.mark.slow] if x in SLOW else []) for x in SPACES]
)
def run(request, tmp_path_factory):
    """A run that learned an environment, and to act in it; its action space and the shape of its frames."""
    if request.param == "CarRacing-v3":
        pytest.importorskip("Box2D", reason="needs gymnasium[box2d]")
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        played = ["num_steps=125", "repeat=3", *RECORD.get(request.param, [])]
        for seed in (0, 1):  # an episode of CarRacing has 1000 steps, and two episodes are needed
            assert main(["record", f"env={request.param}", "out=recordings", f"seed={seed}", *played]) == 0
        assert main(["import-episodes", "episodes=recordings", "out=data"]) == 0
        assert main(["train", "static_dataset.path=data", *ALL_PARTS, "out=run"]) == 0
    shape = FRAME_SHAPES.get(request.param, (64, 64, 3))
    return folder / "run", ActionSpace.parse(SPACES[request.param]), shape


def test_the_run_is_a_simulator(run):
    path, space, shape = run
    diamond_gym.register_world_model("LearnedActions-v0", path, max_episode_steps=6)
    try:
        env = gymnasium.make("LearnedActions-v0", device="cpu")
        assert ActionSpace.of(env.action_space) == space
        env.reset(seed=0)
        assert env.observation_space.contains(env.step(env.action_space.sample())[0])
        env.close()
        envs = gymnasium.make_vec("LearnedActions-v0", num_envs=2, device="cpu")
        envs.reset(seed=0)
        assert envs.step(envs.action_space.sample())[0].shape == (2, *shape)
        envs.close()
    finally:
        del gymnasium.registry["LearnedActions-v0"]


def test_its_actor_critic_plays(run):
    path, space, shape = run
    agent = load_agent(path)
    player = ActorCriticPlayer(agent, epsilon=0.3, seed=0)
    acts = [player.act(np.full(shape, 10 * i, np.uint8)) for i in range(20)]
    assert all(space.convert(act) is not None for act in acts) and len({str(act) for act in acts}) > 3
    assert player.entropy is not None and player.value is not None


def test_its_dataset_and_its_export(run, tmp_path):
    path, space, shape = run
    dataset = EpisodeDataset(path.parent / "data" / "train")
    assert dataset.action_space == space
    assert space.convert(dataset[0].act.numpy()) is not None and len(dataset[0].act.unique(dim=0)) > 2
    assert main(["export", f"run={path}", f"out={tmp_path / 'world'}", "num_contexts=4"]) == 0
    world = load_world(None, tmp_path / "world", device="cpu")
    assert world.action_space == space and len(world.contexts) == 4
    assert world.contexts.obs.shape[2:] == shape


def test_recordings_count_choices_from_zero(tmp_path):
    env = RecordEpisodes(gymnasium.make("SteeredDot-multi_discrete-v0"), tmp_path)
    env.reset(seed=0)
    for act in ([1, 3], [2, 2], [3, 1]):
        env.step(np.array(act))
    with pytest.raises(InvalidInputError, match="cannot record the action"):
        env.step(np.array([4, 1]))
    env.close()
    episode = RecordedEpisode.load(tmp_path / "episode_000000.npz")
    assert episode.act.tolist() == [[0, 2], [1, 1], [2, 0]] and episode.actions == "multi_discrete(3, 3)"


def test_collecting_with_other_actions():
    env = gymnasium.make("SteeredDot-box-v0")
    player = RandomPlayer(ActionSpace.of(env.action_space))
    one, other = (
        collect(env, player, num_steps=30, seed=3, epsilon=0.5, progress=False).episodes for _ in range(2)
    )
    assert all((x.act == y.act).all() for x, y in zip(one, other, strict=True))
    assert one[0].act.shape[1:] == (2,)
    with pytest.raises(InvalidInputError, match="the player must return finite numbers"):
        collect(env, lambda obs: np.array([5.0, 0.0]), num_steps=5, seed=0, progress=False)


def test_what_cannot_be_recorded_or_trained_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = TransformAction(gymnasium.make("MovingDot-v0"), lambda act: 0, Dict({"go": Discrete(2)}))
    with pytest.raises(InvalidInputError, match="TransformAction"):
        RecordEpisodes(env, tmp_path / "recordings")
    for kind in ("box", "multi_discrete"):
        assert main(["record", f"env=SteeredDot-{kind}-v0", f"out={kind}", "num_steps=60"]) == 0
        assert main(["import-episodes", f"episodes={kind}", f"out=data-{kind}"]) == 0
    (tmp_path / "data-box" / "train" / "action_space.txt").unlink()
    capsys.readouterr()
    train = ["train", *TRAIN]
    assert main([*train, "static_dataset.path=data-box"]) == 1
    assert "there is no action_space.txt" in capsys.readouterr().err
    assert main([*train, "static_dataset.path=data-multi_discrete", "agent.actions=box(0..1)"]) == 1
    assert "has actions multi_discrete(3, 3), agent.* says box(0.0..1.0)" in capsys.readouterr().err
    assert main([*train, "static_dataset.path=data-box", "agent.actions=box(0..1, 0..1)"]) == 1
    assert "but they are finite numbers" in capsys.readouterr().err
    assert main([*train, "static_dataset.path=data-box", "agent.actions=box(0)"]) == 2
    assert not (tmp_path / "outputs").is_dir() or not list((tmp_path / "outputs").glob("*/*/checkpoints/*"))
    for name in ("box", "multi_discrete"):
        next((tmp_path / name).iterdir()).rename(tmp_path / "box" / f"mixed-{name}.npz")
    assert main(["import-episodes", "episodes=box", "out=mixed"]) == 1
    assert "all must be of one space" in capsys.readouterr().err

"""The Stable-Baselines3 adapter: its VecEnv contract against a DummyVecEnv, its wrappers, its agents."""

import warnings

import gymnasium
import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from diamond_gym.adapters.sb3 import BatchedVecEnv, ContextFrameStack, burn_in, make_sb3_vec_env
from diamond_gym.errors import InvalidInputError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.registration import register_world_model
from diamond_gym.world.action_space import ActionSpace
from tests import worlds

ID = "DiamondBreakout-v0"
HORIZON = 7


@pytest.fixture
def make(tiny_world):
    with worlds.maker(make_sb3_vec_env, checkpoint=tiny_world, max_episode_steps=HORIZON) as make:
        yield make


@pytest.fixture
def singles(tiny_world):
    """The `VecEnv` that SB3 itself makes of single environments."""
    env = make_vec_env(
        ID,
        n_envs=3,
        env_kwargs={"checkpoint": tiny_world, "max_episode_steps": HORIZON, **worlds.PLAIN},
        vec_env_cls=DummyVecEnv,
    )
    yield env
    env.close()


def test_it_is_the_vec_env_of_single_environments(make, singles):
    ours, theirs = make(monitor=False), singles
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    ours.seed(5), theirs.seed(5)
    rng = np.random.default_rng(0)
    assert_close(ours.reset(), theirs.reset())
    kinds = set()
    for _ in range(25):
        actions = rng.integers(0, 4, 3)
        (obs, rew, done, infos), expected = ours.step(actions), theirs.step(actions)
        assert_close(obs, expected[0])
        assert rew.dtype == expected[1].dtype == np.float32 and done.dtype == bool
        np.testing.assert_array_equal(rew, expected[1])
        np.testing.assert_array_equal(done, expected[2])
        for i in range(3):
            assert infos[i]["TimeLimit.truncated"] == expected[3][i]["TimeLimit.truncated"]
            if done[i]:
                kinds.add(infos[i]["TimeLimit.truncated"])
                last, real = (x[i]["terminal_observation"] for x in (infos, expected[3]))
                assert_close(last, real)
                for name in ("obs", "act"):
                    context, real = (e.reset_infos[i]["context"][name] for e in (ours, theirs))
                    np.testing.assert_array_equal(context, real)
            else:
                assert "terminal_observation" not in infos[i]
    assert kinds == {True, False}


def assert_close(a, b):
    """Compare frames: in a batch a pixel may round to a neighbouring level."""
    assert a.dtype == b.dtype == np.uint8 and a.shape == b.shape
    assert np.abs(a.astype(int) - b).max() <= 2


def test_seeding_through_the_constructor_and_the_method(make):
    frames = [make(seed=3).reset(), (env := make()).seed(3) and env.reset()]
    np.testing.assert_array_equal(*frames)
    again = env.reset()  # seeds are used once
    assert not np.array_equal(again, frames[0])


def test_contexts_of_the_caller(make):
    env = make(2, monitor=False)
    bank = worlds.contexts()
    given = [{"context": {"obs": bank.obs[i], "act": bank.act[i]}} for i in (4, 1)]
    env.set_options(given)
    np.testing.assert_array_equal(env.reset(), bank.obs[[4, 1], -1])
    np.testing.assert_array_equal(env.reset_infos[1]["context"]["obs"], bank.obs[1])
    env.set_options([given[0], {}])
    with pytest.raises(InvalidInputError, match="for all 2 games or for none"):
        env.reset()


def test_attributes_and_methods(make):
    env = make(4, monitor=False, seed=0)
    env.reset()
    assert env.get_attr("render_mode") == [None] * 4
    assert env.env_method("get_action_meanings", indices=[0, 2]) == [worlds.ACTION_MEANINGS] * 2
    assert env.get_attr("np_random_seed", indices=[1, 3]) == [1, 3]
    assert env.has_attr("world") and not env.has_attr("wings")
    env.set_attr("nickname", "x")
    assert env.get_attr("nickname") == ["x"] * 4
    with pytest.raises(InvalidInputError, match="one for all 4 games"):
        env.set_attr("nickname", "y", indices=[0])
    assert env.env_is_wrapped(gymnasium.Wrapper) == [False] * 4
    state = env.env_method("clone_state", indices=0)[0]
    first = env.step(np.zeros(4, int))
    env.env_method("restore_state", state)
    np.testing.assert_array_equal(env.step(np.zeros(4, int))[0], first[0])


def test_wrappers(make, tmp_path):
    env = make(render_mode="rgb_array")
    assert isinstance(env, VecMonitor)
    env = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=5)
    env = VecNormalize(VecTransposeImage(VecFrameStack(env, 4)), norm_obs=False)
    obs = env.reset()
    assert obs.shape == (3, 12, 64, 64)
    assert env.render().shape == (2 * 512, 2 * 512, 3)  # a grid of three, SB3's
    lengths = []
    for _ in range(20):
        _, _, _, infos = env.step(np.ones(3, int))
        lengths += [info["episode"]["l"] for info in infos if "episode" in info]
    assert lengths and max(lengths) <= HORIZON
    assert [file.suffix for file in tmp_path.iterdir()] == [".mp4"]


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (PPO, {"n_steps": 8, "batch_size": 8, "n_epochs": 1}),
        (A2C, {}),
        (DQN, {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
    ],
)
def test_agents_learn_unchanged(make, tmp_path, algorithm, kwargs):
    env = make(seed=0)
    agent = algorithm("CnnPolicy", env, seed=0, device="cpu", **kwargs)
    agent.learn(48)
    agent.save(tmp_path / "agent")
    again = algorithm.load(tmp_path / "agent", device="cpu")
    obs = make(seed=1).reset()
    np.testing.assert_array_equal(
        agent.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0]
    )
    mean, _ = evaluate_policy(again, make(seed=2), n_eval_episodes=3)
    assert np.isfinite(mean)


def test_a_stack_begins_with_the_context_and_then_is_a_frame_stack(make):
    ours, theirs = ContextFrameStack(make(seed=1), 3), VecFrameStack(make(seed=1), 3)
    obs, expected = ours.reset(), theirs.reset()
    assert ours.observation_space == theirs.observation_space
    known = [np.concatenate(list(x["context"]["obs"][-3:]), axis=-1) for x in ours.unwrapped.reset_infos]
    np.testing.assert_array_equal(obs, known)
    np.testing.assert_array_equal(obs[..., 6:], expected[..., 6:])
    age = np.zeros(3, int)
    ends = 0
    for _ in range(20):
        obs, _, dones, infos = ours.step(np.ones(3, int))
        expected, _, expected_dones, expected_infos = theirs.step(np.ones(3, int))
        np.testing.assert_array_equal(dones, expected_dones)
        age += 1
        for i in range(3):
            if dones[i] and age[i] > 1:
                ends += 1
                last, real = (x[i]["terminal_observation"] for x in (infos, expected_infos))
                np.testing.assert_array_equal(last, real)
            if dones[i]:
                age[i] = 0
                frames = ours.unwrapped.reset_infos[i]["context"]["obs"][-3:]
                np.testing.assert_array_equal(obs[i], np.concatenate(list(frames), axis=-1))
            elif age[i] > 1:
                np.testing.assert_array_equal(obs[i], expected[i])
    assert ends > 3


def test_a_stack_without_contexts_is_a_frame_stack():
    def make():
        return DummyVecEnv([lambda: AtariEnv("Breakout", training=True)])

    ours, theirs = ContextFrameStack(make(), 4), VecFrameStack(make(), 4)
    ours.seed(0), theirs.seed(0)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for _ in range(5):
        np.testing.assert_array_equal(ours.step([1])[0], theirs.step([1])[0])
    with pytest.raises(InvalidInputError, match="n_stack >= 1"):
        ContextFrameStack(make(), 0)


def test_stable_baselines_checks_the_game(tiny_world):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(gymnasium.make(ID, checkpoint=tiny_world, **worlds.PLAIN).unwrapped)


def test_a_memory_is_burned_in_with_the_frames_before_the_first_one(make):
    env = make(3, seed=0)
    agent = RecurrentPPO("CnnLstmPolicy", env, n_steps=4, batch_size=4, seed=0, device="cpu")
    env.reset()
    state = burn_in(agent, VecTransposeImage(env))
    for game in range(3):
        past = env.unwrapped.reset_infos[game]["context"]["obs"][:-1]
        memory, begins = None, True
        for obs in past:
            _, memory = agent.predict(obs, state=memory, episode_start=np.array([begins]))
            begins = False
        for ours, theirs in zip(state, memory, strict=True):
            np.testing.assert_allclose(ours[:, [game]], theirs, atol=1e-5)
            assert np.abs(ours).max() > 1e-3


def test_games_without_contexts_have_nothing_to_burn_in():
    env = DummyVecEnv([lambda: AtariEnv("Breakout", training=False)])
    env.reset()
    with pytest.raises(InvalidInputError, match="games with contexts"):
        burn_in(None, env)
    env.close()


def test_wrong_input(make, tiny_world):
    with pytest.raises(InvalidInputError, match="CartPole-v1 is not an imagined game"):
        make_sb3_vec_env("CartPole-v1")
    with pytest.raises(InvalidInputError, match="num_envs is an integer >= 1"):
        make(0)
    games = gymnasium.make_vec(ID, 2, checkpoint=tiny_world)
    with pytest.raises(InvalidInputError, match="SAME_STEP"):
        BatchedVecEnv(games)
    games.close()


@pytest.mark.parametrize("space", ["multi_discrete(3, 2)", "multi_binary(3)", "box(-2.0..2.0, 0.0..1.0)"])
def test_agents_learn_in_worlds_with_other_actions(space, tmp_path):
    checkpoint = worlds.save_tiny_world_of(tmp_path, ActionSpace.parse(space))
    register_world_model("OtherActions-v0", checkpoint, max_episode_steps=6, **worlds.PLAIN)
    try:
        check_env(gymnasium.make("OtherActions-v0").unwrapped)
        env = make_sb3_vec_env("OtherActions-v0", 2, seed=0)
        agents = [PPO("CnnPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0)]
        if space.startswith("box"):
            agents.append(SAC("CnnPolicy", env, buffer_size=64, learning_starts=4, batch_size=4, seed=0))
        for agent in agents:
            agent.learn(16)
            act, _ = agent.predict(env.reset())
            assert all(env.action_space.contains(a.astype(env.action_space.dtype)) for a in act)
        env.close()
    finally:
        del gymnasium.registry["OtherActions-v0"]

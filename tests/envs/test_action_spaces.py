"""Worlds whose actions are not discrete: Gymnasium's contract, states, contexts, batches and wrong input."""

from __future__ import annotations

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.vector_env import DiamondVectorEnv
from diamond_gym.errors import InvalidInputError
from diamond_gym.world.action_space import ActionSpace
from tests import worlds

SPACES = (
    "multi_discrete(3, 2)",
    "multi_binary(4)",
    "box(-2.0..2.0, 0.0..1.0)",
    "box[2x1](-1.0..1.0, -1.0..1.0)",
)


@pytest.fixture(scope="module", params=SPACES)
def checkpoint(request, tmp_path_factory):
    return worlds.save_tiny_world_of(tmp_path_factory.mktemp("world"), ActionSpace.parse(request.param))


@pytest.fixture
def env(checkpoint):
    env = DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN)
    env.action_space.seed(0)
    yield env
    env.close()


def test_gymnasium_checks_it(env):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(render|spec|Box).*")
        check_env(env, skip_render_check=True)


def test_actions_matter_and_states_repeat(env):
    env.reset(seed=0)
    state = pickle.loads(pickle.dumps(env.clone_state()))
    acts = [env.action_space.sample() for _ in range(3)]
    assert not np.array_equal(acts[0], acts[1])
    frames = []
    for act in (acts[0], acts[0], acts[1]):
        env.restore_state(state)
        env.step(act)
        frames.append(env.step(acts[2])[0])
    assert np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])


def test_a_batch_is_the_same_games(checkpoint, env):
    envs = DiamondVectorEnv(2, checkpoint=checkpoint, **worlds.PLAIN)
    tensors = DiamondVectorEnv(2, checkpoint=checkpoint, output="torch", **worlds.PLAIN)
    singles = [env, DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN)]
    starts, infos = envs.reset(seed=5)
    contexts = tensors.reset(seed=5)[1]["context"]
    assert np.array_equal(contexts["act"].numpy(), infos["context"]["act"])
    for i, single in enumerate(singles):
        assert np.array_equal(single.reset(seed=5 + i)[0], starts[i])
    envs.action_space.seed(0)
    for _ in range(3):
        acts = envs.action_space.sample()
        frames = envs.step(acts)[0]
        assert np.array_equal(tensors.step(torch.from_numpy(acts))[0].numpy(), frames)
        for i, single in enumerate(singles):
            obs = single.step(acts[i])[0].astype(int)
            assert np.abs(obs - frames[i]).max() <= 1  # sums in another order
    envs.restore_state(envs.clone_state())
    for x in (envs, tensors, singles[1]):
        x.close()


def test_a_context_of_ones_own(env):
    obs, info = env.reset(seed=0)
    context = info["context"]
    again, other = env.reset(seed=1, options={"context": {"obs": context["obs"], "act": context["act"][:-1]}})
    assert np.array_equal(again, obs) and other["context"]["act"].shape == context["act"].shape
    assert env.unwrapped.world.action_space.convert(other["context"]["act"]) is not None
    with pytest.raises(InvalidInputError, match="act"):
        env.reset(options={"context": {"obs": context["obs"], "act": context["act"] + 7}})
    with pytest.raises(InvalidInputError, match="shape"):
        env.reset(options={"context": {"obs": context["obs"], "act": np.zeros(4, np.int64)}})


@pytest.mark.parametrize("wrong", [None, 0, "left", [0], 9.0, [[0, 0]], {}])
def test_wrong_actions(env, wrong):
    env.reset(seed=0)
    before = env.clone_state()
    for act in (wrong, np.full(env.action_space.shape, 99), np.full(env.action_space.shape, np.nan)):
        with pytest.raises(InvalidInputError, match="an action is"):
            env.step(act)
    after = env.clone_state().world
    assert all(map(torch.equal, before.world.tensors(), after.tensors()))


def test_wrong_actions_of_a_batch(checkpoint):
    envs = DiamondVectorEnv(2, checkpoint=checkpoint, **worlds.PLAIN)
    envs.reset(seed=0)
    good = envs.action_space.sample()
    for act in (good[:1], good[0], None, 0, np.full_like(good, 99), np.full(good.shape, np.nan), [["x"]]):
        with pytest.raises(InvalidInputError, match=r"actions (are|must)"):
            envs.step(act)
    with pytest.raises(InvalidInputError):
        state = envs.clone_state()
        state.world.act.fill_(50)
        envs.restore_state(state)
    envs.close()


def test_the_checkpoint_says_its_actions(checkpoint, env):
    assert env.get_keys_to_action() == {}
    assert len(env.get_action_meanings()) == env.world.action_space.size
    made = gym.make("diamond_gym:DiamondPong-v0", game=None, checkpoint=checkpoint, **worlds.PLAIN)
    assert made.action_space == env.action_space
    made.close()

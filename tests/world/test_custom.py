"""World models of other makes: environments around them, and what they are told when they break a promise."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import diamond_gym
from diamond_gym import check_model
from diamond_gym.checkpoints import load_world
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.vector_env import DiamondVectorEnv
from diamond_gym.errors import InvalidInputError, WorldModelError
from diamond_gym.world.custom import map_tensors
from tests import custom_models
from tests.custom_models import CONDITIONING, row_of, trained

RECURRENT, STEERED = "model:tests.custom_models:recurrent", "model:tests.custom_models:steered"


@pytest.fixture
def registered():
    id = "RecurrentDot-v0"
    diamond_gym.register_world_model(id, model="tests.custom_models:recurrent", max_episode_steps=7)
    yield id
    del gymnasium.registry[id]


def test_a_registered_model_is_made_like_any_other_environment(registered):
    env = gymnasium.make(registered)
    assert env.observation_space.shape == (64, 64, 3)
    assert env.action_space == gymnasium.spaces.Discrete(3)
    _, info = env.reset(seed=0)
    assert info["context"]["obs"].shape == (CONDITIONING, 64, 64, 3)
    steps = [env.step(1) for _ in range(7)]
    assert [truncated for *_, truncated, _ in steps][-1]
    assert gymnasium.spec(registered).kwargs["checkpoint"] == RECURRENT


@pytest.mark.parametrize("checkpoint", [RECURRENT, STEERED])
def test_gymnasiums_checker(checkpoint):
    check_env(DiamondEnv(checkpoint=checkpoint), skip_render_check=True)


def test_a_seed_fixes_the_games_and_a_batch_plays_as_single_games_do():
    envs = DiamondVectorEnv(3, checkpoint=RECURRENT)
    obs, _ = envs.reset(seed=5)
    actions = np.array([[0, 1, 2], [2, 1, 0], [1, 1, 2]])
    batched = [obs, *(envs.step(act)[0] for act in actions)]
    for game in range(3):
        env = DiamondEnv(checkpoint=RECURRENT)
        obs, _ = env.reset(seed=5 + game)
        alone = [obs, *(env.step(act[game])[0] for act in actions)]
        np.testing.assert_allclose(
            np.stack(alone).astype(int), np.stack(batched)[:, game].astype(int), atol=1
        )


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_modes(mode):
    envs = gymnasium.make_vec(
        "DiamondBreakout-v0", 2, checkpoint=STEERED, game=None, autoreset_mode=mode, max_episode_steps=2
    )
    envs.reset(seed=0)
    over = []
    for _ in range(4):
        *_, terminated, truncated, _ = envs.step(envs.action_space.sample())
        over.append(terminated | truncated)
        if mode == AutoresetMode.DISABLED and over[-1].any():
            envs.reset(options={"reset_mask": over[-1]})
    assert np.any(over)


def test_states_are_cloned_and_restored_elsewhere():
    env, other = DiamondEnv(checkpoint=RECURRENT), DiamondEnv(checkpoint=RECURRENT)
    env.reset(seed=1)
    env.step(0)
    state = env.clone_state()
    future = [env.step(act)[0] for act in (1, 2, 0)]
    other.restore_state(state)
    assert all(np.array_equal(other.step(act)[0], obs) for act, obs in zip((1, 2, 0), future, strict=True))
    fork = DiamondVectorEnv(4, checkpoint=RECURRENT)
    fork.restore_state(state.select([0] * 4))
    np.testing.assert_allclose(fork.step([1] * 4)[0][3].astype(int), future[0].astype(int), atol=1)


def test_states_of_other_models_are_refused():
    env, steered = DiamondEnv(checkpoint=RECURRENT), DiamondEnv(checkpoint=STEERED)
    embedded = DiamondEnv("Breakout", checkpoint="embedded")
    for other in (env, steered, embedded):
        other.reset(seed=0)
    for one, another in ((env, steered), (steered, env), (env, embedded), (embedded, env)):
        with pytest.raises(InvalidInputError):
            one.restore_state(another.clone_state())


def test_torch_output_and_contexts_of_the_caller():
    envs = DiamondVectorEnv(2, checkpoint=STEERED, output="torch")
    context = {"obs": np.zeros((CONDITIONING, 64, 64, 3), np.uint8), "act": np.zeros((CONDITIONING, 2), int)}
    obs, infos = envs.reset(seed=0, options={"context": context})
    assert isinstance(obs, torch.Tensor)
    assert infos["context"]["act"].shape == (2, CONDITIONING, 2)
    assert not obs.any()


def test_a_recurrent_model_learns_to_move_the_dot(monkeypatch):
    monkeypatch.setattr(custom_models, "recurrent", lambda device: trained(400))
    env = DiamondEnv(checkpoint=RECURRENT)
    obs, _ = env.reset(seed=0)
    rows = [row_of(torch.from_numpy(frame[None])) for frame in (obs, env.step(2)[0], env.step(2)[0])]
    places = [float(torch.nonzero(row[0] > 0.5).float().mean()) for row in rows]
    assert np.diff(places) == pytest.approx([8, 8], abs=3)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("random", "two different games"),
        ("modifies", "modified the state"),
        ("batch", "depend on the other games"),
        ("shape", r"frames as torch.uint8 of shape \(3, 64, 64, 3\) on cpu, got torch.uint8 of shape \(3, 3"),
        ("dtype", "rewards as floats of shape"),
        ("nan", "not a finite number"),
        ("tuple", "must return .state, frames, rewards, ends., got 3"),
        ("state", "holds tensors and None, in tuples, lists, dicts and dataclasses, got str"),
        ("first axis", "needs first axis 3"),
    ],
)
def test_broken_promises_are_found(how, told, capsys):
    assert {how} <= set(custom_models.BROKEN)
    name = f"tests.custom_models:broken_{how.replace(' ', '_')}"
    assert check_model.main([f"model={name}"]) == 1
    printed = capsys.readouterr()
    assert "FAILED" in printed.out
    assert "checks failed" in printed.err
    assert re.search(told, printed.out)


@pytest.mark.parametrize("checkpoint", [RECURRENT, STEERED])
def test_a_good_model_passes_every_check(checkpoint, capsys):
    assert check_model.main([f"model={checkpoint.removeprefix('model:')}"]) == 0
    assert capsys.readouterr().out.count("ok  ") == 7


@pytest.mark.parametrize(
    ("checkpoint", "told"),
    [
        ("model:tests.custom_models", "package.module:factory"),
        ("model:tests.no_such_module:factory", "cannot be imported"),
        ("model:tests.custom_models:no_such", "cannot be imported"),
        ("model:tests.custom_models:WIDTH", "not a function but a int"),
    ],
)
def test_what_is_no_factory(checkpoint, told):
    with pytest.raises(InvalidInputError, match=told):
        DiamondEnv(checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("name", "told"),
    [("no_space", "observation_space must be Box"), ("fails", "ValueError: no weights here")],
)
def test_factories_whose_models_cannot_be_used(name, told):
    with pytest.raises(WorldModelError, match=told):
        DiamondEnv(checkpoint=f"model:tests.custom_models:{name}")


@pytest.mark.parametrize(
    "given", [{"num_denoising_steps": 3}, {"s_churn": 1.0}, {"dtype": "bfloat16"}, {"backend": "inductor"}]
)
def test_what_only_diamonds_models_take(given):
    with pytest.raises(InvalidInputError, match="custom world model"):
        DiamondEnv(checkpoint=RECURRENT, **given)


def test_contexts_from_a_file(tmp_path, monkeypatch):
    world = load_world(None, RECURRENT)
    world.contexts.save(tmp_path / "contexts.safetensors")
    monkeypatch.delattr(torch.nn.Module, "contexts", raising=False)
    model = custom_models.recurrent(torch.device("cpu"))
    del model.contexts
    monkeypatch.setattr(custom_models, "recurrent", lambda device: model)
    with pytest.raises(InvalidInputError, match="brings no start contexts"):
        DiamondEnv(checkpoint=RECURRENT)
    DiamondEnv(checkpoint=RECURRENT, contexts=str(tmp_path / "contexts.safetensors")).reset(seed=0)
    embedded = load_world("Breakout", "embedded").contexts
    embedded.save(tmp_path / "other.safetensors")
    with pytest.raises(WorldModelError, match="contexts need 2 uint8 frames"):
        DiamondEnv(checkpoint=RECURRENT, contexts=str(tmp_path / "other.safetensors"))


def test_registering_takes_a_checkpoint_or_a_model():
    for given in ({}, {"checkpoint": "a", "model": "b:c"}, {"model": "no colon"}):
        with pytest.raises(InvalidInputError):
            diamond_gym.register_world_model("Other-v0", **given)


def test_map_tensors_keeps_the_form():
    tree = {"a": (torch.ones(2), [None, torch.zeros(2)])}
    doubled = map_tensors(lambda x: 2 * x, tree)
    assert doubled["a"][0].tolist() == [2, 2]
    assert doubled["a"][1][0] is None
    with pytest.raises(WorldModelError, match="one form"):
        map_tensors(lambda x, y: x, tree, {"b": 1})

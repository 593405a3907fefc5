"""Wrong input, one row each: it gives a clear `DiamondGymError`, and the environment still works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.vector_env import DiamondVectorEnv
from diamond_gym.errors import ClosedEnvironmentError, DiamondGymError, InvalidInputError, ResetNeededError
from tests import worlds

OBS = worlds.contexts().obs
ACT = worlds.contexts().act
NUM_ENVS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return worlds.save_tiny_world(tmp_path_factory.mktemp("world"), end_bias=-30)


def make(checkpoint: str, **kwargs) -> DiamondEnv:
    return DiamondEnv(checkpoint=checkpoint, **{**worlds.PLAIN, **kwargs})


def make_vec(checkpoint: str, num_envs: Any = NUM_ENVS, **kwargs) -> DiamondVectorEnv:
    return DiamondVectorEnv(num_envs, checkpoint=checkpoint, **{**worlds.PLAIN, **kwargs})


def context(obs: Any = OBS[0], act: Any = ACT[0]) -> dict[str, Any]:
    return {"context": {"obs": obs, "act": act}}


def restore(env: Any, **changes: Any) -> None:
    """Restore the current state, with some parts changed by hand."""
    env.restore_state(replace(env.clone_state(), **changes))


def restore_world(env: Any, **changes: Callable[[Any], Any]) -> None:
    world = env.clone_state().world
    restore(
        env, world=replace(world, **{name: change(getattr(world, name)) for name, change in changes.items()})
    )


Row = tuple[Callable[[Any], Any], str]
"""Calls in the middle of a game, and what the error message must contain."""

SINGLE: dict[str, Row] = {
    "action too large": (
        lambda env: env.step(4),
        r"0\.\.3 \(0 NOOP, 1 FIRE, 2 RIGHT, 3 LEFT\), got 4 of type int",
    ),
    "action negative": (lambda env: env.step(-1), "got -1"),
    "action bool": (lambda env: env.step(True), "got True of type bool"),
    "action numpy bool": (lambda env: env.step(np.bool_(True)), "of type bool"),
    "action float": (lambda env: env.step(1.0), "got 1.0 of type float"),
    "action None": (lambda env: env.step(None), "NoneType"),
    "action text": (lambda env: env.step("FIRE"), "'FIRE' of type str"),
    "action list": (lambda env: env.step([1]), "list"),
    "action array": (lambda env: env.step(np.array([1])), "ndarray"),
    "action float array": (lambda env: env.step(np.array(1.0)), "ndarray"),
    "action tensor": (lambda env: env.step(torch.tensor([1])), "Tensor"),
    "action meta tensor": (lambda env: env.step(torch.tensor(1, device="meta")), "Tensor"),
    "action sparse tensor": (lambda env: env.step(torch.tensor(1).to_sparse()), "Tensor"),
    "context of meta frames": (
        lambda env: env.reset(options=context(torch.zeros(OBS[0].shape, dtype=torch.uint8, device="meta"))),
        "got Tensor",
    ),
    "action bool tensor": (lambda env: env.step(torch.tensor(True)), "Tensor"),
    "seed negative": (lambda env: env.reset(seed=-1), ">= 0 or None, got -1"),
    "seed float": (lambda env: env.reset(seed=1.5), "got 1.5 of type float"),
    "seed bool": (lambda env: env.reset(seed=True), "bool"),
    "seed text": (lambda env: env.reset(seed="1"), "str"),
    "options list": (lambda env: env.reset(options=["context"]), "dict or None, got list"),
    "options unknown": (lambda env: env.reset(options={"contxt": 1}), r"\['contxt'\]; accepted: .*'context'"),
    "context no dict": (lambda env: env.reset(seed=1, options={"context": OBS[0]}), "ndarray"),
    "context without act": (lambda env: env.reset(options={"context": {"obs": OBS[0]}}), r"got \['obs'\]"),
    "context extra key": (
        lambda env: env.reset(options={"context": {"obs": OBS[0], "act": ACT[0], "rew": 1}}),
        "'rew'",
    ),
    "context float frames": (lambda env: env.reset(options=context(OBS[0] / 255)), r"uint8.*float64"),
    "context too few frames": (lambda env: env.reset(options=context(OBS[0, 1:])), r"\(4, 64, 64, 3\), got"),
    "context channels first": (
        lambda env: env.reset(options=context(OBS[0].transpose(0, 3, 1, 2))),
        "3, 64, 64",
    ),
    "context no frames": (lambda env: env.reset(options=context(None)), "NoneType"),
    "context frames of a dtype NumPy lacks": (
        lambda env: env.reset(options=context(torch.zeros(OBS[0].shape, dtype=torch.bfloat16))),
        "got Tensor",
    ),
    "context act of a dtype NumPy lacks": (
        lambda env: env.reset(options=context(act=torch.zeros(4, dtype=torch.bfloat16))),
        "got Tensor",
    ),
    "context ragged": (lambda env: env.reset(options=context([[1, 2], [3]])), "list"),
    "context act too long": (
        lambda env: env.reset(options=context(act=[0] * 5)),
        r"\(4,\) or \(3,\), got int64 \(5,\)",
    ),
    "context act float": (lambda env: env.reset(options=context(act=ACT[0] * 1.0)), "float64"),
    "context act out of range": (
        lambda env: env.reset(options=context(act=[0, 1, 2, 9])),
        r"0\.\.3, got 0\.\.9",
    ),
    "state of another type": (lambda env: env.restore_state("state"), "clone_state.*str"),
    "state of no world": (lambda env: restore(env, world=None), "not one of clone_state"),
    "state of no generator": (lambda env: restore(env, rng=()), "rng must be"),
    "state of empty generators": (
        lambda env: restore(env, rng=({},) * 3),
        "rng must|not one of clone",
    ),
    "state of floats for flags": (lambda env: restore(env, over=torch.zeros(3)), "over must be torch.bool"),
    "state of no flags": (lambda env: restore(env, over=None), "over must be torch.bool of shape.*got None"),
    "state of too few actions": (
        lambda env: restore_world(env, act=lambda x: x[:, :2]),
        r"act must be torch.int64 of shape \(., 4\), got torch.int64 \(., 2\)",
    ),
    "state of actions that there are not": (
        lambda env: restore_world(env, act=lambda x: x + 9),
        r"act must be integers in 0\.\.3",
    ),
    "state of a memory that is no number": (lambda env: restore_world(env, hx=lambda x: x / 0), "hx holds"),
    "state of a memory of integers": (
        lambda env: restore_world(env, cx=lambda x: x.long()),
        "cx must be floats",
    ),
    "state of a memory without numbers": (
        lambda env: restore_world(env, hx=lambda x: x.to("meta")),
        "on meta",
    ),
    "state of a sparse memory": (lambda env: restore_world(env, hx=lambda x: x.to_sparse()), "sparse"),
    "state of frames of another type": (
        lambda env: restore_world(env, obs=lambda x: x.float()),
        "obs must be torch.uint8",
    ),
    "state of text": (lambda env: restore_world(env, key=lambda x: "k"), "not one of clone_state"),
    "state of a negative key": (
        lambda env: restore_world(env, key=lambda x: -1 - x),
        r"key must be in 0\.\.",
    ),
    "state of half a step": (
        lambda env: restore_world(env, time=lambda x: x + 0.5),
        "time must be torch.int64",
    ),
    "state of no such game": (lambda env: env.clone_state().select([9]), r"integers in 0\.\..*, got \[9\]"),
    "state of half a game": (lambda env: env.clone_state().select([0.5]), r"got \[0\.5\]"),
    "state of games by name": (lambda env: env.clone_state().select("0"), "got '0'"),
}

VECTOR: dict[str, Row] = {
    **{name: row for name, row in SINGLE.items() if name.split()[0] in ("seed", "options", "state")},
    "actions too few": (lambda env: env.step(np.zeros(2, int)), r"shape \(3,\), got int64 of shape \(2,\)"),
    "actions scalar": (lambda env: env.step(0), "got 0"),
    "actions None": (lambda env: env.step(None), "None"),
    "actions 2-d": (lambda env: env.step(np.zeros((3, 1), int)), r"\(3, 1\)"),
    "actions float": (lambda env: env.step(np.zeros(3)), "float64"),
    "actions bool": (lambda env: env.step([True, False, True]), "bool"),
    "actions ragged": (lambda env: env.step([[1], [2, 3], 4]), "ragged|integers"),
    "actions float tensor": (lambda env: env.step(torch.zeros(3)), "float32"),
    "actions too large": (lambda env: env.step([0, 4, 0]), "got 4 for game 1"),
    "actions negative": (lambda env: env.step(np.array([0, 0, -1])), "got -1 for game 2"),
    "actions huge": (
        lambda env: env.step(np.array([2**64 - 1, 0, 0], np.uint64)),
        f"got {2**64 - 1} for game 0",
    ),
    "actions meta tensor": (
        lambda env: env.step(torch.zeros(3, dtype=torch.int64, device="meta")),
        "a tensor of torch.int64, torch.strided, on meta",
    ),
    "actions sparse tensor": (
        lambda env: env.step(torch.tensor([1, 0, 2]).to_sparse()),
        "a tensor of torch.int64, torch.sparse_coo",
    ),
    "mask meta tensor": (
        lambda env: env.reset(options={"reset_mask": torch.ones(3, dtype=torch.bool, device="meta")}),
        "boolean array.*meta",
    ),
    "mask sparse tensor": (
        lambda env: env.reset(options={"reset_mask": torch.ones(3, dtype=torch.bool).to_sparse()}),
        "boolean array.*sparse",
    ),
    "actions tensor out of range": (lambda env: env.step(torch.tensor([7, 0, 0])), "7.* for game 0"),
    "seeds too few": (lambda env: env.reset(seed=[1, 2]), "one per game, 3, got 2"),
    "seeds wrong": (lambda env: env.reset(seed=[1, -2, 3]), "-2"),
    "mask of integers": (lambda env: env.reset(options={"reset_mask": np.ones(3, int)}), "boolean.*int64"),
    "mask of wrong shape": (
        lambda env: env.reset(options={"reset_mask": np.ones(2, bool)}),
        r"\(3,\), got bool \(2,\)",
    ),
    "mask empty": (lambda env: env.reset(options={"reset_mask": np.zeros(3, bool)}), "at least one"),
    "mask of a dtype NumPy lacks": (
        lambda env: env.reset(options={"reset_mask": torch.ones(3, dtype=torch.bfloat16)}),
        "boolean array.*bfloat16",
    ),
    "mask list": (lambda env: env.reset(options={"reset_mask": [True] * 3}), "boolean array"),
    "contexts too few": (lambda env: env.reset(options=context(OBS[:2], ACT[:2])), r"\(3, 4, 64, 64, 3\)"),
    "contexts and one act": (
        lambda env: env.reset(options=context(OBS[:3], ACT[0])),
        r"\(3, 4\) or \(3, 3\)",
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_env_goes_on_after(name: str, checkpoint: str):
    mistake, match = SINGLE[name]
    env, twin = make(checkpoint), make(checkpoint)
    env.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(InvalidInputError, match=match) as error:
        mistake(env)
    assert isinstance(error.value, DiamondGymError) and isinstance(error.value, ValueError)
    np.testing.assert_array_equal(env.step(1)[0], twin.step(1)[0])
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])


@pytest.mark.parametrize("name", VECTOR)
def test_vector_env_goes_on_after(name: str, checkpoint: str):
    mistake, match = VECTOR[name]
    env, twin = make_vec(checkpoint), make_vec(checkpoint)
    env.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(InvalidInputError, match=match):
        mistake(env)
    act = np.array([1, 2, 3])
    np.testing.assert_array_equal(env.step(act)[0], twin.step(act)[0])
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])


BEFORE_RESET = {
    "step": lambda env, act: env.step(act),
    "render": lambda env, act: env.render(),
    "clone_state": lambda env, act: env.clone_state(),
}


@pytest.mark.parametrize("method", BEFORE_RESET)
@pytest.mark.parametrize("vector", [False, True])
def test_before_reset(method: str, vector: bool, checkpoint: str):
    env = (make_vec if vector else make)(checkpoint, render_mode="rgb_array")
    with pytest.raises(ResetNeededError, match=rf"call reset\(\) before {method}\(\)") as error:
        BEFORE_RESET[method](env, [0] * NUM_ENVS if vector else 0)
    assert isinstance(error.value, gymnasium.error.ResetNeeded)
    env.reset(seed=0)
    BEFORE_RESET[method](env, [0] * NUM_ENVS if vector else 0)


def test_first_vector_reset_needs_all_games(checkpoint: str):
    env = make_vec(checkpoint)
    with pytest.raises(ResetNeededError, match="all games"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    env.reset(options={"reset_mask": np.ones(NUM_ENVS, bool)})
    env.step([0] * NUM_ENVS)


AFTER_CLOSE = BEFORE_RESET | {
    "reset": lambda env, act: env.reset(),
    "restore_state": lambda env, act: env.restore_state(None),
}


@pytest.mark.parametrize("method", AFTER_CLOSE)
@pytest.mark.parametrize("vector", [False, True])
def test_after_close(method: str, vector: bool, checkpoint: str):
    env = (make_vec if vector else make)(checkpoint, render_mode="rgb_array")
    env.reset(seed=0)
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError, match="closed") as error:
        AFTER_CLOSE[method](env, [0] * NUM_ENVS if vector else 0)
    assert isinstance(error.value, DiamondGymError)
    assert isinstance(error.value, gymnasium.error.ClosedEnvironmentError)


def test_step_after_the_end(tmp_path):
    env = make(worlds.save_tiny_world(tmp_path, end_bias=30))
    env.reset(seed=0)
    assert env.step(0)[2]
    with pytest.raises(ResetNeededError, match="over"):
        env.step(0)
    env.reset()
    assert env.step(0)[0] in env.observation_space


MAKING: dict[str, Row] = {
    "render_mode": (
        lambda checkpoint: make(checkpoint, render_mode="ascii"),
        "'rgb_array', 'human'.*'ascii'",
    ),
    "render_mode array": (lambda checkpoint: make(checkpoint, render_mode=np.zeros(2)), r"got array"),
    "contexts": (lambda checkpoint: make(checkpoint, contexts=3), "contexts must be the path.*got 3"),
    "contexts empty": (lambda checkpoint: make(checkpoint, contexts=""), "contexts must be the path"),
    "s_churn": (lambda checkpoint: make(checkpoint, s_churn="much"), "s_churn must be a number.*'much'"),
    "vector render_mode": (lambda checkpoint: make_vec(checkpoint, render_mode="ascii"), "'ascii'"),
    "num_envs 0": (
        lambda checkpoint: make_vec(checkpoint, 0),
        "num_envs is an integer >= 1, .*got 0",
    ),
    "num_envs huge": (lambda checkpoint: make_vec(checkpoint, 10**12), "at most 65536, got 1000000000000"),
    "max_episode_steps huge": (
        lambda checkpoint: make_vec(checkpoint, max_episode_steps=2**70),
        "max_episode_steps is an integer >= 1, and at most",
    ),
    "num_envs float": (lambda checkpoint: make_vec(checkpoint, 2.0), "got 2.0"),
    "num_envs bool": (lambda checkpoint: make_vec(checkpoint, True), "got True"),
    "max_episode_steps": (
        lambda checkpoint: make_vec(checkpoint, max_episode_steps=0),
        "max_episode_steps.*got 0",
    ),
    "autoreset_mode": (
        lambda checkpoint: make_vec(checkpoint, autoreset_mode="never"),
        "\"DISABLED\", got 'never'",
    ),
    "autoreset_mode array": (
        lambda checkpoint: make_vec(checkpoint, autoreset_mode=np.zeros(2)),
        "autoreset_mode is one of.*got array",
    ),
    "output": (lambda checkpoint: make_vec(checkpoint, output="jax"), r"\['numpy', 'torch'\], got 'jax'"),
}


@pytest.mark.parametrize("name", MAKING)
def test_making(name: str, checkpoint: str):
    mistake, match = MAKING[name]
    with pytest.raises(InvalidInputError, match=match):
        mistake(checkpoint)

"""DiamondVectorEnv is a batch of DiamondEnvs, and behaves like SyncVectorEnv."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pygame
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import (
    DictInfoToList,
    GrayscaleObservation,
    RecordEpisodeStatistics,
)

from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.vector_env import DiamondVectorEnv
from diamond_gym.errors import InvalidInputError, ResetNeededError
from diamond_gym.registration import register_world_model
from tests import worlds

HORIZON = 6
MODES = ["NEXT_STEP", "SAME_STEP", "DISABLED"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return worlds.save_tiny_world(tmp_path_factory.mktemp("world"))


def make(checkpoint: str, num_envs: int = 3, **kwargs) -> DiamondVectorEnv:
    kwargs = {"max_episode_steps": HORIZON, **kwargs}
    return DiamondVectorEnv(num_envs, checkpoint=checkpoint, **worlds.PLAIN, **kwargs)


def make_sync(checkpoint: str, num_envs: int, mode: str) -> SyncVectorEnv:
    def single() -> gym.Env:
        return TimeLimit(DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN), HORIZON)

    return SyncVectorEnv([single] * num_envs, autoreset_mode=AutoresetMode[mode])


def actions(num_envs: int, num_steps: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (num_steps, num_envs))


def finished(result: tuple) -> np.ndarray:
    return result[2] | result[3]


def to_numpy(x: Any) -> Any:
    """Convert tensors in nested dicts and tuples to arrays."""
    if isinstance(x, dict):
        return {key: to_numpy(value) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(to_numpy(value) for value in x)
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def assert_same(given: Any, expected: Any, *, exact: bool) -> None:
    """Compare results of `reset` or `step`; frames may round differently in batches of another size."""
    assert type(given) is type(expected)
    if isinstance(expected, dict):
        assert given.keys() == expected.keys()
        for key in expected:
            assert_same(given[key], expected[key], exact=exact)
    elif isinstance(expected, tuple):
        assert len(given) == len(expected)
        for x, y in zip(given, expected, strict=True):
            assert_same(x, y, exact=exact)
    elif isinstance(expected, np.ndarray) and expected.dtype == object:
        for x, y in zip(given, expected, strict=True):
            assert_same(x, y, exact=exact)
    elif isinstance(expected, np.ndarray) and expected.dtype == np.uint8 and not exact:
        assert given.shape == expected.shape and given.dtype == expected.dtype
        difference = np.abs(given.astype(int) - expected)
        assert difference.mean() < 0.5 and difference.max() < 40
    elif isinstance(expected, np.ndarray):
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(given, expected)
    else:
        assert given == expected


def with_contexts_of(started: np.ndarray, result: tuple) -> tuple:
    """A step's result as a batch gives it: with the contexts of the games that begin in this step alone.

    A single game tells its context after every step, so that the keys of its infos stay the same.
    """
    *others, infos = result
    infos = without_contexts(infos)
    if "final_info" in infos:
        infos["final_info"] = without_contexts(infos["final_info"])
    if started.any():
        context = result[4]["context"]
        kept = {
            key: np.where(expand(started, value), value, 0) for key, value in context.items() if key[0] != "_"
        }
        masks = {f"_{key}": started for key in kept}
        infos |= {"context": kept | masks, "_context": started}
    return (*others, infos)


def without_contexts(infos: dict) -> dict:
    return {key: value for key, value in infos.items() if key not in ("context", "_context")}


def expand(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_equals_sync_vector_env(checkpoint: str, mode: str, num_envs: int):
    ours, sync = make(checkpoint, num_envs, autoreset_mode=mode), make_sync(checkpoint, num_envs, mode)
    assert ours.single_observation_space == sync.single_observation_space
    assert ours.observation_space == sync.observation_space and ours.action_space == sync.action_space
    assert ours.metadata == sync.metadata
    exact = num_envs == 1
    assert_same(ours.reset(seed=3), sync.reset(seed=3), exact=exact)
    assert ours.np_random_seed == sync.np_random_seed == tuple(range(3, 3 + num_envs))
    terminated = truncated = 0
    ended = np.zeros(num_envs, bool)
    for act in actions(num_envs, 30):
        result, expected = ours.step(act), sync.step(act)
        started = {"NEXT_STEP": ended, "SAME_STEP": finished(result), "DISABLED": ended & False}[mode]
        ended, expected = finished(result), with_contexts_of(started, expected)
        assert_same(result, expected, exact=exact)
        terminated, truncated = terminated + result[2].sum(), truncated + result[3].sum()
        mask = finished(result)
        if mode == "DISABLED" and mask.any():
            given, expected = (env.reset(options={"reset_mask": mask.copy()}) for env in (ours, sync))
            assert_same(given, expected, exact=exact)
    assert terminated and truncated, "the comparison should have seen both kinds of end"


def test_end_on_the_horizon_sets_both_flags(checkpoint: str):
    env = make(checkpoint, 8, max_episode_steps=1)
    env.reset(seed=0)
    results = [env.step(np.ones(8, int)) for _ in range(9)][::2]
    assert all(result[3].all() for result in results)
    assert any(result[2].any() for result in results)


@pytest.mark.parametrize("max_episode_steps", [None, -1])
def test_no_horizon(tmp_path, max_episode_steps: int | None):
    env = make(worlds.save_tiny_world(tmp_path, end_bias=-30), 2, max_episode_steps=max_episode_steps)
    env.reset(seed=0)
    assert not any(finished(env.step([0, 1])).any() for _ in range(60))


@pytest.mark.parametrize("mode", MODES)
def test_torch_output_equals_numpy_output(checkpoint: str, mode: str):
    numpy_env = make(checkpoint, autoreset_mode=mode)
    torch_env = make(checkpoint, autoreset_mode=mode, output="torch")
    _, infos = numpy_env.reset(seed=1)
    obs, torch_infos = torch_env.reset(seed=1)
    assert_same(to_numpy(torch_infos), infos, exact=True)
    final_obs_seen = 0
    for act in actions(3, 20):
        assert obs.permute(0, 3, 1, 2).is_contiguous()
        expected = numpy_env.step(act)
        obs, rewards, *flags, torch_infos = torch_env.step(torch.from_numpy(act))
        assert rewards.dtype == torch.float32 and [x.dtype for x in flags] == [torch.bool] * 2
        assert {x.device for x in (obs, rewards, *flags)} == {torch_env.world.world_model.device}
        result = to_numpy((obs, rewards.double(), *flags))
        assert_same(result, expected[:4], exact=True)
        infos, torch_infos = expected[4], to_numpy(torch_infos)
        assert infos.keys() == torch_infos.keys()
        if "final_obs" in infos:
            for game in range(3):
                given, final_obs = torch_infos["final_obs"][game], infos["final_obs"][game]
                np.testing.assert_array_equal(given, 0 if final_obs is None else final_obs)
                final_obs_seen += final_obs is not None
        if "context" in infos:
            assert_same(torch_infos["context"], infos["context"], exact=True)
            np.testing.assert_array_equal(torch_infos["_context"], infos["_context"])
        if mode == "DISABLED" and (mask := finished(expected)).any():
            numpy_env.reset(options={"reset_mask": mask})
            obs, _ = torch_env.reset(options={"reset_mask": torch.from_numpy(mask)})
    assert (final_obs_seen > 0) == (mode == "SAME_STEP")


def test_results_are_the_callers_own(checkpoint: str):
    for output in ("numpy", "torch"):
        env, twin = make(checkpoint, output=output), make(checkpoint, output=output)
        result, _ = env.reset(seed=2), twin.reset(seed=2)
        for act in actions(3, 12):
            for x in result[:-1]:
                x[:] = 1
            result, expected = env.step(act), twin.step(act)
            assert_same(to_numpy(result[:4]), to_numpy(expected[:4]), exact=True)


def test_disabled_refuses_to_step_a_finished_game(checkpoint: str):
    env = make(checkpoint, autoreset_mode="DISABLED")
    env.reset(seed=0)
    while not (mask := finished(env.step([0, 0, 0]))).any():
        pass
    before = env.clone_state()
    with pytest.raises(ResetNeededError, match="reset_mask"):
        env.step([0, 0, 0])
    for x, y in zip(before.world.tensors(), env.clone_state().world.tensors(), strict=True):
        assert torch.equal(x, y)
    obs, infos = env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(infos["_context"], mask)
    np.testing.assert_array_equal(obs[mask], infos["context"]["obs"][mask][:, -1])
    assert env.step([0, 0, 0])[0].shape == (3, 64, 64, 3)


def test_errors_are_of_gymnasiums_types(checkpoint: str):
    env = make(checkpoint, 2)
    env.reset(seed=0)
    for mask in (np.array([1, 0]), [True, False], 1):
        with pytest.raises(TypeError, match="reset_mask") as raised:
            env.reset(options={"reset_mask": mask})
        assert isinstance(raised.value, InvalidInputError)
    for mask in (np.array([True]), np.array([False, False])):
        with pytest.raises(ValueError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    for actions in (0, 1.0, None):
        with pytest.raises(TypeError, match="actions must be integers of shape"):
            env.step(actions)
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.reset()


@pytest.mark.parametrize("name", ["RecordEpisodeStatistics", "NormalizeObservation", "GrayscaleObservation"])
def test_wrappers_that_compute_in_numpy_say_so(checkpoint: str, name: str):
    wrapper = getattr(gym.wrappers.vector, name)
    with pytest.raises(InvalidInputError, match=f"{name} computes in NumPy.*output='numpy'"):
        wrapper(make(checkpoint, 2, output="torch")).reset(seed=0)
    wrapper(make(checkpoint, 2)).reset(seed=0)
    gym.wrappers.vector.ClipReward(make(checkpoint, 2, output="torch"), -1, 1).reset(seed=0)


def test_reset_mask_leaves_the_others_alone(checkpoint: str):
    env, twin = make(checkpoint), make(checkpoint)
    env.reset(seed=4), twin.reset(seed=4)
    shown = env.step([1, 1, 1])[0]
    twin.step([1, 1, 1])
    options = {"reset_mask": np.array([False, True, False])}
    obs, infos = env.reset(seed=[None, 77, None], options=options)
    assert list(options) == ["reset_mask"], "the caller's options should not change"
    np.testing.assert_array_equal(obs[[0, 2]], shown[[0, 2]])
    assert infos["_context"].tolist() == [False, True, False]
    assert env.np_random_seed == (4, 77, 6)
    for act in actions(3, 8):
        result, expected = env.step(act), twin.step(act)
        for x, y in zip(result[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(x[[0, 2]], y[[0, 2]])


def test_seeds(checkpoint: str):
    env = make(checkpoint)
    obs, _ = env.reset(seed=10)
    for seeds in ([10, 11, 12], (10, 11, 12), range(10, 13), np.arange(10, 13)):
        same, _ = env.reset(seed=seeds)
        np.testing.assert_array_equal(obs, same)
    env.reset(seed=10)
    unseeded, _ = env.reset()
    env.reset(seed=10)
    mixed, _ = env.reset(seed=[None, 11, np.int64(12)])
    np.testing.assert_array_equal(mixed[0], unseeded[0])
    np.testing.assert_array_equal(mixed[1:], obs[1:])
    assert len({rng.integers(2**60) for rng in make(checkpoint).np_random}) == 3


def test_own_contexts(checkpoint: str):
    bank = worlds.contexts(seed=9)
    env = make(checkpoint)
    obs, infos = env.reset(seed=0, options={"context": {"obs": bank.obs[:3], "act": bank.act[:3]}})
    np.testing.assert_array_equal(obs, bank.obs[:3, -1])
    np.testing.assert_array_equal(infos["context"]["act"], bank.act[:3])
    one = {"obs": bank.obs[4], "act": bank.act[4, :-1]}
    obs, infos = env.reset(options={"context": one, "reset_mask": np.array([True, False, True])})
    np.testing.assert_array_equal(obs, bank.obs[[4, 1, 4], -1])
    np.testing.assert_array_equal(infos["context"]["obs"][0], bank.obs[4])
    many = {"obs": torch.from_numpy(bank.obs[:3]), "act": bank.act[:3, :-1]}
    obs, _ = env.reset(options={"context": many, "reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(obs, bank.obs[[4, 1, 4], -1])

    single = DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN)
    single.reset(seed=6, options={"context": one})
    env.reset(seed=5, options={"context": one})
    expected = single.step(2)
    result = env.step([2, 2, 2])
    assert_same(result[0][1], expected[0], exact=False)
    assert (result[1][1], result[2][1]) == expected[1:3]


@pytest.mark.parametrize("mode", MODES[:2])
def test_restored_state_replays_the_same_future(checkpoint: str, mode: str):
    def future(env: DiamondVectorEnv) -> list:
        return [env.step(act) for act in actions(3, 16)]

    env = make(checkpoint, autoreset_mode=mode)
    env.reset(seed=8)
    for _ in range(HORIZON):  # the last of these truncates: NEXT_STEP has resets outstanding
        obs = env.step([1, 2, 3])[0]
    state = pickle.loads(pickle.dumps(env.clone_state()))
    expected = future(env)
    other = make(checkpoint, autoreset_mode=mode)
    for again in (env, env, other):
        np.testing.assert_array_equal(again.restore_state(state), obs)
        for result, before in zip(future(again), expected, strict=True):
            assert_same(result, before, exact=True)


def test_a_single_game_can_fork_into_a_batch(checkpoint: str):
    single = DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN)
    single.reset(seed=2)
    single.step(1)
    env = make(checkpoint, 4)
    env.restore_state(single.clone_state().select([0] * 4))
    result = env.step([0, 1, 2, 3])
    state = single.clone_state()
    for action in range(4):
        single.restore_state(state)
        obs, reward, terminated, *_ = single.step(action)
        assert_same(result[0][action], obs, exact=False)
        assert (result[1][action], result[2][action]) == (reward, terminated)
    with pytest.raises(InvalidInputError, match=r"4 game.*state 1"):
        env.restore_state(state)


@pytest.mark.parametrize(
    "kind", [list, tuple, np.uint8, np.int32, np.uint64, torch.uint8, torch.int16, torch.uint16, torch.int64]
)
def test_kinds_of_integers(checkpoint: str, kind: Any):
    env, twin = make(checkpoint), make(checkpoint)
    env.reset(seed=0), twin.reset(seed=0)
    act = [3, 0, 2]
    if kind in (list, tuple):
        given = kind(act)
    else:
        given = torch.tensor(act, dtype=kind) if isinstance(kind, torch.dtype) else np.array(act, kind)
    np.testing.assert_array_equal(env.step(given)[0], twin.step(np.array(act))[0])


def test_modes_by_name_and_value(checkpoint: str):
    for mode in AutoresetMode:
        for spelling in (mode, mode.name, mode.value):
            env = make(checkpoint, autoreset_mode=spelling)
            assert env.metadata["autoreset_mode"] is mode
    assert DiamondVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert make(checkpoint).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_render(checkpoint: str):
    env = make(checkpoint, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    pictures = env.render()
    assert isinstance(pictures, tuple) and len(pictures) == 3
    for picture, frame in zip(pictures, obs, strict=True):
        assert picture.shape == (512, 512, 3)
        np.testing.assert_array_equal(picture[1::8, 1::8], frame)
    with pytest.warns(UserWarning, match="render_mode"):
        env = make(checkpoint)
        env.reset(seed=0)
        assert env.render() is None


def test_human_window_shows_all_games(checkpoint: str):
    env = make(checkpoint, render_mode="human")
    env.reset(seed=0)
    obs = env.step([0, 0, 0])[0]
    assert env.render() is None
    screen = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert screen.shape == (1024, 1024, 3)
    np.testing.assert_array_equal(screen[512::8, :512:8], obs[2])
    assert not screen[512:, 512:].any()
    env.close()
    env.close()
    assert not pygame.display.get_init()


@pytest.fixture(scope="module")
def env_id(checkpoint: str):
    register_world_model("TinyVectorTest-v0", checkpoint, max_episode_steps=HORIZON, **worlds.PLAIN)
    yield "TinyVectorTest-v0"
    del gym.registry["TinyVectorTest-v0"]


@pytest.mark.filterwarnings("error")
def test_make_vec(env_id: str):
    envs = gym.make_vec(env_id, num_envs=2, autoreset_mode="SAME_STEP")
    assert isinstance(envs, DiamondVectorEnv)
    envs.reset(seed=0)
    truncated = np.array([envs.step([0, 0])[3] for _ in range(3 * HORIZON)])
    assert truncated.any(axis=0).all() and not truncated[: HORIZON - 1].any()
    shorter = gym.make_vec(env_id, num_envs=2, max_episode_steps=1)
    shorter.reset(seed=0)
    assert shorter.step([0, 0])[3].all()
    sync = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync")
    assert isinstance(sync, SyncVectorEnv)


@pytest.mark.parametrize(
    "round_trip", [lambda s: pickle.loads(pickle.dumps(s)), lambda s: EnvSpec.from_json(s.to_json())]
)
def test_spec_round_trip(env_id: str, round_trip):
    envs = gym.make_vec(env_id, num_envs=2, autoreset_mode="SAME_STEP", num_denoising_steps=2)
    again = gym.make_vec(round_trip(envs.spec))
    assert again.num_envs == 2 and again.metadata == envs.metadata
    np.testing.assert_array_equal(envs.reset(seed=1)[0], again.reset(seed=1)[0])
    assert_same(again.step([1, 2]), envs.step([1, 2]), exact=True)


@pytest.mark.parametrize("mode", MODES[:2])
def test_wrappers(checkpoint: str, mode: str):
    env = DictInfoToList(RecordEpisodeStatistics(make(checkpoint, autoreset_mode=mode)))
    _, infos = env.reset(seed=0)
    assert infos[0]["context"]["obs"].shape == (4, 64, 64, 3)
    lengths = []
    for act in actions(3, 20):
        *_, infos = env.step(act)
        lengths += [info["episode"]["l"] for info in infos if "episode" in info]
    assert max(lengths) == HORIZON and min(lengths) >= 1


def test_observation_wrapper(checkpoint: str):
    env = GrayscaleObservation(make(checkpoint))
    assert env.reset(seed=0)[0].shape == (3, 64, 64)
    assert env.step([0, 1, 2])[0].shape == (3, 64, 64)

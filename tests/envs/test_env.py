"""DiamondEnv fulfils the contracts of Gymnasium and of this project."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import pygame
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import (
    AtariPreprocessing,
    FrameStackObservation,
    GrayscaleObservation,
    MaxAndSkipObservation,
    RecordEpisodeStatistics,
    RecordVideo,
    TimeLimit,
)

from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.games import keys_to_action
from diamond_gym.errors import InvalidInputError, ResetNeededError
from diamond_gym.registration import register_world_model
from tests import worlds

ENDLESS = -30.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return worlds.save_tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def endless_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return worlds.save_tiny_world(tmp_path_factory.mktemp("endless"), end_bias=ENDLESS)


@pytest.fixture(scope="module")
def env_id(endless_checkpoint: str):
    register_world_model("TinyEnvTest-v0", endless_checkpoint, max_episode_steps=8, **worlds.PLAIN)
    yield "TinyEnvTest-v0"
    del gym.registry["TinyEnvTest-v0"]


@contextmanager
def two_threads() -> Iterator[None]:
    """Use OpenMP, as most programs do: a process that is forked meanwhile does not inherit its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(512, 512) @ torch.ones(512, 512)
    yield
    torch.set_num_threads(before)


def make(checkpoint: str, **kwargs) -> DiamondEnv:
    return DiamondEnv(checkpoint=checkpoint, **worlds.PLAIN, **kwargs)


def play(env: gym.Env, num_steps: int) -> list[tuple]:
    """Take actions 0, 1, 2, 3, 0, ..., with a reset when the game is over; return every result."""
    results = []
    for t in range(num_steps):
        obs, reward, terminated, truncated, _ = env.step(t % 4)
        results.append((obs.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            results.append(env.reset()[0].tobytes())
    return results


def test_spaces_and_types(checkpoint: str):
    env = make(checkpoint)
    assert env.observation_space == gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == gym.spaces.Discrete(4)
    assert env.get_action_meanings() == worlds.ACTION_MEANINGS
    obs, info = env.reset(seed=0)
    rewards, ends = set(), set()
    for t in range(60):
        assert obs in env.observation_space and obs.flags.c_contiguous and obs.flags.owndata
        obs, reward, terminated, truncated, info = env.step(t % 4)
        assert (
            type(reward) is float
            and type(terminated) is bool
            and truncated is False
            and info.keys() == {"context"}
        )
        rewards.add(reward)
        ends.add(terminated)
        if terminated:
            obs, info = env.reset()
    assert rewards == {-1.0, 0.0, 1.0}
    assert ends == {False, True}


def test_a_seed_fixes_everything_that_follows(checkpoint: str):
    a, b, c = (make(checkpoint) for _ in range(3))
    firsts = [env.reset(seed=seed)[0].tobytes() for env, seed in ((a, 5), (b, 5), (c, 6))]
    assert firsts[0] == firsts[1]
    futures = [play(env, 40) for env in (a, b, c)]
    assert futures[0] == futures[1]
    assert futures[0] != futures[2]
    a.reset(seed=5)
    assert play(a, 40) == futures[0]


def test_actions_change_the_future(endless_checkpoint: str):
    futures = set()
    for action in range(4):
        env = make(endless_checkpoint)
        env.reset(seed=0)
        futures.add(env.step(action)[0].tobytes())
    assert len(futures) == 4


def test_observations_are_the_callers_own(endless_checkpoint: str):
    env, twin = make(endless_checkpoint), make(endless_checkpoint)
    obs, info = env.reset(seed=0)
    twin.reset(seed=0)
    obs[:] = 0
    info["context"]["obs"][:] = 0
    info["context"]["act"][:] = 3 - info["context"]["act"]
    for _ in range(3):
        obs = env.step(1)[0]
        assert np.array_equal(obs, twin.step(1)[0])
        obs[:] = 0
    np.testing.assert_array_equal(env.reset(seed=0)[0], twin.reset(seed=0)[0])


@pytest.mark.parametrize("action", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)])
def test_kinds_of_integers(endless_checkpoint: str, action):
    env, twin = make(endless_checkpoint), make(endless_checkpoint)
    env.reset(seed=0), twin.reset(seed=0)
    assert np.array_equal(env.step(action)[0], twin.step(2)[0])


def test_info_tells_the_context(checkpoint: str):
    env = make(checkpoint)
    bank = worlds.contexts()
    seen = set()
    for seed in range(30):
        obs, info = env.reset(seed=seed)
        context = info["context"]
        assert context["obs"].shape == (4, 64, 64, 3) and context["obs"].dtype == np.uint8
        assert context["act"].shape == (4,) and context["act"].dtype == np.int64
        np.testing.assert_array_equal(obs, context["obs"][-1])
        (index,) = (k for k in range(len(bank)) if np.array_equal(bank.obs[k], context["obs"]))
        np.testing.assert_array_equal(context["act"], bank.act[index])
        seen.add(index)
    assert seen == set(range(worlds.NUM_CONTEXTS))


def test_own_context(checkpoint: str):
    bank = worlds.contexts(seed=9)
    obs, act = bank.obs[3], bank.act[3]
    env = make(checkpoint)
    first, info = env.reset(seed=1, options={"context": {"obs": obs, "act": act}})
    np.testing.assert_array_equal(first, obs[-1])
    np.testing.assert_array_equal(info["context"]["obs"], obs)
    np.testing.assert_array_equal(info["context"]["act"], act)
    future = play(env, 20)

    _, info = env.reset(seed=1, options={"context": {"obs": torch.from_numpy(obs), "act": act[:-1].tolist()}})
    np.testing.assert_array_equal(info["context"]["act"], [*act[:-1], 0])
    assert play(env, 20) == future, "the last action of a context should not matter"

    other_past = np.array([(act[0] + 1) % 4, *act[1:]])
    env.reset(seed=1, options={"context": {"obs": obs, "act": other_past}})
    assert play(env, 20) != future, "the actions of a context should matter"


def test_context_of_one_game_starts_it_again(checkpoint: str):
    env = make(checkpoint)
    _, info = env.reset(seed=7)
    future = play(env, 20)
    env.reset(seed=7, options=info)
    assert play(env, 20) == future


def test_restored_state_replays_the_same_future(checkpoint: str):
    env = make(checkpoint)
    env.reset(seed=3)
    play(env, 5)
    state = env.clone_state()
    future = play(env, 40)
    assert any(isinstance(result, bytes) for result in future), "the future should cross a reset"
    for _ in range(2):
        obs = env.restore_state(state)
        assert obs in env.observation_space
        assert play(env, 40) == future
    other = make(checkpoint)
    np.testing.assert_array_equal(other.restore_state(pickle.loads(pickle.dumps(state))), obs)
    assert play(other, 40) == future


def test_states_are_told_apart_by_identity(checkpoint: str):
    env = make(checkpoint)
    env.reset(seed=0)
    first, second = env.clone_state(), env.clone_state()
    assert first == first and first != second and len({first, second}) == 2


def test_a_game_that_is_over_is_over_when_restored(checkpoint: str):
    env = make(checkpoint)
    env.reset(seed=0)
    while not env.step(0)[2]:
        pass
    state = env.clone_state()
    env.reset()
    env.restore_state(state)
    with pytest.raises(ResetNeededError, match="over"):
        env.step(0)


def test_restore_refuses_what_does_not_fit(checkpoint: str, tmp_path: Path):
    env = make(checkpoint)
    env.reset(seed=0)
    state = env.clone_state()
    bigger = make(worlds.save_tiny_world(tmp_path / "bigger", lstm_dim=24))
    nameless = make(worlds.save_tiny_world(tmp_path / "nameless", game=None))
    for other, match in ((bigger, "another world model"), (nameless, "imagines None")):
        other.reset(seed=0)
        with pytest.raises(InvalidInputError, match=match):
            other.restore_state(state)
    with pytest.raises(InvalidInputError, match=r"1 game.*state 2"):
        env.restore_state(state.select([0, 0]))
    with pytest.raises(InvalidInputError, match="dict"):
        env.restore_state({})  # pyright: ignore[reportArgumentType]
    assert env.step(0)[0] in env.observation_space


def test_the_info_has_the_same_keys_after_reset_and_step(endless_checkpoint: str):
    """Recorders such as Minari's keep infos, in arrays."""
    env = make(endless_checkpoint)
    _, first = env.reset(seed=0)
    for _ in range(2):
        info = env.step(1)[-1]
        assert info.keys() == first.keys()
        np.testing.assert_array_equal(info["context"]["obs"], first["context"]["obs"])
        assert info["context"]["obs"] is not first["context"]["obs"]
    _, second = env.reset()
    np.testing.assert_array_equal(env.step(1)[-1]["context"]["obs"], second["context"]["obs"])


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"horizon": 30}, r"'horizon': gymnasium.make\(..., max_episode_steps=30\) sets how long"),
        ({"num_denoising_step": 1}, "'num_denoising_step': did you mean num_denoising_steps?"),
        ({"num_steps_denoising": 1}, "did you mean num_denoising_steps?"),
        ({"output": "torch"}, r"a single game gives NumPy arrays; gymnasium.make_vec\(..., output='torch'\)"),
        ({"zzz": 1}, "accepted are game, checkpoint, device"),
    ],
)
def test_misspelt_keywords(keyword: dict, message: str):
    with pytest.raises(TypeError, match=message) as raised:
        gym.make("DiamondBreakout-v0", **keyword)
    assert isinstance(raised.value, InvalidInputError)
    if "horizon" in keyword or "output" in keyword:
        return
    with pytest.raises(InvalidInputError, match=message.partition(" game")[0]):
        gym.make_vec("DiamondBreakout-v0", num_envs=2, **keyword)


def test_pytorchs_own_types_mean_what_they_say(endless_checkpoint: str):
    plain = worlds.PLAIN | {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    env = DiamondEnv("Breakout", checkpoint=endless_checkpoint, **plain)  # pyright: ignore
    assert next(env.world.world_model.denoiser.parameters()).dtype == torch.bfloat16
    with pytest.raises(InvalidInputError, match="got 'int8'"):
        DiamondEnv("Breakout", checkpoint=endless_checkpoint, dtype=torch.int8)  # pyright: ignore


def test_a_closed_environment_raises_gymnasiums_error(endless_checkpoint: str):
    env = make(endless_checkpoint)
    env.close()
    for use in (env.reset, lambda: env.step(0), env.render):
        with pytest.raises(gym.error.ClosedEnvironmentError):
            use()


def test_wrappers_that_skip_frames_again_are_told(env_id: str):
    from stable_baselines3.common.atari_wrappers import AtariWrapper, MaxAndSkipEnv

    for wrapper in (MaxAndSkipObservation, MaxAndSkipEnv):
        env = wrapper(gym.make(env_id))
        with pytest.warns(UserWarning, match=rf"{wrapper.__name__}.*a step is four raw frames"):
            env.reset(seed=0)
    skipping = pytest.warns(UserWarning, match="AtariPreprocessing")
    with skipping, pytest.raises(AttributeError, match=r"no emulator .*leave out AtariPreprocessing"):
        AtariPreprocessing(gym.make(env_id), frame_skip=1).reset(seed=0)
    with pytest.raises(AttributeError, match=r"no emulator .*AtariWrapper"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = AtariWrapper(gym.make(env_id))
        env.reset(seed=0)
        env.step(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrameStackObservation(gym.make(env_id), 4).reset(seed=0)


def test_the_denoising_trajectory_ends_in_the_observation(endless_checkpoint: str):
    env = make(endless_checkpoint)
    env.reset(seed=0)
    assert env.denoising_trajectory() is None
    obs = env.step(1)[0]
    trajectory = env.denoising_trajectory()
    assert trajectory is not None and trajectory.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(np.round((trajectory[-1] + 1) * 127.5), obs)
    env.restore_state(env.clone_state())
    assert env.denoising_trajectory() is None


def test_the_sampler_can_be_changed_in_the_middle_of_a_game(endless_checkpoint: str):
    env, other = (
        make(endless_checkpoint),
        make(endless_checkpoint, num_denoising_steps=3, order=2, s_churn=0.5),
    )
    env.reset(seed=0)
    env.step(1)
    other.reset(seed=0)
    other.restore_state(env.clone_state())
    env.set_sampler(num_denoising_steps=3, order=2, s_churn=0.5)
    np.testing.assert_array_equal(env.step(2)[0], other.step(2)[0])
    with pytest.raises(InvalidInputError, match="order must be 1"):
        env.set_sampler(num_denoising_steps=1, order=3)
    assert env.world.world_model.config.num_steps_denoising == 3


@pytest.mark.filterwarnings("error")
def test_check_env(env_id: str):
    check_env(gym.make(env_id).unwrapped)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "rgb_array", "human"])
def test_made_env_passes_the_passive_checker(env_id: str, render_mode: str | None):
    env = gym.make(env_id, render_mode=render_mode)
    env.reset(seed=0)
    flags = [env.step(env.action_space.sample())[2:4] for _ in range(8)]
    assert flags == [(False, False)] * 7 + [(False, True)]
    if render_mode is not None:
        picture = env.render()
        assert picture is None if render_mode == "human" else np.shape(picture) == (512, 512, 3)
    env.close()
    env.close()


def test_render_shows_the_observation(env_id: str):
    env = gym.make(env_id, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    picture = env.render()
    assert isinstance(picture, np.ndarray) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[3::8, 5::8], obs)


def test_render_without_a_mode_warns(env_id: str):
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_human_window_shows_the_observation(env_id: str):
    env = gym.make(env_id, render_mode="human")
    for result in (lambda: env.reset(seed=0), lambda: env.step(0)):
        obs = result()[0]
        shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        np.testing.assert_array_equal(shown[4::8, 4::8], obs)
    env.close()
    assert not pygame.display.get_init()


def test_wrappers(env_id: str, tmp_path: Path):
    env = gym.make(env_id, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # RecordVideo's own about its folder
        env = RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: True)
    env = FrameStackObservation(GrayscaleObservation(RecordEpisodeStatistics(env)), 4)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (4, 64, 64)
    info: dict = {}
    rewards = []
    for _ in range(8):
        obs, reward, _, _, info = env.step(1)
        rewards.append(reward)
    assert info["episode"]["l"] == 8 and info["episode"]["r"] == sum(rewards)
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000


@pytest.mark.parametrize("context", ["sync", "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_gymnasiums_vector_envs(endless_checkpoint: str, context: str):
    fns = [TinyWorld(endless_checkpoint)] * 2
    with two_threads():
        envs = SyncVectorEnv(fns) if context == "sync" else AsyncVectorEnv(fns, context=context)
    single = TinyWorld(endless_checkpoint)()
    obs, infos = envs.reset(seed=4)
    expected, _ = single.reset(seed=5)
    np.testing.assert_array_equal(obs[1], expected)
    assert infos["context"]["obs"].shape == (2, 4, 64, 64, 3) and infos["_context"].all()
    for t in range(5):
        obs, rewards, _, truncated, _ = envs.step(np.array([0, t % 4]))
        expected, reward, _, single_truncated, _ = single.step(t % 4)
        assert np.abs(obs[1].astype(int) - expected).mean() < 0.5  # workers may run on fewer threads
        assert (rewards[1], truncated[1]) == (reward, single_truncated)
    assert truncated.all()
    envs.close()


class TinyWorld:
    """A function that makes an environment and can be pickled, as spawned workers need."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self) -> gym.Env:
        return TimeLimit(make(self.checkpoint), 5)


def test_a_forked_process_goes_on_with_an_environment(endless_checkpoint: str):
    """The process would hang if it used more threads than it has."""
    env = make(endless_checkpoint)
    env.reset(seed=0)
    process = multiprocessing.get_context("fork").Process(target=env.step, args=(0,))
    with two_threads():
        process.start()
    process.join(60)
    exit_code = process.exitcode
    process.kill()
    assert exit_code == 0


def test_play(env_id: str):
    from gymnasium.utils.play import play as gymnasium_play

    actions = []

    def callback(obs_t, obs_tp1, action, rew, terminated, truncated, info):
        actions.append(action)
        if len(actions) == 3:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=ord("d")))
        if len(actions) == 6:
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    gymnasium_play(gym.make(env_id, render_mode="rgb_array"), fps=1000, callback=callback, seed=0)
    assert actions == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("game", ["breakout", "pong", "ms_pacman", "seaquest", "freeway"])
def test_keys_are_those_of_ale(game: str):
    ale = ale_py.AtariEnv(game)
    assert keys_to_action(ale.get_action_meanings()) == ale.get_keys_to_action()


def test_actions_of_unknown_meaning_have_no_keys():
    assert keys_to_action(["NOOP", "ACTION_1", "UPWARD", "RIGHTFIRE"]) == {("e",): 0, ("d", " "): 3}


@pytest.mark.parametrize(
    "round_trip", [lambda s: pickle.loads(pickle.dumps(s)), lambda s: EnvSpec.from_json(s.to_json())]
)
def test_spec_round_trip(env_id: str, round_trip):
    env = gym.make(env_id, num_denoising_steps=2, order=2, s_churn=0.5)
    spec = round_trip(env.spec)
    assert spec == env.spec
    again = gym.make(spec)
    np.testing.assert_array_equal(env.reset(seed=2)[0], again.reset(seed=2)[0])
    np.testing.assert_array_equal(env.step(1)[0], again.step(1)[0])

"""The real game: preprocessing against raw ALE frames, lost lives, seeds, branching, errors."""

import pickle
import subprocess
import sys
from dataclasses import replace

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from diamond_gym import registration
from diamond_gym.errors import (
    ClosedEnvironmentError,
    DiamondGymError,
    InvalidInputError,
    ResetNeededError,
    UnknownGameError,
)
from diamond_gym.games import atari
from diamond_gym.games.atari import AtariEnv, action_meanings, num_actions

GAMES = ["Breakout", "Pong", "Freeway", "MsPacman", "Boxing", "Carnival", "Backgammon"]
gymnasium.register_envs(ale_py)


def raw_game(game: str) -> gymnasium.Env:
    """ale_py's own environment, frame by frame, without any preprocessing."""
    return gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0).unwrapped


def play(env: AtariEnv, num_steps: int, seed: int = 0) -> list[tuple]:
    """Take random steps, and start the next episode when one ends."""
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(num_steps):
        action = int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, info = env.step(action)
        steps.append((obs, reward, terminated, truncated, info))
        if terminated or truncated:
            env.reset()
    return steps


def resize(screen: np.ndarray) -> np.ndarray:
    return cv2.resize(screen, (64, 64), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("game", GAMES)
def test_frames_and_rewards_equal_a_recomputation_from_raw_frames(game):
    env, raw = AtariEnv(game, training=False), raw_game(game)
    obs, info = env.reset(seed=7)
    raw.reset(seed=7)
    for _ in range(raw.np_random.integers(1, 31)):
        raw.ale.act(ale_py.Action.NOOP)
    assert info["episode_frame_number"] == raw.ale.getEpisodeFrameNumber()
    np.testing.assert_array_equal(obs, resize(raw.ale.getScreenRGB()))
    assert env.action_space.n == raw.action_space.n

    rng = np.random.default_rng(0)
    for _ in range(60):
        action = int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, info = env.step(action)
        screens, rewards = zip(*[raw.step(action)[:2] for _ in range(4)], strict=True)
        np.testing.assert_array_equal(obs, resize(np.maximum(screens[2], screens[3])))
        assert reward == sum(rewards)
        assert not terminated and not truncated
        assert info["episode_frame_number"] == raw.ale.getEpisodeFrameNumber()


def test_no_sticky_actions_one_raw_frame_at_a_time_and_minimal_actions():
    env = AtariEnv("Breakout", training=True)
    assert env.ale.getFloat("repeat_action_probability") == 0.0
    assert env.action_meanings == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    _, info = env.reset(seed=0)
    assert env.step(0)[4]["episode_frame_number"] == info["episode_frame_number"] + 4


def test_a_game_starts_with_1_to_30_noops():
    env = AtariEnv("Pong", training=False)
    env.reset(seed=0)
    noops = {env.reset()[1]["episode_frame_number"] for _ in range(150)}
    assert (min(noops), max(noops)) == (1, 30)


def test_a_lost_life_ends_a_training_episode_and_the_game_goes_on():
    env = AtariEnv("Breakout", training=True)
    _, info = env.reset(seed=0)
    lives = [info["lives"]]
    while True:
        obs, _, terminated, _, info = env.step(1)
        if not terminated:
            continue
        assert info["life_lost"]
        if info["game_over"]:
            break
        lives.append(info["lives"])
        screen = env.ale.getScreenRGB()
        first_obs, first_info = env.reset()
        np.testing.assert_array_equal(first_obs, obs)
        np.testing.assert_array_equal(env.ale.getScreenRGB(), screen)
        assert first_info["episode_frame_number"] == info["episode_frame_number"]
        assert (first_info["lives"], first_info["life_lost"]) == (info["lives"], False)
    assert lives == [5, 4, 3, 2, 1]
    _, info = env.reset()
    assert info["lives"] == 5
    assert info["episode_frame_number"] <= 30


def test_without_training_only_game_over_ends_an_episode():
    env, training_env = AtariEnv("Breakout", training=False), AtariEnv("Breakout", training=True)
    env.reset(seed=3)
    training_env.reset(seed=3)
    ends = 0
    while True:
        obs, reward, terminated, _, info = env.step(1)
        training_obs, training_reward, training_terminated, _, _ = training_env.step(1)
        np.testing.assert_array_equal(obs, training_obs)
        assert reward == training_reward
        ends += training_terminated
        if terminated:
            break
        if training_terminated:
            training_env.reset()
    assert info["game_over"] and info["lives"] == 0
    assert ends == 5


def test_the_frame_at_game_over_is_the_published_one():
    """The published preprocessing does not read the screen at game over: the earlier pooled screen stays."""
    env, raw = AtariEnv("Breakout", training=False), raw_game("Breakout")
    env.reset(seed=0)
    raw.reset(seed=0)
    for _ in range(raw.np_random.integers(1, 31)):
        raw.ale.act(ale_py.Action.NOOP)
    older, newer = np.zeros((210, 160, 3), np.uint8), raw.ale.getScreenRGB()
    terminated = False
    while not terminated:
        obs, _, terminated, _, _ = env.step(1)
        for frame in range(4):
            screen, _, raw_terminated, _, _ = raw.step(1)
            if raw_terminated:
                break
            if frame == 2:
                older = screen
            elif frame == 3:
                newer = screen
        newer = np.maximum(newer, older)
        assert raw_terminated == terminated
        np.testing.assert_array_equal(obs, resize(newer))


def test_a_game_is_truncated_after_108_000_raw_frames():
    env = AtariEnv("Pong", training=False)
    env.reset(seed=0)
    env.ale.setInt("max_num_frames_per_episode", 200)  # ALE reads its limit when a ROM is loaded
    env.reset(seed=0)
    for _ in range(60):
        *_, terminated, truncated, info = env.step(0)
        if truncated:
            break
    assert truncated and not terminated
    assert info["episode_frame_number"] == 200
    assert AtariEnv("Pong", training=False).ale.getInt("max_num_frames_per_episode") == 108_000


def test_a_seed_fixes_all_that_follows():
    first, second = AtariEnv("Breakout", training=True), AtariEnv("Breakout", training=True)
    np.testing.assert_array_equal(first.reset(seed=5)[0], second.reset(seed=5)[0])
    one, other = play(first, 260), play(second, 260)
    assert any(step[4]["game_over"] for step in one), "so that new games are covered too"
    for (obs, *rest), (other_obs, *other_rest) in zip(one, other, strict=True):
        np.testing.assert_array_equal(obs, other_obs)
        assert rest == other_rest
    first.reset(seed=5)
    again = play(first, 50)
    assert [step[1:] for step in again] == [step[1:] for step in one[:50]]
    starts = {first.reset(seed=seed)[1]["episode_frame_number"] for seed in range(5)}
    assert len(starts) > 2


def test_a_restored_state_replays_the_same_future_here_and_elsewhere():
    env = AtariEnv("Breakout", training=True, render_mode="rgb_array")
    env.reset(seed=1)
    obs = play(env, 30)[-1][0]
    screen = env.render()
    state = env.clone_state()
    future = play(env, 150)
    assert any(step[2] for step in future)
    other = AtariEnv("Breakout", training=True, render_mode="rgb_array")
    for copy, there in ((state, env), (pickle.loads(pickle.dumps(state)), other)):
        np.testing.assert_array_equal(there.restore_state(copy), obs)
        np.testing.assert_array_equal(there.render(), screen)
        for (obs_then, *rest), (obs_now, *rest_now) in zip(future, play(there, 150), strict=True):
            np.testing.assert_array_equal(obs_then, obs_now)
            assert rest == rest_now


def test_a_state_between_episodes_still_waits_for_reset():
    env = AtariEnv("Breakout", training=True)
    env.reset(seed=0)
    while not env.step(1)[2]:
        pass
    state = env.clone_state()
    env.reset(seed=9)
    env.restore_state(state)
    with pytest.raises(ResetNeededError):
        env.step(0)
    assert env.reset()[1]["lives"] == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_finds_no_fault(render_mode):
    check_env(AtariEnv("Breakout", training=True, render_mode=render_mode), skip_render_check=True)


def test_render_shows_the_raw_screen():
    env = AtariEnv("Breakout", training=True, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    assert env.render().shape == (210, 160, 3)
    np.testing.assert_array_equal(resize(env.render()), obs)
    silent = AtariEnv("Breakout", training=True)
    silent.reset(seed=0)
    assert silent.render() is None


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_every_game_is_found(every):
    assert {num_actions(game) for game in registration.GAMES[::every]} <= set(range(3, 19))


def test_a_game_is_found_in_any_spelling():
    assert AtariEnv("ALE/MsPacman-v5", training=True).game == "MsPacman"
    assert action_meanings("pong") == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert num_actions("Seaquest") == 18


def test_a_game_that_the_installed_ale_py_lacks(monkeypatch):
    monkeypatch.setattr(atari, "_rom_ids", dict)
    with pytest.raises(UnknownGameError, match=r"no ROM of Breakout.*upgrade"):
        AtariEnv("Breakout", training=True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Brakeout", "did you mean Breakout"), ("MsPackman", "MsPacman"), ("xyzzy", "known games")],
)
def test_an_unknown_game_gets_a_suggestion(name, hint):
    with pytest.raises(UnknownGameError, match=hint):
        AtariEnv(name, training=True)


@pytest.mark.parametrize("name", ["", None, 3, "combat"])
def test_what_is_no_single_player_game_is_refused(name):
    with pytest.raises(UnknownGameError):
        AtariEnv(name, training=True)


@pytest.mark.parametrize("action", [-1, 4, 1.0, "1", None, True, np.array([1, 2]), torch.tensor([1])])
def test_a_bad_action_is_refused_and_the_game_stands_still(action):
    env = AtariEnv("Breakout", training=True)
    _, info = env.reset(seed=0)
    with pytest.raises(InvalidInputError, match=r"0 NOOP, 1 FIRE, 2 RIGHT, 3 LEFT"):
        env.step(action)
    assert env.step(np.int64(1))[4]["episode_frame_number"] == info["episode_frame_number"] + 4


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_a_bad_seed_is_refused_and_the_game_stands_still(seed):
    env = AtariEnv("Breakout", training=True)
    _, info = env.reset(seed=np.int64(0))
    with pytest.raises(InvalidInputError, match="seed"):
        env.reset(seed=seed)
    assert env.step(1)[4]["episode_frame_number"] == info["episode_frame_number"] + 4


def test_calls_out_of_order_are_refused():
    env = AtariEnv("Breakout", training=True)
    for call in (lambda: env.step(0), env.render, env.clone_state):
        with pytest.raises(ResetNeededError):
            call()
    env.reset(seed=0)
    state = env.clone_state()
    for wrong in (None, "state"):
        with pytest.raises(InvalidInputError):
            env.restore_state(wrong)
    pong = AtariEnv("Pong", training=True)
    with pytest.raises(InvalidInputError, match="this is Pong, the state is of Breakout"):
        pong.restore_state(state)
    with pytest.raises(InvalidInputError, match="human"):
        AtariEnv("Pong", training=True, render_mode="human")
    env.close()
    env.close()
    for call in (
        lambda: env.step(0),
        env.reset,
        env.render,
        env.clone_state,
        lambda: env.restore_state(state),
    ):
        with pytest.raises(ClosedEnvironmentError):
            call()
    assert issubclass(ClosedEnvironmentError, DiamondGymError)


def test_playing_is_silent_and_importing_loads_neither_ale_nor_torch():
    script = (
        "import sys, diamond_gym.games.atari as atari\n"
        "assert not {'ale_py', 'torch'} & set(sys.modules)\n"
        "env = atari.AtariEnv('Breakout', training=True)\n"
        "env.reset(seed=0); env.step(1); env.reset(seed=1); atari.num_actions('Pong')"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_states_made_by_hand_are_refused():
    env = AtariEnv("Pong", training=False)
    env.reset(seed=0)
    state = env.clone_state()
    wrong = {
        "emulator": None,
        "screens": state.screens[:, :5],
        "lives": "three",
        "phase": "asleep",
        "rng": {"bit_generator": "MT19937"},
    }
    for name, value in wrong.items():
        with pytest.raises(InvalidInputError, match=r"the state is not one of clone_state\(\): .{5}"):
            env.restore_state(replace(state, **{name: value}))
    np.testing.assert_array_equal(env.step(0)[0], twin_step(state))


def twin_step(state):
    env = AtariEnv("Pong", training=False)
    env.restore_state(state)
    return env.step(0)[0]

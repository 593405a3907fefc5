"""Scores of real games, and the uncertainty of their mean."""

import numpy as np
import pytest

import diamond_gym
from diamond_gym.errors import DiamondGymError
from diamond_gym.evaluate.score import Score, bootstrap_interval, real_game, real_scores
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players.player import FrameStackPlayer, PolicyPlayer


def test_a_policy_sees_the_latest_frames_of_the_game():
    seen = []

    def policy(stack):
        seen.append(stack)
        return len(seen) % 4

    scores = real_scores(FrameStackPlayer(policy, 3), "Breakout", num_games=2, seed=5, max_steps=6)
    assert len(scores) == 2 and len(seen) == 12
    for game in range(2):
        env = AtariEnv("Breakout", training=False)
        frames = [env.reset(seed=5 + game)[0]]
        for step in range(6):
            number = 6 * game + step
            expected = [frames[max(0, step - back)] for back in (2, 1, 0)]
            np.testing.assert_array_equal(seen[number], np.stack(expected).transpose(0, 3, 1, 2))
            frames.append(env.step((number + 1) % 4)[0])
        env.close()


def test_games_are_played_to_their_end_and_scored_raw():
    rng = np.random.default_rng(0)
    player = PolicyPlayer(lambda frame: int(rng.integers(4)))
    scores = real_scores(player, "Breakout", num_games=3, seed=0, max_steps=5_000)
    assert all(0 <= score < 20 for score in scores) and sum(scores) > 0


def test_the_game_of_an_id():
    assert real_game("DiamondBreakout-v0") == "Breakout"
    with pytest.raises(DiamondGymError):
        real_game("CartPole-v1")


def test_a_world_of_no_atari_game_has_no_real_one(tiny_world):
    diamond_gym.register_world_model("MyOwnGame-v0", tiny_world)
    assert real_game("MyOwnGame-v0") is None


def test_the_interval_is_that_of_the_mean():
    returns = list(np.random.default_rng(1).normal(5, 2, 400))
    low, high = bootstrap_interval(returns)
    error = 1.96 * np.std(returns) / 20
    assert (low, high) == pytest.approx((np.mean(returns) - error, np.mean(returns) + error), abs=0.05)
    assert bootstrap_interval([3.0]) == (3, 3)


def test_scores_in_words():
    said = Score.of("me", [0.0, 1.0, 5.0]).in_words()
    assert "3 real games: 2.00" in said and said.endswith("median 1.00")

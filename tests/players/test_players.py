import numpy as np
import pytest

from diamond_gym.errors import InvalidInputError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players.player import (
    PLAYER_NAMES,
    RandomPlayer,
    ScriptedBreakout,
    ScriptedPong,
    player,
    scripted_player,
)
from diamond_gym.players.scripted import cheapest
from trainers.diamond import data
from trainers.diamond.config import PlayerConfig

BLACK = np.zeros((64, 64, 3), np.uint8)


def play(policy, seed, max_steps=4000, game="Breakout"):
    """Play one game, up to `max_steps`; return actions and return."""
    env = AtariEnv(game, training=False)
    obs, _ = env.reset(seed=seed)
    actions, total = [], 0.0
    for _ in range(max_steps):
        actions.append(policy.act(obs))
        obs, reward, terminated, truncated, _ = env.step(actions[-1])
        total += reward
        if terminated or truncated:
            break
    return actions, total


def test_random_is_uniform_and_seeded():
    policy = RandomPlayer(6, seed=1)
    actions = [policy.act(BLACK) for _ in range(6000)]
    counts = np.bincount(actions, minlength=6)
    assert counts.min() > 850
    assert counts.max() < 1150
    policy.reset(1)
    assert [policy.act(BLACK) for _ in range(50)] == actions[:50]
    policy.reset(2)
    assert [policy.act(BLACK) for _ in range(50)] != actions[:50]


def test_random_holds_actions_when_asked():
    policy = RandomPlayer(1000, seed=0, repeat=4)
    actions = np.array([policy.act(BLACK) for _ in range(4000)])
    edges = np.flatnonzero(np.diff(actions)) + 1
    holds = np.diff(edges)
    assert set(holds.tolist()) == {1, 2, 3, 4}
    assert 2.3 < holds.mean() < 2.7


def test_scripted_plays_well_without_noise():
    _, total = play(ScriptedBreakout(seed=0, noise=0), seed=100)
    assert total > 100


def test_scripted_by_default_plays_decently_and_loses_its_lives():
    actions, total = play(ScriptedBreakout(seed=5), seed=5)
    assert 5 < total < 400
    assert len(actions) < 4000
    assert set(actions) == {0, 1, 2, 3}


def test_more_noise_plays_worse():
    _, total = play(ScriptedBreakout(seed=0, noise=1), seed=100)
    assert total < 15


def test_scripted_repeats_itself_with_the_same_seed():
    policy = ScriptedBreakout(seed=7)
    first, _ = play(policy, seed=1, max_steps=150)
    policy.reset(7)
    second, _ = play(policy, seed=1, max_steps=150)
    policy.reset(8)
    third, _ = play(policy, seed=1, max_steps=150)
    assert first == second != third


def test_plans_that_cost_the_same_but_for_rounding_are_told_apart_by_their_order():
    assert cheapest(np.array([3.0, 0.1 + 0.2, 0.3, 0.3 - 1e-12])) == 1


def test_scripted_serves_when_it_sees_no_ball():
    policy = ScriptedBreakout(seed=0, noise=0)
    assert 1 in [policy.act(BLACK) for _ in range(10)]


def test_scripted_pong_plays_worse_with_more_noise():
    def points(noise: float) -> float:  # CPUs round differently, so single games do too
        players = [ScriptedPong(seed=seed, noise=noise) for seed in range(3)]
        return sum(play(p, seed=seed, max_steps=400, game="Pong")[1] for seed, p in enumerate(players))

    assert points(noise=0) >= 3
    assert points(noise=1) <= -3


def test_scripted_pong_by_default_beats_random_play():
    actions, total = play(ScriptedPong(seed=0), seed=0, max_steps=300, game="Pong")
    _, by_chance = play(RandomPlayer(6, seed=0, repeat=4), seed=0, max_steps=300, game="Pong")
    assert total >= by_chance + 4
    assert set(actions) <= set(range(6))
    assert {0, 2, 3} < set(actions)


def test_scripted_pong_repeats_itself_with_the_same_seed():
    policy = ScriptedPong(seed=7)
    first, _ = play(policy, seed=1, max_steps=80, game="Pong")
    policy.reset(7)
    second, _ = play(policy, seed=1, max_steps=80, game="Pong")
    policy.reset(8)
    third, _ = play(policy, seed=1, max_steps=80, game="Pong")
    assert first == second != third


def test_scripted_pong_serves_when_it_sees_no_ball():
    policy = ScriptedPong(seed=0, noise=0)
    assert 1 in [policy.act(BLACK) for _ in range(10)]


@pytest.mark.parametrize("name", PLAYER_NAMES)
@pytest.mark.parametrize(("game", "num_actions"), [("Breakout", 4), ("Pong", 6)])
def test_players_by_name(name, game, num_actions):
    policy = player(name, game, num_actions, seed=3)
    assert all(policy.act(BLACK) in range(num_actions) for _ in range(20))


@pytest.mark.parametrize(("game", "kind"), [("Breakout", ScriptedBreakout), ("Pong", ScriptedPong)])
def test_scripted_player_of_a_game(game, kind):
    policy = scripted_player(game, seed=1, noise=0.3)
    assert type(policy) is kind
    assert policy.noise == 0.3
    assert data.player_name(PlayerConfig("auto"), game) == "scripted"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scripted_player("Alien"), "no scripted player for 'Alien', only for Breakout, Pong"),
        (lambda: player("expert", "Breakout", 4), "unknown player 'expert'; known: random, scripted"),
        (lambda: ScriptedBreakout(noise=1.5), r"noise must be in \[0, 1\], got 1.5"),
        (lambda: ScriptedPong(noise=-0.1), r"noise must be in \[0, 1\], got -0.1"),
        (lambda: RandomPlayer(0), "num_actions must be at least 1, got 0"),
        (lambda: RandomPlayer(4, repeat=0), "repeat must be at least 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()

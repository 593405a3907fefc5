"""The ball's track shows what happens in a step; a prediction is right if its ball is near the real one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diamond_gym.checkpoints import load_world
from diamond_gym.data.episodes import Episode
from diamond_gym.evaluate import ball, heldout
from diamond_gym.evaluate.ball import FATE_STEPS, breakout_kinds, count_fates, pong_kinds
from diamond_gym.evaluate.bounces import AFTER_BOUNCE, BEFORE_BOUNCE, measure_bounces, measure_single_steps
from diamond_gym.players.player import player


def happens(kinds, time):
    return [kind for kind, steps in kinds.items() if steps[time]]


@pytest.mark.parametrize(
    "track, rew, kind",
    [
        ([(30, 30), (32, 33), (34, 36), (36, 39)], 0, ["free flight"]),
        ([(30, 49), (32, 52), (34, 55), (36, 52)], 0, ["paddle"]),
        ([(54, 30), (57, 33), (59, 36), (56, 39)], 0, ["walls"]),
        ([(30, 34), (32, 31), (34, 28), (36, 31)], 1, ["bricks"]),
        ([(30, 30), (32, 33), (34, 36), (np.nan, np.nan)], 0, []),
        ([(np.nan, np.nan), (np.nan, np.nan), (34, 36), (36, 39)], 0, []),
    ],
)
def test_kinds_of_breakout(track, rew, kind):
    ball = np.array(track, float)
    rewards = np.array([0, 0, rew], float)
    assert happens(breakout_kinds(ball, rewards), 2) == kind


@pytest.mark.parametrize(
    "track, kind",
    [
        ([(30, 30), (33, 31), (36, 32), (39, 33)], ["free flight"]),
        ([(46, 30), (49, 31), (52, 32), (49, 33)], ["paddle"]),
        ([(14, 30), (11, 31), (8, 32), (11, 33)], ["opponent"]),
        ([(30, 16), (33, 14), (36, 12), (39, 14)], ["walls"]),
    ],
)
def test_kinds_of_pong(track, kind):
    assert happens(pong_kinds(np.array(track, float), np.zeros(3)), 2) == kind


def test_the_embedded_world_knows_free_flight():
    policy = player("scripted", "Breakout", 4, noise=0.0)
    episodes = heldout.play("Breakout", policy, 1, seed=0, max_steps=120).episodes
    world_model = load_world("Breakout", "embedded").world_model
    measured = measure_single_steps("Breakout", world_model, episodes)
    assert set(measured) == {"free flight", "paddle", "bricks", "walls"}
    assert measured["free flight"]["frames"] > 50 and measured["free flight"]["right"] > 0.95
    assert measured["paddle"]["frames"] >= 2
    assert measured == measure_single_steps("Breakout", world_model, episodes), "the seed fixes the noise"
    bounces = measure_bounces("Breakout", world_model, episodes)
    assert set(bounces) == set(measured)
    assert all(0 <= row["right"] <= row["there"] <= 1 for row in bounces.values())
    assert bounces["free flight"]["starts"] > 50 and bounces["free flight"]["right"] > 0.7


class FlyingBall:
    """A world model in which the real game's frames come true, but the ball vanishes some steps on."""

    num_steps_conditioning = 4
    device = torch.device("cpu")

    def __init__(self, episode, vanishes_after):
        self.frames, self.vanishes_after = heldout.all_frames(episode), vanishes_after

    def start(self, obs, act, keys):
        time = [
            next(t for t, frame in enumerate(self.frames) if torch.equal(frame, last[-1])) for last in obs
        ]
        return SimpleNamespace(time=torch.tensor(time), steps=0)

    def step(self, state, act):
        now = SimpleNamespace(time=state.time + 1, steps=state.steps + 1)
        frames = self.frames[now.time].clone()
        if now.steps > self.vanishes_after:
            frames.zero_()
        return now, SimpleNamespace(obs=frames)


@pytest.mark.parametrize("vanishes_after, share", [(BEFORE_BOUNCE + 1 + AFTER_BOUNCE, 1.0), (3, 0.0)])
def test_a_bounce_is_judged_some_steps_after_it(vanishes_after, share):
    policy = player("scripted", "Breakout", 4, noise=0.0)
    episodes = heldout.play("Breakout", policy, 1, seed=0, max_steps=120).episodes
    measured = measure_bounces("Breakout", FlyingBall(episodes[0], vanishes_after), episodes)
    assert measured["paddle"]["starts"] >= 2
    assert measured["paddle"]["right"] == measured["paddle"]["there"] == share


def test_what_does_not_happen_is_not_a_number_and_games_without_a_ball_have_no_kinds():
    black = Episode(
        torch.zeros(8, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(8, dtype=torch.int64),
        torch.zeros(8),
        torch.tensor([0] * 7 + [1], dtype=torch.uint8),
        torch.zeros(8, dtype=torch.uint8),
        {"final_observation": torch.zeros(3, 64, 64, dtype=torch.uint8)},
    )
    world_model = load_world("Breakout", "embedded").world_model
    measured = measure_single_steps("Breakout", world_model, [black])
    assert all(row["frames"] == 0 and np.isnan(row["right"]) for row in measured.values())
    measured = measure_bounces("Breakout", world_model, [black])
    assert all(
        row["starts"] == 0 and np.isnan([row["right"], row["there"]]).all() for row in measured.values()
    )
    assert measure_single_steps("Boxing", world_model, [black]) == {}
    assert measure_bounces("Boxing", world_model, [black]) == {}


@pytest.mark.parametrize(("game", "num_actions"), [("Breakout", 4), ("Pong", 6)])
def test_no_ball_vanishes_at_the_paddle_of_a_real_game(game, num_actions):
    found = []
    for name, noise in (("scripted", 0.0), ("random", 0.0)):
        policy = player(name, game, num_actions, noise=noise)
        episode = heldout.play(game, policy, 1, seed=0, max_steps=250).episodes[0]
        given = heldout.all_frames(episode)[1:].numpy(), episode.rew.numpy(), episode.end.numpy().astype(bool)
        found.append(count_fates(game, *(after_its_end(x)[None] for x in given)))
    scripted, random = found
    assert scripted["balls"] >= 2 and random["balls"] >= 1
    assert scripted["vanished"] == random["vanished"] == 0
    assert scripted["returned"] == 1 and random["lost"] > 0.5


def after_its_end(x):
    """Add the steps after an episode's end, in which nothing is to be seen."""
    return np.concatenate([x, np.zeros((FATE_STEPS, *x.shape[1:]), x.dtype)])


COMES = [30, 34, 38, 42, 46, 50, 54]
"""A ball of Pong on its way to the paddle."""


def fates_of(monkeypatch, track, losses=(), ends=(), num_steps=40):
    """Count the fates of a ball with this x in each frame, hidden after them."""
    x = np.array([*track, *[np.nan] * (num_steps - len(track))])
    found = np.stack([x, np.full(num_steps, 30.0)], axis=1)
    monkeypatch.setattr(ball, "find_ball", lambda game, frames: found)
    rew, end = np.zeros((1, num_steps)), np.zeros((1, num_steps), bool)
    rew[0, list(losses)], end[0, list(ends)] = -1, True
    counted = count_fates("Pong", np.zeros((1, num_steps, 3, 64, 64), np.uint8), rew, end)
    return counted["balls"], {fate for fate in ("lost", "returned", "vanished") if counted[fate] == 1}


@pytest.mark.parametrize(
    ("track", "losses", "fate"),
    [
        ([*COMES, 50, 46, 42], [], "returned"),
        (COMES, [6], "lost"),  # in the very step after which it is seen last
        (COMES, [6 + FATE_STEPS], "lost"),
        (COMES, [7 + FATE_STEPS], "vanished"),
        (COMES, [], "vanished"),
        ([*COMES[:5], np.nan, *COMES[6:]], [9], "lost"),  # hidden for a frame: still one ball
        ([*COMES[:5], np.nan, *COMES[6:], 50, 46, 42], [], "returned"),
        ([*COMES[:5], 46, *COMES[5:]], [], "vanished"),  # still for a frame
    ],
)
def test_the_fate_of_a_ball_at_the_paddle(monkeypatch, track, losses, fate):
    assert fates_of(monkeypatch, track, losses) == (1, {fate})


def test_two_balls_are_two(monkeypatch):
    assert fates_of(monkeypatch, [*COMES, 50, 46, 42, *COMES, 50, 42]) == (2, {"returned"})
    assert fates_of(monkeypatch, [*COMES, np.nan, 50, 54], losses=[7, 12]) == (2, {"lost"})


def test_balls_near_the_last_step_do_not_count_whatever_becomes_of_them(monkeypatch):
    """Else only lost ones would count there, because a game that ends shows at once what became of them."""
    late = [np.nan] * 19 + COMES  # seen last in frame 25 of 40: the last one that counts
    assert fates_of(monkeypatch, late, ends=[30]) == (1, {"lost"})
    assert fates_of(monkeypatch, [np.nan, *late], ends=[30]) == (0, set())
    assert fates_of(monkeypatch, [np.nan, *late]) == (0, set())
    assert fates_of(monkeypatch, COMES, ends=[5]) == (0, set()), "the game was over before it came"


def test_balls_are_not_looked_for_where_they_cannot_be_found():
    nothing = np.zeros((1, 20, 3, 64, 64), np.uint8)
    rew, end = np.zeros((1, 20)), np.zeros((1, 20), bool)
    assert count_fates("Boxing", nothing, rew, end) == {}
    assert np.isnan(count_fates("Pong", nothing, rew, end)["lost"])

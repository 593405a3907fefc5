import json
import math
import os
import subprocess
import sys
from contextlib import closing

import cv2
import numpy as np
import pytest
import torch

from diamond_gym import cli
from diamond_gym.checkpoints import save_world
from diamond_gym.data.episodes import Episode
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate import (
    branches,
    card,
    compare,
    evaluation,
    heldout,
    imagination,
    measure,
    metrics,
    report,
)
from diamond_gym.evaluate.__main__ import main
from diamond_gym.evaluate.imagination import Imaginer
from diamond_gym.evaluate.settings import Settings
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players.actor_critic import ActorCriticPlayer
from diamond_gym.players.player import RandomPlayer, ScriptedBreakout
from diamond_gym.world import pixels
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests import worlds


@pytest.fixture(scope="module")
def world_model():
    agent = worlds.tiny_agent()
    return WorldModel(agent.denoiser, agent.rew_end_model, DiffusionSamplerConfig(num_steps_denoising=1))


def episode(length, seed=0):
    rng = torch.Generator().manual_seed(seed)
    end = torch.zeros(length, dtype=torch.uint8)
    end[-1] = 1
    frames = torch.randint(0, 256, (length + 1, 3, 64, 64), dtype=torch.uint8, generator=rng)
    return Episode(
        obs=frames[:-1],
        act=torch.randint(0, 4, (length,), generator=rng),
        rew=torch.randint(-7, 8, (length,), generator=rng).float(),
        end=end,
        trunc=torch.zeros_like(end),
        info={"final_observation": frames[-1]},
    )


# --- metrics against numbers computed by hand


def test_mean_squared_error_and_psnr():
    a = np.zeros((2, 3, 4, 4), np.uint8)
    b = a.copy()
    b[0] = 255
    b[1, 0] = 10  # a third of the channels, 100 each
    mse = pixels.mean_squared_error(a, b)
    np.testing.assert_allclose(mse, [65025, 100 / 3])
    np.testing.assert_allclose(pixels.psnr(mse), [0, 20 * math.log10(255) - 10 * math.log10(100 / 3)])
    assert pixels.psnr(np.array(0.0)) == pixels.PSNR_CAP
    assert pixels.psnr(np.array(1.0)) == pytest.approx(48.1308)


def test_mean_where():
    values = np.array([[1.0, 5.0, np.nan], [3.0, 7.0, 2.0]])
    mask = np.array([[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(metrics.mean_where(values, mask), [2, 7, np.nan])


def test_hits():
    real = np.array([[10.0, 10.0], [10, 10], [10, 10], [np.nan, np.nan]])
    found = np.array([[11.2, 11.6], [11.5, 11.5], [np.nan, np.nan], [10, 10]])
    np.testing.assert_array_equal(metrics.hits(found, real, 2), [True, False, False, False])


def test_confusion_and_scores():
    real = np.array([1, 1, 1, 2, 2, 0])
    predicted = np.array([1, 2, 1, 2, 1, 2])
    matrix = metrics.confusion(real, predicted, 3)
    np.testing.assert_array_equal(matrix, [[0, 0, 1], [0, 2, 1], [0, 1, 1]])
    found = metrics.scores(matrix, nothing=1)  # 3 events occurred, 3 were predicted, 1 of them correctly
    assert (found.precision, found.recall, found.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_scores_of_nothing_are_nan():
    found = metrics.scores(np.array([[5, 0], [0, 0]]), nothing=0)
    assert np.isnan([found.precision, found.recall, found.f1]).all()
    missed = metrics.scores(np.array([[5, 0], [2, 0]]), nothing=0)
    assert np.isnan(missed.precision)
    assert (missed.recall, missed.f1) == (0, 0)


def test_returns_stop_with_the_first_end_and_at_the_real_one():
    rew = np.array([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, -1, 1, 1]])
    end = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
    valid = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(metrics.returns(rew, end, valid), [2, 4, -1])


def test_event_rates_stop_with_the_first_end():
    rew = np.array([[1.0, 0, -1, 1], [0, 1, 1, 1]])
    end = np.array([[0, 0, 0, 0], [0, 1, 0, 1]], bool)
    rates = metrics.event_rates(rew, end)
    assert rates == {"frames": 6, "won": 3000 / 6, "lost": 1000 / 6, "ends": 1000 / 6}


def test_correlation_and_distances():
    assert metrics.correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)
    assert metrics.correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert math.isnan(metrics.correlation(np.array([1.0, 2, 3]), np.array([1.0, 1, 1])))
    found = metrics.distances(np.array([[3.0, 4], [np.nan, 0]]), np.zeros((2, 2)))
    np.testing.assert_array_equal(found, [5, np.nan])


def test_drift_is_of_the_mean_frames():
    a = np.zeros((2, 3, 1, 2, 2), np.uint8)
    b = a.copy()
    b[0, 0], b[1, 0] = 10, 30
    b[1, 1] = 8
    mask = np.array([[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(metrics.drift(a, b, mask), [20, 0, np.nan])


def frames_with(*levels):
    """Make frames of one start, each filled with one level."""
    return np.stack([np.full((1, 2, 2), level, np.uint8) for level in levels])[None]


def test_action_effects():
    real = frames_with(10, 20, 20)
    perfect = metrics.action_effects(real, real)
    assert (perfect.correlation, perfect.gain, perfect.told_apart) == pytest.approx((1, 1, 1))
    assert perfect.starts == 1
    half = metrics.action_effects(real, frames_with(50, 55, 55))
    assert (half.correlation, half.gain) == pytest.approx((1, 0.5))
    assert half.told_apart == 0.5  # all of them are nearer to 20
    wrong = metrics.action_effects(real, frames_with(20, 10, 10))
    assert (wrong.correlation, wrong.gain, wrong.told_apart) == pytest.approx((-1, 1, 0))
    deaf = metrics.action_effects(real, frames_with(14, 14, 14))
    assert (deaf.correlation, deaf.gain) == (0, 0)
    nothing = metrics.action_effects(frames_with(7, 7), frames_with(1, 2))
    assert nothing.starts == 0 and math.isnan(nothing.gain)


def test_spread_over_noise():
    def sample(level):
        obs = torch.full((2, 2, 3, 4, 4), 100, dtype=torch.uint8)
        obs[0, 1] = level
        return imagination.Imagined(obs, torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))

    valid = np.array([[True, True], [True, False]])
    assert measure.measure_spread([sample(100), sample(110)], valid) == pytest.approx([0, 50**0.5])


# --- the command line


def test_parse():
    assert cli.parse(Settings, []) == Settings()
    settings = cli.parse(Settings, ["game=Pong", "horizon=30", "checkpoint=a=b.pt", "num_denoising_steps=1"])
    assert (settings.game, settings.horizon, settings.checkpoint) == ("Pong", 30, "a=b.pt")
    assert settings.num_denoising_steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["horzon=3"], "unknown key horzon: did you mean horizon?"),
        (["--sede=3"], "unknown flag --sede: did you mean seed?"),
        (["xyzzy"], "arguments are written key=value, got 'xyzzy'"),
        (["horizon"], "arguments are written key=value, got 'horizon'"),
        (["horizon=many"], "horizon must be an integer, got 'many'"),
        (["horizon=0"], "horizon must be at least 1, got 0"),
        (["seed=-1"], "seed must be at least 0"),
        (["seed=1", "seed=2"], "key seed is given twice"),
        (["out="], "key out needs a value"),
        (["policy=expert", "out=unused"], "policy 'expert' is not one of auto, random, scripted"),
        (["game=Asterix", "policy=scripted", "out=unused"], "no scripted player for 'Asterix'"),
    ],
)
def test_wrong_arguments_give_one_line_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert error.count("\n") == 1


def test_help(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert usage.startswith("usage: python -m diamond_gym.evaluate [key=value ...]\n")
    assert "  num_denoising_steps=null" in usage


def test_the_policy_of_a_checkpoint(tmp_path):
    checkpoint = worlds.save_tiny_world(tmp_path / "world")
    policy = evaluation.find_player(checkpoint, "Breakout")
    assert isinstance(policy, ActorCriticPlayer)
    with pytest.raises(InvalidInputError, match="has 4 actions, Pong has 6: it plays another game"):
        evaluation.find_player(checkpoint, "Pong")
    assert isinstance(evaluation.find_player("auto", "Asterix"), RandomPlayer)


def test_a_world_of_another_frame_size_is_refused(tmp_path, capsys):
    agent = worlds.tiny_agent()
    agent.config.rew_end_model.img_size = 32
    save_world(
        tmp_path / "small",
        agent,
        game="Breakout",
        action_meanings=worlds.ACTION_MEANINGS,
        sampler=DiffusionSamplerConfig(num_steps_denoising=1),
        contexts=worlds.contexts(),
    )
    assert main([f"checkpoint={tmp_path / 'small'}", f"out={tmp_path / 'out'}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_failures_give_one_line_and_code_1(capsys, tmp_path):
    assert main([f"checkpoint={tmp_path / 'none.pt'}", f"out={tmp_path / 'out'}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert main([f"out={tmp_path / 'file' / 'out'}"]) == 1
    assert "cannot write to the folder" in capsys.readouterr().err


# --- held-out episodes and starts


def test_play_is_seeded_and_gives_whole_lives():
    played = heldout.play("Breakout", ScriptedBreakout(noise=1), num_episodes=6, seed=0)
    again = heldout.play("Breakout", ScriptedBreakout(noise=1), num_episodes=6, seed=0).episodes
    other = heldout.play("Breakout", ScriptedBreakout(noise=1), num_episodes=1, seed=1).episodes
    first, game = played.episodes, heldout.HELD_OUT_SEED
    assert played.seeds == [game, None, None, None, None, game + 1]
    assert len(first) == 6
    for a, b in zip(first, again, strict=True):
        assert a.is_finished
        assert a.final_observation is not None
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.act, b.act)
    assert torch.equal(first[1].obs[0], first[0].final_observation)  # the second life of the same game
    assert not torch.equal(first[5].obs[0], first[4].final_observation)  # a new game after five lives
    assert other[0].act.tolist() != first[0].act.tolist()


def test_an_episode_that_is_cut_short_ends_its_game():
    played = heldout.play("Pong", RandomPlayer(6), num_episodes=2, seed=0, max_steps=30)
    first = heldout.HELD_OUT_SEED
    assert played.seeds == [first, first + 1] and [len(x) for x in played.episodes] == [30, 30]
    assert played.episodes[0].trunc[-1] and not played.episodes[0].end.any()


def test_starts_are_spread_evenly_and_stop_at_the_end():
    episodes = [episode(13), episode(3), episode(40, seed=1)]
    starts = heldout.choose_starts(episodes, num_starts=9, num_conditioning=4, horizon=10)
    assert len(starts) == 6  # three each of two episodes; the one of three steps has no context
    # in the first episode they are at times 3, 8 (7.5 rounded to even) and 12
    for row, time in enumerate((3, 8, 12)):
        left = min(13 - time, 10)
        frames = heldout.all_frames(episodes[0])
        assert torch.equal(starts.obs[row], frames[time - 3 : time + 1])
        assert torch.equal(starts.act[row], episodes[0].act[time - 3 : time + 1])
        assert starts.act[row, -1] == starts.future_act[row, 0]
        assert starts.valid[row].tolist() == [True] * left + [False] * (10 - left)
        assert torch.equal(starts.future_obs[row, :left], frames[time + 1 : time + 1 + left])
        assert torch.equal(starts.future_rew[row, :left], episodes[0].rew[time : time + left].sign())
        assert starts.future_end[row].sum() == (time + 10 >= 13)
    assert starts.valid[3].all()
    assert starts.future_end[5].tolist() == [True] + [False] * 9
    assert starts.episode.tolist() == [0, 0, 0, 2, 2, 2]
    assert starts.time.tolist() == [3, 8, 12, 3, 21, 39]


def test_starts_need_a_long_enough_episode():
    with pytest.raises(InvalidInputError, match="all 2 episodes are shorter than the 4 frames"):
        heldout.choose_starts([episode(2), episode(3)], 5, 4, 5)


# --- other actions in the real game


def test_branches_are_what_the_game_does():
    held_out = heldout.play("Breakout", ScriptedBreakout(noise=1), num_episodes=3, seed=0)
    starts = heldout.choose_starts(held_out.episodes, num_starts=12, num_conditioning=4, horizon=6)
    found = branches.branch("Breakout", held_out, starts, num_starts=5, seed=0)
    assert found is not None and found.act.tolist() == [[0, 1, 2, 3]] * len(found.start)
    for row, frames in zip(found.start.tolist(), found.obs, strict=True):
        env = AtariEnv("Breakout", training=True)
        number, time = int(starts.episode[row]), int(starts.time[row])
        before = [act for past in held_out.episodes[:number] for act in past.act.tolist()] + (
            held_out.episodes[number].act[:time].tolist()
        )
        obs, _ = env.reset(seed=held_out.seeds[0])
        for act in before:
            obs, _, terminated, _, _ = env.step(act)
            if terminated:
                obs, _ = env.reset()
        assert np.array_equal(obs.transpose(2, 0, 1), starts.obs[row, -1])
        for _ in range(branches.NUM_STEPS):
            obs, *_ = env.step(3)
        assert np.array_equal(obs.transpose(2, 0, 1), frames[3])
    assert len({frames.numpy().tobytes() for frames in found.obs[0]}) >= 2


def test_random_play_is_what_the_game_does():
    held_out = heldout.play("Breakout", ScriptedBreakout(noise=1), num_episodes=3, seed=0)
    starts = heldout.choose_starts(held_out.episodes, num_starts=30, num_conditioning=4, horizon=6)
    found = branches.play_randomly("Breakout", held_out, starts, num_starts=20, num_steps=120, seed=0)
    assert found.act.shape == (20, 120) and found.end.any() and found.rew.abs().sum() > 0
    assert set(found.act.flatten().tolist()) == {0, 1, 2, 3}
    row = int(found.end.any(1).nonzero()[-1])
    number, time = int(starts.episode[found.start[row]]), int(starts.time[found.start[row]])
    env = AtariEnv("Breakout", training=True)
    for past in range(number):
        env.reset(seed=held_out.seeds[past])
        for act in held_out.episodes[past].act.tolist():
            env.step(act)
    env.reset(seed=held_out.seeds[number])
    for act in held_out.episodes[number].act[:time].tolist():
        env.step(act)
    last = int(found.end[row].long().argmax())
    for step, act in enumerate(found.act[row, : last + 1].tolist()):  # by itself, without its neighbours
        _, reward, terminated, _, _ = env.step(act)
        assert (np.sign(reward), terminated) == (found.rew[row, step], found.end[row, step])
    assert not found.rew[row, last + 1 :].any() and found.end[row].sum() == 1
    assert not found.obs[row, last + 1 :].any()


def test_a_player_that_goes_on_in_the_real_game_does_as_it_does_there():
    policy = ScriptedBreakout(noise=0.5)
    held_out = heldout.play("Breakout", policy, num_episodes=2, seed=0)
    starts = heldout.choose_starts(held_out.episodes, num_starts=8, num_conditioning=4, horizon=6)
    found = branches.play_on("Breakout", policy, held_out, starts, num_starts=8, num_steps=60)
    assert found.rew.shape == (8, 60) and found.rew.any()
    row = int(found.start[2])
    with closing(AtariEnv("Breakout", training=True)) as env:
        obs, _ = env.reset(seed=held_out.seeds[0])
        for act in held_out.episodes[0].act[: int(starts.time[row])].tolist():
            obs, *_ = env.step(act)
        policy.reset(row)
        for step in range(60):
            obs, reward, terminated, _, _ = env.step(policy.act(obs))
            assert (np.sign(reward), terminated) == (found.rew[2, step], found.end[2, step])
            assert np.array_equal(obs.transpose(2, 0, 1), found.obs[2, step])
            if terminated:
                break


def test_players_act_on_what_they_imagine(world_model):
    class Notes(RandomPlayer):
        """A player that acts on what it sees, and records it."""

        def __init__(self, num_actions):
            super().__init__(num_actions)
            self.notes = []
            seen.append(self.notes)

        def act(self, obs):
            self.notes.append((int(obs.sum()) % 4, obs))
            return self.notes[-1][0]

    seen = []
    starts = heldout.choose_starts([episode(40)], num_starts=3, num_conditioning=4, horizon=6)
    imaginer = Imaginer(world_model, 1, batch_size=2, progress=False)
    rows = torch.arange(3)
    played = imaginer.played(starts, rows, lambda: Notes(4), 5)
    acts = torch.tensor([[act for act, _ in notes] for notes in seen])
    again = imaginer.under(starts, rows, acts, "")
    for name in ("obs", "rew", "end"):
        assert torch.equal(getattr(played, name), getattr(again, name))
    for notes, first, future in zip(seen, starts.obs[:, -1:], played.obs, strict=True):
        frames = torch.cat([first, future[:-1]])
        assert np.array_equal(np.stack([obs for _, obs in notes]), frames.permute(0, 2, 3, 1).numpy())


def test_players_have_memories_of_their_own(world_model):
    policy = ScriptedBreakout(noise=0.5)
    held_out = heldout.play("Breakout", policy, num_episodes=2, seed=0)
    starts = heldout.choose_starts(held_out.episodes, num_starts=18, num_conditioning=4, horizon=8)
    alone, together = (
        evaluation._closed_loop(
            Imaginer(world_model, 0, size, progress=False), "Breakout", policy, held_out, starts
        )
        for size in (1, 3)
    )
    assert alone == together and alone["starts"] == 3


def test_many_actions_are_drawn_by_the_seed():
    held_out = heldout.play("Frostbite", RandomPlayer(18), num_episodes=1, seed=0)
    starts = heldout.choose_starts(held_out.episodes, num_starts=4, num_conditioning=4, horizon=6)
    one, same, other = (branches.branch("Frostbite", held_out, starts, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(one.act, same.act) and not torch.equal(one.act, other.act)
    assert one.act.shape[1] == branches.MAX_ACTIONS
    assert all(len(set(acts)) == branches.MAX_ACTIONS for acts in one.act.tolist())


def test_no_branch_where_the_episode_is_about_to_end():
    held_out = heldout.play("Breakout", ScriptedBreakout(noise=1), num_episodes=1, seed=0)
    starts = heldout.choose_starts(held_out.episodes, num_starts=1, num_conditioning=4, horizon=6)
    starts.valid[:, 1:] = False
    assert branches.branch("Breakout", held_out, starts, 1, seed=0) is None
    result = measure.measure_actions(None, None)
    assert result["starts"] == 0


# --- imagination


def test_imagination_does_not_depend_on_the_batch_size(world_model):
    starts = heldout.choose_starts([episode(12)], num_starts=3, num_conditioning=4, horizon=2)
    one, two, other = (
        Imaginer(world_model, seed, batch_size, progress=False).future(starts)
        for seed, batch_size in ((1, 3), (1, 2), (2, 3))
    )
    assert one.obs.shape == (3, 2, 3, 64, 64)
    assert one.rew.shape == one.end.shape == (3, 2)
    assert (one.obs.int() - two.obs.int()).abs().max() <= 2
    assert not torch.equal(one.obs, other.obs)


def test_imagination_takes_the_real_actions(world_model):
    starts = heldout.choose_starts([episode(12)], num_starts=2, num_conditioning=4, horizon=2)
    imagined = Imaginer(world_model, 0, 2, progress=False).future(starts)
    state = world_model.start(starts.obs, starts.act, torch.arange(2))
    state, first = world_model.step(state, starts.future_act[:, 0])
    _, second = world_model.step(state, starts.future_act[:, 1])
    assert torch.equal(imagined.obs, torch.stack([first.obs, second.obs], 1))
    assert torch.equal(imagined.rew, torch.stack([first.rew, second.rew], 1))


def test_other_actions_and_other_noise(world_model):
    starts = heldout.choose_starts([episode(12)], num_starts=3, num_conditioning=4, horizon=2)
    imaginer = Imaginer(world_model, 0, 2, progress=False)
    future = imaginer.future(starts)
    rows = torch.tensor([2, 0, 0])
    same = imaginer.under(starts, rows, starts.future_act[rows], "same")
    assert (same.obs.int() - future.obs[rows].int()).abs().max() <= 2
    acts = torch.stack([(starts.future_act[0] + k) % 4 for k in range(2)])
    one, other = imaginer.under(starts, rows[1:], acts, "other actions").obs
    assert not torch.equal(one, other)
    noise = imaginer.under(starts, rows, starts.future_act[rows], "other noise", sample=1)
    assert not torch.equal(noise.obs, same.obs)


def test_transitions_run_the_lstm_through_the_whole_episode(world_model, monkeypatch):
    episodes = [episode(30), episode(9, seed=1)]
    whole = imagination.predict_transitions(world_model, episodes)
    monkeypatch.setattr(imagination, "_CHUNK", 7)
    chunked = imagination.predict_transitions(world_model, episodes)
    assert len(whole.rew) == 30 + 9 - 2 * 3  # the first n - 1 = 3 of each warm up
    assert torch.equal(whole.rew, torch.cat([e.rew[3:] for e in episodes]).sign().long() + 1)
    assert whole.end.tolist() == [0] * 26 + [1] + [0] * 5 + [1]
    assert torch.equal(whole.predicted_rew, chunked.predicted_rew)
    assert torch.equal(whole.predicted_end, chunked.predicted_end)


# --- the report


@pytest.fixture(scope="module")
def real_starts():
    episodes = heldout.play("Breakout", ScriptedBreakout(noise=0.5), num_episodes=2, seed=0).episodes
    return heldout.choose_starts(episodes, num_starts=12, num_conditioning=4, horizon=6)


def test_a_perfect_imagination_scores_full_marks(real_starts):
    perfect = imagination.Imagined(real_starts.future_obs, real_starts.future_rew, real_starts.future_end)
    result = measure.measure("Breakout", real_starts, perfect)
    assert [row["step"] for row in result["steps"]] == [1, 2, 3, 4, 5, 6]
    for row in result["steps"]:
        assert row["psnr"] == row["psnr_of_mean_mse"] == pixels.PSNR_CAP
        assert row["paddle_within"] == row["ball_within"] == 1
        assert row["psnr_mean"] < row["psnr_repeat"] < pixels.PSNR_CAP
        assert row["drift"] == row["ball_error"] == row["paddle_error"] == 0
        assert row["ball_present"] == row["paddle_present"] == 1
        if row["step"] in (1, 3, 5, 6):
            assert row["ssim_mean"] < row["ssim_repeat"] < row["ssim"] == pytest.approx(1)
        else:
            assert math.isnan(row["ssim"])
        assert row["ball_frames"] <= row["frames"]
    returns = result["returns"]
    assert returns["real"].tolist() == returns["imagined"].tolist()
    assert returns["bias"] == 0
    assert returns["correlation"] == pytest.approx(1) or returns["real"].std() == 0


def test_a_black_imagination_shows_no_objects(real_starts):
    obs = torch.zeros_like(real_starts.future_obs)
    black = imagination.Imagined(obs, real_starts.future_rew * 0, real_starts.future_end)
    result = measure.measure("Breakout", real_starts, black)
    for step, row in enumerate(result["steps"]):
        valid = real_starts.valid[:, step]
        squares = real_starts.future_obs[valid, step].double().square().mean((1, 2, 3))
        assert row["paddle_within"] == row["ball_within"] == row["ball_present"] == 0
        assert math.isnan(row["ball_error"])
        real = real_starts.future_obs[valid, step].double()
        assert row["drift"] == pytest.approx(real.mean().item())
        assert row["psnr"] == pytest.approx((10 * torch.log10(255**2 / squares)).mean().item(), abs=1e-3)
        assert row["psnr_of_mean_mse"] == pytest.approx(10 * math.log10(255**2 / squares.mean()), abs=1e-3)


def test_other_games_have_no_objects(real_starts):
    perfect = imagination.Imagined(real_starts.future_obs, real_starts.future_rew, real_starts.future_end)
    row = measure.measure("Asterix", real_starts, perfect)["steps"][0]
    assert not any("_within" in name for name in row)


def test_shown_steps():
    assert measure.shown_steps(15) == [1, 3, 5, 15]
    assert measure.shown_steps(20) == [1, 3, 5, 15, 20]
    assert measure.shown_steps(50) == [1, 3, 5, 15, 30, 50]


def test_json_has_null_for_nan(tmp_path):
    report.write_json({"a": np.nan, "b": [np.float32(0.5), np.int64(3)], "c": np.eye(2)}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [0.5, 3], "c": [[1, 0], [0, 1]]}


def test_pictures_need_no_backend(tmp_path):
    code = (
        "import os, sys, pathlib; from diamond_gym.evaluate import pictures; pictures.require_matplotlib(); "
    )
    code += "pictures.write_figure(pictures.new_figure((1, 1)), pathlib.Path(sys.argv[1])); "
    code += "assert os.environ['MPLBACKEND'] == 'of a notebook'"
    environment = os.environ | {"MPLBACKEND": "of a notebook"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], env=environment, check=True)
    assert (tmp_path / "x.png").stat().st_size > 0


def test_the_whole_command(tmp_path, capsys):
    checkpoint = worlds.save_tiny_world(tmp_path / "world")
    out = tmp_path / "out"
    arguments = [f"checkpoint={checkpoint}", f"out={out}", "policy=random", "episodes=2", "starts=4"]
    assert main([*arguments, "horizon=3", "device=cpu", "num_denoising_steps=1"]) == 0
    result = json.loads((out / "fidelity.json").read_text())
    assert result["num_starts"] == 4
    assert result["num_denoising_steps"] == 1
    assert [row["frames"] for row in result["steps"]] == [4, 2, 2]
    assert np.sum(result["reward"]["confusion"]) == np.sum(result["end"]["confusion"])
    assert np.sum(result["end"]["confusion"]) == result["num_real_steps"] - 2 * 3
    assert len(result["returns"]["imagined"]) == 4
    text = capsys.readouterr().out
    assert f"{result['steps'][2]['psnr']:.2f}" in text
    for picture in ("curves.png", "film.png"):
        assert cv2.imread(str(out / picture)).std() > 0
    files = ["curves.png", "fidelity.json", "film.mp4", "film.png"]
    assert sorted(file.name for file in out.iterdir()) == files
    film = cv2.VideoCapture(str(out / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert len(result["spread"]) == 3 and result["spread"][0] > 0
    assert 0 <= result["actions"]["told_apart"] <= 1
    for player in ("closed_loop", "random_play"):
        assert result[player]["horizon"] == 6 and result[player]["imagined"]["frames"] > 0
        assert result[player]["real"]["at_paddle"].keys() == {"lost", "returned", "vanished", "balls"}
    assert set(result["single_steps"]) == {"free flight", "paddle", "bricks", "walls"}
    assert result["bounces"].keys() == result["single_steps"].keys()
    assert result["overlooked_ends"]["starts"] == 2 and 0 <= result["overlooked_ends"]["share"] <= 1
    card_and_comparison(out, tmp_path / "world", capsys)


def card_and_comparison(out, world, capsys):
    """Write the card and compare: unchanged, with a changed number, and with other settings."""
    assert card.main([str(out / "fidelity.json"), str(world)]) == 0
    text = (world / "README.md").read_text()
    assert "1 denoising step at play" in text and "told apart" in text and "Random buttons" in text
    assert "player itself, acting on imagined frames" in text
    kept = world / "fidelity.json"
    assert str(world) not in kept.read_text()
    assert compare.main([str(out / "fidelity.json"), str(world)]) == 0
    capsys.readouterr()
    result = json.loads(kept.read_text())
    result["steps"][0]["psnr"] += 0.4
    result["reward"]["f1"] = 0.99
    kept.write_text(json.dumps(result))
    assert compare.main([str(out / "fidelity.json"), str(world)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("steps/step 1/psnr: ") and "reward/f1: " in lines[1]
    kept.write_text(json.dumps(result | {"settings": result["settings"] | {"seed": 5}}))
    assert compare.main([str(out / "fidelity.json"), str(world)]) == 2
    assert "error: seed is 0 now and was 5" in capsys.readouterr().err

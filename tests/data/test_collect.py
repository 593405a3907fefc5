"""Collection: episodes record what a policy saw and did, in any environment and number of processes."""

import operator
import os
import subprocess
import sys
from itertools import zip_longest

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from diamond_gym.data.collect import CollectReport, collect
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import InvalidInputError, UnknownGameError
from diamond_gym.games.atari import AtariEnv

TOP_LEFT_PIXEL = operator.itemgetter((0, 0, 0))  # 0 in Breakout: a policy that can be pickled


class Counting(gymnasium.Env):
    """Frame t of episode k is filled with 10 k + t, rewards are actions, and episodes have 3 steps.

    Every other one is truncated. All frames are drawn into the same array.
    """

    observation_space = Box(0, 255, (64, 64, 3), np.uint8)
    action_space = Discrete(3)

    def __init__(self):
        self.episode, self.time, self.seeds = -1, 0, []
        self._screen = np.zeros((64, 64, 3), np.uint8)

    def _frame(self):
        self._screen[...] = (10 * self.episode + self.time) % 256
        return self._screen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.time = self.episode + 1, 0
        return self._frame(), {}

    def step(self, action):
        self.time += 1
        done, cut = self.time == 3, self.episode % 2 == 1
        return self._frame(), float(action), done and not cut, done and cut, {}


class Remembering:
    """A policy that counts the frames since its reset."""

    def __init__(self):
        self.seeds = []
        self.frames = 0

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)
        self.frames = 0

    def __call__(self, obs: np.ndarray) -> int:
        self.frames += 1
        return self.frames % 3


def quietly(game, policy, **options) -> CollectReport:
    return collect(game, policy, **{"seed": 0, "progress": False, **options})


def assert_same(one: list[Episode], other: list[Episode]) -> None:
    for a, b in zip(one, other, strict=True):
        for name in ("obs", "act", "rew", "end", "trunc"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.info.keys() == b.info.keys()


def test_episodes_say_what_happened():
    report = quietly(Counting(), lambda obs: int(obs[0, 0, 0]) % 3, num_steps=8)
    assert report.lengths == [3, 3, 2]
    first, second, last = report.episodes
    assert first.obs.shape == (3, 3, 64, 64)
    times = [episode.obs[:, 0, 0, 0].tolist() for episode in report.episodes]
    assert times == [[0, 1, 2], [10, 11, 12], [20, 21]]
    assert second.act.tolist() == [1, 2, 0]
    assert second.rew.tolist() == [1, 2, 0]
    assert (first.end.tolist(), first.trunc.tolist()) == ([0, 0, 1], [0, 0, 0])
    assert (second.end.tolist(), second.trunc.tolist()) == ([0, 0, 0], [0, 0, 1])
    assert first.final_observation.unique().tolist() == [3]
    assert second.final_observation.unique().tolist() == [13]
    assert not last.is_finished and last.final_observation is None
    assert report.returns == [3, 3, 2]
    assert (report.num_steps, report.num_episodes) == (8, 3)
    assert report.steps_per_second == 8 / report.seconds


def test_frames_are_turned_channels_first():
    report = quietly("Breakout", lambda _: 1, num_steps=3)
    obs, _ = AtariEnv("Breakout", training=True).reset(seed=0)
    np.testing.assert_array_equal(report.episodes[0].obs[0].permute(1, 2, 0).numpy(), obs)


def test_a_policy_with_memory_is_reset_with_its_own_seed_at_every_episode():
    env, policy = Counting(), Remembering()
    report = quietly(env, policy, num_steps=9)
    assert [episode.act.tolist() for episode in report.episodes] == [[1, 2, 0]] * 3
    assert len(set(policy.seeds)) == len(policy.seeds)
    assert env.seeds == [0, None, None], "one seed, then the environment continues without one"
    again = Remembering()
    quietly(Counting(), again, num_steps=9)
    assert again.seeds == policy.seeds


def test_a_seed_fixes_everything():
    one, same, other = (
        quietly("Breakout", lambda _: 1, num_steps=120, epsilon=0.5, seed=seed).episodes for seed in (1, 1, 2)
    )
    assert_same(one, same)
    assert not torch.equal(one[0].obs[:5], other[0].obs[:5])


@pytest.mark.parametrize(("training", "ends"), [(True, 5), (False, 1)])
def test_lost_lives_end_training_episodes_only(training, ends):
    report = quietly("Breakout", lambda _: 1, num_steps=200, training=training)
    steps_to_game_over = sum(report.lengths[:ends])
    full = quietly("Breakout", lambda _: 1, num_steps=steps_to_game_over, training=False)
    assert full.lengths == [steps_to_game_over]
    assert full.episodes[0].is_finished


@pytest.mark.parametrize(("epsilon", "low", "high"), [(0.0, 0, 0), (0.25, 0.12, 0.22), (1.0, 0.6, 0.73)])
def test_epsilon_is_the_share_of_random_actions(epsilon, low, high):
    policy = Remembering()
    report = quietly(Counting(), policy, num_steps=600, epsilon=epsilon)
    act = torch.cat([episode.act for episode in report.episodes])
    others = (act != torch.tensor([1, 2, 0]).repeat(200)).float().mean()  # a third of random ones agree
    assert low <= others <= high
    assert policy.frames == 3, "the policy sees every frame, also when a random action is taken"


def test_episodes_go_to_the_dataset(tmp_path):
    dataset = EpisodeDataset(tmp_path, create=True)
    report = quietly(Counting(), lambda _: 2, num_steps=8, dataset=dataset)
    assert report.episodes == []
    reopened = EpisodeDataset(tmp_path)
    reopened.check()
    assert reopened.lengths.tolist() == report.lengths == [3, 3, 2]
    assert reopened.reward_counts == {-1: 0, 0: 0, 1: 8}
    assert_same(list(reopened), quietly(Counting(), lambda _: 2, num_steps=8).episodes)
    quietly(Counting(), lambda _: 2, num_steps=3, dataset=dataset)
    assert EpisodeDataset(tmp_path).lengths.tolist() == [3, 3, 2, 3]


def test_an_interrupted_collection_keeps_the_finished_episodes(tmp_path):
    def tires(obs):
        if obs[0, 0, 0] == 21:
            raise KeyboardInterrupt
        return 0

    dataset = EpisodeDataset(tmp_path, create=True)
    with pytest.raises(KeyboardInterrupt):
        quietly(Counting(), tires, num_steps=100, dataset=dataset)
    assert EpisodeDataset(tmp_path).lengths.tolist() == [3, 3]


def test_processes_share_the_work_and_their_order_is_fixed():
    options = {"epsilon": 1.0, "training": True}
    report = quietly("Breakout", TOP_LEFT_PIXEL, num_steps=201, num_workers=2, **options)
    seeds = np.random.SeedSequence(0).generate_state(2).tolist()
    first, second = (
        quietly("Breakout", TOP_LEFT_PIXEL, num_steps=n, seed=seed, **options).episodes
        for n, seed in zip((101, 100), seeds, strict=True)
    )
    pairs = zip_longest(first, second)
    assert_same(report.episodes, [episode for pair in pairs for episode in pair if episode is not None])
    assert report.num_steps == 201


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_here():
    with pytest.raises(InvalidInputError, match=r"integer in 0\.\.3, it returned"):
        quietly("Breakout", operator.itemgetter(0), num_steps=10, num_workers=2)


@pytest.mark.slow
def test_a_killed_process_is_told(tmp_path):
    script = tmp_path / "kill.py"
    script.write_text(
        "import os, signal\n"
        "from diamond_gym.data.collect import collect\n"
        "def policy(obs):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        collect('Breakout', policy, num_steps=10, seed=0, num_workers=2, progress=False)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    result = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.startswith("DiamondGymError a worker process was killed"), result.stderr


def test_the_bar_shows_steps(capsys, monkeypatch):
    monkeypatch.setattr("diamond_gym.progress._is_watched", lambda: True)
    collect(Counting(), lambda _: 0, num_steps=7, seed=0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "7/7" in captured.err and "step/s" in captured.err
    collect(Counting(), lambda _: 0, num_steps=7, seed=0, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("choice", [-1, 3, 1.0, None, "left", np.array([0, 1])])
def test_an_invalid_action_is_refused(choice):
    with pytest.raises(InvalidInputError, match=r"integer in 0\.\.2, it returned"):
        quietly(Counting(), lambda _: choice, num_steps=5)


@pytest.mark.parametrize("choice", [np.int64(1), torch.tensor(1), np.array(1), np.uint8(1)])
def test_any_integer_is_an_action(choice):
    assert quietly(Counting(), lambda _: choice, num_steps=2).episodes[0].act.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": -3}, "num_steps"),
        ({"num_steps": 2.5}, "num_steps"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
        ({"epsilon": 1.5}, "epsilon"),
        ({"epsilon": "often"}, "epsilon"),
        ({"dataset": "folder"}, "dataset must be an EpisodeDataset or None, got 'folder'"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"num_workers": 0}, "num_workers"),
        ({"policy": 3}, "player must be a Player, or a callable from a frame to an action, got 3"),
        ({"num_workers": 2}, "needs a game's name, got Counting"),
        ({"game": "Breakout", "num_workers": 2}, "can be pickled"),
        ({"game": 3}, "a name or a gymnasium.Env, got int"),
        ({"game": gymnasium.make("CartPole-v1")}, r"must give uint8 \(h, w, 3\) or \(h, w, 1\) frames"),
    ],
)
def test_bad_arguments_are_refused(change, what):
    arguments = {"game": Counting(), "policy": lambda _: 0, "num_steps": 3, **change}
    with pytest.raises(InvalidInputError, match=what):
        quietly(arguments.pop("game"), arguments.pop("policy"), **arguments)


def test_an_unknown_game_is_refused_before_anything_starts():
    for num_workers in (1, 2):
        with pytest.raises(UnknownGameError, match="Breakout"):
            quietly("Brakeout", TOP_LEFT_PIXEL, num_steps=3, num_workers=num_workers)

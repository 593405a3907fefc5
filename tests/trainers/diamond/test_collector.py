"""The policy plays the real game: every step is stored once, and a saved collector resumes exactly."""

import io

import pytest
import torch
from tqdm import tqdm

from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.games.atari import num_actions
from diamond_gym.world.models import ActorCritic, ActorCriticConfig
from trainers.diamond.config import SamplingConfig
from trainers.diamond.replay import Replay
from trainers.diamond.rollout import Collector, RealGames, play_whole_games

GAME = "Breakout"


@pytest.fixture(scope="module")
def actor_critic():
    torch.manual_seed(0)
    config = ActorCriticConfig(lstm_dim=8, channels=[8, 8], down=[1, 1], num_actions=num_actions(GAME))
    network = ActorCritic(config).eval()
    torch.nn.init.normal_(network.actor_linear.weight)  # as they start, all actions are equally likely
    return network


def collector(actor_critic, num_envs=2, training=True, seed=0, keeps_frames=True, limit=None, **sampling):
    return Collector(
        actor_critic,
        RealGames(GAME, num_envs, training=training, seed=seed),
        SamplingConfig(**sampling),
        seed=seed,
        keeps_frames=keeps_frames,
        max_episode_steps=limit,
    )


def collect(collector, dataset, replay, num_steps, should_stop=lambda: False):
    return collector.collect(dataset, replay, num_steps, bar=tqdm(disable=True), should_stop=should_stop)


def new_dataset(folder):
    return EpisodeDataset(folder, create=True)


def assert_same_episodes(one, other):
    assert len(one) == len(other)
    for x, y in zip(one, other, strict=True):
        for name in ("obs", "act", "rew", "end", "trunc"):
            assert torch.equal(getattr(x, name), getattr(y, name)), name
        assert x.info.keys() == y.info.keys()


def test_every_step_is_stored_once_on_disk_and_in_memory(actor_critic, tmp_path):
    dataset, replay = new_dataset(tmp_path / "x"), Replay()
    player = collector(actor_critic, epsilon=0.5)
    first = collect(player, dataset, replay, 101)
    assert first.num_steps == dataset.num_steps == replay.num_steps == 102
    report = first + collect(player, dataset, replay, 100)
    assert report.num_steps == dataset.num_steps == replay.num_steps == 202
    dataset.check()
    read = EpisodeDataset(tmp_path / "x")
    assert read.lengths.tolist() == replay.lengths.tolist()
    finished = [episode for episode in read if episode.is_finished]
    assert len(read) - 2 <= len(finished) == len(report.returns) >= 2
    assert sorted(report.lengths) == sorted(map(len, finished))
    assert all(episode.final_observation is not None for episode in finished)
    for i, episode in enumerate(read):
        segment = replay.segments(*torch.tensor([[i], [0]]).numpy(), len(episode))
        assert torch.equal(segment.obs[0], episode.obs) and torch.equal(segment.act[0], episode.act)


def test_a_saved_collector_goes_on_exactly(actor_critic, tmp_path):
    straight, stopped = new_dataset(tmp_path / "a"), new_dataset(tmp_path / "b")
    collect(collector(actor_critic, epsilon=0.1), straight, Replay(), 240)
    player, replay = collector(actor_critic, epsilon=0.1), Replay()
    asked = iter([False] * 35 + [True] * 9)
    collect(player, stopped, replay, 240, should_stop=lambda: next(asked))
    assert stopped.num_steps + player.num_pending == 70
    file = io.BytesIO()
    torch.save(player.state_dict(), file)
    file.seek(0)
    stopped = EpisodeDataset(tmp_path / "b")
    player = collector(actor_critic, seed=9, epsilon=0.1)
    player.load_state_dict(torch.load(file, weights_only=True), stopped)
    collect(player, stopped, Replay(stopped), 170)
    assert_same_episodes(straight, stopped)


def test_a_low_temperature_prefers_the_likeliest_action(actor_critic, tmp_path):
    def actions(**sampling):
        dataset = new_dataset(tmp_path / str(sampling))
        collect(collector(actor_critic, num_envs=1, **sampling), dataset, Replay(), 60)
        return torch.cat([episode.act for episode in dataset])

    greedy, cold, random = (actions(temperature=t) for t in (0, 1e-6, 1e6))
    assert torch.equal(greedy, cold)
    assert len(random.unique()) == 4
    assert not torch.equal(actions(temperature=0, epsilon=1), greedy)


@pytest.mark.parametrize("keeps_frames", [False, True])
def test_whole_games_are_shared_out(actor_critic, keeps_frames):
    player = collector(actor_critic, num_envs=2, training=False, epsilon=1.0, keeps_frames=keeps_frames)
    episodes = []
    report = play_whole_games(
        player, 3, bar=tqdm(disable=True), should_stop=lambda: False, on_episode=episodes.append
    )
    assert len(report.returns) == 3 and len(episodes) == 3 * keeps_frames
    assert min(report.lengths) > 100, "five lives, not one"
    metrics = report.metrics()
    assert metrics["num_episodes"] == 3 and metrics["return"] == sum(report.returns) / 3
    assert metrics["return_low"] <= metrics["return"] <= metrics["return_high"]
    assert [episode.total_reward for episode in episodes] == report.returns[: len(episodes)]


def test_a_game_that_never_ends_is_cut_short(actor_critic):
    episodes = []
    player = collector(actor_critic, training=False, limit=40)
    report = play_whole_games(
        player, 4, bar=tqdm(disable=True), should_stop=lambda: False, on_episode=episodes.append
    )
    assert report.lengths == [40] * 4
    assert all(episode.trunc[-1] and not episode.end.any() for episode in episodes)
    assert not torch.equal(player.games.obs[0], episodes[-2].final_observation), "a new game has begun"

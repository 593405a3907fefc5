"""The steps in which something happens to the ball are found in recordings, and a training may draw them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import DatasetError, InvalidInputError
from diamond_gym.evaluate import events, heldout
from diamond_gym.evaluate.ball import find_events
from diamond_gym.players.player import player
from tests import worlds
from trainers.diamond.config import DenoiserTrainingConfig, parse
from trainers.diamond.data import load_step_weights
from trainers.diamond.learner import DenoiserObjective, Draw, autocast_of
from trainers.diamond.replay import Replay
from trainers.diamond.run import prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two lives of Breakout; the second recording breaks off."""
    policy = player("scripted", "Breakout", 4, noise=0.1)
    whole, cut = heldout.play("Breakout", policy, 2, seed=0, max_steps=150).episodes
    parts = ("obs", "act", "rew", "end", "trunc")
    cut = Episode(**{name: getattr(cut, name)[:80] for name in parts})
    dataset = EpisodeDataset(tmp_path_factory.mktemp("events") / "train", create=True)
    dataset.extend([whole, cut])
    return dataset


@pytest.fixture(scope="module")
def weights(dataset):
    path = dataset.path.parent / "weights.safetensors"
    assert events.main([f"dataset={dataset.path}", "game=Breakout", f"out={path}"]) == 0
    return path


def test_every_kind_is_drawn_as_often_as_its_share_where_the_ball_is(dataset, weights):
    content = load_file(weights)
    assert len(content["weights"]) == dataset.num_steps
    first = 0
    shares = {}
    for episode in dataset:
        ball, happens = find_events("Breakout", episode)
        for kind, flags in happens.items():
            steps = np.flatnonzero(flags[:-1])
            shares[kind] = shares.get(kind, 0) + content["weights"][first + 1 + steps].sum().item()
            places = content["places"][first + 1 + steps].numpy()
            assert np.abs(places - ball[steps][:, ::-1]).max(initial=0) <= 0.5
        assert content["weights"][first] == 0, "nothing foretells an episode's first frame"
        first += len(episode)
    expected = {kind: events.SHARES["Breakout"][kind] for kind in shares}
    assert shares == pytest.approx(expected, abs=0.05)


def test_a_ball_that_comes_or_is_away_is_drawn_where_it_appears_next(dataset, weights):
    """Else a training forgets serves: nothing of them would be drawn."""
    content, first, checked = load_file(weights), 0, 0
    for episode in dataset:
        ball, _ = find_events("Breakout", episode)
        seen = ~np.isnan(ball).any(1)
        for step in np.flatnonzero(~seen[: len(episode) - 1]):
            later = np.flatnonzero(seen[step:])
            if len(later):
                assert content["weights"][first + 1 + step] > 0
                place = content["places"][first + 1 + step].numpy()
                assert np.abs(place - ball[step + later[0]][::-1]).max() <= 0.5
                checked += 1
        first += len(episode)
    assert checked >= 2


def test_serves_have_a_share_of_their_own(dataset, weights):
    content, first, drawn = load_file(weights)["weights"], 0, 0.0
    for episode in dataset:
        ball, _ = find_events("Breakout", episode)
        seen = ~np.isnan(ball).any(1)
        for step in range(len(episode) - 1):
            if seen[step + 1] and not seen[max(0, step - 3) : step + 1].any():
                drawn += content[first + 1 + step].item()
        first += len(episode)
    all_kinds = events.weigh_steps("Breakout", dataset)[0].sum()
    assert drawn == pytest.approx(events.SHARES["Breakout"]["serve"] / all_kinds, abs=1e-4)


def test_each_of_several_datasets_has_its_share_of_the_weight(dataset, weights, tmp_path):
    parts = [(dataset.path, 0.25), (dataset.path, 0.75)]
    assert events.write_weights("Breakout", parts, tmp_path / "both.safetensors") == 2 * dataset.num_steps
    one, both = load_file(weights), load_file(tmp_path / "both.safetensors")
    first, second = both["weights"].double().split(dataset.num_steps)
    assert torch.allclose(second, 3 * first) and second.sum().item() == pytest.approx(0.75)
    assert torch.allclose(first * one["weights"].sum(), 0.25 * one["weights"].double())
    assert torch.equal(both["places"], torch.cat([one["places"]] * 2))


def test_the_steps_after_pongs_paddle_have_a_share_of_their_own(monkeypatch):
    """The opponent answers there to a ball that is far from it."""
    shares = dict.fromkeys(events.SHARES["Pong"], 0.0) | {"after the paddle": 1.0}
    monkeypatch.setitem(events.SHARES, "Pong", shares)
    policy = player("scripted", "Pong", 6, noise=0.1)
    episode = heldout.play("Pong", policy, 1, seed=0, max_steps=300).episodes[0]
    weights, _ = events.weigh_steps("Pong", [episode])
    turns = np.flatnonzero(find_events("Pong", episode)[1]["paddle"])
    expected = {turn + later + 1 for turn in turns for later in (1, 2)} & set(range(len(weights)))
    assert len(turns) >= 2 and set(np.flatnonzero(weights)) == expected
    assert weights.sum() == pytest.approx(1, abs=1e-5)


def test_a_training_draws_by_them(dataset, weights):
    config = parse(["preset=smoke", "game=Breakout", "denoiser.training.crop_size=32"]).denoiser
    config.training.crop_fraction, config.training.crop_batch_size = 1.0, 16
    config.training.hard_fraction = 1.0
    replay = Replay(iter(dataset))
    given = load_step_weights(weights, int(replay.lengths.sum()), config.training.hard_fraction)
    objective = DenoiserObjective(
        worlds.tiny_agent().denoiser,
        config,
        Draw(config.training, False, CPU),
        autocast_of(None, CPU),
        given=given,
    )
    batch = objective.example(replay, np.random.default_rng(0), 0).batch
    n = worlds.NUM_STEPS_CONDITIONING
    first = replay.lengths.cumsum() - replay.lengths
    predicted = first[batch["episode"]] + batch["start"].numpy() + n
    assert (given.weights[predicted] > 0).all()
    inside = torch.from_numpy(given.places[predicted].astype(int)) - batch["corner"]
    assert ((inside >= 0) & (inside < 32)).all(), "the crop shows the ball"
    assert not objective.hard_steps.weights(replay.lengths).any(), "nothing is noted beside them"


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "no weights of steps; write them with python -m diamond_gym.evaluate.events"),
        ({"weights": torch.ones(5), "places": torch.zeros(4, 2, dtype=torch.uint8)}, "no weights of steps"),
        ({"weights": torch.zeros(5), "places": torch.zeros(5, 2, dtype=torch.uint8)}, "one above 0"),
        ({"weights": torch.full((5,), -1.0), "places": torch.zeros(5, 2, dtype=torch.uint8)}, "at least 0"),
        (
            {"weights": torch.ones(5), "places": torch.zeros(5, 2, dtype=torch.uint8)},
            "weights of 5 steps, but there are 6 to train on; make them from the same episodes",
        ),
    ],
)
def test_other_weights_are_refused(tmp_path, content, message):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(DatasetError, match=message):
        load_step_weights(tmp_path / "x.safetensors", 6, 1.0)


def test_missing_or_broken_weights_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.safetensors"):
        load_step_weights(tmp_path / "none.safetensors", 6, 1.0)
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(DatasetError, match=r"broken\.safetensors"):
        load_step_weights(tmp_path / "broken.safetensors", 6, 1.0)


def test_missing_weights_are_found_before_any_work():
    given = ["denoiser.training.step_weights=none.safetensors", "denoiser.training.hard_fraction=1"]
    config = parse(["game=Breakout", "preset=sharpen", *given])
    with pytest.raises(DatasetError, match=r"step_weights=/.*none\.safetensors: there is no such file"):
        prepare(config)


def test_weights_without_a_share_are_refused():
    with pytest.raises(InvalidInputError, match="hard_fraction of the segments is drawn: it must be above 0"):
        DenoiserTrainingConfig(step_weights="x.safetensors")


def test_a_dataset_without_episodes_is_refused(tmp_path, capsys):
    EpisodeDataset(tmp_path / "empty", create=True)
    assert events.main([f"dataset={tmp_path / 'empty'}", f"out={tmp_path / 'x.safetensors'}"]) == 1
    assert "no dataset at" in capsys.readouterr().err


def test_a_dataset_that_shows_no_ball_is_refused(dataset, tmp_path, capsys):
    """Such as one of another game: there is no place to cut crops around."""
    blank = EpisodeDataset(tmp_path / "blank", create=True)
    episode = next(iter(dataset))
    zeros = torch.zeros_like(episode.obs)
    blank.append(Episode(zeros, episode.act, episode.rew, episode.end, episode.trunc))
    assert events.main([f"dataset={blank.path}", f"out={tmp_path / 'x.safetensors'}"]) != 0
    assert "no ball is seen" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_game_whose_ball_cannot_be_found_is_refused(dataset, tmp_path, capsys):
    arguments = [f"dataset={dataset.path}", "game=Boxing", f"out={tmp_path / 'x.safetensors'}"]
    assert events.main(arguments) == 2
    assert "accepted are Breakout, Pong" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""`python -m trainers.contexts`: start contexts, some of them shortly before something is lost."""

import numpy as np
import pytest

from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import DatasetError, InvalidInputError
from tests.checkpoints.test_contexts import numbered_episode, steps_of
from trainers.contexts import ContextsSettings, cut, main


@pytest.fixture
def lost():
    """An episode of 30 steps that ends, and an unfinished one of 40 that loses a point at step 9."""
    ends, loses = numbered_episode(0, 30), numbered_episode(1, 40)
    ends.end[-1] = 1
    loses.rew[9] = -2
    return [ends, loses]


def made(episodes, max_contexts, before_losses):
    return cut(
        episodes, max_contexts=max_contexts, before_losses=before_losses, num_steps_conditioning=4, seed=0
    )


def test_a_share_lies_before_losses_the_rest_anywhere(lost):
    bank = made(lost, 20, 0.5)
    episode, step = (x[:, -1] for x in steps_of(bank))
    ahead = np.where(episode == 0, 29, 9) - step
    assert len(bank) == 20 and ((ahead[:10] >= 4) & (ahead[:10] <= 16)).all()
    assert step[10:].max() > 30


def test_there_are_no_more_than_the_recordings_hold(lost):
    assert (
        len(made(lost, 1000, 1.0)) == 13 + 3
    )  # 4 to 16 steps before the end; steps 3, 4, 5 before the point
    assert len(made(lost, 1000, 0.9)) == 16 + (27 + 37)
    assert len(made([numbered_episode(2, 10)], 100, 0.65)) == 7  # where nothing is lost


def test_recordings_without_anything_to_cut(lost):
    with pytest.raises(DatasetError, match="have no window of 4 steps in them"):
        made([numbered_episode(i, 2) for i in range(2)], 10, 0.5)
    with pytest.raises(DatasetError, match="before a loss: record more"):
        made([numbered_episode(0, 20)], 10, 1.0)


def test_of_recorded_episodes_from_the_command_line(lost, tmp_path, capsys):
    EpisodeDataset(tmp_path / "episodes", create=True).extend(lost)
    out = tmp_path / "bank.safetensors"
    assert main([f"episodes={tmp_path / 'episodes'}", f"out={out}", "max_contexts=20"]) == 0
    assert capsys.readouterr().out == f"wrote {out}: 20 contexts\n"
    again = made(lost, 20, 0.65)
    np.testing.assert_array_equal(ContextBank.load(out).obs, again.obs)


def test_of_games_played_for_it(tmp_path):
    out = tmp_path / "bank.safetensors"
    assert main(["game=breakout", f"out={out}", "num_steps=300", "max_contexts=30"]) == 0
    bank = ContextBank.load(out)
    assert bank.obs.shape[1:] == (4, 64, 64, 3) and 10 < len(bank) <= 30


def test_of_a_game_without_a_scripted_player(tmp_path):
    out = tmp_path / "bank.safetensors"
    assert main(["game=Freeway", f"out={out}", "num_steps=60", "max_contexts=30", "before_losses=0"]) == 0
    assert len(ContextBank.load(out)) == 30


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"before_losses": -0.1}, "before_losses must be a share from 0 to 1, got -0.1"),
        ({"max_contexts": 0}, "max_contexts must be at least 1"),
        ({"max_contexts": 10_923}, "10,923 contexts of frames .* at most 10,922 do"),
        ({"max_contexts": 5_462, "num_steps_conditioning": 8}, "at most 5,461 do"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(InvalidInputError, match=message):
        ContextsSettings(**given)


def test_what_goes_wrong_is_one_line(tmp_path, capsys):
    assert main(["game=Nonsense"]) == 2
    assert main([f"episodes={tmp_path / 'nowhere'}", f"out={tmp_path / 'x'}"]) == 1
    assert main(["share=1"]) == 2
    (tmp_path / "file").touch()
    assert main([f"out={tmp_path / 'file' / 'x'}"]) == 1  # before anything is played
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
    assert main(["--help"]) == 0 and "before_losses=0.65" in capsys.readouterr().out

"""Steps with large errors are remembered, drawn again, and forgotten once they are predicted well."""

import numpy as np
import pytest
import torch

from diamond_gym.errors import InvalidInputError
from tests import worlds
from tests.recordings import episode
from trainers.diamond.config import parse
from trainers.diamond.learner import DenoiserObjective, Draw, autocast_of
from trainers.diamond.replay import HardSteps, Replay, StepErrors

CPU = torch.device("cpu")


def seen(episode, time, error, **more):
    """Return errors of steps that are otherwise alike."""
    zeros = torch.zeros_like(time)
    others = {"c_noise": zeros, "kind": zeros, "row": zeros, "column": zeros, "is_usual": zeros == 0}
    return StepErrors(**{"episode": episode, "time": time, "error": error} | others | more)


def note(hard, errors):
    """Note errors by (episode, time)."""
    places = torch.tensor(list(errors), dtype=torch.int64).reshape(-1, 2)
    hard.note(seen(places[:, 0], places[:, 1], torch.tensor(list(errors.values()))))


def test_the_last_error_of_a_step_counts():
    hard, lengths = HardSteps(), np.array([3, 2])
    assert not hard.weights(lengths).any()
    note(hard, {(1, 1): 0.5, (0, 1): 0.5})
    note(hard, {(1, 1): 0.125})
    note(hard, {})
    weights = hard.weights(lengths).copy()
    np.testing.assert_array_equal(weights != 0, [0, 1, 0, 0, 1])
    assert weights[1] == 1 and weights[4] == pytest.approx(0.25, rel=0.05)
    again = HardSteps()
    again.load_state_dict(hard.state_dict())
    np.testing.assert_array_equal(again.weights(lengths), weights)
    note(hard, {(0, 1): 0.0})
    assert again.weights(lengths)[1] == weights[1], "a state is a copy"


def test_errors_are_compared_with_those_of_their_kind_and_noise_level():
    hard, lengths = HardSteps(), np.array([400])
    hard.weights(lengths)
    rng = np.random.default_rng(0)
    c_noise = torch.tensor([-0.25, 0.4]).repeat(200)  # low and high noise, in turn
    kind = torch.tensor([0, 0, 1, 1]).repeat(100)
    scale = torch.tensor([1e-4, 1.0, 1e-2, 10.0]).repeat(100)
    error = scale * torch.from_numpy(rng.uniform(0.5, 1.5, 400)).float()
    error[[40, 41, 42, 43]] *= 20
    time = torch.arange(400)
    for part in time.split(20):
        hard.note(seen(torch.zeros_like(part), part, error[part], c_noise=c_noise[part], kind=kind[part]))
    assert sorted(hard.weights(lengths).argsort()[-4:]) == [40, 41, 42, 43]


def test_where_a_step_was_predicted_worst_is_remembered():
    hard, lengths = HardSteps(), np.array([2, 3])
    hard.weights(lengths)
    step = (torch.tensor([x]) for x in (1, 2, 1.0))
    hard.note(seen(*step, row=torch.tensor([7]), column=torch.tensor([63])))
    np.testing.assert_array_equal(hard.places[4], [7, 63])
    hard.weights(np.array([4, 3]))
    np.testing.assert_array_equal(hard.places[6], [7, 63])


def test_episodes_grow_and_more_come():
    hard = HardSteps()
    hard.weights(np.array([2, 3]))
    note(hard, {(0, 1): 1.0, (1, 2): 3.0})
    weights = hard.weights(np.array([4, 3, 2]))
    np.testing.assert_allclose(weights, np.float32([0, 3**-0.5, 0, 0, 0, 0, 3**0.5, 0, 0]), rtol=1e-6)


def test_what_is_not_finite_is_not_remembered():
    hard = HardSteps()
    hard.weights(np.array([3]))
    note(hard, {(0, 0): float("nan"), (0, 1): float("inf"), (0, 2): 1.0})
    np.testing.assert_array_equal(hard.weights(np.array([3])), np.float32([0, 0, 1]))


def objective(hard_fraction):
    config = parse(["preset=smoke", "game=Breakout"]).denoiser
    config.training.hard_fraction = hard_fraction
    return DenoiserObjective(
        worlds.tiny_agent().denoiser, config, Draw(config.training, False, CPU), autocast_of(None, CPU)
    )


def blinking(length, at):
    """Make grey frames with a single white one, which cannot be predicted."""
    quiet = episode(length, size=64)
    quiet.obs[:] = 128
    quiet.obs[at] = 255
    return quiet


def test_the_objective_draws_again_what_was_predicted_badly():
    replay = Replay([blinking(60, 40)])
    favours = objective(1.0)
    for step in range(30):
        favours.example(replay, np.random.default_rng(step), step)
    n = worlds.NUM_STEPS_CONDITIONING
    weights = favours.hard_steps.weights(replay.lengths)
    assert weights.argmax() == 40 and weights[40] > 5 * np.median(weights[n:40])
    assert not weights[:n].any(), "frames without a past are not hard but unknowable"
    last = n + favours.config.training.num_autoregressive_steps
    starts = torch.cat(
        [
            favours.example(replay, np.random.default_rng(step), step).batch["start"]
            for step in range(100, 110)
        ]
    )
    predicted = (starts + n <= 40) & (starts + last >= 40)
    assert predicted.float().mean() > 5 / 30, "by chance it would be one in thirty"


def test_a_measured_batch_is_not_remembered():
    replay = Replay([blinking(60, 40)])
    favours = objective(1.0)
    for batch in favours.test_batches(replay):
        favours.measure(batch, np.random.default_rng(0), 0)
    assert not favours.hard_steps.weights(replay.lengths).any()
    ignores = objective(0.0)
    ignores.example(replay, np.random.default_rng(0), 0)
    assert not ignores.hard_steps.weights(replay.lengths).any() and ignores.state_dict() == {}


@pytest.mark.parametrize("value", ["-0.1", "1.5"])
def test_hard_fraction_is_a_share(value):
    with pytest.raises(InvalidInputError, match="hard_fraction must be in"):
        parse(["game=Breakout", f"denoiser.training.hard_fraction={value}"])

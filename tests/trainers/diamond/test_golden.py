"""The published configuration trains as recorded: collection, draws, losses, gradients, warm-up."""

import pytest

from tests import golden
from trainers.diamond.config import PARTS

# another instruction set adds in another order, and some pixels of quantised frames then differ
TOLERANCE = {"denoiser": 1e-3, "rew_end_model": 1e-3, "actor_critic": 1e-2}


@pytest.mark.parametrize(
    ("name", "num_imagining"),
    [
        ("small", 4),
        pytest.param("small", golden.NUM_UPDATES, marks=pytest.mark.slow),
        pytest.param("paper", golden.NUM_UPDATES, marks=pytest.mark.slow),
    ],
)
def test_the_first_updates_of_every_network_are_the_recorded_ones(name, num_imagining, tmp_path):
    """Updates of the actor-critic take longest, because it imagines: the fast test has only a few."""
    shorter = f"actor_critic.training.steps_first_epoch={num_imagining}"
    expected, run = golden.recorded(name), golden.run(name, tmp_path, shorter)
    assert run["dataset_steps"] == expected["dataset_steps"]
    for part in PARTS:
        assert len(run[part]) == (num_imagining if part == "actor_critic" else golden.NUM_UPDATES)
        for ours, theirs in zip(run[part], expected[part], strict=False):
            assert ours == pytest.approx(theirs, rel=TOLERANCE[part], abs=1e-9)

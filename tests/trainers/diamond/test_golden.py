"""The published configuration trains as it was recorded: collection, draws, losses, gradients, warm-up."""

import pytest

from tests import golden
from trainers.diamond.config import PARTS

# another instruction set adds in another order; quantised frames then differ in a pixel here and there
TOLERANCE = {"denoiser": 1e-3, "rew_end_model": 1e-3, "actor_critic": 1e-2}


@pytest.mark.parametrize("name", ["small", pytest.param("paper", marks=pytest.mark.slow)])
def test_the_first_updates_of_every_network_are_the_recorded_ones(name, tmp_path):
    expected, run = golden.recorded(name), golden.run(name, tmp_path)
    assert run["dataset_steps"] == expected["dataset_steps"]
    for part in PARTS:
        assert len(run[part]) == golden.NUM_UPDATES
        for ours, theirs in zip(run[part], expected[part], strict=True):
            assert ours == pytest.approx(theirs, rel=TOLERANCE[part], abs=1e-9)

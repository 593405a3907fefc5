"""How far numbers of two machines may lie apart."""

from __future__ import annotations

import pytest

from diamond_gym.evaluate.compare import Difference, tolerance


@pytest.mark.parametrize(
    ("name", "before", "allowed"),
    [
        ("steps/step 15/psnr", 36.7, 0.3),
        ("steps/step 15/ball_error", 5.0, 1.0),  # a few balls that went elsewhere
        ("steps/step 1/ball_error", 0.4, 0.5),
        ("steps/step 15/ball_error", None, 0.5),
        ("single_steps/paddle/right", 0.9, 0.06),
    ],
)
def test_tolerances(name, before, allowed):
    assert tolerance(name, before) == pytest.approx(allowed)


def test_a_number_that_appears_or_vanishes_is_a_large_difference():
    assert Difference("a", None, 1.0, 10.0).is_large
    assert not Difference("a", None, None, 0.0).is_large
    assert Difference("a", 1.0, 2.1, 1.0).is_large

"""Which steps of the replay are predicted badly: prioritised replay (Schaul et al. 2016), proportional.

Most steps of a game are easy; what makes an imagined game part from the real one, a ball's bounce, say, is
rare and looks like the rest. Knows nothing of networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor


class HardSteps:
    """The error of every step when it was last predicted, by episode and time; 0 where it never was."""

    def __init__(self) -> None:
        self._lengths = np.zeros(0, np.int64)
        self._errors = np.zeros(0, np.float32)

    def weights(self, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """How much each step should be drawn, episode after episode.

        Args:
            lengths: Of the episodes; they grow, and more come, but none shrinks.
        """
        if not np.array_equal(lengths, self._lengths):
            self._make_room(lengths)
        return self._errors

    def note(
        self, episode: Int64[Tensor, " k"], time: Int64[Tensor, " k"], error: Float[Tensor, " k"]
    ) -> None:
        """Remembers errors >= 0 of steps that `weights` has heard of; what is not finite is left out."""
        finite = error.isfinite()
        firsts = self._lengths.cumsum() - self._lengths
        self._errors[firsts[episode[finite].numpy()] + time[finite].numpy()] = error[finite].numpy()

    def _make_room(self, lengths: NDArray[np.int64]) -> None:
        errors = np.zeros(int(lengths.sum()), np.float32)
        first, first_before = 0, 0
        for length, before in zip(lengths, self._lengths, strict=False):
            errors[first : first + before] = self._errors[first_before : first_before + before]
            first, first_before = first + length, first_before + before
        self._lengths, self._errors = lengths.copy(), errors

    def state_dict(self) -> dict[str, Any]:
        """The errors."""
        return {
            "lengths": torch.from_numpy(self._lengths.copy()),
            "errors": torch.from_numpy(self._errors.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remembers what was known then."""
        self._lengths, self._errors = (state[name].numpy().copy() for name in ("lengths", "errors"))

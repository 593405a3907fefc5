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
    """The error of every step of a replay when it was last predicted; 0 where it never was."""

    def __init__(self) -> None:
        self._errors = np.zeros(0, np.float32)

    def note(self, step: Int64[Tensor, " k"], error: Float[Tensor, " k"]) -> None:
        """Remembers errors >= 0 of steps, by their place in the replay."""
        if not len(step):
            return
        missing = int(step.max()) + 1 - len(self._errors)
        if missing > 0:
            self._errors = np.concatenate([self._errors, np.zeros(missing, np.float32)])
        self._errors[step.numpy()] = error.numpy()

    def weights(self, num_steps: int) -> NDArray[np.float32]:
        """How much each of the first `num_steps` steps of the replay should be drawn."""
        weights = np.zeros(num_steps, np.float32)
        known = min(num_steps, len(self._errors))
        weights[:known] = self._errors[:known]
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The errors."""
        return {"errors": torch.from_numpy(self._errors.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remembers what was known then."""
        self._errors = state["errors"].numpy().copy()

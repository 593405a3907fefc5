"""Which steps of the replay are predicted badly: prioritised replay (Schaul et al. 2016), proportional.

Most steps of a game are easy; what makes an imagined game part from the real one, a ball's bounce, say, is
rare and looks like the rest. Knows nothing of networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

_NUM_LEVELS = 15
_LEVELS = (-0.4, 1.1)
"""Noise levels, as the network sees them, are told apart in so many equal bins between these."""
_MEAN_DECAY = 0.99
"""Of the usual error of a kind of prediction, by every error noted."""


class HardSteps:
    """How badly each step was predicted when it was last seen, and where in the frame.

    Errors are noted as multiples of the usual error of their kind, that is of predictions at the same noise
    level and as far into a segment: a plain step under little noise and a bounce under much of it are
    otherwise alike. A step never seen weighs 0.
    """

    def __init__(self) -> None:
        self._lengths = np.zeros(0, np.int64)
        self._errors = np.zeros(0, np.float32)
        self._places = np.zeros((0, 2), np.uint8)
        self._means: dict[int, float] = {}

    def weights(self, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """How much each step should be drawn, episode after episode.

        Args:
            lengths: Of the episodes; they grow, and more come, but none shrinks.
        """
        if not np.array_equal(lengths, self._lengths):
            self._errors = self._with_room(self._errors, lengths)
            self._places = self._with_room(self._places, lengths)
            self._lengths = lengths.copy()
        return self._errors

    @property
    def places(self) -> NDArray[np.uint8]:
        """Row and column, in pixels, where each step was predicted worst; in the order of `weights`."""
        return self._places

    def note(
        self,
        episode: Int64[Tensor, " k"],
        time: Int64[Tensor, " k"],
        error: Float[Tensor, " k"],
        c_noise: Float[Tensor, " k"] | None = None,
        kind: Int64[Tensor, " k"] | None = None,
        place: Int64[Tensor, "k 2"] | None = None,
        is_usual: Bool[Tensor, " k"] | None = None,
    ) -> None:
        """Remembers errors of steps that `weights` has heard of; what is not finite is left out.

        Args:
            episode: Number of the episode.
            time: Number of the step in it.
            error: At least 0.
            c_noise: Noise level, as the network sees it; None where all are alike.
            kind: Number, at least 0, of what is compared with its like only; None where all are alike.
            place: Row and column in the frame of the worst of it; None for the corner.
            is_usual: Whether the step was drawn as any other; the hard steps must not decide what is usual.
                None: all were.
        """
        zeros = torch.zeros_like(time)
        level = zeros if c_noise is None else _bins(c_noise)
        kind = level + _NUM_LEVELS * (zeros if kind is None else kind)
        place = torch.stack([zeros, zeros], dim=1) if place is None else place
        kept = error.isfinite()
        firsts = self._lengths.cumsum() - self._lengths
        index = firsts[episode[kept].numpy()] + time[kept].numpy()
        usual = torch.ones_like(kept) if is_usual is None else is_usual.bool()
        kinds, errors = kind[kept].numpy(), error[kept].double().numpy()
        self._update_means(errors, kinds, usual[kept].numpy())
        self._errors[index] = errors / np.exp([self._means[k] for k in kinds.tolist()])
        self._places[index] = place[kept].clamp(0, 255).numpy()

    def _update_means(
        self, error: NDArray[np.float64], kind: NDArray[np.int64], is_usual: NDArray[np.bool_]
    ) -> None:
        """Moves the usual error of every kind, a geometric mean, towards that of steps drawn as any other."""
        logs = np.log(np.maximum(error, np.finfo(np.float32).tiny))
        for k in np.unique(kind).tolist():
            of_kind = kind == k
            chosen = of_kind & is_usual
            if k not in self._means:
                chosen = chosen if chosen.any() else of_kind
                self._means[k] = float(logs[chosen].mean())
            elif chosen.any():
                decay = _MEAN_DECAY ** int(chosen.sum())
                self._means[k] = decay * self._means[k] + (1 - decay) * float(logs[chosen].mean())

    def _with_room(self, known: NDArray, lengths: NDArray[np.int64]) -> NDArray:
        """What is known of each step, where episodes have grown to `lengths`."""
        grown = np.zeros((int(lengths.sum()), *known.shape[1:]), known.dtype)
        first, first_before = 0, 0
        for length, before in zip(lengths, self._lengths, strict=False):
            grown[first : first + before] = known[first_before : first_before + before]
            first, first_before = first + length, first_before + before
        return grown

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        return {
            "lengths": torch.from_numpy(self._lengths.copy()),
            "errors": torch.from_numpy(self._errors.copy()),
            "places": torch.from_numpy(self._places.copy()),
            "means": dict(self._means),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remembers what was known then."""
        self._lengths, self._errors, self._places = (
            state[name].numpy().copy() for name in ("lengths", "errors", "places")
        )
        self._means = dict(state["means"])


def _bins(c_noise: Float[Tensor, " k"]) -> Int64[Tensor, " k"]:
    low, high = _LEVELS
    return ((c_noise - low) / (high - low) * _NUM_LEVELS).long().clamp(0, _NUM_LEVELS - 1)

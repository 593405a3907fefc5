"""All of a replay, cut into segments one after the other: what test losses are measured on.

As published, every step lies in one segment; nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.diamond.objectives import Draw
from trainers.diamond.replay import Replay, SegmentBatch


def batches_in_order(replay: Replay, length: int, batch_size: int) -> Iterator[SegmentBatch]:
    """Segments of `length` steps, the last one of an episode padded; one of a single step is left out.

    Args:
        replay: The episodes.
        length: Steps of a segment, at least 1.
        batch_size: Segments of a batch; the last batch may have fewer.
    """
    starts = [np.arange(0, num_steps, length) for num_steps in replay.lengths]
    kept = [x[num_steps - x >= 2] for x, num_steps in zip(starts, replay.lengths, strict=True)]
    episode = np.repeat(np.arange(len(kept)), [len(x) for x in kept])
    start = np.concatenate([*kept, np.zeros(0, np.int64)])
    for first in range(0, len(start), batch_size):
        batch = slice(first, first + batch_size)
        yield replay.segments(episode[batch], start[batch], length)


@dataclass(frozen=True, kw_only=True)
class Given(Draw):
    """A batch that is there already, in the place of a drawn one."""

    batch: SegmentBatch

    @property
    def share(self) -> slice:
        """All of it."""
        return slice(0, len(self.batch.obs))

    def __call__(self, replay: Replay, rng: np.random.Generator, length: int, **options: Any) -> SegmentBatch:
        """The batch, whatever is asked for."""
        return self.batch.to(self.device)

"""How long a run lasts and when it collects how much: arithmetic on the configuration and on counts.

Every answer follows from the run's saved state, so that a resumed run asks and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainers.diamond.config import FirstEpochConfig, TrainCollectionConfig, TrainerConfig

DEFAULT_NUM_EPOCHS = 1000
"""Of a run that collects nothing and is not told how many."""
FIRST_EPOCH_CHUNK = 100
"""Steps by which the first epoch goes on collecting until it has seen enough rewards."""


def num_epochs(config: TrainerConfig, first_epoch_steps: int | None) -> int | None:
    """Epochs of the run in all; None while that is not known yet.

    Args:
        config: The run.
        first_epoch_steps: Steps in the training dataset after the first epoch's collection, once known.
    """
    training, collection = config.training, config.collection.train
    if training.num_epochs is not None:
        return training.num_epochs
    if not config.collects:
        return DEFAULT_NUM_EPOCHS
    if first_epoch_steps is None:
        return None
    left = max(0, collection.num_steps_total - first_epoch_steps)
    return 1 + math.ceil(left / collection.steps_per_epoch) + training.num_final_epochs


def collection_goal(
    config: TrainCollectionConfig,
    epoch: int,
    num_steps: int,
    reward_counts: Mapping[int, int],
    first_epoch_steps: int | None,
) -> int:
    """Steps the training dataset should have, for now: ask again when it has them.

    Args:
        config: How much is collected.
        epoch: The epoch that collects, from 1.
        num_steps: Steps the dataset has.
        reward_counts: How many of them carry a reward of each sign (-1, 0, 1).
        first_epoch_steps: Steps it had after the first epoch's collection, once known.
    """
    if epoch == 1 or first_epoch_steps is None:
        return min(_first_epoch_goal(config.first_epoch, num_steps, reward_counts), config.num_steps_total)
    return min(first_epoch_steps + (epoch - 1) * config.steps_per_epoch, config.num_steps_total)


def _first_epoch_goal(config: FirstEpochConfig, num_steps: int, reward_counts: Mapping[int, int]) -> int:
    if num_steps < config.min:
        return config.min
    rarer = sorted(reward_counts.values())[:2]
    if sum(rarer) >= config.threshold_rew:
        return num_steps
    goal = config.min + FIRST_EPOCH_CHUNK * ((num_steps - config.min) // FIRST_EPOCH_CHUNK + 1)
    return goal if config.max is None else min(goal, config.max)

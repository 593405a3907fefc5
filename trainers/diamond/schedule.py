"""How long a run lasts and when it collects how much: arithmetic on the configuration and on counts.

Every answer follows from the run's saved state, so that a resumed run asks and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainers.diamond.config import TrainCollectionConfig, TrainerConfig


def num_epochs(config: TrainerConfig, first_epoch_steps: int | None) -> int | None:
    """Epochs of the run in all; None while that is not known yet.

    Args:
        config: The run.
        first_epoch_steps: Steps of the initial collection, once known.
    """
    training, collection = config.training, config.collection.train
    if training.num_epochs is not None:
        return training.num_epochs
    if config.static_dataset.path is not None or training.model_free:
        return max(1, training.num_final_epochs)
    if not config.collects:  # players have: as long as if the policy had
        first_epoch_steps = collection.first_epoch.min
    if first_epoch_steps is None:
        return None
    left = max(0, collection.num_steps_total - first_epoch_steps)
    return max(1, math.ceil(left / collection.steps_per_epoch) + training.num_final_epochs)


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
        first_epoch_steps: Steps of the initial collection, once that is over; every epoch then adds to it,
            the first one, too.
    """
    if first_epoch_steps is None:
        return min(_initial_goal(config, num_steps, reward_counts), config.num_steps_total)
    return min(first_epoch_steps + epoch * config.steps_per_epoch, config.num_steps_total)


def _initial_goal(config: TrainCollectionConfig, num_steps: int, reward_counts: Mapping[int, int]) -> int:
    """What the initial collection should reach; `num_steps` itself when it has seen enough."""
    first, chunk = config.first_epoch, config.steps_per_epoch
    if num_steps < first.min:
        return first.min
    rarer = sorted(reward_counts.values())[:2]
    if sum(rarer) >= first.threshold_rew:
        return num_steps
    goal = first.min + chunk * ((num_steps - first.min) // chunk + 1)
    return goal if first.max is None else min(goal, first.max)

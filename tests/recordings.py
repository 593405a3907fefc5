"""Synthetic episodes, in memory and on disk, for tests of training."""

from __future__ import annotations

from pathlib import Path

import torch

from diamond_gym.data.episodes import Episode, EpisodeDataset

NUM_ACTIONS = 3


def episode(length: int, *, number: int = 0, finished: bool = True, size: int = 64) -> Episode:
    """Make an episode with distinguishable steps: frame t is filled with 10 * number + t."""
    steps = torch.arange(length)
    level = (10 * number + steps) % 256
    end = torch.zeros(length, dtype=torch.uint8)
    end[-1] = finished
    final = torch.full((3, size, size), (10 * number + length) % 256, dtype=torch.uint8)
    return Episode(
        obs=level.to(torch.uint8)[:, None, None, None].expand(length, 3, size, size).contiguous(),
        act=1 + steps % (NUM_ACTIONS - 1),
        rew=(steps % 3 - 1).float() * 5,
        end=end,
        trunc=torch.zeros_like(end),
        info={"final_observation": final} if finished else {},
    )


def save_dataset(folder: Path, num_episodes: int, *, length: int = 12, size: int = 64) -> Path:
    """Write episodes of at least `length` steps as a dataset."""
    dataset = EpisodeDataset(folder, create=True)
    dataset.extend(episode(length + i % 3, number=i, size=size) for i in range(num_episodes))
    return folder

"""Segments whose later frames are imagined: what the reward/end model meets at play, with real labels.

A model that learns from real frames judges imagined ones at play. Where these look a little different, it
overlooks ends, and a lost ball costs an agent nothing. Knows nothing of the loss.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from diamond_gym.world.pixels import to_float
from diamond_gym.world.world_model import WorldModel
from trainers.diamond.replay import SegmentBatch, concatenated

AGREEMENT_RADIUS = 2
"""Frames are compared by averages over windows of 2 r + 1 pixels: a ball may be a pixel off."""
AGREEMENT_TOLERANCE = 0.05
"""Largest difference of such averages, of values in [-1, 1], that still is the same game; a missing ball of
Atari makes 0.06 to 0.1."""


def with_imagined_frames(
    batch: SegmentBatch, world_model: WorldModel, fraction: float, rng: np.random.Generator
) -> SegmentBatch:
    """The batch, where a share of the segments goes on in imagination, from a drawn step on.

    Actions stay, and so do rewards and ends, as long as the imagined game is still the real one; the rest of
    the segment is then masked. The frame after an end, which the denoiser never learns, need not be alike.

    Args:
        batch: Segments longer than the world model looks back.
        world_model: Imagines; it learns nothing.
        fraction: Share of the segments, in [0, 1]; the first ones.
        rng: Draws the step, the same for all, and the noise.
    """
    n, length = world_model.num_steps_conditioning, batch.obs.shape[1]
    size = round(fraction * len(batch.obs))
    first = int(rng.integers(n, length))
    keys = torch.from_numpy(rng.integers(2**62, size=size))
    if size == 0:
        return batch
    changed = batch.select(slice(0, size))
    frames = _imagined(changed, world_model, first, keys)
    changed = _judged(changed, frames, first)
    return concatenated([changed, batch.select(slice(size, None))])


def _imagined(
    batch: SegmentBatch, world_model: WorldModel, first: int, keys: Tensor
) -> UInt8[Tensor, "b k c h w"]:
    """Frames `first` to the segment's length, the one after its last step included."""
    n = world_model.num_steps_conditioning
    past = slice(first - n, first)
    padding = (n - first - batch.start).clamp(min=0)
    state = world_model.start(batch.obs[:, past], batch.act[:, past], keys, padding)
    frames = []
    for act in batch.act[:, first - 1 :].unbind(1):
        state, step = world_model.step(state, act)
        frames.append(step.obs)
    return torch.stack(frames, dim=1)


def _judged(batch: SegmentBatch, frames: UInt8[Tensor, "b k c h w"], first: int) -> SegmentBatch:
    """The segments with imagined frames; what follows a frame unlike the real one is masked."""
    real = torch.cat([batch.obs[:, first:], batch.final_obs[:, None]], dim=1)
    is_over = (batch.end | batch.trunc)[:, first - 1 :]
    real = torch.where(is_over[:, :, None, None, None], batch.final_obs[:, None], real)
    agrees = (agreement(real, frames) | is_over).cumprod(dim=1).bool()
    mask = batch.mask_padding.clone()
    mask[:, first - 1 :] &= agrees
    last = is_over.int().argmax(dim=1)
    final = frames[torch.arange(len(frames), device=frames.device), last]
    return replace(
        batch,
        obs=torch.cat([batch.obs[:, :first], frames[:, :-1]], dim=1),
        final_obs=torch.where(is_over.any(dim=1)[:, None, None, None], final, batch.final_obs),
        mask_padding=mask,
    )


def agreement(real: UInt8[Tensor, "b k c h w"], imagined: UInt8[Tensor, "b k c h w"]) -> Bool[Tensor, "b k"]:
    """Whether two frames show the same, up to small shifts."""
    difference = (to_float(real) - to_float(imagined)).flatten(0, 1)
    return (_blurred(difference).abs().amax(dim=(1, 2, 3)) <= AGREEMENT_TOLERANCE).unflatten(
        0, real.shape[:2]
    )


def _blurred(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return F.avg_pool2d(x, 2 * AGREEMENT_RADIUS + 1, stride=1, padding=AGREEMENT_RADIUS)

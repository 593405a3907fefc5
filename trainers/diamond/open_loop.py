"""Imagination beside reality: real frames above, what the world model makes of the same actions below."""

from __future__ import annotations

import imageio.v3 as imageio
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diamond_gym.world.pixels import to_float
from diamond_gym.world.world_model import WorldModel
from trainers.diamond.replay import Replay, SegmentBatch

_GAP = 2
"""Black pixels between games, and between the rows."""


def draw_starts(replay: Replay, num_games: int, num_steps: int, seed: int) -> SegmentBatch | None:
    """The same segments every time, without padding; None where no episode is as long."""
    long_enough = np.flatnonzero(replay.lengths >= num_steps)
    if not len(long_enough):
        return None
    rng = np.random.default_rng(seed)
    episode = rng.choice(long_enough, num_games)
    return replay.segments(episode, rng.integers(replay.lengths[episode] - num_steps + 1), num_steps)


@torch.no_grad()
def imagine(world_model: WorldModel, batch: SegmentBatch) -> UInt8[Tensor, "b t c h w"]:
    """The frames after the first n, imagined under the segments' actions; same noise every time."""
    n = world_model.num_steps_conditioning
    state = world_model.start(batch.obs[:, :n], batch.act[:, :n], torch.arange(len(batch.obs)))
    frames = []
    for act in batch.act[:, n - 1 : -1].to(world_model.device).unbind(1):
        state, step = world_model.step(state, act)
        frames.append(step.obs.cpu())
    return torch.stack(frames, dim=1)


def psnr(real: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, " t"]:
    """Peak signal-to-noise ratio in dB at each step, of the mean error of all games; at most 100."""
    error = ((to_float(real) - to_float(imagined)) / 2).square().mean(dim=(0, 2, 3, 4))
    return -10 * error.clamp(min=1e-10).log10()


def side_by_side(
    real: UInt8[Tensor, "b t c h w"], imagined: UInt8[Tensor, "b t c h w"]
) -> UInt8[Tensor, "t h2 w2 3"]:
    """Games from left to right; real frames above."""
    pad = (0, _GAP, 0, _GAP)
    rows = [torch.cat(list(torch.nn.functional.pad(x, pad).unbind(0)), dim=-1) for x in (real, imagined)]
    frames = torch.cat(rows, dim=-2).permute(0, 2, 3, 1)
    return frames.expand(-1, -1, -1, 3).contiguous()  # grey frames have one channel


def to_gif(frames: UInt8[Tensor, "t h w 3"], fps: int) -> bytes:
    """A GIF that starts again at its end."""
    return imageio.imwrite("<bytes>", frames.numpy(), extension=".gif", duration=1000 / fps, loop=0)

"""The DDPM objective (Ho et al. 2020), for the comparison of section 5.1: schedule, noise, sampler.

A frame x is noised to `sqrt(abar) x + sqrt(1 - abar) noise`, where `abar` falls from nearly 1 to nearly 0
over 1000 timesteps; the network predicts the noise. So x is `c_skip * noisy + c_out * network` with
`c_skip = 1 / sqrt(abar)` and `c_out = -sqrt((1 - abar) / abar)`: preconditioning as EDM's, with `c_in = 1`.
Numbers are those of `DDPMScheduler` of the diffusers library with its default settings, except for a single
denoising step.

The module does not depend on networks, frames or conditioning; randomness is an argument.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diamond_gym.errors import InvalidInputError

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


@functools.cache
def alphas_cumprod(device: torch.device) -> Float[Tensor, "1000"]:
    """Return `abar` of every timestep, the remaining variance of a frame under a linear schedule of betas."""
    betas = torch.linspace(BETA_START, BETA_END, NUM_TIMESTEPS, dtype=torch.float64)
    return (1 - betas).cumprod(0).float().to(device)


@functools.cache
def _abars() -> list[float]:
    """`alphas_cumprod` as numbers, which a trace of the sampler takes for constants."""
    return alphas_cumprod(torch.device("cpu")).tolist()


def add_noise(
    x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timestep: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Noise frames to timesteps 0..999, one for each (Ho et al. 2020, equation 4)."""
    abar = alphas_cumprod(x.device)[timestep.long()][:, None, None, None]
    return abar.sqrt() * x + (1 - abar).sqrt() * noise


def sampling_timesteps(num_steps: int) -> list[int]:
    """Return the decreasing timesteps of `num_steps` denoising steps, 1..1000.

    They are multiples of `1000 // num_steps` from 0 on, as `DDPMScheduler` chooses by default. For a single
    step it is the middle, 500, as in section 5.1: to predict the noise in nearly pure noise, a network only
    copies its input, and so knows little of the frame there.

    Raises:
        InvalidInputError: There are not that many timesteps.
    """
    if not 1 <= num_steps <= NUM_TIMESTEPS:
        raise InvalidInputError(
            f"num_steps_denoising must be in 1..{NUM_TIMESTEPS} with denoiser.objective=ddpm, got {num_steps}"
        )
    if num_steps == 1:
        return [NUM_TIMESTEPS // 2]
    return [i * (NUM_TIMESTEPS // num_steps) for i in reversed(range(num_steps))]


def sample(
    denoise: Callable[[Tensor, float], Tensor],
    init_noise: Float[Tensor, "b c h w"],
    timesteps: Sequence[float],
    step_noise: Callable[[int], Tensor],
) -> list[Float[Tensor, "b c h w"]]:
    """Sample in few steps, by ancestral sampling with the posterior's variance (diffusers' `fixed_small`).

    Args:
        denoise: Maps noisy frames and their timestep to clean ones, clamped but not quantised.
        init_noise: The initial frames, unit normal noise.
        timesteps: Timesteps from `sampling_timesteps`.
        step_noise: Maps a step to unit normal noise; called after every step except the last.

    Returns:
        The trajectory from `init_noise` to the sample, with `init_noise` and one image batch per step.
    """
    x = init_noise
    trajectory = [x]
    abars = [_abars()[int(t)] for t in timesteps]
    for i, (timestep, (abar, next_abar)) in enumerate(
        zip(timesteps, itertools.pairwise([*abars, 1.0]), strict=True)
    ):
        denoised = denoise(x, timestep)
        if i + 1 == len(timesteps):
            x = denoised  # the posterior at abar = 1 is the denoised frame, without variance
        else:
            alpha = abar / next_abar  # alpha of the step; Ho et al. 2020, equations 6 and 7
            c_denoised = math.sqrt(next_abar) * (1 - alpha) / (1 - abar)
            c_noisy = math.sqrt(alpha) * (1 - next_abar) / (1 - abar)
            std = math.sqrt((1 - next_abar) / (1 - abar) * (1 - alpha))
            x = c_denoised * denoised + c_noisy * x + std * step_noise(i)
        trajectory.append(x)
    return trajectory

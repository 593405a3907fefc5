"""Noise schedule and samplers of Karras et al. 2022, as functions of a denoise callable.

The module does not depend on networks, frames or conditioning; randomness is an argument.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diamond_gym.errors import InvalidInputError
from diamond_gym.ranges import check_integer, check_number

Denoise = Callable[[Tensor, float], Tensor]
"""Maps noisy frames (b c h w) and their noise level to denoised frames (b c h w)."""

ChurnNoise = Callable[[int], Tensor]
"""Maps a denoising step to unit normal noise (b c h w)."""


CHURN_LEVELS = ("sigma_hat", "sigma")

MAX_STEPS = 1000
MIN_SIGMA, MAX_SIGMA = 1e-5, 1e4
MAX_RHO = 100.0
MAX_CHURN = 1e6
"""Largest accepted `s_churn`; more has no effect, as a step raises its level by at most `sqrt(2) - 1`."""


@dataclass
class DiffusionSamplerConfig:
    """How a frame is sampled. Defaults are the published ones.

    A denoiser with `objective` "ddpm" is sampled by `diamond_gym.world.ddpm`, which uses only the number of
    steps, and supports neither `order` 2 nor churn.

    Attributes:
        num_steps_denoising: Number of denoising steps, 1 to 1000.
        sigma_min: Last noise level before 0, at least 1e-5.
        sigma_max: First noise level, >= sigma_min.
        rho: Curvature of the schedule (Karras et al. 2022, equation 5), 0.1 to 100.
        order: 1 for Euler, 2 for Heun.
        s_churn: Amount of noise added back per step (Algorithm 2); 0 samples deterministically.
        s_tmin: Lowest noise level at which noise is added back.
        s_tmax: Highest noise level at which noise is added back.
        s_noise: Standard deviation of the noise added back.
        s_churn_at: Noise level that the denoiser gets after noise was added back: "sigma_hat", that of the
            frame now (Algorithm 2), or "sigma", that before (the published code).
    """

    num_steps_denoising: int = 3
    sigma_min: float = 2e-3
    sigma_max: float = 5.0
    rho: float = 7.0
    order: int = 1
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    s_churn_at: str = "sigma_hat"

    def __post_init__(self) -> None:
        check_integer("num_steps_denoising", self.num_steps_denoising, 1, MAX_STEPS)
        if isinstance(self.order, bool) or self.order not in (1, 2):
            raise InvalidInputError(f"order must be 1 (Euler) or 2 (Heun), got {self.order!r}")
        check_number("sigma_min", self.sigma_min, MIN_SIGMA, MAX_SIGMA)
        check_number("sigma_max", self.sigma_max, self.sigma_min, MAX_SIGMA)
        check_number("rho", self.rho, 0.1, MAX_RHO)
        check_number("s_churn", self.s_churn, 0, MAX_CHURN)
        check_number("s_tmin", self.s_tmin, 0, MAX_SIGMA)
        check_number("s_tmax", self.s_tmax, 0, math.inf)
        check_number("s_noise", self.s_noise, 0, MAX_SIGMA)
        if self.s_churn_at not in CHURN_LEVELS:
            raise InvalidInputError(
                f"s_churn_at must be one of {', '.join(CHURN_LEVELS)}, got {self.s_churn_at!r}"
            )

    @property
    def num_passes(self) -> int:
        """Passes through the denoiser for a frame: Heun makes two a step, but one in the last."""
        return self.num_steps_denoising * self.order - (self.order - 1)


def build_sigmas(config: DiffusionSamplerConfig, device: torch.device | str = "cpu") -> Float[Tensor, " s"]:
    """Return the `num_steps_denoising` noise levels from sigma_max down to sigma_min, then 0 (equation 5)."""
    ramp = torch.linspace(0, 1, config.num_steps_denoising)
    low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
    sigmas = (high + ramp * (low - high)) ** config.rho
    return torch.cat([sigmas, torch.zeros(1)]).to(device)


def churn_gamma(config: DiffusionSamplerConfig, sigma: float) -> float:
    """Return the relative increase of the noise level before a step from `sigma` (Algorithm 2)."""
    if config.s_churn == 0 or not config.s_tmin <= sigma <= config.s_tmax:
        return 0.0
    return min(config.s_churn / config.num_steps_denoising, math.sqrt(2) - 1)


def sample(
    denoise: Denoise,
    init_noise: Float[Tensor, "b c h w"],
    sigmas: list[float],
    config: DiffusionSamplerConfig,
    churn_noise: ChurnNoise | None = None,
) -> list[Float[Tensor, "b c h w"]]:
    """Sample by Euler (order 1) or Heun (order 2) steps with churn (Karras et al. 2022, Algorithm 2).

    Args:
        denoise: The denoiser.
        init_noise: The initial frames. Released weights expect unit normal noise, *not* scaled by sigma_max.
        sigmas: Noise levels, decreasing, the last one 0.
        config: Order and churn.
        churn_noise: Noise to add back at a step; needed only when `config.s_churn > 0`.

    Returns:
        The trajectory from `init_noise` to the sample, with one image batch per noise level.
    """
    x = init_noise
    trajectory = [x]
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        gamma = churn_gamma(config, sigma)
        sigma_hat = sigma * (gamma + 1)
        if gamma > 0:
            assert churn_noise is not None
            x = x + config.s_noise * math.sqrt(sigma_hat**2 - sigma**2) * churn_noise(i)
        denoised = denoise(x, sigma if config.s_churn_at == "sigma" else sigma_hat)
        if next_sigma == 0:
            x = denoised  # the Euler step to noise level 0 ends exactly on the denoised image
        else:
            d = (x - denoised) / sigma_hat
            x_next = x + d * (next_sigma - sigma_hat)
            if config.order == 2:
                d_next = (x_next - denoise(x_next, next_sigma)) / next_sigma
                x_next = x + (d + d_next) / 2 * (next_sigma - sigma_hat)
            x = x_next
        trajectory.append(x)
    return trajectory

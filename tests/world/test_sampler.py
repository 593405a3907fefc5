"""Schedule, Euler, Heun and churn, against the exact results for a known denoiser."""

import math

import pytest
import torch
from torch.testing import assert_close

from diamond_gym.errors import InvalidInputError
from diamond_gym.world.sampler import DiffusionSamplerConfig, build_sigmas, churn_gamma, sample

SHAPE = (2, 3, 4, 4)
DATA_STD = 0.5


def gaussian_denoise(x, sigma):
    """Denoise ideally for data of N(0, DATA_STD^2), which is a linear shrinkage."""
    variance = sigma**2
    return x * DATA_STD**2 / (DATA_STD**2 + variance)


def exact_end(x, sigma):
    """Solve the probability-flow ODE from noise level `sigma` to 0 exactly, for Gaussian data."""
    return x * DATA_STD / math.sqrt(DATA_STD**2 + sigma**2)


def error(steps, order):
    config = DiffusionSamplerConfig(num_steps_denoising=steps, order=order)
    torch.manual_seed(0)
    x = torch.randn(SHAPE, dtype=torch.float64)
    end = sample(gaussian_denoise, x, build_sigmas(config).tolist(), config)[-1]
    return (end - exact_end(x, config.sigma_max)).abs().max().item()


def test_schedule_runs_from_sigma_max_to_sigma_min_then_zero():
    sigmas = build_sigmas(DiffusionSamplerConfig(num_steps_denoising=5))
    assert len(sigmas) == 6
    assert_close(sigmas[[0, 4, 5]], torch.tensor([5.0, 2e-3, 0.0]))
    assert (sigmas.diff() < 0).all()


def test_one_step_starts_at_sigma_max():
    assert_close(build_sigmas(DiffusionSamplerConfig(num_steps_denoising=1)), torch.tensor([5.0, 0.0]))


def test_rho_one_is_a_straight_line():
    sigmas = build_sigmas(
        DiffusionSamplerConfig(num_steps_denoising=3, sigma_min=1.0, sigma_max=3.0, rho=1.0)
    )
    assert_close(sigmas, torch.tensor([3.0, 2.0, 1.0, 0.0]))


def test_euler_converges_at_first_order_and_heun_at_second():
    assert error(64, 1) < error(16, 1) / 3
    assert error(64, 2) < error(16, 2) / 9
    assert error(16, 2) < error(16, 1) / 4


def test_trajectory_holds_every_noise_level():
    config = DiffusionSamplerConfig(num_steps_denoising=4)
    x = torch.ones(SHAPE)
    trajectory = sample(gaussian_denoise, x, build_sigmas(config).tolist(), config)
    assert len(trajectory) == 5
    assert trajectory[0] is x


def test_heun_evaluates_twice_but_on_the_last_step():
    config = DiffusionSamplerConfig(num_steps_denoising=3, order=2)
    levels = []

    def denoise(x, sigma):
        levels.append(sigma)
        return gaussian_denoise(x, sigma)

    sigmas = build_sigmas(config).tolist()
    sample(denoise, torch.ones(SHAPE), sigmas, config)
    assert levels == pytest.approx([sigmas[0], sigmas[1], sigmas[1], sigmas[2], sigmas[2]])


def test_churn_is_karras_algorithm_2():
    config = DiffusionSamplerConfig(num_steps_denoising=4, s_churn=1.0, s_tmin=0.1, s_tmax=3.0, s_noise=1.1)
    assert churn_gamma(config, 1.0) == 0.25
    assert churn_gamma(config, 0.05) == churn_gamma(config, 4.0) == 0.0
    assert churn_gamma(DiffusionSamplerConfig(s_churn=80), 1.0) == math.sqrt(2) - 1

    seen = []

    def denoise(x, sigma):
        seen.append((x, sigma))
        return torch.zeros_like(x)

    sample(denoise, torch.zeros(SHAPE), [1.0, 0.0], config, churn_noise=lambda i: torch.ones(SHAPE))
    x, sigma = seen[0]
    assert sigma == pytest.approx(1.25)
    assert_close(x, torch.full(SHAPE, 1.1 * math.sqrt(1.25**2 - 1)))


@pytest.mark.parametrize(("at", "expected"), [("sigma_hat", [1.25, 0.625]), ("sigma", [1.0, 0.5])])
def test_the_denoiser_is_told_the_noise_level_after_churn_or_before_it(at, expected):
    config = DiffusionSamplerConfig(num_steps_denoising=4, s_churn=1.0, s_churn_at=at)
    seen = []

    def denoise(x, sigma):
        seen.append(sigma)
        return 0.5 * x

    trajectory = sample(denoise, torch.ones(SHAPE), [1.0, 0.5, 0.0], config, lambda i: torch.zeros(SHAPE))
    assert seen == pytest.approx(expected)
    # the slope and the step are those of the raised level either way
    assert_close(trajectory[1], torch.full(SHAPE, 1 + 0.5 / 1.25 * (0.5 - 1.25)))


def test_churn_noise_is_asked_for_by_step():
    config = DiffusionSamplerConfig(num_steps_denoising=3, s_churn=0.5)
    asked = []

    def churn_noise(i):
        asked.append(i)
        return torch.zeros(SHAPE)

    sample(gaussian_denoise, torch.ones(SHAPE), build_sigmas(config).tolist(), config, churn_noise)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"num_steps_denoising": 0},
        {"num_steps_denoising": 2.5},
        {"num_steps_denoising": True},
        {"order": 3},
        {"sigma_min": 0.0},
        {"sigma_min": 6.0},
        {"s_churn": -1.0},
        {"s_churn": float("nan")},
        {"s_churn_at": "sigma_max"},
    ],
)
def test_bad_settings_are_refused(values):
    with pytest.raises(InvalidInputError, match=next(iter(values)) if "sigma_min" not in values else "sigma"):
        DiffusionSamplerConfig(**values)

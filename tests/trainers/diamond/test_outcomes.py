"""Training a denoiser with several outcomes: what comes at random is drawn sharply, as often as it comes."""

import torch

from diamond_gym.world.models import Denoiser, DenoiserConfig, InnerModelConfig
from tests.trainers.diamond.test_losses import segments
from trainers.diamond.losses import DenoiserNoise, denoiser_errors


def dots(is_left):
    """Black frames with a bright dot on the left or on the right."""
    frames = torch.zeros(len(is_left), 3, 16, 16, dtype=torch.uint8)
    for frame, left in zip(frames, is_left.tolist(), strict=True):
        frame[:, 6:10, (2 if left else 10) : (6 if left else 14)] = 255
    return frames


def test_what_comes_at_random_is_drawn_sharply_and_as_often_as_it_comes():
    """From the same past a dot appears on the left in three of ten cases, else on the right."""
    levels = {"depths": [1, 1], "channels": [16, 16], "attn_depths": [0, 0]}
    sizes = levels | {"cond_channels": 16, "patch_size": 2, "num_steps_conditioning": 1, "num_actions": 2}
    found = {}
    for num_outcomes in (1, 3):
        torch.manual_seed(0)
        config = InnerModelConfig(num_outcomes=num_outcomes, **sizes)
        denoiser = Denoiser(DenoiserConfig(config))
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
        for _ in range(150):
            after = dots(torch.rand(32) < 0.3)
            obs = torch.stack([torch.zeros_like(after), after], dim=1)
            loss = denoiser_errors(
                denoiser,
                segments(obs, torch.zeros(32, 2, dtype=torch.int64), torch.ones(32, 2, dtype=torch.bool)),
                [unit_noise(32)],
            ).error.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            noise = torch.randn(500, 3, 16, 16)
            past = denoiser.fold_past(torch.full((500, 3, 16, 16), -1.0))
            c = denoiser.conditioners(torch.tensor([5.0]))
            frames = denoiser.denoise(noise, c, past, torch.zeros(500, 1, dtype=torch.int64))
        left, right = (frames[:, :, 6:10, x : x + 4].mean(dim=(1, 2, 3)) for x in (2, 10))
        is_sharp = ((left > 0.7) & (right < -0.7)) | ((left < -0.7) & (right > 0.7))
        found[num_outcomes] = float((left > 0.7).float().mean()), float(is_sharp.float().mean())
    share, sharp = found[3]
    assert sharp > 0.9 and 0.12 < share < 0.48
    assert found[1] == (0, 0), "a single outcome is the mean of both"


def unit_noise(count):
    eps = torch.randn(count, 3, 16, 16)
    is_pure = torch.ones(count, dtype=torch.bool)
    return DenoiserNoise(torch.full((count,), 5.0), eps, torch.zeros(count, 3, 1, 1), is_pure)

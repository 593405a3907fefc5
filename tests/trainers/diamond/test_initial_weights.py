"""Initial weights that differ from each layer's own initialisation."""

import torch

from diamond_gym.world.models.rew_end_model import RewEndModel, RewEndModelConfig
from trainers.diamond.networks import start_with_differences


def test_the_first_convolution_sees_only_changes():
    config = RewEndModelConfig(
        lstm_dim=8, cond_channels=8, depths=[1], channels=[8], attn_depths=[0], patch_size=2, num_actions=4
    )
    model = RewEndModel(config)
    start_with_differences(model)
    before = torch.rand(2, 12, 16, 16)
    after = before.clone()
    after[:, 0, 5, 5] += 1
    with torch.no_grad():
        still = model.encoder.conv_in(torch.cat([before, before], dim=1))
        moving = model.encoder.conv_in(torch.cat([before, after], dim=1))
    assert still.abs().max() < 1e-4
    assert moving[:, :, 4:7, 4:7].abs().mean() > 1e-1

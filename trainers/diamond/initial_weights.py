"""Where training starts, where that is not each layer's own initialisation."""

from __future__ import annotations

import torch

from diamond_gym.models import RewEndModel

_DIFFERENCE_GAIN = 3.0
"""Changes between frames are sparse: without a gain, what stands still drowns them in the first norm."""


@torch.no_grad()
def start_with_differences(model: RewEndModel) -> None:
    """Lets every second channel of the first convolution see only what changes between the two frames."""
    weight = model.encoder.conv_in.weight  # (out, 2 c p^2, 3, 3): the frame before, then the frame after
    half = weight.shape[1] // 2
    weight[::2, half:] *= _DIFFERENCE_GAIN
    weight[::2, :half] = -weight[::2, half:]

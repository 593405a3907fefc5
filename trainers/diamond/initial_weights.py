"""Where training starts, where that is not each layer's own initialisation."""

from __future__ import annotations

import torch

from diamond_gym.world.models import RewEndModel

_DIFFERENCE_GAIN = 15.0
"""Changes between frames are sparse and small."""
_RECURRENT_GAIN = 3.0
"""Without it too little of a rare event reaches the loss; one batch ends at 0.33 instead of 0.002."""


@torch.no_grad()
def start_with_differences(model: RewEndModel) -> None:
    """Lets the first convolution see only what changes between the frames, and LSTM and head hear it."""
    weight = model.encoder.conv_in.weight  # (out, 2 c p^2, 3, 3): the frame before, then the frame after
    half = weight.shape[1] // 2
    weight[:, half:] *= _DIFFERENCE_GAIN
    weight[:, :half] = -weight[:, half:]
    torch.nn.init.zeros_(model.encoder.conv_in.bias)  # pyright: ignore[reportArgumentType]
    model.lstm.get_parameter("weight_ih_l0").mul_(_RECURRENT_GAIN)
    model.head[-1].get_parameter("weight").mul_(_RECURRENT_GAIN)

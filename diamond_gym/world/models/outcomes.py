"""Several outcomes of one step, of which a denoiser draws one.

One pass of a denoiser makes one frame. Where the game may go on in several ways, that is their mean, a smear,
or the likeliest of them every time. The encoder of a denoiser with outcomes says how likely each is, and its
decoder draws the one that a code names. This is a mixture of experts that share all weights but the codes
(Bishop 1994, mixture density networks; Lee et al. 2016, stochastic multiple choice learning).

The frame's own noise chooses, so that a frame still depends on nothing else than noise, frames and actions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diamond_gym.world.models.blocks import Modulation, Modulator, conv1x1, conv3x3
from diamond_gym.world.policy import draw_class

_HIDDEN_CHANNELS = 32
_GAIN = 8.0
"""Factor of the logits: what speaks for an outcome is seen in few places, and weights change slowly."""
_INITIAL_CODE = 0.05
"""Standard deviation of new codes: changes of scales that are about 1."""


class Outcomes(nn.Module):
    """How likely each outcome is, and the code of each.

    Args:
        channels: Channels of the encoder's features.
        modulator: The modulator of the network's norms, whose scales and shifts the codes change.
        num_outcomes: Number of outcomes, at least 2.
    """

    def __init__(self, channels: int, modulator: Modulator, num_outcomes: int) -> None:
        super().__init__()
        self.codes = nn.Embedding(num_outcomes, sum(norm.linear.out_features for norm in modulator.norms))
        self.hidden = conv3x3(channels, _HIDDEN_CHANNELS)
        self.logits = conv1x1(_HIDDEN_CHANNELS, num_outcomes)
        nn.init.normal_(self.codes.weight, std=_INITIAL_CODE)
        for parameter in self.logits.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits of the probabilities, float32: sums over all places of what speaks for each."""
        return _GAIN * self.logits(F.silu(self.hidden(features))).float().sum(dim=(2, 3))

    def modulate(self, modulation: Modulation, outcome: Int64[Tensor, " b"]) -> Modulation:
        """Change the scales and shifts of all norms by the codes of the outcomes."""
        codes = self.codes(outcome).to(modulation.scale.dtype)
        is_of_one_image = modulation.scale.ndim == 1
        changes = (x[0] if is_of_one_image else x[:, :, None, None] for x in codes.chunk(2, dim=1))
        return Modulation(*(x + change for x, change in zip(modulation, changes, strict=True)))

    def repeated(self, num_outcomes: int) -> dict[str, Tensor]:
        """Weights of as many or more outcomes: these ones again and again, their codes slightly changed.

        Together, the copies of an outcome are as likely as it was where `num_outcomes` is a multiple.
        """
        copies = torch.arange(num_outcomes) % self.codes.num_embeddings
        per_outcome = ("codes.weight", "logits.weight", "logits.bias")
        weights = {name: x[copies] if name in per_outcome else x for name, x in self.state_dict().items()}
        if num_outcomes > self.codes.num_embeddings:
            weights["codes.weight"] += _INITIAL_CODE * torch.randn_like(weights["codes.weight"])
        return weights


def choose(logits: Float[Tensor, "b k"], noise: Float[Tensor, "b c h w"]) -> Int64[Tensor, " b"]:
    """Let noise choose an outcome, as often as the logits say."""
    return draw_class(logits, uniform_of(noise))


def uniform_of(noise: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """A number in [0, 1) for each image, uniform if its values are independent and normal with mean 0.

    It is the normal distribution function of a sum over the image with alternating signs, in which the smooth
    parts of a frame cancel.
    """
    x = noise.float()
    c, h, w = x.shape[1:]
    order = [torch.arange(size, device=x.device) for size in (c, h, w)]
    sign = 1 - 2 * ((order[0][:, None, None] + order[1][:, None] + order[2]) % 2)
    z = (x * sign).sum(dim=(1, 2, 3)) / x.square().sum(dim=(1, 2, 3)).sqrt().clamp(min=1e-6)
    return ((1 + torch.erf(z / math.sqrt(2))) / 2).clamp(max=1 - 2**-24)

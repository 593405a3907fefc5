"""The diffusion model of the next frame: preconditioned denoiser and the U-Net inside it.

The module sees frames and actions as tensors; it does not depend on environments, schedules or training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn

from diamond_gym.errors import InvalidInputError
from diamond_gym.ranges import check_integer, check_integers, check_number
from diamond_gym.world import ddpm
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models.actions import action_embedding
from diamond_gym.world.models.blocks import (
    Encoded,
    FourierFeatures,
    GroupNorm,
    Modulation,
    Modulator,
    UNet,
    conv3x3,
    level_channels,
    num_groups,
)
from diamond_gym.world.models.outcomes import Outcomes, choose
from diamond_gym.world.pixels import quantize, to_float

MAX_WIDTH = 2**14
MAX_DEPTH = 64
MAX_SIGMA = 1e4


def check_levels(owner: str, depths: list[int], channels: list[int], attn_depths: list[int]) -> None:
    """Raise `InvalidInputError` unless the three lists of a pyramid have one entry per level, in range."""
    check_integers(f"{owner}.depths", depths, 1, MAX_DEPTH)
    check_integers(f"{owner}.channels", channels, 1, MAX_WIDTH)
    check_integers(f"{owner}.attn_depths", attn_depths, 0, 1)
    if not channels or not len(depths) == len(channels) == len(attn_depths):
        raise InvalidInputError(
            f"{owner}: depths, channels and attn_depths need one entry per level, "
            f"got {depths}, {channels} and {attn_depths}"
        )


def check_group_norms(channels: list[int]) -> None:
    """Raise `InvalidInputError` if a group norm of the U-Net would not divide its channels evenly."""
    for c1, c2 in level_channels(channels):
        for width in (c1, c2, 2 * c2, c1 + c2):
            if width % num_groups(width):
                raise InvalidInputError(
                    f"denoiser.inner_model: channels={channels} need a norm of {num_groups(width)} groups "
                    f"over {width} channels; use multiples of 32, or channels below 32"
                )


@dataclass
class InnerModelConfig:
    """Sizes of the denoiser's network. Defaults are the published ones.

    Attributes:
        img_channels: Channels of a frame.
        num_steps_conditioning: Number of past frames and actions that the next frame depends on (n).
        cond_channels: Width of the conditioning vector; must be divisible by n and by 2.
        depths: Residual blocks per level.
        channels: Channels per level.
        attn_depths: 1 where a level has self-attention, else 0.
        num_actions: Size of the action set; filled in from the game when None, unused where actions are not
            discrete.
        patch_size: Side of the pixel blocks folded into channels before the network (1 as published).
        input_skip: Whether the last convolution also sees the network's input, so that static content need
            not pass through the U-Net (False as published).
        cond_out_channels: Width of the conditioning vector that the norms see, after its projection; None for
            `cond_channels`, as published. A third of a small U-Net's weights read it.
        num_outcomes: Outcomes of a step, of which the noise chooses one (`Outcomes`); 1, as published, has no
            choice but by several denoising steps.
    """

    img_channels: int = 3
    num_steps_conditioning: int = 4
    cond_channels: int = 256
    depths: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    channels: list[int] = field(default_factory=lambda: [64, 64, 64, 64])
    attn_depths: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    num_actions: int | None = None
    patch_size: int = 1
    input_skip: bool = False
    cond_out_channels: int | None = None
    num_outcomes: int = 1

    def __post_init__(self) -> None:
        check_levels("denoiser.inner_model", self.depths, self.channels, self.attn_depths)
        check_group_norms(self.channels)
        for name in _WIDTHS:
            if getattr(self, name) is not None:
                check_integer(f"denoiser.inner_model: {name}", getattr(self, name), 1, MAX_WIDTH)
        if self.cond_channels % self.num_steps_conditioning or self.cond_channels % 2:
            raise InvalidInputError(
                f"denoiser.inner_model: cond_channels={self.cond_channels} must be even and divisible by "
                f"num_steps_conditioning={self.num_steps_conditioning}"
            )

    @property
    def divides(self) -> int:
        """Factor by which the U-Net and the patches reduce a frame's side."""
        return self.patch_size * 2 ** (len(self.channels) - 1)


_WIDTHS = (
    *("img_channels", "num_steps_conditioning", "cond_channels", "cond_out_channels"),
    *("patch_size", "num_actions", "num_outcomes"),
)
OBJECTIVES = ("edm", "ddpm")


@dataclass
class DenoiserConfig:
    """The network's target, the constants of its preconditioning, and its sizes.

    Attributes:
        inner_model: Sizes of the network.
        sigma_data: Standard deviation of frames, by which "edm" divides past frames.
        sigma_offset_noise: Standard deviation of the noise that all pixels of a channel share in training.
        objective: "edm" (Karras et al. 2022, as published) or "ddpm": the network predicts the noise
            (`diamond_gym.world.ddpm`), for the comparison of section 5.1. Weights do not tell which, except
            for the paper's own of DDPM, whose network has another name.
    """

    inner_model: InnerModelConfig = field(default_factory=InnerModelConfig)
    sigma_data: float = 0.5
    sigma_offset_noise: float = 0.3
    objective: str = "edm"

    def __post_init__(self) -> None:
        check_number("denoiser.sigma_data", self.sigma_data, 0, MAX_SIGMA, above=True)
        check_number("denoiser.sigma_offset_noise", self.sigma_offset_noise, 0, MAX_SIGMA)
        if self.objective not in OBJECTIVES:
            raise InvalidInputError(
                f"denoiser.objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}"
            )
        if self.objective != "edm" and self.inner_model.num_outcomes > 1:
            raise InvalidInputError(
                f"denoiser.inner_model.num_outcomes must be 1 with objective {self.objective}, got "
                f"{self.inner_model.num_outcomes}: each of its many passes would choose anew"
            )


def discrete_space(num_actions: int | None) -> ActionSpace:
    """The discrete actions of a network's config, which must say how many there are."""
    assert num_actions is not None
    return ActionSpace.discrete(num_actions)


def rows_as_numbers(images: Tensor, p: int) -> Tensor:
    """View every p neighbours in a row as one wide number, if possible, so that moving them is faster.

    It is up to six times as fast. Images that need a gradient are returned unchanged.
    """
    dtype = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(p * images.element_size())
    return images if dtype is None or images.requires_grad else images.contiguous().view(dtype)


class Features(NamedTuple):
    """What the inner network knows of a step before an outcome is chosen.

    Attributes:
        inputs: The past frames and the noisy one.
        modulation: Scales and shifts of the norms.
        encoded: Features of the frames.
        logits: Logits of the outcomes' probabilities; None where there is only one.
    """

    inputs: Float[Tensor, "b c h w"]
    modulation: Modulation
    encoded: Encoded
    logits: Float[Tensor, "b k"] | None


class InnerModel(nn.Module):
    """The raw network F of the preconditioned denoiser."""

    def __init__(self, config: InnerModelConfig, space: ActionSpace) -> None:
        super().__init__()
        n, p = config.num_steps_conditioning, config.patch_size
        cond_out_channels = config.cond_out_channels or config.cond_channels
        self.patch_size = p
        self.input_skip = config.input_skip
        in_channels = (n + 1) * config.img_channels * p * p
        self.noise_emb = FourierFeatures(config.cond_channels)
        self.act_emb = nn.Sequential(action_embedding(space, config.cond_channels // n), nn.Flatten())
        self.cond_proj = nn.Sequential(
            nn.Linear(config.cond_channels, config.cond_channels),
            nn.SiLU(),
            nn.Linear(config.cond_channels, cond_out_channels),
        )
        self.conv_in = conv3x3(in_channels, config.channels[0])
        self.unet = UNet(cond_out_channels, config.depths, config.channels, config.attn_depths)
        self.modulator = Modulator(self.unet)
        self.norm_out = GroupNorm(config.channels[0])
        skip_channels = in_channels if config.input_skip else 0
        self.conv_out = conv3x3(config.channels[0] + skip_channels, config.img_channels * p * p)
        nn.init.zeros_(self.conv_out.weight)
        self.outcomes = (
            Outcomes(config.channels[-1], self.modulator, config.num_outcomes)
            if config.num_outcomes > 1
            else None
        )

    def fold(self, images: Tensor) -> Tensor:
        """Bring images (b c h w) to the first convolution's form: patches in channels, in its memory layout.

        Returns:
            Shape (b, c * p * p, h / p, w / p) for patches of p by p pixels.
        """
        if not self.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
            return F.pixel_unshuffle(images, self.patch_size) if self.patch_size > 1 else images
        if self.patch_size == 1:
            return images.contiguous(memory_format=torch.channels_last)
        b, c, h, w = images.shape
        p = self.patch_size
        rows = rows_as_numbers(images, p)
        patches = rows.reshape(b, c, h // p, p, w // p, -1).permute(0, 2, 4, 1, 3, 5)
        folded = patches.reshape(b, h // p, w // p, -1).contiguous()  # one copy: one channel gives a view
        folded = folded if rows is images else folded.view(images.dtype)
        return folded.permute(0, 3, 1, 2)

    def forward(
        self,
        noisy_next_obs: Float[Tensor, "b c h w"],
        c_noise: Float[Tensor, "#b"],
        obs: Float[Tensor, "b nc h w"],
        act: Shaped[Tensor, "b n *a"],
    ) -> Float[Tensor, "b c2 h2 w2"]:
        """Run the network on images from `fold`.

        `obs` holds the n past frames in its channels, oldest first, already scaled; all denoising steps of a
        frame use the same. `c_noise` may have one entry for all images.
        """
        features = self.encode(noisy_next_obs, c_noise, obs, act)
        outcome = None if features.logits is None else choose(features.logits, noisy_next_obs)
        return self.decode(features, outcome)

    def encode(
        self,
        noisy_next_obs: Float[Tensor, "b c h w"],
        c_noise: Float[Tensor, "#b"],
        obs: Float[Tensor, "b nc h w"],
        act: Shaped[Tensor, "b n *a"],
    ) -> Features:
        """Run the part of `forward` that does not depend on the outcome."""
        modulation = self.modulator(self.cond_proj(self.noise_emb(c_noise) + self.act_emb(act)))
        inputs = torch.cat([obs, noisy_next_obs], dim=1)
        encoded = self.unet.encode(self.conv_in(inputs), modulation)
        logits = None if self.outcomes is None else self.outcomes(encoded.middle)
        return Features(inputs, modulation, encoded, logits)

    def decode(self, features: Features, outcome: Int64[Tensor, " b"] | None) -> Float[Tensor, "b c2 h2 w2"]:
        """Run the rest, for an outcome of each image; None where there is only one."""
        modulation = features.modulation
        if self.outcomes is not None and outcome is not None:
            modulation = self.outcomes.modulate(modulation, outcome)
        x = self.norm_out.silu(self.unet.decode(features.encoded, modulation))
        x = self.conv_out(torch.cat([x, features.inputs], dim=1) if self.input_skip else x)
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x


class Conditioners(NamedTuple):
    """Preconditioning coefficients; the first three broadcast over images, `c_noise` is a vector.

    b is the batch size, or 1 for one noise level of all images.
    """

    c_in: Float[Tensor, "b 1 1 1"]
    c_out: Float[Tensor, "b 1 1 1"]
    c_skip: Float[Tensor, "b 1 1 1"]
    c_noise: Float[Tensor, " b"]


class Denoiser(nn.Module):
    """The denoiser, which predicts the next frame from a noisy one, the n past frames and n last actions.

    The preconditioning is that of Karras et al. 2022 (table 1, "EDM") at the noise level
    `s = sqrt(sigma^2 + sigma_offset_noise^2)`, which folds in the per-channel offset noise used in training.
    With `objective` "ddpm" it is that of `diamond_gym.world.ddpm`.

    A noise level is a sigma > 0 of EDM, or a timestep 0..999 of DDPM.

    Args:
        config: Its sizes.
        space: Its actions; None for the discrete ones of `config`.
    """

    def __init__(self, config: DenoiserConfig, space: ActionSpace | None = None) -> None:
        super().__init__()
        self.config = config
        self.action_space = space or discrete_space(config.inner_model.num_actions)
        self.inner_model = InnerModel(config.inner_model, self.action_space)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the inner network."""
        return self.inner_model.conv_in.weight.dtype

    @property
    def _past_scale(self) -> float:
        """The divisor of past frames, which is 1 for DDPM."""
        return 1.0 if self.config.objective == "ddpm" else self.config.sigma_data

    def conditioners(self, level: Float[Tensor, " b"]) -> Conditioners:
        """Compute the coefficients at each image's noise level."""
        return self._ddpm(level) if self.config.objective == "ddpm" else self._edm(level)

    def _edm(self, sigma: Float[Tensor, " b"]) -> Conditioners:
        sigma_data = self.config.sigma_data
        s = (sigma**2 + self.config.sigma_offset_noise**2).sqrt()
        c_in = 1 / (s**2 + sigma_data**2).sqrt()
        c_skip = sigma_data**2 / (s**2 + sigma_data**2)
        c_out = s * c_skip.sqrt()
        c_noise = s.log() / 4
        c_in, c_out, c_skip = (c[:, None, None, None] for c in (c_in, c_out, c_skip))
        return Conditioners(c_in, c_out, c_skip, c_noise)

    def _ddpm(self, timestep: Float[Tensor, " b"]) -> Conditioners:
        abar = ddpm.alphas_cumprod(timestep.device)[timestep.long()][:, None, None, None]
        c_noise = (timestep + 1) / ddpm.NUM_TIMESTEPS
        return Conditioners(torch.ones_like(abar), -((1 - abar) / abar).sqrt(), abar.rsqrt(), c_noise)

    def fold_past(self, obs: Float[Tensor, "b nc h w"]) -> Float[Tensor, "b nc2 h2 w2"]:
        """Bring past frames to the inner network's form, which is the same at every noise level."""
        return self.inner_model.fold((obs / self._past_scale).to(self.dtype))

    def fold_frames(self, frames: UInt8[Tensor, "b n c h w"]) -> Float[Tensor, "b nc2 h2 w2"]:
        """Apply `fold_past` to uint8 frames, by moving bytes instead of floats."""
        folded = to_float(self.inner_model.fold(frames.flatten(1, 2)))
        return (folded / self._past_scale).to(self.dtype)

    def model_output(
        self,
        noisy_next_obs: Float[Tensor, "b c h w"],
        c: Conditioners,
        past: Float[Tensor, "b nc2 h2 w2"],
        act: Shaped[Tensor, "b n *a"],
    ) -> Float[Tensor, "b c h w"]:
        """Run the inner network on inputs scaled to unit variance; `past` is from `fold_past`."""
        return self.inner_model(*self._scaled(noisy_next_obs, c), past, act)

    def encode(
        self,
        noisy_next_obs: Float[Tensor, "b c h w"],
        c: Conditioners,
        past: Float[Tensor, "b nc2 h2 w2"],
        act: Shaped[Tensor, "b n *a"],
    ) -> Features:
        """Run the inner network's encoder, as `model_output` does; `inner_model.decode` runs the rest."""
        return self.inner_model.encode(*self._scaled(noisy_next_obs, c), past, act)

    def _scaled(self, noisy_next_obs: Tensor, c: Conditioners) -> tuple[Tensor, Tensor]:
        """The noisy frame, scaled and folded, and its noise level, as the inner network takes them."""
        return self.inner_model.fold((noisy_next_obs * c.c_in).to(self.dtype)), c.c_noise.to(self.dtype)

    def wrap_model_output(
        self,
        noisy_next_obs: Float[Tensor, "b c h w"],
        model_output: Float[Tensor, "b c h w"],
        c: Conditioners,
    ) -> Float[Tensor, "b c h w"]:
        """Compute the denoised frame, clamped and quantised as released weights expect."""
        return quantize(c.c_skip * noisy_next_obs + c.c_out * model_output)

    def denoise(
        self,
        noisy_next_obs: Float[Tensor, "b c h w"],
        c: Conditioners,
        past: Float[Tensor, "b nc2 h2 w2"],
        act: Shaped[Tensor, "b n *a"],
    ) -> Float[Tensor, "b c h w"]:
        """Estimate the clean next frame in [-1, 1]: on 256 levels with EDM, not yet quantised with DDPM.

        Args:
            noisy_next_obs: The frame at a noise level, float32.
            c: Result of `conditioners` at that level.
            past: Result of `fold_past` or `fold_frames` for the n past frames, oldest first.
            act: The n last actions, oldest first; the newest is the one being taken.
        """
        output = self.model_output(noisy_next_obs, c, past, act)
        if self.config.objective == "ddpm":  # quantised once, after the last step
            return (c.c_skip * noisy_next_obs + c.c_out * output).float().clamp(-1, 1)
        return self.wrap_model_output(noisy_next_obs, output, c)

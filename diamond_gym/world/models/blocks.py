"""The layers of the three networks.

Attribute names are the state-dict interface of released checkpoints.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diamond_gym.world.models import fused_norm, prepared
from diamond_gym.world.models.prepared import Prepared

GROUP_SIZE = 32
GROUP_NORM_EPS = 1e-5
ATTENTION_HEAD_DIM = 8


def num_groups(channels: int) -> int:
    """Return the number of groups of a group norm: one per 32 channels, at least one."""
    return max(1, channels // GROUP_SIZE)


class Conv2d(nn.Conv2d):
    """A convolution that can keep its weights in the order in which oneDNN's kernels read them.

    PyTorch brings them to that order at every call, which takes up to a third of the time of a small image.

    Attributes:
        prepared: Keeps them, on CPUs where oneDNN multiplies numbers of their precision; None to leave it to
            PyTorch.
    """

    prepared: Prepared | None = None

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        if self.prepared is None or not prepared.applies() or self._is_fast_unprepared:
            return super().forward(input)
        weight = self.prepared.get([self.weight], lambda: self._reordered(input.shape))
        return torch.ops.mkldnn._convolution_pointwise(input, weight, self.bias, *self._how, "none", [], "")

    @property
    def _is_fast_unprepared(self) -> bool:
        """Whether PyTorch has a faster kernel of its own, which it has for single pixels in float32."""
        return self.kernel_size == (1, 1) and self.weight.dtype == torch.float32

    @property
    def _how(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def _reordered(self, shape: torch.Size) -> Tensor:
        weight = self.weight.detach().contiguous().to_mkldnn()
        return torch.ops.aten.mkldnn_reorder_conv2d_weight(weight, *self._how, shape)


def conv1x1(in_channels: int, out_channels: int) -> Conv2d:
    """Make a convolution of each pixel on its own."""
    return Conv2d(in_channels, out_channels, kernel_size=1)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> Conv2d:
    """Make a 3x3 convolution that keeps the image size, or divides it by `stride`."""
    return Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)


class GroupNorm(nn.Module):
    """Group normalisation with learned scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups(channels), channels, eps=GROUP_NORM_EPS)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.norm(x)

    def silu(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return SiLU of the output."""
        if fused_norm.applies_to(x):
            scale, shift = (v.expand(len(x), -1) for v in (self.norm.weight, self.norm.bias))
            return fused_norm.norm_scale_shift_silu(x, self.norm.num_groups, scale, shift, GROUP_NORM_EPS)
        return F.silu(self(x), inplace=True)


class Modulation(NamedTuple):
    """Scales and shifts of all `AdaGroupNorm` layers of a network, one after the other.

    Those of a single image may be vectors, which PyTorch's group norm applies itself.
    """

    scale: Float[Tensor, "b c 1 1"] | Float[Tensor, " c"]
    shift: Float[Tensor, "b c 1 1"] | Float[Tensor, " c"]


class AdaGroupNorm(nn.Module):
    """Group normalisation whose scale and shift are a linear function of a conditioning vector.

    Attributes:
        first_channel: Index where its part of a `Modulation` begins.
    """

    def __init__(self, channels: int, cond_channels: int) -> None:
        super().__init__()
        self.num_groups = num_groups(channels)
        self.linear = nn.Linear(cond_channels, 2 * channels)
        self.first_channel = 0

    def forward(self, x: Float[Tensor, "b c h w"], modulation: Modulation) -> Float[Tensor, "b c h w"]:
        is_of_one_image = modulation.scale.ndim == 1
        channel_axis = 0 if is_of_one_image else 1
        scale, shift = (part.narrow(channel_axis, self.first_channel, x.shape[1]) for part in modulation)
        if is_of_one_image:
            return F.group_norm(x, self.num_groups, scale, shift, GROUP_NORM_EPS)
        x = F.group_norm(x, self.num_groups, eps=GROUP_NORM_EPS)
        if torch.is_grad_enabled():
            return (x * scale).add_(shift)
        if x.dtype == torch.float32:
            return x.mul_(scale).add_(shift)  # rounds as the published code does, unlike addcmul
        return torch.addcmul(shift, x, scale)

    def silu(self, x: Float[Tensor, "b c h w"], modulation: Modulation) -> Float[Tensor, "b c h w"]:
        """Return SiLU of the output."""
        if fused_norm.applies_to(x):
            parts = (part.narrow(1, self.first_channel, x.shape[1])[:, :, 0, 0] for part in modulation)
            scale, shift = (part.expand(len(x), -1) for part in parts)
            return fused_norm.norm_scale_shift_silu(x, self.num_groups, scale, shift, GROUP_NORM_EPS)
        return F.silu(self(x, modulation), inplace=True)


class Modulator(nn.Module):
    """Computes the scales and shifts of all adaptive norms of a network in one matrix product.

    It has no weights: each norm keeps its own, as in released checkpoints.

    Args:
        network: The network with the norms.

    Attributes:
        prepared: Keeps the weights put together; None to do it anew at each call.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.norms = [module for module in network.modules() if isinstance(module, AdaGroupNorm)]
        first_channel = 0
        for norm in self.norms:
            norm.first_channel = first_channel
            first_channel += norm.linear.out_features // 2
        self.prepared: Prepared | None = None

    def forward(self, cond: Float[Tensor, "b d"]) -> Modulation:
        if self.prepared is None or not prepared.applies():
            return modulation(cond, *self.weight_and_bias())
        weights = [weight for norm in self.norms for weight in (norm.linear.weight, norm.linear.bias)]
        parts = modulation(cond, *self.prepared.get(weights, self.weight_and_bias))
        return Modulation(*(part.flatten() for part in parts)) if len(cond) == 1 else parts

    def weight_and_bias(self) -> tuple[Float[Tensor, "c2 d"], Float[Tensor, " c2"]]:
        """Put the weights of all norms together: first those of all scales, then those of all shifts."""
        weight = _scales_first([norm.linear.weight for norm in self.norms])
        return weight, _scales_first([norm.linear.bias for norm in self.norms])


def modulation(
    cond: Float[Tensor, "b d"], weight: Float[Tensor, "c2 d"], bias: Float[Tensor, " c2"]
) -> Modulation:
    """Compute all scales and shifts, with weights from `Modulator.weight_and_bias`."""
    scale, shift = F.linear(cond, weight, bias)[:, :, None, None].chunk(2, dim=1)
    return Modulation(1 + scale, shift)


def _scales_first(scales_and_shifts: list[Tensor]) -> Tensor:
    """Concatenate the first halves of all tensors, then the second halves."""
    halves = [x.chunk(2) for x in scales_and_shifts]
    return torch.cat([scales for scales, _ in halves] + [shifts for _, shifts in halves])


class SelfAttention2d(nn.Module):
    """Multi-head self-attention over the pixels of an image, added to its normalised input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = max(1, channels // ATTENTION_HEAD_DIM)
        self.norm = GroupNorm(channels)
        self.qkv_proj = conv1x1(channels, 3 * channels)
        self.out_proj = conv1x1(channels, channels)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        x = self.norm(x)  # the skip carries the normalised input: released weights expect it
        qkv = self.qkv_proj(x).reshape(b, 3, self.num_heads, c // self.num_heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        # explicit, because on CPUs the fused kernel's backward is 10 times slower for so few pixels
        weights = ((q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        y = weights @ v
        return x + self.out_proj(y.transpose(-1, -2).reshape(b, c, h, w))


class FourierFeatures(nn.Module):
    """Random Fourier features of the noise level (Tancik et al. 2020); the frequencies are a fixed buffer."""

    def __init__(self, cond_channels: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.randn(1, cond_channels // 2))

    def forward(self, c_noise: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        f = 2 * math.pi * c_noise[:, None] * self.weight
        return torch.cat([f.cos(), f.sin()], dim=-1)


class Downsample(nn.Module):
    """A strided 3x3 convolution that halves the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, stride=2)
        nn.init.orthogonal_(self.conv.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(x)


_SUMS_OF_ROW = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
_SUMS_OF_COPIES = torch.kron(_SUMS_OF_ROW, _SUMS_OF_ROW).T.contiguous()
"""Maps the 3x3 weights of `Upsample` to the 4x4 ones of the equivalent transposed convolution."""


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution.

    Several of the nine pixels that the convolution sees are copies of one. With their weights summed, it is a
    transposed convolution of the small image with 4 products instead of 9: twice as fast on CPUs, and equal
    up to rounding.

    Attributes:
        merges_copies: Whether to compute it that way.
        prepared: Keeps the summed weights; None to sum them anew at each call.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)
        self.merges_copies = False
        self.prepared: Prepared | None = None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        if not self.merges_copies:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if self.prepared is None or not prepared.applies():
            weight = self._merged_weight()
        else:
            weight = self.prepared.get([self.conv.weight], self._laid_out_weight)
        return F.conv_transpose2d(x, weight, self.conv.bias, stride=2, padding=1)

    def _merged_weight(self) -> Float[Tensor, "c c 4 4"]:
        c = self.conv.in_channels
        sums = _SUMS_OF_COPIES.to(self.conv.weight)
        return (self.conv.weight.reshape(c * c, 9) @ sums).reshape(c, c, 4, 4).transpose(0, 1)

    def _laid_out_weight(self) -> Float[Tensor, "c c 4 4"]:
        return self._merged_weight().contiguous(memory_format=torch.channels_last)


class ResBlock(nn.Module):
    """Two adaptive-norm, SiLU, 3x3-convolution stages beside a skip, then optional attention."""

    def __init__(self, in_channels: int, out_channels: int, cond_channels: int, *, attention: bool) -> None:
        super().__init__()
        self.proj = conv1x1(in_channels, out_channels) if in_channels != out_channels else nn.Identity()
        self.norm1 = AdaGroupNorm(in_channels, cond_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = AdaGroupNorm(out_channels, cond_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.attn = SelfAttention2d(out_channels) if attention else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "b c h w"], modulation: Modulation) -> Float[Tensor, "b c2 h w"]:
        r = self.proj(x)
        x = self.conv1(self.norm1.silu(x, modulation))
        x = self.conv2(self.norm2.silu(x, modulation))
        return self.attn(x.add_(r))


class ResBlocks(nn.Module):
    """A sequence of residual blocks that returns every block's output; `skips` are concatenated to inputs."""

    def __init__(
        self, in_channels: list[int], out_channels: list[int], cond_channels: int, *, attention: bool
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResBlock(c_in, c_out, cond_channels, attention=attention)
            for c_in, c_out in zip(in_channels, out_channels, strict=True)
        )

    def forward(
        self, x: Tensor, modulation: Modulation, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for i, block in enumerate(self.resblocks):
            x = x if skips is None else torch.cat([x, skips[i]], dim=1)
            x = block(x, modulation)
            outputs.append(x)
        return x, outputs


def level_channels(channels: list[int]) -> list[tuple[int, int]]:
    """Return (input, output) channels of each level of a pyramid; the first level keeps its channels."""
    return list(zip([channels[0], *channels[:-1]], channels, strict=True))


class Encoded(NamedTuple):
    """What the encoder of a U-Net hands to its decoder.

    Attributes:
        middle: Features of the smallest level.
        skips: Features of each level, from the largest on, in the order in which the decoder takes them.
        size: Height and width of the input.
    """

    middle: Float[Tensor, "b c h w"]
    skips: list[list[Tensor]]
    size: tuple[int, int]


class UNet(nn.Module):
    """The U-Net of the denoiser: residual blocks down a pyramid, two middle blocks with attention, and up."""

    def __init__(
        self, cond_channels: int, depths: list[int], channels: list[int], attn_depths: list[int]
    ) -> None:
        super().__init__()
        d_blocks, u_blocks = [], []
        for depth, attention, (c1, c2) in zip(depths, attn_depths, level_channels(channels), strict=True):
            d_blocks.append(
                ResBlocks([c1] + [c2] * (depth - 1), [c2] * depth, cond_channels, attention=bool(attention))
            )
            u_blocks.append(
                ResBlocks(
                    [2 * c2] * depth + [c1 + c2],
                    [c2] * depth + [c1],
                    cond_channels,
                    attention=bool(attention),
                )
            )
        self.d_blocks = nn.ModuleList(d_blocks)
        self.u_blocks = nn.ModuleList(reversed(u_blocks))
        self.mid_blocks = ResBlocks([channels[-1]] * 2, [channels[-1]] * 2, cond_channels, attention=True)
        self.downsamples = nn.ModuleList([nn.Identity(), *(Downsample(c) for c in channels[:-1])])
        self.upsamples = nn.ModuleList([nn.Identity(), *(Upsample(c) for c in reversed(channels[:-1]))])

    def forward(self, x: Float[Tensor, "b c h w"], modulation: Modulation) -> Float[Tensor, "b c h w"]:
        return self.decode(self.encode(x, modulation), modulation)

    def encode(self, x: Float[Tensor, "b c h w"], modulation: Modulation) -> Encoded:
        """Run the way down and the middle blocks."""
        h, w = x.shape[-2:]
        multiple = 2 ** (len(self.d_blocks) - 1)
        x = F.pad(x, (0, -w % multiple, 0, -h % multiple))
        skips = []
        for downsample, block in zip(self.downsamples, self.d_blocks, strict=True):
            x_level = downsample(x)
            x, outputs = block(x_level, modulation)
            skips.append([*reversed(outputs), x_level])
        x, _ = self.mid_blocks(x, modulation)
        return Encoded(x, skips, (h, w))

    def decode(self, encoded: Encoded, modulation: Modulation) -> Float[Tensor, "b c h w"]:
        """Run the way up; the modulation may be another than the encoder's."""
        x, skips, (h, w) = encoded
        for upsample, block, level_skips in zip(self.upsamples, self.u_blocks, reversed(skips), strict=True):
            x, _ = block(upsample(x), modulation, level_skips)
        return x[..., :h, :w]


class SmallResBlock(nn.Module):
    """Group norm, SiLU and a 3x3 convolution beside a skip (the actor-critic's block)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(GroupNorm(in_channels), nn.SiLU(), conv3x3(in_channels, out_channels))
        self.skip_projection = (
            conv1x1(in_channels, out_channels) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        return self.skip_projection(x) + self.f(x)


def init_lstm(lstm: nn.LSTM | nn.LSTMCell) -> None:
    """Initialise: Xavier input weights, orthogonal recurrent weights, biases 0, input-side forget gate 1."""
    for name, p in lstm.named_parameters():
        if "weight_ih" in name:
            nn.init.xavier_uniform_(p)
        elif "weight_hh" in name:
            nn.init.orthogonal_(p)
        else:
            nn.init.zeros_(p)
            if "bias_ih" in name:
                p.data[lstm.hidden_size : 2 * lstm.hidden_size] = 1

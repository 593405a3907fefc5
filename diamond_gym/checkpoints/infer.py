"""The sizes of an agent's networks, read off the shapes of its weights.

Published checkpoints are bare state dicts; this is how they load without the configuration they were trained
with. The same check shows whether a configuration stored beside weights belongs to them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.world.models import (
    ActorCriticConfig,
    AgentConfig,
    DenoiserConfig,
    InnerModelConfig,
    RewEndModelConfig,
)

_USUAL_IMG_SIZE = (64, 64)
_MAX_IMG_SIZE = 1024
_NETWORK, _DDPM_NETWORK = "denoiser.inner_model.", "denoiser.noise_model."
"""Prefixes of the names of the denoiser's weights, in most checkpoints and in the paper's DDPM ones."""


def infer_agent_config(state_dict: Mapping[str, Tensor], known: AgentConfig | None = None) -> AgentConfig:
    """Infer the sizes of an agent from its state dict.

    Args:
        state_dict: Weights under the published names; the actor-critic's may be absent.
        known: Gives what shapes do not tell: sigma_data, sigma_offset_noise, the denoiser's objective, the
            image size where several fit, the stages of the actor-critic that pool, the action space where it
            is not discrete. Without it these are the
            published values, and the first stages of the actor-critic are assumed to pool, with a warning
            where that is a guess.

    Returns:
        The complete configuration, the actions included.

    Raises:
        CheckpointError: A tensor is missing, or shapes contradict each other.
    """
    try:
        return _infer(state_dict, known or AgentConfig())
    except InvalidInputError as error:
        raise CheckpointError(f"the weights are of no DIAMOND agent: {error}") from error


def _infer(state_dict: Mapping[str, Tensor], known: AgentConfig) -> AgentConfig:
    shapes = _Shapes(state_dict)
    denoiser = _infer_denoiser(shapes, known.denoiser)
    inner = denoiser.inner_model
    rew_end = _infer_rew_end(shapes, inner.img_channels)
    has_actor_critic = has_actor_critic_weights(state_dict)
    size = _infer_img_size(shapes, rew_end, known.rew_end_model.frame_size, has_actor_critic)
    frames: dict[str, Any] = {"img_size": size[0], "img_width": None if size[0] == size[1] else size[1]}
    if has_actor_critic:
        actor_critic = replace(_infer_actor_critic(shapes, size, known.actor_critic.down), **frames)
    else:
        actor_critic = replace(known.actor_critic, img_channels=inner.img_channels, **frames)
    config = AgentConfig(denoiser, replace(rew_end, **frames), actor_critic)
    if known.actions is not None:
        return replace(config, actions=known.actions)
    num_actions, _ = shapes.of("denoiser.inner_model.act_emb.0.weight", 2)
    return config.with_num_actions(num_actions)


def with_our_names(
    state_dict: Mapping[str, Tensor], known: AgentConfig | None
) -> tuple[Mapping[str, Tensor], AgentConfig | None]:
    """Rename the weights of the paper's DDPM (section 5.1) as those of EDM's network; keep all others.

    Returns:
        The weights, and a dict of what their names tell, namely that the objective is "ddpm", or nothing.
    """
    if not any(key.startswith(_DDPM_NETWORK) for key in state_dict):
        return state_dict, known
    renamed = {
        f"{_NETWORK}{key.removeprefix(_DDPM_NETWORK)}" if key.startswith(_DDPM_NETWORK) else key: value
        for key, value in state_dict.items()
    }
    known = known or AgentConfig()
    return renamed, replace(known, denoiser=replace(known.denoiser, objective="ddpm"))


def has_actor_critic_weights(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the agent has a policy."""
    return any(key.startswith("actor_critic.") for key in state_dict)


class _Shapes:
    """Shapes of a state dict's tensors; a missing one is a `CheckpointError`."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self.shapes = {key: tuple(value.shape) for key, value in state_dict.items()}

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def of(self, key: str, num_dims: int) -> tuple[int, ...]:
        """The shape of a tensor that must exist and have `num_dims` dimensions, none of them 0."""
        shape = self.shapes.get(key)
        if shape is None:
            raise CheckpointError(f"the tensor {key} is missing")
        if len(shape) != num_dims or 0 in shape:
            raise CheckpointError(f"{key} should have {num_dims} dimensions and is of shape {list(shape)}")
        return shape

    def count(self, pattern: str) -> int:
        """Count the keys `pattern.format(0)`, `pattern.format(1)`, ... up to the first that is missing."""
        i = 0
        while pattern.format(i) in self.shapes:
            i += 1
        return i

    def levels(self, prefix: str, num_levels: int) -> tuple[list[int], list[int], list[int]]:
        """depths, channels and attn_depths of the residual levels `prefix.0`, `prefix.1`, ..."""
        if num_levels < 1:
            raise CheckpointError(f"{prefix} has no level: the tensor of its first convolution is missing")
        depths, channels, attn_depths = [], [], []
        for level in range(num_levels):
            blocks = f"{prefix}.{level}.resblocks"
            depths.append(self.count(blocks + ".{}.conv1.weight"))
            channels.append(self.of(f"{blocks}.0.conv1.weight", 4)[0])
            attn_depths.append(int(f"{blocks}.0.attn.qkv_proj.weight" in self))
        return depths, channels, attn_depths


def _infer_denoiser(shapes: _Shapes, known: DenoiserConfig) -> DenoiserConfig:
    prefix = "denoiser.inner_model"
    in_channels = shapes.of(f"{prefix}.conv_in.weight", 4)[1]
    out_channels = shapes.of(f"{prefix}.conv_out.weight", 4)[0]
    img_channels, patch_size = _image_channels_and_patch(out_channels)
    num_images = in_channels // out_channels
    if in_channels % out_channels or num_images < 2:
        raise CheckpointError(
            f"{prefix}.conv_in takes {in_channels} channels, not a multiple of the {out_channels} of a frame"
        )
    num_levels = shapes.count(prefix + ".unet.d_blocks.{}.resblocks.0.conv1.weight")
    depths, channels, attn_depths = shapes.levels(f"{prefix}.unet.d_blocks", num_levels)
    cond_channels = shapes.of(f"{prefix}.cond_proj.0.weight", 2)[0]
    cond_out_channels = shapes.of(f"{prefix}.cond_proj.2.weight", 2)[0]
    codes = f"{prefix}.outcomes.codes.weight"
    inner_model = InnerModelConfig(
        img_channels=img_channels,
        num_steps_conditioning=num_images - 1,
        cond_channels=cond_channels,
        depths=depths,
        channels=channels,
        attn_depths=attn_depths,
        patch_size=patch_size,
        input_skip=shapes.of(f"{prefix}.conv_out.weight", 4)[1] == channels[0] + in_channels,
        cond_out_channels=None if cond_out_channels == cond_channels else cond_out_channels,
        num_outcomes=shapes.of(codes, 2)[0] if codes in shapes else 1,
    )
    return replace(known, inner_model=inner_model)


def _image_channels_and_patch(channels: int) -> tuple[int, int]:
    """Return (3, p) for colour or (1, p) for grey frames folded into `channels` channels; only one fits."""
    for img_channels in (3, 1):
        patch_size = math.isqrt(channels // img_channels)
        if img_channels * patch_size**2 == channels:
            return img_channels, patch_size
    raise CheckpointError(f"frames of {channels} channels are neither colour nor grey images, folded or not")


def _infer_rew_end(shapes: _Shapes, img_channels: int) -> RewEndModelConfig:
    """Infer everything except the image size."""
    in_channels = shapes.of("rew_end_model.encoder.conv_in.weight", 4)[1]
    patch_size = math.isqrt(in_channels // (2 * img_channels))
    if 2 * img_channels * patch_size**2 != in_channels:
        raise CheckpointError(
            f"rew_end_model.encoder.conv_in takes {in_channels} channels, which is not a pair of frames of "
            f"{img_channels}"
        )
    num_levels = shapes.count("rew_end_model.encoder.blocks.{}.resblocks.0.conv1.weight") - 1
    depths, channels, attn_depths = shapes.levels("rew_end_model.encoder.blocks", num_levels)
    norm = shapes.of("rew_end_model.encoder.blocks.0.resblocks.0.norm1.linear.weight", 2)
    return RewEndModelConfig(
        lstm_dim=shapes.of("rew_end_model.lstm.weight_hh_l0", 2)[1],
        img_channels=img_channels,
        cond_channels=norm[1],
        depths=depths,
        channels=channels,
        attn_depths=attn_depths,
        patch_size=patch_size,
    )


def _infer_img_size(
    shapes: _Shapes, rew_end: RewEndModelConfig, known: tuple[int, int], has_actor_critic: bool
) -> tuple[int, int]:
    """Return the known height and width if they fit, else the usual ones, else the largest that fit."""
    features = shapes.of("rew_end_model.lstm.weight_ih_l0", 2)[1]
    squares = [(side, side) for side in range(rew_end.patch_size, _MAX_IMG_SIZE + 1, rew_end.patch_size)]
    possible = [known, *squares] if all(side % rew_end.patch_size == 0 for side in known) else squares
    fitting = [
        (h, w)
        for h, w in possible
        if replace(rew_end, img_size=h, img_width=w).features == features
        and (not has_actor_critic or _num_poolings(shapes, (h, w)) is not None)
    ]
    if not fitting:
        raise CheckpointError(
            f"no image size gives the {features} features of rew_end_model.lstm.weight_ih_l0"
        )
    return next((size for size in (known, _USUAL_IMG_SIZE) if size in fitting), fitting[-1])


def _num_poolings(shapes: _Shapes, size: tuple[int, int]) -> int | None:
    """Count how often the actor-critic halves an image of this size; None when no number fits."""
    channels = _actor_critic_channels(shapes)
    features = shapes.of("actor_critic.lstm.weight_ih", 2)[1]
    for num_poolings in range(len(channels) + 1):
        h, w = (side >> num_poolings for side in size)
        if channels[-1] * h * w == features:
            return num_poolings
    return None


def _actor_critic_channels(shapes: _Shapes) -> list[int]:
    stage = re.compile(r"actor_critic\.encoder\.encoder\.(\d+)\.f\.2\.weight")
    stages = sorted(int(match[1]) for key in shapes.shapes if (match := stage.fullmatch(key)))
    if not stages:
        raise CheckpointError(
            "the actor-critic has no convolutions actor_critic.encoder.encoder.*.f.2.weight"
        )
    return [shapes.of(f"actor_critic.encoder.encoder.{i}.f.2.weight", 4)[0] for i in stages]


def _infer_actor_critic(shapes: _Shapes, size: tuple[int, int], known_down: list[int]) -> ActorCriticConfig:
    """Infer everything except the image size."""
    channels = _actor_critic_channels(shapes)
    num_poolings = _num_poolings(shapes, size)
    assert num_poolings is not None, "the image size was chosen so that one fits"
    down = [1] * num_poolings + [0] * (len(channels) - num_poolings)
    if len(known_down) == len(channels) and sorted(known_down, reverse=True) == down:
        down = list(known_down)
    elif 0 < num_poolings < len(channels):
        warnings.warn(
            f"{num_poolings} of the actor-critic's {len(channels)} stages pool, and shapes do not tell "
            "which: taking the first. Give its configuration, or use a .safetensors file, which holds it",
            stacklevel=2,
        )
    return ActorCriticConfig(
        lstm_dim=shapes.of("actor_critic.lstm.weight_hh", 2)[1],
        img_channels=shapes.of("actor_critic.encoder.encoder.0.weight", 4)[1],
        channels=channels,
        down=down,
    )

"""The recurrent model of reward sign and episode end. Knows nothing of environments or training."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from diamond_gym.errors import InvalidInputError
from diamond_gym.ranges import check_integer
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models.actions import action_embedding
from diamond_gym.world.models.blocks import (
    Downsample,
    Modulator,
    ResBlocks,
    conv3x3,
    init_lstm,
    level_channels,
)
from diamond_gym.world.models.denoiser import MAX_WIDTH, check_levels, discrete_space

NUM_REWARD_CLASSES = 3
NUM_END_CLASSES = 2

LSTMState = tuple[Tensor, Tensor]


@dataclass
class RewEndModelConfig:
    """Sizes of the reward/end model. Defaults are the published ones.

    Attributes:
        lstm_dim: Width of the LSTM.
        img_channels: Channels of a frame.
        img_size: Height of a frame, and its width unless `img_width` says another.
        img_width: Width of a frame that is not square; None for `img_size`.
        cond_channels: Width of the vector that encodes the action.
        depths: Residual blocks per level.
        channels: Channels per level.
        attn_depths: 1 where a level has self-attention, else 0.
        num_actions: Size of the action set; filled in from the game when None, unused where actions are not
            discrete.
        patch_size: Side of the pixel blocks folded into channels before the network (1 as published).
    """

    lstm_dim: int = 512
    img_channels: int = 3
    img_size: int = 64
    cond_channels: int = 128
    depths: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
    channels: list[int] = field(default_factory=lambda: [32, 32, 32, 32])
    attn_depths: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    num_actions: int | None = None
    patch_size: int = 1
    img_width: int | None = None

    def __post_init__(self) -> None:
        for name in (
            *("lstm_dim", "img_channels", "img_size", "img_width", "cond_channels", "num_actions"),
            "patch_size",
        ):
            if name not in ("num_actions", "img_width") or getattr(self, name) is not None:
                check_integer(f"rew_end_model: {name}", getattr(self, name), 1, MAX_WIDTH)
        check_levels("rew_end_model", self.depths, self.channels, self.attn_depths)
        if any(side % self.patch_size for side in self.frame_size):
            width = "" if self.img_width is None else f" and img_width={self.img_width}"
            raise InvalidInputError(
                f"rew_end_model: patch_size must divide img_size={self.img_size}{width}, "
                f"got {self.patch_size}"
            )

    @property
    def features(self) -> int:
        """Size of the encoder's flattened output."""
        h, w = (side // self.patch_size for side in self.frame_size)
        for _ in self.channels[1:]:
            h, w = (h + 1) // 2, (w + 1) // 2
        return self.channels[-1] * h * w

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.img_size, self.img_width or self.img_size


class RewEndEncoder(nn.Module):
    """A residual pyramid over a pair of frames, conditioned on the action between them."""

    def __init__(self, config: RewEndModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.conv_in = conv3x3(2 * config.img_channels * config.patch_size**2, config.channels[0])
        blocks = [
            ResBlocks(
                [c1] + [c2] * (depth - 1), [c2] * depth, config.cond_channels, attention=bool(attention)
            )
            for depth, attention, (c1, c2) in zip(
                config.depths, config.attn_depths, level_channels(config.channels), strict=True
            )
        ]
        last = [config.channels[-1]] * 2
        blocks.append(ResBlocks(last, last, config.cond_channels, attention=True))
        self.blocks = nn.ModuleList(blocks)
        self.downsamples = nn.ModuleList(
            [nn.Identity(), *(Downsample(c) for c in config.channels[:-1]), nn.Identity()]
        )
        self.modulator = Modulator(self)

    def forward(self, x: Float[Tensor, "b c h w"], cond: Float[Tensor, "b d"]) -> Float[Tensor, "b c2 h2 w2"]:
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x)
        modulation = self.modulator(cond)
        for block, downsample in zip(self.blocks, self.downsamples, strict=True):
            x, _ = block(downsample(x), modulation)
        return x


class RewEndModel(nn.Module):
    """Logits of the reward's sign {-1, 0, +1} and of the end, from frames before and after an action.

    Args:
        config: Its sizes.
        space: Its actions; None for the discrete ones of `config`.
    """

    def __init__(self, config: RewEndModelConfig, space: ActionSpace | None = None) -> None:
        super().__init__()
        self.config = config
        space = space or discrete_space(config.num_actions)
        self.encoder = RewEndEncoder(config)
        self.act_emb = action_embedding(space, config.cond_channels)
        self.lstm = nn.LSTM(config.features, config.lstm_dim, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(config.lstm_dim, config.lstm_dim),
            nn.SiLU(),
            nn.Linear(config.lstm_dim, NUM_REWARD_CLASSES + NUM_END_CLASSES, bias=False),
        )
        init_lstm(self.lstm)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Return the zero LSTM state: two tensors of shape (1, batch_size, lstm_dim)."""
        weight = self.lstm.get_parameter("weight_hh_l0")
        zeros = torch.zeros(1, batch_size, self.config.lstm_dim, device=weight.device, dtype=weight.dtype)
        return zeros, zeros.clone()

    def predict_rew_end(
        self,
        obs: Float[Tensor, "b t c h w"],
        act: Shaped[Tensor, "b t *a"],
        next_obs: Float[Tensor, "b t c h w"],
        hx_cx: LSTMState | None = None,
    ) -> tuple[Float[Tensor, "b t 3"], Float[Tensor, "b t 2"], LSTMState]:
        """Run over t steps.

        Args:
            obs: Frames in [-1, 1] before each action.
            act: Actions.
            next_obs: Frames after each action.
            hx_cx: LSTM state to continue from; zeros when None.

        Returns:
            Reward logits, end logits and the LSTM state after the last step.
        """
        b, t = act.shape[:2]
        x = torch.cat([obs, next_obs], dim=2).flatten(0, 1).to(self.encoder.conv_in.weight.dtype)
        # (c h w) order, whatever the memory format: the LSTM's input weights depend on it
        x = self.encoder(x, self.act_emb(act.flatten(0, 1))).flatten(1).reshape(b, t, -1)
        with torch.autocast(x.device.type, enabled=False):  # not every CPU has an LSTM in bfloat16
            x, hx_cx = self._run_lstm(x.to(self.lstm.weight_hh_l0.dtype), hx_cx)
        logits_rew, logits_end = self.head(x).split([NUM_REWARD_CLASSES, NUM_END_CLASSES], dim=-1)
        return logits_rew, logits_end, hx_cx

    def _run_lstm(
        self, x: Float[Tensor, "b t k"], hx_cx: LSTMState | None
    ) -> tuple[Float[Tensor, "b t d"], LSTMState]:
        if hx_cx is None or x.shape[1] > 1 or torch.is_grad_enabled() or x.device.type != "cpu":
            return self.lstm(x, hx_cx)
        # a single step, for which the sequence's kernel takes five times as long with one game
        hx, cx = torch.lstm_cell(x[:, 0], [part[0] for part in hx_cx], *self.lstm.parameters())
        return hx[:, None], (hx[None], cx[None])

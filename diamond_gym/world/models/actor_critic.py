"""The recurrent actor-critic. Knows nothing of environments or training."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diamond_gym.errors import InvalidInputError
from diamond_gym.ranges import check_integer, check_integers
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models.blocks import SmallResBlock, conv3x3, init_lstm
from diamond_gym.world.models.denoiser import MAX_WIDTH, discrete_space
from diamond_gym.world.models.rew_end_model import LSTMState
from diamond_gym.world.policy import num_outputs


@dataclass
class ActorCriticConfig:
    """Sizes of the actor-critic. Defaults are the published ones.

    Attributes:
        lstm_dim: Width of the LSTM.
        img_channels: Channels of a frame.
        img_size: Height of a frame, and its width unless `img_width` says another.
        img_width: Width of a frame that is not square; None for `img_size`.
        channels: Channels of each stage.
        down: 1 where a stage ends in 2x2 max-pooling, else 0.
        num_actions: Size of the action set; filled in from the game when None, unused where actions are not
            discrete.
    """

    lstm_dim: int = 512
    img_channels: int = 3
    img_size: int = 64
    channels: list[int] = field(default_factory=lambda: [32, 32, 64, 64])
    down: list[int] = field(default_factory=lambda: [1, 1, 1, 1])
    num_actions: int | None = None
    img_width: int | None = None

    def __post_init__(self) -> None:
        for name in ("lstm_dim", "img_channels", "img_size", "img_width", "num_actions"):
            if name not in ("num_actions", "img_width") or getattr(self, name) is not None:
                check_integer(f"actor_critic: {name}", getattr(self, name), 1, MAX_WIDTH)
        check_integers("actor_critic: channels", self.channels, 1, MAX_WIDTH)
        check_integers("actor_critic: down", self.down, 0, 1)
        if not self.channels or len(self.channels) != len(self.down):
            raise InvalidInputError(
                f"actor_critic: channels and down need one entry per stage, got {self.channels} and "
                f"{self.down}"
            )

    @property
    def features(self) -> int:
        """Size of the encoder's flattened output."""
        h, w = (side >> sum(self.down) for side in self.frame_size)
        return self.channels[-1] * h * w

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.img_size, self.img_width or self.img_size


class ActorCriticEncoder(nn.Module):
    """A convolution, then small residual blocks, each followed by max-pooling where `down` is 1."""

    def __init__(self, config: ActorCriticConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv3x3(config.img_channels, config.channels[0])]
        previous = config.channels[0]
        for channels, down in zip(config.channels, config.down, strict=True):
            layers += [SmallResBlock(previous, channels), nn.MaxPool2d(2) if down else nn.Identity()]
            previous = channels
        self.encoder = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return self.encoder(x)


class ActorCritic(nn.Module):
    """Policy and value of a frame and an LSTM state.

    Args:
        config: Its sizes.
        space: Its actions; None for the discrete ones of `config`.
    """

    def __init__(self, config: ActorCriticConfig, space: ActionSpace | None = None) -> None:
        super().__init__()
        self.config = config
        self.action_space = space or discrete_space(config.num_actions)
        self.encoder = ActorCriticEncoder(config)
        self.lstm = nn.LSTMCell(config.features, config.lstm_dim)
        self.critic_linear = nn.Linear(config.lstm_dim, 1)
        self.actor_linear = nn.Linear(config.lstm_dim, num_outputs(self.action_space))
        for linear in (self.critic_linear, self.actor_linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        init_lstm(self.lstm)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Return the zero LSTM state: two tensors of shape (batch_size, lstm_dim)."""
        weight = self.lstm.weight_hh
        zeros = torch.zeros(batch_size, self.config.lstm_dim, device=weight.device, dtype=weight.dtype)
        return zeros, zeros.clone()

    def predict_act_value(
        self, obs: Float[Tensor, "b c h w"], hx_cx: LSTMState
    ) -> tuple[Float[Tensor, "b a"], Float[Tensor, " b"], LSTMState]:
        """Run one step on `obs` in [-1, 1].

        Returns:
            Outputs of the policy (action logits; see `diamond_gym.world.policy`), value, next LSTM state.
        """
        x = self.encoder(obs.to(self.lstm.weight_hh.dtype)).flatten(1)
        hx, cx = self.lstm(x, hx_cx)
        return self.actor_linear(hx), self.critic_linear(hx).squeeze(1), (hx, cx)

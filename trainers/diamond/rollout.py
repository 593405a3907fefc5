"""The actor-critic plays games, imagined or real, and keeps what it needs to learn from them.

Knows nothing of where games come from: they are a `Games`. What a rollout continues from is a `PlayerState`,
plain data, so that it can be saved.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from diamond_gym.world.models import ActorCritic, LSTMState
from diamond_gym.world.pixels import to_float, to_uint8
from trainers.diamond.actor_critic_loss import PlayedSteps


class Outcome(NamedTuple):
    """What one step of b games brought; `obs` is the last frame of a game that is over."""

    obs: UInt8[Tensor, "b c h w"]
    rew: Float[Tensor, " b"]
    end: Bool[Tensor, " b"]
    trunc: Bool[Tensor, " b"]


class Games(Protocol):
    """b games that are played in step."""

    def step(self, act: Int64[Tensor, " b"]) -> Outcome:
        """Takes one action in each game."""
        ...

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k n c h w"]:
        """Starts some games anew; the last of the frames is where they start, the others came before it.

        Frames are in [-1, 1], for padding, mid grey, is no byte.
        """
        ...


class SavedGames(Games, Protocol):
    """Games whose every moment can be saved and gone back to."""

    def start(self) -> Float[Tensor, "b n c h w"]:
        """Starts all games; returns frames as `restart` does."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """This moment, as plain data and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved moment."""
        ...


@dataclass
class PlayerState:
    """Where b games stand for the one who plays them: the frame to act at, and the LSTM's memory."""

    obs: UInt8[Tensor, "b c h w"]
    hx: Float[Tensor, "b d"]
    cx: Float[Tensor, "b d"]

    def state_dict(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> PlayerState:
        """What `state_dict` returned, on a device."""
        return cls(**{f.name: state[f.name].to(device) for f in fields(cls)})


def begin(actor_critic: ActorCritic, frames: Float[Tensor, "b n c h w"]) -> PlayerState:
    """The state at the last of n frames: the LSTM starts at zero, burned in on the frames before.

    Gradients flow into the burn-in where they are enabled, as they do in the published code.
    """
    hx_cx = actor_critic.initial_state(len(frames))
    for obs in frames[:, :-1].unbind(1):
        _, _, hx_cx = actor_critic.predict_act_value(obs, hx_cx)
    return PlayerState(to_uint8(frames[:, -1]), *_float(hx_cx))


def play(
    actor_critic: ActorCritic,
    games: Games,
    state: PlayerState,
    u: Float[Tensor, "t b"],
) -> tuple[PlayerState, PlayedSteps]:
    """Plays t steps of each game, with gradients; games that are over start anew, burned in with gradients.

    The value after a step comes from the frame it led to and the LSTM's memory of the episode so far; where
    the episode was over, from its final frame, before the memory is cleared.

    Args:
        actor_critic: The policy; actions are sampled from it.
        games: The games, at the frames of `state`.
        state: Where they stand; no gradient flows into it.
        u: Numbers in [0, 1) that decide the actions, t at least 1, on the networks' device.

    Returns:
        Where the games stand now, and the steps.
    """
    obs, hx_cx = state.obs, (state.hx, state.cx)
    logits, val, next_hx_cx = actor_critic.predict_act_value(to_float(obs), hx_cx)
    steps: list[tuple[Tensor, ...]] = []
    for t in range(len(u)):
        hx_cx = _float(next_hx_cx)
        act = sample(logits.detach(), u[t])
        outcome = games.step(act)
        obs = outcome.obs
        over = (outcome.end | outcome.trunc).nonzero().flatten()
        final_val = _values(actor_critic, obs[over], (hx_cx[0][over], hx_cx[1][over]))
        with torch.set_grad_enabled(t + 1 < len(u)):  # the loss does not look beyond the last step
            if len(over):
                fresh = begin(actor_critic, games.restart(over))
                obs = obs.index_copy(0, over, fresh.obs)
                hx_cx = (hx_cx[0].index_copy(0, over, fresh.hx), hx_cx[1].index_copy(0, over, fresh.cx))
            next_logits, next_val, next_hx_cx = actor_critic.predict_act_value(to_float(obs), hx_cx)
        bootstrap = next_val.detach().float().index_copy(0, over, final_val)
        steps.append((logits.float(), act, outcome.rew, outcome.end, outcome.trunc, val.float(), bootstrap))
        logits, val = next_logits, next_val
    played = PlayedSteps(*(torch.stack(x, dim=1) for x in zip(*steps, strict=True)))
    return PlayerState(obs, hx_cx[0].detach(), hx_cx[1].detach()), played


@torch.no_grad()
def _values(
    actor_critic: ActorCritic, obs: UInt8[Tensor, "k c h w"], hx_cx: LSTMState
) -> Float[Tensor, " k"]:
    if not len(obs):
        return torch.zeros(0, device=obs.device)
    return actor_critic.predict_act_value(to_float(obs), hx_cx)[1].float()


def sample(
    logits: Float[Tensor, "b a"], u: Float[Tensor, " b"], temperature: float = 1.0
) -> Int64[Tensor, " b"]:
    """Draws an action from each categorical, by inversion of its cumulative distribution.

    Args:
        logits: Of the actions.
        u: Uniform in [0, 1).
        temperature: Divides the logits, >= 0; 0 takes the likeliest action.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    return (u[:, None] >= cumulative[:, :-1]).sum(dim=-1)


def _float(hx_cx: LSTMState) -> LSTMState:
    return hx_cx[0].float(), hx_cx[1].float()

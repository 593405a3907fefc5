"""The actor-critic's loss: REINFORCE with a value baseline on lambda-returns (Sutton and Barto, 2018).

Functions of tensors only. Knows nothing of where the steps came from, imagination or the real game.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diamond_gym.errors import InvalidInputError
from trainers.diamond.losses import Metrics


@dataclass
class ActorCriticLossConfig:
    """The actor-critic's objective.

    Attributes:
        backup_every: Steps played for each optimiser step; null for `world_model_env.horizon`.
        gamma: Discount of a step, in [0, 1].
        lambda_: In [0, 1]; 0 trusts the value after one step, 1 only what was played.
        weight_value_loss: Weight of the squared error of the values.
        weight_entropy_loss: Weight of the policy's entropy (in nats), which is maximised.
    """

    backup_every: int | None = None
    gamma: float = 0.985
    lambda_: float = 0.95
    weight_value_loss: float = 1.0
    weight_entropy_loss: float = 0.001

    def __post_init__(self) -> None:
        if self.backup_every is not None and self.backup_every < 1:
            raise InvalidInputError(f"backup_every must be at least 1, or null, got {self.backup_every}")
        for name in ("gamma", "lambda_"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("weight_value_loss", "weight_entropy_loss"):
            if not getattr(self, name) >= 0:
                raise InvalidInputError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class PlayedSteps:
    """t steps of b games, as the actor-critic saw them.

    Attributes:
        logits_act: Action logits; gradients flow through them.
        act: Actions taken.
        rew: Rewards; only their sign is learned from.
        end: Whether the step ended the episode.
        trunc: Whether it cut the episode short.
        val: Values of the frames acted at; gradients flow through them.
        val_bootstrap: Values of the frames that followed, the final frame where the episode was over.
    """

    logits_act: Float[Tensor, "b t a"]
    act: Int64[Tensor, "b t"]
    rew: Float[Tensor, "b t"]
    end: Bool[Tensor, "b t"]
    trunc: Bool[Tensor, "b t"]
    val: Float[Tensor, "b t"]
    val_bootstrap: Float[Tensor, "b t"]


@torch.no_grad()
def lambda_returns(
    rew: Float[Tensor, "b t"],
    end: Bool[Tensor, "b t"],
    trunc: Bool[Tensor, "b t"],
    val_bootstrap: Float[Tensor, "b t"],
    *,
    gamma: float,
    lambda_: float,
) -> Float[Tensor, "b t"]:
    """Returns of the rewards' signs, by recursion from the last step.

    `G_t = sign(r_t) + gamma * ((1 - lambda) * V_{t+1} + lambda * G_{t+1})`; V alone where the episode was cut
    short or the steps run out, nothing at all where it ended.
    """
    returns = torch.empty_like(val_bootstrap)
    following = val_bootstrap[:, -1]
    for t in reversed(range(rew.shape[1])):
        value = val_bootstrap[:, t]
        ahead = torch.where(trunc[:, t], value, torch.lerp(value, following, lambda_))
        following = rew[:, t].sign() + gamma * torch.where(end[:, t], 0, ahead)
        returns[:, t] = following
    return returns


def actor_critic_loss(steps: PlayedSteps, config: ActorCriticLossConfig) -> tuple[Tensor, Metrics]:
    """REINFORCE with a value baseline, squared error of the values, and an entropy bonus.

    Returns:
        The loss, and {"loss_actions", "loss_values", "loss_entropy", "policy_entropy" (in bits), "value",
        "return" (means of values and lambda-returns), "rew", "end" (means over the steps)}.
    """
    returns = lambda_returns(
        steps.rew, steps.end, steps.trunc, steps.val_bootstrap, gamma=config.gamma, lambda_=config.lambda_
    )
    log_probs = steps.logits_act.log_softmax(dim=-1)
    log_prob_act = log_probs.gather(-1, steps.act[..., None])[..., 0]
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean()
    loss_actions = -(log_prob_act * (returns - steps.val.detach())).mean()
    loss_values = config.weight_value_loss * F.mse_loss(steps.val, returns)
    loss_entropy = -config.weight_entropy_loss * entropy
    return loss_actions + loss_values + loss_entropy, {
        "loss_actions": loss_actions.detach(),
        "loss_values": loss_values.detach(),
        "loss_entropy": loss_entropy.detach(),
        "policy_entropy": entropy.detach() / math.log(2),
        "value": steps.val.detach().mean(),
        "return": returns.mean(),
        "rew": steps.rew.sign().mean(),
        "end": steps.end.float().mean(),
    }

"""Networks and their configs, nothing else."""

from diamond_gym.world.models.actor_critic import ActorCritic, ActorCriticConfig
from diamond_gym.world.models.agent import Agent, AgentConfig, config_from_dict
from diamond_gym.world.models.denoiser import (
    Conditioners,
    Denoiser,
    DenoiserConfig,
    Features,
    InnerModelConfig,
)
from diamond_gym.world.models.rew_end_model import LSTMState, RewEndModel, RewEndModelConfig

__all__ = [
    "ActorCritic",
    "ActorCriticConfig",
    "Agent",
    "AgentConfig",
    "Conditioners",
    "Denoiser",
    "DenoiserConfig",
    "Features",
    "InnerModelConfig",
    "LSTMState",
    "RewEndModel",
    "RewEndModelConfig",
    "config_from_dict",
]

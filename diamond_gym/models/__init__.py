"""Networks and their configs, nothing else."""

from diamond_gym.models.actor_critic import ActorCritic, ActorCriticConfig
from diamond_gym.models.agent import Agent, AgentConfig, config_from_dict
from diamond_gym.models.denoiser import Conditioners, Denoiser, DenoiserConfig, InnerModelConfig
from diamond_gym.models.rew_end_model import LSTMState, RewEndModel, RewEndModelConfig

__all__ = [
    "ActorCritic",
    "ActorCriticConfig",
    "Agent",
    "AgentConfig",
    "Conditioners",
    "Denoiser",
    "DenoiserConfig",
    "InnerModelConfig",
    "LSTMState",
    "RewEndModel",
    "RewEndModelConfig",
    "config_from_dict",
]

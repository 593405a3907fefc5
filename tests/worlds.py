"""Tiny world models with random weights, saved like real ones, for tests of everything around networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diamond_gym.checkpoints import save_world
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models import (
    ActorCriticConfig,
    Agent,
    AgentConfig,
    DenoiserConfig,
    InnerModelConfig,
    RewEndModelConfig,
)
from diamond_gym.world.sampler import DiffusionSamplerConfig

GAME = "Breakout"
ACTION_MEANINGS = ["NOOP", "FIRE", "RIGHT", "LEFT"]
NUM_STEPS_CONDITIONING = 4
NUM_CONTEXTS = 5
PLAIN = {"device": "cpu", "dtype": "float32", "backend": "eager"}
"""Keyword arguments with which an environment's numbers do not depend on the machine's accelerators."""


def tiny_agent(
    *,
    seed: int = 0,
    num_actions: int = 4,
    lstm_dim: int = 16,
    end_bias: float = -2.2,
    space: ActionSpace | None = None,
    frame_shape: tuple[int, int, int] = (3, 64, 64),
    num_outcomes: int = 1,
) -> Agent:
    """Make an agent whose outputs all depend on its inputs, with about `sigmoid(end_bias)` ends per step."""
    torch.manual_seed(seed)
    levels = {
        "channels": [16, 16],
        "depths": [1, 1],
        "attn_depths": [0, 0],
        "cond_channels": 32,
        "patch_size": 4,
    }
    agent = Agent(
        AgentConfig(
            denoiser=DenoiserConfig(
                InnerModelConfig(
                    num_steps_conditioning=NUM_STEPS_CONDITIONING, num_outcomes=num_outcomes, **levels
                )
            ),
            rew_end_model=RewEndModelConfig(lstm_dim=lstm_dim, **levels),
            actor_critic=ActorCriticConfig(lstm_dim=lstm_dim, channels=[8, 8], down=[1, 1]),
        )
        .with_action_space(space or ActionSpace.discrete(num_actions))
        .with_frames(frame_shape)
    )
    with torch.no_grad():
        for parameter in agent.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
        hidden, _, logits = (dict(layer.named_parameters()) for layer in agent.rew_end_model.head)
        hidden["bias"][0] = 4.0
        logits["weight"][3:, 0] = torch.tensor([0.0, end_bias / 4])
    return agent.eval()


def contexts(
    *, seed: int = 0, num_contexts: int = NUM_CONTEXTS, num_steps: int = NUM_STEPS_CONDITIONING
) -> ContextBank:
    """Make contexts of noisy frames across which a bright square moves, different in each context."""
    rng = np.random.default_rng(seed)
    obs = rng.integers(0, 60, (num_contexts, num_steps, 64, 64, 3), np.uint8)
    for k in range(num_contexts):
        for i in range(num_steps):
            left = 8 * k + 3 * i
            obs[k, i, 20:28, left : left + 8] = (250, 200 - 20 * k, 30 * k)
    return ContextBank(obs, rng.integers(0, 4, (num_contexts, num_steps)))


def starts(num_games: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return frames and actions of `contexts` as a world model takes them."""
    bank = contexts(num_contexts=num_games)
    obs = torch.from_numpy(bank.obs).permute(0, 1, 4, 2, 3).contiguous()
    return obs, torch.from_numpy(bank.act)


def save_tiny_world(folder: Path, *, game: str | None = GAME, **agent: float) -> str:
    """Save a tiny world model into a folder, for `checkpoint=`."""
    save_world(
        folder,
        tiny_agent(**agent),  # pyright: ignore[reportArgumentType]
        game=game,
        action_meanings=ACTION_MEANINGS if game == GAME else None,
        sampler=DiffusionSamplerConfig(num_steps_denoising=1),
        contexts=contexts(),
    )
    return str(folder)


def save_world_of(folder: Path, game: str, action_meanings: list[str]) -> None:
    """Save a tiny world model of another game."""
    bank = contexts()
    save_world(
        folder,
        tiny_agent(num_actions=len(action_meanings)),
        game=game,
        action_meanings=action_meanings,
        sampler=DiffusionSamplerConfig(num_steps_denoising=1),
        contexts=ContextBank(bank.obs, bank.act % len(action_meanings)),
    )


def save_tiny_world_of(
    folder: Path,
    space: ActionSpace,
    *,
    end_bias: float = -30.0,
    frame_shape: tuple[int, int, int] = (3, 64, 64),
) -> str:
    """Save a tiny world model with other actions and frames, for `checkpoint=`; games hardly ever end."""
    c, h, w = frame_shape
    rng, bank = np.random.default_rng(0), contexts()
    acts = np.array([[space.sample(rng) for _ in range(bank.act.shape[1])] for _ in range(len(bank))])
    save_world(
        folder,
        tiny_agent(space=space, end_bias=end_bias, frame_shape=frame_shape),
        game=None,
        action_meanings=None,
        sampler=DiffusionSamplerConfig(num_steps_denoising=1),
        contexts=ContextBank(bank.obs[:, :, :h, :w, :c], acts),
    )
    return str(folder)


@contextmanager
def maker(kind: Callable[..., Any], **defaults: Any) -> Iterator[Callable[..., Any]]:
    """Return a function that makes imagined Breakouts, three at once by default; close them at the end."""
    made = []

    def make(num_envs: int = 3, **kwargs: Any) -> Any:
        made.append(kind("DiamondBreakout-v0", num_envs, **{**PLAIN, **defaults, **kwargs}))
        return made[-1]

    yield make
    for env in made:
        env.close()

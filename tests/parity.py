"""Seeded weights and reference outputs of the published implementation (`data/parity`), for the tests."""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diamond_gym.world.models import (
    ActorCriticConfig,
    Agent,
    AgentConfig,
    DenoiserConfig,
    InnerModelConfig,
    RewEndModelConfig,
)

FOLDER = Path(__file__).parent / "recorded" / "parity"


@functools.cache
def description(case: str) -> dict[str, Any]:
    """Config, state-dict shapes and (paper) parameter counts or (tiny) optimizer groups."""
    return json.loads((FOLDER / f"{case}.json").read_text())


@functools.cache
def numbers(case: str) -> dict[str, Tensor]:
    """Inputs and outputs."""
    with np.load(FOLDER / f"{case}.npz") as data:
        return {key: torch.from_numpy(data[key]) for key in data}


def seeded_weights(case: str) -> dict[str, Tensor]:
    """The state dict with which all numbers of the case were computed."""
    seed = description(case)["config"]["seed"]
    weights = {}
    for key, shape in description(case)["state_dict"].items():
        r = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape)
        if key.endswith("noise_emb.weight"):
            value = r
        elif len(shape) >= 2:
            value = r / np.sqrt(np.prod(shape[1:]))
        else:
            value = 1 + 0.1 * r if key.endswith("weight") else 0.05 * r
        weights[key] = torch.from_numpy(value.astype(np.float32))
    return weights


def agent_config(case: str) -> AgentConfig:
    """The case's sizes."""
    c = description(case)["config"]
    return AgentConfig(
        denoiser=DenoiserConfig(
            InnerModelConfig(
                img_channels=c["img_channels"],
                num_steps_conditioning=c["num_steps_conditioning"],
                cond_channels=c["denoiser_cond_channels"],
                depths=c["denoiser_depths"],
                channels=c["denoiser_channels"],
                attn_depths=c["denoiser_attn_depths"],
            )
        ),
        rew_end_model=RewEndModelConfig(
            lstm_dim=c["lstm_dim"],
            img_channels=c["img_channels"],
            img_size=c["img_size"],
            cond_channels=c["rew_end_cond_channels"],
            depths=c["rew_end_depths"],
            channels=c["rew_end_channels"],
            attn_depths=c["rew_end_attn_depths"],
        ),
        actor_critic=ActorCriticConfig(
            lstm_dim=c["lstm_dim"],
            img_channels=c["img_channels"],
            img_size=c["img_size"],
            channels=c["actor_critic_channels"],
            down=c["actor_critic_down"],
        ),
        num_actions=c["num_actions"],
    )


@functools.cache
def agent(case: str) -> Agent:
    """Our agent with the case's weights, in eval mode."""
    agent = Agent(agent_config(case))
    agent.load_state_dict(seeded_weights(case))
    return agent.eval()


def assert_quantised_close(
    actual: Tensor, expected: Tensor, *, share: float = 0.999, levels: float = 3
) -> None:
    """Check that frames are equal to 1e-4 in `share` of the pixels, and within some levels everywhere."""
    difference = (actual - expected).abs()
    assert (difference <= 1e-4).float().mean() >= share
    assert difference.max() <= (levels + 0.01) * 2 / 255

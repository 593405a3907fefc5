"""Builds a world model that runs as chosen: its networks are moved, converted and laid out in memory.

This module knows how to apply each backend to a network; `choose` decides which one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from diamond_gym.backends.choose import (
    choose,
    has_onednn_convolutions,
    merges_copies_in_upsampling,
    records_cuda_graphs,
)
from diamond_gym.backends.cuda_graphs import GraphedWorldModel
from diamond_gym.backends.inductor import InductorForward
from diamond_gym.backends.names import Backend
from diamond_gym.backends.openvino import OpenVinoForward
from diamond_gym.backends.threads import ThreadedWorldModel
from diamond_gym.world.models import Agent
from diamond_gym.world.models.blocks import Conv2d, Modulator, Upsample
from diamond_gym.world.models.prepared import Prepared
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel


def build_world_model(
    agent: Agent,
    config: DiffusionSamplerConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    num_games: int = 1,
) -> WorldModel:
    """Build the world model of an agent, ready to imagine.

    The agent's denoiser and reward/end model are moved and converted in place; its actor-critic stays as is.
    Noise, sampler, LSTM and frames are always in float32.

    Args:
        agent: The networks.
        config: How frames are sampled.
        device: See `choose`, also for the next two.
        dtype: Precision of the networks.
        backend: What runs them.
        num_games: The number of games of most steps, for which a backend may prepare.

    Raises:
        InvalidInputError: An argument is not one of those accepted. After this and the errors below, the
            agent is unchanged.
        DeviceError: The device is not available, or the backend needs another one.
        MissingDependencyError: What the backend needs is not installed.
    """
    placement = choose(device, dtype, backend)
    lay_out(agent.denoiser.eval(), placement.device)
    lay_out(agent.rew_end_model.eval(), placement.device)
    networks: list[nn.Module] = [agent.denoiser.inner_model, agent.rew_end_model.encoder]
    for network in networks:
        network.__dict__.pop("forward", None)  # of an earlier placement
        if placement.backend == "openvino" or placement.tries_openvino:
            # before the conversion to another precision: it keeps weights of its own
            network.forward = OpenVinoForward(
                network, placement.dtype, batch_size=num_games, on_trial=placement.tries_openvino
            )
    for module in (agent.denoiser, agent.rew_end_model.encoder, agent.rew_end_model.act_emb):
        module.to(placement.dtype)
    if placement.backend == "inductor":
        for network in networks:
            network.forward = InductorForward(network)
    kind: Callable[..., WorldModel] = world_model_kind(placement.backend, placement.device)
    if placement.device.type == "cpu":
        for network in networks:
            prepare(network, placement.dtype)
        in_chunks = placement.backend != "inductor"  # which compiles for each size, or for sizes in general
        kind = partial(ThreadedWorldModel, in_chunks=in_chunks)
    return kind(agent.denoiser, agent.rew_end_model, config)


def lay_out(module: nn.Module, device: torch.device) -> None:
    """Move a module to a device, with the memory layout and the way of upsampling that are fast there."""
    module.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for layer in module.modules():
        if isinstance(layer, Upsample):
            layer.merges_copies = merges_copies_in_upsampling(device)


def prepare(network: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers of a network on the CPU keep what they compute from their weights in inference."""
    if any(weight.is_inference() for weight in network.parameters()):
        return  # PyTorch does not count the changes of weights made in `torch.inference_mode()`
    for layer in network.modules():
        if isinstance(layer, (Modulator, Upsample)) or (
            isinstance(layer, Conv2d) and has_onednn_convolutions(dtype)
        ):
            layer.prepared = Prepared()


def world_model_kind(backend: Backend, device: torch.device) -> type[WorldModel]:
    """The class of world model that a backend needs on a device."""
    return GraphedWorldModel if records_cuda_graphs(backend, device) else WorldModel


def backend_of(world_model: WorldModel, num_games: int) -> Backend:
    """Return the backend of a world model for a number of games; never "auto".

    A world model that may try OpenVINO says "eager" before it has made a step of so many games.
    """
    forward = world_model.denoiser.inner_model.forward
    if isinstance(forward, InductorForward):
        return "inductor"
    if isinstance(forward, OpenVinoForward) and forward.is_used(num_games):
        return "openvino"
    return "cuda_graph" if isinstance(world_model, GraphedWorldModel) else "eager"

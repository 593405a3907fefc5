"""A run's networks: with fresh weights or those of a checkpoint, placed so that they train fast."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from diamond_gym.backends.build import lay_out
from diamond_gym.backends.choose import pick_backend, pick_device
from diamond_gym.checkpoints import load_agent
from diamond_gym.errors import CheckpointError, DeviceError, InvalidInputError
from diamond_gym.world.models import Agent, AgentConfig, Denoiser, DenoiserConfig, RewEndModel
from trainers.diamond.config import PARTS, InitializationConfig
from trainers.diamond.distributed import SINGLE_PROCESS, Group

_log = logging.getLogger(__name__)
_DIFFERENCE_GAIN = 15.0
"""Factor for differences of frames, because changes are sparse and small."""
_BOUNDS = (".low", ".high")
"""Ends of the names of the bounds of continuous actions, which are not learned."""
_RECURRENT_GAIN = 3.0
"""Without this factor too little of a rare event reaches the loss: one batch ends at 0.33, not at 0.002."""


@torch.no_grad()
def start_with_differences(model: RewEndModel) -> None:
    """Let the first convolution see only changes between frames, and amplify them for LSTM and head."""
    weight = model.encoder.conv_in.weight  # (out, 2 c p^2, 3, 3): the frame before, then the frame after
    half = weight.shape[1] // 2
    weight[:, half:] *= _DIFFERENCE_GAIN
    weight[:, :half] = -weight[:, half:]
    torch.nn.init.zeros_(model.encoder.conv_in.bias)  # pyright: ignore[reportArgumentType]
    model.lstm.get_parameter("weight_ih_l0").mul_(_RECURRENT_GAIN)
    model.head[-1].get_parameter("weight").mul_(_RECURRENT_GAIN)


def find_device(name: str, group: Group = SINGLE_PROCESS) -> torch.device:
    """Find a device by its name; "auto" is CUDA where available, and each process has its own GPU.

    Raises:
        DeviceError: This machine has no such device.
    """
    if group.world_size > 1 and name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"common.device={name} with several processes: accepted are auto, cpu, cuda")
    try:
        device = pick_device(name)
        if group.world_size > 1 and device.type == "cuda":
            device = pick_device(f"cuda:{group.local_rank}")
    except (DeviceError, InvalidInputError) as error:
        raise DeviceError(f"common.device={name} is not available: {error}") from error
    if device.type == "cuda" and group.world_size > 1:
        torch.cuda.set_device(device)
    return device


def new_agent(
    sizes: AgentConfig, *, seed: int, with_actor_critic: bool, difference_init: bool = False
) -> Agent:
    """Networks with fresh weights, on the CPU.

    Args:
        sizes: Sizes of the networks; the number of actions is known.
        seed: Fixes the weights.
        with_actor_critic: Whether to make an actor-critic as well.
        difference_init: Whether the reward/end model starts as a detector of change.

    Raises:
        InvalidInputError: Networks of these sizes cannot be built, or cannot run.
    """
    torch.manual_seed(seed)
    try:
        agent = Agent(sizes, with_actor_critic=with_actor_critic)
        if difference_init:
            start_with_differences(agent.rew_end_model)
        _try_out(agent)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(f"networks of the sizes in agent.* do not work: {reason}") from error
    return agent


@torch.no_grad()
def _try_out(agent: Agent) -> None:
    """Run the networks once, so that sizes that do not fit together are found before any work is done."""
    n = agent.config.denoiser.inner_model.num_steps_conditioning
    frame = torch.zeros(1, 1, *agent.config.frame_shape)
    idle = torch.from_numpy(agent.action_space.idle)
    act = idle.expand(1, n, *idle.shape)
    past = agent.denoiser.fold_past(frame.expand(1, n, -1, -1, -1).flatten(1, 2))
    agent.denoiser.denoise(frame[:, 0], agent.denoiser.conditioners(torch.ones(1)), past, act)
    agent.rew_end_model.predict_rew_end(frame, act[:, :1], frame)
    if agent.actor_critic is not None:
        agent.actor_critic.predict_act_value(frame[:, 0], agent.actor_critic.initial_state(1))


def initialize(agent: Agent, initialization: InitializationConfig) -> None:
    """Load the weights of the parts that `initialization` selects from its checkpoint.

    Raises:
        CheckpointNotFoundError: There is no checkpoint.
        CheckpointError: The checkpoint is damaged, or its networks are of other sizes.
    """
    if initialization.path_to_ckpt is None:
        return
    given = load_agent(initialization.path_to_ckpt)
    space, other_space = agent.action_space, agent.action_space != given.action_space
    sizes = given.config.with_action_space(space) if initialization.new_actions else given.config
    for name in PARTS:
        is_wanted = getattr(initialization, f"load_{name}")
        if not is_wanted or getattr(agent, name) is None or getattr(given, name) is None:
            continue
        ours, theirs = getattr(agent.config, name), getattr(sizes, name)
        if name == "denoiser":
            theirs = _with_outcomes_of(ours, theirs)
        is_refused = other_space and not initialization.new_actions
        if is_refused and ours == theirs:
            raise CheckpointError(
                f"the actions of {initialization.path_to_ckpt} are {given.action_space}, the run's {space}: "
                "give initialization.new_actions=true to start from it"
            )
        if ours != theirs:
            hint = ", or initialization.new_actions=true to start from another game's" if is_refused else ""
            raise CheckpointError(
                f"the {name} of {initialization.path_to_ckpt} is of other sizes: {theirs}, the run's is "
                f"{ours}. Set agent.{name} accordingly, or initialization.load_{name}=false{hint}"
            )
        weights = getattr(given, name).state_dict()
        if name == "denoiser":
            weights |= _repeated_outcomes(agent.denoiser, given.denoiser)
        _take_weights(name, getattr(agent, name), weights)


def _with_outcomes_of(ours: DenoiserConfig, theirs: DenoiserConfig) -> DenoiserConfig:
    """The sizes of a checkpoint's denoiser; it may get more outcomes, as many as the run's has."""
    num_outcomes = max(theirs.inner_model.num_outcomes, ours.inner_model.num_outcomes)
    return replace(theirs, inner_model=replace(theirs.inner_model, num_outcomes=num_outcomes))


def _take_weights(name: str, ours: nn.Module, given: dict[str, Tensor]) -> None:
    """Take all weights of matching shapes; those of other actions or of first outcomes stay as they are."""
    weights = ours.state_dict()
    taken = {
        key: x
        for key, x in given.items()
        if key in weights and x.shape == weights[key].shape and not key.endswith(_BOUNDS)
    }
    ours.load_state_dict(weights | taken)
    if any(not key.endswith(_BOUNDS) for key in weights.keys() - taken.keys()):
        others = ", ".join(sorted(weights.keys() - taken.keys()))
        _log.info("%s: the checkpoint has none that fit, so these weights stay random: %s", name, others)


def _repeated_outcomes(ours: Denoiser, theirs: Denoiser) -> dict[str, Tensor]:
    """The weights of a checkpoint's outcomes, repeated until there are as many as ours, if it has any."""
    outcomes = theirs.inner_model.outcomes
    if outcomes is None:
        return {}
    num_outcomes = ours.config.inner_model.num_outcomes
    return {f"inner_model.outcomes.{name}": x for name, x in outcomes.repeated(num_outcomes).items()}


def place(agent: Agent, device: torch.device, backend: str) -> None:
    """Put networks on their device so that they train fast: layout, upsampling, compilation.

    Args:
        agent: The networks, changed in place.
        device: Device on which they train.
        backend: The backend, as in `TrainingConfig`.
    """
    lay_out(agent, device)
    if pick_backend(backend, device) != "inductor":
        return
    if agent.config.denoiser.inner_model.num_outcomes > 1:
        _log.info("a denoiser with several outcomes trains without compilation")
    else:
        # in place, so that the names of the weights stay; one graph for crops and one for whole frames
        agent.denoiser.inner_model.compile(dynamic=False)

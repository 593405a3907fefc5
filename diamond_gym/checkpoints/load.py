"""Load the world model that a `checkpoint` argument names."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

from diamond_gym.backends.build import build_world_model
from diamond_gym.backends.choose import pick_device
from diamond_gym.backends.names import accepts_compile
from diamond_gym.checkpoints import custom, published_run, start_contexts
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.checkpoints.description import WorldDescription, names_wanted, num_action_names
from diamond_gym.checkpoints.locate import Location, locate, locate_path
from diamond_gym.checkpoints.saved_world import read_saved_world
from diamond_gym.checkpoints.weights import build_agent, read_state_dict
from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.games import atari
from diamond_gym.registration import game_name
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.interface import WorldModelLike
from diamond_gym.world.models import Agent
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel


@dataclass(frozen=True)
class World:
    """A world model with its start contexts and the meaning of its actions.

    Attributes:
        world_model: The model, placed on its device.
        contexts: The contexts that games start from.
        game: Name of the Atari game, None for any other environment.
        action_meanings: Names of the actions in order, or of the parts of an action where it is not discrete.
        agent: All networks of the checkpoint; `agent.actor_critic` is None when it holds no policy. None for
            a custom world model.
        source: The file of the weights, or "model:package:factory".
    """

    world_model: WorldModelLike
    contexts: ContextBank
    game: str | None
    action_meanings: list[str]
    agent: Agent | None
    source: str

    @property
    def action_space(self) -> ActionSpace:
        """The actions."""
        return self.world_model.action_space

    @property
    def diffusion_model(self) -> WorldModel:
        """The world model, where it is DIAMOND's.

        Raises:
            InvalidInputError: It is a custom one.
        """
        if not isinstance(self.world_model, WorldModel):
            raise InvalidInputError(f"this needs a world model of DIAMOND's, {self.source} is a custom one")
        return self.world_model

    def resampled(
        self, num_denoising_steps: int | None = None, order: int | None = None, s_churn: float | None = None
    ) -> World:
        """Return the same world on the same networks with another sampler; None keeps a number as it is.

        Raises:
            InvalidInputError: A number is out of range, or the denoiser cannot be sampled like this.
        """
        model = self.world_model
        if not isinstance(model, WorldModel):
            custom.refuse_sampler(num_denoising_steps, order, s_churn)
            return self
        sampler = _overridden(model.config, num_denoising_steps, order, s_churn)
        return replace(self, world_model=model.resampled(sampler))


@accepts_compile
def load_world(
    game: str | None,
    checkpoint: str | os.PathLike[str] = "auto",
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    num_denoising_steps: int | None = None,
    order: int | None = None,
    s_churn: float | None = None,
    contexts: str | os.PathLike[str] | None = None,
    num_games: int = 1,
) -> World:
    """Load a world model.

    Args:
        game: Name of an Atari game in any spelling; may be None where `checkpoint` is a path.
        checkpoint: "auto" (embedded, else the Hub's cache, else the Hub), "embedded", "hub", "hub:user/name"
            (any repository on the Hub), "model:package:factory" (a `CustomWorldModel`, which the function
            `factory` of the module `package` returns), or the path of a `.safetensors`, a `.pt`, a folder of
            `save_world` or a run folder (its newest agent).
        device: "auto" (CUDA where available), "cpu", "cuda", "cuda:1", ...
        dtype: Precision of the world model's networks: "auto", "float32", "bfloat16", on CUDA also "float16".
        backend: What runs the networks: "auto", "eager", "inductor", "openvino" (up to 16 games on the CPU)
            or "cuda_graph" (on CUDA), see `diamond_gym.backends.choose`.
        num_denoising_steps: Denoising steps per frame; None for the checkpoint's own, as for the next two.
        order: Order of the sampler: 1 for Euler, 2 for Heun.
        s_churn: Amount of noise added back while denoising, >= 0.
        contexts: Path of a file of contexts or a folder of recorded episodes to start from; None for the
            checkpoint's own contexts.
        num_games: The number of games of most steps, for which a backend may prepare; others work, too.

    Raises:
        UnknownGameError: ale_py has no such game.
        InvalidInputError: An argument is not one of those accepted.
        DeviceError: The device is not available, or the backend needs another one.
        CheckpointNotFoundError: There is no such checkpoint.
        CheckpointError: It is damaged, foreign, for another game or of another architecture.
        MissingDependencyError: What the backend needs is not installed.
    """
    game = None if game is None else game_name(game)
    if custom.is_custom(checkpoint):
        custom.refuse_sampler(num_denoising_steps, order, s_churn)
        custom.refuse_backend(dtype, backend)
        return _load_custom(game, str(checkpoint), device, contexts)
    location = locate(game, checkpoint)
    agent, description = _read(location)
    game = _agreed_game(game, description, agent, location.weights)
    sampler = _overridden(description.sampler, num_denoising_steps, order, s_churn)
    world_model = build_world_model(
        agent, sampler, device=device, dtype=dtype, backend=backend, num_games=num_games
    )
    bank = start_contexts.find(location, contexts, game, agent)
    meanings = description.action_meanings or _action_meanings(game, agent)
    return World(world_model, bank, game, meanings, agent, str(location.weights))


def _load_custom(
    game: str | None, checkpoint: str, device: str, contexts: str | os.PathLike[str] | None
) -> World:
    model = custom.build(checkpoint, pick_device(device))
    bank = custom.find_contexts(model, contexts)
    meanings = custom.action_meanings(model)
    return World(model, bank, game, meanings, None, checkpoint)


def load_agent(path: str | os.PathLike[str]) -> Agent:
    """Load the networks of a checkpoint, on the CPU in float32, in eval mode.

    Args:
        path: A `.safetensors`, a `.pt`, a folder of `save_world` or a run folder (its newest agent).

    Raises:
        CheckpointNotFoundError: There is nothing at the path.
        CheckpointError: It is not a checkpoint, or a damaged one.
    """
    agent, _ = _read(locate_path(Path(path)))
    return agent


def _read(location: Location) -> tuple[Agent, WorldDescription]:
    if location.weights.suffix == ".safetensors":
        agent, description = read_saved_world(location.weights)
    else:
        agent, description = _read_state_dict_of_agent(location)
    meanings, space = description.action_meanings, agent.action_space
    if meanings is not None and len(meanings) != num_action_names(space):
        raise CheckpointError(
            f"{location.weights} has {names_wanted(space)}, its description names {len(meanings)}: "
            f"{', '.join(meanings)}"
        )
    return agent, description


def _read_state_dict_of_agent(location: Location) -> tuple[Agent, WorldDescription]:
    description = WorldDescription(None, DiffusionSamplerConfig(), None, None)
    if location.description is not None and location.description.is_file():
        description = WorldDescription.load(location.description)
    elif location.description is not None and published_run.is_published(location.description.parents[1]):
        description = published_run.describe(location.description.parents[1])
    weights = read_state_dict(location.weights)
    is_complete = description.agent is not None
    return build_agent(weights, location.weights, description.agent, is_complete=is_complete), description


def _agreed_game(game: str | None, description: WorldDescription, agent: Agent, file: Path) -> str | None:
    """Return the game that is given or described, after checking that nothing contradicts it."""
    stored = None if description.game is None else _stored_game(description.game, file)
    if stored is not None and game is not None and stored != game:
        raise CheckpointError(
            f"{file} is a world model of {stored}, not of {game}: give game='{stored}' or another file"
        )
    game = game or stored
    if game is None:
        return None
    num_actions = agent.config.num_actions
    is_unchecked = stored is None or description.action_meanings is None
    if is_unchecked and num_actions != atari.num_actions(game):
        raise CheckpointError(
            f"{file} has {num_actions or agent.action_space} actions, {game} has {atari.num_actions(game)} "
            f"({', '.join(atari.action_meanings(game))}): it is a world model of another game"
        )
    return game


def _stored_game(name: str, file: Path) -> str:
    try:
        return game_name(name)
    except ValueError as error:
        raise CheckpointError(f"{file} names a game that ale-py does not have: {error}") from error


def _overridden(
    sampler: DiffusionSamplerConfig, num_denoising_steps: int | None, order: int | None, s_churn: float | None
) -> DiffusionSamplerConfig:
    if s_churn is not None and not isinstance(s_churn, Real):
        raise InvalidInputError(f"s_churn must be a number >= 0, got {s_churn!r}")
    given = {"num_steps_denoising": num_denoising_steps, "order": order, "s_churn": s_churn}
    return replace(sampler, **{name: value for name, value in given.items() if value is not None})


def _action_meanings(game: str | None, agent: Agent) -> list[str]:
    names = [f"ACTION_{i}" for i in range(num_action_names(agent.action_space))]
    return names if game is None else atari.action_meanings(game)

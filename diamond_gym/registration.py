"""The games, and the Gymnasium ids of their learned simulators.

`Diamond<Game>-v0` exists for every single-player game of ale-py, and `DiamondReal<Game>-v0` for the game that
it imagines; `register_world_model` adds an id for a model of your own. Entry points are strings, so
registering loads neither torch nor ale-py, and this module does not depend on how an environment works or
where weights come from.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from diamond_gym.errors import InvalidInputError, UnknownGameError

GAMES: tuple[str, ...] = tuple(
    """
    Adventure AirRaid Alien Amidar Assault Asterix Asteroids Atlantis Atlantis2 Backgammon BankHeist
    BasicMath BattleZone BeamRider Berzerk Blackjack Bowling Boxing Breakout Carnival Casino
    Centipede ChopperCommand CrazyClimber Crossbow Darkchambers Defender DemonAttack DonkeyKong
    DoubleDunk Earthworld ElevatorAction Enduro Entombed Et FishingDerby FlagCapture Freeway Frogger
    Frostbite Galaxian Gopher Gravitar Hangman HauntedHouse Hero HumanCannonball IceHockey Jamesbond
    JourneyEscape Kaboom Kangaroo KeystoneKapers KingKong Klax Koolaid Krull KungFuMaster LaserGates
    LostLuggage MarioBros MiniatureGolf MontezumaRevenge MrDo MsPacman NameThisGame Othello Pacman
    Phoenix Pitfall Pitfall2 Pong Pooyan PrivateEye Qbert Riverraid RoadRunner Robotank Seaquest
    SirLancelot Skiing Solaris SpaceInvaders SpaceWar StarGunner Superman Surround Tennis Tetris
    TicTacToe3D TimePilot Trondead Turmoil Tutankham UpNDown Venture VideoCheckers VideoChess
    VideoCube VideoPinball WizardOfWor WordZapper YarsRevenge Zaxxon
    """.split()
)
"""Every single-player game of ale-py, in its spelling, sorted."""

ATARI_100K: tuple[str, ...] = tuple(
    """
    Alien Amidar Assault Asterix BankHeist BattleZone Boxing Breakout ChopperCommand CrazyClimber
    DemonAttack Freeway Frostbite Gopher Hero Jamesbond Kangaroo Krull KungFuMaster MsPacman Pong
    PrivateEye Qbert RoadRunner Seaquest UpNDown
    """.split()
)
"""The 26 games of the Atari 100k benchmark (Kaiser et al. 2020), for which DIAMOND models are published."""

DEFAULT_MAX_EPISODE_STEPS = 50
"""Imagination horizon of registered ids, in steps of four raw frames."""

CUSTOM_PREFIX = "model:"
"""A `checkpoint` that begins like this names a function that builds a world model of another make."""

_REAL_ENTRY_POINT = "diamond_gym.games.atari:AtariEnv"
_ENTRY_POINT = "diamond_gym.envs.env:DiamondEnv"
_VECTOR_ENTRY_POINT = "diamond_gym.envs.vector_env:DiamondVectorEnv"
_WORLD_MODEL_ID = re.compile(r"(?:[\w-]+/)?[\w.-]+-v\d+")
_GAME_ID = re.compile(
    r"(?:ALE/|diamond_gym:)?(?:Diamond(?:Real)?)?(?P<name>.+?)(?:NoFrameskip|Deterministic)?(?:-v\d+)?",
    re.IGNORECASE,
)


def register_games() -> None:
    """Register `Diamond<Game>-v0` and `DiamondReal<Game>-v0` for all games; existing ids are not changed.

    A real game has the spaces of the imagined one, so that any library can score an agent that learned in
    imagination. It lasts until game over (ALE truncates it after half an hour), with the game's own rewards.
    """
    for game in GAMES:
        imagined = _spec(env_id(game), {"game": game}, DEFAULT_MAX_EPISODE_STEPS)
        real = EnvSpec(real_env_id(game), _REAL_ENTRY_POINT, kwargs={"game": game, "training": False})
        for spec in (imagined, real):
            if spec.id not in gymnasium.registry:
                _register(spec)


def register_world_model(
    id: str,
    checkpoint: str | Path | None = None,
    *,
    model: str | None = None,
    max_episode_steps: int | None = DEFAULT_MAX_EPISODE_STEPS,
    **kwargs: Any,
) -> None:
    """Register an id for a world model of your own, so that `gymnasium.make(id)` and `make_vec` find it.

    Registering the same thing twice does nothing. The checkpoint is opened, or the model built, by `make` and
    not here, so a checkpoint may still be in training.

    Args:
        id: `Name-v0` or `namespace/Name-v0`.
        checkpoint: A `.safetensors`, `.pt` or run folder, or any other value the environments accept as
            `checkpoint`. A `Path` is made absolute, a string is kept as it is.
        model: Instead of a checkpoint, a world model of any make: "package.module:factory", a function that
            takes `device` and returns a `diamond_gym.world.custom.CustomWorldModel`.
        max_episode_steps: Imagination horizon, at least 1, or None for no end except the predicted one.
        **kwargs: Further keyword arguments of the environments, such as `num_denoising_steps=1`; they must be
            expressible in JSON, because Gymnasium writes specs as JSON. `game` is optional: the checkpoint
            names the game that it imagines.

    Raises:
        InvalidInputError: The id is malformed or taken, the horizon is below 1, the checkpoint is of another
            type, or JSON cannot hold a keyword argument.
        UnknownGameError: `game` was given and is not a game of ale-py.
    """
    _check_id(id)
    if max_episode_steps is not None and not _is_positive_int(max_episode_steps):
        raise InvalidInputError(f"max_episode_steps must be an int >= 1 or None, got {max_episode_steps!r}")
    game = kwargs.pop("game", None)
    game = None if game is None else game_name(game)
    if (checkpoint is None) == (model is None):
        raise InvalidInputError(f"give either a checkpoint or a model, got {checkpoint!r} and {model!r}")
    source = _checkpoint_text(checkpoint) if checkpoint is not None else _model_text(model)
    spec_kwargs = {"game": game, "checkpoint": source, **_json_able(kwargs)}
    spec = _spec(id, spec_kwargs, max_episode_steps)
    registered = gymnasium.registry.get(id)
    if registered is None:
        _register(spec)
    elif registered != spec:
        raise InvalidInputError(
            f"{id!r} is already registered, with {registered.kwargs}. Choose another name or version, "
            f"or remove it first: del gymnasium.registry[{id!r}]"
        )


def env_id(game: str) -> str:
    """Return the id of a game's environment, such as "DiamondMsPacman-v0" for "ms_pacman".

    Raises:
        UnknownGameError: ale_py has no such game.
    """
    return f"Diamond{game_name(game)}-v0"


def real_env_id(game: str) -> str:
    """Return the id of the real game, such as "DiamondRealMsPacman-v0" for "ms_pacman".

    Raises:
        UnknownGameError: ale_py has no such game.
    """
    return f"DiamondReal{game_name(game)}-v0"


def game_name(text: str) -> str:
    """Return a game's name as ale-py spells it.

    Args:
        text: "MsPacman", "ms_pacman", "mspacman", "ALE/MsPacman-v5", "MsPacmanNoFrameskip-v4" and
            "DiamondMsPacman-v0" all give "MsPacman".

    Raises:
        UnknownGameError: ale_py has no such game; the message suggests similar names.
    """
    match = _GAME_ID.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise UnknownGameError(f"a game is named by a string such as 'Breakout', got {text!r}")
    squashed = _squash(match["name"])
    names = {_squash(game): game for game in GAMES}
    if squashed in names:
        return names[squashed]
    nearest = [names[name] for name in difflib.get_close_matches(squashed, names, n=3)]
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known games: {', '.join(GAMES)}"
    raise UnknownGameError(f"unknown game {text!r}: {hint}")


def check_imagined(id: str) -> None:
    """Check that an id is that of an imagined game, this library's or `register_world_model`'s.

    Raises:
        InvalidInputError: It is not registered, or that of another environment.
    """
    try:
        spec = gymnasium.spec(id)
    except gymnasium.error.Error as error:
        raise InvalidInputError(f"{id!r} is not an environment: {error}") from error
    if spec.vector_entry_point != _VECTOR_ENTRY_POINT:
        raise InvalidInputError(f"{id} is not an imagined game such as DiamondBreakout-v0")


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _spec(id: str, kwargs: dict[str, Any], max_episode_steps: int | None) -> EnvSpec:
    return EnvSpec(
        id=id,
        entry_point=_ENTRY_POINT,
        vector_entry_point=_VECTOR_ENTRY_POINT,
        max_episode_steps=max_episode_steps,
        kwargs=kwargs,
    )


def _register(spec: EnvSpec) -> None:
    try:
        gymnasium.register(
            id=spec.id,
            entry_point=spec.entry_point,
            vector_entry_point=spec.vector_entry_point,
            max_episode_steps=spec.max_episode_steps,
            kwargs=spec.kwargs,
        )
    except gymnasium.error.RegistrationError as error:
        raise InvalidInputError(f"Gymnasium refuses the id {spec.id!r}: {error}") from error


def _check_id(id: str) -> None:
    if not isinstance(id, str) or _WORLD_MODEL_ID.fullmatch(id) is None:
        raise InvalidInputError(
            f"an id has the form 'Name-v0' or 'namespace/Name-v0', of letters, digits and '_-.', got {id!r}"
        )


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _checkpoint_text(checkpoint: str | Path) -> str:
    if isinstance(checkpoint, Path):
        return str(checkpoint.expanduser().absolute())
    if isinstance(checkpoint, str) and checkpoint:
        return checkpoint
    raise InvalidInputError(
        f"checkpoint must be the path of a .safetensors, a .pt or a run folder, got {checkpoint!r}"
    )


def _model_text(model: str | None) -> str:
    if isinstance(model, str) and re.fullmatch(r"[\w.]+:[\w.]+", model):
        return CUSTOM_PREFIX + model
    raise InvalidInputError(f"model must be 'package.module:factory', got {model!r}")


def _json_able(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, value in kwargs.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"keyword argument {name}={value!r} cannot be written as JSON ({error}); give plain strings, "
                f"numbers, lists or dicts, such as device='cuda:0' or dtype='bfloat16'"
            ) from error
    return kwargs

"""The one door through which configurations come in: presets, `key=value` arguments, a run's `trainer.yaml`.

Hydra composes them, OmegaConf checks their types; what leaves this module is plain dataclasses. Nothing else
of the trainer knows either library. The working directory never changes and no folder is made.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diamond_gym.errors import CheckpointError, InvalidInputError, MissingDependencyError, first_line
from diamond_gym.registration import game_name
from trainers.diamond.config import PlayerConfig, TrainerConfig

try:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
except ImportError as error:
    raise MissingDependencyError(
        f"training needs hydra-core ({error}): pip install 'diamond-gym[train]'"
    ) from error

PRESETS_FOLDER = Path(__file__).parent / "presets"
PRESETS = tuple(sorted(path.stem for path in PRESETS_FOLDER.glob("*.yaml")))
DEFAULT_PRESET = "paper"

_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, InvalidInputError)
_ALIASES = {
    "env.train.id": "game",
    "env.test.max_episode_steps": "collection.test.max_episode_steps",
    "common.devices": "common.device",
    "denoiser.objective": "agent.denoiser.objective",
    "training.compile_wm": "training.compile",
}
"""Published or short names of keys, and ours."""
_WITHOUT_MEANING = {
    "env.train.done_on_life_loss": "training games end with a life",
    "env.train.size": "real games have frames of 64x64 pixels",
    "env.train.max_episode_steps": "training games are as long as ALE lets them",
    "env.test.id": "test games are of the training's game",
    "env.test.done_on_life_loss": "test games go on to game over",
    "env.test.size": "real games have frames of 64x64 pixels",
    "env.keymap": "`play` knows the keys of every game",
    "training.cache_in_ram": "episodes are always kept in memory",
    "training.num_workers_data_loaders": "batches are drawn from memory, without workers",
    "world_model_env.num_batches_to_preload": "start segments are drawn when they are needed",
    "common.resume": "`resume run=PATH` goes on with a run",
}
"""Published keys that nothing here corresponds to, and why."""
_DDPM_PREDICTIONS = "denoiser.training.num_autoregressive_steps=0"
"""How the paper trains DDPM (section 5.1), unless told otherwise."""
_PATHS = ("static_dataset.path", "initialization.path_to_ckpt")
"""Keys whose values are taken as they are: a path may hold characters that mean something to Hydra."""

ConfigStore.instance().store("trainer", TrainerConfig)


def parse(arguments: Sequence[str]) -> TrainerConfig:
    """The configuration that arguments such as `["game=Breakout", "preset=small"]` describe.

    Of a key that is given twice, the last value counts. With `denoiser.objective=ddpm`, predictions are not
    conditioned on earlier ones unless `denoiser.training.num_autoregressive_steps` is given. Games are
    returned in their own spelling, paths are made absolute.

    Raises:
        InvalidInputError: A key is unknown, or a value is not of its type or range; the message is one
            line that names it.
        UnknownGameError: ale-py has no such game.
    """
    preset, overrides = _read(arguments)
    try:
        config = _compose(preset, overrides)
    except _COMPOSITION_ERRORS as error:
        raise InvalidInputError(_explain(preset, overrides, error)) from error
    if config.game is not None:
        config.game = game_name(config.game)
    config.static_dataset.path = _absolute(config.static_dataset.path)
    config.initialization.path_to_ckpt = _absolute(config.initialization.path_to_ckpt)
    return config


def to_yaml(config: TrainerConfig) -> str:
    """The whole configuration, for `from_yaml`."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(path: Path) -> TrainerConfig:
    """Reads what `to_yaml` wrote.

    Raises:
        CheckpointError: The file is damaged, or no configuration of this trainer.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(TrainerConfig), OmegaConf.load(path))
        return OmegaConf.to_object(config)  # pyright: ignore[reportReturnType]
    except Exception as error:  # besides OmegaConf's and our own, whatever the YAML parser raises
        raise CheckpointError(f"{path} is no configuration of this trainer: {_reason(error)}") from error


def flat(config: TrainerConfig) -> dict[str, Any]:
    """Every key with its value, as it is written on the command line."""
    return _flatten(OmegaConf.to_container(OmegaConf.structured(config)), "")


def nearest(word: str, known: Sequence[str]) -> str:
    """Ends an error message: the known word that was probably meant, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"accepted are {', '.join(known)}"


def split(argument: str) -> tuple[str, str]:
    """`key=value` in two.

    Raises:
        InvalidInputError: It is something else.
    """
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise InvalidInputError(f"{argument}: arguments are written key=value")
    return key, value


def _read(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The preset, and overrides for Hydra."""
    preset, overrides = DEFAULT_PRESET, []
    known = ["preset", *_ALIASES, *flat(_with_players())]
    for argument in arguments:
        key, value = split(argument)
        _check_key(key, known)
        value = _device(value) if key == "common.devices" else value
        key = _ALIASES.get(key, key)
        if key == "preset":
            if value not in PRESETS:
                raise InvalidInputError(f"preset={value}: {nearest(value, PRESETS)}")
            preset = value
        else:
            overrides.append(f"{key}={_quoted(value) if key in _PATHS else value}")
    if "agent.denoiser.objective=ddpm" in overrides:
        overrides.insert(0, _DDPM_PREDICTIONS)
    return preset, overrides


def _with_players() -> TrainerConfig:
    """A configuration in which every key occurs."""
    config = TrainerConfig()
    config.collection.train.players, config.collection.test.players = [PlayerConfig()], [PlayerConfig()]
    return config


def _device(devices: str) -> str:
    """The device that the published `common.devices` means: all, cpu, a number, or a list of one number."""
    number = devices.strip("[]")
    if number.isdecimal():
        return f"cuda:{number}"
    if devices not in ("all", "cpu"):
        raise InvalidInputError(f"common.devices={devices}: accepted are all, cpu, or the number of one GPU")
    return "auto" if devices == "all" else devices


def _check_key(key: str, known: list[str]) -> None:
    if key in _WITHOUT_MEANING:
        raise InvalidInputError(f"{key} has no meaning here: {_WITHOUT_MEANING[key]}")
    with_first_index = re.sub(r"\.\d+(?=\.|$)", ".0", key)
    if not any(name == with_first_index or name.startswith(f"{with_first_index}.") for name in known):
        suffix = [name for name in known if name.endswith(f".{key}")]
        hint = f"did you mean {' or '.join(suffix)}?" if suffix else _nearest_key(key, known)
        raise InvalidInputError(f"unknown key {key}: {hint}")


def _nearest_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "`train --help` lists the keys"


def _quoted(value: str) -> str:
    is_quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
    if value in ("", "null") or is_quoted:
        return value
    return "'" + value.replace("'", "\\'") + "'"


def _compose(preset: str, overrides: Sequence[str]) -> TrainerConfig:
    with initialize_config_dir(str(PRESETS_FOLDER), version_base="1.3"):
        config = compose(preset, overrides=list(overrides))
    return OmegaConf.to_object(config)  # pyright: ignore[reportReturnType]


def _explain(preset: str, overrides: list[str], error: Exception) -> str:
    """Names the override without which the others compose, else the first that does not compose alone."""
    for i, override in enumerate(overrides):
        if _problem(preset, overrides[:i] + overrides[i + 1 :]) is None:
            return f"{override}: {_reason(error)}"
    for override in overrides:
        problem = _problem(preset, [override])
        if problem is not None:
            return f"{override}: {_reason(problem)}"
    return _reason(error)


def _problem(preset: str, overrides: list[str]) -> Exception | None:
    try:
        _compose(preset, overrides)
    except _COMPOSITION_ERRORS as error:
        return error
    return None


def _reason(error: BaseException) -> str:
    """The first line of the error that started it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def _flatten(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {key: value}
    result: dict[str, Any] = {}
    for name, item in items:
        result |= _flatten(item, f"{key}.{name}" if key else str(name))
    return result

"""Find the files that a `checkpoint` argument means.

World models are inside the package, in run folders of the trainer (ours or the published one), in the folders
of `save_world`, or on the Hub. None of the files is read here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from diamond_gym import files as disk
from diamond_gym.checkpoints import hub
from diamond_gym.checkpoints.saved_world import CONTEXTS_FILE, MODEL_FILE, contexts_path
from diamond_gym.errors import CheckpointError, CheckpointNotFoundError, DiamondGymError, InvalidInputError

EMBEDDED = Path(__file__).parents[1] / "weights"
"""The embedded world models: one folder per game, as `save_world` writes them."""

_AGENT_FILE = re.compile(r"agent_epoch_(\d+)\.pt")
_AGENT_FOLDER = Path("checkpoints", "agent_versions")
WORLD_FOLDER = "world"
"""In a run folder, the world model that a finished run has exported; it has priority over the agents."""
_ACCEPTED = (
    "checkpoint must be 'auto', 'embedded', 'hub', 'hub:user/name' for a repository of the Hub, or the path "
    "of a .safetensors file or folder, a .pt file or a run folder"
)


@dataclass(frozen=True)
class Location:
    """The paths of the parts of a world model.

    Attributes:
        weights: File of weights, `.safetensors` or `.pt`.
        description: JSON file of a run that describes its `.pt`; it may not exist (a run of the published
            trainer has only its `config/trainer.yaml`). None for any other file.
        contexts: File of its start contexts; it may not exist.
        datasets: Folders of recorded episodes to take start contexts from when there is no such file, best
            first.
    """

    weights: Path
    description: Path | None
    contexts: Path
    datasets: tuple[Path, ...] = ()


def locate(game: str | None, checkpoint: str | os.PathLike[str]) -> Location:
    """Find a world model; fetch it when it is only on the Hub.

    Args:
        game: The game's name, needed unless `checkpoint` is a repository or a path.
        checkpoint: "auto" (embedded, else the Hub's cache, else the Hub), "embedded", "hub", "hub:user/name"
            or "hub:user/name@revision" for a repository, or a path.

    Raises:
        InvalidInputError: `checkpoint` is not text or is malformed, or a game is needed and not given.
        CheckpointNotFoundError: There is no such world model.
        CheckpointError: The path is neither a checkpoint nor a folder that holds one.
    """
    if not isinstance(checkpoint, str | os.PathLike) or not checkpoint:
        raise InvalidInputError(f"{_ACCEPTED}; got {checkpoint!r}")
    if isinstance(checkpoint, str) and checkpoint.startswith(hub.PREFIX):
        return _loose(hub.fetch_repository(checkpoint, MODEL_FILE, CONTEXTS_FILE))
    if checkpoint not in ("auto", "embedded", "hub"):
        return locate_path(Path(checkpoint))
    if game is None:
        raise InvalidInputError(f"checkpoint={checkpoint!r} needs a game, such as game='Breakout'")
    embedded = EMBEDDED / game / MODEL_FILE
    if checkpoint == "embedded" and not embedded.is_file():
        games = ", ".join(sorted(path.parent.name for path in EMBEDDED.glob(f"*/{MODEL_FILE}"))) or "none"
        raise CheckpointNotFoundError(f"no embedded world model of {game}; embedded games: {games}")
    if checkpoint == "hub" or not embedded.is_file():
        return _loose(hub.fetch(game))
    return _loose(embedded)


def locate_path(path: Path) -> Location:
    """Find the parts of a world model, given a file of weights, a folder of `save_world` or a run folder.

    Raises:
        CheckpointNotFoundError: There is nothing at the path.
        CheckpointError: It is neither a checkpoint nor a folder that holds one.
    """
    try:
        return _locate_existing(path.expanduser())
    except DiamondGymError:
        raise
    except (OSError, RuntimeError) as error:  # no access, too long a name, an unknown user's home
        raise CheckpointNotFoundError(f"cannot open {path}: {error}; {_ACCEPTED}") from error


def _locate_existing(path: Path) -> Location:
    if path.is_dir():
        return _locate_in_folder(path)
    if not path.exists():
        raise CheckpointNotFoundError(f"there is no file or folder {path}; {_ACCEPTED}")
    if path.suffix not in (".safetensors", ".pt"):
        raise CheckpointError(f"{path} ends in neither .safetensors nor .pt; {_ACCEPTED}")
    is_in_run = path.suffix == ".pt" and path.absolute().parent.match(str(_AGENT_FOLDER))
    return _in_run(path.absolute().parents[2], path) if is_in_run else _loose(path)


def _locate_in_folder(folder: Path) -> Location:
    for file in (folder / MODEL_FILE, folder / WORLD_FOLDER / MODEL_FILE):
        if file.is_file():
            return _loose(file)
    versions = {
        int(match[1]): file
        for file in (folder / _AGENT_FOLDER).glob("*.pt")
        if (match := _AGENT_FILE.fullmatch(file.name))
    }
    if versions:
        return _in_run(folder, versions[max(versions)])
    names = [file.name for file in disk.visible(folder)]
    found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
    raise CheckpointError(
        f"the folder {folder} holds no world model: expected {MODEL_FILE}, or a run's "
        f"{_AGENT_FOLDER}/agent_epoch_*.pt; "
        f"found {found}"
    )


def _loose(file: Path) -> Location:
    return Location(file, None, contexts_path(file))


def _in_run(run: Path, file: Path) -> Location:
    datasets = (run / "dataset" / "test", run / "dataset" / "train")
    return Location(file, run / "config" / "world.json", run / CONTEXTS_FILE, datasets)

"""The published world models, on the Hugging Face Hub.

Only files of weights are fetched; they are data, never executed. Their cache, offline mode and endpoint are
huggingface_hub's own (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT).
"""

from __future__ import annotations

from pathlib import Path

from diamond_gym.errors import CheckpointNotFoundError
from diamond_gym.registration import ATARI_100K

REPOSITORY = "eloialonso/diamond"
_TIMEOUT = 5.0
"""Seconds to wait for the Hub's answer to a question."""


def file_in_repository(game: str) -> str:
    """Path of a game's weights in the repository."""
    return f"atari_100k/models/{game}.pt"


def fetch(game: str) -> Path:
    """A game's published weights on this disk: from the Hub's cache, else downloaded into it.

    Raises:
        CheckpointNotFoundError: None is published, or it is not cached and the Hub cannot be reached.
    """
    if game not in ATARI_100K:
        raise CheckpointNotFoundError(
            f"no world model of {game}: none is embedded, and {REPOSITORY} on the Hugging Face Hub has the "
            "26 games of "
            f"Atari 100k only. {_train_it(game)}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    file = file_in_repository(game)
    try:
        return Path(hf_hub_download(REPOSITORY, file, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(hf_hub_download(REPOSITORY, file, etag_timeout=_TIMEOUT))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointNotFoundError(_how_to_get(game, error)) from error


def _how_to_get(game: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    file = file_in_repository(game)
    return (
        f"no world model of {game}: none is embedded or cached, and {file} of {REPOSITORY} cannot be fetched "
        "from the "
        f"Hugging Face Hub ({reason}). With a network: `hf download {REPOSITORY} {file}`. Without: copy the "
        "Hub's cache "
        f"from a machine that has it (HF_HOME), or give the file itself, checkpoint='path/to/{game}.pt'. "
        f"{_train_it(game)}"
    )


def _train_it(game: str) -> str:
    return f"To train one: `python -m trainers.diamond train game={game}`, then checkpoint='its/run/folder'"

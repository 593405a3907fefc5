"""The published world models, on the Hugging Face Hub.

Only files of weights are fetched; they are data, never executed. Their cache, offline mode and endpoint are
huggingface_hub's own (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT).
"""

from __future__ import annotations

from pathlib import Path

from diamond_gym.errors import CacheError, CheckpointNotFoundError
from diamond_gym.registration import ATARI_100K

REPOSITORY = "eloialonso/diamond"
_TIMEOUT = 5.0
"""Seconds to wait for the Hub's first answer."""


def file_in_repository(game: str) -> str:
    """Path of a game's weights in the repository."""
    return f"atari_100k/models/{game}.pt"


def fetch(game: str) -> Path:
    """A game's published weights on this disk: from the Hub's cache, else downloaded into it.

    Raises:
        CheckpointNotFoundError: None is published, or it is not cached and the Hub cannot be reached.
        CacheError: The Hub's cache cannot be written.
    """
    if game not in ATARI_100K:
        raise CheckpointNotFoundError(
            f"no world model of {game}: none is embedded, and {REPOSITORY} on the Hugging Face Hub has the "
            f"26 games of Atari 100k only. {_how_to_train(game)}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(REPOSITORY, file_in_repository(game), local_files_only=True))
    except LocalEntryNotFoundError:
        return _download(game)


def _download(game: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    file = file_in_repository(game)
    try:
        # hf_hub_download asks an unreachable Hub six times, for half a minute; this asks once
        get_hf_file_metadata(hf_hub_url(REPOSITORY, file), timeout=_TIMEOUT)
        return Path(hf_hub_download(REPOSITORY, file, etag_timeout=_TIMEOUT))
    except Exception as error:  # which HTTP library's errors, depends on the version of huggingface_hub
        if isinstance(error, OSError) and error.errno is not None:  # the disk's; the network's have no number
            raise CacheError(
                f"cannot write {file} of {REPOSITORY} into the Hugging Face cache: {error}; set HF_HOME to a "
                "folder that can be written"
            ) from error
        raise CheckpointNotFoundError(_how_to_get(game, error)) from error


def _how_to_get(game: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    file = file_in_repository(game)
    return (
        f"no world model of {game}: none is embedded or cached, and {file} of {REPOSITORY} cannot be fetched "
        f"from the Hugging Face Hub ({reason}). With a network: `hf download {REPOSITORY} {file}`. Without: "
        f"copy the Hub's cache from a machine that has it (HF_HOME), or the file itself and give "
        f"checkpoint='path/to/{game}.pt'. {_how_to_train(game)}"
    )


def _how_to_train(game: str) -> str:
    return f"To train one: `python -m trainers.diamond train game={game}`, then checkpoint='its/run/folder'"

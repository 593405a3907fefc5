"""World models on the Hugging Face Hub: the published ones, and any user's repository.

Only files of weights and contexts are fetched; they are data, never executed. The cache, offline mode and
endpoint are those of huggingface_hub (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT).
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from diamond_gym.errors import CacheError, CheckpointNotFoundError, InvalidInputError, first_line
from diamond_gym.registration import ATARI_100K

REPOSITORY = "eloialonso/diamond"
PREFIX = "hub:"
"""`hub:user/name`, or `hub:user/name@revision`, is the repository of a world model."""
_ADDRESS = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?")
_TIMEOUT = 5.0
"""Seconds to wait for the Hub's first answer."""


def file_in_repository(game: str) -> str:
    """Path of a game's weights in the repository."""
    return f"atari_100k/models/{game}.pt"


def fetch(game: str) -> Path:
    """Find a game's published weights on this disk: in the Hub's cache, else downloaded into it.

    Raises:
        CheckpointNotFoundError: No such weights are published, or they are not cached and the Hub cannot be
            reached.
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
    except Exception as error:  # a cache that cannot be read, or whose content the library did not write
        _raise_if_of_the_disk(error, f"{file_in_repository(game)} of {REPOSITORY}")
        raise CheckpointNotFoundError(_how_to_get(game, error)) from error


def fetch_repository(address: str, weights: str, contexts: str) -> Path:
    """Find a user's world model on this disk: weights, with start contexts of the same commit beside them.

    The Hub is asked for the newest commit; when it cannot be reached, the cached files are used.

    Args:
        address: `hub:user/name` or `hub:user/name@revision`.
        weights: Name of the file of weights.
        contexts: Name of the file of start contexts; a repository without one is accepted.

    Raises:
        InvalidInputError: The address is malformed.
        CheckpointNotFoundError: There is no such repository or file, or it is not cached and the Hub cannot
            be reached.
        CacheError: The Hub's cache cannot be written.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    match = _ADDRESS.fullmatch(address.removeprefix(PREFIX))
    if match is None:
        raise InvalidInputError(
            f"a repository is written hub:user/name or hub:user/name@revision, got {address!r}"
        )
    repository, revision = match["repository"], match["revision"]
    try:
        file = _newest(repository, weights, revision)
        with contextlib.suppress(RemoteEntryNotFoundError):
            hf_hub_download(repository, contexts, revision=file.parent.name, etag_timeout=_TIMEOUT)
        return file
    except Exception as error:  # its type depends on the version of huggingface_hub
        _raise_if_of_the_disk(error, repository)
        raise CheckpointNotFoundError(
            f"no world model at {address}: {weights} cannot be fetched from the Hugging Face Hub "
            f"({first_line(error)}). Check the name; a private repository needs `hf auth login`; without "
            "a network, copy the Hub's cache from a machine that has it (HF_HOME)"
        ) from error


def _newest(repository: str, file: str, revision: str | None) -> Path:
    """Return the file in the Hub's cache, updated first if the Hub answers."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # hf_hub_download asks an unreachable Hub six times, for half a minute; this asks once
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=_TIMEOUT)
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise  # the Hub has answered
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
        raise
    return Path(hf_hub_download(repository, file, revision=revision, etag_timeout=_TIMEOUT))


def _download(game: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    file = file_in_repository(game)
    try:
        # hf_hub_download asks an unreachable Hub six times, for half a minute; this asks once
        get_hf_file_metadata(hf_hub_url(REPOSITORY, file), timeout=_TIMEOUT)
        return Path(hf_hub_download(REPOSITORY, file, etag_timeout=_TIMEOUT))
    except Exception as error:  # its type depends on the version of huggingface_hub
        _raise_if_of_the_disk(error, f"{file} of {REPOSITORY}")
        raise CheckpointNotFoundError(_how_to_get(game, error)) from error


def _raise_if_of_the_disk(error: Exception, what: str) -> None:
    if isinstance(error, OSError) and error.errno is not None:  # errors of the network have no number
        raise CacheError(
            f"cannot read or write {what} in the Hugging Face cache: {error}; set HF_HOME to a folder that "
            "can be read and written"
        ) from error


def _how_to_get(game: str, error: Exception) -> str:
    file = file_in_repository(game)
    return (
        f"no world model of {game}: none is embedded or cached, and {file} of {REPOSITORY} cannot be fetched "
        f"from the Hugging Face Hub ({first_line(error)}). With a network: `hf download {REPOSITORY} {file}`."
        f" Without: copy the Hub's cache from a machine that has it (HF_HOME), or the file itself and give "
        f"checkpoint='path/to/{game}.pt'. {_how_to_train(game)}"
    )


def _how_to_train(game: str) -> str:
    return (
        "To train a small one, in hours on a CPU: "
        f"`python -m trainers.diamond train game={game} preset=small`, then checkpoint='its/run/folder'"
    )

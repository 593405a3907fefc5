"""Episodes of a Minari dataset. Only this module imports the library, which is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Dict

from diamond_gym import untrusted
from diamond_gym.data.recorder import RecordedEpisode
from diamond_gym.data.source import StreamedEpisode
from diamond_gym.errors import DatasetError, InvalidInputError, MissingDependencyError, require
from diamond_gym.world.action_space import ActionSpace

_JPEG = (
    "note: Minari kept these images as JPEG (unless they are smaller than 32x32), which blurs small things; "
    "jpeg_encoding=False keeps them as they are when you make a dataset"
)


class MinariSource:
    """The episodes of a dataset on this machine, read one at a time.

    Args:
        name: Id of the dataset, such as "my-game/random-v0", or its folder.
        obs_key: Which observation to take where they are dictionaries.

    Raises:
        MissingDependencyError: Minari is not installed.
        DatasetError: There is no such dataset here.
        InvalidInputError: Its actions cannot be learned, or `obs_key` does not fit.
    """

    def __init__(self, name: str, obs_key: str | None = None) -> None:
        self._id, self.obs_key = name, obs_key
        self._dataset = _load(name)
        try:
            self._space = ActionSpace.of(self._dataset.action_space)
        except InvalidInputError as error:
            raise InvalidInputError(f"minari={name}: {error}") from error
        self._first_action = self._space.first(self._dataset.action_space)
        self.num_actions = self._space.num_actions
        _check_key(name, self._dataset.observation_space, obs_key)
        self.notes = [_JPEG] if getattr(self._dataset.storage, "jpeg_encoding", False) else []
        self.num_steps = int(self._dataset.total_steps)

    def __len__(self) -> int:
        return len(self._dataset.episode_indices)

    def name(self, number: int) -> str:
        """Name an episode by its number."""
        return f"episode {self._dataset.episode_indices[number]}"

    def files(self, number: int) -> list[Path]:
        """Return the file of all episodes, where there is one."""
        return sorted(Path(self._dataset.storage.data_path).glob("*.hdf5"))

    def load(self, number: int) -> StreamedEpisode:
        """Read an episode.

        Raises:
            DatasetError: It is damaged, or no episode of images.
        """
        try:
            episode = self._dataset[number]
        except Exception as error:  # any error of the storage for damaged files
            raise DatasetError(f"minari={self._id}, episode {number} cannot be read: {error}") from error
        with untrusted.reading(f"minari={self._id}, episode {number}", DatasetError, "an episode of images"):
            obs = episode.observations if self.obs_key is None else episode.observations[self.obs_key]
            recorded = RecordedEpisode(
                obs=obs,
                act=np.asarray(episode.actions) - self._first_action,
                rew=episode.rewards,
                terminated=episode.terminations,
                truncated=episode.truncations,
                num_actions=self.num_actions,
                actions=None if self._space.is_discrete else str(self._space),
            )
            return StreamedEpisode.of(recorded)


def _load(name: str) -> Any:
    minari = require("minari", "minari", f"minari={name}", "minari")
    folder = Path(name).expanduser()
    try:
        if (folder / "data").is_dir():
            return minari.MinariDataset(folder / "data")
        return minari.load_dataset(name)
    except ImportError as error:  # raised for a missing package of a storage format
        raise MissingDependencyError(f"minari={name}: {error}") from error
    except Exception as error:  # any error of the library and its storage for ids and files
        is_missing = isinstance(error, FileNotFoundError)
        reason = "it is not on this machine" if is_missing else " ".join(str(error).split())
        raise DatasetError(
            f"minari={name} cannot be read: {reason}. Known here are "
            f"{', '.join(minari.list_local_datasets()) or 'none'}; `minari download {name}` fetches a "
            "published one"
        ) from error


def _check_key(name: str, space: Any, obs_key: str | None) -> None:
    keys = list(space.spaces) if isinstance(space, Dict) else []
    if keys and obs_key not in keys:
        given = "none" if obs_key is None else obs_key
        raise InvalidInputError(
            f"minari={name}: observations are dictionaries, obs_key must be one of "
            f"{', '.join(keys)}; got {given}"
        )
    if not keys and obs_key is not None:
        raise InvalidInputError(f"minari={name}: its observations are not dictionaries, leave out obs_key")

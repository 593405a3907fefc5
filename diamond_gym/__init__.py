"""Learned simulators you can `gymnasium.make`.

Example::

    import gymnasium as gym, diamond_gym
    env = gym.make("DiamondBreakout-v0")

Importing this package registers an id for every game and loads neither torch nor ale-py; the environments and
the world model are imported at their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from diamond_gym import signals
from diamond_gym.registration import (
    ATARI_100K,
    GAMES,
    env_id,
    game_name,
    register_games,
    register_world_model,
)

if TYPE_CHECKING:
    from diamond_gym.data.recorder import RecordEpisodes
    from diamond_gym.envs.env import DiamondEnv
    from diamond_gym.envs.vector_env import DiamondVectorEnv
    from diamond_gym.games.atari import AtariEnv
    from diamond_gym.world.world_model import WorldModel

signals.quiet_while_importing()
__version__ = "0.1.0"

__all__ = [
    "ATARI_100K",
    "GAMES",
    "AtariEnv",
    "DiamondEnv",
    "DiamondVectorEnv",
    "RecordEpisodes",
    "WorldModel",
    "__version__",
    "env_id",
    "game_name",
    "register_world_model",
]

_LAZY = {
    "AtariEnv": "diamond_gym.games.atari",
    "DiamondEnv": "diamond_gym.envs.env",
    "DiamondVectorEnv": "diamond_gym.envs.vector_env",
    "RecordEpisodes": "diamond_gym.data.recorder",
    "WorldModel": "diamond_gym.world.world_model",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_games()

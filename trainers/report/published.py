"""Published scores of Atari 100k: of random and human players, and of agents by game and seed.

They ship with the package, in `atari100k.json`, with their sources. Of later work only aggregates are known.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diamond_gym.errors import InvalidInputError
from trainers.report.results import Protocol

FILE = Path(__file__).parent / "atari100k.json"


@functools.cache
def _data() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def games() -> tuple[str, ...]:
    """Games with published scores of random and human players, sorted."""
    return tuple(sorted(_data()["human"]))


def agents() -> tuple[str, ...]:
    """Agents whose scores are known by game and seed."""
    return tuple(_data()["agents"])


def source(agent: str) -> str:
    """Where an agent's scores come from."""
    data = _data()
    return data["sources"].get(agent) or data["aggregates"][agent]["source"]


def means() -> dict[str, float]:
    """Human-normalised means over all games of the agents of which no more than that is known."""
    return {name: known["mean"] for name, known in _data()["aggregates"].items()}


def protocol() -> Protocol:
    """How the published scores came about."""
    return Protocol(**_data()["protocol"])


def scores(agent: str, game: str) -> list[float]:
    """An agent's scores of a game, one a seed."""
    return _data()["agents"][agent][game]


def normalised(raw: Float[np.ndarray, " *any"], game: str) -> Float[np.ndarray, " *any"]:
    """Scores on the scale on which a random player has 0 and a human 1."""
    random, human = _data()["random"][game], _data()["human"][game]
    return (raw - random) / (human - random)


def check_games(names: Sequence[str]) -> None:
    """Makes sure that games have reference scores.

    Raises:
        InvalidInputError: One has none.
    """
    unknown = sorted(set(names) - set(games()))
    if unknown:
        raise InvalidInputError(
            f"no reference scores of random and human players are published for {', '.join(unknown)}: its "
            f"scores cannot be normalised. Choose games with games=[...], among {', '.join(games())}"
        )

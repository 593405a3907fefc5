"""Imagination as the actor-critic meets it: games that start at replay segments and last for a horizon.

Random numbers are counted, not carried along: start number k of game i is the same whenever it happens, and
whichever of the games are played beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diamond_gym.world.pixels import to_float
from diamond_gym.world.world_model import WorldModel, WorldModelState, blank
from trainers.diamond.replay import SegmentBatch, concatenated
from trainers.diamond.rollout import Outcome


class ImaginedGames:
    """b games imagined in step.

    Args:
        world_model: Imagines them.
        draw: Draws one replay segment of n steps.
        num_games: Number of games (b), at least 1.
        horizon: Steps after which a game is cut short, at least 1.
        seed: Fixes where games start and what happens in them, two numbers >= 0.
        first: Number of the first of the games, >= 0.

    Attributes:
        num_starts: How often each game was started.
    """

    def __init__(
        self,
        world_model: WorldModel,
        draw: Callable[[np.random.Generator], SegmentBatch],
        num_games: int,
        horizon: int,
        seed: tuple[int, int],
        first: int = 0,
    ) -> None:
        self.world_model, self.num_games, self.horizon, self.seed = world_model, num_games, horizon, seed
        self._draw, self._first = draw, first
        self._state: WorldModelState | None = None
        self.num_starts = torch.zeros(num_games, dtype=torch.int64)

    def start(self) -> Float[Tensor, "b n c h w"]:
        """Starts all games; returns the frames up to where they start, in [-1, 1]."""
        self._state = self._start(torch.arange(self.num_games))
        return blank(to_float(self._state.obs), self._state.padding)

    def step(self, act: Int64[Tensor, " b"]) -> Outcome:
        """Takes one action in each game."""
        assert self._state is not None, "start() comes first"
        self._state, step = self.world_model.step(self._state, act)
        return Outcome(step.obs, step.rew, step.end, self._state.time >= self.horizon)

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k n c h w"]:
        """Starts some games at fresh segments; returns the frames up to there, in [-1, 1]."""
        assert self._state is not None, "start() comes first"
        fresh = self._start(index.cpu())
        self._state = self._state.replace(index, fresh)
        return blank(to_float(fresh.obs), fresh.padding)

    def _start(self, index: Int64[Tensor, " k"]) -> WorldModelState:
        numbers = zip((self._first + index).tolist(), self.num_starts[index].tolist(), strict=True)
        rngs = [np.random.default_rng([*self.seed, game, start]) for game, start in numbers]
        self.num_starts[index] += 1
        batch = concatenated([self._draw(rng) for rng in rngs])
        keys = torch.tensor([int(rng.integers(2**62)) for rng in rngs])
        return self.world_model.start(batch.obs, batch.act, keys, batch.padding_before())

    def state_dict(self) -> dict[str, Any]:
        """This moment of the games."""
        state = self._state
        names = [f.name for f in fields(WorldModelState)]
        tensors = {} if state is None else dict(zip(names, state.tensors(), strict=True))
        return {"num_starts": self.num_starts.clone(), "state": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved moment."""
        self.num_starts = (
            torch.as_tensor(state["num_starts"]).expand(self.num_games).clone()
        )  # once one number
        device = self.world_model.device
        tensors = {name: x.to(device) for name, x in state["state"].items()}
        if tensors and "padding" not in tensors:  # saved by an earlier version, which had mid grey frames
            tensors["padding"] = torch.zeros_like(tensors["time"])
        self._state = WorldModelState(**tensors) if tensors else None

"""Several real games at once, whose every moment can be saved and gone back to.

The only random numbers are the games' own, fixed by the seed. Knows nothing of who plays or why.
"""

from __future__ import annotations

from typing import Any

import ale_py
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from diamond_gym.games.atari import AtariEnv, AtariState
from diamond_gym.world.pixels import to_float
from trainers.diamond.rollout import Outcome


class RealGames:
    """b games of one kind, played in step.

    Args:
        game: Name of an Atari game.
        num_envs: Number of games (b), at least 1.
        training: Whether a lost life ends an episode (the game goes on), as when training data are collected.
        seed: Fixes the games, >= 0.

    Attributes:
        obs: The frame each game is at.

    Raises:
        UnknownGameError: ale-py has no such game.
    """

    def __init__(self, game: str, num_envs: int, *, training: bool, seed: int, first: int = 0) -> None:
        self.envs = [AtariEnv(game, training=training) for _ in range(num_envs)]
        seeds = np.random.SeedSequence(seed).generate_state(first + num_envs)[first:].tolist()
        frames = [env.reset(seed=s)[0] for env, s in zip(self.envs, seeds, strict=True)]
        self.obs = torch.stack([_channels_first(frame) for frame in frames])

    def __len__(self) -> int:
        return len(self.envs)

    def start(self) -> Float[Tensor, "b 1 c h w"]:
        """The frames the games are at, in [-1, 1]: they have begun already."""
        return to_float(self.obs[:, None])

    def step(self, act: Int64[Tensor, " b"]) -> Outcome:
        """Takes one action in each game; those that are over wait for `restart`."""
        steps = [env.step(a) for env, a in zip(self.envs, act.tolist(), strict=True)]
        self.obs = torch.stack([_channels_first(frame) for frame, *_ in steps])
        return Outcome(
            obs=self.obs,
            rew=torch.tensor([rew for _, rew, *_ in steps], dtype=torch.float32),
            end=torch.tensor([end for _, _, end, _, _ in steps]),
            trunc=torch.tensor([trunc for *_, trunc, _ in steps]),
        )

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k 1 c h w"]:
        """Starts the next episode of some games; returns their first frames, in [-1, 1]."""
        self.obs = self.obs.clone()
        for i in index.tolist():
            self.obs[i] = _channels_first(self.envs[i].reset()[0])
        return to_float(self.obs[index][:, None])

    def state_dict(self) -> dict[str, Any]:
        """This moment of the games, as plain data and tensors."""
        return {"envs": [_to_plain(env.clone_state()) for env in self.envs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved moment of as many games of the same kind.

        Raises:
            ValueError: It is of another number of games.
        """
        if len(state["envs"]) != len(self.envs):
            raise ValueError(f"it holds {len(state['envs'])} games, {len(self.envs)} are played")
        frames = [env.restore_state(_from_plain(s)) for env, s in zip(self.envs, state["envs"], strict=True)]
        self.obs = torch.stack([_channels_first(frame) for frame in frames])


class GamesOnDevice:
    """Real games for a player on another device."""

    def __init__(self, games: RealGames, device: torch.device) -> None:
        self.games, self.device = games, device

    def start(self) -> Float[Tensor, "b 1 c h w"]:
        """See `RealGames`."""
        return self.games.start().to(self.device)

    def step(self, act: Int64[Tensor, " b"]) -> Outcome:
        """See `RealGames`."""
        return Outcome(*(x.to(self.device) for x in self.games.step(act.cpu())))

    def restart(self, index: Int64[Tensor, " k"]) -> Float[Tensor, "k 1 c h w"]:
        """See `RealGames`."""
        return self.games.restart(index.cpu()).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """See `RealGames`."""
        return self.games.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `RealGames`."""
        self.games.load_state_dict(state)


def _channels_first(frame: np.ndarray) -> UInt8[Tensor, "c h w"]:
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))


def _to_plain(state: AtariState) -> dict[str, Any]:
    plain = {name: getattr(state, name) for name in state.__dataclass_fields__}
    emulator = bytearray(state.emulator.serialize())
    return plain | {
        "emulator": torch.frombuffer(emulator, dtype=torch.uint8).clone(),
        "screens": torch.from_numpy(state.screens.copy()),
    }


def _from_plain(plain: dict[str, Any]) -> AtariState:
    emulator = ale_py.ALEState(plain["emulator"].numpy().tobytes())
    return AtariState(**plain | {"emulator": emulator, "screens": plain["screens"].numpy()})

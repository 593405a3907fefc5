"""World models that are not DIAMOND's: a small recurrent one, and one that breaks promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn
from torch.nn import functional as F

from diamond_gym.world import noise
from tests.moving_dot import SIZE, MovingDot

NUM_ACTIONS, CONDITIONING, WIDTH = 3, 2, 64


class RecurrentWorld(nn.Module):
    """A GRU whose hidden state becomes a row of the frame, a reward and an end; for `MovingDot`."""

    num_steps_conditioning = CONDITIONING
    action_meanings = ("LEFT", "STAY", "RIGHT")

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = Discrete(NUM_ACTIONS)
        self.encode = nn.Linear(SIZE, WIDTH)
        self.cell = nn.GRUCell(NUM_ACTIONS, WIDTH)
        self.decode = nn.Linear(WIDTH, SIZE + 3)
        frames, actions = play_dot(8, CONDITIONING, seed=1)
        self.contexts = {"obs": frames[:, :CONDITIONING], "act": actions[:, :CONDITIONING]}

    def begin(self, row: Tensor) -> Tensor:
        return torch.tanh(self.encode(row))

    def advance(self, hidden: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.cell(F.one_hot(actions, NUM_ACTIONS).float(), hidden)
        row, outcome = self.decode(hidden).split([SIZE, 3], dim=-1)
        return hidden, row, outcome

    def start(self, contexts: Mapping[str, Tensor], keys: Tensor) -> dict[str, Any]:
        hidden = self.begin(row_of(contexts["obs"][:, -1]))
        return {"hidden": (hidden,), "keys": keys, "time": torch.zeros_like(keys)}

    def step(self, state: dict[str, Any], actions: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
        (hidden,) = state["hidden"]
        hidden, row, outcome = self.advance(hidden, actions)
        grain = noise.normal(state["keys"], state["time"], noise.Draw.FRAME, (SIZE,))
        row = (row.sigmoid() + 0.01 * grain).clamp(0, 1)
        frames = (255 * row[:, None, :, None]).byte().expand(-1, SIZE, -1, 3).contiguous()
        after = {"hidden": (hidden,), "keys": state["keys"], "time": state["time"] + 1}
        return after, frames, outcome[:, 0].tanh(), outcome[:, 1] > outcome[:, 2] + 2


def row_of(frames: Tensor) -> Tensor:
    """The row of the dot, (b, SIZE) in [0, 1]."""
    return frames[:, SIZE // 2, :, 0].float() / 255


def play_dot(num_games: int, num_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (k, t + 1, h, w, c) and actions (k, t + 1) of random games that never end."""
    rng, games = np.random.default_rng(seed), []
    for game in range(num_games):
        env = MovingDot()
        frames, actions = [env.reset(seed=seed + game)[0].copy()], rng.integers(0, 3, num_steps + 1)
        frames += [env.step(action)[0].copy() for action in actions[:-1]]
        games.append((np.stack(frames), actions))
    return np.stack([frames for frames, _ in games]), np.stack([actions for _, actions in games])


def trained(num_updates: int) -> RecurrentWorld:
    """A recurrent world after some updates on sequences of 4 steps, from anywhere on the line."""
    torch.manual_seed(0)
    world = RecurrentWorld()
    frames, actions = (torch.from_numpy(x)[:, 3:] for x in play_dot(256, 7, seed=2))
    optimizer = torch.optim.Adam(world.parameters(), lr=3e-3)
    for _ in range(num_updates):
        hidden, loss = world.begin(row_of(frames[:, 0])), torch.zeros(())
        for t in range(4):
            hidden, row, _ = world.advance(hidden, actions[:, t])
            loss = loss + F.binary_cross_entropy_with_logits(row, row_of(frames[:, t + 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return world


def recurrent(device: torch.device) -> RecurrentWorld:
    """The factory of an untrained recurrent world."""
    torch.manual_seed(0)
    return RecurrentWorld().to(device)


class Steered(RecurrentWorld):
    """With two parts of an action, of which the first moves the dot."""

    action_meanings = ("MOVE", "COLOUR")

    def __init__(self) -> None:
        super().__init__()
        self.action_space = MultiDiscrete([NUM_ACTIONS, 2])
        act = self.contexts["act"]
        self.contexts = self.contexts | {"act": np.stack([act, act % 2], axis=-1)}

    def step(self, state: dict[str, Any], actions: Tensor) -> tuple[Any, Tensor, Tensor, Tensor]:
        return super().step(state, actions[:, 0])


def steered(device: torch.device) -> Steered:
    """The factory of a world whose actions are MultiDiscrete."""
    torch.manual_seed(0)
    return Steered().to(device)


class Broken(RecurrentWorld):
    """Breaks one promise."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def step(self, state: dict[str, Any], actions: Tensor) -> Any:
        after, frames, rew, end = super().step(state, actions)
        match self.how:
            case "random":
                frames = frames + torch.randint(0, 2, frames.shape, dtype=torch.uint8)
            case "modifies":
                state["time"] += 1
            case "batch":
                frames = frames.float().sub(frames.float().mean(0)).abs().byte()
            case "shape":
                frames = frames.permute(0, 3, 1, 2)
            case "dtype":
                rew = rew.long()
            case "nan":
                rew = rew * torch.nan
            case "tuple":
                return after, frames, rew
            case "state":
                after = after | {"name": "game"}
            case "first axis":
                after = after | {"count": torch.zeros(())}
        return after, frames, rew, end


def broken(how: str) -> Any:
    """A factory of a world that breaks a promise, which is its name in this module."""

    def factory(device: torch.device) -> Broken:
        torch.manual_seed(0)
        return Broken(how).to(device)

    return factory


BROKEN = ("random", "modifies", "batch", "shape", "dtype", "nan", "tuple", "state", "first axis")
for _how in BROKEN:
    globals()[f"broken_{_how.replace(' ', '_')}"] = broken(_how)


def no_space(device: torch.device) -> RecurrentWorld:
    """A factory of a world with an observation space that cannot be shown."""
    world = recurrent(device)
    world.observation_space = Box(0.0, 1.0, (SIZE, SIZE, 3), np.float32)
    return world


def fails(device: torch.device) -> None:
    """A factory that fails."""
    raise ValueError("no weights here")

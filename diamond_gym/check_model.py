"""`python -m diamond_gym.check_model model=package.module:factory`: does the model keep its promises?

Environments rely on what `CustomWorldModel` says: shapes, equal games for equal keys and actions, states that
can be kept and mixed. Each promise is tried on a few games, and what is broken is named.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from torch import Tensor

from diamond_gym import cli
from diamond_gym.checkpoints import World, load_world
from diamond_gym.cli import option
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.vector_env import DiamondVectorEnv
from diamond_gym.errors import WorldModelError, first_line
from diamond_gym.registration import CUSTOM_PREFIX
from diamond_gym.world.custom import CustomState, map_tensors

ABOUT = """\
Tries each promise of diamond_gym.world.custom.CustomWorldModel on a few games, and names what
is broken."""
NUM_GAMES = 3
_LEVELS = 1
"""Levels of 255 by which a frame may depend on the batch: sums of floats are not associative."""


@dataclass
class CheckSettings:
    """What to check."""

    model: str = option(MISSING, "the function that builds it, package.module:factory")
    contexts: str | None = option(
        None, "where games start, if not from the model's own contexts", is_path=True
    )
    device: str = option("auto", "where it runs: auto, cpu, cuda, ...")
    num_steps: int = option(8, "steps of each game", least=2)
    seed: int = option(0, "fixes the contexts, keys and actions", least=0)

    def __post_init__(self) -> None:
        cli.check(self)


@dataclass(frozen=True)
class Game:
    """What happened in b games: the state after each step, and frames, rewards and ends of each."""

    states: list[CustomState]
    frames: Tensor
    rewards: Tensor
    ends: Tensor


class Checks:
    """The checks of a world.

    Args:
        world: A world whose model is a custom one.
        settings: The numbers.
    """

    def __init__(self, world: World, settings: CheckSettings) -> None:
        self.model, self.settings = world.world_model, settings
        rng = np.random.default_rng(settings.seed)
        index = rng.integers(len(world.contexts), size=NUM_GAMES)
        self.obs = torch.from_numpy(world.contexts.obs[index]).permute(0, 1, 4, 2, 3).contiguous()
        self.act = torch.from_numpy(world.contexts.act[index])
        self.keys = torch.from_numpy(rng.integers(2**62, size=NUM_GAMES))
        draws = [
            [world.action_space.sample(rng) for _ in range(NUM_GAMES)] for _ in range(settings.num_steps)
        ]
        self.actions = torch.from_numpy(np.array(draws, world.action_space.dtype)).to(self.model.device)

    def play(self, games: slice = slice(None), keys: Tensor | None = None) -> Game:
        """Start some of the games and take the actions."""
        keys = self.keys[games] if keys is None else keys
        state = self.model.start(self.obs[games], self.act[games], keys)
        return self.play_on(state, self.actions[:, games])

    def play_on(self, state: CustomState, actions: Tensor) -> Game:
        """Take actions (t, b, ...) from a state on."""
        states, results = [state], []
        for act in actions:
            state, step = self.model.step(state, act)
            states.append(state)
            results.append((step.obs, step.rew, step.end))
        frames, rewards, ends = (torch.stack(column) for column in zip(*results, strict=True))
        return Game(states, frames, rewards, ends)

    def shapes(self) -> str:
        """Spaces, states, frames, rewards and ends have the shapes, types and device that are agreed upon."""
        game = self.play()
        if not bool(game.rewards.isfinite().all()):
            raise WorldModelError("a reward is not a finite number")
        return f"frames {tuple(game.frames.shape[2:])}, actions {self.model.action_space}"

    def repeats(self) -> str:
        """Equal contexts, keys and actions give equal games."""
        _check_equal(self.play(), self.play(), "the same contexts, keys and actions gave two different games")
        return ""

    def keeps_states(self) -> str:
        """`step` leaves its state alone, so that a state can be kept and played from again."""
        first = self.play().states[1]
        before = first.clone()
        again = [self.play_on(first, self.actions[1:]) for _ in range(2)]
        if not _equal(first, before):
            raise WorldModelError("step() modified the state that it was given")
        _check_equal(again[0], again[1], "the same state and actions gave two different futures")
        return ""

    def is_of_one_game(self) -> str:
        """A game is the same alone as in a batch."""
        together, difference = self.play(), 0
        for i in range(NUM_GAMES):
            alone = self.play(slice(i, i + 1))
            frames = together.frames[:, i : i + 1].int() - alone.frames.int()
            difference = max(difference, int(frames.abs().max()))
        if difference > _LEVELS:
            raise WorldModelError(
                f"a game's frames depend on the other games of its batch, by {difference} levels of 255: "
                "draw random numbers from the keys, and normalise each game by itself"
            )
        return f"within {difference} of 255"

    def mixes(self) -> str:
        """Games can be selected, repeated and replaced."""
        index = torch.tensor([NUM_GAMES - 1, 0], device=self.model.device)
        states = self.play().states
        mixed = (
            states[1]
            .select(index)
            .replace(torch.tensor([1], device=index.device), states[1].select(index[:1]))
        )
        game = self.play_on(mixed, self.actions[1:][:, [NUM_GAMES - 1] * 2])
        difference = int((game.frames[:, 0].int() - game.frames[:, 1].int()).abs().max())
        if difference > _LEVELS:
            raise WorldModelError(f"two copies of one game differ, by up to {difference} levels of 255")
        return ""

    def has_randomness(self) -> str:
        """Tell whether other keys give other games; a deterministic model is fine."""
        other = self.play(keys=self.keys + 1)
        differs = not _equal(other.frames, self.play().frames)
        return (
            "other keys give other games"
            if differs
            else "other keys give the same games: it is deterministic"
        )


def _equal(a: Any, b: Any) -> bool:
    """Whether two trees of tensors hold the same numbers."""
    same = []

    def compare(x: Tensor, y: Tensor) -> Tensor:
        same.append(torch.equal(x, y))
        return x

    map_tensors(compare, a, b)
    return all(same)


def _check_equal(a: Game, b: Game, problem: str) -> None:
    if not all(_equal(x, y) for x, y in ((a.frames, b.frames), (a.rewards, b.rewards), (a.ends, b.ends))):
        raise WorldModelError(
            f"{problem}: take every random number from the keys, and put layers in eval mode"
        )


def check_environments(checkpoint: str, settings: CheckSettings) -> str:
    """Gymnasium's checker passes, and vectors run in the three autoreset modes."""
    options = {"checkpoint": checkpoint, "contexts": settings.contexts, "device": settings.device}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(DiamondEnv(**options), skip_render_check=True)
    for mode in AutoresetMode:
        envs = DiamondVectorEnv(2, max_episode_steps=2, autoreset_mode=mode, **options)
        envs.reset(seed=settings.seed)
        for _ in range(3):
            *_, terminated, truncated, _ = envs.step(envs.action_space.sample())
            over = np.asarray(terminated | truncated)
            if mode == AutoresetMode.DISABLED and over.any():
                envs.reset(options={"reset_mask": over})
        envs.close()
    return "Gymnasium's checker, three autoreset modes"


def run(settings: CheckSettings) -> None:
    """Check a model, and print a line for each promise.

    Raises:
        InvalidInputError: There is no such function.
        WorldModelError: A promise is broken; the message names all that are.
    """
    checkpoint = CUSTOM_PREFIX + settings.model.removeprefix(CUSTOM_PREFIX)
    world = load_world(None, checkpoint, device=settings.device, contexts=settings.contexts)
    checks = Checks(world, settings)
    tried: list[tuple[str, Callable[[], str]]] = [
        ("shapes, types and device", checks.shapes),
        ("equal keys and actions give equal games", checks.repeats),
        ("step() leaves its state alone", checks.keeps_states),
        ("a game is the same alone and in a batch", checks.is_of_one_game),
        ("games can be selected and replaced", checks.mixes),
        ("keys", checks.has_randomness),
        ("environments", lambda: check_environments(checkpoint, settings)),
    ]
    broken = list(_broken(tried))
    if broken:
        raise WorldModelError(f"{settings.model}: {len(broken)} of {len(tried)} checks failed")


def _broken(tried: list[tuple[str, Callable[[], str]]]) -> Iterator[str]:
    for name, check in tried:
        try:
            note = check()
        except Exception as error:  # any error of the user's own code
            print(f"FAILED  {name}: {type(error).__name__}: {first_line(error)}")
            yield name
        else:
            print(f"ok      {name}" + (f" ({note})" if note else ""))


COMMAND = cli.Command("python -m diamond_gym.check_model", ABOUT, CheckSettings, run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check as the arguments say; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""What an evaluation is asked to do, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diamond_gym import options
from diamond_gym.options import option


@dataclass
class Settings:
    """What to evaluate, and where to put the answer.

    Raises:
        InvalidInputError: a number is out of range.
    """

    game: str = option("Breakout", "the game")
    checkpoint: str = option("auto", "auto, embedded, hub, or a path to a checkpoint or run folder")
    policy: str = option(
        "auto",
        "who plays, real and imagined: scripted, random, auto (scripted where there is one), or a checkpoint",
    )
    episodes: int = option(20, "held-out real episodes, each up to a lost life")
    max_episode_steps: int = option(
        1000, "steps after which a real episode is cut short: those of Pong last long"
    )
    starts: int | None = option(
        None, "moments to imagine from, spread evenly; without it 200, 30 for large networks on a CPU", int
    )
    horizon: int = option(50, "steps to imagine from each start")
    seed: int = option(0, "fixes the episodes, the starts and the imagination")
    num_denoising_steps: int | None = option(None, "passes per frame, instead of the checkpoint's own", int)
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    batch_size: int = option(32, "games imagined at once; changes the time taken, not the numbers")
    out: str = option("fidelity", "folder for fidelity.json, curves.png, film.png and film.mp4")

    def __post_init__(self) -> None:
        counts = ("episodes", "max_episode_steps", "starts", "horizon", "num_denoising_steps", "batch_size")
        options.check_positive(self, *counts)
        options.check_seed(self.seed, 30)


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from arguments such as `["game=Breakout", "horizon=30"]`.

    Raises:
        InvalidInputError: see `diamond_gym.options.parse`, or a number is out of range.
    """
    return options.parse(Settings, arguments)


def usage() -> str:
    """The help text."""
    return f"usage: python -m diamond_gym.evaluate [key=value ...]\n\noptions:\n{options.describe(Settings)}"

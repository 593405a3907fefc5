"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from diamond_gym import cli
from diamond_gym.backends.names import BACKENDS
from diamond_gym.cli import option


@dataclass
class Settings:
    """What to evaluate, and where to write the results.

    Raises:
        InvalidInputError: A number is out of range.
    """

    game: str = option("Breakout", "the game")
    checkpoint: str = option(
        "auto", "auto, embedded, hub, or a path to a checkpoint or run folder", is_path=True
    )
    policy: str = option(
        "auto",
        "who plays, real and imagined: scripted, random, auto (scripted where there is one), or a checkpoint",
        is_path=True,
    )
    episodes: int = option(20, "held-out real episodes, each up to a lost life", least=1)
    max_episode_steps: int = option(
        1000, "steps after which a real episode is cut short: those of Pong last long", least=1
    )
    starts: int | None = option(
        None,
        "contexts to imagine from, spread evenly; without it 200, 30 for large networks on a CPU",
        least=1,
    )
    horizon: int = option(50, "steps to imagine from each start", least=1)
    seed: int = option(0, "fixes the episodes, the starts and the imagination")
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own", least=1
    )
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    backend: str = option("auto", "what runs the world model's networks", choices=BACKENDS)
    batch_size: int = option(32, "games imagined at once; changes the time taken, not the numbers", least=1)
    out: str = option("fidelity", "folder for fidelity.json, curves.png, film.png and film.mp4", is_path=True)

    def __post_init__(self) -> None:
        cli.check(self)
        cli.check_seed(self.seed, 30)

"""What a sweep is asked to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from diamond_gym import cli
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.registration import game_name

RUN_NAMES = ("diamond", "sb3")


@dataclass
class SweepSettings:
    """Which runs, and where.

    Raises:
        InvalidInputError: A game or seed is given twice, or a share is out of range.
        UnknownGameError: ale-py has no such game.
    """

    game: list[str] = option(MISSING, "games, such as [Breakout,Pong]")
    seed: list[int] = option([0, 1, 2, 3, 4], "seeds of every game")
    run: str = option("diamond", "the trainer: trainers.diamond or trainers.sb3", choices=RUN_NAMES)
    keys: list[str] = option([], "any other key=value is the trainer's own, written as it is there")
    out: Path | None = option(None, "the sweep's folder; without it outputs/sweeps/RUN")
    cpus: float = option(1.0, "CPUs of each run; a whole number of threads above 1", above=0)
    gpus: float = option(0.0, "GPUs of each run: 0.25 for four runs a GPU, or a whole number", least=0)
    processes: int | None = option(
        None, "processes of each run, started by torchrun; without it one for each of its GPUs", least=1
    )
    address: str | None = option(
        None, "a running Ray cluster, auto or HOST:PORT; without it this machine alone"
    )
    num_cpus: int | None = option(
        None, "CPUs of this machine that all runs together may use, without address", least=1
    )
    num_gpus: int | None = option(None, "the same for GPUs", least=0)
    retries: int = option(
        10, "how often a run whose process or machine was lost is resumed; -1 for always", least=-1
    )

    def __post_init__(self) -> None:
        cli.check(self)
        if not self.game or not self.seed:
            raise InvalidInputError("game= and seed= need at least one entry each")
        self.game = [game_name(game) for game in self.game]
        _refuse_twice("game", self.game)
        _refuse_twice("seed", self.seed)
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if value > 1 and not value.is_integer():
                raise InvalidInputError(f"{name}={value:g} must be a whole number, or below 1")
        if self.gpus and self.processes is not None and self.gpus % self.processes:
            raise InvalidInputError(
                f"processes={self.processes} cannot share gpus={self.gpus:g}: each needs as many"
            )
        if self.address is not None and (self.num_cpus is not None or self.num_gpus is not None):
            raise InvalidInputError("num_cpus and num_gpus limit this machine: leave them out with address=")

    @property
    def num_processes(self) -> int:
        """Processes of each run."""
        return self.processes or max(1, int(self.gpus))

    @property
    def num_threads(self) -> int:
        """CPU threads of each process, the same on every machine: the last bits of a run depend on it."""
        return max(1, int(self.cpus) // self.num_processes)

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return (self.out or Path("outputs", "sweeps", self.run)).absolute()


def _refuse_twice(name: str, values: Sequence[str | int]) -> None:
    twice = [str(value) for value, count in Counter(values).items() if count > 1]
    if twice:
        raise InvalidInputError(f"{name}={','.join(map(str, values))} gives {', '.join(twice)} twice")

"""The results of a sweep on disk: one file a run, and the plan that says which runs there should be.

A sweep's folder holds `sweep.json` (the plan) and `results/GAME-SEED.json` (a finished run each). What is not
finished has no file, so that a sweep can be read while it is under way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from diamond_gym import cli
from diamond_gym.errors import DatasetError, InvalidInputError, first_line
from diamond_gym.evaluate.report import write_json

_T = TypeVar("_T")
PLAN_FILE, RESULTS_FOLDER = "sweep.json", "results"


@dataclass
class Protocol:
    """How a score came about, as far as that decides what it may be compared with.

    Attributes:
        frames: Raw frames of the real game that the agent, and the world it learned in, have seen; None where
            nobody knows.
        sticky_actions: Probability that the game repeats the last action instead of taking the new one.
        episodes: Games whose mean a score is; None where nobody knows.
        max_frames: Raw frames after which a scored game is cut short; None where nobody knows.
    """

    frames: int | None
    sticky_actions: float = 0.0
    episodes: int | None = None
    max_frames: int | None = None

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """What differs: both values by name. Unknown frames differ from known ones, other unknowns do not."""
        pairs = {name: (value, getattr(other, name)) for name, value in asdict(self).items()}
        return {
            name: pair
            for name, pair in pairs.items()
            if pair[0] != pair[1] and (name == "frames" or None not in pair)
        }


@dataclass
class Curve:
    """Scores in the real game while a run learned.

    Attributes:
        unit: What is counted, such as "steps of the real game".
        steps: Counts, increasing.
        scores: Mean scores at them.

    Raises:
        InvalidInputError: There are not as many scores as steps, or some are not finite.
    """

    unit: str
    steps: list[float]
    scores: list[float]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.scores):
            raise InvalidInputError(f"a curve has {len(self.steps)} steps and {len(self.scores)} scores")
        if not all(map(math.isfinite, [*self.steps, *self.scores])):
            raise InvalidInputError("a curve is not finite")


@dataclass
class RunResult:
    """What a finished run has reached.

    Attributes:
        game: The game, in its own spelling.
        seed: The run's seed.
        score: Mean score of whole real games in the end; None for a run that learned no player.
        protocol: How the score came about.
        curve: Scores on the way; None where there are none.
        seconds: Time that the run took, without parts whose worker was killed.
        machine: Where it ended.

    Raises:
        InvalidInputError: The score is not finite.
    """

    game: str
    seed: int
    score: float | None
    protocol: Protocol
    curve: Curve | None = None
    seconds: float = 0.0
    machine: str = ""

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            raise InvalidInputError(f"the score is not finite: {self.score}")


@dataclass
class Plan:
    """Which runs a sweep consists of.

    Attributes:
        run: The trainer.
        keys: That trainer's own keys, as they were written.
        games: Games.
        seeds: Seeds of every game.
        cwd: The folder that relative paths in the keys begin at.
    """

    run: str
    keys: list[str]
    games: list[str]
    seeds: list[int]
    cwd: str


def result_file(sweep: Path, game: str, seed: int) -> Path:
    """Where the result of a run lies."""
    return sweep / RESULTS_FOLDER / f"{game}-{seed}.json"


def write_result(sweep: Path, result: RunResult) -> None:
    """Writes the result of a run.

    Raises:
        CacheError: The folder cannot be written.
    """
    write_json(asdict(result), result_file(sweep, result.game, result.seed))


def read_plan(sweep: Path) -> Plan:
    """Reads the plan of a sweep.

    Raises:
        InvalidInputError: The folder is not that of a sweep.
        DatasetError: The plan is damaged.
    """
    file = sweep / PLAN_FILE
    if not file.is_file():
        raise InvalidInputError(
            f"{sweep} is not the folder of a sweep: it has no {PLAN_FILE}. Give what "
            "`python -m trainers.sweep` was given as out="
        )
    return _read(file, Plan, "restore it, or begin another sweep with another out=")


def read_result(file: Path) -> RunResult:
    """Reads the result of a run.

    Raises:
        DatasetError: The file is damaged.
    """
    return _read(file, RunResult, "delete it, and run the sweep's command again")


def _read(file: Path, kind: type[_T], remedy: str) -> _T:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise InvalidInputError("it holds no mapping")
        return cli.build(kind, content)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read ({first_line(error)}): {remedy}") from error


@dataclass
class Sweep:
    """What is known of a sweep.

    Attributes:
        name: How the report calls it.
        plan: Which runs it consists of.
        runs: The finished ones, by game and seed.
    """

    name: str
    plan: Plan
    runs: dict[tuple[str, int], RunResult] = field(default_factory=dict)

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Game and seed of the runs that are not finished."""
        every = [(game, seed) for game in self.plan.games for seed in self.plan.seeds]
        return [run for run in every if run not in self.runs]

    def scores(self, game: str) -> list[float]:
        """Scores of a game's finished runs, by seed."""
        found = sorted((seed, run.score) for (name, seed), run in self.runs.items() if name == game)
        return [score for _, score in found if score is not None]

    @property
    def protocol(self) -> Protocol:
        """That of all its runs.

        Raises:
            InvalidInputError: They have several.
        """
        (first, protocol), *others = [(key, run.protocol) for key, run in sorted(self.runs.items())]
        for key, other in others:
            if difference := protocol.differences(other):
                raise InvalidInputError(
                    f"{self.name} mixes protocols: {in_words(difference)} in the runs {first[0]}-{first[1]} "
                    f"and {key[0]}-{key[1]}. Delete the results that do not belong, and run the sweep again"
                )
        return protocol


def in_words(differences: dict[str, tuple[Any, Any]]) -> str:
    """Differences of two protocols as text."""
    pairs = (f"{name} {_known(ours)} and {_known(other)}" for name, (ours, other) in differences.items())
    return ", ".join(pairs)


def _known(value: Any) -> str:
    return "unknown" if value is None else f"{value:_}".replace("_", " ")


def read_sweep(folder: Path, name: str | None = None) -> Sweep:
    """Reads a sweep, finished or not.

    Raises:
        InvalidInputError: The folder is not that of a sweep, no run of it is finished, or a run is there
            twice.
        DatasetError: A file is damaged.
    """
    sweep = Sweep(name or folder.name, read_plan(folder))
    files: dict[tuple[str, int], Path] = {}
    for file in sorted((folder / RESULTS_FOLDER).glob("*.json")):
        result = read_result(file)
        key = (result.game, result.seed)
        if key in files:
            raise InvalidInputError(
                f"seed {result.seed} of {result.game} is there twice: {files[key]} and {file.name}; keep one"
            )
        files[key], sweep.runs[key] = file, result
    if not sweep.runs:
        raise InvalidInputError(f"no run of {folder} is finished yet: wait, or run the sweep's command again")
    return sweep


def read_sweeps(folders: Sequence[str], names: Sequence[str] = ()) -> list[Sweep]:
    """Reads sweeps, each of which is an agent.

    Raises:
        InvalidInputError: See `read_sweep`; or two have the same name, or a folder is given twice.
        DatasetError: A file is damaged.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InvalidInputError(f"results={','.join(folders)} gives a folder, and so every seed in it, twice")
    if names and len(names) != len(paths):
        raise InvalidInputError(f"names= gives {len(names)} names for {len(paths)} folders of results=")
    chosen = list(names) or [path.resolve().name for path in paths]
    if len(set(chosen)) < len(chosen):
        raise InvalidInputError(f"several results are called {chosen}: tell them apart with names=[...]")
    return [read_sweep(path, name) for path, name in zip(paths, chosen, strict=True)]

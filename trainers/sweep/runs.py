"""What a sweep knows of each trainer: how a run is checked, started, continued, followed and scored.

Nothing here knows Ray. `DiamondRuns` and `Sb3Runs` use the trainers' own command lines and files.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from diamond_gym import cli, untrusted
from diamond_gym.backends.choose import pick_backend, pick_device
from diamond_gym.checkpoints.locate import locate
from diamond_gym.errors import CheckpointError, DeviceError, InvalidInputError, MissingDependencyError
from diamond_gym.games.atari import FRAME_SKIP, MAX_RAW_FRAMES
from trainers.report import results

_log = logging.getLogger(__name__)
_REAL_STEPS = "steps of the real game"


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        share: Of the run that is done, in [0, 1].
        score: Its latest mean score in the real game; None as long as there is none.
    """

    share: float = 0.0
    score: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves.

    Attributes:
        score: See `results.RunResult`.
        protocol: See there.
        curve: See there.
    """

    score: float | None
    protocol: results.Protocol
    curve: results.Curve | None


class Runs(Protocol):
    """A trainer, as a sweep sees it."""

    def check(self, games: Sequence[str], seeds: Sequence[int], keys: Sequence[str], processes: int) -> None:
        """Finds every mistake of a configuration that can be found without training.

        Raises:
            DiamondGymError: What the trainer says of it.
        """
        ...

    def check_device(self, game: str, keys: Sequence[str], gpus: float, *, is_here: bool) -> None:
        """Makes sure that runs will have the device and the backend that their keys ask for.

        Args:
            game: Any of the games.
            keys: The trainer's keys.
            gpus: GPUs of each run.
            is_here: Whether all runs are on this machine, which can be looked at.

        Raises:
            InvalidInputError: The keys name a GPU, and runs have none, or Ray chooses it.
            DeviceError: This machine has no such device, or the backend needs another one.
            MissingDependencyError: What the backend needs is not installed.
        """
        ...

    def arguments(self, folder: Path, game: str, seed: int, keys: Sequence[str], group: str) -> list[str]:
        """What follows `python -m` to start the run of a folder, or to continue it."""
        ...

    def state(self, folder: Path) -> State:
        """Where a run stands, out of what it has logged."""
        ...

    def outcome(self, folder: Path) -> Outcome:
        """What a finished run leaves."""
        ...


def refuse_keys(keys: Sequence[str], own: dict[str, str]) -> None:
    """Makes sure that keys of the trainer do not choose what the sweep chooses.

    Args:
        keys: As they were written.
        own: Names of refused keys, and what to give instead.

    Raises:
        InvalidInputError: One does.
    """
    for key in keys:
        name = key.partition("=")[0]
        if name in own:
            raise InvalidInputError(f"{key}: the sweep chooses that; give {own[name]}")


def _check_device(key: str, name: str, backend: str, gpus: float, is_here: bool) -> None:
    """See `Runs.check_device`."""
    if name.startswith("cuda:"):
        raise InvalidInputError(f"{key}={name}: Ray chooses the GPU of each run; give {key}=cuda")
    if name == "cuda" and not gpus:
        raise InvalidInputError(f"{key}=cuda needs a share of a GPU for each run: gpus=1, or gpus=0.25")
    if not is_here:
        return
    try:
        device = pick_device("cpu" if name == "auto" and not gpus else name)
    except (DeviceError, InvalidInputError) as error:
        raise type(error)(f"{key}={name}: {error}") from error
    pick_backend(backend, device)


class DiamondRuns:
    """`python -m trainers.diamond`: a world model and an actor-critic. Continued bit for bit on a CPU."""

    def check(self, games: Sequence[str], seeds: Sequence[int], keys: Sequence[str], processes: int) -> None:
        """See `Runs`. Networks are built once for every game."""
        from trainers.diamond.config import CommonConfig, parse
        from trainers.diamond.distributed import Group
        from trainers.diamond.run import prepare

        refuse_keys(
            keys,
            {
                "common.seed": "seed=[0,1,...]",
                "hydra.run.dir": "out=FOLDER",
                "env.train.id": "game=[Breakout,...]",
                "wandb.name": "wandb.group=, or nothing: runs are called after game and seed",
            },
        )
        for seed in seeds:
            CommonConfig(seed=seed)
        for game in games:
            prepare(parse([f"game={game}", *keys]), group=Group(world_size=processes))

    def check_device(self, game: str, keys: Sequence[str], gpus: float, *, is_here: bool) -> None:
        """See `Runs`."""
        from trainers.diamond.config import parse

        config = parse([f"game={game}", *keys])
        _check_device("common.device", config.common.device, config.training.backend, gpus, is_here)

    def arguments(self, folder: Path, game: str, seed: int, keys: Sequence[str], group: str) -> list[str]:
        """See `Runs`. A folder that a killed process had only begun to fill is emptied."""
        from trainers.diamond.run_folder import RunFolder

        if RunFolder(folder).config_file.is_file():
            return ["trainers.diamond", "resume", f"run={folder}"]
        if folder.is_dir():
            shutil.rmtree(folder)
        which = [f"game={game}", f"common.seed={seed}", f"out={folder}"]
        named = [f"wandb.name={game}-{seed}", f"wandb.group={group}"]
        return ["trainers.diamond", "train", *which, *named, *keys]  # of a key given twice, the last counts

    def state(self, folder: Path) -> State:
        """See `Runs`."""
        from trainers.diamond.curves import read
        from trainers.diamond.run_folder import RunFolder

        lines = read(RunFolder(folder).metrics_file)
        if not lines:
            return State()
        scores = [score for line in lines if (score := _diamond_score(line)) is not None]
        total = _num_epochs(folder)
        share = lines[-1]["epoch"] / total if total else 0.0
        return State(min(1.0, share), scores[-1] if scores else None)

    def outcome(self, folder: Path) -> Outcome:
        """See `Runs`. The score is that of the final games, else of the last evaluation."""
        from trainers.diamond.curves import read
        from trainers.diamond.run_folder import RunFolder

        config, lines = _config(folder), read(RunFolder(folder).metrics_file)
        test = config.collection.test
        scores = [score for line in lines if (score := _diamond_score(line)) is not None]
        is_from_nothing = config.static_dataset.path is None and config.initialization.path_to_ckpt is None
        knows_frames = is_from_nothing and not config.training.model_free
        protocol = results.Protocol(
            frames=FRAME_SKIP * config.collection.train.num_steps_total if knows_frames else None,
            episodes=test.num_final_episodes or test.num_episodes,
            max_frames=MAX_RAW_FRAMES
            if test.max_episode_steps is None
            else min(MAX_RAW_FRAMES, FRAME_SKIP * test.max_episode_steps),
        )
        return Outcome(scores[-1] if scores else None, protocol, _diamond_curve(lines))


def _config(folder: Path) -> Any:
    from trainers.diamond.config import from_yaml
    from trainers.diamond.run_folder import RunFolder

    return from_yaml(RunFolder(folder).config_file)


@functools.cache
def _num_epochs(folder: Path) -> int | None:
    """Epochs of a run, as far as its configuration tells."""
    from trainers.diamond.run import schedule

    config = _config(folder)
    return schedule(config).num_epochs(config.collection.train.first_epoch.min)


def _diamond_score(line: dict[str, Any]) -> float | None:
    return line.get("final/return", line.get("test/return"))


def _diamond_curve(lines: Sequence[dict[str, Any]]) -> results.Curve | None:
    """Against steps of the real game where the run has collected, else against epochs."""
    collects = any("collect/dataset_steps" in line for line in lines)
    points: dict[float, float] = {}
    steps = 0.0
    for line in lines:
        steps = line.get("collect/dataset_steps", steps) if collects else line["epoch"]
        score = _diamond_score(line)
        if score is not None:
            points[steps] = score
    return _curve(_REAL_STEPS if collects else "epochs", points)


def _curve(unit: str, points: dict[float, float]) -> results.Curve | None:
    ordered = sorted(points.items())
    return results.Curve(unit, [x for x, _ in ordered], [y for _, y in ordered]) if points else None


class Sb3Runs:
    """`python -m trainers.sb3 train`: an agent of Stable-Baselines3 in a world that exists."""

    def check(self, games: Sequence[str], seeds: Sequence[int], keys: Sequence[str], processes: int) -> None:
        """See `Runs`. Worlds are looked for, and fetched from the Hub where they are only there."""
        from trainers.sb3.settings import TrainSettings

        if find_spec("stable_baselines3") is None:
            raise MissingDependencyError("run=sb3 needs Stable-Baselines3: pip install 'diamond-gym[sb3]'")
        if processes > 1:
            raise InvalidInputError(f"run=sb3 trains in one process: processes={processes} must be 1")
        for seed in seeds:
            cli.check_seed(seed, 31)
        for game in games:
            settings = cli.parse(TrainSettings, [f"game={game}", *keys])
            if settings.where == "imagination":
                locate(game, settings.checkpoint)
            self._check_files(settings, game)

    def _check_files(self, settings: Any, game: str) -> None:
        from trainers.sb3.agents import algorithm, find_agent

        algorithm(settings.algo)
        if settings.beside is not None:
            find_agent(settings.beside, game)
        if settings.contexts is not None and not Path(settings.contexts).exists():
            raise InvalidInputError(f"contexts={settings.contexts}: there is no such file or folder")

    def check_device(self, game: str, keys: Sequence[str], gpus: float, *, is_here: bool) -> None:
        """See `Runs`."""
        from trainers.sb3.settings import TrainSettings

        settings = cli.parse(TrainSettings, [f"game={game}", *keys])
        backend = settings.backend if settings.where == "imagination" else "auto"
        _check_device("device", settings.device, backend, gpus, is_here)

    def arguments(self, folder: Path, game: str, seed: int, keys: Sequence[str], group: str) -> list[str]:
        """See `Runs`. The same command continues."""
        return ["trainers.sb3", "train", f"game={game}", f"seed={seed}", f"out={folder}", *keys]

    def state(self, folder: Path) -> State:
        """See `Runs`."""
        from trainers.sb3.training import SETTINGS_FILE

        settings = _read_json(folder / SETTINGS_FILE)
        if settings is None:
            return State()
        steps = [float(row["time/total_timesteps"]) for row in _progress(folder)]
        points = _sb3_points(folder)
        share = max(steps, default=0.0) / settings["total_timesteps"]
        return State(min(1.0, share), points[max(points)] if points else None)

    def outcome(self, folder: Path) -> Outcome:
        """See `Runs`. The score is that of the final games."""
        from trainers.sb3.training import SCORE_FILE, SETTINGS_FILE

        settings, score = _read_json(folder / SETTINGS_FILE), _read_json(folder / SCORE_FILE)
        is_real = settings["where"] == "real"
        protocol = results.Protocol(
            frames=FRAME_SKIP * settings["total_timesteps"] if is_real else None,
            episodes=settings["final_episodes"],
            max_frames=min(MAX_RAW_FRAMES, FRAME_SKIP * settings["max_game_steps"]),
        )
        final = score["scores"][0]["mean"]
        points = _sb3_points(folder) | {float(score["steps"]): final}
        return Outcome(final, protocol, _curve(_REAL_STEPS if is_real else "imagined steps", points))


def _progress(folder: Path) -> list[dict[str, str]]:
    """Whole rows of what the run's parts have logged."""
    rows = []
    for path in sorted(folder.glob("log-*/progress.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row.get("time/total_timesteps")]
    return rows


def _sb3_points(folder: Path) -> dict[float, float]:
    """Mean scores by step; what a killed part evaluated after the step it was resumed from is left out."""
    points: dict[float, float] = {}
    for path in sorted(folder.glob("log-*/evaluations.npz")):
        try:
            saved = untrusted.read_arrays(path, CheckpointError, "the scores of an evaluation")
        except CheckpointError as error:  # it is just being written, or a killed process has left a part
            _log.debug("left out: %s", error)
            continue
        steps, scores = saved["timesteps"].tolist(), saved["results"].mean(axis=1).tolist()
        points = {step: score for step, score in points.items() if step < steps[0]}
        points |= dict(zip(map(float, steps), scores, strict=True))
    return points


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


RUNS: dict[str, Runs] = {"diamond": DiamondRuns(), "sb3": Sb3Runs()}
"""The trainers by the value of `run=`."""

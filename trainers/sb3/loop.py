"""DIAMOND's loop for any agent: learn in imagination, play the real game, train the world on that, again.

An agent that learns for long in a fixed world exploits the errors of that world. Here the world of each round
has learned from episodes of the last round's agent. Every stage writes its result to a folder of its own, and
a stage whose folder exists is not repeated: the same command resumes a loop that was stopped.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.backends.choose import pick_backend
from diamond_gym.checkpoints import load_world
from diamond_gym.cli import option
from diamond_gym.data.collect import collect
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import CacheError, CheckpointError, InvalidInputError
from diamond_gym.evaluate.events import check_has_ball, write_weights
from diamond_gym.evaluate.report import write_json
from diamond_gym.evaluate.score import Score
from diamond_gym.players.player import check_epsilon
from diamond_gym.registration import game_name
from trainers.contexts import check_share, cut, play
from trainers.diamond import config as world_settings
from trainers.diamond import run as launch
from trainers.diamond.networks import find_device
from trainers.sb3 import training
from trainers.sb3.agents import AGENT_FILE, load_agent
from trainers.sb3.player import AgentPlayer
from trainers.sb3.settings import LR_SCHEDULES, TrainSettings

SETTINGS_FILE = "loop.json"
CONTEXTS_FILE = "contexts.safetensors"
WEIGHTS_FILE = "step_weights.safetensors"
_log = logging.getLogger(__name__)
_COLLECT_SEED = 40_000
_MAX_CONTEXTS = 4_000
_CHOSEN_HERE = ("game", "static_dataset.path", "initialization.path_to_ckpt")


@dataclass
class LoopSettings(TrainSettings):
    """Settings of `TrainSettings`, and those of the world's training in rounds.

    Raises:
        InvalidInputError: A number is out of range, or a key of the world's training is not accepted.
    """

    total_timesteps: int = option(300_000, "imagined steps of all games together, over all rounds")
    lr_schedule: str | None = option(
        "constant",
        "constant, or linear: the learning rate falls to 0 at the end of every round",
        choices=LR_SCHEDULES,
    )
    contexts: str | None = option(
        None, "start contexts of the first round; later rounds start from the agent's games", is_path=True
    )
    rounds: int = option(3, "number of rounds, each with a world of its own; at least 2")
    collect_steps: int = option(20_000, "real steps the agent plays after each round but the last", least=1)
    epsilon: float = option(0.0, "share of these steps in which it acts at random")
    own_share: float | None = option(
        None,
        "share that these steps have in the world's training on events (denoiser.training.hard_fraction), "
        "in a game whose ball is found; without it, steps are drawn alike, or by their errors",
    )
    before_losses: float = option(
        0.65, "share of later rounds' starts that lie 4 to 16 steps before a lost life or point"
    )
    data: str | None = option(
        None, "folder of the episodes (train/, test/) that the first world learned from", is_path=True
    )
    data_steps: int = option(
        60_000, "without data: real steps of scripted players, good and bad, or of a random player", least=1
    )
    world: str = option("preset=finetune", "key=value arguments of `trainers.diamond train`, in quotes")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.before_losses)
        check_epsilon(self.epsilon)
        if self.rounds < 2:
            raise InvalidInputError(f"rounds must be at least 2, got {self.rounds}: one round is `train`")
        if self.where != "imagination":
            raise InvalidInputError("the loop learns in imagination: leave out where")
        if self.initial_agent is not None:
            raise InvalidInputError("the loop begins with a new agent: leave out initial_agent")
        if self.beside is not None:
            raise InvalidInputError("the loop scores its own rounds: leave out beside")
        if self.own_share is not None:
            check_has_ball(game_name(self.game))
            if not 0 < self.own_share < 1:
                raise InvalidInputError(f"own_share must be between 0 and 1, got {self.own_share}")
        world_settings.parse([*self.world_arguments, *self.weights_argument(Path(WEIGHTS_FILE))])

    @property
    def folder(self) -> str:
        """The loop's folder."""
        return self.out or f"outputs/sb3/{self.game}-{self.algo}-loop-{self.seed}"

    @property
    def world_arguments(self) -> list[str]:
        """Arguments of the world's training that the user chooses."""
        arguments = shlex.split(self.world)
        for argument in arguments:
            key = argument.partition("=")[0]
            if key in _CHOSEN_HERE:
                raise InvalidInputError(f"world: {key} is chosen by the loop, leave it out")
        return arguments

    def weights_argument(self, file: Path) -> list[str]:
        """The argument of the world's training that names its weights of steps, if it has any."""
        return [] if self.own_share is None else [f"denoiser.training.step_weights={file}"]

    def round(self, number: int, folder: Path, checkpoint: str, contexts: str | None) -> TrainSettings:
        """Settings of the agent in a round, counted from 1; all rounds are equally long."""
        own = {f.name: getattr(self, f.name) for f in fields(TrainSettings)}
        return TrainSettings(
            **own
            | {
                "total_timesteps": self.total_timesteps * number // self.rounds,
                "checkpoint": checkpoint,
                "contexts": contexts,
                "out": str(folder),
            }
        )


def loop(settings: LoopSettings, *, progress: bool = True) -> list[Score]:
    """Run all rounds, or those that are left.

    Returns:
        Scores in the real game: of the agent after each round, of an untrained and of a random player.

    Raises:
        InvalidInputError: The folder holds a loop with other settings.
        FolderInUseError: Another process works in the folder.
        DiamondGymError: A world model, the data or the folder is not usable; the subclass says how.
        KeyboardInterrupt: Ctrl-C was pressed; the current stage has been saved.
    """
    settings = replace(settings, game=game_name(settings.game))
    folder = Path(settings.folder)
    with disk.begun(folder, training.NUM_BYTES * settings.rounds):
        return _rounds(settings, folder, progress)


def _rounds(settings: LoopSettings, folder: Path, progress: bool) -> list[Score]:
    if (folder / "round-1" / "agent" / AGENT_FILE).is_file():
        names = [name for name in asdict(settings) if name != "trust"]
        training.check_unchanged(folder / SETTINGS_FILE, settings, names, "a loop")
    else:
        _check_beginning(settings)
    write_json(asdict(settings), folder / SETTINGS_FILE)
    checkpoint, contexts = settings.checkpoint, settings.contexts
    data: Path | None = None
    scores: list[list[Score]] = []
    for number in range(1, settings.rounds + 1):
        place = folder / f"round-{number}"
        _log.info("round %d of %d: %s in %s", number, settings.rounds, settings.algo, checkpoint)
        _take_along(folder / f"round-{number - 1}", place)
        of_round = settings.round(number, place / "agent", checkpoint, contexts)
        scores.append(_learned(of_round, progress))
        if number < settings.rounds:
            before = data or _first_data(settings, folder, progress)
            data = _extended(settings, before, place, of_round, progress)
            checkpoint = _world(settings, place, before, checkpoint, progress)
            contexts = str(_starts(settings, place, checkpoint))
    return _summary(scores)


def _check_beginning(settings: LoopSettings) -> None:
    """Check at the start what would otherwise stop the loop after its first round.

    Raises:
        InvalidInputError: `own_share` is given without test episodes: the training would hold out some of
            those that are weighed.
        DatasetError: There are no episodes at `settings.data`, or its folder of test episodes is none.
        CheckpointError: The world's training uses networks of other sizes than the first world's.
        DeviceError: The device of the world's training is not available.
        MissingDependencyError: A package that the world's training needs is not installed.
    """
    test = None
    if settings.data is not None:
        EpisodeDataset(Path(settings.data) / "train")
        test = Path(settings.data) / "test"
    if settings.own_share is not None:
        if test is None or not test.is_dir():
            raise InvalidInputError(
                f"own_share={settings.own_share} needs test episodes beside those of training: give "
                "data=FOLDER with train/ and test/, such as the dataset folder of a run of trainers.diamond"
            )
        EpisodeDataset(test)
    config = world_settings.parse(_world_arguments(settings, settings.checkpoint))
    pick_backend(config.training.backend, find_device(config.common.device))
    launch.prepare(config)


def _world_arguments(settings: LoopSettings, checkpoint: str) -> list[str]:
    """Arguments of a world's training, except the data: the weights and the sampler of the last world."""
    before = load_world(settings.game, checkpoint, device=settings.device)
    sampler = asdict(before.diffusion_model.config).items()
    return [
        f"game={settings.game}",
        f"initialization.path_to_ckpt={before.source}",
        *(f"world_model_env.diffusion_sampler.{name}={value}" for name, value in sampler),
        *settings.world_arguments,
    ]


def _learned(settings: TrainSettings, progress: bool) -> list[Score]:
    """Train the round's agent unless it is trained already; return its scores."""
    file = Path(settings.folder) / training.SCORE_FILE
    if not file.is_file():
        return training.train(settings, progress=progress)
    found = untrusted.read_json(file, CheckpointError, "the scores of a run")
    with untrusted.reading(file, CheckpointError, "the scores of a run"):
        return [
            Score.of(str(score["player"]), [float(x) for x in score["returns"]]) for score in found["scores"]
        ]


def _take_along(before: Path, place: Path) -> None:
    """Copy the agent of the last round into this round's folder, where it continues to learn."""
    old, new = before / "agent" / AGENT_FILE, place / "agent" / AGENT_FILE
    if old.is_file() and not new.is_file():
        disk.write_file(new, old.read_bytes())


def _first_data(settings: LoopSettings, folder: Path, progress: bool) -> Path:
    if settings.data is not None:
        return Path(settings.data)

    def fill(place: Path) -> None:
        dataset = EpisodeDataset(place / "train", create=True)
        play(settings.game, settings.data_steps, seed=settings.seed, dataset=dataset, progress=progress)

    return _made(folder / "data", fill)


def _extended(
    settings: LoopSettings, data: Path, place: Path, of_round: TrainSettings, progress: bool
) -> Path:
    """The data, extended by episodes of the round's agent."""

    def own(folder: Path) -> None:
        agent = load_agent(
            place / "agent" / AGENT_FILE, device=settings.device, algo=settings.algo, trust=settings.trust
        )
        player = AgentPlayer(agent, settings.stacked)
        collect(
            settings.game,
            player,
            num_steps=settings.collect_steps,
            seed=_COLLECT_SEED + of_round.total_timesteps + settings.seed,
            dataset=EpisodeDataset(folder / "train", create=True),
            epsilon=settings.epsilon,
            progress=progress,
        )

    def both(folder: Path) -> None:
        shutil.copytree(data, folder, copy_function=_link, dirs_exist_ok=True)
        EpisodeDataset(folder / "train").extend(EpisodeDataset(place / "own" / "train"))

    _made(place / "own", own)
    return _made(place / "data", both)


def _made(place: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder that appears under its name once it is complete.

    Raises:
        CacheError: The folder cannot be written.
    """
    if place.is_dir():
        return place
    partial = place.with_name(f"{place.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(place)
    except OSError as error:
        raise CacheError(f"cannot write {place}: {error}") from error
    return place


def _link(source: str, target: str) -> None:
    """Link or copy a file; links are safe because episode files are replaced, never changed in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _world(settings: LoopSettings, place: Path, before: Path, checkpoint: str, progress: bool) -> str:
    """Train the world of the next round unless it is trained already; return its run folder.

    Args:
        settings: The loop's settings.
        place: The round's folder, whose `data` are `before` and then its `own`.
        before: The data of the last round.
        checkpoint: The world of the last round.
        progress: Whether to show bars.
    """
    outputs = place / "world"
    runs: Sequence[Path] = sorted(outputs.glob("*/*/config/trainer.yaml"))
    if runs:
        return str(launch.resume(runs[-1].parents[1], progress=progress))
    arguments = [*_world_arguments(settings, checkpoint), f"static_dataset.path={place / 'data'}"]
    if settings.own_share is not None:
        shares = [(before / "train", 1 - settings.own_share), (place / "own" / "train", settings.own_share)]
        write_weights(settings.game, shares, place / WEIGHTS_FILE)
        arguments += settings.weights_argument(place / WEIGHTS_FILE)
    command = shlex.join(["python", "-m", "trainers.diamond", "train", *arguments])
    config = world_settings.parse(arguments)
    return str(launch.train(config, outputs=outputs, command=command, progress=progress))


def _starts(settings: LoopSettings, place: Path, checkpoint: str) -> Path:
    """The file of start contexts of the next round, cut from the agent's games."""
    file = place / CONTEXTS_FILE
    if not file.is_file():
        world = load_world(settings.game, checkpoint, device=settings.device)
        bank = cut(
            EpisodeDataset(place / "own" / "train"),
            max_contexts=_MAX_CONTEXTS,
            before_losses=settings.before_losses,
            num_steps_conditioning=world.world_model.num_steps_conditioning,
            seed=settings.seed,
        )
        bank.save(file)
    return file


def _summary(rounds: list[list[Score]]) -> list[Score]:
    """The agent's score after each round, then the scores of the other players, which no round changes."""
    own = [replace(scores[0], player=f"round {i}") for i, scores in enumerate(rounds, 1)]
    return own + rounds[0][1:]

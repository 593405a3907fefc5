"""`python -m trainers.diamond`: its commands, and their exit codes.

Under torchrun, which ends all processes as soon as one fails, the others exit with 0 when rank 0 fails, so
that it can save and say what went wrong.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from diamond_gym import cli
from diamond_gym.cli import Command, Commands, Subcommand, option
from trainers.diamond.errors import FirstProcessFailed

PROG = "python -m trainers.diamond"
_INTERRUPTED = 130
TRAIN = """\
usage: python -m trainers.diamond train [key=value ...]

Collects episodes of a game, trains a world model on them and an actor-critic in its imagination, plays test
games, and writes everything to outputs/YYYY-MM-DD/hh-mm-ss. Ctrl-C and SIGTERM finish the step, save, and say
how to resume; SIGUSR1 saves and continues.

  train game=Breakout                                (as published: days on a GPU)
  train game=Breakout preset=small
  train game=Pong preset=small training.parts=denoiser denoiser.training.batch_size=8
  train game=Breakout static_dataset.path=folder     (holds train/ and, optionally, test/ episodes, or is
                                                       what diamond_gym.play recorded)
  train game=Breakout initialization.path_to_ckpt=outputs/2026-01-31/12-00-00
  train game=Breakout preset=small training.parts=actor_critic static_dataset.path=folder
        initialization.path_to_ckpt=outputs/2026-01-31/12-00-00
  train game=Freeway collection.train.temperature=0.01
  train game=Pong training.model_free=true           (no world model: the agent learns in the real game)
  train config=my.yaml training.num_epochs=20        (an edited config/trainer.yaml)
  train game=Breakout out=runs/first                 (the run folder; hydra.run.dir= is the same)

preset= is one of {presets} (default: {default}).
env.train.id=BreakoutNoFrameskip-v4 means game=Breakout.
A list is written a,b; nothing is written null.

Several GPUs, or CPUs, share every batch (batch_size is the size over all of them, and a multiple of their
number):
  torchrun --nproc-per-node=4 -m trainers.diamond train game=Breakout
Several machines need torchrun's --nnodes and --rdzv-* options, and outputs/ (and static_dataset.path) in a
folder that all of them see. A run is resumed in the same way, by any number of processes.

keys, with {preset}'s values:
{keys}"""


RESUME = """\
Continues a stopped or killed run, exactly as if it had not been stopped. A finished run is continued when it
is given more epochs:

  resume run=outputs/2026-01-31/12-00-00 training.num_epochs=40

The new values are kept in the run's config/trainer.yaml. A learning rate that is constant stays as it is; one
that follows a cosine rises to where it would be in a run of the new length. Other keys that may change:
common.device, training.num_threads, training.num_final_epochs, and all of checkpointing, evaluation, export,
logging and tensorboard.

SIGTERM ends a run like Ctrl-C: it finishes the step, saves and exits with 143. SIGUSR1, which clusters send
as a warning, saves and continues."""


@dataclass
class ResumeSettings:
    """Which run to resume, and what to change."""

    run: str = option(MISSING, "the run folder", is_path=True)
    changes: list[str] = option([], "key=value arguments of `train`, of keys that may change")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    rank = _rank()
    try:
        code = cli.main(COMMANDS, arguments, process=f"process {rank}: " if rank else "")
    except FirstProcessFailed:
        return 0
    return 0 if rank and code == _INTERRUPTED else code


def _rank() -> int:
    """The number of this process under torchrun, else 0."""
    return int(os.environ.get("RANK", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _train(arguments: Sequence[str]) -> None:
    from trainers.diamond import distributed as processes
    from trainers.diamond import run as launch
    from trainers.diamond.config import parse, split_run_folder

    if cli.wants_help(arguments):
        print(_train_usage([argument for argument in arguments if not cli.wants_help([argument])]))
        return
    command = shlex.join(["python", "-m", "trainers.diamond", "train", *arguments])
    with processes.process_group() as group:
        given, folder = group.on_rank_zero(lambda: split_run_folder(arguments))
        config = group.on_rank_zero(lambda: parse(given))
        launch.train(config, outputs=Path("outputs"), folder=folder, command=command, group=group)


def _train_usage(given: Sequence[str]) -> str:
    """The help text, with the values that the other arguments result in."""
    from trainers.diamond.config import DEFAULT_PRESET, PRESETS, help_text, parse, split_run_folder

    config = parse(split_run_folder(given)[0])
    named = [argument.partition("=")[2] for argument in given if argument.startswith("preset=")]
    return TRAIN.format(
        presets=", ".join(PRESETS),
        default=DEFAULT_PRESET,
        preset=named[-1] if named else DEFAULT_PRESET,
        keys=help_text(config),
    )


def _resume_of_one() -> Command:
    return Command(
        f"{PROG} resume",
        RESUME,
        ResumeSettings,
        _resume,
        rest="changes",
        usage_of_arguments="run=PATH [key=value ...]",
    )


def _resume(settings: ResumeSettings) -> None:
    from trainers.diamond import distributed as processes
    from trainers.diamond import run as launch

    with processes.process_group() as group:
        launch.resume(Path(settings.run), changes=settings.changes, group=group)


def _export() -> Command:
    from trainers.diamond import publish

    def run(options: publish.ExportOptions) -> None:
        sizes = publish.export(options)
        for name, size in sizes.items():
            print(f"{options.out}/{name}  {size / 1e6:.2f} MB")
        print(f"{sum(sizes.values()) / 1e6:.2f} MB in all")

    arguments = "run=PATH out=FOLDER [key=value ...]"
    return Command(f"{PROG} export", publish.EXPORT, publish.ExportOptions, run, usage_of_arguments=arguments)


def _curves() -> Command:
    from trainers.diamond import curves

    def run(options: curves.CurvesOptions) -> None:
        print(f"wrote {curves.draw(options)}")

    return Command(
        f"{PROG} curves", curves.ABOUT, curves.CurvesOptions, run, usage_of_arguments="run=PATH [out=FILE]"
    )


def _push_to_hub() -> Command:
    from trainers.diamond import publish

    def run(options: publish.PublishOptions) -> None:
        print(publish.push_to_hub(options))

    arguments = "run=PATH repo_id=USER/NAME [key=value ...]"
    return Command(
        f"{PROG} push-to-hub", publish.PUBLISH, publish.PublishOptions, run, usage_of_arguments=arguments
    )


def _record() -> Command:
    from diamond_gym.data import record

    def run(options: record.RecordOptions) -> None:
        print(f"{options.out}: {record.record(options)} episodes recorded")

    arguments = "env=ID out=FOLDER [key=value ...]"
    return Command(f"{PROG} record", record.ABOUT, record.RecordOptions, run, usage_of_arguments=arguments)


def _import_episodes() -> Command:
    from diamond_gym.data import import_episodes

    def run(options: import_episodes.ImportOptions) -> None:
        print(import_episodes.import_episodes(options))

    return Command(
        f"{PROG} import-episodes",
        import_episodes.ABOUT,
        import_episodes.ImportOptions,
        run,
        usage_of_arguments="SOURCE=PATH out=FOLDER [key=value ...]",
    )


COMMANDS = Commands(
    PROG,
    {
        "train": Subcommand("train from an empty folder:  train game=Breakout preset=small", lambda: _train),
        "resume": Subcommand(
            "continue a stopped run:      resume run=outputs/2026-01-31/12-00-00", _resume_of_one
        ),
        "curves": Subcommand("draw a run's metrics:        curves run=outputs/2026-01-31/12-00-00", _curves),
        "export": Subcommand(
            "write a small playable copy: export run=outputs/2026-01-31/12-00-00 out=my_breakout", _export
        ),
        "push-to-hub": Subcommand(
            "publish it, with a card:     push-to-hub run=outputs/2026-01-31/12-00-00 repo_id=me/x",
            _push_to_hub,
        ),
        "record": Subcommand("play any environment:        record env=MyGame-v0 out=recordings", _record),
        "import-episodes": Subcommand(
            "make a dataset of that:      import-episodes episodes=recordings out=data/MyGame",
            _import_episodes,
        ),
    },
)

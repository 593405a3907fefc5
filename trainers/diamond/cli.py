"""`python -m trainers.diamond`: reads the command line, says what went wrong in one line, sets the exit code.

Exit codes: 0 done, 1 failed, 2 wrong argument, 130 interrupted. Under torchrun, which ends all processes as
soon as one fails, those that only follow the first leave with 0, so that it can save and say what went wrong.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TypeVar

from diamond_gym.errors import DiamondGymError, InvalidInputError, UnknownGameError
from trainers.diamond.errors import FirstProcessFailed

_HELP = ("-h", "--help", "help")
_Options = TypeVar("_Options")

USAGE = """\
usage: python -m trainers.diamond COMMAND [key=value ...]

commands (COMMAND --help tells more):
  train            train from an empty folder:  train game=Breakout preset=small
  resume           go on with a stopped run:    resume run=outputs/2026-01-31/12-00-00
  curves           draw a run's metrics:        curves run=outputs/2026-01-31/12-00-00
  export           write a small playable copy: export run=outputs/2026-01-31/12-00-00 out=my_breakout
  push-to-hub      publish it, with a card:     push-to-hub run=outputs/2026-01-31/12-00-00 repo_id=me/x
  record           play any environment:        record env=MyGame-v0 out=recordings
  import-episodes  make a dataset of that:      import-episodes episodes=recordings out=data/MyGame"""

TRAIN_USAGE = """\
usage: python -m trainers.diamond train [key=value ...]

Collects episodes of a game, trains a world model on them and an actor-critic in its imagination, plays test
games, and leaves everything in outputs/YYYY-MM-DD/hh-mm-ss. Ctrl-C finishes the step, saves, and says how to
go on.

  train game=Breakout                                (as published: days on a GPU)
  train game=Breakout preset=small
  train game=Pong preset=small training.parts=[denoiser] denoiser.training.batch_size=8
  train game=Breakout static_dataset.path=folder     (holds train/ and, optionally, test/ episodes, or is
                                                       what diamond_gym.play recorded)
  train game=Breakout initialization.path_to_ckpt=outputs/2026-01-31/12-00-00
  train game=Breakout preset=small training.parts=[actor_critic] static_dataset.path=folder
        initialization.path_to_ckpt=outputs/2026-01-31/12-00-00
  train game=Freeway collection.train.temperature=0.01
  train game=Pong training.model_free=true           (no world model: learns in the real game)

preset= is one of {presets} (default: {default}).
env.train.id=BreakoutNoFrameskip-v4 means game=Breakout.
A list is written [a,b]; nothing is written null. What every key is for: trainers/diamond/config.py.

Several GPUs, or CPUs, share every batch (batch_size is that of all together, and a multiple of their number):
  torchrun --nproc-per-node=4 -m trainers.diamond train game=Breakout
Several machines: torchrun's --nnodes and --rdzv-* options, and outputs/ (and static_dataset.path) in a folder
that all of them see. Resume is started likewise, by any number of processes.

keys, with {preset}'s values:
{keys}"""

RESUME_USAGE = """\
usage: python -m trainers.diamond resume run=PATH

Goes on with a stopped or killed run, exactly as if it had not been stopped.

  run   the run folder"""

EXPORT_USAGE = """\
usage: python -m trainers.diamond export run=PATH out=FOLDER [key=value ...]

Writes model.safetensors and contexts.safetensors, for gymnasium.make("Diamond<Game>-v0", checkpoint=FOLDER).

  run                 the run folder; its newest agent is taken
  out                 the folder to write
  rew_end_model_run   run folder whose reward/end model is taken instead (default: none)
  dtype               float16 or float32 (default: float16)
  num_contexts        moments of real games to start from (default: 64)
  max_mb              refuse to write more than so many MB (default: 4)
  average             true takes the best average of the run's snapshots, searched on its test episodes
  evaluate            true measures the world and writes its model card (minutes)"""


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit code."""
    commands = {
        "train": _train,
        "resume": _resume,
        "curves": _curves,
        "export": _export,
        "push-to-hub": _push_to_hub,
        "record": _record,
        "import-episodes": _import_episodes,
    }
    try:
        if not arguments or arguments[0] in _HELP:
            print(USAGE)
            return 0 if arguments else 2
        if arguments[0] not in commands:
            raise InvalidInputError(f"unknown command {arguments[0]}: accepted are {', '.join(commands)}")
        commands[arguments[0]](arguments[1:])
    except (InvalidInputError, UnknownGameError) as error:
        return _fail(error, 2)
    except (DiamondGymError, OSError) as error:  # a file that vanished, a disk that broke
        return _fail(error, 1)
    except FirstProcessFailed:
        return 0
    except KeyboardInterrupt:
        return 0 if _rank() else 130
    return 0


def _fail(error: Exception, code: int) -> int:
    where = f"process {_rank()}: " if _rank() else ""
    print(f"{where}error: {error}", file=sys.stderr)
    return code


def _rank() -> int:
    """The number of this process under torchrun, else 0."""
    return int(os.environ.get("RANK", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _train(arguments: Sequence[str]) -> None:
    from trainers.diamond import distributed as processes
    from trainers.diamond import run as launch
    from trainers.diamond.config import DEFAULT_PRESET, PRESETS, flat, parse

    given = [argument for argument in arguments if argument not in _HELP]
    if len(given) < len(arguments):
        config = parse(given)
        named = [argument.partition("=")[2] for argument in given if argument.startswith("preset=")]
        default = DEFAULT_PRESET
        values = flat(config).items()
        keys = "\n".join(f"  {key}={_text(value)}" for key, value in values)
        presets = ", ".join(PRESETS)
        preset = named[0] if named else default
        print(TRAIN_USAGE.format(presets=presets, default=default, preset=preset, keys=keys))
        return
    command = shlex.join(["python", "-m", "trainers.diamond", "train", *arguments])
    with processes.process_group() as group:
        config = group.on_rank_zero(lambda: parse(given))
        launch.train(config, outputs=Path("outputs"), command=command, group=group)


def _resume(arguments: Sequence[str]) -> None:
    if _wants_help(arguments, RESUME_USAGE):
        return
    from trainers.diamond import distributed as processes
    from trainers.diamond import run as launch

    with processes.process_group() as group:
        options = group.on_rank_zero(lambda: _options(arguments, {"run": str}, required=["run"]))
        launch.resume(Path(options["run"]), group=group)


def _export(arguments: Sequence[str]) -> None:
    if _wants_help(arguments, EXPORT_USAGE):
        return
    from trainers.diamond.publish import ExportOptions, export

    options = _parsed(arguments, ExportOptions)
    sizes = export(options)
    for name, size in sizes.items():
        print(f"{options.out}/{name}  {size / 1e6:.2f} MB")
    print(f"{sum(sizes.values()) / 1e6:.2f} MB in all")


def _curves(arguments: Sequence[str]) -> None:
    from trainers.diamond import curves

    if not _wants_help(arguments, curves.USAGE):
        print(f"wrote {curves.draw(_parsed(arguments, curves.CurvesOptions))}")


def _push_to_hub(arguments: Sequence[str]) -> None:
    from trainers.diamond import publish

    if not _wants_help(arguments, publish.USAGE):
        given = ["dry_run=true" if argument == "--dry-run" else argument for argument in arguments]
        print(publish.push_to_hub(_parsed(given, publish.PublishOptions)))


def _record(arguments: Sequence[str]) -> None:
    from diamond_gym.data import record as record

    if not _wants_help(arguments, record.USAGE):
        options = _parsed(arguments, record.RecordOptions)
        print(f"{options.out}: {record.record(options)} episodes recorded")


def _import_episodes(arguments: Sequence[str]) -> None:
    from diamond_gym.data import import_episodes as import_episodes

    if not _wants_help(arguments, import_episodes.USAGE):
        print(import_episodes.import_episodes(_parsed(arguments, import_episodes.ImportOptions)))


def _parsed(arguments: Sequence[str], kind: type[_Options]) -> _Options:
    """A dataclass of options; the type of a value is that of its default, text where there is none."""
    known = fields(kind)  # pyright: ignore[reportArgumentType]
    defaults = {f.name: type(f.default) for f in known if f.default not in (MISSING, None)}
    types = {f.name: defaults.get(f.name, str) for f in known}
    types |= {name: boolean for name, type_ in defaults.items() if type_ is bool}
    return kind(**_options(arguments, types, required=[f.name for f in known if f.default is MISSING]))


def boolean(text: str) -> bool:
    """True or False out of "true" or "false".

    Raises:
        ValueError: It is neither.
    """
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _wants_help(arguments: Sequence[str], text: str) -> bool:
    wanted = any(argument in _HELP for argument in arguments)
    if wanted:
        print(text)
    return wanted


def _options(
    arguments: Sequence[str], types: Mapping[str, Callable[[str], object]], required: list[str]
) -> dict:
    from trainers.diamond.config import nearest, split

    values = {}
    for argument in arguments:
        key, text = split(argument)
        if key not in types:
            raise InvalidInputError(f"unknown key {key}: {nearest(key, list(types))}")
        if key in values:
            raise InvalidInputError(f"{argument}: {key} is given twice")
        try:
            values[key] = types[key](text)
        except ValueError:
            raise InvalidInputError(f"{argument}: {key} is of type {types[key].__name__}") from None
    missing = [f"{key}=..." for key in required if not values.get(key)]
    if missing:
        raise InvalidInputError(f"missing: {' '.join(missing)}")
    return values


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)

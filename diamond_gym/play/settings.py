"""The command line of the play mode and of the dataset mode."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diamond_gym import options
from diamond_gym.errors import InvalidInputError, UnknownGameError
from diamond_gym.options import option
from diamond_gym.play import released
from diamond_gym.registration import DEFAULT_MAX_EPISODE_STEPS, game_name

_MIN_SIZE, _MAX_SIZE = 256, 4096
_MAX_PORT = 65535
_ASK = ""
"""Value of --pretrained and --dataset-mode without a value."""

_DESCRIPTION = """\
Play inside a world model.

  python -m diamond_gym.play game=Breakout            a game's name or id, such as DiamondBreakout-v0
  python -m diamond_gym.play outputs/DATE/TIME        a training run's folder, a .pt or a .safetensors
  python -m diamond_gym.play --pretrained [WHICH]     a released model by number or name, else from a menu
  python -m diamond_gym.play -d [FOLDER]              look at recorded episodes
  python -m diamond_gym.play game=Breakout --web      either of them in a browser, here or elsewhere
  python -m diamond_gym.play export-minari --help     recorded episodes as a Minari dataset

H shows the keys."""


_COMPILE: dict[str, bool | Literal["openvino"]] = {"false": False, "true": True, "openvino": "openvino"}


@dataclass
class WorldOptions:
    """Which world model, and how it imagines: the keyword arguments of `gymnasium.make`.

    Raises:
        InvalidInputError: The seed is out of range, or there is no such way to compile.
    """

    game: str | None = option(None, "the game, or a path to play at", str)
    checkpoint: str | None = option(None, "auto, embedded, hub, hub:user/name, or a path", str)
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    dtype: str = option("auto", "precision of the networks: auto, float32, bfloat16, float16")
    compile: str = option("false", "compile the networks: false, true (takes a minute) or openvino (seconds)")
    num_denoising_steps: int | None = option(None, "instead of the checkpoint's own", int)
    order: int | None = option(None, "1 for Euler, 2 for Heun", int)
    s_churn: float | None = option(None, "noise added back while denoising", float)
    contexts: str | None = option(None, "where imagination starts: a bank or recorded episodes", str)
    seed: int | None = option(None, "fixes everything random", int)

    def __post_init__(self) -> None:
        options.check_choice("compile", self.compile, tuple(_COMPILE))
        if self.seed is not None:
            options.check_seed(self.seed, 31)

    @property
    def compile_choice(self) -> bool | Literal["openvino"]:
        """The `compile` argument of `gymnasium.make`."""
        return _COMPILE[self.compile]


@dataclass(frozen=True)
class WebOptions:
    """Where browsers find the page.

    Attributes:
        host: Name or address of this machine; with one that others can reach, the page asks for a token.
        port: 0 takes a free one.

    Raises:
        InvalidInputError: The port is out of range, or the host is empty.
    """

    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _MAX_PORT:
            raise InvalidInputError(f"--port must be in 0..{_MAX_PORT} (0 takes a free one), got {self.port}")
        if not self.host:
            raise InvalidInputError("--host must be a name or an address of this machine, got ''")


@dataclass
class Settings:
    """Everything that was asked for.

    Attributes:
        world: The world model; `world.game` is a game's name or None, `world.checkpoint` is set.
        dataset_mode: Folder of datasets to look at; None to play; "" for the usual place.
        is_policy: Whether the policy begins; None where that is the checkpoint's actor-critic.
        web: Where to serve it to browsers; None for a window.
    """

    world: WorldOptions
    dataset_mode: str | None
    record: bool
    store_denoising_trajectory: bool
    store_original_obs: bool
    num_steps_initial_collect: int
    horizon: int
    fps: float
    size: int
    has_header: bool
    is_policy: bool | None
    captures: Path
    film: Path | None
    num_frames: int | None
    web: WebOptions | None = None

    def __post_init__(self) -> None:
        if not self.record and (self.store_denoising_trajectory or self.store_original_obs):
            raise InvalidInputError(
                "--store-denoising-trajectory and --store-original-obs need --record (-r)"
            )
        if not (math.isfinite(self.fps) and 1 <= self.fps <= 1000):
            raise InvalidInputError(f"--fps must be in 1..1000, got {self.fps:g}")
        if not _MIN_SIZE <= self.size <= _MAX_SIZE:
            raise InvalidInputError(f"--size must be in {_MIN_SIZE}..{_MAX_SIZE}, got {self.size}")
        for name, least in (("horizon", 1), ("num_steps_initial_collect", 0), ("num_frames", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInputError(f"{_FLAGS[name]} must be at least {least}, got {value}")
        self.size -= self.size % 8  # films are made of blocks


_FLAGS = {"horizon": "--horizon", "num_steps_initial_collect": "-n", "num_frames": "--frames"}


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from a command line; asks on the terminal where --pretrained has no value.

    Raises:
        InvalidInputError: A key, value or combination is not one of those accepted.
        UnknownGameError: What was to be played is neither a game nor a path.
        SystemExit: A flag is wrong, or help was asked for and printed.
    """
    args = _parser().parse_intermixed_args(list(arguments))
    world = options.parse(WorldOptions, _pairs(args))
    _resolve(world, args.pretrained)
    return Settings(
        world=world,
        dataset_mode=args.dataset_mode,
        record=args.record,
        store_denoising_trajectory=args.store_denoising_trajectory,
        store_original_obs=args.store_original_obs,
        num_steps_initial_collect=args.num_steps_initial_collect,
        horizon=args.horizon,
        fps=args.fps,
        size=args.size,
        has_header=not args.no_header,
        is_policy=args.policy,
        captures=args.captures,
        film=args.film,
        num_frames=args.frames,
        web=_web_options(args),
    )


def _web_options(args: argparse.Namespace) -> WebOptions | None:
    given = {name: value for name in ("host", "port") if (value := getattr(args, name)) is not None}
    if given and not args.web:
        raise InvalidInputError("--host and --port need --web")
    return WebOptions(**given) if args.web else None


def _pairs(args: argparse.Namespace) -> list[str]:
    """Arguments key=value, also those that follow a flag which may have a value but had none."""
    texts = list(args.what)
    for name in ("pretrained", "dataset_mode"):
        value = getattr(args, name)
        if value is not None and "=" in value:
            texts.append(value)
            setattr(args, name, _ASK)
    return [text if "=" in text else f"game={text}" for text in texts]


def _resolve(world: WorldOptions, pretrained: str | None) -> None:
    """Makes a game's name and a checkpoint of what was given."""
    if pretrained is not None:
        if world.checkpoint is not None or (world.game is not None and pretrained != _ASK):
            raise InvalidInputError("--pretrained chooses game and checkpoint: give neither besides")
        choice = world.game or pretrained
        world.game = released.choose(choice) if choice else released.ask()
        world.checkpoint = "hub"
    elif world.game is None:
        world.game = "Breakout" if world.checkpoint in (None, "auto", "embedded", "hub") else None
    elif world.checkpoint is None and _is_path(world.game):
        world.game, world.checkpoint = None, world.game
    else:
        world.game = game_name(world.game)
    world.checkpoint = world.checkpoint or "auto"


def _is_path(text: str) -> bool:
    """Whether it means a checkpoint, not a game."""
    try:
        game_name(text)
        return False
    except UnknownGameError as error:
        looks_like_one = (
            "/" in text or Path(text).suffix in (".pt", ".safetensors") or text.startswith("hub:")
        )
        if looks_like_one or Path(text).expanduser().exists():
            return True
        raise UnknownGameError(f"{error}; nor is there a run folder or file of that name") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diamond_gym.play",
        description=_DESCRIPTION,
        epilog=f"key=value options, as in gymnasium.make:\n{options.describe(WorldOptions)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="*", metavar="key=value", help="a game or a path, and options; default: game=Breakout")
    add(
        "-p",
        "--pretrained",
        nargs="?",
        const=_ASK,
        metavar="WHICH",
        help="a released model: 1-26 or its game",
    )
    add(
        *("-d", "--dataset-mode"),
        nargs="?",
        const=_ASK,
        metavar="FOLDER",
        help="look at the datasets in a folder; default: the run's dataset/ if a run is given, else dataset/",
    )
    add("-r", "--record", action="store_true", help="save finished episodes in dataset/rec_<env>_<H or π>")
    add("--store-denoising-trajectory", action="store_true", help="with -r: how imagined frames came about")
    add("--store-original-obs", action="store_true", help="with -r: the real game's screens in full size")
    add(
        *("-n", "--num-steps-initial-collect"),
        type=int,
        default=0,
        metavar="STEPS",
        help="play so many steps of the real game first and imagine from moments of them; default: 0, the "
        "checkpoint's own start contexts",
    )
    add("--horizon", type=int, default=DEFAULT_MAX_EPISODE_STEPS, help="imagined steps; default: %(default)s")
    beginner = parser.add_mutually_exclusive_group()
    beginner.add_argument(
        "--policy",
        action="store_const",
        const=True,
        help="the policy begins (M switches); default: where the checkpoint has an actor-critic",
    )
    beginner.add_argument(
        "--human", action="store_const", const=False, dest="policy", help="you begin (M switches)"
    )
    add("--fps", type=float, default=15.0, help="pictures, and steps, per second; default: 15")
    add("--size", type=int, default=640, help="width of the window; default: %(default)s")
    add("--no-header", action="store_true", help="only the picture")
    add(
        "--captures",
        type=Path,
        default=Path("captures"),
        help="folder of screenshots and films; default: captures",
    )
    add("--film", type=Path, metavar="FILE", help="film everything from the start, .mp4 or .gif")
    add("--frames", type=int, metavar="N", help="leave after so many pictures")
    add("--web", action="store_true", help="in browsers instead of a window; needs no display")
    add("--port", type=int, help=f"with --web; default: {WebOptions.port}, 0 takes a free one")
    add(
        "--host",
        metavar="ADDRESS",
        help=f"with --web; default: {WebOptions.host}, which only this machine can reach. 0.0.0.0 lets "
        "others in, who need the token that is printed",
    )
    return parser

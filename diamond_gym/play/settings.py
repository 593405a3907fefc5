"""The command line of the play mode and of the dataset mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diamond_gym import cli
from diamond_gym.backends.names import BACKENDS, backend_of_compile
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError, UnknownGameError
from diamond_gym.play import released
from diamond_gym.registration import DEFAULT_MAX_EPISODE_STEPS, game_name

_MIN_SIZE, _MAX_SIZE = 256, 4096
_MAX_PORT = 65535
_ASK = ""
"""Value of --pretrained and --dataset-mode that are given without a value."""
POSITIONAL = ("game",)
"""The key of an argument without one."""
RUN_CONFIG = Path("config", "trainer.yaml")
"""A folder with this file is a training run."""
_OF_A_WORLD = (RUN_CONFIG, Path("model.safetensors"))
"""In a folder with one of these, play uses its world model by default."""

ABOUT = """\
Play inside a world model. In a run folder, without arguments: inside its own.

  python -m diamond_gym.play game=Breakout            a game's name or id, such as DiamondBreakout-v0
  python -m diamond_gym.play outputs/DATE/TIME        a training run's folder, a .pt or a .safetensors
  python -m diamond_gym.play --pretrained [WHICH]     a released model by number or name, else from a menu
  python -m diamond_gym.play -d [FOLDER]              look at recorded episodes
  python -m diamond_gym.play game=Breakout --web      either of them in a browser, here or elsewhere
  python -m diamond_gym.play export-minari --help     recorded episodes as a Minari dataset

H shows the keys."""


@dataclass
class WorldOptions:
    """The world model and its sampler: the keyword arguments of `gymnasium.make`.

    Raises:
        InvalidInputError: A number is out of range, or the backend is unknown.
    """

    game: str | None = option(None, "the game, or a path to play at; the first argument", is_path=True)
    checkpoint: str | None = option(None, "auto, embedded, hub, hub:user/name, or a path", is_path=True)
    device: str = option("auto", "where the networks run: auto, cpu, cuda, ...")
    dtype: str = option("auto", "precision of the networks: auto, float32, bfloat16, float16")
    backend: str = option(
        "auto",
        "what runs the networks; inductor compiles for a minute, openvino for seconds",
        choices=BACKENDS,
    )
    compile: str | None = option(None, "deprecated, see backend")
    num_denoising_steps: int | None = option(None, "instead of the checkpoint's own")
    order: int | None = option(None, "1 for Euler, 2 for Heun")
    s_churn: float | None = option(None, "noise added back while denoising")
    contexts: str | None = option(
        None, "where imagination starts: a file of contexts, or recorded episodes", is_path=True
    )
    seed: int | None = option(None, "fixes everything random")

    def __post_init__(self) -> None:
        if self.compile is not None:
            self.backend, self.compile = backend_of_compile(self.compile), None
        cli.check(self)
        if self.seed is not None:
            cli.check_seed(self.seed, 31)


@dataclass(frozen=True)
class WebOptions:
    """The address of the page.

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
            raise InvalidInputError(f"port must be in 0..{_MAX_PORT} (0 takes a free one), got {self.port}")
        if not self.host:
            raise InvalidInputError("host must be a name or an address of this machine, got ''")


@dataclass
class Options(WorldOptions):
    """The command line. Every key may also be written as a flag, such as --fps 30.

    Raises:
        InvalidInputError: A value is not one of those accepted.
    """

    pretrained: str | None = option(
        None,
        "a released model by its number, 1-26, or its game; without a value from a menu",
        flag="-p",
        alone=_ASK,
    )
    dataset_mode: str | None = option(
        None,
        "look at the datasets in a folder; without a value in the run's dataset/ if a run is given, else in "
        "dataset/",
        flag="-d",
        alone=_ASK,
        is_path=True,
    )
    record: bool = option(False, "save finished episodes in dataset/rec_<env>_<H or π>", flag="-r")
    store_denoising_trajectory: bool = option(False, "with record: how imagined frames came about")
    store_original_obs: bool = option(False, "with record: the real game's screens in full size")
    num_steps_initial_collect: int = option(
        0,
        "steps of the real game to play first, to imagine from contexts in them; 0: from the "
        "checkpoint's own contexts",
        flag="-n",
        least=0,
    )
    horizon: int = option(DEFAULT_MAX_EPISODE_STEPS, "imagined steps", least=1)
    policy: bool | None = option(
        None, "the policy begins (M switches); without it where the checkpoint has an actor-critic"
    )
    human: bool = option(False, "you begin (M switches)")
    fps: float = option(15.0, "pictures, and steps, per second")
    size: int = option(640, "width of the window")
    header: bool = option(True, "draw what happens above the picture; --no-header for only the picture")
    captures: Path = option(Path("captures"), "folder of screenshots and films")
    film: Path | None = option(None, "film everything from the start, .mp4 or .gif")
    frames: int | None = option(None, "number of pictures after which to leave", least=1)
    web: bool = option(False, "in browsers instead of a window; needs no display")
    port: int | None = option(None, f"with web: {WebOptions.port} without it, 0 takes a free one")
    host: str | None = option(
        None,
        f"with web: {WebOptions.host} without it, which only this machine can reach. 0.0.0.0 lets others in, "
        "who need the token that is printed",
    )


@dataclass
class Settings:
    """The checked settings.

    Attributes:
        world: The world model; `world.game` is a game's name or None, `world.checkpoint` is set.
        dataset_mode: Folder of datasets to show; None to play; "" for the default folder.
        is_policy: Whether the policy begins; None if it does when the checkpoint has an actor-critic.
        web: Where to serve the page; None for a window.
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
            raise InvalidInputError("store_denoising_trajectory and store_original_obs need record=true (-r)")
        if not (math.isfinite(self.fps) and 1 <= self.fps <= 1000):
            raise InvalidInputError(f"fps must be in 1..1000, got {self.fps:g}")
        if not _MIN_SIZE <= self.size <= _MAX_SIZE:
            raise InvalidInputError(f"size must be in {_MIN_SIZE}..{_MAX_SIZE}, got {self.size}")
        self.size -= self.size % 8  # films consist of blocks


def parse(arguments: Sequence[str]) -> Settings:
    """Parse a command line to settings; see `settings_of`."""
    return settings_of(cli.parse(Options, arguments, positional=POSITIONAL))


def settings_of(options: Options) -> Settings:
    """Check options and make settings; ask on the terminal where `pretrained` has no value.

    Raises:
        InvalidInputError: A combination is not one of those accepted.
        UnknownGameError: The argument is neither a game nor a path.
    """
    if options.policy and options.human:
        raise InvalidInputError("give one of policy and human: only one can begin")
    _resolve(options, options.pretrained)
    return Settings(
        world=options,
        dataset_mode=options.dataset_mode,
        record=options.record,
        store_denoising_trajectory=options.store_denoising_trajectory,
        store_original_obs=options.store_original_obs,
        num_steps_initial_collect=options.num_steps_initial_collect,
        horizon=options.horizon,
        fps=options.fps,
        size=options.size,
        has_header=options.header,
        is_policy=False if options.human else options.policy,
        captures=options.captures,
        film=options.film,
        num_frames=options.frames,
        web=_web_options(options),
    )


def _web_options(options: Options) -> WebOptions | None:
    given = {name: value for name in ("host", "port") if (value := getattr(options, name)) is not None}
    if given and not options.web:
        raise InvalidInputError("host and port need web=true (--web)")
    return WebOptions(**given) if options.web else None


def _resolve(world: WorldOptions, pretrained: str | None) -> None:
    """Set the game's name and the checkpoint according to the arguments."""
    if pretrained is not None:
        if world.checkpoint is not None or (world.game is not None and pretrained != _ASK):
            raise InvalidInputError("pretrained chooses game and checkpoint: do not give them too")
        choice = world.game or pretrained
        world.game = released.choose(choice) if choice else released.ask()
        world.checkpoint = "hub"
    elif world.game is None and world.checkpoint is None and any(path.is_file() for path in _OF_A_WORLD):
        world.checkpoint = "."
    elif world.game is None:
        world.game = "Breakout" if world.checkpoint in (None, "auto", "embedded", "hub") else None
    elif world.checkpoint is None and _is_path(world.game):
        world.game, world.checkpoint = None, world.game
    else:
        world.game = game_name(world.game)
    world.checkpoint = world.checkpoint or "auto"


def _is_path(text: str) -> bool:
    """Whether a text means a checkpoint, not a game."""
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

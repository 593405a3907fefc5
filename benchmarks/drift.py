r"""How fast imagination drifts with few denoising steps: EDM against DDPM (section 5.1 of the paper).

    python -m benchmarks.drift edm=outputs/DATE/TIME ddpm=outputs/DATE/TIME --out drift

From the same held-out moments of the real game, under the same real actions, each world model imagines open
loop with 1, 3 and 10 denoising steps; the measure is the PSNR against the real frame by horizon. Checkpoints
are those of `gymnasium.make`. Two that differ in the objective alone learn from the same episodes by

    python -m trainers.diamond train game=Breakout preset=small training.parts=[denoiser] \
        denoiser.training.num_autoregressive_steps=0
    python -m trainers.diamond train game=Breakout preset=small training.parts=[denoiser] \
        static_dataset.path=outputs/DATE/TIME/dataset denoiser.objective=ddpm

with the first one's run folder as DATE/TIME: DDPM is trained without autoregressive steps. It visits the
timesteps of the paper: 500 in a single step, and for N > 1 those of diffusers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.checkpoints import World, load_world
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate import heldout, pictures, report
from diamond_gym.evaluate import measure as measures
from diamond_gym.evaluate.heldout import Starts
from diamond_gym.evaluate.imagination import Imaginer
from diamond_gym.games.atari import num_actions
from diamond_gym.players.player import PLAYER_NAMES, player
from diamond_gym.registration import game_name
from diamond_gym.world.models.denoiser import OBJECTIVES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = dict[str, Any]
"""The results of one world model with one number of denoising steps, by horizon."""


@dataclass
class Settings:
    """What is compared.

    Raises:
        InvalidInputError: A value is not accepted, or there is nothing to measure.
    """

    edm: str | None = option(None, "a world model of EDM", is_path=True)
    ddpm: str | None = option(None, "a world model of DDPM", is_path=True)
    game: str = option("Breakout", "an Atari game")
    num_denoising_steps: list[int] = option([1, 3, 10], "passes per frame", least=1)
    horizon: int = option(100, "steps imagined", least=1)
    policy: str = option("scripted", "who plays", choices=PLAYER_NAMES)
    episodes: int = option(10, "held-out episodes", least=1)
    starts: int = option(32, "least number of starts", least=1)
    seed: int = option(0, "fixes the episodes and the imagined games")
    batch_size: int = option(32, "games at once", least=1)
    device: str = option("auto", "auto, cpu, cuda, ...")
    out: Path = option(Path("drift"), "folder to write")

    def __post_init__(self) -> None:
        cli.check(self)
        cli.check_seed(self.seed, 30)
        if not self.worlds:
            raise InvalidInputError("give edm=PATH, ddpm=PATH or both")

    @property
    def worlds(self) -> dict[str, str]:
        """Paths by objective."""
        return {name: path for name in OBJECTIVES if (path := getattr(self, name)) is not None}


def load_worlds(args: Settings, game: str) -> dict[str, World]:
    """The world models by objective.

    Raises:
        InvalidInputError: A checkpoint is of the other objective, or they look back on different numbers of
            frames.
    """
    worlds = {name: load_world(game, path, device=args.device) for name, path in args.worlds.items()}
    for name, world in worlds.items():
        found = world.diffusion_model.denoiser.config.objective
        if found != name:
            raise InvalidInputError(f"{name}={world.source}: its denoiser was trained with objective {found}")
    lengths = {name: world.world_model.num_steps_conditioning for name, world in worlds.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidInputError(f"the same starts need the same num_steps_conditioning, got {lengths}")
    return worlds


def measure(args: Settings, game: str, worlds: dict[str, World], starts: Starts) -> Iterator[Curve]:
    """Imagine with every world model and every number of denoising steps."""
    for objective, world in worlds.items():
        for num_steps in args.num_denoising_steps:
            config = replace(world.diffusion_model.config, num_steps_denoising=num_steps)
            world_model = world.diffusion_model.resampled(config)
            print(f"{objective}, {num_steps} denoising steps", file=sys.stderr)
            imagined = Imaginer(world_model, args.seed, args.batch_size).future(starts)
            yield {
                "objective": objective,
                "num_denoising_steps": num_steps,
                "noise_levels": world_model.levels,
                "source": world.source,
                "steps": measures.measure(game, starts, imagined)["steps"],
            }


def table(curves: Sequence[Curve]) -> str:
    """PSNR in dB of every curve at a few horizons, and of the last real frame repeated."""
    rows = curves[0]["steps"]
    shown = [rows[step - 1] for step in measures.shown_steps(len(rows))]
    lines = [f"{'PSNR (dB) at step':<24}" + "".join(f"{row['step']:>8}" for row in shown)]
    lines.append(f"{'frames':<24}" + "".join(f"{row['frames']:>8}" for row in shown))
    for curve in curves:
        name = f"{curve['objective']}, steps {curve['num_denoising_steps']}"
        values = [curve["steps"][row["step"] - 1]["psnr"] for row in shown]
        lines.append(f"{name:<24}" + "".join(f"{value:>8.2f}" for value in values))
    lines.append(f"{'last frame repeated':<24}" + "".join(f"{row['psnr_repeat']:>8.2f}" for row in shown))
    return "\n".join(lines)


def plot(curves: Sequence[Curve]) -> Figure:
    """PSNR over the imagined steps: a panel for each objective, on one scale."""
    objectives = list(dict.fromkeys(curve["objective"] for curve in curves))
    figure = pictures.new_figure((4.2 * len(objectives), 3.6))
    panels = figure.subplots(1, len(objectives), squeeze=False, sharey=True)[0]
    for objective, axes in zip(objectives, panels, strict=True):
        own = [curve for curve in curves if curve["objective"] == objective]
        for curve in own:
            steps = curve["num_denoising_steps"]
            label = f"{steps} denoising step{'s' * (steps > 1)}"
            axes.plot(*_points(curve, "psnr"), label=label)
        axes.plot(*_points(own[0], "psnr_repeat"), "k:", label="last real frame repeated")
        axes.set(title=objective.upper(), xlabel="imagined step")
        axes.grid(alpha=0.3)
    panels[-1].legend()
    panels[0].set(ylabel="PSNR against the real frame (dB)")
    return figure


def _points(curve: Curve, name: str) -> tuple[list[int], list[float]]:
    return [row["step"] for row in curve["steps"]], [row[name] for row in curve["steps"]]


def run(args: Settings) -> None:
    """Measures, prints and writes everything."""
    pictures.require_matplotlib()
    measures.require_torchmetrics()
    game = game_name(args.game)
    policy = player(args.policy, game, num_actions(game))
    worlds = load_worlds(args, game)
    disk.prepare_folder(args.out)
    num_conditioning = next(iter(worlds.values())).world_model.num_steps_conditioning
    episodes = heldout.play(game, policy, args.episodes, args.seed).episodes
    starts = heldout.choose_starts(episodes, args.starts, num_conditioning, args.horizon)
    curves = list(measure(args, game, worlds, starts))
    settings = {name: value for name, value in asdict(args).items() if name != "out"}
    definitions = {
        name: measures.DEFINITIONS[name] for name in ("psnr", "psnr_of_mean_mse", "within", "repeat")
    }
    result = {"settings": settings, "num_starts": len(starts), "definitions": definitions, "curves": curves}
    report.write_json(result, args.out / "drift.json")
    pictures.write_figure(plot(curves), args.out / "drift.png")
    print(table(curves))
    print(f"wrote drift.json and drift.png to {args.out}/")


COMMAND = cli.Command(
    "python -m benchmarks.drift",
    __doc__ or "",
    Settings,
    run,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

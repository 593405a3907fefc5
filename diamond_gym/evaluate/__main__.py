"""`python -m diamond_gym.evaluate game=Breakout`: imagined against real, as numbers and pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diamond_gym.errors import DiamondGymError, InvalidInputError
from diamond_gym.evaluate.settings import Settings, parse, usage


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the arguments say; the exit code is 0, 1 for a failure, 2 for a wrong argument."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(usage())
        return 0
    try:
        settings = parse(arguments)
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        _evaluate(settings)
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return 2
    except DiamondGymError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _evaluate(settings: Settings) -> None:
    import torch

    from diamond_gym import disk
    from diamond_gym.atari import num_actions
    from diamond_gym.checkpoints import load_world
    from diamond_gym.evaluate import heldout, report
    from diamond_gym.evaluate.imagination import imagine, predict_transitions
    from diamond_gym.players import player
    from diamond_gym.registration import game_name

    begin = time.perf_counter()
    out = Path(settings.out)
    report.require_matplotlib()
    disk.prepare_folder(out)
    game = game_name(settings.game)
    policy = player(settings.policy, game, num_actions(game))
    world = load_world(
        game,
        settings.checkpoint,
        device=settings.device,
        num_denoising_steps=settings.num_denoising_steps,
    )
    world_model = world.world_model

    episodes = heldout.play(game, policy, settings.episodes, settings.seed)
    starts = heldout.choose_starts(
        episodes, settings.starts, world_model.num_steps_conditioning, settings.horizon
    )
    imagined = imagine(world_model, starts, settings.seed, settings.batch_size)
    result: dict[str, Any] = {
        "settings": asdict(settings),
        "source": world.source,
        "num_denoising_steps": world_model.config.num_steps_denoising,
        "num_episodes": len(episodes),
        "num_real_steps": sum(map(len, episodes)),
        "num_starts": len(starts),
        "torch": torch.__version__,
        "definitions": report.DEFINITIONS,
        **report.measure(game, starts, imagined),
        **report.measure_transitions(predict_transitions(world_model, episodes)),
    }
    result["seconds"] = time.perf_counter() - begin

    report.write_json(result, out / "fidelity.json")
    report.write_figure(report.curves(result), out / "curves.png")
    report.write_figure(report.film(starts, imagined), out / "film.png")
    steps = result["num_real_steps"]
    print(f"{game}: {len(starts)} starts in {len(episodes)} held-out episodes of {steps} steps in all")
    print(report.table(result))
    print(f"wrote fidelity.json, curves.png and film.png to {out}/ in {result['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

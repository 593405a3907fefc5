"""The pictures of README and documentation: `make pictures`, or `python docs/pictures.py NAME...`.

`breakout.png` and `play.gif` show the embedded Breakout as it plays now. The curves are drawn from the
numbers in `docs/recorded`. Those in `drift.jsonl` are from `benchmarks.drift`. Those in `scaling.jsonl`
(commit 4566015438) and `training.jsonl` (commit df7a411) were read off the pictures that were drawn when they
were measured, to a pixel. `make endurance` measures the scaling again and draws it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from diamond_gym.evaluate import pictures  # noqa: E402


def recorded(name: str) -> list[dict[str, Any]]:
    """Read the numbers of a picture."""
    return [json.loads(line) for line in (DOCS / "recorded" / f"{name}.jsonl").read_text().splitlines()]


def breakout() -> None:
    """Draw real above imagined Breakout: the film strip of the demonstration."""
    from diamond_gym import demo

    with tempfile.TemporaryDirectory() as folder:
        demo.run(demo.Settings(game="Breakout", checkpoint="embedded", steps=200, out=Path(folder)))
        (DOCS / "breakout.png").write_bytes((Path(folder) / "demo.png").read_bytes())


def play() -> None:
    """Film imagined Breakout, real beside imagined, and imagination continued from a real frame."""
    from diamond_gym.play import settings, start
    from diamond_gym.play.canvas import Canvas
    from diamond_gym.play.keys import Command
    from diamond_gym.play.viewer import Viewer

    chosen = settings.parse(
        ["game=Breakout", "checkpoint=embedded", "horizon=60", "size=640", "seed=3", "policy=true"]
    )
    viewer = Viewer(start.play_session(chosen), Canvas(chosen.size), fps=chosen.fps, captures=DOCS)
    viewer.start_film(DOCS / "play.gif")
    for commands, num_pictures in (
        ([], 25),
        ([Command.NEXT_PLACE], 15),  # until the ball is served, to a place that no frame tells
        ([Command.COMPARE], 30),
        ([Command.COMPARE, Command.IMAGINE], 27),
    ):
        for command in commands:
            viewer.command(command)
        for _ in range(num_pictures):
            viewer.advance([])
    viewer.close()


def drift() -> None:
    """Draw the error by imagined step of EDM and DDPM."""
    from benchmarks import drift

    pictures.write_figure(drift.plot(recorded("drift")), DOCS / "drift.png")


def scaling() -> None:
    """Draw speed, latency and memory by number of games and of denoising steps."""
    from benchmarks import endurance

    rows = [endurance.ScalingRow(**row) for row in recorded("scaling")]
    pictures.write_figure(endurance.plot(rows), DOCS / "scaling.png")


def training() -> None:
    """Draw the curves of an actor-critic that learns in imagined Breakout."""
    from trainers.diamond import curves

    pictures.write_figure(curves.figure(recorded("training")), DOCS / "training.png")


DRAWN = {"breakout": breakout, "play": play, "drift": drift, "scaling": scaling, "training": training}


def main(arguments: list[str]) -> int:
    """Draw the pictures that are named, or all; return the exit code."""
    unknown = sorted(set(arguments) - set(DRAWN))
    if unknown:
        print(f"error: unknown picture {unknown[0]}: accepted are {', '.join(DRAWN)}", file=sys.stderr)
        return 2
    for name in arguments or DRAWN:
        DRAWN[name]()
        print(f"drew {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

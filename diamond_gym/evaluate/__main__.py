"""`python -m diamond_gym.evaluate game=Breakout`: imagined against real, as numbers and pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diamond_gym import cli
from diamond_gym.evaluate.settings import Settings


def _evaluate(settings: Settings) -> None:
    from diamond_gym.evaluate.evaluation import run  # takes seconds, so arguments are checked first

    run(settings)


COMMAND = cli.Command(
    "python -m diamond_gym.evaluate",
    """\
Plays held-out real games, imagines from contexts in them, and shows in numbers, curves and a film how far
imagination is from them.""",
    Settings,
    _evaluate,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the arguments say; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

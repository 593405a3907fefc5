"""`python -m diamond_gym.evaluate game=Breakout`: imagined against real, as numbers and pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diamond_gym.errors import DiamondGymError, InvalidInputError
from diamond_gym.evaluate.settings import parse, usage


def main(arguments: Sequence[str]) -> int:
    """Evaluate as the arguments say; the exit code is 0, 1 for a failure, 2 for a wrong argument."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(usage())
        return 0
    try:
        settings = parse(arguments)
        from diamond_gym.evaluate.evaluation import (
            run,
        )  # seconds of imports, which a typing error need not wait for

        run(settings)
    except DiamondGymError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

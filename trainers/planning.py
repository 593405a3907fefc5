"""The old name of `python -m trainers.examples.planning`, which it runs."""

import sys
from collections.abc import Sequence

from diamond_gym import cli


def _program(arguments: Sequence[str]) -> int | None:
    from trainers.examples import planning

    print("trainers.planning is now trainers.examples.planning", file=sys.stderr)
    return planning.COMMAND(arguments)


if __name__ == "__main__":
    sys.exit(cli.main(_program))

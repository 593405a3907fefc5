"""The old name of `python -m trainers.examples.ppo`, which it runs."""

import sys
from collections.abc import Sequence

from diamond_gym import cli


def _program(arguments: Sequence[str]) -> int | None:
    from trainers.examples import ppo

    print("trainers.cleanrl_ppo is now trainers.examples.ppo", file=sys.stderr)
    return ppo.COMMAND(arguments)


if __name__ == "__main__":
    sys.exit(cli.main(_program))

"""The old name of `python -m trainers.examples.torchrl_ppo`, which it runs."""

import sys
from collections.abc import Sequence

from diamond_gym import cli


def _program(arguments: Sequence[str]) -> int | None:
    from trainers.examples import torchrl_ppo

    print("trainers.torchrl_ppo is now trainers.examples.torchrl_ppo", file=sys.stderr)
    return torchrl_ppo.COMMAND(arguments)


if __name__ == "__main__":
    sys.exit(cli.main(_program))

"""`python -m trainers.sb3`: trains and scores agents of Stable-Baselines3.

Exit codes: 0 done, 1 failed, 2 wrong argument, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from diamond_gym import options
from diamond_gym.errors import DiamondGymError, InvalidInputError, MissingDependencyError, UnknownGameError
from trainers.sb3.settings import DemoSettings, EvaluateSettings, TrainSettings

_MODULES = ("stable_baselines3", "tensorboard", "matplotlib", "rich")
_HELP = ("-h", "--help", "help")
USAGE = """\
usage: python -m trainers.sb3 COMMAND [key=value ...]

commands (COMMAND --help tells more):
  train      an agent learns in imagination and is scored in the real game:  train game=Breakout algo=ppo
  loop       as train, but the world also learns from the agent, in rounds:    loop game=Breakout rounds=3
  evaluate   scores a saved agent in either world:  evaluate agent=outputs/sb3/Breakout-ppo-imagination-0
  demo       films a saved agent in the real game, and what is imagined beside:  demo game=Breakout"""
TRAIN = """\
usage: python -m trainers.sb3 train [key=value ...]

The agent learns in imagined games (or, where=real, in real ones), plays the real game now and then, and in
the end beside an untrained and a random player. The run folder gets agent.zip, score.json,
learning_curve.png, film.mp4, and logs for TensorBoard. Ctrl-C saves; the same command goes on.

What is behind the agents that come with the package:
  train game=Breakout horizon=64 num_denoising_steps=2 total_timesteps=375000
  train game=Pong horizon=32 num_denoising_steps=1 contexts=FILE total_timesteps=825000
with FILE from: python -m trainers.contexts game=Pong out=FILE max_contexts=8000

To compare with the same algorithm after as many real steps (horizon, checkpoint, contexts and
num_denoising_steps mean nothing there):
  train game=Breakout total_timesteps=375000 where=real out=real
  train game=Breakout total_timesteps=375000 horizon=64 num_denoising_steps=2 beside=real

"""
LOOP = """\
usage: python -m trainers.sb3 loop [key=value ...]

DIAMOND's loop for any algorithm: the agent learns in imagination, plays the real game, and the world goes on
learning from what it had and from the agent's episodes; then the next round begins. Every round leaves its
agent, its episodes and its world in the folder. Ctrl-C saves everything but real games that are still being
collected; the same command goes on.

The world keeps the sizes of its networks: world="preset=finetune" is for small ones, as the embedded worlds
are, world="preset=paper ..." for released models, on a GPU. Needs the extra "train", too.

"""
EVALUATE = """\
usage: python -m trainers.sb3 evaluate agent=PATH [key=value ...]

Scores an agent's zip. A zip holds pickled Python: load only those of people you trust.

"""
DEMO = """\
usage: python -m trainers.sb3 demo [key=value ...]

An agent plays the real game; beside it the world model imagines the same steps, anew every 50 steps.

"""


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit code."""
    commands = {"train": _train, "loop": _loop, "evaluate": _evaluate, "demo": _demo}
    if not arguments or arguments[0] in _HELP:
        print(USAGE)
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise InvalidInputError(f"unknown command {arguments[0]}: accepted are {', '.join(commands)}")
        commands[arguments[0]](arguments[1:])
    except DiamondGymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError | UnknownGameError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _train(arguments: Sequence[str]) -> None:
    if any(argument in _HELP for argument in arguments):
        print(TRAIN + options.describe(TrainSettings))
        return
    settings = options.parse(TrainSettings, arguments)
    _require_sb3()
    from trainers.sb3 import scoring, training

    print(scoring.table(training.train(settings)))
    print(f"wrote {settings.folder}/")


def _loop(arguments: Sequence[str]) -> None:
    _require_sb3()
    from trainers.sb3 import loop, scoring

    if any(argument in _HELP for argument in arguments):
        print(LOOP + options.describe(loop.LoopSettings))
        return
    settings = options.parse(loop.LoopSettings, arguments)
    print(scoring.table(loop.loop(settings)))
    print(f"wrote {settings.folder}/")


def _evaluate(arguments: Sequence[str]) -> None:
    if any(argument in _HELP for argument in arguments):
        print(EVALUATE + options.describe(EvaluateSettings))
        return
    settings = options.parse(EvaluateSettings, arguments)
    _require_sb3()
    from trainers.sb3 import evaluation, scoring

    print(scoring.table([evaluation.evaluate(settings)]))


def _demo(arguments: Sequence[str]) -> None:
    if any(argument in _HELP for argument in arguments):
        print(DEMO + options.describe(DemoSettings))
        return
    settings = options.parse(DemoSettings, arguments)
    _require_sb3()
    from trainers.sb3 import film

    film.demo(settings)


def _require_sb3() -> None:
    """Stable-Baselines3, and what its progress bar, its logs and our curves need."""
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"this needs {', '.join(missing)}: pip install 'diamond-gym[sb3]'")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

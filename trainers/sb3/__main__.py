"""`python -m trainers.sb3`: train and score agents of Stable-Baselines3."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from diamond_gym import cli
from diamond_gym.cli import Command, Commands, Subcommand
from diamond_gym.errors import MissingDependencyError
from trainers.sb3.settings import BOTH, DemoSettings, EvaluateSettings, ExportOnnxSettings, TrainSettings

PROG = "python -m trainers.sb3"
_MODULES = ("stable_baselines3", "tensorboard", "matplotlib")
TRAIN = """\
The agent learns in imagined games (with where=real in real ones) and is scored in the real game now and then.
At the end it is scored beside an untrained and a random player. The run folder gets agent.zip, score.json,
learning_curve.png, film.mp4, and logs for TensorBoard. The agent is saved every two minutes and on Ctrl-C,
SIGTERM and SIGUSR1 (after which the run continues); the same command resumes a run that was stopped.
Zips of agents, in out= and beside=, are loaded without unpickling anything, unless trust=true is given.

The commands behind the agents that come with the package:
  train game=Breakout horizon=64 num_denoising_steps=1 total_timesteps=400000
  train game=Freeway horizon=64 num_denoising_steps=1 total_timesteps=120000 lr_schedule=constant
  train game=Pong horizon=32 num_denoising_steps=1 contexts=FILE total_timesteps=825000 lr_schedule=constant
with FILE from: python -m trainers.contexts game=Pong out=FILE max_contexts=8000
Freeway's agent was stopped after 94000 steps. Pong's then continued (trainers/sb3/embedded/README.md).

To compare with the same algorithm after as many real steps (horizon, checkpoint, contexts and
num_denoising_steps have no effect there):
  train game=Breakout total_timesteps=375000 where=real out=real
  train game=Breakout total_timesteps=400000 horizon=64 num_denoising_steps=1 beside=real"""
LOOP = """\
DIAMOND's loop for any algorithm: the agent learns in imagination, then plays the real game, and the world is
trained further on the earlier data and the agent's episodes; then the next round begins. Every round writes
its agent, its episodes and its world to the folder. Ctrl-C saves everything except real games that are still
being collected; the same command resumes the loop.

The world keeps the sizes of its networks: world="preset=finetune" is for small ones like the embedded worlds,
world="preset=paper ..." for released models, on a GPU. The loop also needs the extra "train"."""
EVALUATE = """\
Scores an agent's zip. Such zips hold pickled Python, which is not loaded: a new agent is built and gets the
weights. An agent with a custom policy needs trust=true; give it for zips of people you trust only.

With where=both the agent plays on from contexts of held-out real games, in the real game and in
imagination. The rewards and ends in each are printed, in Breakout and Pong also what becomes of the balls at
its paddle. An agent that fares better in imagination has found what its world model gets wrong. (contexts and
max_game_steps have no effect there.)"""
EXPORT_ONNX = """\
Writes an agent as ONNX: agent.onnx, and agent.json, which describes it. It plays the worlds that
`python -m diamond_gym.export_onnx` writes. The page "ONNX" of the documentation describes both."""
DEMO = """\
An agent plays the real game; beside it the world model imagines the same steps, from a new real context every
50 steps. The pickled Python in the zip is not loaded; an agent with a custom policy needs trust=true, if you
trust its author."""


def _train(settings: TrainSettings) -> None:
    _require_sb3()
    from diamond_gym.evaluate.score import table
    from trainers.sb3 import training

    print(table(training.train(settings)))
    print(f"wrote {settings.folder}/")


def _evaluate(settings: EvaluateSettings) -> None:
    _require_sb3()
    from diamond_gym.evaluate import report, score
    from trainers.sb3 import evaluation

    if settings.where == BOTH:
        print(report.play_table(evaluation.compare(settings)))
    else:
        print(score.table([evaluation.evaluate(settings)]))


def _demo(settings: DemoSettings) -> None:
    _require_sb3()
    from trainers.sb3 import film

    film.demo(settings)


def _export_onnx(settings: ExportOnnxSettings) -> None:
    _require_sb3()
    from trainers.sb3.export_onnx import export

    sizes = export(settings)
    files = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    print(f"wrote {settings.out}/: {files}")


def _loop() -> Command:
    """The command `loop`; its settings are imported here because they need the extra "train"."""
    _require_sb3()
    from diamond_gym.evaluate.score import table
    from trainers.sb3 import loop

    def run(settings: loop.LoopSettings) -> None:
        print(table(loop.loop(settings)))
        print(f"wrote {settings.folder}/")

    return Command(f"{PROG} loop", LOOP, loop.LoopSettings, run)


def _require_sb3() -> None:
    """Check that Stable-Baselines3 and the packages for its logs and our curves are installed."""
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"this needs {', '.join(missing)}: pip install 'diamond-gym[sb3]'")
    from diamond_gym.evaluate.pictures import require_matplotlib

    require_matplotlib()  # it may be installed but broken, and Stable-Baselines3 imports it as well


COMMANDS = Commands(
    PROG,
    {
        "train": Subcommand(
            "an agent learns in imagination and is scored in the real game:  train game=Breakout algo=ppo",
            lambda: Command(f"{PROG} train", TRAIN, TrainSettings, _train),
        ),
        "loop": Subcommand(
            "as train, but the world also learns from the agent, in rounds:    loop game=Breakout rounds=3",
            _loop,
        ),
        "evaluate": Subcommand(
            "scores a saved agent in either world:  evaluate agent=outputs/sb3/Breakout-ppo-imagination-0",
            lambda: Command(
                f"{PROG} evaluate",
                EVALUATE,
                EvaluateSettings,
                _evaluate,
                usage_of_arguments="agent=PATH [key=value ...]",
            ),
        ),
        "export-onnx": Subcommand(
            "writes a saved agent as ONNX, for programs without Python:  export-onnx game=Breakout out=agent",
            lambda: Command(
                f"{PROG} export-onnx",
                EXPORT_ONNX,
                ExportOnnxSettings,
                _export_onnx,
                usage_of_arguments="out=FOLDER [key=value ...]",
            ),
        ),
        "demo": Subcommand(
            "films a saved agent in the real game, and what is imagined beside:  demo game=Breakout",
            lambda: Command(f"{PROG} demo", DEMO, DemoSettings, _demo),
        ),
    },
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    return cli.main(COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())

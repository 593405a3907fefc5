"""`python -m diamond_gym.export_onnx game=Breakout out=breakout_onnx`: a world model as ONNX files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diamond_gym import cli
from diamond_gym.export_onnx.settings import Settings

ABOUT = """\
Writes a world model as ONNX files, which play without Python: in a browser, for example. The folder gets
denoiser.onnx (the next frame), rew_end_model.onnx (reward and end), contexts.bin (the frames that games start
from) and world.json, which describes them. The page "ONNX" of the documentation tells how to play with them,
and how to draw the same noise, so that a seed is the same game everywhere."""


def _export(settings: Settings) -> None:
    from diamond_gym.checkpoints import load_world  # takes seconds, so arguments are checked first
    from diamond_gym.export_onnx.export import export_world
    from diamond_gym.export_onnx.graphs import require_onnx

    require_onnx()
    world = load_world(
        settings.game,
        settings.checkpoint,
        device="cpu",
        dtype="float32",
        backend="eager",
        num_denoising_steps=settings.num_denoising_steps,
        order=settings.order,
        s_churn=settings.s_churn,
        contexts=settings.contexts,
    )
    sizes = export_world(world, settings.out, dtype=settings.dtype, opset=settings.opset)
    files = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items())
    print(f"wrote {settings.out}/: {files}")


COMMAND = cli.Command(
    "python -m diamond_gym.export_onnx",
    ABOUT,
    Settings,
    _export,
    usage_of_arguments="out=FOLDER [key=value ...]",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the arguments say; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

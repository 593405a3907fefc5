"""The settings of an export."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from diamond_gym import cli
from diamond_gym.backends.names import WHY_NO_INT8
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError

MIN_OPSET, MAX_OPSET = 18, 23
"""The operator sets that PyTorch's exporter writes; every runtime of the last years reads the first."""
DTYPES = ("float32", "float16")


@dataclass
class Settings:
    """What to export, and where to.

    Raises:
        InvalidInputError: A number is out of range, or a dtype is not known.
    """

    out: Path = option(MISSING, "folder to write, which must not exist or be empty")
    game: str | None = option(None, "the game; not needed where the checkpoint names it")
    checkpoint: str = option(
        "auto", "auto, embedded, hub, hub:user/name, or a path to a checkpoint or run folder", is_path=True
    )
    dtype: str = option("float16", "how weights are stored; computations are in float32", choices=DTYPES)
    num_denoising_steps: int | None = option(
        None, "passes per frame, instead of the checkpoint's own, as for the next two", least=1
    )
    order: int | None = option(None, "order of the sampler: 1 for Euler, 2 for Heun")
    s_churn: float | None = option(None, "amount of noise added back while denoising", least=0)
    contexts: str | None = option(
        None, "file of contexts, or folder of episodes, instead of the checkpoint's own", is_path=True
    )
    opset: int = option(MIN_OPSET, f"version of ONNX's operators, {MIN_OPSET} to {MAX_OPSET}")

    def __post_init__(self) -> None:
        check_format(self.dtype, self.opset)
        cli.check(self)


def check_format(dtype: str, opset: int) -> None:
    """Raise `InvalidInputError` unless models can be written in a dtype and an opset."""
    if dtype == "int8":
        raise InvalidInputError(f"dtype=int8 is not offered, because {WHY_NO_INT8}: give dtype=float16")
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise InvalidInputError(
            f"opset must be in {MIN_OPSET}..{MAX_OPSET}, got {opset}: leave it out unless your runtime needs "
            "another"
        )

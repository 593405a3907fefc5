"""Films of frames, as files. Knows nothing of where frames come from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from diamond_gym import disk


def write_mp4(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """Writes an H.264 film.

    Args:
        path: The file; a film that was there is replaced once the new one is complete.
        frames: Pictures of one size, height and width multiples of 8 (others are enlarged a little).
        fps: Pictures per second, above 0.

    Raises:
        CacheError: The folder cannot be written.
    """
    import imageio.v2 as imageio

    with (
        disk.replacing(path) as file,
        imageio.get_writer(file, format="mp4", fps=fps, macro_block_size=8) as writer,  # pyright: ignore[reportArgumentType]
    ):
        for frame in frames:
            writer.append_data(frame)  # pyright: ignore[reportAttributeAccessIssue]

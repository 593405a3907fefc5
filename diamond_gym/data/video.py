"""Films of frames, as files: written and read. The module does not depend on the frames' origin or use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.data.source import check_frame
from diamond_gym.errors import DatasetError, InvalidInputError, MissingDependencyError, first_line, require

SUFFIXES = (".mp4", ".gif")
FORMATS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mp4",
    ".mkv": "matroska",
    ".webm": "matroska",
    ".avi": "avi",
}
"""Endings of films that can be read, and their containers. Guessed ones could be lists of other files."""
_GIF_COLOURS = 96
_GIF_STILL_SHARE = 0.8
_GIF_TOLERANCE = 16
"""Levels of 0..255 by which a pixel may change unseen: imagined frames are never quite still."""


class Film:
    """A film that is being made; its file appears when it is closed.

    H.264 is written to the disk frame by frame. The frames of a GIF are kept in memory, with a byte per
    pixel; it has few colours, and pixels that hardly change keep theirs.

    Args:
        path: The file, `.mp4` or `.gif`.
        fps: Pictures per second, above 0. GIFs keep time in hundredths of a second.
        replace: Whether the complete film replaces an existing file; if not, its name gets a number, and
            `path` changes.

    Raises:
        InvalidInputError: The file's name has another ending.
        CacheError: The folder cannot be written.
    """

    def __init__(self, path: Path, fps: float, *, replace: bool = True) -> None:
        if path.suffix not in SUFFIXES:
            raise InvalidInputError(f"a film is a file {' or '.join(SUFFIXES)}, got {str(path)!r}")
        self.path = path
        self.num_frames = 0
        self._stack = ExitStack()
        self._new: disk.NewFile | None = None
        if replace:
            file = self._stack.enter_context(disk.replacing(path))
        else:
            self._new = self._stack.enter_context(disk.adding(disk.numbered(path)))
            file = self._new.file
        self._writer: Any = _Gif(file, fps) if path.suffix == ".gif" else _mp4_writer(file, fps)
        self._stack.callback(self._writer.close)

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Add a frame, of the same size as those before.

        Height and width of an MP4 become multiples of 8: other frames are enlarged a little.
        """
        self._writer.append_data(frame)
        self.num_frames += 1

    def close(self) -> None:
        """Complete the file. Closing twice is harmless.

        Raises:
            CacheError: The file cannot be written; an existing file at its path is kept.
        """
        self._stack.close()
        self.path = self.path if self._new is None else self._new.path


class _Gif:
    """The frames of a GIF in few colours, undithered, so that pixels that hardly change cost nothing."""

    def __init__(self, file: Any, fps: float) -> None:
        self._file, self._fps = file, fps
        self._images: list[Any] = []
        self._shown: NDArray[np.uint8] | None = None

    def append_data(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        from PIL import Image

        if self._shown is not None:
            is_still = np.abs(frame.astype(np.int16) - self._shown).max(axis=2) <= _GIF_TOLERANCE
            if (
                is_still.mean() > _GIF_STILL_SHARE
            ):  # otherwise it is another scene, in which old pixels would be visible
                frame = np.where(is_still[..., None], self._shown, frame)
        self._shown = frame
        self._images.append(
            Image.fromarray(frame).quantize(_GIF_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        )

    def close(self) -> None:
        if self._images:
            first, *others = self._images
            duration = 10 * round(100 / self._fps)  # ms
            first.save(
                self._file,
                "gif",
                save_all=True,
                append_images=others,
                duration=duration,
                loop=0,
                optimize=True,
            )


def write_mp4(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: float) -> None:
    """Write an H.264 film.

    Args:
        path: The file; an existing film is replaced once the new one is complete.
        frames: Pictures of one size, height and width multiples of 8 (others are enlarged a little).
        fps: Pictures per second, above 0.

    Raises:
        CacheError: The folder cannot be written.
    """
    with disk.replacing(path) as file, _mp4_writer(file, fps) as writer:
        for frame in frames:
            writer.append_data(frame)


def _mp4_writer(file: Any, fps: float) -> Any:
    import imageio.v2 as imageio

    return imageio.get_writer(file, format="mp4", fps=fps, macro_block_size=8)  # pyright: ignore[reportArgumentType]


def require_ffmpeg() -> None:
    """Fail early when no MP4 can be written.

    Raises:
        MissingDependencyError: There is no ffmpeg.
    """
    import imageio_ffmpeg

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MissingDependencyError(f"films need ffmpeg: {first_line(error)}") from error


def read_frames(path: Path, start: float = 0.0) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """Yield the pictures of a film, each with its second, one in memory at a time.

    Lossless films in RGB (FFV1, H.264 of libx264rgb with crf 0) give exactly what was written.

    Args:
        path: The film.
        start: Skip what is before this second.

    Raises:
        DatasetError: It is missing, damaged, of another kind, or has huge pictures; the message names it.
        MissingDependencyError: PyAV is not installed.
    """
    av = require_av(path)
    with (
        untrusted.reading(path, DatasetError, "a film"),
        untrusted.opened(path) as file,
        _plainly(av),
        av.open(file, format=_container(path)) as container,
    ):
        if not container.streams.video:
            raise ValueError("it has no pictures")
        stream = container.streams.video[0]
        check_frame((stream.height, stream.width, 3), np.uint8)  # before anything is decoded
        stream.codec_context.options = {"err_detect": "explode"}  # no guesses where bits are damaged
        if start > 0:
            container.seek(int(start / stream.time_base), stream=stream)
        for second, picture in _decoded(container, stream):
            if second >= start - _EARLY / float(stream.average_rate or 1):
                yield second, picture


_EARLY = 0.5
"""Share of the time between two pictures by which one may come before the second that was asked for."""


def _decoded(container: Any, stream: Any) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("a part of it is damaged")
        with _no_damage() if stream.codec_context.name == "ffv1" else nullcontext():
            frames = packet.decode()
        for frame in frames:
            check_frame((frame.height, frame.width, 3), np.uint8)
            if frame.is_corrupt:
                raise ValueError(f"its picture at {frame.time or 0:.2f} s is damaged")
            yield float(frame.time or 0.0), frame.to_ndarray(format="rgb24")


@contextmanager
def _no_damage() -> Iterator[None]:
    """Raise `ValueError` for damage that FFmpeg only logs, and hides: a wrong checksum of FFV1."""
    import av.logging

    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as lines:
            yield
    finally:
        av.logging.set_level(before)
    if lines:
        raise ValueError(f"a picture is damaged ({lines[0][2].strip().rstrip('!')})")


@contextmanager
def _plainly(av: Any) -> Iterator[None]:
    """Turn errors of FFmpeg into its words, without numbers."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(str(error.strerror).lower()) from error


def _container(path: Path) -> str:
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"its name must end with one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def require_av(what: object) -> Any:
    """Return PyAV.

    Args:
        what: What needs it.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return require("av", "PyAV", f"reading {what}", "data")

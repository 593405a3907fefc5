"""Sections of a text that are written by a program: what stands between two comments that name them.

<!-- name -->
what is replaced
<!-- /name -->
"""

from __future__ import annotations

from pathlib import Path

from diamond_gym import files as disk
from diamond_gym.errors import InvalidInputError


def read_around(file: Path, name: str) -> tuple[str, str]:
    """The text up to the end of the first comment, and from the start of the second.

    Raises:
        InvalidInputError: The file cannot be read, or the comments are not there once each, in this order.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    for comment in (first, last):
        if text.count(comment) != 1:
            raise InvalidInputError(
                f"{file} needs the comment {comment} once, found it {text.count(comment)} times: "
                f"what stands between it and its partner is replaced"
            )
    before, _, rest = text.partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise InvalidInputError(f"{file}: the comment {last} must come after {first}")
    return before + first, last + after


def replace_section(file: Path, name: str, section: str) -> bool:
    """Puts a text between the two comments; the same text twice leaves the same file.

    Returns:
        Whether the file has changed.

    Raises:
        InvalidInputError: As `read_around` does; the file has not changed.
        CacheError: The file cannot be written.
    """
    before, after = read_around(file, name)
    text = f"{before}\n{section.strip()}\n{after}"
    if text == file.read_text(encoding="utf-8"):
        return False
    disk.write_file(file, text.encode())
    return True

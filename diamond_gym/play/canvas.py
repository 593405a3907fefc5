"""Draw a view as one picture of fixed size: header, message, and the session's picture under the help."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diamond_gym.play import text
from diamond_gym.play.pictures import Picture
from diamond_gym.play.view import Facts, View

Row = tuple[str, str]

_COLUMNS = (0.36, 0.34, 0.30)
_HELP_DIMMING = 6


@dataclass(frozen=True)
class Canvas:
    """The layout of the picture.

    Attributes:
        size: Width of the whole, and height of the session's picture.
        has_header: Whether facts and messages are above the picture.
    """

    size: int
    has_header: bool = True

    @property
    def letters(self) -> int:
        """Size of the letters."""
        return max(8, self.size // 42)

    def draw(self, view: View, help_sections: list[tuple[str, list[Row]]] | None = None) -> Picture:
        """Draw a view, with width and height multiples of 8, which films need.

        Args:
            view: The view.
            help_sections: Titles and rows of help to draw over the picture; None for no help.
        """
        picture = view.picture if help_sections is None else self._helped(view.picture, help_sections)
        if not self.has_header:
            return picture
        return np.concatenate([self._header(view), picture])

    def _header(self, view: View) -> Picture:
        num_rows = max(map(len, view.header)) + 1  # the row of the message
        line = round(1.35 * self.letters)
        height = -(-(num_rows * line + self.letters) // 8) * 8
        header = np.full((height, self.size, 3), text.BACKGROUND, np.uint8)
        top = (height - num_rows * line) // 2
        left = self.letters
        for facts, share in zip(view.header, _COLUMNS, strict=True):
            room = round(share * (self.size - self.letters)) - self.letters
            self._column(header, left, top, facts, room, line)
            left += room + self.letters
        message, size = text.fitted(view.message, self.letters, self.size - 2 * self.letters)
        text.write(header, self.letters, top + (num_rows - 1) * line, message, size, text.YELLOW)
        return header

    def _column(self, header: Picture, x: int, y: int, facts: Facts, room: int, line: int) -> None:
        for i, (name, value) in enumerate(facts):
            _, size = text.fitted(f"{name}   {value}", self.letters, room)
            after = text.write(header, x, y + i * line, name, size, text.GREY) + size // 2
            short, size = text.fitted(value, size, x + room - after)
            text.write(header, after, y + i * line, short, size, _colour(value))

    def _helped(self, picture: Picture, sections: list[tuple[str, list[Row]]]) -> Picture:
        dimmed = picture // _HELP_DIMMING
        num_lines = sum(len(rows) + 1 for _, rows in sections)
        margin = self.letters
        line = min(round(1.5 * self.letters), (self.size - 2 * margin) // num_lines)
        size = max(7, min(self.letters, round(line / 1.3)))
        keys_room = max(text.width(keys, size) for _, rows in sections for keys, _ in rows) + size
        y = margin
        for title, rows in sections:
            text.write(dimmed, margin, y, title, size, text.YELLOW)
            y += line
            for keys, what in rows:
                short, fitting = text.fitted(what, size, self.size - 2 * margin - keys_room)
                text.write(dimmed, margin, y, keys, size, text.GREEN)
                text.write(dimmed, margin + keys_room, y, short, fitting)
                y += line
        return dimmed


def _colour(value: str) -> text.Colour:
    return text.RED if "yes" in value else text.WHITE

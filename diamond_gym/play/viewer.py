"""What every kind of session needs on the screen: keys, help, screenshots, films, pictures with a header.

A viewer takes names of keys or commands and returns pictures. Windows and web pages send keys and show
pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2

from diamond_gym import files as disk
from diamond_gym.data.video import Film
from diamond_gym.errors import DiamondGymError
from diamond_gym.play import keys
from diamond_gym.play.canvas import Canvas
from diamond_gym.play.keys import Command
from diamond_gym.play.pictures import Picture
from diamond_gym.play.view import Session, View

_MESSAGE_SECONDS = 4


class Viewer:
    """A viewer of a session.

    Attributes:
        has_left: Whether the user asked to leave.
        is_fullscreen: Whether the user asked for the full screen; only windows need it.

    Args:
        session: The session to show.
        canvas: The layout.
        fps: Pictures per second, for films and for how long messages stay.
        captures: Folder of screenshots and films.
        tell: Called with a line about each file.
    """

    def __init__(
        self,
        session: Session,
        canvas: Canvas,
        *,
        fps: float,
        captures: Path,
        tell: Callable[[str], object] = print,
    ) -> None:
        self.session, self.canvas, self.fps, self.captures, self.tell = session, canvas, fps, captures, tell
        self.has_left = self.is_fullscreen = self.shows_help = False
        self.film: Film | None = None
        self._message, self._message_age = "", 0

    def press(self, key: str, *, is_repeated: bool = False) -> None:
        """Carry out the shortcut of a key that went down; other keys do nothing.

        Args:
            key: Its name, see `keys`.
            is_repeated: Whether it has been down for a while and only repeats.
        """
        shortcut = keys.find(self.session.shortcuts, key)
        if shortcut is not None and (shortcut.repeats or not is_repeated):
            self.command(shortcut.command, shortcut.value)

    def command(self, command: Command, value: float | None = None) -> None:
        """Carry out a command, or show a message that says why it is impossible."""
        try:
            if command is Command.LEAVE:
                self.has_left = True
            elif command is Command.HELP:
                self.shows_help = not self.shows_help
            elif command is Command.FULLSCREEN:
                self.is_fullscreen = not self.is_fullscreen
            elif command is Command.SCREENSHOT:
                self._screenshot()
            elif command in (Command.FILM_MP4, Command.FILM_GIF):
                self._switch_film(".mp4" if command is Command.FILM_MP4 else ".gif")
            else:
                self.session.command(command, value)
        except DiamondGymError as error:
            self.session.message = str(error)

    def advance(self, held: Sequence[str]) -> Picture:
        """Advance time by one picture, except while help is shown.

        Args:
            held: Names of the keys that are held, in the order in which they were pressed.

        Returns:
            The picture to show, uint8 (h, w, 3), always of the same size.
        """
        if not self.shows_help:
            self.session.advance(held)
        picture = self.picture()
        if self.film is not None:
            self.film.add(picture)
        return picture

    def view(self) -> View:
        """Return picture and facts, for pages that draw the text themselves."""
        return self.session.view()

    def picture(self) -> Picture:
        """Draw the whole picture, header and help included."""
        self._age_message()
        return self.canvas.draw(self.view(), self.help() if self.shows_help else None)

    def help(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the help: titles with rows of keys and what they do."""
        sections = [
            ("Game keys", self.session.instructions()),
            ("Keys", keys.explain(self.session.shortcuts)),
        ]
        return [(title, rows) for title, rows in sections if rows]

    def close(self) -> str:
        """Complete films and recordings; return a line about what was saved.

        Raises:
            CacheError: Something cannot be written.
        """
        try:
            self._end_film()
        finally:
            kept = self.session.close()
        return kept

    def start_film(self, path: Path, *, replace: bool = True) -> None:
        """Start a film of everything that is shown; see `Film`.

        Raises:
            DiamondGymError: The file cannot be written, or its name is not that of a film.
        """
        disk.prepare_folder(path.parent)
        self.film = Film(path, self.fps, replace=replace)

    def _screenshot(self) -> None:
        path = self._new_file(".png")
        picture = self.canvas.draw(self.view())
        _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._report(disk.add_file(disk.numbered(path), png.tobytes()))

    def _switch_film(self, suffix: str) -> None:
        if self.film is not None:
            self._end_film()
            return
        path = self._new_file(suffix)
        self.start_film(path, replace=False)
        self.session.message = f"filming {path.name}"

    def _end_film(self) -> None:
        film, self.film = self.film, None
        if film is not None:
            film.close()
            self._report(film.path)

    def _report(self, path: Path) -> None:
        self.session.message = f"saved {path.name}"
        self.tell(f"saved {path.resolve()}")

    def _new_file(self, suffix: str) -> Path:
        stem = f"{self.session.title}-{time.strftime('%Y%m%d-%H%M%S')}".replace("/", "-")
        return self.captures / f"{stem}{suffix}"

    def _age_message(self) -> None:
        """Clear a message after a while."""
        if self.session.message != self._message:
            self._message, self._message_age = self.session.message, 0
        self._message_age += 1
        if self._message_age > _MESSAGE_SECONDS * self.fps:
            self.session.message = self._message = ""

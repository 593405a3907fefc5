"""`python -m diamond_gym.play game=Breakout`: a window or a web page to play in a world model."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diamond_gym import cli
from diamond_gym.play.settings import ABOUT, POSITIONAL, Options, Settings, WebOptions, settings_of

if TYPE_CHECKING:
    from diamond_gym.play.view import Session
    from diamond_gym.play.viewer import Viewer


def _export_minari() -> cli.Command:
    from diamond_gym.play import export_minari

    return export_minari.COMMAND


COMMAND = cli.Command(
    "python -m diamond_gym.play",
    ABOUT,
    Options,
    lambda options: _show(settings_of(options)),
    positional=POSITIONAL,
    usage_of_arguments="[GAME or PATH] [key=value ...]",
)


def _program(arguments: Sequence[str]) -> int | None:
    if arguments[:1] == ["export-minari"]:
        return _export_minari()(arguments[1:])
    return COMMAND(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play as the arguments say; return the exit code."""
    return cli.main(_program, arguments)


def _show(settings: Settings) -> None:
    """Play in a window, or serve the page; episodes and films are saved however it ends."""
    # Threads that busy-wait stall each other when anything else runs: pictures took seconds.
    # It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if settings.web is None:
        _open_window(settings)
    else:
        _serve(settings, settings.web)


def _open_window(settings: Settings) -> None:
    # These imports take seconds, so arguments are checked first.
    from diamond_gym.play import window
    from diamond_gym.play.pacing import Pacing

    screen = window.open_window("DIAMOND", settings.fps)  # first: it may fail, and loading is slow
    viewer = _open_viewer(settings)
    screen.title = f"DIAMOND {viewer.session.title}"
    pacing = Pacing(settings.fps)
    try:
        if settings.film is not None:
            viewer.start_film(settings.film)
        window.run(viewer, screen, pacing, settings.num_frames)
    except KeyboardInterrupt:
        print()  # the terminal's line begins with ^C
        raise
    finally:
        kept = viewer.close()
        print(f"{kept}\n{pacing}" if kept else pacing)


def _serve(settings: Settings, web: WebOptions) -> None:
    from diamond_gym.play.web import extra

    extra.check_installed()
    from diamond_gym.play.web import server

    listener = server.listen(web.host, web.port)  # first: it may fail, and loading is slow
    from diamond_gym.play.web.game import Game

    with server.serving(listener, web.host) as served:
        try:
            open_viewer = _opener(settings)
            game = Game(
                open_viewer, served.controls, served, fps=settings.fps, num_frames=settings.num_frames
            )
            print(f"play at {served.url} (Ctrl-C ends)", flush=True)
            try:
                game.run()
            finally:
                game.close()
        except KeyboardInterrupt:
            print()  # the terminal's line begins with ^C
            raise


def _opener(settings: Settings) -> Callable[[], Viewer]:
    """Return a function that opens viewers; each visit has a film of its own."""
    visits = itertools.count(1)

    def open_viewer() -> Viewer:
        viewer, visit, film = _open_viewer(settings), next(visits), settings.film
        if film is not None:
            viewer.start_film(film if visit == 1 else film.with_stem(f"{film.stem}-{visit}"))
        return viewer

    return open_viewer


def _open_viewer(settings: Settings) -> Viewer:
    from diamond_gym.play import start
    from diamond_gym.play.canvas import Canvas
    from diamond_gym.play.viewer import Viewer

    is_playing = settings.dataset_mode is None
    session: Session = start.play_session(settings) if is_playing else start.dataset_browser(settings)
    return Viewer(
        session, Canvas(settings.size, settings.has_header), fps=settings.fps, captures=settings.captures
    )


if __name__ == "__main__":
    sys.exit(main())

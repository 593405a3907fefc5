"""`python -m diamond_gym.play game=Breakout`: a window into a world model."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from diamond_gym.errors import DiamondGymError, InvalidInputError, UnknownGameError
from diamond_gym.play.settings import Settings, parse


def main(arguments: Sequence[str]) -> int:
    """Plays as the arguments say; the exit code is 0, 1 for a failure, 2 for a wrong argument."""
    try:
        if arguments[:1] == ["export-minari"]:
            return _export(arguments[1:])
        _show(parse(arguments))
        return 0
    except DiamondGymError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError | UnknownGameError) else 1


def _export(arguments: Sequence[str]) -> int:
    from diamond_gym.play import export_minari

    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(export_minari.usage())
    else:
        print(export_minari.export(arguments))
    return 0


def _show(settings: Settings) -> None:
    """Opens a window and leaves it again; what was played or filmed is kept, whatever ends it."""
    # Threads that spin while they wait stall each other when anything else runs: seconds a picture were seen.
    # It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Seconds of imports, which a typing error need not wait for.
    from diamond_gym.play import start, window
    from diamond_gym.play.canvas import Canvas
    from diamond_gym.play.pacing import Pacing
    from diamond_gym.play.view import Session
    from diamond_gym.play.viewer import Viewer

    screen = window.open_window("DIAMOND", settings.fps)  # first: without one nothing needs to be loaded
    is_playing = settings.dataset_mode is None
    session: Session = start.play_session(settings) if is_playing else start.dataset_browser(settings)
    screen.title = f"DIAMOND {session.title}"
    canvas = Canvas(settings.size, settings.has_header)
    viewer = Viewer(session, canvas, fps=settings.fps, captures=settings.captures)
    pacing = Pacing(settings.fps)
    try:
        if settings.film is not None:
            viewer.start_film(settings.film)
        window.run(viewer, screen, pacing, settings.num_frames)
    except KeyboardInterrupt:
        print()
    finally:
        kept = viewer.close()
        print(f"{kept}\n{pacing}" if kept else pacing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

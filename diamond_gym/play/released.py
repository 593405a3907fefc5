"""The choice of a published world model, by number or name."""

from __future__ import annotations

from collections.abc import Callable

from diamond_gym.errors import InvalidInputError
from diamond_gym.registration import ATARI_100K, game_name

_PER_LINE = 4


def menu() -> str:
    """Return the games of published world models, numbered from 1."""
    entries = [f"{i:2} {game:16}" for i, game in enumerate(ATARI_100K, 1)]
    lines = ["".join(entries[i : i + _PER_LINE]).rstrip() for i in range(0, len(entries), _PER_LINE)]
    return "\n".join(lines)


def choose(choice: str) -> str:
    """Return the game of a number or a name.

    Raises:
        InvalidInputError: There is no such number, or no published world model of the game.
        UnknownGameError: There is no such game.
    """
    text = choice.strip()
    if text.isdecimal():
        if not 1 <= int(text) <= len(ATARI_100K):
            raise InvalidInputError(f"released models are numbered 1 to {len(ATARI_100K)}, got {text}")
        return ATARI_100K[int(text) - 1]
    game = game_name(text)
    if game not in ATARI_100K:
        raise InvalidInputError(
            f"no model of {game} has been released; there are those of {', '.join(ATARI_100K)}"
        )
    return game


def ask(read: Callable[[str], str] = input, write: Callable[[str], object] = print) -> str:
    """Show the menu and ask until a game is chosen.

    Raises:
        InvalidInputError: There is no terminal to ask on.
    """
    write(menu())
    while True:
        try:
            return choose(read(f"number or name (1-{len(ATARI_100K)}): "))
        except (InvalidInputError, ValueError) as error:
            write(str(error))
        except EOFError:
            raise InvalidInputError(
                "which released model? give --pretrained and a number or a name, such as --pretrained Pong"
            ) from None

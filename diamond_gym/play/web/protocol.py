"""The messages between page and server.

The page sends JSON objects of at most `MAX_MESSAGE_BYTES`: `{"type": "down", "key": "a"}` and the other kinds
below. The server answers with JSON objects and, after each one of type "view", its picture as a binary PNG.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np

from diamond_gym.envs.rendering import enlarge
from diamond_gym.errors import InvalidInputError
from diamond_gym.play.pictures import Picture
from diamond_gym.play.view import View
from diamond_gym.world.action_space import MAX_PARTS

MAX_MESSAGE_BYTES = 1024
MAX_KEY_LETTERS = 16
_MAX_BLOCK = 64
_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
"""For such pictures this takes half the time of OpenCV's other ways and a quarter of the default's bytes."""


class Kind(StrEnum):
    """The kinds of messages of a page.

    DOWN, UP and PRESS have a `key`: it is held from now on, no longer, or was only tapped for its command.
    SLIDE gives the continuous part `number` of the action the value `x`; POINT has the place `x`, `y` of the
    mouse or finger on the picture, LIFT ends it. RELEASE releases all keys and puts all parts to rest, SIT
    asks for the player's seat, SHOWN has the `number` of a picture that was drawn.
    """

    DOWN = "down"
    UP = "up"
    PRESS = "press"
    SLIDE = "slide"
    POINT = "point"
    LIFT = "lift"
    RELEASE = "release"
    SIT = "sit"
    SHOWN = "shown"


@dataclass(frozen=True)
class Message:
    """A message of a page.

    Attributes:
        kind: Its kind.
        key: Name of a key as in `play.keys`; "" where the kind has none.
        number: Number of a picture, or of a part of an action; at least 0, and 0 where the kind has none.
        x: Value of a part, or place from the left in [0, 1].
        y: Place from the top in [0, 1].
    """

    kind: Kind
    key: str = ""
    number: int = 0
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A picture with its facts, encoded for sending.

    Attributes:
        number: Counts pictures from 1.
        facts: JSON of type "view".
        png: The picture, without loss.
    """

    number: int
    facts: str
    png: bytes


def parse(text: str) -> Message:
    """Parse a message of a page.

    Raises:
        InvalidInputError: It is not a message.
    """
    fields = _object(text)
    try:
        kind = Kind(fields.get("type"))
    except ValueError:
        raise InvalidInputError(
            f"type must be one of {', '.join(Kind)}, got {_short(fields.get('type'))}"
        ) from None
    if kind in (Kind.DOWN, Kind.UP, Kind.PRESS):
        return Message(kind, key=_key(fields.get("key")))
    if kind is Kind.SLIDE:
        return Message(kind, number=_number(fields, "part", MAX_PARTS - 1), x=_real(fields, "value"))
    if kind is Kind.POINT:
        return Message(kind, x=_place(fields, "x"), y=_place(fields, "y"))
    if kind is Kind.SHOWN:
        return Message(kind, number=_number(fields, "number"))
    return Message(kind)


def say(kind: str, **fields: object) -> str:
    """Encode a message to a page as JSON."""
    return json.dumps({"type": kind, **fields})


def frame(number: int, view: View, *, shows_help: bool) -> Frame:
    """Encode a view.

    PNG keeps every pixel, and the page enlarges pictures without smoothing. Most pictures are enlarged
    frames and are sent in the frame's size: that takes less time and fewer bytes than a JPEG of the whole.
    """
    facts = say("view", number=number, header=view.header, message=view.message, shows_help=shows_help)
    return Frame(number, facts, _png(reduced(view.picture)))


def reduced(picture: Picture) -> Picture:
    """Reduce every block of equal pixels to one pixel, with the largest possible blocks."""
    side = math.gcd(*picture.shape[:2])
    for block in range(_MAX_BLOCK, 1, -1):
        if side % block == 0 and np.array_equal(picture[::block], picture[block - 1 :: block]):
            small = picture[::block, ::block]
            if np.array_equal(enlarge(small, block), picture):
                return small
    return picture


def _png(picture: Picture) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, png = cv2.imencode(".png", bgr, _FAST)
    return np.asarray(png).tobytes()


def _object(text: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInputError(f"a message must be a JSON object, got {_short(text)}") from None
    if not isinstance(fields, dict):
        raise InvalidInputError(f"a message must be a JSON object, got {_short(text)}")
    return fields


def _key(key: object) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LETTERS:
        raise InvalidInputError(f"key must be a name of 1 to {MAX_KEY_LETTERS} letters, got {_short(key)}")
    return key


def _number(fields: dict[str, object], name: str, most: int | None = None) -> int:
    number = fields.get(name)
    is_index = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    if not is_index or (most is not None and number > most):
        accepted = "of at least 0" if most is None else f"in 0..{most}"
        raise InvalidInputError(f"{name} must be an integer {accepted}, got {_short(number)}")
    return number


def _real(fields: dict[str, object], name: str) -> float:
    number = fields.get(name)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not abs(number) <= sys.float_info.max:  # JSON has no limit, and Python reads NaN
        raise InvalidInputError(f"{name} must be a finite number, got {_short(number)}")
    return float(number)


def _place(fields: dict[str, object], name: str) -> float:
    place = _real(fields, name)
    if not 0 <= place <= 1:
        raise InvalidInputError(f"{name} must be in [0, 1], got {place:g}")
    return place


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

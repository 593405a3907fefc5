"""The commands of a viewer, their keys, and the keys of the game.

Keys are named by their character ("m", ".", " ") or by "enter", "escape", "up", "down", "left", "right",
"pageup", "pagedown", "f1" and so on, with "ctrl+" before them where Control is held. The module knows
neither windows nor browsers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diamond_gym.envs.games import keys_to_action
from diamond_gym.world.action_space import ActionSpace


class Command(StrEnum):
    """Everything that a person can ask for besides the game's actions."""

    LEAVE = "leave"
    HELP = "help"
    FULLSCREEN = "fullscreen"
    SCREENSHOT = "screenshot"
    FILM_MP4 = "film_mp4"
    FILM_GIF = "film_gif"
    # games
    RESET = "reset"
    CONTROLLER = "controller"
    PAUSE = "pause"
    STEP = "step"
    LONGER_HORIZON = "longer_horizon"
    SHORTER_HORIZON = "shorter_horizon"
    NEXT_PLACE = "next_place"
    PREVIOUS_PLACE = "previous_place"
    SAVE = "save"
    LOAD = "load"
    IMAGINE = "imagine"
    COMPARE = "compare"
    STRIP = "strip"
    DENOISING_STEPS = "denoising_steps"
    ORDER = "order"
    MORE_CHURN = "more_churn"
    LESS_CHURN = "less_churn"
    # recorded episodes
    NEXT_DATASET = "next_dataset"
    NEXT_EPISODE = "next_episode"
    PREVIOUS_EPISODE = "previous_episode"
    FORWARD = "forward"
    BACK = "back"
    FORWARD_TEN = "forward_ten"
    BACK_TEN = "back_ten"
    FIRST = "first"


@dataclass(frozen=True)
class Shortcut:
    """The keys of a command.

    Attributes:
        keys: Names of keys, any of which gives the command.
        command: The command.
        text: What it does, in a few words.
        value: A number that the command takes; None for none.
        repeats: Whether it repeats while its key is held.
    """

    keys: tuple[str, ...]
    command: Command
    text: str
    value: float | None = None
    repeats: bool = False


_GENERAL = (
    Shortcut(("p",), Command.SCREENSHOT, "screenshot (PNG)"),
    Shortcut(("r",), Command.FILM_MP4, "start, stop a film (MP4)"),
    Shortcut(("g",), Command.FILM_GIF, "start, stop a film (GIF)"),
    Shortcut(("f", "f11"), Command.FULLSCREEN, "fullscreen"),
    Shortcut(("h", "f1"), Command.HELP, "this help"),
    Shortcut(("escape",), Command.LEAVE, "leave"),
)

_PLAY = (
    Shortcut(("enter",), Command.RESET, "reset"),
    Shortcut(("m",), Command.CONTROLLER, "policy / human"),
    Shortcut(("up",), Command.LONGER_HORIZON, "imagination horizon +1", repeats=True),
    Shortcut(("down",), Command.SHORTER_HORIZON, "imagination horizon -1", repeats=True),
    Shortcut(("right",), Command.NEXT_PLACE, "world model > real (test) > real (train)"),
    Shortcut(("left",), Command.PREVIOUS_PLACE, "the other way round"),
    Shortcut((".",), Command.PAUSE, "pause"),
    Shortcut(("e",), Command.STEP, "one step while paused", repeats=True),
    Shortcut(("s", "ctrl+s", "f5"), Command.SAVE, "save the state"),
    Shortcut(("l", "f9"), Command.LOAD, "return to the saved state"),
    Shortcut(("i",), Command.IMAGINE, "imagine from this real frame"),
    Shortcut(("c",), Command.COMPARE, "real and imagined side by side"),
    Shortcut(("t",), Command.STRIP, "how the frame came out of noise"),
    *(Shortcut((str(n),), Command.DENOISING_STEPS, "denoising steps", value=float(n)) for n in range(1, 10)),
    Shortcut(("o",), Command.ORDER, "sampler: Euler / Heun"),
    Shortcut(("+", "="), Command.MORE_CHURN, "churn +0.1"),
    Shortcut(("-",), Command.LESS_CHURN, "churn -0.1"),
)

DATASET_SHORTCUTS = (
    Shortcut(("m",), Command.NEXT_DATASET, "next dataset"),
    Shortcut(("up",), Command.NEXT_EPISODE, "next episode", repeats=True),
    Shortcut(("down",), Command.PREVIOUS_EPISODE, "previous episode", repeats=True),
    Shortcut(("right",), Command.FORWARD, "next time step", repeats=True),
    Shortcut(("left",), Command.BACK, "previous time step", repeats=True),
    Shortcut(("pageup",), Command.FORWARD_TEN, "ten time steps on", repeats=True),
    Shortcut(("pagedown",), Command.BACK_TEN, "ten time steps back", repeats=True),
    Shortcut(("enter",), Command.FIRST, "first time step"),
    *_GENERAL,
)
"""The shortcuts of the dataset mode."""


def play_shortcuts(game_keys: Iterable[str]) -> tuple[Shortcut, ...]:
    """The shortcuts of the play mode, without keys that the game needs (S, where there is a DOWN)."""
    taken = set(game_keys)
    return tuple(
        replace(s, keys=tuple(key for key in s.keys if key not in taken)) for s in (*_PLAY, *_GENERAL)
    )


def find(shortcuts: Iterable[Shortcut], key: str) -> Shortcut | None:
    """Return the shortcut of a key; None if it has none."""
    return next((s for s in shortcuts if key in s.keys), None)


def explain(shortcuts: Sequence[Shortcut]) -> list[tuple[str, str]]:
    """Return a line of help for each command: its keys and what they do."""
    rows: dict[Command, tuple[list[str], str]] = {}
    for s in shortcuts:
        keys, _ = rows.setdefault(s.command, ([], s.text))
        keys.extend(s.keys)
    return [(_join(keys), text) for keys, text in rows.values()]


def _join(keys: list[str]) -> str:
    if len(keys) > 4:
        return f"{spell(keys[0])}-{spell(keys[-1])}"
    return " or ".join(map(spell, keys))


_SPELLINGS = {" ": "Space", "pageup": "PgUp", "pagedown": "PgDn", "escape": "Esc", "ctrl+s": "Ctrl+S"}


def spell(key: str) -> str:
    """Write the name of a key for people."""
    return _SPELLINGS.get(key, key.capitalize())


_SPARE_KEYS = ("w", "a", "s", "d", " ", "q", "z", "x", "b", "n", "u", "v", "y")
"""Keys for actions without names, in order; only S is also a shortcut."""


@dataclass(frozen=True)
class GameKeys:
    """The keys of the game's actions.

    Attributes:
        action_meanings: Names of the actions in order.
        combinations: Maps keys that are held together to actions.
        idle: The action without any key.
    """

    action_meanings: tuple[str, ...]
    combinations: dict[frozenset[str], int]
    idle: int

    @classmethod
    def of(cls, action_meanings: Sequence[str]) -> GameKeys:
        """Choose WASD and space for actions with the console's names, else one key per action."""
        idle = action_meanings.index("NOOP") if "NOOP" in action_meanings else 0
        named = {frozenset(keys): action for keys, action in keys_to_action(action_meanings).items()}
        if not set(named.values()) - {idle}:
            others = [action for action in range(len(action_meanings)) if action != idle]
            named = {frozenset({key}): action for key, action in zip(_SPARE_KEYS, others, strict=False)}
        combinations = {keys: action for keys, action in named.items() if action != idle}
        return cls(tuple(action_meanings), combinations, idle)

    @property
    def keys(self) -> frozenset[str]:
        """All keys that the game uses."""
        return frozenset[str]().union(*self.combinations)

    def alone(self) -> list[tuple[str, str]]:
        """All keys that the game uses, with the action of each alone: "" for none."""
        actions = [self.combinations.get(frozenset({key})) for key in self._ordered()]
        names = ["" if action is None else self.action_meanings[action] for action in actions]
        return list(zip(self._ordered(), names, strict=True))

    def _ordered(self) -> list[str]:
        return sorted(self.keys, key=_place)

    def action(self, held: Sequence[str]) -> int:
        """Return the action of the keys that are held, in the order in which they were pressed.

        Where they are no action together, it is that of as many as possible, with the latest first.
        """
        candidates = [keys for keys in self.combinations if keys <= set(held)]
        if not candidates:
            return self.idle
        age = {key: i for i, key in enumerate(held)}
        best = max(candidates, key=lambda keys: (len(keys), sorted((age[key] for key in keys), reverse=True)))
        return self.combinations[best]

    def name(self, action: int) -> str:
        """Name an action for people."""
        return self.action_meanings[action]

    def sliders(self) -> list[Slider]:
        """Return no sliders, because an action is one choice."""
        return []

    def explain(self) -> list[tuple[str, str]]:
        """Return a line for each action: its keys and its name."""
        rows = [
            (" + ".join(spell(k) for k in sorted(keys, key=_place)), self.action_meanings[action])
            for keys, action in self.combinations.items()
        ]
        return [("no key", self.action_meanings[self.idle]), *rows]


_LESS_AND_MORE = (("a", "d"), ("w", "s"), ("q", "x"), ("z", "b"), ("n", "u"), ("v", "y"))
"""Keys for a part of an action: less and more."""
MOUSE = "mouse@"
"""Beginning of the name of a "key" that is the place of the mouse while its button is held."""


def mouse_key(x: float, y: float) -> str:
    """Name the "key" of a mouse whose button is held, at a place in [0, 1]: from the left, from the top."""
    return f"{MOUSE}{x:.4f},{y:.4f}"


PART = "part@"
"""Beginning of the name of a "key" that is a slider: it gives a continuous part a value of its own."""


def part_key(part: int, value: float) -> str:
    """Name the "key" of a slider that gives a part, counted from 0, a value."""
    return f"{PART}{part},{value!r}"


@dataclass(frozen=True)
class Slider:
    """A continuous part of an action, to be set by a slider.

    Attributes:
        name: Its name.
        low: Least value.
        high: Greatest value.
        rest: The value that it has as long as nobody sets it.
    """

    name: str
    low: float
    high: float
    rest: float


def named_parts(action: Any) -> str:
    """Write the parts of an action for people."""
    return ", ".join(f"{x:.3g}" for x in np.ravel(action).tolist())


@dataclass(frozen=True)
class PartKeys:
    """The keys of actions that have several parts, or that are continuous.

    A part has two keys, less and more, of its choices or of its range; without a key it rests at choice 0 (of
    an odd number of choices, at the middle one), or at the number nearest to 0. A button, with two choices,
    has one key. Of continuous parts, the first is also the mouse's place from left to right while its button
    is held, the second from top to bottom; each can have a slider, which says where it rests.

    Attributes:
        space: The action space.
        action_meanings: Names of the parts.
    """

    space: ActionSpace
    action_meanings: tuple[str, ...]

    @property
    def keys(self) -> frozenset[str]:
        """All keys that the game uses."""
        return frozenset(key for key, _, _ in self._each())

    @property
    def idle(self) -> NDArray[Any]:
        """The action without any key."""
        if self.space.is_continuous:
            return self.space.idle
        choices = np.array(self.space.choices).reshape(self.space.shape)
        return np.where(choices % 2, choices // 2, 0)

    def alone(self) -> list[tuple[str, str]]:
        """All keys that the game uses, with the part and value that each gives."""
        return [(key, f"{self.action_meanings[part]} {value:g}") for key, part, value in self._each()]

    def action(self, held: Sequence[str]) -> NDArray[Any]:
        """Return the action of the keys, and the mouse, that are held; the latest counts."""
        act = self.idle.copy()
        flat = act.reshape(-1)
        pairs = {key: (part, value) for key, part, value in self._each()}
        for key in held:
            if key in pairs:
                part, value = pairs[key]
                flat[part] = value
            elif self.space.is_continuous:
                self._set(flat, key)
        return act

    def sliders(self) -> list[Slider]:
        """Return a slider for each continuous part."""
        space = self.space
        parts = zip(self.action_meanings, space.low, space.high, self.idle.reshape(-1).tolist(), strict=False)
        return [Slider(*part) for part in parts]  # a discrete part has no `low`

    def name(self, action: Any) -> str:
        """Name an action for people."""
        return named_parts(action)

    def explain(self) -> list[tuple[str, str]]:
        """Return a line for each key, and for the mouse."""
        rows = [("no key", self.name(self.idle))]
        rows += [(spell(key), meaning) for key, meaning in self.alone()]
        if self.space.is_continuous:
            axes = self.action_meanings[0] + " left to right"
            axes += f", {self.action_meanings[1]} top to bottom" if self.space.size > 1 else ""
            rows.append(("mouse button", axes))
        return rows

    def _set(self, flat: NDArray[Any], key: str) -> None:
        """Set continuous parts to what the mouse or a slider says; other keys do nothing."""
        low, high = (bound.reshape(-1) for bound in self.space.bounds)
        if key.startswith(MOUSE):
            place = np.array(key.removeprefix(MOUSE).split(","), np.float32)[: len(flat)]
            near, far = low[: len(place)], high[: len(place)]
            flat[: len(place)] = near + place * (far - near)
        elif key.startswith(PART):
            part, value = key.removeprefix(PART).split(",")
            if int(part) < len(flat):
                flat[int(part)] = np.clip(float(value), low[int(part)], high[int(part)])

    def _each(self) -> list[tuple[str, int, float]]:
        """Each key with its part and the value that it gives it."""
        low, high = (bound.reshape(-1).tolist() for bound in self.space.bounds)
        if all(n == 2 for n in self.space.choices) and self.space.choices:
            return [(key, part, 1) for part, key in zip(range(self.space.size), _SPARE_KEYS, strict=False)]
        rest = self.idle.reshape(-1).tolist()
        found = []
        for part, (less, more) in zip(range(self.space.size), _LESS_AND_MORE, strict=False):
            found += [(less, part, low[part])] if low[part] < rest[part] else []
            found += [(more, part, high[part])]
        return found


def keys_of(space: ActionSpace, action_meanings: Sequence[str]) -> GameKeys | PartKeys:
    """Choose the keys of a world's actions."""
    return GameKeys.of(action_meanings) if space.is_discrete else PartKeys(space, tuple(action_meanings))


def _place(key: str) -> int:
    return _SPARE_KEYS.index(key)

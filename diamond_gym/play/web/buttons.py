"""The keys of a game for the page and, for people without a keyboard, its buttons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from diamond_gym.play.keys import Command, Shortcut, spell
from diamond_gym.play.viewer import Viewer
from diamond_gym.play.web import protocol

Button = dict[str, object]

_GROUPS: dict[str, dict[Command, str]] = {
    "Game": {
        Command.RESET: "Reset",
        Command.PAUSE: "Pause",
        Command.STEP: "One step",
        Command.CONTROLLER: "Policy / human",
        Command.PREVIOUS_PLACE: "Back a place",
        Command.NEXT_PLACE: "Next place",
        Command.SAVE: "Save",
        Command.LOAD: "Load",
    },
    "Imagination": {
        Command.IMAGINE: "Imagine on",
        Command.COMPARE: "Compare",
        Command.STRIP: "Denoising strip",
        Command.SHORTER_HORIZON: "Horizon -",
        Command.LONGER_HORIZON: "Horizon +",
    },
    "Sampler": {
        Command.ORDER: "Euler / Heun",
        Command.LESS_CHURN: "Churn -",
        Command.MORE_CHURN: "Churn +",
    },
    "Denoising steps": {Command.DENOISING_STEPS: ""},
    "Episodes": {
        Command.NEXT_DATASET: "Next dataset",
        Command.PREVIOUS_EPISODE: "Episode -",
        Command.NEXT_EPISODE: "Episode +",
        Command.FIRST: "First step",
        Command.BACK_TEN: "Ten back",
        Command.BACK: "Step back",
        Command.FORWARD: "Step on",
        Command.FORWARD_TEN: "Ten on",
    },
    "Screen": {
        Command.SCREENSHOT: "Screenshot",
        Command.FILM_MP4: "Film MP4",
        Command.FILM_GIF: "Film GIF",
        Command.FULLSCREEN: "Fullscreen",
        Command.HELP: "Help",
        Command.LEAVE: "Leave",
    },
}
"""Titles and labels; a command with an empty label shows its number."""


def introduction(viewer: Viewer) -> str:
    """Make the message of type "game", with everything that the page shows besides pictures."""
    shortcuts = viewer.session.shortcuts
    return protocol.say(
        "game",
        title=viewer.session.title,
        held_keys=viewer.session.held_keys(),
        sliders=[asdict(slider) for slider in viewer.session.sliders()],
        shortcuts={key: s.command for s in shortcuts for key in s.keys},
        groups=[
            {"title": title, "buttons": buttons}
            for title in _GROUPS
            if (buttons := list(_buttons(title, shortcuts)))
        ],
        help=viewer.help(),
        has_header=viewer.canvas.has_header,
    )


def _buttons(title: str, shortcuts: tuple[Shortcut, ...]) -> Iterator[Button]:
    for command, label in _GROUPS[title].items():
        for shortcut in shortcuts:
            if shortcut.command is command and shortcut.keys:
                yield _button(shortcut, label or f"{shortcut.value:g}")


def _button(shortcut: Shortcut, label: str) -> Button:
    key = shortcut.keys[0]
    hint = f"{shortcut.text} ({spell(key)})"
    return {
        "key": key,
        "command": shortcut.command,
        "label": label,
        "hint": hint,
        "repeats": shortcut.repeats,
    }

"""The numbers as a table for people and as JSON for programs. Measures nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from diamond_gym.evaluate.bounces import AFTER_BOUNCE
from diamond_gym.evaluate.measure import shown_steps
from diamond_gym.files import write_file

_DIGITS = {"psnr": 2, "ssim": 4, "drift": 2, "spread": 2, "error": 2}
"""Decimals by the name of a number, or its last part; all other numbers are shares."""
_NOT_SHOWN = ("_frames", "_of_mean_mse")


def table(result: dict[str, Any]) -> str:
    """Format the numbers as text."""
    rows = result["steps"]
    names = [name for name in rows[0] if not name.endswith(_NOT_SHOWN)]
    body = [[_cell(name, rows[step - 1][name]) for name in names] for step in shown_steps(len(rows))]
    widths = [max(len(line[i]) for line in [names, *body]) for i in range(len(names))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in [names, *body]
    ]
    return "\n".join([*lines, *_events(result), _returns(result["returns"], len(rows)), *_behaviour(result)])


def _events(result: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("reward", "end"):
        s = result[kind]
        lines.append(
            f"{kind:6} precision {s['precision']:.3f}  recall {s['recall']:.3f}  F1 {s['f1']:.3f}  "
            f"confusion (real x predicted, classes {s['classes']}) {np.asarray(s['confusion']).tolist()}"
        )
    return lines


def _returns(r: dict[str, Any], horizon: int) -> str:
    return (
        f"return over {horizon} steps: real {r['real_mean']:.3f}, imagined {r['imagined_mean']:.3f}, bias "
        f"{r['bias']:+.3f}, correlation {r['correlation']:.2f}, mean absolute difference "
        f"{r['mean_absolute_difference']:.3f}"
    )


def _behaviour(result: dict[str, Any]) -> list[str]:
    a, spread, overlooked = result["actions"], result["spread"], result["overlooked_ends"]
    shown = ", ".join(f"{spread[step - 1]:.2f} at {step}" for step in shown_steps(len(spread)))
    return [
        f"closed loop: {play(result['closed_loop'])}",
        f"random play: {play(result['random_play'])}",
        *([f"single steps right: {single_steps(result)}"] if result["single_steps"] else []),
        *([f"{AFTER_BOUNCE} steps after: {bounces(result)}"] if result["bounces"] else []),
        f"ends overlooked: {_share(overlooked['share'])} of {overlooked['starts']}",
        f"actions: effect correlates {a['correlation']:.2f} with the real one, is {a['gain']:.2f} times as "
        f"large, {_share(a['told_apart'])} of pairs told apart ({a['starts']} starts)",
        f"spread over noise, levels: {shown}",
    ]


def single_steps(result: dict[str, Any]) -> str:
    """Format how often single predictions are right, by what happens in them."""
    shares = (
        f"{kind} {_given(row['right'])} of {row['frames']}" for kind, row in result["single_steps"].items()
    )
    return ", ".join(shares)


def bounces(result: dict[str, Any]) -> str:
    """Format where the ball is some steps after an imagined bounce, by its kind."""
    shares = (
        f"{kind} {_given(row['right'])} (there {_given(row['there'])}) of {row['starts']}"
        for kind, row in result["bounces"].items()
    )
    return ", ".join(shares)


def _given(share: float | None) -> str:
    return "-" if share is None else _share(share)


def play(r: dict[str, Any]) -> str:
    """Format what a player met in the real and the imagined game."""
    worlds = (
        f"{name} {number(r[name]['won'], 1)} won, {number(r[name]['lost'], 1)} lost, "
        f"{number(r[name]['ends'], 1)} ends"
        for name in ("real", "imagined")
    )
    shown = f"per 1 000 steps {'; '.join(worlds)} ({r['starts']} starts, up to {r['horizon']} steps)"
    fates = [
        f"{name} {_fates(r[name]['at_paddle'])}" for name in ("real", "imagined") if r[name]["at_paddle"]
    ]
    return shown + (f"; balls at the paddle: {'; '.join(fates)}" if fates else "")


def play_table(r: dict[str, Any]) -> str:
    """Format what a player met in both worlds as a table, a line each."""
    names = ["won", "lost", "ends"]
    rows = {name: [number(r[name][key], 1) for key in names] for name in ("real", "imagined")}
    if r["real"]["at_paddle"]:
        names += ["balls", "lost", "returned", "vanished"]
        for name, row in rows.items():
            fates = r[name]["at_paddle"]
            row += [str(fates["balls"]), *(_given(fates[fate]) for fate in names[4:])]
    lines = [_row(name, row) for name, row in ({"": names} | rows).items()]
    shown = f"won, lost and ends: per 1 000 steps; {r['starts']} starts, up to {r['horizon']} steps each"
    return "\n".join([*lines, shown + ("; balls: those at the paddle" if len(names) > 3 else "")])


def _row(name: str, cells: list[str]) -> str:
    return f"{name:8}" + "".join(f"{cell:>10}" for cell in cells)


def _fates(at_paddle: dict[str, Any]) -> str:
    shares = ", ".join(f"{_given(at_paddle[fate])} {fate}" for fate in ("lost", "returned", "vanished"))
    return f"{shares} of {at_paddle['balls']}"


def write_json(result: Any, path: Path) -> None:
    """Write the numbers; NaN becomes null."""
    write_file(path, json.dumps(_plain(result), indent=1, allow_nan=False).encode() + b"\n")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, int | np.integer):
        return str(value)
    first, _, last = name.partition("_")
    digits = _DIGITS.get(first, _DIGITS.get(last))
    return _share(value) if digits is None else "-" if math.isnan(value) else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float | None, digits: int) -> str:
    """Format a number with some decimals; None and NaN as a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def _plain(value: Any) -> Any:
    """Convert a value to types of JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

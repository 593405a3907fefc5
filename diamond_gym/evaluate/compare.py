"""`python -m diamond_gym.evaluate.compare fidelity/fidelity.json diamond_gym/weights/Breakout`: still true?

A new measurement is compared with a model card. Other machines add in another order, so numbers may differ a
little: each kind has its tolerance.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from diamond_gym import cli, untrusted
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.card import kept, read_result

TOLERANCES = {
    **{"psnr": 0.3, "ssim": 0.005, "drift": 0.3, "spread": 0.5, "error": 0.5, "f1": 0.03, "mean": 0.1},
    **dict.fromkeys(("won", "lost", "ends"), 8.0),
}
"""Tolerances by the name of a number, or the first or last part of it."""
OTHER_TOLERANCE = 0.06
"""Tolerance of all other numbers: shares and correlations."""
ERROR_SHARE = 0.2
"""Errors in pixels are means with few large values, balls that went elsewhere: they differ by this share."""
_COMPARED = (
    *("steps", "reward", "end", "returns", "actions", "closed_loop", "random_play", "spread"),
    *("single_steps", "bounces", "overlooked_ends"),
)
_SAME = ("num_starts", "num_denoising_steps", "player")
"""Values besides the settings that must be equal, because the settings may not fix them."""
_COUNTS = ("step", "frames", "starts", "confusion", "classes")


@dataclass(frozen=True)
class Difference:
    """A number now and before.

    Attributes:
        name: Its path in the JSON.
        now: Its value now; None where there is nothing to measure.
        before: Its value before, likewise.
        tolerance: How far apart they may be.
    """

    name: str
    now: float | None
    before: float | None
    tolerance: float

    @property
    def is_large(self) -> bool:
        """Whether the difference exceeds the tolerance."""
        if self.now is None or self.before is None:
            return self.now is not self.before
        return abs(self.now - self.before) > self.tolerance


def differences(now: dict[str, Any], before: dict[str, Any]) -> list[Difference]:
    """Return the differences of all numbers of two results with the same settings.

    Raises:
        InvalidInputError: The settings differ, or the sets of numbers.
    """
    for name, value in before["settings"].items():
        if name not in ("device", "batch_size") and now["settings"].get(name) != value:
            raise InvalidInputError(
                f"{name} is {now['settings'].get(name)} now and was {value}: only the same can be compared"
            )
    for name in _SAME:
        if now[name] != before[name]:
            raise InvalidInputError(f"{name} is {now[name]} now and was {before[name]}: give the same")
    numbers, numbers_before = (dict(_numbers(result, _COMPARED)) for result in (now, before))
    if numbers.keys() != numbers_before.keys():
        missing = ", ".join(sorted(numbers.keys() ^ numbers_before.keys())[:5])
        raise InvalidInputError(f"the two results hold different numbers, such as {missing}: measure again")
    return [
        Difference(name, numbers[name], before, tolerance(name, before))
        for name, before in numbers_before.items()
    ]


def tolerance(name: str, value: float | None = None) -> float:
    """Return how far a number, which was `value`, may differ between machines."""
    parts = [part for key in name.split("/") for part in key.split("_") if key]
    known = [TOLERANCES[part] for part in parts if part in TOLERANCES]
    least = known[0] if known else OTHER_TOLERANCE
    return max(least, ERROR_SHARE * (value or 0)) if "error" in parts else least


def _numbers(result: Any, names: Sequence[str] | None = None, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(result, dict):
        for name in names or result:
            if not name.endswith(_COUNTS):
                yield from _numbers(result[name], None, f"{path}/{name}" if path else name)
    elif isinstance(result, list):
        for number, item in enumerate(result):
            label = f"step {item['step']}" if isinstance(item, dict) else str(number)
            yield from _numbers(item, None, f"{path}/{label}")
    else:
        yield path, result


@dataclass
class CompareSettings:
    """The settings of a comparison."""

    fidelity: Path = option(MISSING, "fidelity.json of an evaluation now")
    folder: Path = option(MISSING, "folder of a saved world with a model card and the numbers on it")


def _compare(settings: CompareSettings) -> int:
    """Print the differences; return 1 if there are any."""
    measured, folder = settings.fidelity, settings.folder
    found = differences(kept(read_result(measured)), read_kept(folder / "fidelity.json"))
    large = [x for x in found if x.is_large]
    for x in large:
        print(f"{x.name}: {_text(x.now)} now, {_text(x.before)} on the card (tolerance {x.tolerance:g})")
    print(f"{len(found) - len(large)} of {len(found)} numbers agree with {folder / 'fidelity.json'}")
    return 1 if large else 0


COMMAND = cli.Command(
    "python -m diamond_gym.evaluate.compare",
    """\
Compares what was measured now with the numbers on a model card, each within its tolerance. The exit code is 1
where a number differs by more, 2 where the two cannot be compared.""",
    CompareSettings,
    _compare,
    positional=("fidelity", "folder"),
    usage_of_arguments="FIDELITY_JSON FOLDER",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the differences; return the exit code."""
    return cli.main(COMMAND, arguments)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def read_kept(path: Path) -> dict[str, Any]:
    """Read the numbers beside a model card.

    Raises:
        InvalidInputError: The file is missing or of another kind.
    """
    what = "the numbers of an evaluation of this version"
    result = untrusted.read_json(path, InvalidInputError, what)
    with untrusted.reading(path, InvalidInputError, what):
        dict(_numbers(result, _COMPARED))
        return result | {"settings": dict(result["settings"])} | {name: result[name] for name in _SAME}


if __name__ == "__main__":
    sys.exit(main())

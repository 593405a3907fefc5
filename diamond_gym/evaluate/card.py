"""`python -m diamond_gym.evaluate.card fidelity/fidelity.json FOLDER`: the model card of a saved world.

Every number comes from the evaluation's JSON and from what the weights file says of its training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diamond_gym.disk import write_file
from diamond_gym.errors import DiamondGymError, InvalidInputError
from diamond_gym.evaluate.report import SHOWN_STEPS


def model_card(result: dict[str, Any], description: dict[str, Any], files: dict[str, int]) -> str:
    """The card as Markdown.

    Args:
        result: What `python -m diamond_gym.evaluate` wrote to fidelity.json.
        description: Metadata of the weights: game, action_meanings, agent, sampler, training.
        files: Size of each file in bytes.
    """
    sections = [
        f"# {description['game']}, imagined",
        _what(description, files),
        "## Fidelity",
        _fidelity(result),
        "## Training",
        _training(description["training"] or {}),
        "## Limits",
        _limits(result),
    ]
    return "\n\n".join(sections) + "\n"


def _what(description: dict[str, Any], files: dict[str, int]) -> str:
    inner = description["agent"]["denoiser"]["inner_model"]
    sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in files.items())
    return (
        f"A DIAMOND world model (arXiv 2405.12399) of the Atari game {description['game']}: "
        f'`gymnasium.make("Diamond{description["game"]}-v0")`.\n\n'
        f"- Actions: {', '.join(description['action_meanings'])}\n"
        f"- Denoiser: channels {inner['channels']}, depths {inner['depths']}, patch size "
        f"{inner['patch_size']}, {description['sampler']['num_steps_denoising']} denoising steps at play\n"
        f"- Files: {sizes}"
    )


def _fidelity(result: dict[str, Any]) -> str:
    settings = result["settings"]
    shown = [row for row in result["steps"] if row["step"] in SHOWN_STEPS]
    objects = [name.removesuffix("_within") for name in shown[0] if name.endswith("_within")]
    header = ["step", "PSNR", "PSNR of the last frame repeated", *(f"{name} within 2 px" for name in objects)]
    rows = [
        [
            str(row["step"]),
            f"{row['psnr']:.1f} dB",
            f"{row['psnr_repeat']:.1f} dB",
            *(_percent(row[f"{name}_within"]) for name in objects),
        ]
        for row in shown
    ]
    returns = result["returns"]
    return (
        f"{result['num_starts']} starts in {result['num_episodes']} held-out real episodes of the "
        f"{settings['policy']} player; the world model is fed the same actions.\n\n"
        f"{_table(header, rows)}\n\n"
        f"On {result['num_real_steps']} real transitions: reward F1 {result['reward']['f1']:.3f}, "
        f"end F1 {result['end']['f1']:.3f}. Mean return over {len(result['steps'])} steps: real "
        f"{returns['real_mean']:.2f}, imagined {returns['imagined_mean']:.2f}.\n\n"
        f"Measured by `{_command(settings)}`."
    )


def _command(settings: dict[str, Any]) -> str:
    keys = ("game", "episodes", "starts", "horizon", "seed")
    return " ".join(["python -m diamond_gym.evaluate", *(f"{key}={settings[key]}" for key in keys)])


def _training(training: dict[str, Any]) -> str:
    return "\n\n".join(_part(part, told) for part, told in training.items())


def _part(part: str, told: dict[str, Any]) -> str:
    lines = [f"### {part}", ""]
    lines += [f"- {key}: {_told(value)}" for key, value in told.items() if key != "command"]
    lines += ["", "```", *str(told.get("command")).splitlines(), "```"]
    return "\n".join(lines)


def _told(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _limits(result: dict[str, Any]) -> str:
    horizon = len(result["steps"])
    return (
        f"Predicted ends are lost lives. Beyond step {horizon} nothing was measured. The model knows only "
        "what its players showed it; states they never reached are guesses."
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Writes README.md into the folder of a saved world."""
    if len(arguments) != 2:
        print("usage: python -m diamond_gym.evaluate.card FIDELITY_JSON FOLDER", file=sys.stderr)
        return 2
    fidelity, folder = map(Path, arguments)
    try:
        card = model_card(_read_json(fidelity), _read_description(folder), _sizes(folder))
        write_file(folder / "README.md", card.encode())
    except DiamondGymError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {folder / 'README.md'}")
    return 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is not the JSON of an evaluation: {error}") from error


def _read_description(folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from diamond_gym.checkpoints.saved_world import read_saved_world

    _, description = read_saved_world(folder / "model.safetensors")
    return asdict(description)


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

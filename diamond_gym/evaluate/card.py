"""`python -m diamond_gym.evaluate.card fidelity/fidelity.json FOLDER`: the model card of a saved world.

The numbers are kept beside it in fidelity.json, for `python -m diamond_gym.evaluate.compare`. All come from
the evaluation's JSON and from the weights file's description of its training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diamond_gym import cli, untrusted
from diamond_gym.cli import option
from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate.bounces import AFTER_BOUNCE, BEFORE_BOUNCE
from diamond_gym.evaluate.measure import PLAYED_HORIZONS, RADIUS, shown_steps
from diamond_gym.evaluate.report import bounces, number, play, single_steps, write_json
from diamond_gym.evaluate.settings import Settings
from diamond_gym.files import write_file
from diamond_gym.registration import env_id

if TYPE_CHECKING:
    from diamond_gym.checkpoints import WorldDescription


def model_card(
    result: dict[str, Any] | None,
    description: dict[str, Any],
    files: dict[str, int],
    *,
    repo_id: str | None = None,
) -> str:
    """Return the card as Markdown.

    Args:
        result: The fidelity.json of `python -m diamond_gym.evaluate`; None if nothing was measured.
        description: Metadata of the weights: game, action_meanings, agent, sampler, training.
        files: Size of each file in bytes.
        repo_id: Repository of the world model on the Hugging Face Hub; None for an embedded one.
    """
    name = description["game"] or (repo_id or "A world").rpartition("/")[2]
    sections = [
        f"# {name}, imagined",
        _what(description, files),
        *([] if repo_id is None else ["## Use", _use(description["game"], repo_id)]),
        "## Fidelity",
        _not_measured(description["game"], repo_id) if result is None else _fidelity(result, repo_id),
        "## Training",
        _training(description["training"] or {}),
        "## Limits",
        _limits(result, description["game"]),
    ]
    return "\n\n".join(sections) + "\n"


def _what(description: dict[str, Any], files: dict[str, int]) -> str:
    inner, game = description["agent"]["denoiser"]["inner_model"], description["game"]
    sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in files.items())
    what = "an environment" if game is None else f"the Atari game {game}"
    num_steps = description["sampler"]["num_steps_denoising"]
    passes = f"{num_steps} denoising step{'s' * (num_steps > 1)} at play"
    objective = "objective ddpm, " if description["agent"]["denoiser"].get("objective") == "ddpm" else ""
    where = "." if game is None else f': `gymnasium.make("{env_id(game)}")`.'
    agent = description["agent"]
    actions = description["action_meanings"] or [agent.get("actions") or f"0..{agent['num_actions'] - 1}"]
    return (
        f"A DIAMOND world model (arXiv 2405.12399) of {what}{where}\n\n"
        f"- Actions: {', '.join(actions)}\n"
        f"- Denoiser: channels {inner['channels']}, depths {inner['depths']}, patch size "
        f"{inner['patch_size']}, {objective}{passes}\n"
        f"- Files: {sizes}"
    )


def _use(game: str | None, repo_id: str) -> str:
    if game is not None:
        make = [f'env = gymnasium.make("{env_id(game)}", checkpoint="hub:{repo_id}")']
    else:
        make = [
            f'diamond_gym.register_world_model("MyWorld-v0", "hub:{repo_id}")',
            'env = gymnasium.make("MyWorld-v0")',
        ]
    code = ["import gymnasium", "import diamond_gym", "", *make, "obs, info = env.reset(seed=0)"]
    snippet = "\n".join(["```python", *code, "```"])
    export = f"python -m diamond_gym.export_onnx checkpoint=hub:{repo_id} out=world_onnx"
    return f"{snippet}\n\n`{export}` writes it as ONNX files, for programs without Python."


def _not_measured(game: str | None, repo_id: str | None) -> str:
    if game is None or repo_id is None:
        return "Not measured."
    return f"Not measured; `python -m diamond_gym.evaluate game={game} checkpoint=hub:{repo_id}` does."


def _fidelity(result: dict[str, Any], repo_id: str | None) -> str:
    settings, rows = result["settings"], result["steps"]
    shown = [rows[step - 1] for step in shown_steps(len(rows))]
    objects = [name.removesuffix("_within") for name in rows[0] if name.endswith("_within")]
    return "\n\n".join(
        [
            f"{result['num_starts']} starts in {result['num_episodes']} held-out real episodes of the "
            f"{result['player']} player; the world model is fed the same actions.",
            _table(*_frames(shown)),
            *([_table(*_objects(shown, objects))] if objects else []),
            _events(result),
            f"The {result['player']} player itself, acting on imagined frames, from the same moments on: "
            f"{play(result['closed_loop'])}. Random buttons: {play(result['random_play'])}.",
            *([_single_steps(result)] if result["single_steps"] else []),
            *([_bounces(result)] if result["bounces"] else []),
            _behaviour(result),
            f"Measured by `{_command(settings, repo_id)}`, where all of it is defined (fidelity.json).",
        ]
    )


def _frames(shown: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["step", "PSNR, dB", "last frame repeated", "mean frame", "SSIM", "last frame repeated", "drift"]
    names = [("psnr", 1), ("psnr_repeat", 1), ("psnr_mean", 1), ("ssim", 3), ("ssim_repeat", 3), ("drift", 2)]
    rows = [[str(row["step"]), *(number(row[name], digits) for name, digits in names)] for row in shown]
    return header, rows


def _objects(shown: list[dict[str, Any]], objects: list[str]) -> tuple[list[str], list[list[str]]]:
    header = ["step"]
    for name in objects:
        header += [f"{name} within {RADIUS:g} px", "there", "error, px"]
    rows = []
    for row in shown:
        cells = [str(row["step"])]
        for name in objects:
            shares = (_percent(row[f"{name}_{what}"]) for what in ("within", "present"))
            cells += [*shares, number(row[f"{name}_error"], 2)]
        rows.append(cells)
    return header, rows


def _events(result: dict[str, Any]) -> str:
    reward, end, returns = result["reward"], result["end"], result["returns"]
    return (
        f"On {result['num_real_steps']} real transitions: reward F1 {number(reward['f1'], 3)} (precision "
        f"{number(reward['precision'], 3)}, recall {number(reward['recall'], 3)}), end F1 "
        f"{number(end['f1'], 3)} ({number(end['precision'], 3)}, {number(end['recall'], 3)}). Mean return "
        f"over {len(result['steps'])} steps: real {number(returns['real_mean'], 2)}, imagined "
        f"{number(returns['imagined_mean'], 2)}, correlation {number(returns['correlation'], 2)}."
    )


def _single_steps(result: dict[str, Any]) -> str:
    return (
        "Single predictions from real frames with the ball in the right place, by what it does: "
        f"{single_steps(result)}."
    )


def _bounces(result: dict[str, Any]) -> str:
    return (
        f"Imagined from {BEFORE_BOUNCE} steps before what the ball does, the ball is in the right place "
        f"(there: anywhere) {AFTER_BOUNCE} steps after it: {bounces(result)}."
    )


def _behaviour(result: dict[str, Any]) -> str:
    actions, spread, overlooked = result["actions"], result["spread"], result["overlooked_ends"]
    return (
        f"Other actions: their effect on the frame correlates {number(actions['correlation'], 2)} with the "
        f"real one and is {number(actions['gain'], 2)} times as large; {_percent(actions['told_apart'])} of "
        "pairs of actions are told apart (chance: 50 %). Other noise: a pixel's standard deviation is "
        f"{number(spread[-1], 2)} levels of 255 at step {len(spread)}. Real ends imagined from 4 steps "
        f"before that do not come: {_percent(overlooked['share'])} of {overlooked['starts']}."
    )


def _command(settings: dict[str, Any], repo_id: str | None) -> str:
    keys = ("episodes", "max_episode_steps", "starts", "horizon", "seed", "num_denoising_steps")
    defaults = Settings()
    given = {key: settings[key] for key in keys if settings[key] != getattr(defaults, key)}
    given = {"game": settings["game"], **given}
    if settings["policy"] in ("scripted", "random"):
        given["policy"] = settings["policy"]
    words = ["python -m diamond_gym.evaluate", *(f"{key}={value}" for key, value in given.items())]
    return " ".join(words if repo_id is None else [*words, f"checkpoint=hub:{repo_id}"])


def _training(training: dict[str, Any]) -> str:
    return "\n\n".join(_part(part, told) for part, told in training.items())


def _part(part: str, told: dict[str, Any]) -> str:
    lines = [f"### {part}", ""]
    lines += [f"- {key}: {_told(value)}" for key, value in told.items() if key != "command"]
    lines += ["", "```", *str(told.get("command")).splitlines(), "```"]
    return "\n".join(lines)


def _told(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _limits(result: dict[str, Any] | None, game: str | None) -> str:
    lines = [] if game is None else ["An end is a lost life or, in games without lives, the end of the game."]
    if result is not None:
        compared = len(result["steps"])
        lines.append(
            f"Frames were compared up to step {compared}, play up to step {PLAYED_HORIZONS * compared}."
        )
    lines.append("The model knows only what its players showed it; states they never reached are guesses.")
    return " ".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_card(fidelity: Path, folder: Path) -> None:
    """Write the model card and the numbers on it beside a saved world.

    Args:
        fidelity: The fidelity.json of an evaluation.
        folder: The folder of the world.

    Raises:
        InvalidInputError: The file is missing or of another kind.
        CheckpointError: The folder holds no world model.
        CacheError: The folder cannot be written.
    """
    description = asdict(read_description(folder))
    result = read_result(fidelity)
    card = model_card(result, description, sizes(folder))
    write_file(folder / "README.md", card.encode())
    write_json(kept(result), folder / "fidelity.json")


def kept(result: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a result to keep: all but single starts, steps that tables omit, and paths."""
    rows = result["steps"]
    shown = [rows[step - 1] for step in shown_steps(len(rows))]
    returns = {name: x for name, x in result["returns"].items() if name not in ("real", "imagined")}
    spread = [result["spread"][step - 1] for step in shown_steps(len(rows))]
    left_out = ("source", "seconds", "definitions")
    here = ("out", "checkpoint", "policy")  # these hold, or may hold, paths of this machine
    settings = {name: x for name, x in result["settings"].items() if name not in here}
    rest = {name: x for name, x in result.items() if name not in left_out}
    return rest | {"settings": settings, "steps": shown, "returns": returns, "spread": spread}


def read_result(path: Path) -> dict[str, Any]:
    """Read the fidelity.json of an evaluation.

    Raises:
        InvalidInputError: The file is missing or of another kind.
    """
    what = "the JSON of an evaluation of this version"
    result = untrusted.read_json(path, InvalidInputError, what)
    with untrusted.reading(path, InvalidInputError, what):
        _fidelity(result, None)
    return result


def read_description(folder: Path) -> WorldDescription:
    """Read the description in the weights of a folder.

    Raises:
        CheckpointError: The folder holds no world model.
    """
    from diamond_gym.checkpoints.saved_world import read_saved_world

    return read_saved_world(folder / "model.safetensors")[1]


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of weights and contexts."""
    return {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}


@dataclass
class CardSettings:
    """The settings of a model card."""

    fidelity: Path = option(MISSING, "fidelity.json of an evaluation")
    folder: Path = option(MISSING, "folder of the saved world, which gets README.md and fidelity.json")


def _write(settings: CardSettings) -> None:
    write_card(settings.fidelity, settings.folder)
    print(f"wrote README.md and fidelity.json to {settings.folder}/")


COMMAND = cli.Command(
    "python -m diamond_gym.evaluate.card",
    "Writes the model card of a saved world, and keeps the numbers on it.",
    CardSettings,
    _write,
    positional=("fidelity", "folder"),
    usage_of_arguments="FIDELITY_JSON FOLDER",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write README.md and fidelity.json into the folder of a saved world; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())

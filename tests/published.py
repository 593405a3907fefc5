"""The published configuration beside ours, as a table: `python -m tests.published` writes it into the docs.

The published values are in `data/published/config.json`, one for each key except the names of classes; ours
are the defaults of the trainer's dataclasses, which are those of `preset=paper`.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from diamond_gym.games import atari
from trainers.diamond.config import flat, parse

PAGE = Path(__file__).parents[1] / "docs" / "differences.md"
BEGIN, END = "<!-- table: python -m tests.published -->", "<!-- end of the table -->"


class Ours(NamedTuple):
    """Our key for a published one, and why it has another name or value."""

    key: str | None
    why: str = ""


OTHERWISE = {
    "env.train.id": Ours("game", "the game has to be named: nobody trains for days on a default"),
    "env.train.done_on_life_loss": Ours(None, "always true in training"),
    "env.train.size": Ours(None, f"always {atari.SCREEN_SIZE}"),
    "env.train.max_episode_steps": Ours(None, "always null: ALE's 108 000 raw frames"),
    "env.test.id": Ours("game", "the game of the training"),
    "env.test.done_on_life_loss": Ours(None, "always false in test games"),
    "env.test.size": Ours(None, f"always {atari.SCREEN_SIZE}"),
    "env.test.max_episode_steps": Ours("collection.test.max_episode_steps"),
    "env.keymap": Ours(None, "keys follow from the meanings of the game's actions"),
    "wandb.project": Ours("wandb.project", "a name, so that `wandb.mode=online` is enough"),
    "common.devices": Ours("common.device", "CUDA where there is one; `common.devices` is understood"),
    "common.seed": Ours("common.seed", "a run can be repeated without asking for it"),
    "common.resume": Ours(None, "`python -m trainers.diamond resume run=PATH`"),
    "training.cache_in_ram": Ours(None, "always true: episodes are kept in memory, as bytes"),
    "training.num_workers_data_loaders": Ours(None, "batches are drawn from memory, without workers"),
    "training.compile_wm": Ours(
        "training.backend",
        "true is `inductor`, which compiles the denoiser in training, too; `auto` makes imagination fast by "
        "CUDA graphs, without minutes of compiling",
    ),
    "world_model_env.num_batches_to_preload": Ours(
        None, "starts are drawn when needed, from the newest data and with the newest weights"
    ),
    "actor_critic.actor_critic_loss.backup_every": Ours(
        "actor_critic.actor_critic_loss.backup_every",
        "the same: null is `world_model_env.horizon`",
    ),
}
"""Published keys that have another name or value here, or do not exist."""


class Row(NamedTuple):
    """A line of the table."""

    key: str
    published: Any
    ours: Any
    verdict: str


@functools.cache
def published() -> dict[str, Any]:
    """Return the published values by key."""
    return json.loads((Path(__file__).parent / "recorded" / "published" / "config.json").read_text())


def rows() -> list[Row]:
    """Make a row for each published key; its verdict is "same" or the reason for a difference."""
    ours = flat(parse(["preset=paper"]))
    return [_row(key, value, ours) for key, value in published().items()]


def _row(key: str, value: Any, ours: dict[str, Any]) -> Row:
    our_key, why = OTHERWISE.get(key, Ours(key))
    if our_key is None:
        return Row(key, _shown(value), "", why)
    shown = _shown(ours[our_key]) if our_key == key else f"`{our_key}`: {_shown(ours[our_key])}"
    return Row(key, _shown(value), shown, why or ("same" if ours[our_key] == value else ""))


def _shown(value: Any) -> str:
    return "inf" if value == math.inf else json.dumps(value)


def table() -> str:
    """Format the rows in Markdown."""
    lines = ["| key | published | ours | same, or why not |", "|---|---|---|---|"]
    lines += [f"| `{row.key}` | {row.published} | {row.ours} | {row.verdict} |" for row in rows()]
    return "\n".join(lines)


def written(page: str) -> str:
    """Return the page with the current table."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))

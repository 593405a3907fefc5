"""A random player in any Gymnasium environment, recorded for `import-episodes`."""

from __future__ import annotations

import importlib
from contextlib import closing
from dataclasses import MISSING, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.wrappers import AddRenderObservation, ResizeObservation, TransformAction

from diamond_gym import cli
from diamond_gym.cli import option
from diamond_gym.data.recorder import RecordEpisodes, parse_size
from diamond_gym.errors import InvalidInputError
from diamond_gym.files import prepare_folder
from diamond_gym.players.loop import play
from diamond_gym.players.player import RandomPlayer
from diamond_gym.progress import Bar
from diamond_gym.world.action_space import ActionSpace

ABOUT = """\
A random player plays any Gymnasium environment with images; every episode becomes a file
for import-episodes. To record a player of your own, wrap the environment in your code:
diamond_gym.data.recorder.RecordEpisodes(env, FOLDER)."""


@dataclass
class RecordOptions:
    """The settings of a recording.

    Raises:
        InvalidInputError: A number is out of range.
    """

    env: str = option(
        MISSING, 'id as gymnasium.make takes it; "module:ID" imports a module of yours that registers it'
    )
    out: str = option(MISSING, "folder of the recordings; episodes that are there stay", is_path=True)
    num_steps: int = option(10_000, "steps to play; the last episode is cut there", least=1)
    seed: int = option(0, "fixes the environment and the player", least=0)
    repeat: int = option(1, "longest hold of an action by the player, in steps", least=1)
    render: bool = option(False, "record what the environment draws, not what it observes")
    size: str | None = option(None, "resize frames by area: 64, or height and width, 48x64; none keeps them")

    def __post_init__(self) -> None:
        cli.check(self)
        if self.size is not None:
            parse_size(self.size)


def record(options: RecordOptions, *, progress: bool = True) -> int:
    """Play and record.

    Returns:
        Number of recorded episodes, including the last one, which is cut.

    Raises:
        InvalidInputError: There is no such environment, or it cannot be recorded.
        CacheError: The folder cannot be written.
    """
    game = _make(options)
    prepare_folder(Path(options.out))
    recorded = RecordEpisodes(game, options.out)
    space = ActionSpace.of(game.action_space)
    first = space.first(game.action_space)
    env = recorded if space.is_continuous else _from_zero(recorded, space, first)
    player = RandomPlayer(space, options.seed, options.repeat)
    num_episodes, num_left, seed = 0, options.num_steps, options.seed
    with closing(env), Bar(total=options.num_steps, unit="step", desc="record", disable=not progress) as bar:
        while num_left:
            obs, _ = env.reset(seed=seed)
            seed = None
            player.reset()
            for _ in islice(play(env, player, obs), num_left):
                num_left -= 1
                bar.update()
            num_episodes += 1
    return num_episodes


def _from_zero(env: gymnasium.Env[Any, Any], space: ActionSpace, first: Any) -> gymnasium.Env[Any, Any]:
    """The environment with choices counted from 0."""
    return TransformAction(env, lambda act: first + act, space.to_gymnasium())


def _make(options: RecordOptions) -> gymnasium.Env[Any, Any]:
    render_mode = "rgb_array" if options.render else None
    try:
        if options.env.startswith("ALE/"):
            gymnasium.register_envs(importlib.import_module("ale_py"))
        env = gymnasium.make(options.env, render_mode=render_mode)
        env = AddRenderObservation(env) if options.render else env
        return env if options.size is None else ResizeObservation(env, parse_size(options.size))
    except (gymnasium.error.Error, ImportError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"env={options.env} cannot be made: {reason}") from error

"""One evaluation from settings to files: play the real game, imagine, measure, write and print."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diamond_gym import files as disk
from diamond_gym.checkpoints import World, load_agent, load_world
from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.evaluate import branches, heldout, measure, pictures, report
from diamond_gym.evaluate.bounces import measure_bounces, measure_single_steps
from diamond_gym.evaluate.heldout import HeldOut, Starts
from diamond_gym.evaluate.imagination import Imagined, Imaginer, predict_transitions
from diamond_gym.evaluate.settings import Settings
from diamond_gym.games.atari import num_actions
from diamond_gym.players.actor_critic import ActorCriticPlayer
from diamond_gym.players.player import PLAYER_NAMES, Player, player, usual_player
from diamond_gym.registration import game_name

DEFAULT_NUM_STARTS, LARGE_NUM_STARTS = 200, 30
LARGE = 2_000_000
"""A denoiser with more weights counts as large: on a CPU it imagines only 30 starts in reasonable time."""
BRANCHED, SPREAD, PLAYED = 2, 10, 6
"""Every N-th start is also imagined with other actions and other noise, and played from."""
NUM_SAMPLES = 4
"""Number of imaginations of a start with different noise."""
_FRAME = (3, 64, 64)


def run(settings: Settings) -> None:
    """Evaluate; write into `settings.out` and print a table.

    Raises:
        InvalidInputError: A setting names something unknown, or the policy plays another game.
        MissingDependencyError: Matplotlib or torchmetrics is not installed.
        CacheError: The folder cannot be written.
        CheckpointError: The world model is damaged, or of another game.
    """
    begin = time.perf_counter()
    out = Path(settings.out)
    pictures.require_matplotlib()
    measure.require_torchmetrics()
    game = game_name(settings.game)
    policy = find_player(settings.policy, game)
    world = _load(settings, game)
    disk.prepare_folder(out)

    held_out, starts = _play_held_out(settings, game, policy, world)
    imaginer = Imaginer(world.world_model, settings.seed, settings.batch_size)
    imagined = imaginer.future(starts)
    result = {
        **_facts(settings, game, world, held_out, starts),
        **measure.measure(game, starts, imagined),
        **measure.measure_transitions(predict_transitions(world.world_model, held_out.episodes)),
        "actions": _actions(imaginer, game, held_out, starts),
        "closed_loop": _closed_loop(imaginer, game, policy, held_out, starts),
        "random_play": _random_play(imaginer, game, held_out, starts),
        "spread": _spread(imaginer, starts, imagined),
        "single_steps": measure_single_steps(game, world.world_model, held_out.episodes, settings.seed),
        "bounces": measure_bounces(game, world.world_model, held_out.episodes, settings.seed),
        "overlooked_ends": _overlooked_ends(imaginer, held_out),
        "seconds": time.perf_counter() - begin,
    }

    report.write_json(result, out / "fidelity.json")
    pictures.write_figure(pictures.curves(result), out / "curves.png")
    pictures.write_figure(pictures.film_strip(starts, imagined), out / "film.png")
    pictures.write_film(out / "film.mp4", starts, imagined)
    counts = f"{len(starts)} starts in {len(held_out.episodes)} held-out episodes"
    print(f"{game}: {counts} of {result['num_real_steps']} steps in all")
    print(report.table(result))
    files = "fidelity.json, curves.png, film.png and film.mp4"
    print(f"wrote {files} to {out}/ in {result['seconds']:.0f} s")


def compare_play(settings: Settings, new_player: Callable[[], Player]) -> dict[str, Any]:
    """Let a player continue held-out games from the same contexts in the real and in the imagined game.

    It shows whether a player meets in imagination what it would meet in the real game, or has found what the
    world model gets wrong.

    Args:
        settings: `starts` contexts (`default_num_starts` where None) in games of `policy`, each continued for
            `horizon` steps. Nothing is written to `out`.
        new_player: Makes the player; each imagined game has its own. What one with global random numbers
            does depends on `batch_size`, too.

    Returns:
        Rewards and ends per 1 000 steps, real and imagined, as of `measure.measure_play`;
        `report.play_table` formats them.

    Raises:
        InvalidInputError: A setting names something unknown.
        CheckpointError: The world model is damaged, or of another game.
    """
    game = game_name(settings.game)
    policy = find_player(settings.policy, game)
    world = _load(settings, game)
    held_out, starts = _play_held_out(settings, game, policy, world)
    imaginer = Imaginer(world.world_model, settings.seed, settings.batch_size)
    num_starts = settings.starts or default_num_starts(world)
    return _play_both(imaginer, game, new_player, held_out, starts, num_starts, settings.horizon)


def find_player(name: str, game: str) -> Player:
    """Find a player by name, or load the actor-critic of a checkpoint.

    Args:
        name: "scripted", "random", "auto" (scripted where the game has such a player), or the path of a
            checkpoint with an actor-critic.
        game: The game it will play.

    Raises:
        InvalidInputError: There is no such player or file, or it plays another game.
        CheckpointError: The file is damaged.
    """
    name = player_name(name, game)
    if name in PLAYER_NAMES:
        return player(name, game, num_actions(game))
    if not Path(name).exists():
        known = ", ".join(("auto", *PLAYER_NAMES))
        raise InvalidInputError(f"policy {name!r} is not one of {known}, and there is no such checkpoint")
    agent = load_agent(name)
    if agent.config.num_actions != num_actions(game):
        raise InvalidInputError(
            f"policy {name} has {agent.config.num_actions} actions, {game} has {num_actions(game)}: it plays "
            "another game"
        )
    return ActorCriticPlayer(agent)


def player_name(policy: str, game: str) -> str:
    """Resolve "auto" to the player of a game; return other names unchanged."""
    return usual_player(game) if policy == "auto" else policy


def default_num_starts(world: World) -> int:
    """Return the default number of starts."""
    agent = world.agent
    is_large = agent is not None and sum(p.numel() for p in agent.denoiser.parameters()) > LARGE
    return LARGE_NUM_STARTS if is_large and world.world_model.device.type == "cpu" else DEFAULT_NUM_STARTS


def _load(settings: Settings, game: str) -> World:
    world = load_world(
        game,
        settings.checkpoint,
        device=settings.device,
        backend=settings.backend,
        num_denoising_steps=settings.num_denoising_steps,
    )
    h, w, c = world.contexts.obs.shape[2:]
    if (c, h, w) != _FRAME or len(world.action_meanings) != num_actions(game):
        raise CheckpointError(
            f"{world.source} imagines frames of {h}x{w} with {c} channels and takes {world.action_space}, "
            f"{game} has 64x64 with 3 and {num_actions(game)} actions: it is a world model of something else"
        )
    return world


def _play_held_out(settings: Settings, game: str, policy: Player, world: World) -> tuple[HeldOut, Starts]:
    """Play the real episodes and choose at least the number of starts in them that is asked for."""
    held_out = heldout.play(game, policy, settings.episodes, settings.seed, settings.max_episode_steps)
    num_starts = settings.starts or default_num_starts(world)
    num_conditioning = world.world_model.num_steps_conditioning
    return held_out, heldout.choose_starts(held_out.episodes, num_starts, num_conditioning, settings.horizon)


def _shown_player(policy: str, game: str) -> str:
    """Describe the player without paths of this machine."""
    name = player_name(policy, game)
    return name if name in PLAYER_NAMES else f"actor-critic of {Path(name).name}"


def _facts(settings: Settings, game: str, world: World, held_out: HeldOut, starts: Starts) -> dict[str, Any]:
    return {
        "settings": asdict(settings),
        "source": world.source,
        "player": _shown_player(settings.policy, game),
        "num_denoising_steps": getattr(
            getattr(world.world_model, "config", None), "num_steps_denoising", None
        ),
        "num_episodes": len(held_out.episodes),
        "num_real_steps": sum(map(len, held_out.episodes)),
        "num_starts": len(starts),
        "torch": torch.__version__,
        "definitions": measure.DEFINITIONS,
    }


def _actions(imaginer: Imaginer, game: str, held_out: HeldOut, starts: Starts) -> dict[str, Any]:
    num_starts = max(1, len(starts) // BRANCHED)
    real = branches.branch(game, held_out, starts, num_starts, imaginer.seed)
    if real is None:
        return measure.measure_actions(None, None)
    rows = real.start.repeat_interleave(real.act.shape[1])
    acts = real.act.flatten()[:, None].expand(-1, branches.NUM_STEPS)
    return measure.measure_actions(real, imaginer.under(starts, rows, acts, "other actions"))


def _closed_loop(
    imaginer: Imaginer, game: str, policy: Player, held_out: HeldOut, starts: Starts
) -> dict[str, Any]:
    return _play_both(imaginer, game, lambda: copy.deepcopy(policy), held_out, starts, *_played(starts))


def _play_both(
    imaginer: Imaginer,
    game: str,
    new_player: Callable[[], Player],
    held_out: HeldOut,
    starts: Starts,
    num_starts: int,
    num_steps: int,
) -> dict[str, Any]:
    real = branches.play_on(game, new_player(), held_out, starts, num_starts, num_steps)
    imagined = imaginer.played(starts, real.start, new_player, num_steps)
    return measure.measure_play(game, real, imagined)


def _random_play(imaginer: Imaginer, game: str, held_out: HeldOut, starts: Starts) -> dict[str, Any]:
    num_starts, num_steps = _played(starts)
    real = branches.play_randomly(game, held_out, starts, num_starts, num_steps, imaginer.seed)
    imagined = imaginer.under(starts, real.start, real.act, "random play")
    return measure.measure_play(game, real, imagined)


def _played(starts: Starts) -> tuple[int, int]:
    """Return from how many starts players play, and for how many steps."""
    return max(1, len(starts) // PLAYED), measure.PLAYED_HORIZONS * starts.future_act.shape[1]


def _overlooked_ends(imaginer: Imaginer, held_out: HeldOut) -> dict[str, Any]:
    n = imaginer.world_model.num_steps_conditioning
    starts = heldout.starts_before_ends(held_out.episodes, measure.STEPS_BEFORE_END, n)
    if starts is None:
        return measure.measure_overlooked_ends(None)
    rows = torch.arange(len(starts))
    return measure.measure_overlooked_ends(imaginer.under(starts, rows, starts.future_act, "ends"))


def _spread(imaginer: Imaginer, starts: Starts, imagined: Imagined) -> list[float]:
    rows = torch.arange(0, len(starts), SPREAD)
    act = starts.future_act[rows]
    samples = [Imagined(imagined.obs[rows], imagined.rew[rows], imagined.end[rows])]
    samples += [imaginer.under(starts, rows, act, "other noise", i) for i in range(1, NUM_SAMPLES)]
    return measure.measure_spread(samples, starts.valid[rows].numpy())

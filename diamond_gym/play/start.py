"""From settings to a session: load the world model, make the places, print an introduction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diamond_gym.checkpoints import World
from diamond_gym.checkpoints.contexts import NUM_CONTEXTS, ContextBank, contexts_from_episodes, num_windows
from diamond_gym.data.collect import collect
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.errors import InvalidInputError
from diamond_gym.games import atari
from diamond_gym.play.browser import DatasetBrowser, find_datasets
from diamond_gym.play.keys import keys_of
from diamond_gym.play.places import ImaginedPlace, RealPlace
from diamond_gym.play.recording import Recorder
from diamond_gym.play.session import PlaySession, name_of
from diamond_gym.play.settings import Settings, WorldOptions
from diamond_gym.players.actor_critic import ActorCriticPlayer
from diamond_gym.players.player import Player, RandomPlayer, player, usual_player

RECORDINGS = Path("dataset")
"""Folder where recorded episodes are written and found."""
_REST_SECONDS = 0.5
"""Seconds for which the end of an episode stays on the screen."""
_RANDOM_HOLD = 4
"""Longest hold, in steps, of the random player's actions; with one step it looks like trembling."""


def play_session(settings: Settings, tell: Callable[[str], object] = print) -> PlaySession:
    """Make a session to play in.

    Raises:
        DiamondGymError: The world model cannot be loaded, or the recordings' folder cannot be written.
    """
    recorder = _recorder(settings)
    return session_in(_make_env(settings.world), settings, recorder, tell)


def session_in(
    env: DiamondEnv, settings: Settings, recorder: Recorder | None, tell: Callable[[str], object]
) -> PlaySession:
    """Make a session in an existing environment."""
    world, seed = env.world, settings.world.seed
    who = player_of(world, seed or 0)
    bank = _bank(settings, world, who) if settings.num_steps_initial_collect else None
    imagined = ImaginedPlace(env, settings.horizon, bank, seed)
    if recorder is not None and not world.action_space.is_discrete:
        recorder.action_space = world.action_space
    session = PlaySession(
        world.game or Path(settings.world.checkpoint or "world").name,
        imagined,
        _real_places(world, seed),
        who,
        keys_of(world.action_space, world.action_meanings),
        size=settings.size,
        recorder=recorder,
        rest=round(_REST_SECONDS * settings.fps),
        is_human=not _policy_begins(settings, world),
    )
    _introduce(session, world, tell)
    return session


def dataset_browser(settings: Settings) -> DatasetBrowser:
    """Make a session that shows recorded episodes.

    Raises:
        DatasetError: There are no recorded episodes.
    """
    datasets = find_datasets(_dataset_folder(settings))
    game = settings.world.game
    meanings = None if game is None else atari.action_meanings(game)
    return DatasetBrowser(datasets, meanings, size=settings.size)


def _dataset_folder(settings: Settings) -> Path:
    if settings.dataset_mode:
        return Path(settings.dataset_mode).expanduser()
    run = Path(settings.world.checkpoint or "").expanduser()
    is_run = settings.world.game is None and (run / RECORDINGS).is_dir()
    return run / RECORDINGS if is_run else RECORDINGS


def _recorder(settings: Settings) -> Recorder | None:
    if not settings.record:
        return None
    return Recorder(RECORDINGS, settings.store_denoising_trajectory, settings.store_original_obs)


def _make_env(options: WorldOptions) -> DiamondEnv:
    return DiamondEnv(
        options.game,
        checkpoint=options.checkpoint or "auto",
        device=options.device,
        dtype=options.dtype,
        backend=options.backend,
        num_denoising_steps=options.num_denoising_steps,
        order=options.order,
        s_churn=options.s_churn,
        contexts=options.contexts,
    )


def _real_places(world: World, seed: int | None) -> list[RealPlace]:
    """Make the real game as in testing and in training, if the world is that of a real game."""
    if world.game is None or world.contexts.obs.shape[2:4] != (atari.SCREEN_SIZE, atari.SCREEN_SIZE):
        return []
    n = world.world_model.num_steps_conditioning
    return [RealPlace(world.game, training=training, num_frames=n, seed=seed) for training in (False, True)]


def player_of(world: World, seed: int) -> Player:
    """Return the checkpoint's actor-critic, else the game's scripted player, else a random one."""
    if world.agent is not None and world.agent.actor_critic is not None:
        return ActorCriticPlayer(world.agent, seed=seed)
    if world.game is None:
        return RandomPlayer(world.action_space, seed, _RANDOM_HOLD)
    return player(usual_player(world.game), world.game, len(world.action_meanings), seed, repeat=_RANDOM_HOLD)


def _bank(settings: Settings, world: World, who: Player) -> ContextBank:
    """Cut contexts out of steps that the player plays now."""
    n, num_steps = world.world_model.num_steps_conditioning, settings.num_steps_initial_collect
    if world.game is None:
        raise InvalidInputError("-n plays the real game first, and this world is of none: leave it out")
    if num_steps < n:
        raise InvalidInputError(
            f"-n must be 0, or at least the {n} steps that a start takes, got {num_steps}"
        )
    report = collect(
        world.game,
        who.act,
        num_steps=num_steps,
        seed=settings.world.seed or 0,
    )
    num_starts = int(num_windows(report.episodes, n).sum())
    if num_starts == 0:
        raise InvalidInputError(f"-n {num_steps} gave no episode of {n} steps: give more")
    return contexts_from_episodes(
        report.episodes, num_contexts=min(NUM_CONTEXTS, num_starts), num_steps_conditioning=n, seed=0
    )


def _policy_begins(settings: Settings, world: World) -> bool:
    """Whether the policy begins: as asked for, else if it was trained."""
    has_learned = world.agent is not None and world.agent.actor_critic is not None
    return has_learned if settings.is_policy is None else settings.is_policy


def _introduce(session: PlaySession, world: World, tell: Callable[[str], object]) -> None:
    """Print the world, its policy, and the game's keys."""
    tell(f"{session.title}, imagined by {world.source}")
    tell(f"policy: {_who(session.player)}")
    for keys, meaning in session.game_keys.explain():
        tell(f"  {keys:16} {meaning}")
    tell(f"{'you play' if session.is_human else 'the policy plays'}: M switches, H shows all keys")


def _who(player: Player) -> str:
    if isinstance(player, ActorCriticPlayer):
        return "the checkpoint's actor-critic"
    return f"{name_of(player)} (the checkpoint has no actor-critic)"

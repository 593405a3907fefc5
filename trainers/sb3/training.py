"""A run: an agent learns, is scored on the way and at the end, and everything is written into its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, ProgressBarCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from diamond_gym import disk
from diamond_gym.errors import InvalidInputError
from diamond_gym.registration import game_name
from trainers.sb3 import games, pictures, scoring
from trainers.sb3.agents import AGENT_FILE, check_fits, find_agent, load_agent, new_agent, save_agent
from trainers.sb3.scoring import Score
from trainers.sb3.settings import TrainSettings

SETTINGS_FILE, SCORE_FILE, SECONDS_FILE = "settings.json", "score.json", "seconds.json"
_EVALUATION_SEED, _SCORING_SEED, _FILM_SEED = 10_000, 20_000, 30_000
_NUM_REAL_ENVS = 8
_SAVE_EVERY = 25_000
FILM_STEPS = 300


def train(settings: TrainSettings, *, progress: bool = True) -> list[Score]:
    """Trains an agent from nothing, or goes on with one that was stopped, and scores it.

    A run folder that holds an unfinished agent of the same settings is gone on with; a finished one is scored
    again.

    Returns:
        Scores in the real game: of the agent, of one that has learned nothing, of a random player, and of
        `settings.beside`.

    Raises:
        InvalidInputError: The folder holds a run of other settings.
        DiamondGymError: The world model or the folder is not usable; the subclass says how.
        KeyboardInterrupt: Ctrl-C; the agent has been saved.
    """
    folder = Path(settings.folder)
    game = game_name(settings.game)
    disk.prepare_folder(folder)
    _check_settings(folder, settings)
    env = _games_to_learn_from(settings, game)
    try:
        beside = _beside(settings, env)
        agent = _agent(settings, env, folder)
        _learn(agent, settings, game, folder, progress)
        scores = _score(agent, beside, settings, game, env, progress)
        _write(scores, agent, settings, game, folder)
    finally:
        env.close()
    return scores


def _games_to_learn_from(settings: TrainSettings, game: str) -> VecEnv:
    if settings.where == "imagination":
        return games.imagined(
            game,
            settings.num_envs,
            frame_stack=settings.stacked,
            horizon=settings.horizon,
            seed=settings.seed,
            world=world_options(settings),
        )
    return _real(settings, game, settings.num_envs, training=True, seed=settings.seed)


def _real(settings: TrainSettings, game: str, num_envs: int, *, training: bool, seed: int) -> VecEnv:
    return games.real(
        game,
        num_envs,
        frame_stack=settings.stacked,
        training=training,
        max_steps=settings.max_game_steps,
        seed=seed,
    )


def world_options(settings: TrainSettings) -> dict[str, Any]:
    """Keyword arguments of the imagined games."""
    names = ("checkpoint", "contexts", "num_denoising_steps", "device")
    return {name: getattr(settings, name) for name in names}


def _check_settings(folder: Path, settings: TrainSettings) -> None:
    """Makes sure that a run goes on as it began, and writes down how that was."""
    told = {name: x for name, x in asdict(settings).items() if name not in ("out", "beside", "device")}
    path = folder / SETTINGS_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in told if name != "total_timesteps" and before.get(name) != told[name]]
        if changed:
            name = changed[0]
            raise InvalidInputError(
                f"{folder} holds a run with {name}={before.get(name)}, not {told[name]}: choose another out="
            )
    disk.write_file(path, json.dumps(told, indent=1).encode() + b"\n")


def _beside(settings: TrainSettings, env: VecEnv) -> BaseAlgorithm | None:
    if settings.beside is None:
        return None
    path = find_agent(Path(settings.beside))
    agent = load_agent(path, device=settings.device)
    check_fits(agent, env, path)
    return agent


def _agent(settings: TrainSettings, env: VecEnv, folder: Path) -> BaseAlgorithm:
    saved = folder / AGENT_FILE
    if saved.is_file():
        agent = load_agent(saved, device=settings.device, algo=settings.algo, env=env)
        print(f"going on from {saved} at step {agent.num_timesteps}", flush=True)
        return agent
    return new_agent(settings.algo, env, seed=settings.seed, device=settings.device, **settings.keywords())


def _learn(agent: BaseAlgorithm, settings: TrainSettings, game: str, folder: Path, progress: bool) -> None:
    left = settings.total_timesteps - agent.num_timesteps
    if left <= 0:
        return
    evaluation = _real(settings, game, settings.eval_episodes, training=False, seed=_EVALUATION_SEED)
    log = _new_log(folder)
    agent.set_logger(configure(str(log), ["csv", "tensorboard"]))
    callbacks: list[BaseCallback] = [
        EvalCallback(
            VecTransposeImage(evaluation),  # as the agent has its own games
            n_eval_episodes=settings.eval_episodes,
            eval_freq=max(1, settings.eval_every // settings.num_envs),
            log_path=str(log),
            deterministic=False,
            verbose=0,
        ),
        SaveAgent(folder / AGENT_FILE, max(1, _SAVE_EVERY // settings.num_envs)),
    ]
    if progress:
        callbacks.append(ProgressBarCallback())
    begin, before = time.perf_counter(), agent.num_timesteps
    try:
        with _saved_when_stopped(agent, folder / AGENT_FILE):
            agent.learn(left, callback=CallbackList(callbacks), reset_num_timesteps=False)
    finally:
        evaluation.close()
        agent.logger.close()
    seconds, steps = time.perf_counter() - begin, agent.num_timesteps - before
    _note_time(folder, seconds)
    print(f"learned from {agent.num_timesteps} steps, the last {steps} at {steps / seconds:.0f} steps/s")


@contextmanager
def _saved_when_stopped(agent: BaseAlgorithm, path: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        save_agent(agent, path)
        print(f"\nstopped at step {agent.num_timesteps}; the same command goes on from {path}", flush=True)
        raise
    save_agent(agent, path)


class SaveAgent(BaseCallback):
    """Saves the agent every so many calls."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path, self.every = path, every

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            save_agent(self.model, self.path)
        return True


def _new_log(folder: Path) -> Path:
    """A folder for the logs of this part of the run; those of earlier parts stay."""
    number = 1 + sum(1 for path in folder.glob("log-*") if path.is_dir())
    return folder / f"log-{number}"


def _note_time(folder: Path, seconds: float) -> None:
    disk.write_file(folder / SECONDS_FILE, json.dumps(_seconds(folder) + seconds).encode())


def _seconds(folder: Path) -> float:
    """Time spent on learning so far."""
    path = folder / SECONDS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else 0.0


def _score(
    agent: BaseAlgorithm,
    beside: BaseAlgorithm | None,
    settings: TrainSettings,
    game: str,
    env: VecEnv,
    progress: bool,
) -> list[Score]:
    real = _real(
        settings, game, min(_NUM_REAL_ENVS, settings.final_episodes), training=False, seed=_SCORING_SEED
    )
    untrained = new_agent(
        settings.algo, env, seed=settings.seed, device=settings.device, **settings.keywords()
    )
    players = {f"{settings.algo}, {settings.where}": agent, f"{settings.algo}, untrained": untrained}
    if beside is not None:
        players[f"beside: {settings.beside}"] = beside
    policies = {
        name: scoring.policy_of(player, deterministic=False, seed=settings.seed)
        for name, player in players.items()
    }
    policies["random"] = scoring.random_policy(real, settings.seed)
    scores = []
    for name, policy in policies.items():
        real.seed(_SCORING_SEED)
        returns = scoring.play_games(policy, real, settings.final_episodes, name, progress=progress)
        scores.append(Score.of(name, returns))
    real.close()
    return scores


def _write(
    scores: list[Score], agent: BaseAlgorithm, settings: TrainSettings, game: str, folder: Path
) -> None:
    result = {
        "steps": agent.num_timesteps,
        "seconds": _seconds(folder),
        "scores": [score.as_json() for score in scores],
    }
    disk.write_file(folder / SCORE_FILE, json.dumps(result, indent=1).encode() + b"\n")
    pictures.write_learning_curve(
        folder / "learning_curve.png",
        sorted(folder.glob("log-*/progress.csv")),
        sorted(folder.glob("log-*/evaluations.npz")),
        settings.where,
    )
    worlds = [_real(settings, game, 1, training=False, seed=_FILM_SEED)]
    if settings.where == "imagination":
        worlds.append(
            games.imagined(
                game,
                1,
                frame_stack=settings.stacked,
                horizon=settings.horizon,
                seed=_FILM_SEED,
                world=world_options(settings),
            )
        )
    policies = [scoring.policy_of(agent, deterministic=False, seed=settings.seed) for _ in worlds]
    pictures.write_film(folder / "film.mp4", list(zip(policies, worlds, strict=True)), FILM_STEPS)
    for env in worlds:
        env.close()

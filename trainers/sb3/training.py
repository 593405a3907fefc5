"""A run: an agent learns, is scored during training and at the end, and leaves a run folder."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from diamond_gym import files as disk
from diamond_gym import signals, untrusted
from diamond_gym.backends.memory import MEMORY_IS_KEPT, keep_freed_memory
from diamond_gym.data import video
from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.evaluate.report import write_json
from diamond_gym.evaluate.score import Score
from diamond_gym.progress import Bar
from diamond_gym.registration import game_name
from diamond_gym.signals import Requests
from trainers.sb3 import games, pictures, scoring
from trainers.sb3.agents import (
    AGENT_FILE,
    check_fits,
    find_agent,
    is_off_policy,
    load_agent,
    new_agent,
    save_agent,
    set_learning_rate,
)
from trainers.sb3.player import AgentPolicy, Policy
from trainers.sb3.settings import TrainSettings

_FIXED = (
    *("game", "algo", "where", "num_envs", "horizon", "frame_stack", "seed", "ent_coef"),
    *("initial_agent", "checkpoint", "contexts", "num_denoising_steps"),
)
"""Settings that must stay the same when a run is resumed: what it learns from, and how."""
_REMOVED = {"end_penalty": 0.0}
"""Settings of earlier versions, with the values at which they had no effect."""
SETTINGS_FILE, SCORE_FILE, SECONDS_FILE = "settings.json", "score.json", "seconds.json"
_EVALUATION_SEED, _SCORING_SEED, _FILM_SEED = 10_000, 20_000, 30_000
_NUM_REAL_ENVS = 8
NUM_BYTES = 100 * 2**20
"""Least free space in bytes: an agent twice, and its logs and films."""
SAVE_SECONDS = 120.0
"""Seconds between two checkpoints: a killed process loses no more than this."""
_log = logging.getLogger(__name__)
FILM_STEPS = 300
_NUM_WATCHED = 64
"""Frames of a rollout from which it is judged whether an agent's features depend on frames."""
_ROUNDING = 1e-4
"""Relative difference of features that may come from rounding alone."""


def train(settings: TrainSettings, *, progress: bool = True) -> list[Score]:
    """Train a new agent or `initial_agent`, or resume one that was stopped, and score it.

    A run folder with an unfinished agent of the same settings is resumed; a finished agent is scored again.
    While it learns, the agent is saved every two minutes.

    Returns:
        Scores in the real game: of the agent, of one that has learned nothing, of a random player, and of
        `settings.beside`.

    Raises:
        InvalidInputError: The folder holds a run with other settings.
        FolderInUseError: Another process works in the folder.
        DiamondGymError: The world model or the folder is not usable; the subclass says how.
        KeyboardInterrupt: Ctrl-C was pressed, or SIGTERM arrived; the agent has been saved.
    """
    settings = replace(settings, game=game_name(settings.game))
    folder = Path(settings.folder)
    video.require_ffmpeg()
    with disk.begun(folder, NUM_BYTES):
        return _trained(settings, folder, progress)


def _trained(settings: TrainSettings, folder: Path, progress: bool) -> list[Score]:
    _check_settings(folder, settings)
    _seconds(folder)  # fails now, and not after training, if the file is damaged
    env = _games_to_learn_from(settings)
    try:
        beside = _beside(settings, env)
        agent = _agent(settings, env, folder)
        write_json(asdict(settings), folder / SETTINGS_FILE)
        if keep_freed_memory() and progress:
            _log.info(MEMORY_IS_KEPT)
        _learn(agent, settings, folder, progress)
        scores = _score(agent, beside, settings, env, progress)
        _write(scores, agent, settings, folder)
    finally:
        env.close()
    return scores


def _games_to_learn_from(settings: TrainSettings) -> VecEnv:
    if settings.where == "imagination":
        return games.imagined(settings, settings.num_envs, frame_stack=settings.stacked, seed=settings.seed)
    return _real(settings, settings.num_envs, training=True, seed=settings.seed)


def _real(settings: TrainSettings, num_envs: int, *, training: bool, seed: int) -> VecEnv:
    return games.real(
        settings.game,
        num_envs,
        frame_stack=settings.stacked,
        training=training,
        max_steps=settings.max_game_steps,
        seed=seed,
    )


def _check_settings(folder: Path, settings: TrainSettings) -> None:
    """Check that a resumed agent has the settings that it began with."""
    if (folder / AGENT_FILE).is_file():
        check_unchanged(folder / SETTINGS_FILE, settings, _FIXED, "a run")


def check_unchanged(file: Path, settings: TrainSettings, names: Iterable[str], what: str) -> None:
    """Compare settings with those that a folder was begun with; newer settings had their defaults then.

    Args:
        file: JSON of all settings at that time; if it does not exist, nothing is compared.
        settings: The settings now.
        names: Names of the settings that must be the same.
        what: What the folder holds, for the error message.

    Raises:
        InvalidInputError: A setting differs.
    """
    if not file.is_file():
        return
    found = untrusted.read_json(file, CheckpointError, "the settings of a run")
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} cannot be read as the settings of a run: it holds no mapping")
    before, now = asdict(type(settings)()) | found, _REMOVED | asdict(settings)
    for name in (*names, *_REMOVED):
        if before.get(name, now[name]) != now[name]:
            kept = f"{name}={before[name]}, not {now[name]}"
            raise InvalidInputError(f"{file.parent} holds {what} with {kept}: choose another out=")


def _beside(settings: TrainSettings, env: VecEnv) -> BaseAlgorithm | None:
    if settings.beside is None:
        return None
    path = find_agent(settings.beside, settings.game)
    agent = load_agent(path, device=settings.device, trust=settings.trust)
    check_fits(agent, env, path)
    return agent


def _agent(settings: TrainSettings, env: VecEnv, folder: Path) -> BaseAlgorithm:
    """A new agent, or that of the folder, with the learning rate of the settings."""
    agent = _known_or_new(settings, env, folder / AGENT_FILE)
    rate = settings.learning_rate or agent.learning_rate
    if not callable(rate):
        set_learning_rate(agent, rate, falls=settings.falls)
    return agent


def _known_or_new(settings: TrainSettings, env: VecEnv, saved: Path) -> BaseAlgorithm:
    if saved.is_file():
        return _known(settings, env, saved)
    if settings.initial_agent is None:
        return new_agent(
            settings.algo, env, seed=settings.seed, device=settings.device, **settings.keywords()
        )
    path = find_agent(settings.initial_agent, settings.game)
    agent = _known(settings, env, path)
    if agent.num_timesteps >= settings.total_timesteps:
        raise InvalidInputError(
            f"{path} has learned from {agent.num_timesteps} steps, and total_timesteps counts them: it must "
            f"be larger, got {settings.total_timesteps}"
        )
    if settings.ent_coef is not None:
        agent.ent_coef = settings.ent_coef  # type: ignore[attr-defined]
    if isinstance(agent, OffPolicyAlgorithm):
        agent.gradient_steps = settings.keywords()["gradient_steps"]
    return agent


def _known(settings: TrainSettings, env: VecEnv, path: Path) -> BaseAlgorithm:
    """Load an agent that continues to learn."""
    agent = load_agent(
        path,
        device=settings.device,
        algo=settings.algo,
        env=env,
        keywords=settings.keywords(),
        trust=settings.trust,
    )
    _log.info("resuming %s from step %d", path, agent.num_timesteps)
    # loading has seeded everything as at the start of the run: seed again, for other games and actions
    agent.set_random_seed(settings.seed + agent.num_timesteps)
    if isinstance(agent, OffPolicyAlgorithm):
        agent.learning_starts = agent.num_timesteps + settings.keywords()["learning_starts"]
        _log.info("the replay buffer is not saved: it fills up to step %d first", agent.learning_starts)
    return agent


def _learn(agent: BaseAlgorithm, settings: TrainSettings, folder: Path, progress: bool) -> None:
    left = settings.total_timesteps - agent.num_timesteps
    if left <= 0:
        return
    evaluation = _real(settings, settings.eval_episodes, training=False, seed=_EVALUATION_SEED)
    log = _new_log(folder)
    agent.set_logger(configure(str(log), ["csv", "tensorboard"]))
    begin, before, path = time.perf_counter(), agent.num_timesteps, folder / AGENT_FILE
    try:
        with signals.deferred() as requests:
            evaluate = Evaluate(
                VecTransposeImage(evaluation),  # as the agent has its own games
                n_eval_episodes=settings.eval_episodes,
                eval_freq=max(1, settings.eval_every // settings.num_envs),
                log_path=str(log),
                deterministic=is_off_policy(agent),
                verbose=0,
                requests=requests,
            )
            callbacks = [evaluate, SaveAgent(path, requests), Told(evaluate, left, progress), WarnIfBlind()]
            try:
                agent.learn(left, callback=CallbackList(callbacks), reset_num_timesteps=False)
            except KeyboardInterrupt:
                save_agent(agent, path)
                raise
            save_agent(agent, path)
    except KeyboardInterrupt:
        _log.info("stopped at step %d; the same command resumes %s", agent.num_timesteps, path)
        raise
    finally:
        evaluation.close()
        agent.logger.close()
        seconds, steps = time.perf_counter() - begin, agent.num_timesteps - before
        _note_time(folder, seconds)
    rate = steps / seconds
    _log.info("learned from %d steps, the last %d at %.0f steps/s", agent.num_timesteps, steps, rate)


class Evaluate(EvalCallback):
    """A callback that scores the agent in real games; a signal stops these at once."""

    def __init__(self, *arguments: Any, requests: Requests, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.requests = requests

    def _on_step(self) -> bool:
        with self.requests.at_once():
            return super()._on_step()


class SaveAgent(BaseCallback):
    """A callback that saves the agent at intervals and on signals, and stops when a signal asks for it.

    Args:
        path: The zip to write.
        requests: What signals have asked for.
        seconds: Seconds from one save to the next.
    """

    def __init__(self, path: Path, requests: Requests, seconds: float | None = None) -> None:
        super().__init__()
        self.path, self.requests = path, requests
        self.seconds = SAVE_SECONDS if seconds is None else seconds
        self._last = time.monotonic()

    def _on_step(self) -> bool:
        is_time = time.monotonic() - self._last >= self.seconds
        if is_time or self.requests.save:
            self.requests.save = False
            save_agent(self.model, self.path)
            self._last = time.monotonic()
            _log.debug("saved %s at step %d", self.path, self.num_timesteps)
        return not self.requests.stop


class Told(BaseCallback):
    """A callback that reports the number of steps and the last mean score in the real game."""

    def __init__(self, evaluate: EvalCallback, num_steps: int, progress: bool) -> None:
        super().__init__()
        self.evaluate = evaluate
        self._bar = Bar(total=num_steps, desc="learn", unit="step", disable=not progress)

    def _on_step(self) -> bool:
        if np.isfinite(self.evaluate.last_mean_reward):
            self._bar.set_postfix_str(f"real score {self.evaluate.last_mean_reward:.2f}", refresh=False)
        self._bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


class WarnIfBlind(BaseCallback):
    """A callback that warns, once, when an agent's network gives the same features for all frames.

    Where frames are bright, as in Pong, large steps of the optimiser can make every unit of the first layer
    answer with 0 for good ("dying ReLU"). Such an agent learns nothing more, and its scores do not say why.
    Agents that learn from a replay buffer are not watched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_warned = False

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.has_warned or not isinstance(self.model, OnPolicyAlgorithm):
            return
        frames = self.model.rollout_buffer.observations
        frames = frames.reshape(-1, *frames.shape[2:])
        num_chosen = min(_NUM_WATCHED, len(frames))
        chosen = frames[np.random.default_rng(0).choice(len(frames), num_chosen, replace=False)]
        if (chosen == chosen[:1]).all() or _tells_apart(self.model.policy, chosen):
            return
        self.has_warned = True
        _log.warning(
            "after %d steps the agent's network gives the same features for all frames, so that it learns "
            "nothing more: stop it, and give a lower learning_rate than %g",
            self.num_timesteps,
            self.model.policy.optimizer.param_groups[0]["lr"],
        )


def _tells_apart(policy: BasePolicy, frames: NDArray[Any]) -> bool:
    """Whether the features of a policy depend on the frames (b, c, h, w), beyond what rounding explains."""
    with torch.no_grad():
        obs, _ = policy.obs_to_tensor(frames)
        features = policy.extract_features(obs, policy.features_extractor)  # pyright: ignore[reportArgumentType]
    spread, size = features.std(dim=0).max().item(), features.abs().max().item()
    return spread > _ROUNDING * size


def _new_log(folder: Path) -> Path:
    """A new folder for the logs of this part of the run; the logs of earlier parts stay."""
    matches = [re.fullmatch(r"log-(\d+)", path.name) for path in folder.glob("log-*")]
    numbers = [int(match[1]) for match in matches if match]
    return folder / f"log-{1 + max(numbers, default=0):03}"


def _note_time(folder: Path, seconds: float) -> None:
    write_json(_seconds(folder) + seconds, folder / SECONDS_FILE)


def _seconds(folder: Path) -> float:
    """Seconds spent so far on learning and on the real games in between."""
    path = folder / SECONDS_FILE
    if not path.is_file():
        return 0.0
    seconds = untrusted.read_json(path, CheckpointError, "a number of seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise CheckpointError(f"{path} cannot be read as a number of seconds: remove it")
    return seconds


def _score(
    agent: BaseAlgorithm,
    beside: BaseAlgorithm | None,
    settings: TrainSettings,
    env: VecEnv,
    progress: bool,
) -> list[Score]:
    untrained = new_agent(
        settings.algo, env, seed=settings.seed, device=settings.device, **settings.keywords()
    )
    players = {f"{settings.algo}, {settings.where}": agent, f"{settings.algo}, untrained": untrained}
    if beside is not None:
        players[f"beside: {settings.beside}"] = beside
    num_envs = min(_NUM_REAL_ENVS, settings.final_episodes)
    with closing(_real(settings, num_envs, training=False, seed=_SCORING_SEED)) as real:
        policies: dict[str, Policy] = {name: AgentPolicy(player) for name, player in players.items()}
        policies["random"] = scoring.random_policy(real)
        return [
            Score.of(
                name,
                scoring.play_games(
                    policy, real, settings.final_episodes, name, seed=_SCORING_SEED, progress=progress
                ),
            )
            for name, policy in policies.items()
        ]


def _write(scores: list[Score], agent: BaseAlgorithm, settings: TrainSettings, folder: Path) -> None:
    result = {
        "steps": agent.num_timesteps,
        "seconds": _seconds(folder),
        "scores": [asdict(score) for score in scores],
    }
    write_json(result, folder / SCORE_FILE)
    pictures.write_learning_curve(
        folder / "learning_curve.png",
        sorted(folder.glob("log-*/progress.csv")),
        sorted(folder.glob("log-*/evaluations.npz")),
        settings.where,
    )
    with ExitStack() as stack:
        worlds = [stack.enter_context(closing(world)) for world in _worlds_to_film(settings)]
        films = [(AgentPolicy(agent), world) for world in worlds]
        pictures.write_film(folder / "film.mp4", films, FILM_STEPS)


def _worlds_to_film(settings: TrainSettings) -> Iterator[VecEnv]:
    """One real game and, if the agent learned there, an imagined one."""
    yield _real(settings, 1, training=False, seed=_FILM_SEED)
    if settings.where == "imagination":
        yield games.imagined(settings, 1, frame_stack=settings.stacked, seed=_FILM_SEED)

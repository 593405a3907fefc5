"""Trains the networks of a run, epoch by epoch, and saves after each one.

Batches and noise are functions of (seed, part, step). The saved state holds whatever else a resumed run needs
to continue exactly: weights, optimisers, games in progress, counts. With several processes, all train and
rank 0 does everything else. `run.build` puts a trainer together.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from diamond_gym import untrusted
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import CheckpointError
from diamond_gym.progress import Bar
from diamond_gym.signals import Requests
from diamond_gym.world.models import ActorCritic, Agent
from diamond_gym.world.world_model import WorldModel
from trainers.diamond import data
from trainers.diamond.config import (
    PARTS,
    WORLD_MODEL_PARTS,
    CheckpointingConfig,
    EvaluationConfig,
    TestCollectionConfig,
    TrainCollectionConfig,
    TrainingConfig,
)
from trainers.diamond.distributed import SINGLE_PROCESS, Group
from trainers.diamond.errors import DivergedError, SaveRequested, StopRequested
from trainers.diamond.learner import (
    Autocast,
    DenoiserObjective,
    Learner,
    NotFiniteError,
    RewEndObjective,
    diverged,
)
from trainers.diamond.logging import (
    VIDEO_FPS,
    RunLog,
    add,
    draw_starts,
    episode_series,
    imagine,
    mean_psnr,
    one_line,
    side_by_side,
    step_series,
    summary,
    to_gif,
)
from trainers.diamond.losses import Metrics
from trainers.diamond.replay import Replay
from trainers.diamond.rollout import Collector, PlayReport, RealGames, play_whole_games
from trainers.diamond.run_folder import RunFolder

# --- schedule
# How long a run lasts, and how much it collects when: arithmetic on the configuration and on counts.
#
# Every answer follows from the run's saved state, so that a resumed run continues in the same way.


@dataclass(frozen=True)
class Schedule:
    """The length of a run.

    Attributes:
        training: What is trained, and for how long.
        collection: How the training dataset grows; None where it does not, such as with a static dataset.
        first_epoch_steps: Steps of the initial collection where players collect; None where the policy
            collects, which stops when it has seen enough.
    """

    training: TrainingConfig
    collection: TrainCollectionConfig | None
    first_epoch_steps: int | None = None

    def num_epochs(self, first_epoch_steps: int | None) -> int | None:
        """Number of epochs of the run; None while it is not known yet.

        Args:
            first_epoch_steps: Steps of the initial collection; None while they are not known.
        """
        first_epoch_steps = self.first_epoch_steps or first_epoch_steps
        if self.training.num_epochs is not None:
            return self.training.num_epochs
        if self.collection is None:
            return max(1, self.training.num_final_epochs)
        if first_epoch_steps is None:
            return None
        left = max(0, self.collection.num_steps_total - first_epoch_steps)
        return max(1, math.ceil(left / self.collection.steps_per_epoch) + self.training.num_final_epochs)


def collection_goal(
    config: TrainCollectionConfig,
    epoch: int,
    num_steps: int,
    reward_counts: Mapping[int, int],
    first_epoch_steps: int | None,
) -> int:
    """Number of steps that the training dataset should reach next; ask again once it has them.

    Args:
        config: How much is collected.
        epoch: The epoch that collects, from 1.
        num_steps: Steps in the dataset.
        reward_counts: Number of steps with a reward of each sign (-1, 0, 1).
        first_epoch_steps: Steps of the initial collection once it is over, else None; every epoch then adds
            to them, the first one included.
    """
    if first_epoch_steps is None:
        return min(_initial_goal(config, num_steps, reward_counts), config.num_steps_total)
    return min(first_epoch_steps + epoch * config.steps_per_epoch, config.num_steps_total)


def _initial_goal(config: TrainCollectionConfig, num_steps: int, reward_counts: Mapping[int, int]) -> int:
    """Number of steps that the initial collection should reach; `num_steps` when it is over."""
    first, chunk = config.first_epoch, config.steps_per_epoch
    if num_steps < first.min:
        return first.min
    rarer = sorted(reward_counts.values())[:2]
    if sum(rarer) >= first.threshold_rew:
        return num_steps
    goal = first.min + chunk * ((num_steps - first.min) // chunk + 1)
    return goal if first.max is None else min(goal, first.max)


# --- trainer


_log = logging.getLogger(__name__)
_VIDEO_GAMES = 4
COLLECTION, TEST_GAMES, RL_GAMES = range(3)
"""Purposes of games, real or imagined; each has seeds of its own."""


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: Number of finished epochs.
        first_epoch_steps: Steps of the initial collection in epoch 1; None until it is over.
        collection_goal: Steps that the dataset should reach; None when nothing is being collected.
        num_test_episodes: Test games played so far.
        is_finished: Whether the final evaluation is done as well.
        metrics: Metrics of the finished stages of the current epoch.
    """

    epoch: int = 0
    first_epoch_steps: int | None = None
    collection_goal: int | None = None
    num_test_episodes: int = 0
    is_finished: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """Read the progress from a run's state; fields missing in an older state get their defaults."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__ if name in state})


@dataclass(frozen=True)
class WholeGames:
    """Whole real games that score the actor-critic.

    Attributes:
        actor_critic: The network that plays.
        game: The game.
        sampling: Number of games, and how actions are chosen.
        seed: Fixes the games, together with the epoch.
        fill_test_dataset: Whether the games of the newest evaluation become the test dataset.
    """

    actor_critic: ActorCritic
    game: str
    sampling: TestCollectionConfig
    seed: int
    fill_test_dataset: bool

    def collector(self, epoch: int, num_episodes: int, *, keeps_frames: bool) -> Collector:
        """A collector whose games are fixed by the seed and the epoch."""
        seed = derived_seed(self.seed, TEST_GAMES, epoch)
        return Collector(
            self.actor_critic,
            RealGames(self.game, min(self.sampling.num_envs, num_episodes), training=False, seed=seed),
            self.sampling,
            seed=seed,
            keeps_frames=keeps_frames,
            max_episode_steps=self.sampling.max_episode_steps,
        )


@dataclass(kw_only=True)
class Trainer:
    """The training loop: it runs the epochs of a run.

    Attributes:
        run: The folder it is saved in.
        agent: The networks, on their device.
        learners: The trained networks, in the order in which an epoch trains them.
        train: Episodes to learn from; grows where the run collects.
        test: Episodes to measure the losses on.
        world_model: Imagines games for a video.
        horizon: Steps of these games.
        autocast: Precision of these games.
        schedule: How long the run lasts.
        evaluation: Whether and when the run is evaluated.
        checkpointing: Which weights are kept.
        log: Takes the metrics and videos.
        seed: Fixes the run.
        dataset: The training episodes on disk where the run collects, else None.
        collector: Collects them on rank 0; None elsewhere.
        whole_games: The games that score the actor-critic, if any.
        choose_contexts: Chooses start contexts from the run's episodes.
        group: The processes that train the run together, each with a trainer of its own.
        progress: The progress of the run.
        requests: Set `requests.stop`, for example in a signal handler, to have `fit` finish its step, save
            and raise `KeyboardInterrupt`; set `requests.save` to have it save and continue.
    """

    run: RunFolder
    agent: Agent
    learners: list[Learner]
    train: Replay
    test: Replay
    world_model: WorldModel
    horizon: int
    autocast: Autocast
    schedule: Schedule
    evaluation: EvaluationConfig
    checkpointing: CheckpointingConfig
    log: RunLog
    seed: int
    dataset: EpisodeDataset | None
    collector: Collector | None
    whole_games: WholeGames | None
    choose_contexts: Callable[[], ContextBank]
    group: Group = SINGLE_PROCESS
    progress: Progress = field(default_factory=Progress)
    requests: Requests = field(default_factory=Requests)
    _shows_progress: bool = False

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.progress.epoch

    @property
    def num_epochs(self) -> int | None:
        """Number of epochs of the run; None while it depends on steps still to be collected."""
        return self.schedule.num_epochs(self.progress.first_epoch_steps)

    def fit(self, *, progress: bool = True) -> None:
        """Train to the last epoch, saving state and weights after each, and evaluate.

        Raises:
            DivergedError: A loss or gradient is not finite; earlier checkpoints are kept.
            CacheError: The run folder cannot be written.
            KeyboardInterrupt: `requests.stop` was set; the state is saved as it was after the last step.
        """
        self._shows_progress = progress and self.group.is_rank_zero
        if not self.group.on_rank_zero(self.run.state_file.is_file):
            self.save_state()  # so that a resumed run knows what was collected after the start
        try:
            while self.num_epochs is None or self.epoch < self.num_epochs:
                self._run_epoch_or_save()
            if not self.progress.is_finished:
                self._finish()
        except StopRequested:
            self.save_state()
            raise KeyboardInterrupt from None
        except NotFiniteError as error:
            batch = self.group.gather(error.batch)
            self.group.on_rank_zero(lambda: self._diverge(error, batch))

    def _run_epoch_or_save(self) -> None:
        """Run an epoch, or a part of it when a signal asks to save the state before the rest."""
        try:
            self._run_epoch()
        except SaveRequested:
            self.requests.save = False
            self.save_state()
            _log.info("saved %s in epoch %d, as a signal asked", self.run.path, self.epoch + 1)

    def _run_epoch(self) -> None:
        epoch, metrics = self.epoch + 1, self.progress.metrics
        metrics["epoch"] = epoch
        self.progress.is_finished = False  # a finished run may have been given more epochs
        metrics |= _prefixed("collect", self._collected())
        for learner in self.learners:
            metrics |= _prefixed(learner.name, self._train_learner(learner))
        metrics |= self.group.on_rank_zero(lambda: self._evaluate(epoch))
        self.progress.epoch, self.progress.metrics = epoch, {}
        self.group.on_rank_zero(lambda: self._log(metrics))
        self.save()

    def _diverge(self, error: NotFiniteError, batch: dict[str, Tensor]) -> NoReturn:
        numbers = {"part": error.part, "step": error.step, **error.numbers}
        file = self.run.save_bad_batch(error.part, error.step, numbers | {"batch": batch})
        raise diverged(error, str(file)) from None

    def _finish(self) -> None:
        self.group.on_rank_zero(self._play_final_games)
        self.progress.is_finished = True
        self.save_state()

    def _play_final_games(self) -> None:
        games = self.whole_games
        if games is not None and games.sampling.num_final_episodes > 0:
            collector = partial(games.collector, self.epoch + 1, keeps_frames=False)
            report = self._play_test_games(collector, games.sampling.num_final_episodes, desc="final test")
            self._log({"epoch": self.epoch, **_prefixed("final", report.metrics())})

    def _log(self, metrics: dict[str, Any]) -> None:
        if self._shows_progress:
            _log.info("%s", one_line(metrics))
        self.log.log(metrics)

    # -- stages of an epoch: each does what is left to do and returns its metrics, empty if nothing was left

    def _collected(self) -> dict[str, Any]:
        """Collect on rank 0; the other ranks read what it has stored."""
        metrics, self.progress.first_epoch_steps = self.group.on_rank_zero(
            lambda: (self._collect(), self.progress.first_epoch_steps)
        )
        if self.dataset is not None and not self.group.is_rank_zero:
            data.catch_up(self.train, EpisodeDataset(self.dataset.path))
        return metrics

    def _collect(self) -> dict[str, Any]:
        """Play the real game until the training dataset has reached the goal of the epoch."""
        collector = self.collector
        if collector is None or self.dataset is None:
            return {}
        report = PlayReport()
        with self._as_played("actor_critic"), self._bar("collect", unit="step") as bar:
            while (goal := self._collection_goal(collector)) is not None:
                self._stop_if_requested()
                left = goal - self.train.num_steps - collector.num_pending
                bar.total = (bar.total or 0) + left
                report += collector.collect(
                    self.dataset,
                    self.train,
                    left,
                    bar=bar,
                    should_stop=lambda: self.requests.stop,
                    on_episode=partial(self.log.episode, "train"),
                )
        self._stop_if_requested()
        counts = {"dataset_steps": self.train.num_steps, "dataset_episodes": len(self.train)}
        return report.metrics() | counts if report.num_steps else {}

    def _collection_goal(self, collector: Collector) -> int | None:
        """Number of steps that the dataset should reach next; None when the epoch's collection is over."""
        progress, num_steps = self.progress, self.train.num_steps + collector.num_pending
        if progress.collection_goal is not None and num_steps < progress.collection_goal:
            return progress.collection_goal  # as it was before an interruption
        goal = self._scheduled_goal(num_steps)
        if num_steps >= goal and progress.first_epoch_steps is None:
            progress.first_epoch_steps = num_steps
            goal = self._scheduled_goal(num_steps)
        progress.collection_goal = goal if num_steps < goal else None
        return progress.collection_goal

    def _scheduled_goal(self, num_steps: int) -> int:
        assert self.schedule.collection is not None, "somebody collects"
        return collection_goal(
            self.schedule.collection,
            self.epoch + 1,
            num_steps,
            self.train.reward_sign_counts(),
            self.progress.first_epoch_steps,
        )

    def _train_learner(self, learner: Learner) -> dict[str, Any]:
        """Make the optimiser steps that are left in the network's epoch: all, unless it was interrupted."""
        training = learner.training
        total = training.num_steps(self.num_epochs or self.epoch + 1)
        steps = training.num_steps(self.epoch + 1) - learner.num_steps
        if steps <= 0 or not self.schedule.training.should:
            return {}
        sums: Metrics = {}
        start, lr_factor = time.perf_counter(), 0.0
        bar = self._bar(learner.name, total=steps)
        others = (name for name in PARTS if name != learner.name)
        with self._as_played(*others), learner.as_trained(), bar:
            for _ in range(steps):
                lr_factor = training.lr_factor(learner.num_steps, total)
                metrics = learner.step(self.train, seed=self.seed, lr_factor=lr_factor)
                sums = add(sums, metrics)
                self._log_step(learner, metrics, lr_factor)
                bar.update()
                stop, save = self.group.any(self.requests.stop, self.requests.save)
                if stop or save:
                    learner.check_finite()
                    raise StopRequested if stop else SaveRequested
            learner.check_finite()
        result = {"num_steps": learner.num_steps, "lr": learner.base_lr * lr_factor} | summary(
            learner.total(sums), steps
        )
        return result | {"steps_per_s": steps / (time.perf_counter() - start)}

    def _log_step(self, learner: Learner, metrics: Metrics, lr_factor: float) -> None:
        """Log the metrics of the step that was just made, if this step is to be logged."""
        if self.log.wants_step(learner.num_steps):
            numbers = learner.total({name: x for name, x in metrics.items() if x.ndim == 0})
            scalars = {name: x.item() for name, x in numbers.items()}
            self.log.step(learner.name, learner.num_steps, scalars | {"lr": learner.base_lr * lr_factor})

    def next_of(self) -> dict[str, int]:
        """The next step of each network and the next episode of each dataset, for `RunLog.open`."""
        under_way = set() if self.collector is None else self.collector.stored_numbers
        last = len(self.train) - 1
        return {step_series(learner.name): learner.num_steps + 1 for learner in self.learners} | {
            episode_series("train"): last if last in under_way else last + 1,
            episode_series("test"): self.progress.num_test_episodes,
        }

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """Evaluate if the epoch is due: play whole games, imagine, and measure the EMA weights."""
        config, metrics = self.evaluation, {}
        is_time = epoch % config.every == 0
        if config.should and is_time:
            metrics = self._test_games(epoch) | self._imagine(epoch)
        if config.should and (is_time or epoch == self.num_epochs):
            for learner in self.learners:
                metrics |= _prefixed(learner.name, self._measure(learner))
        return metrics

    def _test_games(self, epoch: int) -> dict[str, Any]:
        games = self.whole_games
        if games is None:
            return {}
        episodes: list[Episode] = []
        collector = partial(games.collector, epoch, keeps_frames=games.fill_test_dataset)
        report = self._play_test_games(collector, games.sampling.num_episodes, on_episode=episodes.append)
        if games.fill_test_dataset:
            data.replace_test_dataset(self.run, episodes)
            self.test = data.load_test_replay(self.run)
        return _prefixed("test", report.metrics())

    def _imagine(self, epoch: int) -> dict[str, Any]:
        """Imagine real games under their recorded actions, and log a video."""
        replay = self.test if len(self.test) else self.train
        n = self.world_model.num_steps_conditioning
        starts = draw_starts(replay, _VIDEO_GAMES, n + self.horizon, seed=0)
        if starts is None:
            return {}
        with self._as_played(*WORLD_MODEL_PARTS), self.autocast():
            imagined = imagine(self.world_model, starts)
        self._stop_if_requested()
        real = starts.obs[:, n:]
        frames = side_by_side(real, imagined)
        gif = to_gif(frames, VIDEO_FPS)
        self.log.video(epoch, "imagination", gif, (frames.shape[1], frames.shape[2]))
        quality = mean_psnr(real, imagined).tolist()
        return {"imagination/psnr_first": quality[0], "imagination/psnr_last": quality[-1]}

    @torch.no_grad()
    def _measure(self, learner: Learner) -> dict[str, Any]:
        """Losses of the EMA weights on the whole test dataset, under the same noise every time."""
        objective = learner.objective
        if learner.num_steps == 0 or not isinstance(objective, DenoiserObjective | RewEndObjective):
            return {}
        sums: Metrics = {}
        num_segments = 0
        with learner.as_played():
            for i, batch in enumerate(objective.test_batches(self.test)):
                self._stop_if_requested()
                rng = np.random.default_rng([i, PARTS.index(learner.name)])
                metrics, weight = objective.measure(batch, rng, learner.num_steps), len(batch.obs)
                num_segments += weight
                sums = add(sums, {k: x * weight if x.ndim == 0 else x for k, x in metrics.items()})
        return {f"test_{name}": value for name, value in summary(sums, num_segments).items()}

    def _play_test_games(
        self,
        new_collector: Callable[[int], Collector],
        num_episodes: int,
        *,
        on_episode: Callable[[Episode], object] = lambda episode: None,
        desc: str = "test",
    ) -> PlayReport:
        """Play whole games with the EMA weights, and log them."""
        with self._as_played("actor_critic"), self._bar(desc, total=num_episodes, unit="episode") as bar:
            report = play_whole_games(
                new_collector(num_episodes),
                num_episodes,
                bar=bar,
                should_stop=lambda: self.requests.stop,
                on_episode=on_episode,
            )
        self._stop_if_requested()
        for number, played in enumerate(
            zip(report.returns, report.lengths, strict=True), start=self.progress.num_test_episodes
        ):
            self.log.episode("test", number, *played)
        self.progress.num_test_episodes += len(report.returns)
        return report

    def _stop_if_requested(self) -> None:
        if self.requests.stop:
            raise StopRequested

    @contextmanager
    def _as_played(self, *names: str) -> Iterator[None]:
        """Give some of the trained networks their EMA weights for the duration of the context."""
        with ExitStack() as stack:
            for learner in self.learners:
                if learner.name in names:
                    stack.enter_context(learner.as_played())
            yield

    def _bar(self, what: str, *, total: int | None = None, unit: str = "it") -> Bar:
        desc = what if self.epoch == self.num_epochs else f"epoch {self.epoch + 1} {what}"
        return Bar(total=total, desc=desc, unit=unit, disable=not self._shows_progress, leave=False)

    # -- what is saved

    def save(self) -> None:
        """Write the weights and the state."""
        self.group.on_rank_zero(self._save_agent)
        self.save_state()

    def _save_agent(self) -> None:
        config = self.checkpointing
        is_kept = self.epoch % config.save_agent_every == 0 or self.epoch == self.num_epochs
        if self.dataset is not None and (is_kept or not self.run.contexts_file.is_file()):
            self.choose_contexts().save(self.run.contexts_file)
        weights = self.weights()
        try:
            untrusted.check_finite(weights)
        except ValueError as error:
            raise DivergedError(f"after epoch {self.epoch} {error}; the last good epoch is kept") from error
        self.run.save_agent(self.epoch, weights, config.save_agent_every, config.num_to_keep)

    def save_state(self) -> None:
        """Write everything that `resume` needs; any number of processes may resume from it."""
        parts = {learner.name: learner.state_dict() for learner in self.learners}
        self.group.on_rank_zero(lambda: self._save_state(parts))

    def _save_state(self, parts: dict[str, Any]) -> None:
        trained = [learner.name for learner in self.learners]
        self.run.save_state(
            asdict(self.progress)
            | {
                "parts": parts,
                "untrained": {
                    name: module.state_dict()
                    for name, module in self.agent.named_children()
                    if name not in trained
                },
                "episode_lengths": None if self.dataset is None else self.dataset.lengths.tolist(),
                "collector": None if self.collector is None else self.collector.state_dict(),
            }
        )

    def weights(self) -> dict[str, Tensor]:
        """State dict of the agent, with EMA weights where there is a moving average."""
        weights = {name: x.detach().clone() for name, x in self.agent.state_dict().items()}
        for learner in self.learners:
            weights |= {f"{learner.name}.{name}": x for name, x in learner.weights().items()}
        return weights

    def resume(self) -> None:
        """Load the run's saved state; the training dataset must be as it was when that was saved.

        Raises:
            CheckpointError: The state does not fit the configuration.
        """
        state = self.run.load_state()
        with untrusted.reading(self.run.state_file, CheckpointError, "the state of a run with this config"):
            for learner in self.learners:
                learner.load_state_dict(state["parts"][learner.name])
            for name, weights in state.get("untrained", {}).items():
                getattr(self.agent, name).load_state_dict(weights)
            if self.collector is not None and self.dataset is not None:
                self.collector.load_state_dict(state["collector"], self.dataset)
            self.progress = Progress.of(state)
        self.group.on_rank_zero(lambda: self.run.forget_metrics_after(self.epoch))


def derived_seed(*numbers: int) -> int:
    """Derive a seed >= 0 from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _prefixed(prefix: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}

"""Trains the networks of a configuration, epoch by epoch, and saves after each one.

Batches and noise are functions of (seed, part, step); what else a resumed run needs to go on exactly
(weights, optimisers, games under way, counts) is in the saved state. Of several processes, all train and the
first does everything else. Knows nothing of the command line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diamond_gym.backends.choose import has_fast_bfloat16, world_model_kind
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import CheckpointError
from diamond_gym.world.models import Agent
from diamond_gym.world.world_model import WorldModel
from trainers.diamond import data
from trainers.diamond.config import (
    PARTS,
    WORLD_MODEL_PARTS,
    PartTrainingConfig,
    SamplingConfig,
    TrainCollectionConfig,
    TrainerConfig,
)
from trainers.diamond.distributed import SINGLE_PROCESS, Group
from trainers.diamond.errors import StopRequested
from trainers.diamond.learner import (
    ActorCriticObjective,
    DenoiserObjective,
    Draw,
    Given,
    GraphedLoss,
    Learner,
    NotFiniteError,
    RewEndObjective,
    Run,
    batches_in_order,
    diverged,
    eager,
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
from trainers.diamond.replay import Replay, SegmentBatch
from trainers.diamond.rollout import (
    Collector,
    GamesOnDevice,
    ImaginedGames,
    PlayReport,
    RealGames,
    SavedGames,
    play_whole_games,
)
from trainers.diamond.run_folder import RunFolder

# --- schedule
# How long a run lasts and when it collects how much: arithmetic on the configuration and on counts.
#
# Every answer follows from the run's saved state, so that a resumed run asks and goes on.


def num_epochs(config: TrainerConfig, first_epoch_steps: int | None) -> int | None:
    """Epochs of the run in all; None while that is not known yet.

    Args:
        config: The run.
        first_epoch_steps: Steps of the initial collection, once known.
    """
    training, collection = config.training, config.collection.train
    if training.num_epochs is not None:
        return training.num_epochs
    if config.static_dataset.path is not None or training.model_free:
        return max(1, training.num_final_epochs)
    if not config.collects:  # players have: as long as if the policy had
        first_epoch_steps = collection.first_epoch.min
    if first_epoch_steps is None:
        return None
    left = max(0, collection.num_steps_total - first_epoch_steps)
    return max(1, math.ceil(left / collection.steps_per_epoch) + training.num_final_epochs)


def collection_goal(
    config: TrainCollectionConfig,
    epoch: int,
    num_steps: int,
    reward_counts: Mapping[int, int],
    first_epoch_steps: int | None,
) -> int:
    """Steps the training dataset should have, for now: ask again when it has them.

    Args:
        config: How much is collected.
        epoch: The epoch that collects, from 1.
        num_steps: Steps the dataset has.
        reward_counts: How many of them carry a reward of each sign (-1, 0, 1).
        first_epoch_steps: Steps of the initial collection, once that is over; every epoch then adds to it,
            the first one, too.
    """
    if first_epoch_steps is None:
        return min(_initial_goal(config, num_steps, reward_counts), config.num_steps_total)
    return min(first_epoch_steps + epoch * config.steps_per_epoch, config.num_steps_total)


def _initial_goal(config: TrainCollectionConfig, num_steps: int, reward_counts: Mapping[int, int]) -> int:
    """What the initial collection should reach; `num_steps` itself when it has seen enough."""
    first, chunk = config.first_epoch, config.steps_per_epoch
    if num_steps < first.min:
        return first.min
    rarer = sorted(reward_counts.values())[:2]
    if sum(rarer) >= first.threshold_rew:
        return num_steps
    goal = first.min + chunk * ((num_steps - first.min) // chunk + 1)
    return goal if first.max is None else min(goal, first.max)


# --- trainer


_VIDEO_GAMES = 4
_COLLECTION, _TEST_GAMES, _RL_GAMES = range(3)
"""What real or imagined games are played for: their seeds differ."""


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Epochs finished.
        first_epoch_steps: Steps of the initial collection, in epoch 1, once it is over.
        collection_goal: Steps it should have; None when nothing is being collected.
        num_test_episodes: Test games played so far.
        is_finished: Whether the final evaluation is done, too.
        metrics: Of the stages of the present epoch that are done.
    """

    epoch: int = 0
    first_epoch_steps: int | None = None
    collection_goal: int | None = None
    num_test_episodes: int = 0
    is_finished: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """Out of a run's state; what an older one lacks has its default."""
        return cls(**{name: state[name] for name in cls.__dataclass_fields__ if name in state})


class Trainer:
    """Runs the epochs of a configuration.

    Args:
        config: The run.
        run: Where it is saved.
        agent: The networks, on their device.
        train: Episodes to learn from; grows where the run collects.
        test: Episodes to measure the losses on.
        dataset: The training episodes on disk where the run collects.
        log: Where its numbers go; None for metrics.jsonl alone.
        group: The processes that train the run together, each with a trainer of its own.

    Attributes:
        progress: Where the run stands.
        stop_requested: Set it (in a signal handler, say) to have `fit` finish its step, save and raise
            `KeyboardInterrupt`.
    """

    def __init__(
        self,
        config: TrainerConfig,
        run: RunFolder,
        agent: Agent,
        train: Replay,
        test: Replay,
        dataset: EpisodeDataset | None = None,
        log: RunLog | None = None,
        group: Group = SINGLE_PROCESS,
    ) -> None:
        self.log = log or RunLog(run, config)
        self.config, self.run, self.agent, self.group = config, run, agent, group
        self.train, self.test, self.dataset = train, test, dataset
        self.progress = Progress()
        self.stop_requested = False
        self.device = next(agent.parameters()).device
        sampler = config.world_model_env.diffusion_sampler
        kind = world_model_kind(self.device) if config.training.cuda_graphs else WorldModel
        self.world_model = kind(agent.denoiser, agent.rew_end_model, sampler)
        self._autocast = autocast_of(config.training.autocast, self.device)
        self._measured: dict[str, DenoiserObjective | RewEndObjective] = {}
        self.learners = [self._learner(name) for name in config.training.trained_parts]
        self._collector = self._new_collector() if config.collects and group.is_rank_zero else None
        agent.eval()

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.progress.epoch

    @property
    def num_epochs(self) -> int | None:
        """Epochs of the run; None while that depends on what is still to be collected."""
        return num_epochs(self.config, self.progress.first_epoch_steps)

    def fit(self, *, progress: bool = True) -> None:
        """Trains to the last epoch, saving state and weights after each, and evaluates.

        Raises:
            DivergedError: A loss or gradient is not finite; what was saved before is kept.
            CacheError: The run folder cannot be written.
            KeyboardInterrupt: `stop_requested` was set; the state is saved as it was after the last step.
        """
        self._shows_progress = progress and self.group.is_rank_zero
        if not self.group.on_rank_zero(self.run.state_file.is_file):
            self.save_state()  # tells what was collected later from what was there at the start
        try:
            while self.num_epochs is None or self.epoch < self.num_epochs:
                self._run_epoch()
            if not self.progress.is_finished:
                self._finish()
        except StopRequested:
            self.save_state()
            raise KeyboardInterrupt from None
        except NotFiniteError as error:
            batch = self.group.gather(error.batch)
            self.group.on_rank_zero(lambda: self._diverge(error, batch))

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
        num_episodes = self.config.collection.test.num_final_episodes
        if self._plays_test_games and num_episodes > 0:
            report = self._play_test_games(self.epoch + 1, num_episodes, desc="final test")
            self._log({"epoch": self.epoch, **_prefixed("final", report.metrics())})

    def _log(self, metrics: dict[str, Any]) -> None:
        if self._shows_progress:
            tqdm.write(one_line(metrics))
        self.log.log(metrics)

    # -- stages of an epoch: each does what is left to do, and tells nothing when that is nothing

    def _collected(self) -> dict[str, Any]:
        """The first process plays; the others read what it has stored."""
        metrics, self.progress.first_epoch_steps = self.group.on_rank_zero(
            lambda: (self._collect(), self.progress.first_epoch_steps)
        )
        if self.config.collects and not self.group.is_rank_zero:
            data.catch_up(self.train, EpisodeDataset(self.run.dataset("train")))
        return metrics

    def _collect(self) -> dict[str, Any]:
        """Plays the real game until the training dataset is as large as it should be now."""
        collector = self._collector
        if collector is None:
            return {}
        assert self.dataset is not None
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
                    should_stop=lambda: self.stop_requested,
                    on_episode=partial(self.log.episode, "train"),
                )
        self._stop_if_requested()
        counts = {"dataset_steps": self.train.num_steps, "dataset_episodes": len(self.train)}
        return report.metrics() | counts if report.num_steps else {}

    def _collection_goal(self, collector: Collector) -> int | None:
        """Steps that the training dataset should have next; None when the epoch's collection is over."""
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
        return collection_goal(
            self.config.collection.train,
            self.epoch + 1,
            num_steps,
            self.train.reward_sign_counts(),
            self.progress.first_epoch_steps,
        )

    def _train_learner(self, learner: Learner) -> dict[str, Any]:
        """Makes the steps that are left of the part's epoch: all, unless the epoch was interrupted."""
        training = learner.training
        total = training.num_steps(self.num_epochs or self.epoch + 1)
        steps = training.num_steps(self.epoch + 1) - learner.num_steps
        if steps <= 0 or not self.config.training.should:
            return {}
        sums: Metrics = {}
        start, lr_factor = time.perf_counter(), 0.0
        bar = self._bar(learner.name, total=steps)
        with self._as_played(*PARTS, but=learner.name), learner.as_trained(), bar:
            for _ in range(steps):
                lr_factor = training.lr_factor(learner.num_steps, total)
                metrics = learner.step(self.train, seed=self.config.common.seed, lr_factor=lr_factor)
                sums = add(sums, metrics)
                self._log_step(learner, metrics, lr_factor)
                bar.update()
                if self.group.any(self.stop_requested):
                    learner.check_finite()
                    raise StopRequested
            learner.check_finite()
        result = {"num_steps": learner.num_steps, "lr": learner.base_lr * lr_factor} | summary(
            learner.total(sums), steps
        )
        return result | {"steps_per_s": steps / (time.perf_counter() - start)}

    def _log_step(self, learner: Learner, metrics: Metrics, lr_factor: float) -> None:
        """Logs the numbers of the step that was just made, if it is its turn."""
        if self.log.wants_step(learner.num_steps):
            numbers = learner.total({name: x for name, x in metrics.items() if x.ndim == 0})
            scalars = {name: x.item() for name, x in numbers.items()}
            self.log.step(learner.name, learner.num_steps, scalars | {"lr": learner.base_lr * lr_factor})

    def next_of(self) -> dict[str, int]:
        """The next step of each network and episode of each dataset, as `RunLog.open` takes them."""
        under_way = set() if self._collector is None else self._collector.stored_numbers
        last = len(self.train) - 1
        return {step_series(learner.name): learner.num_steps + 1 for learner in self.learners} | {
            episode_series("train"): last if last in under_way else last + 1,
            episode_series("test"): self.progress.num_test_episodes,
        }

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """Where it is time to: plays whole games, imagines, and measures the weights to be saved."""
        config, metrics = self.config.evaluation, {}
        is_time = epoch % config.every == 0
        if config.should and is_time:
            metrics = self._test_games(epoch) | self._imagine(epoch)
        if config.should and (is_time or epoch == self.num_epochs):
            for learner in self.learners:
                metrics |= _prefixed(learner.name, self._measure(learner))
        return metrics

    def _test_games(self, epoch: int) -> dict[str, Any]:
        if not self._plays_test_games:
            return {}
        replaces = self.config.collects and self.config.collection.test.players is None
        episodes: list[Episode] | None = [] if replaces else None
        report = self._play_test_games(epoch, self.config.collection.test.num_episodes, episodes=episodes)
        if episodes is not None:
            data.replace_test_dataset(self.run, episodes)
            self.test = data.load_test_replay(self.run)
        return _prefixed("test", report.metrics())

    def _imagine(self, epoch: int) -> dict[str, Any]:
        """Imagines real games under their actions, in a video."""
        replay = self.test if len(self.test) else self.train
        n, horizon = self.world_model.num_steps_conditioning, self.config.world_model_env.horizon
        starts = draw_starts(replay, _VIDEO_GAMES, n + horizon, seed=0)
        if starts is None:
            return {}
        with self._as_played(*WORLD_MODEL_PARTS), self._autocast():
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
        """Losses of the weights to be saved on the whole test dataset, under the same noise every time."""
        objective = self._measured.get(learner.name)
        if objective is None or learner.num_steps == 0:
            return {}
        sums: Metrics = {}
        num_segments = 0
        with learner.as_played():
            for i, batch in enumerate(self._test_batches(learner)):
                self._stop_if_requested()
                given = Given(learner.training, by_age=False, device=self.device, batch=batch)
                rng = np.random.default_rng([i, PARTS.index(learner.name)])
                example = replace(objective, draw=given).example(
                    self.test, rng, learner.num_steps, plain=True
                )
                weight = len(batch.obs)
                num_segments += weight
                metrics = example.metrics | {"loss": example.loss}
                sums = add(sums, {k: x * weight if x.ndim == 0 else x for k, x in metrics.items()})
        return {f"test_{name}": value for name, value in summary(sums, num_segments).items()}

    def _test_batches(self, learner: Learner) -> Iterator[SegmentBatch]:
        if learner.name == "denoiser":
            num_predictions = 1 + self.config.denoiser.training.num_autoregressive_steps
            length = self.world_model.num_steps_conditioning + num_predictions
        else:
            length = self.config.rew_end_model.training.seq_length
        return batches_in_order(self.test, length, learner.training.batch_size)

    @property
    def _plays_test_games(self) -> bool:
        config = self.config
        return config.evaluation.should and config.learns_to_play and config.game is not None

    def _play_test_games(
        self, epoch: int, num_episodes: int, *, episodes: list[Episode] | None = None, desc: str = "test"
    ) -> PlayReport:
        """Plays games that only the epoch's number decides; puts their episodes into `episodes`, if given."""
        actor_critic, game = self.agent.actor_critic, self.config.game
        assert actor_critic is not None and game is not None
        sampling = self.config.collection.test
        seed = derived_seed(self.config.common.seed, _TEST_GAMES, epoch)
        games = RealGames(game, min(sampling.num_envs, num_episodes), training=False, seed=seed)
        with self._as_played("actor_critic"), self._bar(desc, total=num_episodes, unit="episode") as bar:
            collector = Collector(
                actor_critic,
                games,
                sampling,
                seed=seed,
                keeps_frames=episodes is not None,
                max_episode_steps=sampling.max_episode_steps,
            )
            report = play_whole_games(
                collector,
                num_episodes,
                bar=bar,
                should_stop=lambda: self.stop_requested,
                on_episode=lambda episode: None if episodes is None else episodes.append(episode),
            )
        self._stop_if_requested()
        for number, played in enumerate(
            zip(report.returns, report.lengths, strict=True), start=self.progress.num_test_episodes
        ):
            self.log.episode("test", number, *played)
        self.progress.num_test_episodes += len(report.returns)
        return report

    def _stop_if_requested(self) -> None:
        if self.stop_requested:
            raise StopRequested

    def _as_played(self, *names: str, but: str | None = None) -> ExitStack:
        """Some of the trained networks hold the weights that are saved and played, meanwhile."""
        with ExitStack() as stack:
            for learner in self.learners:
                if learner.name in names and learner.name != but:
                    stack.enter_context(learner.as_played())
            return stack.pop_all()

    def _bar(self, what: str, *, total: int | None = None, unit: str = "it") -> tqdm:
        desc = what if self.epoch == self.num_epochs else f"epoch {self.epoch + 1} {what}"
        return tqdm(total=total, desc=desc, unit=unit, disable=not self._shows_progress, leave=False)

    # -- what is saved

    def save(self) -> None:
        """Writes the weights and the state."""
        self.group.on_rank_zero(self._save_agent)
        self.save_state()

    def _save_agent(self) -> None:
        config = self.config.checkpointing
        is_kept = self.epoch % config.save_agent_every == 0 or self.epoch == self.num_epochs
        if self.config.collects and (is_kept or not self.run.contexts_file.is_file()):
            data.choose_contexts(self.config, self.run).save(self.run.contexts_file)
        self.run.save_agent(self.epoch, self.weights(), config.save_agent_every, config.num_to_keep)

    def save_state(self) -> None:
        """Writes all that `resume` needs, by any number of processes."""
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
                "collector": None if self._collector is None else self._collector.state_dict(),
            }
        )

    def weights(self) -> dict[str, Tensor]:
        """State dict of the agent, averaged where averages are kept."""
        weights = {name: x.detach().clone() for name, x in self.agent.state_dict().items()}
        for learner in self.learners:
            weights |= {f"{learner.name}.{name}": x for name, x in learner.weights().items()}
        return weights

    def resume(self) -> None:
        """Goes on from the run's saved state; the training dataset must be as it was then.

        Raises:
            CheckpointError: The state does not fit the configuration.
        """
        state = self.run.load_state()
        try:
            for learner in self.learners:
                learner.load_state_dict(state["parts"][learner.name])
            for name, weights in state.get("untrained", {}).items():
                getattr(self.agent, name).load_state_dict(weights)
            if self._collector is not None:
                assert self.dataset is not None
                self._collector.load_state_dict(state["collector"], self.dataset)
            self.progress = Progress.of(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.run.state_file} does not fit the run's config: {error}") from error
        self.group.on_rank_zero(lambda: self.run.forget_metrics_after(self.epoch))

    # -- how it is built

    def _learner(self, name: str) -> Learner:
        config = {
            "denoiser": self.config.denoiser,
            "rew_end_model": self.config.rew_end_model,
            "actor_critic": self.config.actor_critic,
        }[name]
        draw, run = self._draw(config.training), self._run_of(config.training)
        if name == "actor_critic":
            objective = self._actor_critic_objective(draw)
        elif name == "denoiser":
            denoiser = self.agent.denoiser
            objective = DenoiserObjective(denoiser, self.config.denoiser, draw, self._autocast, run=run)
            self._measured[name] = objective
        else:
            model = self.world_model
            objective = RewEndObjective(model, self.config.rew_end_model, draw, self._autocast, run)
            self._measured[name] = objective
        module = getattr(self.agent, name)
        return Learner.of(name, module, config.training, config.optimizer, objective, self.group)

    def _run_of(self, training: PartTrainingConfig) -> Run:
        """How a network's loss is computed: as a graph where one process makes steps of one batch on CUDA."""
        config, on_cuda = self.config.training, self.device.type == "cuda"
        is_simple = training.grad_acc_steps == 1 and self.group.world_size == 1 and not config.compile
        return GraphedLoss() if on_cuda and is_simple and config.cuda_graphs else eager

    def _draw(self, training: PartTrainingConfig) -> Draw:
        static = self.config.static_dataset
        by_age = static.path is None or not static.ignore_sample_weights
        return Draw(training, by_age, self.device, self.group)

    def _actor_critic_objective(self, draw: Draw) -> ActorCriticObjective:
        assert self.agent.actor_critic is not None
        loss = self.config.actor_critic.actor_critic_loss
        games = self._real_games(draw) if self.config.training.model_free else self._imagined_games(draw)
        num_steps = loss.backup_every or self.config.world_model_env.horizon
        return ActorCriticObjective(
            self.agent.actor_critic, games, num_steps, loss, self._autocast, self.group
        )

    def _real_games(self, draw: Draw) -> SavedGames:
        assert self.config.game is not None
        seed = derived_seed(self.config.common.seed, _RL_GAMES)
        share = draw.share
        num_games = share.stop - share.start
        games = RealGames(self.config.game, num_games, training=True, seed=seed, first=share.start)
        return games if self.device.type == "cpu" else GamesOnDevice(games, self.device)

    def _imagined_games(self, draw: Draw) -> ImaginedGames:
        n, share = self.world_model.num_steps_conditioning, draw.share
        weights = draw.training.sample_weights if draw.by_age else None

        def start(rng: np.random.Generator) -> SegmentBatch:
            return self.train.draw(rng, 1, n, sample_weights=weights, pad_after=False)

        return ImaginedGames(
            self.world_model,
            start,
            share.stop - share.start,
            self.config.world_model_env.horizon,
            seed=(self.config.common.seed, _RL_GAMES),
            first=share.start,
        )

    def _new_collector(self) -> Collector:
        assert self.agent.actor_critic is not None and self.config.game is not None
        sampling: SamplingConfig = self.config.collection.train
        seed = derived_seed(self.config.common.seed, _COLLECTION)
        games = RealGames(self.config.game, sampling.num_envs, training=True, seed=seed)
        return Collector(self.agent.actor_critic, games, sampling, seed=seed)


def autocast_of(name: str | None, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes contexts in which networks run in the precision of `training.autocast`."""
    if name == "auto":
        name = "bfloat16" if has_fast_bfloat16(device) else None
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=name is not None)


def derived_seed(*numbers: int) -> int:
    """A seed >= 0 out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _prefixed(prefix: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}

"""All settings of the trainer under their published names, and the one place where their values are read.

Plain dataclasses, validated when they are made, are the single source of defaults (the paper's). Hydra
composes presets and `key=value` arguments, OmegaConf checks their types, and `parse` returns these
dataclasses. The working directory never changes and no folder is made.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from diamond_gym import cli, untrusted
from diamond_gym.backends.names import BACKENDS, warn_deprecated
from diamond_gym.checkpoints.contexts import check_fits_file
from diamond_gym.errors import CheckpointError, InvalidInputError, MissingDependencyError, first_line
from diamond_gym.games.atari import SCREEN_SIZE
from diamond_gym.registration import game_name
from diamond_gym.world.models import AgentConfig
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import noise_levels
from trainers.diamond.losses import ActorCriticLossConfig, SigmaDistributionConfig, is_of_share

try:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
except ImportError as error:
    raise MissingDependencyError(
        f"training needs hydra-core ({error}): pip install 'diamond-gym[train]'"
    ) from error


# --- config


MAX_DISPLACEMENT = 8
"""Largest `displacement_radius`, in pixels."""
WORLD_MODEL_PARTS = ("denoiser", "rew_end_model")
PARTS = (*WORLD_MODEL_PARTS, "actor_critic")
BACKENDS_OF_TRAINING = tuple(name for name in BACKENDS if name != "openvino")
"""OpenVINO computes no gradients."""


def require(ok: bool, message: str) -> None:
    """Raise `InvalidInputError(message)` unless `ok` is true."""
    if not ok:
        raise InvalidInputError(message)


@dataclass
class CommonConfig:
    """The device and the seed of the run.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:1".
        seed: Fixes the run.
    """

    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, f"common.seed must be at least 0 and below 2^31, got {self.seed}")


@dataclass
class PlayerConfig:
    """A player that collects `num_steps` steps.

    Attributes:
        name: "random", "scripted" (some games have one), "auto" (scripted where the game has one, else
            random), or "ppo": Stable-Baselines3's PPO, which learns the game from scratch while it plays, so
            that its steps show play of all strengths (needs the extra "sb3").
        num_steps: How many steps it plays.
        noise: How badly the scripted player plays, in [0, 1].
        repeat: Largest number of steps for which the random player holds an action.
    """

    name: str = "random"
    num_steps: int = 10_000
    noise: float = 0.15
    repeat: int = 1

    def __post_init__(self) -> None:
        accepted = ("auto", "random", "scripted", "ppo")
        require(self.name in accepted, f"player {self.name!r}: accepted are {', '.join(accepted)}")
        require(
            self.num_steps >= 1, f"player {self.name}: num_steps must be at least 1, got {self.num_steps}"
        )
        require(0 <= self.noise <= 1, f"player {self.name}: noise must be in [0, 1], got {self.noise}")
        require(self.repeat >= 1, f"player {self.name}: repeat must be at least 1, got {self.repeat}")


@dataclass
class FirstEpochConfig:
    """How long the initial collection is, at the start of the first epoch: until rewards have been seen.

    Attributes:
        min: Steps it collects in any case.
        max: Steps after which it stops; null for no limit.
        threshold_rew: Number of steps that must carry a reward of one of the two rarer signs.
    """

    min: int = 5_000
    max: int | None = 10_000
    threshold_rew: int = 10

    def __post_init__(self) -> None:
        require(self.min >= 1, f"first_epoch.min must be at least 1, got {self.min}")
        require(self.threshold_rew >= 0, f"threshold_rew must not be negative, got {self.threshold_rew}")
        require(
            self.max is None or self.max >= self.min,
            f"first_epoch.max must be at least first_epoch.min={self.min}, or null, got {self.max}",
        )


@dataclass
class SamplingConfig:
    """How the actor-critic plays the real game.

    Attributes:
        num_envs: Games played at once.
        epsilon: Probability in [0, 1] of a uniformly random action.
        temperature: Divides the action logits before an action is sampled; 1 as in the paper, lower is
            greedier, 0 takes the likeliest action. Freeway needs a low one: nothing is scored before UP has
            been held nearly all the way across the road, which a policy that has learned nothing does not do
            at 1. A low temperature enlarges the small differences between its logits, so that it holds an
            action for long. The published Freeway results rely on it; a training of Freeway at 1 scores 0:
            `train game=Freeway collection.train.temperature=0.01`
    """

    num_envs: int = 1
    epsilon: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self.num_envs >= 1, f"num_envs must be at least 1, got {self.num_envs}")
        require(0 <= self.epsilon <= 1, f"epsilon must be in [0, 1], got {self.epsilon}")
        require(self.temperature >= 0, f"temperature must not be negative, got {self.temperature}")


@dataclass
class TrainCollectionConfig(SamplingConfig):
    """Who fills the training dataset.

    Attributes:
        num_steps_total: Steps after which the dataset no longer grows.
        steps_per_epoch: Steps collected in every epoch (in the first one after the initial collection, which
            also collects in units of so many).
        first_epoch: How long the initial collection is; the steps of `players` count.
        players: Players that play before epoch 1, one after the other. null: none where the actor-critic is
            trained, which then collects everything; else a random player for `num_steps_total` steps.
    """

    epsilon: float = 0.01
    num_steps_total: int = 100_000
    steps_per_epoch: int = 100
    first_epoch: FirstEpochConfig = field(default_factory=FirstEpochConfig)
    players: list[PlayerConfig] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_steps_total >= 1, f"num_steps_total must be at least 1, got {self.num_steps_total}")
        require(self.steps_per_epoch >= 1, f"steps_per_epoch must be at least 1, got {self.steps_per_epoch}")
        require(self.players != [], "collection.train.players needs at least one player, or null")


@dataclass
class TestCollectionConfig(SamplingConfig):
    """Who plays the test games, from their start to game over.

    Attributes:
        num_episodes: Games at each evaluation.
        num_final_episodes: Games at the end of the run.
        max_episode_steps: Steps after which a game is cut short; null for the emulator's own limit of 27 000,
            which a policy reaches that has forgotten how to serve the ball.
        players: Players that fill the test dataset before epoch 1, for losses on data that training does not
            see. null: where the actor-critic is trained, the games of the newest evaluation are the test
            dataset; else a random player plays a twentieth of `collection.train.num_steps_total`.
    """

    num_episodes: int = 4
    num_final_episodes: int = 100
    max_episode_steps: int | None = None
    players: list[PlayerConfig] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_episodes >= 1, f"num_episodes must be at least 1, got {self.num_episodes}")
        require(
            self.num_final_episodes >= 0,
            f"num_final_episodes must not be negative, got {self.num_final_episodes}",
        )
        require(
            self.max_episode_steps is None or self.max_episode_steps >= 1,
            f"max_episode_steps must be at least 1, or null, got {self.max_episode_steps}",
        )
        require(self.players != [], "collection.test.players needs at least one player, or null")


@dataclass
class CollectionConfig:
    """Collection of the training and test datasets from the real game.

    Attributes:
        train: Who fills the training dataset.
        test: Who plays the test games.
    """

    train: TrainCollectionConfig = field(default_factory=TrainCollectionConfig)
    test: TestCollectionConfig = field(default_factory=TestCollectionConfig)


@dataclass
class StaticDatasetConfig:
    """Recorded episodes to train on instead of collecting.

    Attributes:
        path: A folder with `train` and, optionally, `test` datasets.
        ignore_sample_weights: Whether all steps are drawn equally often, instead of newer ones more often.
    """

    path: str | None = None
    ignore_sample_weights: bool = True


@dataclass
class InitializationConfig:
    """Weights to start from, and which parts to take from them.

    Attributes:
        path_to_ckpt: A checkpoint that loads as a world; null for random weights.
        load_denoiser: Whether the denoiser is taken from it.
        load_rew_end_model: Whether the reward/end model is taken from it.
        load_actor_critic: Whether the actor-critic is taken from it.
        new_actions: Whether it may be of a game with another number of actions. Weights that depend on that
            number then stay random. Between games with equally many actions all weights are taken, whatever
            the actions mean.
    """

    path_to_ckpt: str | None = None
    load_denoiser: bool = True
    load_rew_end_model: bool = True
    load_actor_critic: bool = True
    new_actions: bool = False


@dataclass
class CheckpointingConfig:
    """Which agent versions are kept besides that of the newest epoch, which is always kept.

    Attributes:
        save_agent_every: Epochs from one kept version to the next.
        num_to_keep: Number of versions that are kept, the newest ones; null for all.
    """

    save_agent_every: int = 5
    num_to_keep: int | None = 11

    def __post_init__(self) -> None:
        require(self.save_agent_every >= 1, "checkpointing.save_agent_every must be at least 1")
        require(
            self.num_to_keep is None or self.num_to_keep >= 1,
            "checkpointing.num_to_keep must be at least 1, or null for all",
        )


@dataclass
class EvaluationConfig:
    """Whether and how often the run is evaluated.

    An evaluation plays test games, imagines real games for a video, and measures losses on the whole test
    dataset (these after the last epoch, too).

    Attributes:
        should: Whether the run is evaluated.
        every: Epochs from one evaluation to the next.
    """

    should: bool = True
    every: int = 10

    def __post_init__(self) -> None:
        require(self.every >= 1, f"evaluation.every must be at least 1, got {self.every}")


@dataclass
class TrainingConfig:
    """What is trained, and for how long.

    Attributes:
        should: False trains nothing: the epochs only collect and evaluate.
        parts: Networks to train, among "denoiser", "rew_end_model" and "actor_critic".
        model_free: True trains the actor-critic alone, in the real game instead of in imagination.
        num_epochs: Epochs in all; each trains every part for its `steps_per_epoch` (the first for
            `steps_first_epoch`) and ends with a saved state. null: as many as the policy would need to
            collect `collection.train.num_steps_total` steps (also where players collect them), and then
            `num_final_epochs`; the latter alone with a static dataset or `model_free`.
        num_final_epochs: Epochs without collection at the end, where `num_epochs` is null (at least one
            epoch is trained).
        autocast: "bfloat16" runs the networks in mixed precision, null in float32; "auto" is bfloat16 where
            the hardware multiplies it (AMX, AVX-512 BF16, most CUDA), and float32 elsewhere, where it is
            faster.
        tf32: Whether CUDA may round the factors of float32 products to TF32, which is several times as fast.
        backend: What runs the networks. "inductor" compiles the denoiser, which takes minutes at the start
            and shortens every step; on CUDA, games are imagined as CUDA graphs. "cuda_graph", on CUDA,
            imagines games and computes losses and gradients of denoiser and reward/end model as graphs (the
            latter only in one process, with `grad_acc_steps` 1). "auto" is "cuda_graph" on CUDA, else
            "eager".
        num_threads: CPU threads; null leaves the choice to PyTorch.
        compress_frames: Whether the frames that are learned from are kept compressed in memory, without
            loss: 19 times as many steps of Breakout, 8 times as many of Freeway, and batches that take
            some hundredths of a second longer to draw.
    """

    should: bool = True
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    model_free: bool = False
    num_epochs: int | None = None
    num_final_epochs: int = 50
    autocast: str | None = None
    tf32: bool = True
    backend: str = "auto"
    num_threads: int | None = None
    compress_frames: bool = False

    def __post_init__(self) -> None:
        require(
            bool(self.parts) and set(self.parts) <= set(PARTS) and len(set(self.parts)) == len(self.parts),
            f"training.parts={list(self.parts)}: accepted are {', '.join(PARTS)}",
        )
        require(
            self.backend in BACKENDS_OF_TRAINING,
            f"training.backend={self.backend!r}: accepted are {', '.join(BACKENDS_OF_TRAINING)}",
        )
        require(
            not self.model_free or "actor_critic" in self.parts,
            f"training.model_free=true trains the actor_critic, training.parts={list(self.parts)} does not",
        )
        require(
            self.num_epochs is None or self.num_epochs >= 1,
            f"training.num_epochs must be at least 1, or null, got {self.num_epochs}",
        )
        require(
            self.num_final_epochs >= 0,
            f"training.num_final_epochs must not be negative, got {self.num_final_epochs}",
        )
        require(
            self.autocast in (None, "bfloat16", "auto"),
            f"training.autocast={self.autocast!r}: accepted are auto, bfloat16, null",
        )
        require(
            self.num_threads is None or self.num_threads >= 1,
            f"training.num_threads must be at least 1, or null, got {self.num_threads}",
        )

    @property
    def trained_parts(self) -> list[str]:
        """Networks that are trained, in the order in which an epoch trains them."""
        chosen = ["actor_critic"] if self.model_free else self.parts
        return [part for part in PARTS if part in chosen]


@dataclass
class OptimizerConfig:
    """The optimiser of a network.

    Attributes:
        name: "adamw" (as published), or "muon": Muon for weights of layers, AdamW for all others. A good
            learning rate for it is twice that of AdamW.
        lr: Learning rate.
        weight_decay: Decay of the weights of layers; biases, norms and embeddings have none.
        eps: Term added to the denominator of AdamW.
    """

    name: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 1e-2
    eps: float = 1e-8

    def __post_init__(self) -> None:
        require(
            self.name in ("adamw", "muon"),
            f"optimizer.name={self.name!r}: accepted are adamw, muon",
        )
        require(self.lr > 0, f"lr must be above 0, got {self.lr}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.eps > 0, f"eps must be above 0, got {self.eps}")


@dataclass
class PartTrainingConfig:
    """How one network is trained.

    Attributes:
        start_after_epochs: Epochs at the start of the run that do not train this network.
        steps_first_epoch: Optimiser steps in epoch 1.
        steps_per_epoch: Optimiser steps in every later epoch.
        sample_weights: Weights of equal parts of the replay by age, oldest first; null draws episodes in
            proportion to their length.
        batch_size: Segments a step (for the actor-critic: games), over all processes.
        grad_acc_steps: Batches whose gradients are added up in one optimiser step.
        lr_warmup_steps: Steps of linear warm-up; the first has learning rate 0.
        lr_schedule: "constant" (as published) or "cosine": down to 0 at the end of the run.
        max_grad_norm: Norm to which gradients are clipped.
        event_fraction: Share of the segments drawn around a step with a reward or an end (0 as published).
        ema_decay: Decay of the moving average of the weights that is saved and played; 0 for none (as
            published).
    """

    start_after_epochs: int = 0
    steps_first_epoch: int = 10_000
    steps_per_epoch: int = 400
    sample_weights: list[float] | None = field(default_factory=lambda: [0.1, 0.1, 0.1, 0.7])
    batch_size: int = 32
    grad_acc_steps: int = 1
    lr_warmup_steps: int = 100
    lr_schedule: str = "constant"
    max_grad_norm: float = 1.0
    event_fraction: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "grad_acc_steps", "steps_first_epoch", "steps_per_epoch"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(
            self.start_after_epochs >= 0,
            f"start_after_epochs must not be negative, got {self.start_after_epochs}",
        )
        weights = self.sample_weights
        require(
            weights is None or (bool(weights) and min(weights) >= 0 and sum(weights) > 0),
            f"sample_weights must not be negative, with one above 0, or null; got {weights}",
        )
        require(self.max_grad_norm > 0, f"max_grad_norm must be above 0, got {self.max_grad_norm}")
        require(
            self.lr_schedule in ("constant", "cosine"),
            f"lr_schedule={self.lr_schedule!r}: accepted are constant, cosine",
        )
        require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}")

    def num_steps(self, num_epochs: int) -> int:
        """Optimiser steps in the first `num_epochs` epochs."""
        if num_epochs <= self.start_after_epochs:
            return 0
        if self.start_after_epochs > 0:
            return (num_epochs - self.start_after_epochs) * self.steps_per_epoch
        return self.steps_first_epoch + (num_epochs - 1) * self.steps_per_epoch

    def lr_factor(self, step: int, num_steps: int) -> float:
        """Factor of the learning rate at a step, given the number of steps of the run."""
        warmup = min(1.0, step / self.lr_warmup_steps) if self.lr_warmup_steps > 0 else 1.0
        if self.lr_schedule == "constant":
            return warmup
        return warmup * (1 + math.cos(math.pi * min(1.0, step / max(1, num_steps)))) / 2


@dataclass
class DenoiserTrainingConfig(PartTrainingConfig):
    """Settings of `PartTrainingConfig`, and those that only the denoiser has.

    Attributes:
        num_autoregressive_steps: Predictions beyond the first, each conditioned on the earlier ones; 0 with
            `denoiser.objective=ddpm` where it is not given, as in the paper.
        autoregressive_from_step: Optimiser step from which they are made (0 as published).
        moving_pixels_weight: Extra loss weight of pixels near which something moves, or is wrongly predicted
            to move (0 as published).
        displacement_radius: Pixels, 0 to 8, by which what is predicted may lie beside its place at a small
            cost, so that an uncertain place does not make it faint; 0 compares pixel by pixel (as published).
        max_displacement: Pixels, 0 to 8, by which what is predicted may be off its place in the recording.
            Beyond it, or where something is missing or made up, later predictions are conditioned on the
            real frame instead: the recording does not follow from what was predicted. null for no limit (as
            published).
        pure_noise_fraction: Share of the segments predicted from noise that holds nothing of the frame to
            come, at `world_model_env.diffusion_sampler.sigma_max`, as a single denoising step does at play,
            instead of from noised frames (0 as published). It needs the objective "edm".
        hard_fraction: Share of the segments drawn around steps in proportion to how badly they were predicted
            when they were last seen, for their noise level (0 as published); the first steps of an episode,
            which nothing foretells, are left out.
        step_weights: A file of `python -m diamond_gym.evaluate.events`, by whose weights that share is drawn
            instead; null for none.
        crop_size: Side in pixels of crops around what moves, on which a share of the steps is trained; null
            for whole frames only (as published).
        crop_batch_size: Crops a step, over all processes.
        crop_fraction: Share of the optimiser steps that are on crops.
        crop_autoregressive_steps: Predictions beyond the first on crops.
        crops_only_until_step: Optimiser step before which all steps are on crops.
    """

    num_autoregressive_steps: int = 1
    autoregressive_from_step: int = 0
    moving_pixels_weight: float = 0.0
    displacement_radius: int = 0
    max_displacement: int | None = None
    pure_noise_fraction: float = 0.0
    hard_fraction: float = 0.0
    step_weights: str | None = None
    crop_size: int | None = None
    crop_batch_size: int = 128
    crop_fraction: float = 0.5
    crop_autoregressive_steps: int = 0
    crops_only_until_step: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "num_autoregressive_steps",
            "autoregressive_from_step",
            "moving_pixels_weight",
            "crop_autoregressive_steps",
            "crops_only_until_step",
        ):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("pure_noise_fraction", "hard_fraction", "crop_fraction"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be in [0, 1], got {getattr(self, name)}")
        require(
            0 <= self.displacement_radius <= MAX_DISPLACEMENT,
            f"displacement_radius must be in 0..{MAX_DISPLACEMENT}, got {self.displacement_radius}",
        )
        require(
            self.max_displacement is None or 0 <= self.max_displacement <= MAX_DISPLACEMENT,
            f"max_displacement must be in 0..{MAX_DISPLACEMENT}, or null, got {self.max_displacement}",
        )
        require(
            self.step_weights is None or self.hard_fraction > 0,
            "step_weights say how a share hard_fraction of the segments is drawn: it must be above 0, got 0",
        )
        require(self.crop_batch_size >= 1, f"crop_batch_size must be at least 1, got {self.crop_batch_size}")
        require(
            self.crop_size is None or self.crop_size >= 1,
            f"crop_size must be at least 1, or null, got {self.crop_size}",
        )

    def is_on_crops(self, step: int) -> bool:
        """Whether an optimiser step is trained on crops; these steps are spread evenly among the others."""
        if self.crop_size is None:
            return False
        if step < self.crops_only_until_step:
            return True
        return is_of_share(step, self.crop_fraction)

    def num_predictions(self, step: int, *, on_crops: bool) -> int:
        """Predictions a segment at an optimiser step."""
        if step < self.autoregressive_from_step:
            return 1
        return 1 + (self.crop_autoregressive_steps if on_crops else self.num_autoregressive_steps)


@dataclass
class RewEndTrainingConfig(PartTrainingConfig):
    """Settings of `PartTrainingConfig`, and those that only the reward/end model has.

    Attributes:
        seq_length: Steps of a segment.
        difference_init: Whether the first convolution starts as a detector of change, which
            finds rare and small events much sooner (False as published).
        imagined_fraction: Share of the segments that continue in imagination from some step on, as at play,
            for as long as the imagined frames agree with the real ones (0 as published).
    """

    seq_length: int = 19
    difference_init: bool = False
    imagined_fraction: float = 0.0
    max_grad_norm: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.imagined_fraction <= 1,
            f"imagined_fraction must be in [0, 1], got {self.imagined_fraction}",
        )
        require(self.seq_length >= 2, f"seq_length must be at least 2, got {self.seq_length}")


@dataclass
class DenoiserPartConfig:
    """Training of the denoiser."""

    training: DenoiserTrainingConfig = field(default_factory=DenoiserTrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sigma_distribution: SigmaDistributionConfig = field(default_factory=SigmaDistributionConfig)


@dataclass
class RewEndPartConfig:
    """Training of the reward/end model."""

    training: RewEndTrainingConfig = field(default_factory=RewEndTrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class ActorCriticTrainingConfig(PartTrainingConfig):
    """Settings of `PartTrainingConfig` for the actor-critic; `event_fraction` must be 0."""

    steps_first_epoch: int = 5_000
    max_grad_norm: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.event_fraction == 0, "actor_critic.training.event_fraction must be 0")


@dataclass
class ActorCriticPartConfig:
    """Training of the actor-critic."""

    training: ActorCriticTrainingConfig = field(default_factory=ActorCriticTrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    actor_critic_loss: ActorCriticLossConfig = field(default_factory=ActorCriticLossConfig)


@dataclass
class WorldModelEnvConfig:
    """How games are imagined.

    Attributes:
        horizon: Steps of an imagined game.
        diffusion_sampler: How its frames are sampled.
    """

    horizon: int = 15
    diffusion_sampler: DiffusionSamplerConfig = field(default_factory=DiffusionSamplerConfig)

    def __post_init__(self) -> None:
        require(self.horizon >= 1, f"world_model_env.horizon must be at least 1, got {self.horizon}")


@dataclass
class ExportConfig:
    """How a finished run writes its world model to its folder `world`, as the command `export` does.

    Attributes:
        should: Whether the world model is written.
        average: Whether its denoiser is the best average of the run's snapshots instead of the newest one.
        evaluate: Whether it is evaluated and gets a model card (minutes).
        dtype: "float16" or "float32".
        num_contexts: Number of start contexts, drawn from the run's data.
        max_mb: Largest size in MB (10^6 bytes), such as 4 for a world that a package embeds; null for no
            limit.
    """

    should: bool = False
    average: bool = False
    evaluate: bool = False
    dtype: str = "float16"
    num_contexts: int = 64
    max_mb: float | None = None

    def __post_init__(self) -> None:
        require(
            self.dtype in ("float16", "float32"),
            f"export.dtype={self.dtype!r}: accepted are float16, float32",
        )
        require(self.num_contexts >= 1, f"export.num_contexts must be at least 1, got {self.num_contexts}")
        require(
            self.max_mb is None or self.max_mb > 0,
            f"export.max_mb must be above 0 or null, got {self.max_mb}",
        )


@dataclass
class LoggingConfig:
    """What is logged to TensorBoard and Weights & Biases besides the numbers of every epoch.

    Attributes:
        every_steps: Optimiser steps of a network from one entry of its losses to the next (1 as published);
            on a GPU, an entry waits for the step to finish. null for none.
        every_episodes: Episodes of the real game from one entry of return and length to the next; null for
            none.
    """

    every_steps: int | None = 50
    every_episodes: int | None = 1

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_episodes"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"logging.{name} must be at least 1, or null for none, got {value}",
            )


@dataclass
class TensorBoardConfig:
    """Logging to TensorBoard.

    Attributes:
        enabled: Whether curves are written into the run's folder `tensorboard`, where it is installed.
    """

    enabled: bool = True


@dataclass
class WandbConfig:
    """Logging to Weights & Biases.

    Attributes:
        mode: "disabled", "online", or "offline": everything is written to the run's folder `wandb`, to be
            sent later with `wandb sync`.
        project: Project to log to.
        entity: User or team; null for the default one.
        name: The run's name; null for a generated one.
        group: Name of a group of runs.
        tags: Labels of the run.
        notes: A longer description.
    """

    mode: str = "disabled"
    project: str = "diamond"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    notes: str | None = None

    def __post_init__(self) -> None:
        accepted = ("disabled", "online", "offline")
        require(self.mode in accepted, f"wandb.mode={self.mode!r}: accepted are {', '.join(accepted)}")


@dataclass
class TrainerConfig:
    """The whole run.

    Attributes:
        game: Any Atari game of ale-py; null when a static dataset says what is learned.
    """

    game: str | None = None
    common: CommonConfig = field(default_factory=CommonConfig)
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    static_dataset: StaticDatasetConfig = field(default_factory=StaticDatasetConfig)
    initialization: InitializationConfig = field(default_factory=InitializationConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    denoiser: DenoiserPartConfig = field(default_factory=DenoiserPartConfig)
    rew_end_model: RewEndPartConfig = field(default_factory=RewEndPartConfig)
    actor_critic: ActorCriticPartConfig = field(default_factory=ActorCriticPartConfig)
    world_model_env: WorldModelEnvConfig = field(default_factory=WorldModelEnvConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    @property
    def learns_to_play(self) -> bool:
        """Whether the actor-critic is among the networks of the run."""
        return "actor_critic" in self.training.parts

    @property
    def collects(self) -> bool:
        """Whether the actor-critic fills the training dataset."""
        needed = self.static_dataset.path is None and not self.training.model_free
        return self.learns_to_play and needed

    @property
    def num_collected(self) -> int:
        """Number of steps that the training dataset will reach where the actor-critic fills it, else 0."""
        return self.collection.train.num_steps_total if self.collects else 0

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of the frames that the networks take."""
        return self.agent.frame_shape

    @property
    def players(self) -> dict[str, list[PlayerConfig]]:
        """The players before epoch 1, for the "train" and the "test" dataset; none with a static dataset."""
        if self.static_dataset.path is not None or self.training.model_free:
            return {"train": [], "test": []}
        num_steps = self.collection.train.num_steps_total
        nobody_else = {
            "train": PlayerConfig(num_steps=num_steps),
            "test": PlayerConfig(num_steps=max(1, num_steps // 20)),
        }
        given = {"train": self.collection.train.players, "test": self.collection.test.players}
        return {
            split: [] if players is None and self.learns_to_play else players or [nobody_else[split]]
            for split, players in given.items()
        }


# --- checks
# Conditions that span several parts of a configuration.


def check_parts(config: TrainerConfig) -> None:
    """Check that the parts of a configuration fit together.

    Raises:
        InvalidInputError: They do not fit, or the sampler does not fit the denoiser's objective.
    """
    _check_frames(config)
    noise_levels(config.agent.denoiser.objective, config.world_model_env.diffusion_sampler)
    _check_pure_noise(config)
    _check_playing(config)
    _check_segments(config)
    _check_crops(config)
    _check_export(config)


def _check_frames(config: TrainerConfig) -> None:
    """Check that the networks take the same frames, and those of the real game where it is played."""
    denoiser, rew_end = config.agent.denoiser.inner_model, config.agent.rew_end_model
    if denoiser.img_channels != rew_end.img_channels:
        raise InvalidInputError(
            f"agent.denoiser.inner_model.img_channels={denoiser.img_channels} and "
            f"agent.rew_end_model.img_channels={rew_end.img_channels} must be equal"
        )
    given = config.frame_shape
    is_played = config.static_dataset.path is None or (config.learns_to_play and config.game is not None)
    if is_played and given != (3, SCREEN_SIZE, SCREEN_SIZE):
        raise InvalidInputError(
            f"img_channels={given[0]}, img_size={given[1]}: real games have colour frames of "
            f"{SCREEN_SIZE}x{SCREEN_SIZE} pixels"
        )
    actor_critic = config.agent.actor_critic
    seen = (actor_critic.img_channels, *actor_critic.frame_size)
    if config.learns_to_play and seen != given:
        raise InvalidInputError(
            f"agent.actor_critic takes frames (c, h, w) of {seen}, agent.rew_end_model of {given}: they must "
            "be equal (img_channels, img_size, img_width)"
        )


def _check_pure_noise(config: TrainerConfig) -> None:
    """Check that a denoiser that starts from pure noise has a first noise level to start at."""
    objective, fraction = config.agent.denoiser.objective, config.denoiser.training.pure_noise_fraction
    if fraction > 0 and objective != "edm":
        raise InvalidInputError(
            f"denoiser.training.pure_noise_fraction={fraction} needs denoiser.objective=edm, got {objective}"
        )


def _check_playing(config: TrainerConfig) -> None:
    """Check that an actor-critic has a game to learn in, real or imagined."""
    training, initialization = config.training, config.initialization
    if not config.learns_to_play:
        return
    if config.game is None and (config.collects or training.model_free):
        raise InvalidInputError("no game to play is given: give one, such as game=Breakout")
    given = [
        part
        for part in WORLD_MODEL_PARTS
        if initialization.path_to_ckpt is not None and getattr(initialization, f"load_{part}")
    ]
    missing = [part for part in WORLD_MODEL_PARTS if part not in (*training.trained_parts, *given)]
    if missing and not training.model_free:
        raise InvalidInputError(
            f"training.parts={training.parts} learns to play in imagination, and its {' and '.join(missing)} "
            "would stay untrained: give initialization.path_to_ckpt=FOLDER, or train all parts"
        )


def _check_segments(config: TrainerConfig) -> None:
    """Check that segments that continue in imagination hold the frames to start from."""
    n, training = config.agent.denoiser.inner_model.num_steps_conditioning, config.rew_end_model.training
    if training.imagined_fraction > 0 and training.seq_length <= n:
        raise InvalidInputError(
            f"rew_end_model.training.imagined_fraction={training.imagined_fraction} needs segments longer "
            f"than the {n} frames that imagination starts from: rew_end_model.training.seq_length is "
            f"{training.seq_length}"
        )


def _check_crops(config: TrainerConfig) -> None:
    """Check that crops lie within the frame and have a size that the network can downsample."""
    size, (h, w) = config.denoiser.training.crop_size, config.agent.rew_end_model.frame_size
    side = min(h, w)
    divides = config.agent.denoiser.inner_model.divides
    if size is not None and (size > side or size % divides):
        accepted = ", ".join(map(str, range(divides, side + 1, divides))) or "null"
        raise InvalidInputError(
            f"denoiser.training.crop_size={size}: frames have {h}x{w} pixels, {divides}x{divides} of "
            f"which become one at the bottom of the network; accepted are {accepted}"
        )


def _check_export(config: TrainerConfig) -> None:
    """Check that there is a world model to export, a game to evaluate it in, and room for its contexts."""
    export, training = config.export, config.training
    if not export.should:
        return
    if training.model_free:
        raise InvalidInputError("export.should=true exports a world model, training.model_free=true has none")
    if export.evaluate and config.game is None:
        raise InvalidInputError("export.evaluate=true plays the real game: give game=Breakout")
    c, h, w = config.frame_shape
    check_fits_file(export.num_contexts, (config.agent.denoiser.inner_model.num_steps_conditioning, h, w, c))


# --- settings
# Configurations are read here and nowhere else: presets, `key=value` arguments, a run's `trainer.yaml`.
#
# Hydra composes them and OmegaConf checks their types; this module returns plain dataclasses, and no other
# module of the trainer uses either library. The working directory never changes and no folder is made.


PRESETS_FOLDER = Path(__file__).parent / "presets"
PRESETS = tuple(sorted(path.stem for path in PRESETS_FOLDER.glob("*.yaml")))
DEFAULT_PRESET = "paper"

CONFIG = "config"
"""Key of a file that replaces the preset."""
RUN_FOLDER_KEYS = ("out", "hydra.run.dir")
"""Keys of the run folder: ours, and the published one."""

_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, InvalidInputError)
_ALIASES = {
    "env.train.id": "game",
    "env.test.max_episode_steps": "collection.test.max_episode_steps",
    "common.devices": "common.device",
    "denoiser.objective": "agent.denoiser.objective",
}
"""Our names of keys, by their published or short names."""
_REMOVED = {
    "rew_end_model.training.event_weight": 1.0,
    "world_model_env.diffusion_sampler.timestep_spacing": "leading",
}
"""Keys of earlier versions, with the values that had no effect: configurations with these are still read."""
_FORMER_BACKEND = {
    "training.compile_wm": {True: "inductor", False: "auto"},
    "training.compile": {True: "inductor", False: "auto"},
    "training.cuda_graphs": {True: "auto", False: "eager"},
}
"""Keys that `training.backend` replaces (the first is a published one), with the backends they mean."""
_WITHOUT_MEANING = {
    "env.train.done_on_life_loss": "training games end with a life",
    "env.train.size": "real games have frames of 64x64 pixels",
    "env.train.max_episode_steps": "training games are as long as ALE lets them",
    "env.test.id": "test games are of the training's game",
    "env.test.done_on_life_loss": "test games last until game over",
    "env.test.size": "real games have frames of 64x64 pixels",
    "env.keymap": "`play` knows the keys of every game",
    "training.cache_in_ram": "episodes are always kept in memory",
    "training.num_workers_data_loaders": "batches are drawn from memory, without workers",
    "world_model_env.num_batches_to_preload": "start segments are drawn when they are needed",
    "common.resume": "`resume run=PATH` resumes a run",
}
"""Published keys without a counterpart here, and the reason."""
_DDPM_PREDICTIONS = "denoiser.training.num_autoregressive_steps=0"
"""The default for DDPM, as in the paper (section 5.1)."""
_LITERAL = ("static_dataset.path", "initialization.path_to_ckpt", "agent.actions")
"""Keys whose values are taken literally: they may hold characters that mean something to Hydra."""
_GIVEN = "given"
"""Hydra's name for the file of `config=`."""

CHANGEABLE = (
    *("training.num_epochs", "training.num_final_epochs", "training.num_threads", "common.device"),
    *("checkpointing.", "evaluation.", "export.", "logging.", "tensorboard."),
)
"""Keys, and beginnings of keys, that `resume` accepts: they change how long a run is trained, where, and
what is logged and kept, but not what it learns from."""

ConfigStore.instance().store("trainer", TrainerConfig)


def parse(arguments: Sequence[str]) -> TrainerConfig:
    """Parse the configuration that arguments such as `["game=Breakout", "preset=small"]` describe.

    `config=FILE` takes a whole configuration, such as an edited config/trainer.yaml, instead of a preset.
    Where a key is given twice, the last value counts. With `denoiser.objective=ddpm`, predictions are not
    conditioned on earlier ones unless `denoiser.training.num_autoregressive_steps` is given. Games are
    returned in their own spelling, paths are made absolute.

    Raises:
        InvalidInputError: A key is unknown, or a value is not of its type or range; the message is one
            line that names it.
        UnknownGameError: ale-py has no such game.
        CheckpointError: The file of `config=` is not a configuration of this trainer.
    """
    request = _read(arguments)
    try:
        config = request.compose(request.overrides)
    except _COMPOSITION_ERRORS as error:
        raise InvalidInputError(request.explain(error)) from error
    if config.game is not None:
        config.game = game_name(config.game)
    config.static_dataset.path = _absolute(config.static_dataset.path)
    config.initialization.path_to_ckpt = _absolute(config.initialization.path_to_ckpt)
    config.denoiser.training.step_weights = _absolute(config.denoiser.training.step_weights)
    return config


def changed(file: Path, changes: Sequence[str]) -> TrainerConfig:
    """A run's configuration with some keys changed, as `resume` does.

    Args:
        file: Its trainer.yaml.
        changes: `key=value` arguments.

    Raises:
        InvalidInputError: A key is not among those that may change within a run, or `parse` raises it.
        CheckpointError: The file is damaged.
    """
    for change in changes:
        key = split(change)[0]
        key = _ALIASES.get(key, key)
        _check_key(key, [CONFIG, *flat(_with_players())])
        if not key.startswith(CHANGEABLE):
            accepted = ", ".join(f"{name}*" if name[-1] == "." else name for name in CHANGEABLE)
            raise InvalidInputError(
                f"{key} cannot change within a run, whose weights were trained with the old value; resume "
                f"accepts {accepted}. "
                "To train these weights with other values, start a new run: train "
                f"config={file} {change} initialization.path_to_ckpt={file.parents[1]}"
            )
    return parse([f"{CONFIG}={file}", *changes]) if changes else from_yaml(file)


def split_run_folder(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments without the one that chooses the run folder, and that folder.

    Raises:
        InvalidInputError: The run folder is given twice, or is empty.
    """
    chosen = [argument for argument in arguments if argument.partition("=")[0] in RUN_FOLDER_KEYS]
    if len(chosen) > 1:
        raise InvalidInputError(f"{' and '.join(chosen)} choose the run folder: give one")
    if not chosen:
        return list(arguments), None
    key, path = split(chosen[0])
    if not path:
        raise InvalidInputError(f"key {key} needs a value")
    return [argument for argument in arguments if argument not in chosen], Path(cli.expanded(path))


def to_yaml(config: TrainerConfig) -> str:
    """The whole configuration as YAML, for `from_yaml`."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def from_yaml(path: Path) -> TrainerConfig:
    """Read what `to_yaml` wrote. Text is literal: `${...}` in it means nothing.

    Raises:
        CheckpointError: The file is damaged, or not a configuration of this trainer.
    """
    what = "a configuration of this trainer"
    content = untrusted.read_yaml(path, CheckpointError, what)
    try:
        _drop_removed_keys(content)
        _replace_former_backend(content)
        return cli.build(TrainerConfig, content)
    except (
        Exception
    ) as error:  # OmegaConf's errors, our own, and those that keys of other types than text cause
        raise CheckpointError(f"{path} cannot be read as {what}: {_reason(error)}") from error


def _drop_removed_keys(content: Any) -> None:
    """Remove keys that no longer exist from an older run's configuration, where they had no effect."""
    for key, neutral in _REMOVED.items():
        *path, name = key.split(".")
        section = content
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(name) == neutral:
            del section[name]


def _replace_former_backend(content: Any) -> None:
    """Translate the keys by which an older run chose a backend into `training.backend`."""
    section = content.get("training") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        return
    names = {key: key.removeprefix("training.") for key in _FORMER_BACKEND}
    former = {key: section.pop(name) for key, name in names.items() if name in section}
    if former:
        section.setdefault("backend", _backend_of(former))


def _backend_of(former: Mapping[str, Any]) -> str:
    """The backend that former keys mean together; "inductor" takes precedence.

    Raises:
        InvalidInputError: One of them is neither true nor false.
    """
    for key, value in former.items():
        if not isinstance(value, bool):
            raise InvalidInputError(
                f"{key}={value}: accepted are true and false; training.backend replaces it"
            )
    meant = {_FORMER_BACKEND[key][value] for key, value in former.items()}
    return next(backend for backend in ("inductor", "eager", "auto") if backend in meant)


def _with_backend(arguments: Sequence[str]) -> list[str]:
    """The arguments with `training.backend` in place of its former keys.

    Raises:
        InvalidInputError: A former key is neither true nor false, or given beside `training.backend`.
    """
    pairs = [(argument, *argument.partition("=")[::2]) for argument in arguments]
    former = {key: value for _, key, value in pairs if key in _FORMER_BACKEND}
    if not former:
        return list(arguments)
    values = {"true": True, "false": False}
    backend = _backend_of({key: values.get(value.lower(), value) for key, value in former.items()})
    if any(key == "training.backend" for _, key, _ in pairs):
        raise InvalidInputError(f"training.backend replaces {' and '.join(former)}: give it alone")
    if set(former) != {"training.compile_wm"}:
        warn_deprecated(f"{' and '.join(former)}: deprecated, give training.backend={backend}")
    return [*(argument for argument, key, _ in pairs if key not in former), f"training.backend={backend}"]


def flat(config: TrainerConfig) -> dict[str, Any]:
    """Every key and its value, with keys as on the command line."""
    return _flatten(asdict(config), "")


def help_text(config: TrainerConfig) -> str:
    """Help text: what each key is for, with its value in this configuration."""
    known = cli.keys(TrainerConfig)
    players = cli.keys(PlayerConfig)
    lines: list[str] = []
    for name, value in flat(config).items():
        key = known.get(name) or players[name.rpartition(".")[2]]
        lines += cli.help_lines(replace(key, name=name), value)
    return "\n".join(lines)


def split(argument: str) -> tuple[str, str]:
    """Split `key=value` into key and value.

    Raises:
        InvalidInputError: The argument has another form.
    """
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise InvalidInputError(f"{argument}: arguments are written key=value")
    return key, value


@dataclass(frozen=True)
class _Request:
    """The configuration that a command line asks for, before values are checked.

    Attributes:
        preset: Name of the preset.
        given: The values of the file of `config=`, which replace the preset; None without such a file.
        overrides: Arguments in Hydra's grammar, with placeholders for paths.
        literals: The texts that the placeholders stand for.
    """

    preset: str
    given: dict[str, Any] | None
    overrides: list[str]
    literals: cli.Literals

    def compose(self, overrides: Sequence[str]) -> TrainerConfig:
        """The configuration with some of the overrides."""
        if self.given is not None:
            ConfigStore.instance().store(_GIVEN, {"defaults": ["trainer", "_self_"], **self.given})
        with initialize_config_dir(str(PRESETS_FOLDER), version_base="1.3"):
            config = compose(self.preset if self.given is None else _GIVEN, overrides=list(overrides))
        return self.literals.objects(config)

    def explain(self, error: Exception) -> str:
        """Describe an error, naming the override that causes it.

        That is the one without which the others compose, else the first that does not compose alone.
        """
        for i, override in enumerate(self.overrides):
            if self._problem(self.overrides[:i] + self.overrides[i + 1 :]) is None:
                return self._blame(override, error)
        for override in self.overrides:
            problem = self._problem([override])
            if problem is not None:
                return self._blame(override, problem)
        return self.literals.shown(_reason(error))

    def _blame(self, override: str, error: Exception) -> str:
        return self.literals.shown(f"{override}: {_reason(error)}")

    def _problem(self, overrides: list[str]) -> Exception | None:
        try:
            self.compose(overrides)
        except _COMPOSITION_ERRORS as error:
            return error
        return None


def _read(arguments: Sequence[str]) -> _Request:
    """Read the arguments; keys and presets are checked, values are not."""
    preset, given, overrides, literals = DEFAULT_PRESET, None, [], cli.Literals()
    lists = [name for name, key in cli.keys(TrainerConfig).items() if key.is_list]
    known = ["preset", CONFIG, *RUN_FOLDER_KEYS, *_ALIASES, *flat(_with_players())]
    for argument in _with_backend(arguments):
        key, value = split(argument)
        _check_key(key, known)
        value = _device(value) if key == "common.devices" else value
        key = _ALIASES.get(key, key)
        if key == "preset":
            if value not in PRESETS:
                raise InvalidInputError(f"preset={value}: {cli.nearest(value, PRESETS)}")
            preset = value
        elif key == CONFIG:
            given = literals.hidden(asdict(from_yaml(Path(cli.expanded(value)))))
        elif key in _LITERAL:
            overrides.append(f"{key}={_hidden(value, literals)}")
        else:
            is_items = key in lists and re.fullmatch(r"[\w,]+", value) and value != "null"
            overrides.append(f"{key}=[{value}]" if is_items else f"{key}={_number(key, value)}")
    if given is not None and any(argument.startswith("preset=") for argument in arguments):
        raise InvalidInputError("config=FILE takes the place of a preset: give one of config and preset")
    if "agent.denoiser.objective=ddpm" in overrides:
        overrides.insert(0, _DDPM_PREDICTIONS)
    return _Request(preset, given, overrides, literals)


def _number(key: str, value: str) -> str:
    """Write `1e3` as `1000`, where the key takes an integer."""
    known = cli.keys(TrainerConfig).get(key)
    if known is None or known.kind is not int or known.is_list:
        return value
    try:
        return str(cli.whole(value))
    except (ValueError, OverflowError):
        return value


def _hidden(path: str, literals: cli.Literals) -> str:
    """A placeholder for a path, so that Hydra does not interpret it; quotes around the path are dropped."""
    is_quoted = len(path) >= 2 and path[0] == path[-1] and path[0] in "'\""
    return path if path in ("", "null") else f"'{literals.mark(path[1:-1] if is_quoted else path)}'"


def _with_players() -> TrainerConfig:
    """A configuration in which every key occurs, those of players included."""
    config = TrainerConfig()
    config.collection.train.players, config.collection.test.players = [PlayerConfig()], [PlayerConfig()]
    return config


def _device(devices: str) -> str:
    """The device that the published `common.devices` means: all, cpu, a number, or a list of one number."""
    number = devices.strip("[]")
    if number.isdecimal():
        return f"cuda:{number}"
    if devices not in ("all", "cpu"):
        raise InvalidInputError(f"common.devices={devices}: accepted are all, cpu, or the number of one GPU")
    return "auto" if devices == "all" else devices


def _check_key(key: str, known: list[str]) -> None:
    if key in _WITHOUT_MEANING:
        raise InvalidInputError(f"{key} has no meaning here: {_WITHOUT_MEANING[key]}")
    with_first_index = re.sub(r"\.\d+(?=\.|$)", ".0", key)
    if not any(name == with_first_index or name.startswith(f"{with_first_index}.") for name in known):
        suffix = [name for name in known if name.endswith(f".{key}")]
        hint = f"did you mean {' or '.join(suffix)}?" if suffix else _nearest_key(key, known)
        raise InvalidInputError(f"unknown key {key}: {hint}")


def _nearest_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "`train --help` lists the keys"


def _reason(error: BaseException) -> str:
    """The first line of the original error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(cli.expanded(path)).absolute())


def _flatten(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = enumerate(value)
    else:
        return {key: value}
    result: dict[str, Any] = {}
    for name, item in items:
        result |= _flatten(item, f"{key}.{name}" if key else str(name))
    return result

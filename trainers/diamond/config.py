"""Every knob of the trainer, under the published names; the single source of defaults (the paper's).

Hydra lives in `settings.py`: here are plain dataclasses, validated when they are made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from diamond_gym.errors import InvalidInputError
from diamond_gym.models import AgentConfig
from diamond_gym.sampler import DiffusionSamplerConfig
from trainers.diamond.losses import SigmaDistributionConfig

PARTS = ("denoiser", "rew_end_model")


def require(ok: bool, message: str) -> None:
    """Raises `InvalidInputError(message)` unless `ok`."""
    if not ok:
        raise InvalidInputError(message)


@dataclass
class CommonConfig:
    """Device ("auto", "cpu", "cuda", "cuda:1") and the seed that fixes the run."""

    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, f"common.seed must be at least 0 and below 2^31, got {self.seed}")


@dataclass
class PlayerConfig:
    """A player that collects `num_steps` steps.

    Attributes:
        name: "random", "scripted" (some games have one), or "auto": scripted where the game has one, else
            random.
        num_steps: How many steps it plays.
        noise: In [0, 1], how badly the scripted player plays.
        repeat: The random player holds each action for up to so many steps.
    """

    name: str = "random"
    num_steps: int = 10_000
    noise: float = 0.15
    repeat: int = 1

    def __post_init__(self) -> None:
        accepted = ("auto", "random", "scripted")
        require(self.name in accepted, f"player {self.name!r}: accepted are {', '.join(accepted)}")
        require(
            self.num_steps >= 1, f"player {self.name}: num_steps must be at least 1, got {self.num_steps}"
        )
        require(0 <= self.noise <= 1, f"player {self.name}: noise must be in [0, 1], got {self.noise}")
        require(self.repeat >= 1, f"player {self.name}: repeat must be at least 1, got {self.repeat}")


@dataclass
class CollectionSplitConfig:
    """Who plays to fill a dataset, one after the other."""

    players: list[PlayerConfig] = field(default_factory=lambda: [PlayerConfig()])

    def __post_init__(self) -> None:
        require(bool(self.players), "collection needs at least one player")


@dataclass
class CollectionConfig:
    """Collection of the training and test datasets from the real game."""

    train: CollectionSplitConfig = field(
        default_factory=lambda: CollectionSplitConfig([PlayerConfig(num_steps=100_000)])
    )
    test: CollectionSplitConfig = field(
        default_factory=lambda: CollectionSplitConfig([PlayerConfig(num_steps=5_000)])
    )


@dataclass
class StaticDatasetConfig:
    """`path`: a folder with `train` and `test` datasets to train on instead of collecting."""

    path: str | None = None


@dataclass
class InitializationConfig:
    """Weights to start from: any checkpoint that loads as a world, and which parts to take from it."""

    path_to_ckpt: str | None = None
    load_denoiser: bool = True
    load_rew_end_model: bool = True
    load_actor_critic: bool = True


@dataclass
class CheckpointingConfig:
    """How many agent versions to keep, and every how many epochs one is kept."""

    save_agent_every: int = 5
    num_to_keep: int = 10

    def __post_init__(self) -> None:
        require(self.save_agent_every >= 1, "checkpointing.save_agent_every must be at least 1")
        require(self.num_to_keep >= 1, "checkpointing.num_to_keep must be at least 1")


@dataclass
class TrainingConfig:
    """What is trained, for how long.

    Attributes:
        parts: Networks to train, among "denoiser" and "rew_end_model".
        num_epochs: Epochs in all; each trains every part for its `steps_per_epoch` (the first for
            `steps_first_epoch`) and ends with a saved state.
        autocast: "bfloat16" runs the networks in mixed precision; null in float32.
        num_threads: CPU threads; null leaves torch's choice.
    """

    parts: list[str] = field(default_factory=lambda: list(PARTS))
    num_epochs: int = 1000
    autocast: str | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        require(
            bool(self.parts) and set(self.parts) <= set(PARTS) and len(set(self.parts)) == len(self.parts),
            f"training.parts={list(self.parts)}: accepted are {', '.join(PARTS)}",
        )
        require(self.num_epochs >= 1, f"training.num_epochs must be at least 1, got {self.num_epochs}")
        require(self.autocast in (None, "bfloat16"), f"training.autocast={self.autocast!r}: bfloat16 or null")
        require(
            self.num_threads is None or self.num_threads >= 1,
            f"training.num_threads must be at least 1, or null, got {self.num_threads}",
        )


@dataclass
class OptimizerConfig:
    """AdamW."""

    lr: float = 1e-4
    weight_decay: float = 1e-2
    eps: float = 1e-8

    def __post_init__(self) -> None:
        require(self.lr > 0, f"lr must be above 0, got {self.lr}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.eps > 0, f"eps must be above 0, got {self.eps}")


@dataclass
class PartTrainingConfig:
    """How one network is trained.

    Attributes:
        steps_first_epoch: Optimiser steps in epoch 1.
        steps_per_epoch: In every later epoch.
        sample_weights: Weights of the parts of the replay by age, oldest first; null draws by length.
        batch_size: Segments a step.
        lr_warmup_steps: Steps of linear warm-up.
        lr_schedule: "constant" (as published) or "cosine": down to 0 at the end of the run.
        max_grad_norm: Gradients are clipped to this norm.
        event_fraction: Share of the segments drawn around a step with a reward or an end (0 as published).
        ema_decay: Decay of the moving average of the weights that is saved and played; 0 for none (as
            published).
    """

    steps_first_epoch: int = 10_000
    steps_per_epoch: int = 400
    sample_weights: list[float] | None = field(default_factory=lambda: [0.1, 0.1, 0.1, 0.7])
    batch_size: int = 32
    lr_warmup_steps: int = 100
    lr_schedule: str = "constant"
    max_grad_norm: float = 1.0
    event_fraction: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps_first_epoch", "steps_per_epoch"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
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
        """Optimiser steps in `num_epochs` epochs."""
        return self.steps_first_epoch + (num_epochs - 1) * self.steps_per_epoch

    def lr_factor(self, step: int, num_steps: int) -> float:
        """Factor of the learning rate at a step, given the number of steps of the run."""
        warmup = min(1.0, (step + 1) / max(1, self.lr_warmup_steps))
        if self.lr_schedule == "constant":
            return warmup
        return warmup * (1 + math.cos(math.pi * min(1.0, step / max(1, num_steps)))) / 2


@dataclass
class DenoiserTrainingConfig(PartTrainingConfig):
    """As `PartTrainingConfig`, and what only the denoiser has.

    Attributes:
        num_autoregressive_steps: Predictions beyond the first, each conditioned on the earlier ones.
        autoregressive_from_step: Optimiser step from which they are made (0 as published).
        moving_pixels_weight: Extra loss weight of pixels near which something moves (0 as published).
    """

    num_autoregressive_steps: int = 1
    autoregressive_from_step: int = 0
    moving_pixels_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_autoregressive_steps", "autoregressive_from_step", "moving_pixels_weight"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")


@dataclass
class RewEndTrainingConfig(PartTrainingConfig):
    """As `PartTrainingConfig`, and for the reward/end model.

    Attributes:
        seq_length: Steps of a segment.
        difference_init: Whether the first convolution starts as a detector of change, which
            finds rare and small events much sooner (False as published).
        event_weight: Weight in the loss of transitions with a reward, and of ends (1 as published).
    """

    seq_length: int = 19
    difference_init: bool = False
    event_weight: float = 1.0
    max_grad_norm: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.event_weight > 0, f"event_weight must be above 0, got {self.event_weight}")
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
class WorldModelEnvConfig:
    """Imagination: horizon in steps and how frames are sampled."""

    horizon: int = 15
    diffusion_sampler: DiffusionSamplerConfig = field(default_factory=DiffusionSamplerConfig)


@dataclass
class TrainerConfig:
    """The whole run.

    `game` names any Atari game of ale-py; null when a static dataset says what is learned.
    """

    game: str | None = None
    common: CommonConfig = field(default_factory=CommonConfig)
    collection: CollectionConfig = field(default_factory=CollectionConfig)
    static_dataset: StaticDatasetConfig = field(default_factory=StaticDatasetConfig)
    initialization: InitializationConfig = field(default_factory=InitializationConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    denoiser: DenoiserPartConfig = field(default_factory=DenoiserPartConfig)
    rew_end_model: RewEndPartConfig = field(default_factory=RewEndPartConfig)
    world_model_env: WorldModelEnvConfig = field(default_factory=WorldModelEnvConfig)

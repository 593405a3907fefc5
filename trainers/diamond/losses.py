"""What each network minimises, as functions of a network, a batch and the random numbers.

Every loss returns `(loss, metrics)`; metrics are tensors on the loss's device, so that the caller decides
when to read them. This module does not depend on optimisers or on where batches come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from diamond_gym.errors import InvalidInputError
from diamond_gym.world import ddpm, policy
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models import Conditioners, Denoiser, DenoiserConfig, Features, RewEndModel
from diamond_gym.world.models.outcomes import choose
from trainers.diamond.replay import SegmentBatch

# --- losses


Metrics = dict[str, Tensor]
Total = Callable[[Tensor], Tensor]
"""Sums over the processes that share a batch, so that their losses and metrics add up to the batch's."""

REW_END_METRICS = ("loss_rew", "loss_end", "confusion_rew", "confusion_end")
"""What `rew_end_loss` measures."""
MOTION_RADIUS = 2
"""Distance in pixels from a change up to which a pixel counts as moving."""
WORST_SIZE = 5
"""Side, in pixels, of the square in which errors are summed; it holds a ball and its true place."""
WINDOW_SIZE = 5
"""Side, in pixels, of the windows that may be displaced; it holds a ball and what surrounds it."""
DISPLACEMENT_COST = 3e-3
"""Mean squared error, of frames in [-1, 1], that a window costs for each pixel it is displaced in x or y."""
ASTRAY = 0.012
"""Mean squared error of a window, a displacement included, that is beyond what displacements explain."""
ASTRAY_RADIUS = 4
"""Distance in pixels from such a window within which later predictions are not compared."""
OUTCOME_RADIUS = 4
"""Distance in pixels up to which outcomes are not told apart: where a thing moves to can be foretold, and if
each outcome had a place of its own for it, the network would have to foretell the outcome instead."""
INVISIBLE = 0.002
"""Mean squared error of a pixel that says nothing about outcomes, such as a slightly other shade."""
OUTCOME_TEMPERATURE = 0.05
"""Sum of `unmatched` that makes an outcome e times less probable; a missing ball of Pong has 1.4 to 2.0."""
OUTCOME_WEIGHT = 4e-3
"""Weight of the cross-entropy of the outcomes' probabilities beside the errors of frames."""
LOGIT_PENALTY = 1e-3
"""Weight of the mean square of the logits beside the cross-entropy. Without it they may grow into thousands,
and then no other outcome than the likeliest is ever drawn (compare the z-loss of Chowdhery et al. 2022)."""
FORETOLD_SHARE = 0.2
"""Share of the outcomes that are drawn without a look at the real frame. An outcome that draws no ball where
there is always one is never nearest, and so would learn nothing there; but play draws it all the same."""
LEAST_SHARE = 0.02
"""Probability that all outcomes together have at least, in equal parts, when training draws one."""


@dataclass
class SigmaDistributionConfig:
    """Noise levels seen in training: ln sigma ~ N(loc, scale^2), clipped (Karras et al. 2022, table 1).

    Attributes:
        loc: Mean of ln sigma.
        scale: Standard deviation of ln sigma, above 0.
        sigma_min: Lowest noise level; lower ones are raised to it.
        sigma_max: Highest noise level; higher ones are lowered to it.
    """

    loc: float = -0.4
    scale: float = 1.2
    sigma_min: float = 2e-3
    sigma_max: float = 20.0


class DenoiserNoise(NamedTuple):
    """Random numbers of one prediction.

    Attributes:
        level: Noise level (sigma, or timestep).
        eps: Noise of pixels.
        offset: Noise of channels.
        is_pure: Whether `eps` alone takes the place of the noised frame, whatever its level, as at play.
    """

    level: Float[Tensor, " b"]
    eps: Float[Tensor, "b c h w"]
    offset: Float[Tensor, "b c 1 1"]
    is_pure: Bool[Tensor, " b"]


@overload
def is_of_share(index: int, share: float) -> bool: ...
@overload
def is_of_share(index: Tensor, share: float) -> Tensor: ...
def is_of_share(index: int | Tensor, share: float) -> bool | Tensor:
    """Whether one of many things, by its number, is of a share in [0, 1] that is spread evenly among them.

    Numbers in a tensor are float64.
    """
    return (index + 1) * share // 1 > index * share // 1


def no_all_reduce(x: Tensor) -> Tensor:
    """The `Total` of one process."""
    return x


def draw_denoiser_noise(
    objective: str,
    config: SigmaDistributionConfig,
    frame_shape: tuple[int, ...],
    batch_size: int,
    generator: torch.Generator,
    *,
    pure_fraction: float = 0.0,
    first_level: float = 0.0,
) -> DenoiserNoise:
    """Draw noise for `batch_size` predictions of frames (c, h, w), on the generator's device.

    Timesteps of objective "ddpm" are uniform; `config` applies to "edm" only. A share `pure_fraction` of the
    predictions, spread evenly, starts from pure noise at `first_level`.
    """
    device = generator.device
    if objective == "ddpm":
        level = torch.randint(ddpm.NUM_TIMESTEPS, (batch_size,), generator=generator, device=device).float()
    else:
        z = torch.randn(batch_size, generator=generator, device=device)
        level = (config.loc + config.scale * z).exp().clamp(config.sigma_min, config.sigma_max)
    eps = torch.randn(batch_size, *frame_shape, generator=generator, device=device)
    offset = torch.randn(batch_size, frame_shape[0], 1, 1, generator=generator, device=device)
    is_pure = is_of_share(torch.arange(batch_size, device=device, dtype=torch.float64), pure_fraction)
    return DenoiserNoise(level.masked_fill(is_pure, first_level), eps, offset, is_pure)


def add_noise(
    config: DenoiserConfig, obs: Float[Tensor, "b c h w"], noise: DenoiserNoise
) -> Float[Tensor, "b c h w"]:
    """Add noise to frames, at the drawn noise levels, or replace them by it where it is pure.

    EDM adds offset noise of standard deviation `sigma_offset_noise` at every sigma. In DDPM it is part of
    the noise that the schedule scales and the network predicts, `eps + sigma_offset_noise * offset`, as in
    the training scripts of diffusers.
    """
    offset = config.sigma_offset_noise * noise.offset
    if config.objective == "ddpm":
        return ddpm.add_noise(obs, noise.eps + offset, noise.level)
    noised = obs + offset + noise.level[:, None, None, None] * noise.eps
    return torch.where(noise.is_pure[:, None, None, None], noise.eps, noised)


def neighbourhood_weight(change: Float[Tensor, "b c h w"], weight: float) -> Float[Tensor, "b 1 h w"]:
    """1 + `weight` x the largest change in the neighbourhood of each pixel.

    Args:
        change: Differences, in [0, 2], of frames with values in [-1, 1].
        weight: Weight, at least 0, of a pixel that changes from black to white.
    """
    size = 2 * MOTION_RADIUS + 1
    largest = change.amax(dim=1, keepdim=True) / 2
    return 1 + weight * F.max_pool2d(largest, size, stride=1, padding=MOTION_RADIUS)


class DenoiserErrors(NamedTuple):
    """Errors of p predictions of each of b segments.

    Attributes:
        error: Mean squared error of the preconditioned target.
        counts: Whether the error counts; False where the predicted frame is padding.
        c_noise: The noise level, as the network sees it.
        worst: Row and column of the centre of the worst square, whose side is `WORST_SIZE` pixels.
    """

    error: Float[Tensor, "b p"]
    counts: Bool[Tensor, "b p"]
    c_noise: Float[Tensor, "b p"]
    worst: Int64[Tensor, "b p 2"]


def denoiser_errors(
    denoiser: Denoiser,
    batch: SegmentBatch,
    noises: list[DenoiserNoise],
    *,
    moving_pixels_weight: float = 0.0,
    displacement_radius: int = 0,
    max_displacement: int | None = None,
) -> DenoiserErrors:
    """Mean squared error of the preconditioned target, of one prediction per entry of `noises`.

    With objective "ddpm" that target is the noise. Each later prediction is conditioned on the earlier ones
    (detached and quantised) instead of the real frames, as at play.

    Args:
        denoiser: The network.
        batch: Segments of n + len(noises) steps.
        noises: Random numbers of each prediction.
        moving_pixels_weight: Extra weight of pixels in whose neighbourhood something moves, or is wrongly
            predicted to move; 0 as published.
        displacement_radius: Pixels by which a window may be displaced at a small cost; see `displaced_error`.
            Where an earlier prediction was wrong beyond that, later ones are not compared, because the real
            frame does not follow from what the network is shown; with `max_displacement` they are, because
            the network is shown the real frame instead. 0, as published, compares pixel by pixel.
        max_displacement: Pixels by which what is predicted may lie beside its place in the real frame (see
            `has_departed`). Beyond it, later predictions are conditioned on the real frame, because the
            recording does not follow from a frame in which, for instance, the ball is missing. None, as
            published, for no limit.
    """
    n = denoiser.config.inner_model.num_steps_conditioning
    frames = batch.frames()
    history = list(frames[:, :n].unbind(1))
    rows, astray = [], torch.zeros_like(frames[:, n, :1], dtype=torch.bool)
    for i, noise in enumerate(noises):
        past = denoiser.fold_past(torch.cat(history[i : i + n], dim=1))
        next_obs = frames[:, n + i]
        c = denoiser.conditioners(noise.level)
        noisy = add_noise(denoiser.config, next_obs, noise)
        act = batch.act[:, i : i + n]
        if denoiser.config.inner_model.num_outcomes > 1:
            features = denoiser.encode(noisy, c, past, act)
            output, choice_error = nearest_outcome(denoiser, features, noisy, c, next_obs, noise, astray)
        else:
            output, choice_error = denoiser.model_output(noisy, c, past, act).float(), 0.0
        if displacement_radius > 0:
            drawn = c.c_skip * noisy + c.c_out * output
            displaced = displaced_error(drawn, next_obs, displacement_radius)
            error = displaced.masked_fill(astray, 0) / c.c_out.square()
            if max_displacement is None:
                astray = astray | is_astray(displaced.detach())
        else:
            target = (next_obs - c.c_skip * noisy) / c.c_out
            error = (output - target).square()
        predicted = denoiser.wrap_model_output(noisy, output.detach(), c)
        if moving_pixels_weight > 0:
            motion = (next_obs - frames[:, n + i - 1]).abs()
            mistake = (predicted - next_obs).abs()
            error = error * neighbourhood_weight(torch.maximum(motion, mistake), moving_pixels_weight)
        mask = batch.mask_padding[:, n + i]
        rows.append((error.mean(dim=(1, 2, 3)) + choice_error, mask, c.c_noise, worst_place(error.detach())))
        if max_displacement is not None:
            departed = has_departed(predicted, next_obs, max_displacement)
            predicted = torch.where(departed[:, None, None, None], next_obs, predicted)
        history.append(predicted)
    return DenoiserErrors(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))


def nearest_outcome(
    denoiser: Denoiser,
    features: Features,
    noisy: Float[Tensor, "b c h w"],
    c: Conditioners,
    target: Float[Tensor, "b c h w"],
    noise: DenoiserNoise,
    astray: Bool[Tensor, "b 1 h w"],
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
    """Draw an outcome by its probability given the real frame, and compare all probabilities with these.

    Where outcomes agree, that is the probability that the network foretells; where one is nearer to the real
    frame than the others, it is that one: each learns what it is best at, and from a mixture's point of view
    this is a step of expectation and maximisation. What lies up to `OUTCOME_RADIUS` pixels beside its place
    does not tell outcomes apart (`unmatched`). A share of `FORETOLD_SHARE` is drawn by the foretold
    probabilities alone.

    Args:
        denoiser: A denoiser with several outcomes.
        features: Result of its `encode`.
        noisy: The noised frames.
        c: Conditioners at their noise levels.
        target: The real frames.
        noise: What they were noised with; it also draws the outcome.
        astray: Where frames are not compared.

    Returns:
        The network's output for the outcome that was drawn, and the weighted cross-entropy of the foretold
        probabilities with a penalty on large logits.
    """
    logits, network = features.logits, denoiser.inner_model
    assert logits is not None
    foretold = logits.log_softmax(dim=1)
    with torch.no_grad():
        errors, near_target = [], values_near(target, OUTCOME_RADIUS)
        for outcome in range(logits.shape[1]):
            every = torch.full((len(noisy),), outcome, device=noisy.device)
            drawn = c.c_skip * noisy + c.c_out * network.decode(features, every).float()
            error = (unmatched(drawn, target, OUTCOME_RADIUS, near_target) - INVISIBLE).clamp(min=0)
            errors.append(error.masked_fill(astray, 0).sum(dim=(1, 2, 3)))
        prior = (1 - LEAST_SHARE) * foretold.exp() + LEAST_SHARE / logits.shape[1]
        log_shares = prior.log() - torch.stack(errors, dim=1) / OUTCOME_TEMPERATURE
        shares = log_shares.softmax(dim=1)
        chosen = choose(shares.lerp(prior, FORETOLD_SHARE).log(), noise.eps)
    choice_error = -(shares * foretold).sum(dim=1) + LOGIT_PENALTY * logits.square().mean(dim=1)
    return network.decode(features, chosen).float(), OUTCOME_WEIGHT * choice_error


def has_departed(
    frames: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], radius: int
) -> Bool[Tensor, " b"]:
    """Whether frames show what the target has nowhere near, or lack what it has.

    Args:
        frames: Predictions, with values in [-1, 1].
        target: The real frames.
        radius: Pixels by which things may be displaced in x and in y, at least 0.

    Returns:
        True where the mean squared distance of a window's values to the range that the other image has within
        `radius` is above `ASTRAY`.
    """
    return _window_mean(unmatched(frames, target, radius)).amax(dim=(1, 2, 3)) > ASTRAY


class ValueRange(NamedTuple):
    """Smallest and largest values near each pixel."""

    low: Float[Tensor, "b c h w"]
    high: Float[Tensor, "b c h w"]


def values_near(frames: Float[Tensor, "b c h w"], radius: int) -> ValueRange:
    """Find the range of the values within `radius` pixels in x and in y."""
    return ValueRange(-_largest_near(-frames, radius), _largest_near(frames, radius))


def unmatched(
    frames: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    radius: int,
    near_target: ValueRange | None = None,
) -> Float[Tensor, "b 1 h w"]:
    """Mean squared distance of each pixel to the range that the other image has within `radius` pixels.

    It is the larger one of both ways of looking: what is made up, and what is missing. What is displaced by
    no more than `radius` pixels costs nothing. Neither does what is missing as near to something of the same
    colour, such as a ball beside a wall as white as it is.

    Args:
        frames: Predictions, with values in [-1, 1].
        target: The real frames.
        radius: Pixels by which things may be displaced in x and in y, at least 0.
        near_target: `values_near(target, radius)`, where it is known; None to compute it.
    """
    near_target = near_target or values_near(target, radius)
    return torch.maximum(_outside(frames, near_target), _outside(target, values_near(frames, radius)))


def _outside(frames: Float[Tensor, "b c h w"], near: ValueRange) -> Float[Tensor, "b 1 h w"]:
    distance = torch.maximum(frames - near.high, near.low - frames).clamp(min=0)
    return distance.square().mean(dim=1, keepdim=True)


def _largest_near(x: Float[Tensor, "b c h w"], radius: int) -> Float[Tensor, "b c h w"]:
    """Largest value near each pixel; along rows, then along columns, is cheaper."""
    size = 2 * radius + 1
    rows = F.max_pool2d(x, (1, size), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (size, 1), stride=1, padding=(radius, 0))


def is_astray(error: Float[Tensor, "b 1 h w"]) -> Bool[Tensor, "b 1 h w"]:
    """Where, by the `displaced_error` nearby, frames differ by more than a displacement."""
    wrong = (error > ASTRAY).float()
    return F.max_pool2d(wrong, 2 * ASTRAY_RADIUS + 1, stride=1, padding=ASTRAY_RADIUS) > 0


def displaced_error(
    frames: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], radius: int
) -> Float[Tensor, "b 1 h w"]:
    """Squared error of windows that may lie elsewhere: the mean of both ways of looking for them.

    Pixel by pixel, an object that is drawn beside its place is wrong twice, there and here, so that where the
    place cannot be foretold a faint smear is best (the "double penalty" of forecasts of rain). Here each
    window of the frames is compared with the nearest one of the target's, which punishes what is made up, and
    each of the target's with the nearest one of the frames', which punishes what is missing; an object drawn
    sharply within `radius` of its place costs little.

    Args:
        frames: Predictions, with values about [-1, 1].
        target: The real frames.
        radius: Largest displacement in x and in y, in pixels, above 0.

    Returns:
        For the window around each pixel, the mean squared error plus `DISPLACEMENT_COST` a pixel.
    """
    return (_nearest_window(frames, target, radius) + _nearest_window(target, frames, radius)) / 2


def _nearest_window(
    of: Float[Tensor, "b c h w"], among: Float[Tensor, "b c h w"], radius: int
) -> Float[Tensor, "b 1 h w"]:
    """Error of each window of some frames to the nearest window of others, its displacement included."""
    height, width = of.shape[-2:]
    padded = F.pad(among, (radius, radius, radius, radius), mode="replicate")
    errors = []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            rows, columns = slice(radius + dy, radius + dy + height), slice(radius + dx, radius + dx + width)
            change = (of - padded[:, :, rows, columns]).square().mean(dim=1, keepdim=True)
            errors.append(_window_mean(change) + DISPLACEMENT_COST * (abs(dy) + abs(dx)))
    return torch.stack(errors).min(dim=0).values


def _window_mean(x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    return F.avg_pool2d(x, WINDOW_SIZE, stride=1, padding=WINDOW_SIZE // 2, count_include_pad=False)


def worst_place(error: Float[Tensor, "b c h w"]) -> Int64[Tensor, "b 2"]:
    """Row and column of the centre of the square of side `WORST_SIZE` with the largest error."""
    blurred = F.avg_pool2d(error.mean(dim=1, keepdim=True), WORST_SIZE, stride=1, padding=WORST_SIZE // 2)
    width = blurred.shape[-1]
    index = blurred.flatten(1).argmax(dim=1)
    return torch.stack([index // width, index % width], dim=1)


def mean_of_predictions(
    errors: Float[Tensor, "b p"], mask: Bool[Tensor, "b p"], total: Total = no_all_reduce
) -> Float[Tensor, ""]:
    """The denoiser's loss: the mean over predictions of the mean of the errors that count.

    Args:
        errors: Errors of the predictions.
        mask: Which of them count.
        total: Sums counts over the processes that share the batch.
    """
    predictions = zip(errors.unbind(1), mask.unbind(1), strict=True)
    return torch.stack([masked_mean(error, counts, total) for error, counts in predictions]).mean()


def masked_mean(
    values: Float[Tensor, " b"], mask: Bool[Tensor, " b"], total: Total = no_all_reduce
) -> Float[Tensor, ""]:
    """Mean over the entries where `mask` holds; 0 if there are none."""
    return torch.where(mask, values, 0).sum() / total(mask.sum()).clamp(min=1)


def confusion_matrix(
    logits: Float[Tensor, "b t k"], target: Int64[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> Int64[Tensor, "k k"]:
    """Counts of (true class, most likely class) where `mask` holds."""
    k = logits.shape[-1]
    index = torch.where(mask, target * k + logits.argmax(dim=-1), k * k)
    counts = index.new_zeros(k * k + 1)  # bincount would wait for the GPU
    return counts.index_add_(0, index.flatten(), torch.ones_like(index).flatten())[: k * k].reshape(k, k)


def next_frames(batch: SegmentBatch, frames: Float[Tensor, "b l c h w"]) -> Float[Tensor, "b m c h w"]:
    """The frame after each step but the last; where the episode is over, its final observation."""
    following = frames[:, 1:].clone()
    done = (batch.end | batch.trunc)[:, :-1] & batch.has_final[:, None]
    final = batch.final_obs.float().div(255).mul(2).sub(1)
    return torch.where(done[:, :, None, None, None], final[:, None], following)


def ends_unseen(batch: SegmentBatch) -> Bool[Tensor, "b m"]:
    """Where the episode is over and the frame that followed is unknown, as in data of others.

    The end cannot be seen there: learning it would teach that the padding after it is one.
    """
    return (batch.end | batch.trunc)[:, :-1] & ~batch.has_final[:, None]


def rew_end_loss(
    model: RewEndModel, batch: SegmentBatch, *, total: Total = no_all_reduce
) -> tuple[Tensor, Metrics]:
    """Cross-entropy of the reward's sign and of the end, over all transitions whose frames are known.

    Args:
        model: The network.
        batch: Segments.
        total: Sums counts over the processes that share the batch.

    Returns:
        The loss, and {"loss_rew", "loss_end", "confusion_rew" (3, 3), "confusion_end" (2, 2)}.
    """
    frames = batch.frames()
    act, mask = batch.act[:, :-1], batch.mask_padding[:, :-1] & ~ends_unseen(batch)
    logits_rew, logits_end, _ = model.predict_rew_end(frames[:, :-1], act, next_frames(batch, frames))
    target_rew, target_end = batch.rew[:, :-1].sign().long() + 1, batch.end[:, :-1].long()
    loss_rew = masked_cross_entropy(logits_rew.float(), target_rew, mask, total)
    loss_end = masked_cross_entropy(logits_end.float(), target_end, mask, total)
    return loss_rew + loss_end, {
        "loss_rew": loss_rew.detach(),
        "loss_end": loss_end.detach(),
        "confusion_rew": confusion_matrix(logits_rew, target_rew, mask),
        "confusion_end": confusion_matrix(logits_end, target_end, mask),
    }


def masked_cross_entropy(
    logits: Float[Tensor, "b t k"],
    target: Int64[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    total: Total = no_all_reduce,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the transitions where `mask` holds; 0 if there are none."""
    values = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return masked_mean(values, mask.flatten(), total)


# --- actor critic loss
# The actor-critic's loss: REINFORCE with a value baseline on lambda-returns (Sutton and Barto, 2018).
#
# Functions of tensors only, for steps of imagined and of real games.


@dataclass
class ActorCriticLossConfig:
    """The actor-critic's objective.

    Attributes:
        backup_every: Steps played for each optimiser step; null for `world_model_env.horizon`.
        gamma: Discount of a step, in [0, 1].
        lambda_: Weight of later rewards in lambda-returns, in [0, 1]: 0 uses the value after one step, 1 only
            the rewards that were played.
        weight_value_loss: Weight of the squared error of the values.
        weight_entropy_loss: Weight of the policy's entropy (in nats), which is maximised.
    """

    backup_every: int | None = None
    gamma: float = 0.985
    lambda_: float = 0.95
    weight_value_loss: float = 1.0
    weight_entropy_loss: float = 0.001

    def __post_init__(self) -> None:
        if self.backup_every is not None and self.backup_every < 1:
            raise InvalidInputError(f"backup_every must be at least 1, or null, got {self.backup_every}")
        for name in ("gamma", "lambda_"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("weight_value_loss", "weight_entropy_loss"):
            if not getattr(self, name) >= 0:
                raise InvalidInputError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class PlayedSteps:
    """t steps of b games, as the actor-critic saw them.

    Attributes:
        logits_act: Outputs of the policy, such as action logits; gradients flow through them.
        act: Choices drawn from them (see `diamond_gym.world.policy`), such as the actions taken.
        rew: Rewards; only their sign is learned from.
        end: Whether the step ended the episode.
        trunc: Whether the step cut the episode short.
        val: Values of the frames at which the actions were taken; gradients flow through them.
        val_bootstrap: Values of the frames that followed: the final frame where the episode was over.
    """

    logits_act: Float[Tensor, "b t a"]
    act: Shaped[Tensor, "b t *k"]
    rew: Float[Tensor, "b t"]
    end: Bool[Tensor, "b t"]
    trunc: Bool[Tensor, "b t"]
    val: Float[Tensor, "b t"]
    val_bootstrap: Float[Tensor, "b t"]


@torch.no_grad()
def lambda_returns(
    rew: Float[Tensor, "b t"],
    end: Bool[Tensor, "b t"],
    trunc: Bool[Tensor, "b t"],
    val_bootstrap: Float[Tensor, "b t"],
    *,
    gamma: float,
    lambda_: float,
) -> Float[Tensor, "b t"]:
    """Lambda-returns of the signs of the rewards, by recursion from the last step.

    `G_t = sign(r_t) + gamma * ((1 - lambda) * V_{t+1} + lambda * G_{t+1})`; V alone follows the reward where
    the episode was cut short or the steps run out, and nothing where it ended.
    """
    returns = torch.empty_like(val_bootstrap)
    following = val_bootstrap[:, -1]
    for t in reversed(range(rew.shape[1])):
        value = val_bootstrap[:, t]
        ahead = torch.where(trunc[:, t], value, torch.lerp(value, following, lambda_))
        following = rew[:, t].sign() + gamma * torch.where(end[:, t], 0, ahead)
        returns[:, t] = following
    return returns


def actor_critic_loss(
    steps: PlayedSteps, config: ActorCriticLossConfig, space: ActionSpace | None = None
) -> tuple[Tensor, Metrics]:
    """REINFORCE with a value baseline, squared error of the values, and an entropy bonus.

    Args:
        steps: What was played.
        config: Weights and discounts.
        space: The actions; None for discrete ones.

    Returns:
        The loss, and {"loss_actions", "loss_values", "loss_entropy", "policy_entropy" (in bits), "value",
        "return" (means of values and lambda-returns), "rew", "end" (means over the steps)}.
    """
    returns = lambda_returns(
        steps.rew, steps.end, steps.trunc, steps.val_bootstrap, gamma=config.gamma, lambda_=config.lambda_
    )
    space = space or ActionSpace.discrete(steps.logits_act.shape[-1])
    log_prob_act = policy.log_prob(space, steps.logits_act, steps.act)
    entropy = policy.entropy(space, steps.logits_act).mean()
    loss_actions = -(log_prob_act * (returns - steps.val.detach())).mean()
    loss_values = config.weight_value_loss * F.mse_loss(steps.val, returns)
    loss_entropy = -config.weight_entropy_loss * entropy
    return loss_actions + loss_values + loss_entropy, {
        "loss_actions": loss_actions.detach(),
        "loss_values": loss_values.detach(),
        "loss_entropy": loss_entropy.detach(),
        "policy_entropy": entropy.detach() / math.log(2),
        "value": steps.val.detach().mean(),
        "return": returns.mean(),
        "rew": steps.rew.sign().mean(),
        "end": steps.end.float().mean(),
    }

"""The trainer's losses equal the published implementation's with the same weights and random numbers."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from diamond_gym.world.models.denoiser import Conditioners, Features
from tests import parity, worlds
from trainers.diamond import losses
from trainers.diamond.losses import (
    DenoiserNoise,
    denoiser_errors,
    displaced_error,
    has_departed,
    is_astray,
    masked_cross_entropy,
    mean_of_predictions,
    nearest_outcome,
    neighbourhood_weight,
    rew_end_loss,
    worst_place,
)
from trainers.diamond.replay import SegmentBatch

CASES = ("tiny", "paper")


def segments(obs, act, mask, rew=None, end=None, final_obs=None) -> SegmentBatch:
    b, t = act.shape
    end = torch.zeros(b, t, dtype=torch.bool) if end is None else end.bool()
    ended = end.any(dim=1)
    final = torch.zeros_like(obs[:, 0])
    if final_obs is not None:
        final[ended] = final_obs
    return SegmentBatch(
        obs=obs,
        episode=torch.arange(b),
        start=torch.zeros(b, dtype=torch.int64),
        act=act,
        rew=torch.zeros(b, t) if rew is None else rew,
        end=end,
        trunc=torch.zeros_like(end),
        mask_padding=mask,
        final_obs=final,
        has_final=ended,
        corner=torch.zeros(b, 2, dtype=torch.int64),
        is_hard=torch.zeros(b, dtype=torch.bool),
    )


def gradient_norm(module):
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def noised(level, eps, offset):
    """The noise of frames that are noised, as published."""
    return DenoiserNoise(level, eps, offset, torch.zeros(len(level), dtype=torch.bool))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_predictions", [1, 2])
def test_denoiser_loss(case, num_predictions):
    d, prefix = parity.numbers(case), f"denoiser_loss_ar{num_predictions}"
    if f"{prefix}_value" not in d:
        pytest.skip("not a case of this size")
    denoiser = copy.deepcopy(parity.agent(case).denoiser)
    batch = segments(d[f"{prefix}_obs_u8"], d[f"{prefix}_act"], d[f"{prefix}_mask"])
    noises = [noised(*x) for x in zip(*(d[f"{prefix}_{k}"] for k in ("sigma", "eps", "offset")), strict=True)]
    errors = denoiser_errors(denoiser, batch, noises)
    loss = mean_of_predictions(errors.error, errors.counts)
    loss.backward()
    assert_close(loss.detach(), d[f"{prefix}_value"], rtol=1e-4, atol=1e-6)
    assert_close(gradient_norm(denoiser), d[f"{prefix}_grad_norm"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_reward_end_loss(case):
    d = {k.removeprefix("rew_end_loss_"): v for k, v in parity.numbers(case).items()}
    if "value_rew" not in d:
        pytest.skip("not a case of this size")
    batch = segments(d["obs_u8"], d["act"], d["mask"], d["rew"], d["end"], d["final_obs_u8"])
    loss, metrics = rew_end_loss(parity.agent(case).rew_end_model, batch)
    assert_close(metrics["loss_rew"], d["value_rew"], rtol=1e-4, atol=1e-6)
    assert_close(metrics["loss_end"], d["value_end"], rtol=1e-4, atol=1e-6)
    assert_close(loss.detach(), d["value_rew"] + d["value_end"], rtol=1e-4, atol=1e-6)
    assert torch.equal(metrics["confusion_rew"], d["cm_rew"])
    assert torch.equal(metrics["confusion_end"], d["cm_end"])


def test_an_end_whose_frame_is_unknown_is_not_learned():
    """Data of others often lack the frame after the last step: padding in its place is no sign of an end."""
    d = {k.removeprefix("rew_end_loss_"): v for k, v in parity.numbers("tiny").items()}
    batch = segments(d["obs_u8"], d["act"], d["mask"], d["rew"], d["end"], d["final_obs_u8"])
    model, unknown = parity.agent("tiny").rew_end_model, torch.zeros_like(batch.has_final)
    _, known = rew_end_loss(model, batch)
    loss, metrics = rew_end_loss(model, dataclasses.replace(batch, has_final=unknown))
    num_ends = int(known["confusion_end"][1].sum())
    assert num_ends > 0 and not metrics["confusion_end"][1].any() and loss.isfinite()
    assert int(metrics["confusion_rew"].sum()) == int(known["confusion_rew"].sum()) - num_ends


def test_what_changes_weighs_more_and_so_does_its_neighbourhood():
    change = torch.zeros(2, 3, 16, 16)
    change[1, 0, 8, 8] = 2.0
    weight = neighbourhood_weight(change, 20.0)
    assert torch.equal(weight[0], torch.ones(1, 16, 16))
    assert weight[1, 0, 8, 8] == 21 and weight[1, 0, 6, 6] == weight[1, 0, 8, 8]
    assert weight[1, 0, 5, 5] == 1


def test_what_is_made_up_weighs_as_much_as_what_is_missed():
    """The same error counts equally where something moved and where nothing did."""
    denoiser = copy.deepcopy(parity.agent("tiny").denoiser)
    n, shape = denoiser.config.inner_model.num_steps_conditioning, (3, 16, 16)
    still = torch.full((1, n + 1, *shape), 100, dtype=torch.uint8)
    noise = noised(torch.tensor([1.0]), torch.zeros(1, *shape), torch.zeros(1, 3, 1, 1))
    batch = segments(still, torch.zeros(1, n + 1, dtype=torch.int64), torch.ones(1, n + 1, dtype=torch.bool))
    plain, weighted = (
        denoiser_errors(denoiser, batch, [noise], moving_pixels_weight=weight) for weight in (0.0, 20.0)
    )
    assert weighted.error > 1.5 * plain.error, "its predictions are far from still frames"


def dot(row, column, brightness=1.0):
    """A black frame with a bright dot of 2 by 2 pixels."""
    frame = torch.full((1, 3, 32, 32), -1.0)
    frame[:, :, row : row + 2, column : column + 2] += 2 * brightness
    return frame


def total(frames, target):
    return float(displaced_error(frames, target, 2).sum())


def test_what_is_sharp_beside_its_place_costs_less_than_what_is_faint_missing_or_far_away():
    real = dot(12, 12)
    smear = (dot(12, 11) + dot(12, 13)) / 2
    beside, far, missing = dot(13, 14), dot(12, 20), torch.full_like(real, -1.0)
    assert total(real, real) == 0
    assert 0 < total(beside, real) < total(dot(14, 14), real) < 0.25 * total(smear, real)
    assert total(missing, real) == total(real, missing) > total(smear, real)
    assert total(far, real) > 1.5 * total(missing, real)
    pixels = [(x - real).square().sum() for x in (smear, beside)]
    assert pixels[0] < pixels[1], "pixel by pixel, the smear is better"


def test_an_uncertain_place_is_drawn_sharply():
    """The frame with the least error to dots that lie here or there is one of them, and not their mean."""
    places, sharpness = [dot(12, 11), dot(12, 12), dot(12, 13)], []
    for radius in (0, 2):
        frame = torch.stack(places).mean(0).requires_grad_()
        optimizer = torch.optim.Adam([frame], lr=0.05)
        for _ in range(150):
            errors = [
                displaced_error(frame, x, radius).mean() if radius else (frame - x).square().mean()
                for x in places
            ]
            optimizer.zero_grad()
            torch.stack(errors).mean().backward()
            optimizer.step()
        sharpness.append(min(float((frame.detach() - x).abs().max()) for x in places))
    assert sharpness[0] > 0.6 and sharpness[1] < 0.2


def predictions(number: int = 2) -> tuple[SegmentBatch, list[DenoiserNoise]]:
    """Two segments of random frames, and noises of so many predictions of each."""
    generator = torch.Generator().manual_seed(0)
    n, shape = parity.agent("tiny").denoiser.config.inner_model.num_steps_conditioning, (3, 16, 16)
    obs = torch.randint(256, (2, n + number, *shape), dtype=torch.uint8, generator=generator)
    act, mask = torch.zeros(2, n + number, dtype=torch.int64), torch.ones(2, n + number, dtype=torch.bool)
    level, offset = torch.full((2,), 3.0), torch.zeros(2, 3, 1, 1)
    noises = [noised(level, torch.randn(2, *shape, generator=generator), offset) for _ in range(number)]
    return segments(obs, act, mask), noises


def test_what_is_wrong_beyond_a_displacement_is_astray():
    missing = torch.full((1, 3, 32, 32), -1.0)
    astray = is_astray(displaced_error(missing, dot(8, 8), 2))
    assert astray[0, 0, 8, 8] and not astray[0, 0, 24, 24]
    assert not is_astray(displaced_error(dot(10, 9), dot(8, 8), 2)).any(), "a displaced dot is followed"


@pytest.mark.parametrize("max_displacement", [None, 4])
def test_what_follows_a_wrong_prediction_is_compared_only_where_the_real_frame_took_its_place(
    monkeypatch, max_displacement
):
    """The left half of the first prediction is astray: there, no later one is compared, else all are."""
    batch, noises = predictions(3)
    left_half = torch.arange(16) < 8
    found = iter([left_half.expand(2, 1, 16, 16), *[torch.zeros(2, 1, 16, 16, dtype=torch.bool)] * 2])
    monkeypatch.setattr(losses, "is_astray", lambda error: next(found))
    denoiser, compared = parity.agent("tiny").denoiser, []
    monkeypatch.setattr(losses, "worst_place", lambda error: compared.append(error > 0) or torch.zeros(2, 2))
    denoiser_errors(denoiser, batch, noises, displacement_radius=1, max_displacement=max_displacement)
    first, *later = (where.all(dim=(0, 1, 2)) for where in compared)
    assert first.all() and len(later) == 2
    for columns in later:
        assert columns[8:].all() and columns[:8].all() == (max_displacement is not None)
        assert columns[:8].any() == (max_displacement is not None)


def test_the_error_may_allow_displacements():
    """Along predictions, for both of a denoiser's objectives; gradients reach the network."""
    for objective in ("edm", "ddpm"):
        denoiser = copy.deepcopy(parity.agent("tiny").denoiser)
        denoiser.config = dataclasses.replace(denoiser.config, objective=objective)
        batch, noises = predictions()
        errors = denoiser_errors(denoiser, batch, noises, displacement_radius=1)
        assert errors.error.shape == (2, 2) and (errors.error[:, 0] > 0).all()
        mean_of_predictions(errors.error, errors.counts).backward()
        assert 0 < gradient_norm(denoiser) < torch.inf


def radii_used_by(monkeypatch) -> set[int]:
    """The radii within which `has_departed` looks from now on."""
    radii, unmatched = set(), losses.unmatched

    def noting(frames, target, radius):
        radii.add(radius)
        return unmatched(frames, target, radius)

    monkeypatch.setattr(losses, "unmatched", noting)
    return radii


def test_a_prediction_that_has_departed_from_the_recording_gives_way_to_the_real_frame(monkeypatch):
    denoiser = parity.agent("tiny").denoiser
    batch, noises = predictions()
    later = segments(batch.obs[:, 1:], batch.act[:, 1:], batch.mask_padding[:, 1:])
    with torch.no_grad():
        imagined = denoiser_errors(denoiser, batch, noises).error
        beyond = denoiser_errors(denoiser, batch, noises, max_displacement=0).error
        monkeypatch.setattr(losses, "ASTRAY", 4.0)  # no error of frames in [-1, 1] is larger
        radii = radii_used_by(monkeypatch)
        within = denoiser_errors(denoiser, batch, noises, max_displacement=5).error
        from_real = denoiser_errors(denoiser, later, noises[1:]).error
    assert radii == {5}
    assert_close(within, imagined)
    assert_close(beyond, torch.cat([imagined[:, :1], from_real], dim=1))
    assert not torch.allclose(beyond[:, 1], imagined[:, 1])


def frame_with(square: tuple[int, int, float] | None) -> torch.Tensor:
    """A grey frame (1, 3, 48, 48), with a square of some strength at a row and column."""
    image = torch.full((1, 3, 48, 48), -0.5)
    if square is not None:
        y, x, strength = square
        image[:, :, y : y + 3, x : x + 3] += strength
    return image


@pytest.mark.parametrize(
    ("what", "square", "departed"),
    [
        ("in its place", (20, 20, 1.0), False),
        ("3 pixels off", (23, 17, 1.0), False),
        ("5 pixels off", (25, 20, 1.0), True),
        ("missing", None, True),
        ("faint", (20, 20, 0.3), True),
    ],
)
def test_a_frame_has_departed_where_something_is_missing_or_too_far_off(what, square, departed):
    real, drawn = frame_with((20, 20, 1.0)), frame_with(square)
    assert has_departed(drawn, real, 3).tolist() == [departed], what
    assert has_departed(real, drawn, 3).tolist() == [departed], "what is made up counts as what is missing"


def test_outcomes_are_told_apart_by_what_is_missing_and_not_by_small_displacements():
    """Else each learns a place of its own for what moves, and the place is drawn instead of foretold.

    One that lacks what is there is seldom drawn, but is, so that it learns of it.
    """
    real = frame_with((20, 20, 1.0))
    displaced_in_another_shade = frame_with((17, 22, 1.0)) + 0.01
    outcomes = torch.cat([real, displaced_in_another_shade, frame_with(None)])
    network = SimpleNamespace(decode=lambda features, outcome: outcomes[outcome])
    b, one, zero = 400, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    nothing = torch.zeros(b, 3, 48, 48)
    features = Features(nothing, None, None, torch.zeros(b, 3))
    noise = noised(
        torch.full((b,), 5.0),
        torch.randn(nothing.shape, generator=torch.Generator().manual_seed(0)),
        torch.zeros(b, 3, 1, 1),
    )
    output, _ = nearest_outcome(
        SimpleNamespace(inner_model=network),
        features,
        nothing,
        Conditioners(one, one, zero, torch.zeros(1)),
        real.expand_as(nothing),
        noise,
        torch.zeros(b, 1, 48, 48, dtype=torch.bool),
    )
    chosen = [int((output == outcome).flatten(1).all(1).sum()) for outcome in outcomes]
    assert sum(chosen) == b and 0.03 < chosen[2] / b < 0.11, "a fifth of what is foretold, a third"
    assert 0.4 < chosen[0] / b < 0.56


def test_an_outcome_that_is_held_to_be_impossible_may_be_drawn_again(monkeypatch):
    """Else the likeliest is drawn ever more often, the others learn nothing, and logits grow without end."""
    monkeypatch.setattr(losses, "OUTCOME_RADIUS", 0)  # frames of noise hold nothing that could be displaced
    generator = torch.Generator().manual_seed(0)
    denoiser = worlds.tiny_agent(num_outcomes=3).denoiser
    network = denoiser.inner_model
    n, shape = denoiser.config.inner_model.num_steps_conditioning, (3, 16, 16)
    with torch.no_grad():
        network.outcomes.codes.weight.mul_(20)
        network.outcomes.logits.bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
    noisy = torch.randn(4, *shape, generator=generator)
    past = denoiser.fold_past(torch.rand(4, n * 3, 16, 16, generator=generator))
    c = denoiser.conditioners(torch.full((4,), 5.0))
    features = denoiser.encode(noisy, c, past, torch.zeros(4, n, dtype=torch.int64))
    assert features.logits is not None and features.logits.softmax(1)[:, 0].min() == 1
    real = c.c_skip * noisy + c.c_out * network.decode(features, torch.ones(4, dtype=torch.int64))
    noise = noised(torch.full((4,), 5.0), noisy, torch.zeros(4, 3, 1, 1))
    nothing = torch.zeros(4, 1, 16, 16, dtype=torch.bool)
    output, error = nearest_outcome(denoiser, features, noisy, c, real.detach(), noise, nothing)
    assert_close(c.c_skip * noisy + c.c_out * output, real)
    bias = network.outcomes.logits.bias
    (slope,) = torch.autograd.grad(error.sum(), bias)
    assert slope[0] > 0 > slope[1], "the first becomes less likely, the second more"
    assert slope[2] < 0, "logits become smaller where outcomes are alike"


def test_some_segments_may_start_from_pure_noise_as_at_play():
    """At play the only denoising step starts from unit noise that is given the sampler's first level."""
    generator = torch.Generator().manual_seed(0)
    denoiser = parity.agent("tiny").denoiser
    n, shape = denoiser.config.inner_model.num_steps_conditioning, (3, 16, 16)
    obs = torch.randint(256, (2, n + 1, *shape), dtype=torch.uint8, generator=generator)
    batch = segments(obs, torch.zeros(2, n + 1, dtype=torch.int64), torch.ones(2, n + 1, dtype=torch.bool))
    eps, level = torch.randn(2, *shape, generator=generator), torch.full((2,), 5.0)
    noise = DenoiserNoise(level, eps, torch.ones(2, 3, 1, 1), torch.tensor([True, False]))
    frames = batch.frames()
    past = denoiser.fold_past(frames[:, :n].flatten(1, 2))
    with torch.no_grad():
        c = denoiser.conditioners(level)
        output = denoiser.model_output(eps, c, past, batch.act[:, :n])
        target = (frames[:, n] - c.c_skip * eps) / c.c_out
        errors = denoiser_errors(denoiser, batch, [noise]).error
        published = denoiser_errors(denoiser, batch, [noised(*noise[:3])]).error
    assert_close(errors[0, 0], (output - target)[0].square().mean())
    assert errors[1] == published[1] and errors[0] != published[0]


def test_the_worst_place_is_that_of_the_largest_error():
    error = torch.zeros(2, 3, 32, 32)
    error[0, :, 9, 20], error[1, 1, 30, 31] = 1.0, 1.0
    rows, columns = worst_place(error).unbind(1)
    assert (rows - torch.tensor([9, 30])).abs().max() <= 2
    assert (columns - torch.tensor([20, 31])).abs().max() <= 2


def test_only_what_is_no_padding_counts():
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[1, 0, 1], [2, 1, 1]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    nll = -logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    assert_close(masked_cross_entropy(logits, target, mask), nll[mask].mean())
    assert masked_cross_entropy(logits, target, torch.zeros_like(mask)) == 0

"""The networks beyond the parity cases: image sizes, patches, and configs that are refused."""

from dataclasses import asdict

import pytest
import torch

from diamond_gym.errors import InvalidInputError
from diamond_gym.world.models import (
    ActorCriticConfig,
    Agent,
    AgentConfig,
    Denoiser,
    DenoiserConfig,
    InnerModelConfig,
    RewEndModelConfig,
    config_from_dict,
)
from diamond_gym.world.models.blocks import Upsample
from diamond_gym.world.models.denoiser import rows_as_numbers

SMALL = {"cond_channels": 16, "depths": [1, 1, 1], "channels": [8, 8, 16], "attn_depths": [0, 1, 0]}


def denoise(**sizes):
    config = InnerModelConfig(num_actions=4, **{**SMALL, **sizes})
    denoiser = Denoiser(DenoiserConfig(config))
    torch.nn.init.normal_(denoiser.inner_model.conv_out.weight, std=0.1)
    return denoiser


def call(denoiser, size):
    noisy, obs = torch.randn(2, 3, *size), torch.rand(2, 12, *size) * 2 - 1
    act = torch.randint(4, (2, 4))
    with torch.no_grad():
        c = denoiser.conditioners(torch.tensor([0.5, 5.0]))
        return denoiser.denoise(noisy, c, denoiser.fold_past(obs), act)


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (7, 5)])
def test_any_image_size(size):
    assert call(denoise(), size).shape == (2, 3, *size)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("input_skip", [False, True])
def test_patches_and_input_skip_keep_the_frame_size(patch_size, input_skip):
    frames = call(denoise(patch_size=patch_size, input_skip=input_skip), (16, 16))
    assert frames.shape == (2, 3, 16, 16)
    levels = (frames + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert frames.abs().max() <= 1


def test_the_norms_may_see_a_narrower_condition():
    denoiser = denoise(cond_out_channels=4)
    assert denoiser.inner_model.cond_proj[2].out_features == 4
    assert call(denoiser, (16, 16)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: InnerModelConfig(depths=[2, 2]), "one entry per level"),
        (lambda: InnerModelConfig(depths=[], channels=[], attn_depths=[]), "one entry per level"),
        (lambda: InnerModelConfig(cond_channels=30), "divisible"),
        (lambda: InnerModelConfig(channels=[48, 64, 64, 64]), "channels"),
        (lambda: InnerModelConfig(patch_size=0), "patch_size"),
        (lambda: InnerModelConfig(num_steps_conditioning=0), "num_steps_conditioning"),
        (lambda: InnerModelConfig(cond_channels=0), "cond_channels"),
        (lambda: InnerModelConfig(cond_out_channels=0), "cond_out_channels"),
        (lambda: InnerModelConfig(num_outcomes=0), "num_outcomes must be .* from 1 to 16384, got 0"),
        (
            lambda: DenoiserConfig(InnerModelConfig(num_outcomes=2), objective="ddpm"),
            "num_outcomes must be 1 with objective ddpm, got 2",
        ),
        (lambda: RewEndModelConfig(channels=[32]), "one entry per level"),
        (lambda: RewEndModelConfig(patch_size=3), "patch_size"),
        (lambda: ActorCriticConfig(down=[1]), "one entry per stage"),
        (lambda: Agent(AgentConfig()), "num_actions"),
    ],
)
def test_sizes_that_cannot_work_are_refused(build, words):
    with pytest.raises(InvalidInputError, match=words):
        build()


def test_config_survives_plain_data():
    config = AgentConfig(num_actions=6).with_num_actions(6)
    assert config_from_dict(AgentConfig, asdict(config)) == config


def test_unknown_field_is_named():
    with pytest.raises(InvalidInputError, match=r"DenoiserConfig.*sigma_dat'"):
        config_from_dict(AgentConfig, {"denoiser": {"sigma_dat": 1}})


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_upsampling_with_merged_copies_is_the_same(size):
    torch.manual_seed(0)
    upsample, x = Upsample(5), torch.randn(2, 5, *size)
    plain = upsample(x)
    upsample.merges_copies = True
    torch.testing.assert_close(upsample(x), plain)
    assert plain.shape == (2, 5, 2 * size[0], 2 * size[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("patch_size", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 6])
def test_folding_in_channels_last_is_pixel_unshuffle(dtype, patch_size, channels):
    model = denoise(patch_size=patch_size).inner_model.to(memory_format=torch.channels_last)
    images = (255 * torch.rand(2, channels, 12, 24)).to(dtype)
    every_second = images.repeat_interleave(2, dim=1)[:, ::2]
    for given in (images, every_second):
        folded = model.fold(given)
        assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(images, patch_size))
        assert folded.is_contiguous(memory_format=torch.channels_last)


def test_folding_passes_gradients_on():
    images = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert rows_as_numbers(images, 2) is images
    model = denoise(patch_size=2).inner_model.to(memory_format=torch.channels_last)
    model.fold(images).sum().backward()
    assert torch.equal(images.grad, torch.ones(1, 3, 4, 4))

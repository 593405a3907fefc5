"""The DDPM objective: its schedule, its sampler, its loss, and its use from config to play."""

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diamond_gym.checkpoints import WorldDescription, load_agent, load_world, save_world
from diamond_gym.errors import CheckpointError, InvalidInputError
from diamond_gym.world import ddpm, noise
from diamond_gym.world.models import Agent, Denoiser, DenoiserConfig, config_from_dict
from diamond_gym.world.pixels import to_float, to_uint8, truncate_to_uint8
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests import worlds
from tests.recordings import save_dataset
from trainers.diamond.cli import main
from trainers.diamond.config import parse
from trainers.diamond.losses import (
    DenoiserNoise,
    SigmaDistributionConfig,
    add_noise,
    denoiser_errors,
    draw_denoiser_noise,
    mean_of_predictions,
)
from trainers.diamond.replay import SegmentBatch

CPU = torch.device("cpu")
SHAPE = (3, 64, 64)


def ddpm_agent(**sizes) -> Agent:
    """Make a tiny agent with random weights whose denoiser predicts the noise."""
    agent = worlds.tiny_agent(**sizes)
    denoiser = replace(agent.config.denoiser, objective="ddpm")
    changed = Agent(replace(agent.config, denoiser=denoiser))
    changed.load_state_dict(agent.state_dict())
    return changed.eval()


def world_model(num_steps=3, **sampler) -> WorldModel:
    agent = ddpm_agent()
    config = DiffusionSamplerConfig(num_steps_denoising=num_steps, **sampler)
    return WorldModel(agent.denoiser, agent.rew_end_model, config)


def play(world, obs, act, key, num_steps=3):
    state, frames = world.start(obs, act, key), []
    for t in range(num_steps):
        state, step = world.step(state, (key + t) % 4)
        frames.append(step.obs)
    return torch.stack(frames, 1)


def context(num_games=3):
    bank = worlds.contexts(num_contexts=num_games)
    return torch.from_numpy(bank.obs.transpose(0, 1, 4, 2, 3).copy()), torch.from_numpy(bank.act)


# --- schedule


def test_schedule_has_the_known_numbers():
    abar = ddpm.alphas_cumprod(CPU)
    assert abar.shape == (1000,) and (abar.diff() < 0).all()
    assert_close(abar[[0, 1]], torch.tensor([0.9999, 0.9999 * (1 - 1e-4 - 0.0199 / 999)]))
    assert_close(abar[-1], torch.tensor(4.0358e-5), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "num_steps, timesteps",
    [
        (1, [500]),
        (2, [500, 0]),
        (3, [666, 333, 0]),
        (10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (1000, list(range(999, -1, -1))),
    ],
)
def test_timesteps_are_those_of_diffusers_and_the_middle_for_a_single_one(num_steps, timesteps):
    assert ddpm.sampling_timesteps(num_steps) == timesteps


# --- sampler


def denoiser_config() -> DenoiserConfig:
    return ddpm_agent().config.denoiser


@pytest.mark.parametrize("num_steps", [1, 3, 10, 1000])
def test_a_perfect_noise_predictor_gives_the_clean_image(num_steps):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, *SHAPE, generator=generator) * 2 - 1
    denoiser = Denoiser(denoiser_config())

    def denoise(x, timestep):
        abar = ddpm.alphas_cumprod(CPU)[int(timestep)]
        noise = (x - abar.sqrt() * clean) / (1 - abar).sqrt()
        c = denoiser.conditioners(torch.full((2,), float(timestep)))
        return (c.c_skip * x + c.c_out * noise).clamp(-1, 1)

    steps = ddpm.sampling_timesteps(num_steps)
    start = torch.randn(2, *SHAPE, generator=generator)
    trajectory = ddpm.sample(
        denoise, start, steps, lambda i: torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(i))
    )
    assert len(trajectory) == num_steps + 1 and trajectory[0] is start
    assert_close(trajectory[-1], clean, rtol=0, atol=1e-3)


def test_a_step_has_mean_and_variance_of_the_posterior():
    """Compare with the formulas of `DDPMScheduler.step` with `fixed_small`."""
    abar, next_abar = ddpm.alphas_cumprod(CPU)[[666, 333]].double().tolist()
    beta = 1 - abar / next_abar
    x, clean, eps = 0.7, 0.2, -1.3
    mean = math.sqrt(next_abar) * beta / (1 - abar) * clean
    mean += math.sqrt(1 - beta) * (1 - next_abar) / (1 - abar) * x
    expected = mean + math.sqrt((1 - next_abar) / (1 - abar) * beta) * eps

    def full(value):
        return torch.full((1, 1, 1, 1), value)

    trajectory = ddpm.sample(lambda *_: full(clean), full(x), [666, 333], lambda i: full(eps))
    assert [y.item() for y in trajectory] == pytest.approx([x, expected, clean])


def test_noise_is_asked_for_after_every_step_but_the_last():
    asked = []

    def step_noise(i):
        asked.append(i)
        return torch.zeros(1, *SHAPE)

    ddpm.sample(lambda x, _: x, torch.zeros(1, *SHAPE), ddpm.sampling_timesteps(4), step_noise)
    assert asked == [0, 1, 2]


# --- loss


def segments(num_steps, batch_size=4) -> SegmentBatch:
    generator = torch.Generator().manual_seed(0)
    obs = torch.randint(256, (batch_size, num_steps, *SHAPE), dtype=torch.uint8, generator=generator)
    nothing = torch.zeros(batch_size, num_steps)
    return SegmentBatch(
        obs=obs,
        episode=torch.arange(batch_size),
        start=torch.zeros(batch_size, dtype=torch.int64),
        act=torch.randint(4, (batch_size, num_steps), generator=generator),
        rew=nothing,
        end=nothing.bool(),
        trunc=nothing.bool(),
        mask_padding=~nothing.bool(),
        final_obs=torch.zeros_like(obs[:, 0]),
        has_final=nothing[:, 0].bool(),
        corner=torch.zeros(batch_size, 2, dtype=torch.int64),
        is_hard=nothing[:, 0].bool(),
    )


def draw(batch_size=4, seed=0) -> DenoiserNoise:
    generator = torch.Generator().manual_seed(seed)
    return draw_denoiser_noise("ddpm", SigmaDistributionConfig(), SHAPE, batch_size, generator)


def test_timesteps_are_drawn_uniformly():
    level = draw(20_000).level
    assert level.min() == 0 and level.max() == 999 and torch.equal(level, level.round())
    assert abs(level.mean() - 499.5) < 10


def loss_of(denoiser, batch, noises):
    """Compute the denoiser's training loss."""
    errors = denoiser_errors(denoiser, batch, noises)
    return mean_of_predictions(errors.error, errors.counts)


def test_loss_is_the_error_of_the_noise_with_its_offset():
    denoiser, noise, n = ddpm_agent().denoiser, draw(), worlds.NUM_STEPS_CONDITIONING
    batch = segments(n + 1)
    frames = batch.frames()
    whole = noise.eps + 0.3 * noise.offset
    abar = ddpm.alphas_cumprod(CPU)[noise.level.long()][:, None, None, None]
    noisy = abar.sqrt() * frames[:, n] + (1 - abar).sqrt() * whole
    assert_close(add_noise(denoiser.config, frames[:, n], noise), noisy)

    past = denoiser.inner_model.fold(frames[:, :n].flatten(1, 2))
    folded = denoiser.inner_model.fold(noisy)
    predicted = denoiser.inner_model(folded, (noise.level + 1) / 1000, past, batch.act[:, :n])
    loss = loss_of(denoiser, batch, [noise])
    assert_close(loss, (predicted - whole).square().mean(), rtol=1e-4, atol=1e-6)


def test_later_predictions_see_the_earlier_ones():
    denoiser, n = ddpm_agent().denoiser, worlds.NUM_STEPS_CONDITIONING
    batch, noises = segments(n + 2), [draw(seed=0), draw(seed=1)]
    frames = batch.frames()
    first = loss_of(denoiser, batch, noises[:1])
    noisy = add_noise(denoiser.config, frames[:, n], noises[0])
    past = denoiser.fold_past(frames[:, :n].flatten(1, 2))
    predicted = denoiser.denoise(noisy, denoiser.conditioners(noises[0].level), past, batch.act[:, :n])
    imagined = replace(batch, obs=batch.obs.clone())
    imagined.obs[:, n] = truncate_to_uint8(predicted.detach())
    shifted = SegmentBatch(
        *(x[:, 1:] if x.ndim > 1 and x.shape[1] == n + 2 else x for x in vars(imagined).values())
    )
    second = loss_of(denoiser, shifted, noises[1:])
    both = loss_of(denoiser, batch, noises)
    assert_close(both, (first + second) / 2, rtol=1e-3, atol=1e-5)


# --- world model


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_the_same_key_has_the_same_future_at_any_batch_size(num_steps):
    obs, act = context()
    key = torch.tensor([5, 6, 2**40])
    world = world_model(num_steps)
    together = play(world, obs, act, key)
    assert together.dtype == torch.uint8 and together.shape == (3, 3, *SHAPE)
    assert torch.equal(together, play(world, obs, act, key))
    for i in range(3):
        alone = play(world, obs[i : i + 1], act[i : i + 1], key[i : i + 1])
        assert (alone[0] != together[i]).float().mean() < 0.01, "but for rounding"


def test_another_key_gives_another_future():
    obs, act = context()
    key = torch.tensor([5, 6, 7])
    world = world_model()
    assert (play(world, obs, act, key) != play(world, obs, act, key + 4)).float().mean() > 0.1


def test_the_trajectory_has_one_image_a_step():
    obs, act = context()
    world = world_model(num_steps=4)
    assert world.levels == [750.0, 500.0, 250.0, 0.0]
    state = world.start(obs, act, torch.arange(3))
    _, step = world.step(state, act[:, 0])
    assert len(step.trajectory) == 5
    assert_close(to_float(step.obs), step.trajectory[-1])


def sampled_as_published(denoiser, past, act, x, step_noises, timesteps):
    """Sample as in section 5.1 with the formulas of `DDPMScheduler`: the frame is quantised at the end."""
    betas = np.linspace(1e-4, 0.02, 1000)
    abars = np.cumprod(1 - betas)
    for i, t in enumerate(timesteps):
        predicted = denoiser.inner_model(
            denoiser.inner_model.fold(x), torch.tensor([(t + 1) / 1000]), past, act
        )
        abar, previous = abars[t], abars[timesteps[i + 1]] if i + 1 < len(timesteps) else 1.0
        beta = 1 - abar / previous
        clean = ((x - (1 - abar) ** 0.5 * predicted) / abar**0.5).clamp(-1, 1)
        if i + 1 == len(timesteps):
            return clean
        mean = previous**0.5 * beta / (1 - abar) * clean + (1 - beta) ** 0.5 * (1 - previous) / (1 - abar) * x
        x = mean + ((1 - previous) / (1 - abar) * beta) ** 0.5 * step_noises[i]
    raise AssertionError("there is a last timestep")


@pytest.mark.parametrize(
    "timesteps", [[500], [666, 333, 0], [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]]
)
@torch.no_grad()
def test_frames_are_sampled_as_in_section_5_1(timesteps):
    obs, act = context()
    key = torch.arange(3)
    world = world_model(len(timesteps))
    state = world.start(obs, act, key)
    trajectory = world.step(state, act[:, -1])[1].trajectory
    assert_close(to_float(to_uint8(trajectory[-1])), trajectory[-1], msg="the frame is on 256 levels")
    time = torch.zeros_like(key)
    step_noises = [noise.normal(key, time, noise.Draw.CHURN + i, SHAPE) for i in range(len(timesteps) - 1)]
    past = world.denoiser.inner_model.fold(to_float(obs).flatten(1, 2))
    clean = sampled_as_published(world.denoiser, past, act, trajectory[0], step_noises, timesteps)
    frame = truncate_to_uint8(clean)
    off = (frame.int() - to_uint8(trajectory[-1]).int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 1e-3, "but for rounding"
    for image in trajectory[1:-1]:
        assert (to_float(truncate_to_uint8(image)) - image).abs().max() > 1e-3, "quantised once, at the end"


@pytest.mark.parametrize("options", [{"order": 2}, {"s_churn": 1.0}])
def test_what_only_edm_can_do_is_refused(options):
    with pytest.raises(InvalidInputError, match=r"objective=ddpm needs order=1 and s_churn=0, got order="):
        world_model(**options)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(InvalidInputError, match=r"num_steps_denoising must be in 1..1000 .* got 1001"):
        ddpm.sampling_timesteps(1001)
    with pytest.raises(InvalidInputError, match="must be an integer from 1 to 1000, got 1001"):
        DiffusionSamplerConfig(num_steps_denoising=1001)


def test_an_unknown_objective_is_refused():
    with pytest.raises(InvalidInputError, match="one of edm, ddpm, got 'DDPM'"):
        config_from_dict(DenoiserConfig, {"objective": "DDPM"})


# --- checkpoints


def test_a_saved_world_says_its_objective(tmp_path):
    sampler = DiffusionSamplerConfig(num_steps_denoising=2)
    options = {"game": "Breakout", "action_meanings": worlds.ACTION_MEANINGS, "sampler": sampler}
    save_world(tmp_path, ddpm_agent(), contexts=worlds.contexts(), **options)
    world = load_world("Breakout", tmp_path, **worlds.PLAIN)
    assert world.agent.config.denoiser.objective == "ddpm"
    assert world.world_model.levels == [500.0, 0.0]
    few = load_world("Breakout", tmp_path, num_denoising_steps=1, **worlds.PLAIN)
    assert few.world_model.levels == [500.0]
    with pytest.raises(InvalidInputError, match="order=1"):
        load_world("Breakout", tmp_path, order=2, **worlds.PLAIN)


def test_a_description_without_an_objective_is_of_edm():
    text = WorldDescription(ddpm_agent().config, DiffusionSamplerConfig(), None, None).to_json()
    assert '"objective": "ddpm"' in text
    old = text.replace(',\n   "objective": "ddpm"', "")
    assert old.count("objective") == 0
    description = WorldDescription.from_json(old, "old")
    assert description.agent is not None and description.agent.denoiser.objective == "edm"
    assert description.sampler == DiffusionSamplerConfig()


def test_a_description_with_a_spacing_of_timesteps_is_read_if_it_is_todays():
    text = WorldDescription(ddpm_agent().config, DiffusionSamplerConfig(), None, None).to_json()
    old = text.replace('"s_churn_at"', '"timestep_spacing": "leading",\n  "s_churn_at"')
    assert old != text and WorldDescription.from_json(old, "old").sampler == DiffusionSamplerConfig()
    with pytest.raises(CheckpointError, match="timestep_spacing"):
        WorldDescription.from_json(old.replace("leading", "trailing"), "old")


def published_ddpm(agent: Agent) -> dict[str, torch.Tensor]:
    """Return the state dict under the names of the paper's DDPM checkpoints."""
    return {
        name.replace("denoiser.inner_model.", "denoiser.noise_model."): x
        for name, x in agent.state_dict().items()
    }


def test_a_published_ddpm_checkpoint_says_its_objective_by_its_names(tmp_path):
    agent = ddpm_agent()
    torch.save(published_ddpm(agent), tmp_path / "agent.pt")
    worlds.contexts().save(tmp_path / "agent.contexts.safetensors")
    world = load_world("Breakout", tmp_path / "agent.pt", **worlds.PLAIN)
    assert world.agent.config.denoiser == agent.config.denoiser
    assert world.world_model.levels == [666.0, 333.0, 0.0]
    assert load_world(
        "Breakout", tmp_path / "agent.pt", num_denoising_steps=1, **worlds.PLAIN
    ).world_model.levels == [500.0]
    for name, weights in agent.state_dict().items():
        assert torch.equal(weights, world.agent.state_dict()[name]), name


def test_names_that_contradict_a_description_are_refused(tmp_path):
    file = tmp_path / "checkpoints" / "agent_versions" / "agent_epoch_00001.pt"
    file.parent.mkdir(parents=True)
    torch.save(published_ddpm(ddpm_agent()), file)
    edm = WorldDescription(worlds.tiny_agent().config, DiffusionSamplerConfig(), "Breakout", None)
    (tmp_path / "config").mkdir()
    edm.save(tmp_path / "config" / "world.json")
    with pytest.raises(CheckpointError, match=r"denoiser\.objective is ddpm, described as edm"):
        load_agent(tmp_path)


# --- from the command line to play


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_ddpm_is_trained_without_autoregressive_steps(preset):
    usual = parse([f"preset={preset}", "denoiser.objective=ddpm"])
    assert usual.denoiser.training.num_autoregressive_steps == 0
    given = "denoiser.training.num_autoregressive_steps=2"
    for arguments in ([given, "denoiser.objective=ddpm"], ["agent.denoiser.objective=ddpm", given]):
        config = parse([f"preset={preset}", *arguments])
        assert config.denoiser.training.num_autoregressive_steps == 2
    edm = parse([f"preset={preset}", "denoiser.objective=edm"])
    assert edm.denoiser.training.num_autoregressive_steps > 0


def test_train_export_and_play(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_dataset(tmp_path / "data" / "train", 6)
    arguments = [
        "preset=smoke",
        "static_dataset.path=data",
        "game=Breakout",
        "common.device=cpu",
        "training.num_threads=1",
        "training.num_epochs=2",
        "training.parts=[denoiser,rew_end_model]",
        "denoiser.training.steps_first_epoch=3",
        "denoiser.training.steps_per_epoch=2",
        "rew_end_model.training.steps_first_epoch=2",
        "rew_end_model.training.steps_per_epoch=2",
        "denoiser.objective=ddpm",
    ]
    assert main(["train", *arguments]) == 0
    (run,) = tmp_path.glob("outputs/*-*-*/*-*-*")
    assert load_agent(run).config.denoiser.objective == "ddpm"
    assert main(["export", f"run={run}", f"out={tmp_path / 'out'}", "num_contexts=2"]) == 0
    for checkpoint in (run, tmp_path / "out"):
        frames = []
        for _ in range(2):
            env = gymnasium.make(
                "DiamondBreakout-v0", checkpoint=str(checkpoint), num_denoising_steps=2, **worlds.PLAIN
            )
            assert env.unwrapped.spec is not None
            env.reset(seed=3)
            frames.append(env.step(1)[0])
            env.close()
        assert np.array_equal(*frames) and frames[0].std() > 0
    with pytest.raises(InvalidInputError, match="s_churn=0"):
        gymnasium.make("DiamondBreakout-v0", checkpoint=str(run), s_churn=0.5, **worlds.PLAIN)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["denoiser.objective=dpm"], "denoiser.objective must be one of edm, ddpm, got 'dpm'"),
        (
            ["game=Pong", "denoiser.objective=ddpm", "world_model_env.diffusion_sampler.order=2"],
            "denoiser.objective=ddpm needs order=1",
        ),
    ],
)
def test_wrong_arguments_give_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())

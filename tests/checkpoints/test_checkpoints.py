"""World models on disk: sizes inferred from weights, saving, every way of loading, and errors."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from diamond_gym import files as disk
from diamond_gym import registration, untrusted
from diamond_gym.checkpoints import (
    World,
    WorldDescription,
    infer_agent_config,
    load_agent,
    load_world,
    locate,
    save_world,
    start_contexts,
)
from diamond_gym.checkpoints.contexts import NUM_CONTEXTS, ContextBank
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.errors import (
    CacheError,
    CheckpointError,
    CheckpointNotFoundError,
    DeviceError,
    InvalidInputError,
    UnknownGameError,
)
from diamond_gym.games.atari import action_meanings
from diamond_gym.world.models import (
    ActorCriticConfig,
    Agent,
    AgentConfig,
    DenoiserConfig,
    InnerModelConfig,
    RewEndModelConfig,
)
from diamond_gym.world.sampler import DiffusionSamplerConfig
from tests import parity
from tests.paths import ROOT

MEANINGS = ["NOOP", "FIRE", "RIGHT", "LEFT"]
SAMPLER = DiffusionSamplerConfig(num_steps_denoising=2, sigma_max=4.0, s_tmin=0.1)

CONFIG = AgentConfig(
    DenoiserConfig(
        InnerModelConfig(cond_channels=16, depths=[1, 1], channels=[8, 16], attn_depths=[0, 0], patch_size=4)
    ),
    RewEndModelConfig(
        lstm_dim=8, cond_channels=8, depths=[1, 1], channels=[8, 8], attn_depths=[0, 0], patch_size=4
    ),
    ActorCriticConfig(lstm_dim=8, channels=[8, 8], down=[1, 1]),
    num_actions=4,
)


def random_agent(config=CONFIG, **kwargs):
    """Make an agent in which every weight matters (none starts at zero)."""
    agent = Agent(config, **kwargs).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in agent.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return agent


def random_bank(k=6, n=4, size=64, num_actions=4):
    rng = np.random.default_rng(0)
    return ContextBank(
        rng.integers(0, 256, (k, n, size, size, 3), dtype=np.uint8), rng.integers(0, num_actions, (k, n))
    )


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def imagine(world_model, bank, acts=(1, 0, 1)):
    """Return frames and logits of a few steps from some contexts."""
    obs, act = torch.from_numpy(bank.obs).permute(0, 1, 4, 2, 3), torch.from_numpy(bank.act)
    state, seen = world_model.start(obs, act, key=torch.arange(len(bank))), []
    for action in acts:
        state, step = world_model.step(state, torch.full((len(bank),), action))
        seen += [step.obs, step.logits_rew, step.logits_end]
    return seen


@pytest.fixture(scope="module")
def agent():
    return random_agent()


@pytest.fixture(scope="module")
def bank():
    return random_bank()


@pytest.fixture
def saved(agent, bank, tmp_path):
    """The folder of a saved Breakout."""
    folder = tmp_path / "Breakout"
    save_world(folder, agent, game="Breakout", action_meanings=MEANINGS, sampler=SAMPLER, contexts=bank)
    return folder


@pytest.fixture
def pt(agent, tmp_path):
    """A file as it is published."""
    path = tmp_path / "Breakout.pt"
    torch.save(agent.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(folder))
    return folder


# Sizes read off weights


def inner(**sizes):
    return DenoiserConfig(replace(CONFIG.denoiser.inner_model, **sizes))


ARCHITECTURES = {
    "paper": replace(AgentConfig(), num_actions=18),
    "small": CONFIG,
    "one level, no patches": replace(
        CONFIG,
        denoiser=inner(depths=[3], channels=[24], attn_depths=[1], patch_size=1, num_steps_conditioning=1),
        rew_end_model=RewEndModelConfig(depths=[1], channels=[4], attn_depths=[1], lstm_dim=4, patch_size=2),
    ),
    "attention on one level": replace(
        CONFIG, denoiser=inner(depths=[1, 2, 1], channels=[8, 16, 8], attn_depths=[0, 1, 0])
    ),
    "as embedded": replace(CONFIG, denoiser=inner(input_skip=True, cond_out_channels=4)),
    "outcomes": replace(CONFIG, denoiser=inner(num_outcomes=3)),
    "grey": AgentConfig(
        inner(img_channels=1),
        replace(CONFIG.rew_end_model, img_channels=1),
        replace(CONFIG.actor_critic, img_channels=1),
        num_actions=4,
    ),
    "other image size": AgentConfig(
        CONFIG.denoiser,
        replace(CONFIG.rew_end_model, img_size=48),
        replace(CONFIG.actor_critic, img_size=48),
        num_actions=4,
    ),
    "no pooling": replace(CONFIG, actor_critic=ActorCriticConfig(lstm_dim=4, channels=[4], down=[0])),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_are_read_off_the_weights(name):
    with torch.device("meta"):
        agent = Agent(ARCHITECTURES[name])
    assert infer_agent_config(agent.state_dict()) == agent.config


def test_a_world_model_alone_is_read_too():
    with torch.device("meta"):
        agent = Agent(CONFIG, with_actor_critic=False)
    config = infer_agent_config(agent.state_dict())
    assert (config.denoiser, config.rew_end_model) == (agent.config.denoiser, agent.config.rew_end_model)


def test_what_shapes_leave_open_is_taken_from_what_is_known():
    known = replace(
        CONFIG,
        denoiser=replace(CONFIG.denoiser, sigma_data=0.7, sigma_offset_noise=0.0),
        actor_critic=ActorCriticConfig(lstm_dim=8, channels=[8, 8, 8], down=[0, 1, 0]),
    )
    with torch.device("meta"):
        agent = Agent(known)
    assert infer_agent_config(agent.state_dict(), known) == agent.config
    with pytest.warns(UserWarning, match="1 of the actor-critic's 3 stages pool"):
        guess = infer_agent_config(agent.state_dict())
    assert guess.actor_critic.down == [1, 0, 0] and guess.denoiser.sigma_data == 0.5


@pytest.mark.parametrize(
    "missing", ["denoiser.inner_model.conv_in.weight", "rew_end_model.lstm.weight_ih_l0"]
)
def test_a_missing_tensor_is_named(agent, missing):
    weights = agent.state_dict()
    del weights[missing]
    with pytest.raises(CheckpointError, match=missing):
        infer_agent_config(weights)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("denoiser.inner_model.conv_in.weight", (8, 241, 3, 3)),
        ("denoiser.inner_model.conv_in.weight", (8, 0, 3, 3)),
        ("denoiser.inner_model.conv_in.weight", (8, 48, 3, 3)),
        ("denoiser.inner_model.conv_out.weight", (5, 8, 3, 3)),
        ("denoiser.inner_model.cond_proj.0.weight", (17, 17)),
        ("denoiser.inner_model.cond_proj.2.weight", (4,)),
        ("denoiser.inner_model.conv_out.weight", (48,)),
        ("denoiser.inner_model.act_emb.0.weight", (4,)),
        ("rew_end_model.encoder.conv_in.weight", (8, 95, 3, 3)),
        ("rew_end_model.lstm.weight_ih_l0", (32, 11)),
        ("actor_critic.lstm.weight_ih", (32, 11)),
    ],
)
def test_shapes_that_contradict_each_other(agent, key, shape):
    with pytest.raises(CheckpointError):
        infer_agent_config(agent.state_dict() | {key: torch.empty(shape)})


# Published files


@pytest.mark.parametrize("case", ["tiny", "paper"])
def test_published_weights_give_the_published_numbers(case, tmp_path):
    path = tmp_path / "agent.pt"
    weights = parity.seeded_weights(case)
    torch.save(weights, path)
    if case == "tiny":
        with pytest.warns(UserWarning, match="stages pool"):
            agent = load_agent(path)
    else:
        agent = load_agent(path)
    assert agent.config == parity.agent_config(case).with_num_actions(agent.config.num_actions)
    assert agent.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in agent.state_dict().items())
    d = parity.numbers(case)
    with torch.no_grad():
        hx_cx = d["ac_hx_in"], d["ac_cx_in"]
        logits, *_ = agent.actor_critic.predict_act_value(d["ac_obs_u8"] / 127.5 - 1, hx_cx)
    torch.testing.assert_close(logits, d["ac_logits_act"], rtol=1e-4, atol=1e-5)


def test_a_world_of_a_pt_file_imagines_as_its_agent(agent, bank, pt, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    world = load_world(
        "Breakout", str(pt), device="cpu", dtype="float32", contexts=str(tmp_path / "bank.safetensors")
    )
    assert isinstance(world, World)
    assert world.game == "Breakout" and world.action_meanings == MEANINGS and world.source == str(pt)
    expected = type(world.world_model)(agent.denoiser, agent.rew_end_model)
    for ours, theirs in zip(imagine(world.world_model, world.contexts), imagine(expected, bank), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1.0 if ours.dtype == torch.uint8 else 1e-3)


def test_a_bank_beside_a_pt_file_is_found(bank, pt):
    bank.save(pt.with_name("Breakout.contexts.safetensors"))
    assert np.array_equal(load_world("Breakout", str(pt)).contexts.obs, bank.obs)


def test_loading_draws_no_random_numbers(saved, pt):
    before = torch.get_rng_state()
    load_agent(saved)
    load_agent(pt)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_does_not_import_the_compiler(pt):
    """The import would take seconds."""
    program = (
        "import sys; from diamond_gym.checkpoints import load_agent; load_agent(sys.argv[1]); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, pt], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# Our own files


def test_saving_and_loading_keeps_everything(saved, agent, bank):
    world = load_world("breakout", str(saved), device="cpu")
    assert world.game == "Breakout" and world.action_meanings == MEANINGS
    assert world.world_model.config == SAMPLER and math.isinf(world.world_model.config.s_tmax)
    assert np.array_equal(world.contexts.obs, bank.obs) and np.array_equal(world.contexts.act, bank.act)
    assert same_weights(load_agent(saved), agent)
    assert world.agent.config == agent.config
    assert sorted(file.name for file in saved.iterdir()) == ["contexts.safetensors", "model.safetensors"]


def test_the_file_itself_and_no_game_will_do(saved):
    world = load_world(None, saved / "model.safetensors")
    assert world.game == "Breakout" and len(world.contexts) == 6


def test_a_lone_file_has_its_contexts_beside_it(agent, bank, tmp_path):
    file = save_world(
        tmp_path / "mine.safetensors", agent, game=None, action_meanings=None, sampler=SAMPLER, contexts=bank
    )
    assert file == tmp_path / "mine.safetensors"
    world = load_world(None, str(file))
    assert world.game is None and world.action_meanings == ["ACTION_0", "ACTION_1", "ACTION_2", "ACTION_3"]
    assert np.array_equal(world.contexts.obs, bank.obs)


def test_a_world_model_without_a_policy(bank, tmp_path):
    agent = random_agent(with_actor_critic=False)
    save_world(tmp_path, agent, game="Breakout", action_meanings=MEANINGS, sampler=SAMPLER, contexts=bank)
    world = load_world("Breakout", str(tmp_path))
    assert world.agent.actor_critic is None and same_weights(load_agent(tmp_path), agent)


def test_half_precision_halves_the_file(agent, saved, bank, tmp_path):
    half = save_world(
        tmp_path / "half", agent, game=None, action_meanings=None, sampler=SAMPLER, dtype="float16"
    )
    assert half.stat().st_size < 0.6 * (saved / "model.safetensors").stat().st_size
    loaded = load_agent(half)
    assert {p.dtype for p in loaded.state_dict().values()} == {torch.float32}
    for (name, ours), theirs in zip(loaded.named_parameters(), agent.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6, msg=name)
    assert all(torch.equal(a, b) for a, b in zip(loaded.buffers(), agent.buffers(), strict=True))


def test_saving_again_replaces_the_weights_and_keeps_the_contexts(saved, bank):
    other = random_agent()
    other.denoiser.inner_model.conv_in.weight.data += 1
    save_world(saved, other, game="Breakout", action_meanings=MEANINGS, sampler=SAMPLER)
    assert same_weights(load_agent(saved), other)
    assert np.array_equal(load_world("Breakout", str(saved)).contexts.obs, bank.obs)


def test_the_checkpoint_s_sampler_can_be_overridden(saved):
    world = load_world("Breakout", str(saved), num_denoising_steps=5, order=2, s_churn=0.5)
    assert world.world_model.config == replace(SAMPLER, num_steps_denoising=5, order=2, s_churn=0.5)
    assert len(world.world_model.levels) == 6
    for wrong in ({"num_denoising_steps": 0}, {"order": 3}, {"s_churn": -1.0}):
        with pytest.raises(InvalidInputError):
            load_world("Breakout", str(saved), **wrong)


def test_unusable_arguments_of_save(agent, tmp_path):
    arguments = {"game": "Breakout", "action_meanings": MEANINGS, "sampler": SAMPLER}
    with pytest.raises(InvalidInputError, match="float64"):
        save_world(tmp_path / "w", agent, **arguments, dtype="float64")
    with pytest.raises(InvalidInputError, match="4 actions, action_meanings has 3"):
        save_world(tmp_path / "w", agent, **{**arguments, "action_meanings": MEANINGS[:3]})
    with pytest.raises(UnknownGameError):
        save_world(tmp_path / "w", agent, **{**arguments, "game": "Brickout"})
    with pytest.raises(InvalidInputError, match="JSON"):
        save_world(tmp_path / "w", agent, **arguments, training={"lr": {1, 2}})
    assert not (tmp_path / "w").exists()


def test_an_unwritable_folder(agent, bank, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="file"):
        save_world(tmp_path / "file", agent, game=None, action_meanings=None, sampler=SAMPLER, contexts=bank)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_failed_write_leaves_the_old_file(saved, agent, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match="No space left"):
        save_world(saved, agent, game="Breakout", action_meanings=MEANINGS, sampler=DiffusionSamplerConfig())
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(file.name for file in saved.iterdir()) == ["contexts.safetensors", "model.safetensors"]


def test_descriptions_are_strict_json():
    description = WorldDescription(CONFIG, SAMPLER, "Breakout", MEANINGS, {"steps": 7})
    text = description.to_json()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["sampler"]["s_tmax"] == "inf"
    assert WorldDescription.from_json(text, "here") == description


# Embedded world models and run folders


@pytest.mark.parametrize("game", ["Breakout", "Freeway", "Pong"])
@pytest.mark.parametrize("num_denoising_steps", [2, 3])
def test_embedded_worlds_stay_clear_with_more_passes(game, num_denoising_steps):
    """Noise levels that a denoiser was not trained on dissolve its frames within a few steps."""

    def frame_after_ten_steps(num_denoising_steps):
        env = DiamondEnv(
            game,
            checkpoint="embedded",
            num_denoising_steps=num_denoising_steps,
            device="cpu",
            backend="eager",
        )
        env.reset(seed=0)
        return [env.step(0)[0] for _ in range(10)][-1].astype(float)

    usual, other = frame_after_ten_steps(1), frame_after_ten_steps(num_denoising_steps)
    assert 10 * np.log10(255**2 / np.mean((usual - other) ** 2)) > 33  # decibels


def test_embedded_world_models_come_first(saved, monkeypatch):
    monkeypatch.setattr(locate, "EMBEDDED", saved.parent)
    for checkpoint in ("auto", "embedded"):
        assert load_world("Breakout", checkpoint).source == str(saved / "model.safetensors")
    with pytest.raises(
        CheckpointNotFoundError, match="no embedded world model of Pong; embedded games: Breakout"
    ):
        load_world("Pong", "embedded")
    with pytest.raises(InvalidInputError, match="game"):
        load_world(None, "auto")


def episode(length, seed):
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randint(0, 256, (length, 3, 64, 64), dtype=torch.uint8, generator=generator)
    zeros = torch.zeros(length, dtype=torch.uint8)
    return Episode(obs, torch.zeros(length, dtype=torch.int64), torch.zeros(length), zeros, zeros.clone())


def record(folder, length, seed):
    EpisodeDataset(folder, create=True).append(episode(length, seed))


@pytest.fixture
def run(agent, tmp_path):
    """A run folder of the trainer with two agents, the newer one unlike `agent`."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "agent_versions").mkdir(parents=True)
    newest = random_agent()
    newest.denoiser.inner_model.conv_in.weight.data += 1
    for epoch, version in ((9, agent), (10, newest)):
        torch.save(version.state_dict(), folder / f"checkpoints/agent_versions/agent_epoch_{epoch:05d}.pt")
    WorldDescription(CONFIG, SAMPLER, "Breakout", MEANINGS).save(folder / "config" / "world.json")
    record(folder / "dataset" / "train", NUM_CONTEXTS + 20, seed=1)
    return folder, newest


def frames_are_from(bank, folder):
    frames = {frame.tobytes() for frame in EpisodeDataset(folder)[0].obs.permute(0, 2, 3, 1).numpy()}
    return {frame.tobytes() for frame in bank.obs.reshape(-1, 64, 64, 3)} <= frames


def test_the_newest_agent_of_a_run_is_taken(run):
    folder, newest = run
    world = load_world(None, str(folder))
    assert world.source.endswith("agent_epoch_00010.pt") and same_weights(load_agent(folder), newest)
    assert world.game == "Breakout" and world.world_model.config == SAMPLER


def test_an_older_agent_of_a_run_knows_its_run(run, agent):
    folder, _ = run
    world = load_world(None, str(folder / "checkpoints/agent_versions/agent_epoch_00009.pt"))
    assert world.game == "Breakout" and world.world_model.config == SAMPLER
    assert len(world.contexts) == NUM_CONTEXTS


def test_start_contexts_of_a_run(run, bank):
    folder, _ = run
    record(folder / "dataset" / "test", 10, seed=2)
    assert frames_are_from(load_world(None, str(folder)).contexts, folder / "dataset" / "train")
    shutil.rmtree(folder / "dataset" / "test")
    record(folder / "dataset" / "test", NUM_CONTEXTS + 3, seed=3)
    assert frames_are_from(load_world(None, str(folder)).contexts, folder / "dataset" / "test")
    bank.save(folder / "contexts.safetensors")
    assert np.array_equal(load_world(None, str(folder)).contexts.obs, bank.obs)


def test_a_short_recording_gives_what_it_has(run):
    folder, _ = run
    shutil.rmtree(folder / "dataset" / "train")
    record(folder / "dataset" / "train", 10, seed=2)
    assert len(load_world(None, str(folder)).contexts) == 7


def test_a_published_run_has_no_description(run):
    folder, newest = run
    (folder / "config" / "world.json").unlink()
    world = load_world("Breakout", str(folder))
    assert world.agent.config == newest.config and world.action_meanings == action_meanings("Breakout")


PUBLISHED = """\
wandb: {mode: disabled}
env: {train: {id: BreakoutNoFrameskip-v4, size: 64}}
world_model_env:
  _target_: envs.WorldModelEnvConfig
  horizon: 15
  diffusion_sampler:
    _target_: models.diffusion.DiffusionSamplerConfig
    num_steps_denoising: 5
    sigma_min: 3e-3
    sigma_max: 4
    rho: 7
    order: 2
    s_churn: 0.5
    s_tmin: 0.0
    s_tmax: ${eval:'float("inf")'}
    s_noise: 1.0
"""
"""The parts of a published `config/trainer.yaml` that are read, and one that is not."""


def publish(folder, text=PUBLISHED):
    """Make a run look like one of the published trainer."""
    (folder / "config" / "world.json").unlink()
    (folder / "config" / "trainer.yaml").write_text(text)


def test_a_published_run_says_its_game_and_its_sampler(run):
    folder, newest = run
    publish(folder)
    for path in (folder, folder / "checkpoints" / "agent_versions" / "agent_epoch_00010.pt"):
        world = load_world(None, str(path))
        assert world.game == "Breakout" and world.agent.config == newest.config
        assert world.world_model.config == DiffusionSamplerConfig(
            num_steps_denoising=5, sigma_min=3e-3, sigma_max=4, order=2, s_churn=0.5
        )
    assert load_world(None, str(folder), num_denoising_steps=2).world_model.config.num_steps_denoising == 2
    with pytest.raises(CheckpointError, match="is a world model of Breakout, not of Pong"):
        load_world("Pong", str(folder))


def test_our_own_description_comes_first(run):
    folder, _ = run
    (folder / "config" / "trainer.yaml").write_text(PUBLISHED)
    assert load_world(None, str(folder)).world_model.config == SAMPLER


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("rho: 7", "rho: ${oc.env:HOME}", r"rho='\$\{oc\.env:HOME\}' is not a number"),
        ("rho: 7", "rho: [7]", r"rho=\[7\] is not a number"),
        ("order: 2", "order: 3", r"order must be 1 \(Euler\) or 2"),
        ("order: 2", "solver: 2", r"unknown field\(s\) \['solver'\]"),
        (
            "wandb: {",
            "wandb: !!python/object/apply:os.abort {",
            "could not determine a constructor",
        ),
        ("wandb: {", "wandb: {{", "cannot be read"),
    ],
)
def test_a_published_configuration_that_is_not_understood_is_refused(run, old, new, message):
    folder, _ = run
    publish(folder, PUBLISHED.replace(old, new))
    with pytest.raises(CheckpointError, match=rf"(?s)trainer\.yaml.*{message}"):
        load_world(None, str(folder))


def test_infinity_as_python_writes_it_is_read(run):
    folder, _ = run
    path = folder / "config" / "world.json"
    path.write_text(path.read_text().replace('"inf"', "Infinity"))
    assert math.isinf(load_world(None, str(folder)).world_model.config.s_tmax)


# Start contexts


def test_contexts_can_be_given(saved, run, tmp_path):
    folder, _ = run
    random_bank(k=3, n=6).save(tmp_path / "long.safetensors")
    world = load_world("Breakout", str(saved), contexts=str(tmp_path / "long.safetensors"))
    assert world.contexts.obs.shape == (3, 4, 64, 64, 3)
    world = load_world("Breakout", str(saved), contexts=str(folder / "dataset" / "train"))
    assert len(world.contexts) == NUM_CONTEXTS
    assert len(load_world("Breakout", str(run[0]), contexts=str(saved)).contexts) == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 3}, "3 frames each, this world model needs 4"),
        ({"size": 32}, r"\(32, 32, 3\), this world model expects \(64, 64, 3\)"),
        ({"num_actions": 9}, "has 4 actions"),
    ],
)
def test_contexts_of_another_kind_are_refused(saved, tmp_path, wrong, message):
    random_bank(**wrong).save(tmp_path / "bank.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_world("Breakout", str(saved), contexts=str(tmp_path / "bank.safetensors"))


def test_contexts_that_are_nowhere(saved, pt, tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        load_world("Breakout", str(saved), contexts=str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInputError, match=r"no start contexts.*give game="):
        load_world(None, str(pt))


@pytest.fixture
def few_contexts(monkeypatch):
    """Collect four contexts, for speed."""
    monkeypatch.setattr(start_contexts, "NUM_CONTEXTS", 4)


@pytest.mark.usefixtures("few_contexts")
def test_contexts_are_collected_once(pt, cache, capfd, caplog):
    first = load_world("Breakout", str(pt)).contexts
    assert "collecting start contexts of Breakout with the checkpoint's policy" in caplog.text
    caplog.clear()
    capfd.readouterr()
    again = load_world("Breakout", str(pt)).contexts
    assert capfd.readouterr().err == caplog.text == ""
    assert len(first) == 4 and np.array_equal(first.obs, again.obs)
    assert len(list((cache / "contexts").iterdir())) == 1


@pytest.mark.usefixtures("few_contexts")
def test_a_damaged_cache_is_made_again(pt, cache):
    first = load_world("Breakout", str(pt)).contexts
    (file,) = (cache / "contexts").iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="collecting start contexts again"):
        again = load_world("Breakout", str(pt)).contexts
    assert np.array_equal(first.obs, again.obs) and np.array_equal(ContextBank.load(file).obs, first.obs)


@pytest.mark.usefixtures("few_contexts")
def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch):
    world_model_only = tmp_path / "Breakout.pt"
    torch.save(random_agent(with_actor_critic=False).state_dict(), world_model_only)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="in memory only.*DIAMOND_GYM_CACHE"):
        assert len(load_world("Breakout", str(world_model_only)).contexts) == 4


# Errors


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def truncated(agent, path):
    torch.save(agent.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def nothing_in_it(agent, path):
    path.write_bytes(b"")


def text(agent, path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 54000000\n")


def foreign(agent, path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, path)


def trainer_state(agent, path):
    torch.save({"epoch": 3, "agent": agent.state_dict()}, path)


def a_tensor(agent, path):
    torch.save(torch.zeros(3), path)


def empty_mapping(agent, path):
    torch.save({}, path)


def zip_with_code(agent, path):
    torch.save({"denoiser.x": Trap(path.parent / "sprung")}, path)


def pickle_with_code(agent, path):
    path.write_bytes(pickle.dumps(Trap(path.parent / "sprung")))


def legacy_with_code(agent, path):
    torch.save({"denoiser.x": Trap(path.parent / "sprung")}, path, _use_new_zipfile_serialization=False)


def whole_module(agent, path):
    torch.save(agent, path)


def missing_layer(agent, path):
    weights = agent.state_dict()
    del weights["denoiser.inner_model.norm_out.norm.weight"]
    torch.save(weights, path)


def surplus_layer(agent, path):
    torch.save(agent.state_dict() | {"denoiser.inner_model.upsampler.weight": torch.zeros(3)}, path)


def odd_shape(agent, path):
    torch.save(agent.state_dict() | {"denoiser.inner_model.conv_in.bias": torch.zeros(9)}, path)


def integers(agent, path):
    torch.save({name: weight.long() for name, weight in agent.state_dict().items()}, path)


def sparse(agent, path):
    name = "rew_end_model.act_emb.weight"
    torch.save(agent.state_dict() | {name: agent.state_dict()[name].to_sparse()}, path)


def shapes_only(agent, path):
    torch.save({name: weight.to("meta") for name, weight in agent.state_dict().items()}, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, "cannot be read as a PyTorch file of weights"),
        (nothing_in_it, "cannot be read as a PyTorch file of weights"),
        (text, "damaged"),
        (foreign, "holds conv1.weight, fc.bias; expected"),
        (trainer_state, "holds epoch, agent;.*agent_versions"),
        (a_tensor, "holds a Tensor"),
        (empty_mapping, "holds nothing"),
        (zip_with_code, "could run code.*posix.mkdir"),
        (pickle_with_code, "could run code"),
        (legacy_with_code, "could run code"),
        (whole_module, "could run code.*diamond_gym.world.models.agent.Agent"),
        (missing_layer, r"norm_out.norm.weight \(missing\)"),
        (surplus_layer, r"upsampler.weight \(not known\)"),
        (odd_shape, r"conv_in.bias \[9\] instead of \[8\]"),
        (integers, "dense tensors of floating-point"),
        (sparse, "a tensor that is not dense"),
        (shapes_only, "a tensor that is not dense"),
    ],
)
def test_unusable_pt_files(agent, tmp_path, make, message):
    path = tmp_path / "agent.pt"
    make(agent, path)
    for load in (load_agent, lambda path: load_world("Breakout", str(path))):
        with pytest.raises(CheckpointError, match=r"agent\.pt.*" + message):
            load(path)
    assert not (tmp_path / "sprung").exists()


def rewrite(file, *, weights=None, description=None):
    """Change parts of a saved world."""
    tensors, metadata = untrusted.read_tensors(file)
    fields = json.loads(metadata["diamond_gym.world"])
    fields = fields if description is None else description(fields)
    text = fields if isinstance(fields, str) else json.dumps(fields)
    disk.write_tensors(file, tensors if weights is None else weights(tensors), {"diamond_gym.world": text})


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pt_renamed(file):
    torch.save({"a": torch.zeros(3)}, file)


def no_metadata(file):
    disk.write_tensors(file, {"conv1.weight": torch.zeros(3)}, {})


def other_channels(file):
    def describe(fields):
        fields["agent"]["denoiser"]["inner_model"]["channels"] = [8, 32]
        return fields

    rewrite(file, description=describe)


def enormous(file):
    def describe(fields):
        fields["agent"]["denoiser"]["inner_model"]["depths"] = [10**9, 10**9]
        return fields

    rewrite(file, description=describe)


def other_patch(file):
    def describe(fields):
        fields["agent"]["rew_end_model"]["patch_size"] = 2
        return fields

    rewrite(file, description=describe)


def unknown_field(file):
    def describe(fields):
        fields["agent"]["denoiser"]["_target_"] = "os.system"
        return fields

    rewrite(file, description=describe)


def set_field(name, value):
    return lambda file: rewrite(file, description=lambda fields: {**fields, name: value})


def lost_tensor(file):
    rewrite(file, weights=lambda tensors: {k: v for k, v in tensors.items() if not k.endswith("head.0.bias")})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "truncated, damaged"),
        (nothing_in_it, "truncated, damaged"),
        (pt_renamed, "truncated, damaged or of another kind"),
        (no_metadata, "not a world model of this program"),
        (other_channels, r"inner_model.channels is \[8, 16\], described as \[8, 32\]"),
        (enormous, "depths .* must be an integer from 1 to 64, got 1000000000"),
        (other_patch, "patch_size is 4, described as 2"),
        (unknown_field, "_target_"),
        (set_field("agent", None), "does not say how large"),
        (set_field("agent", [1]), "agent must be of type dict"),
        (set_field("format_version", 2), "format version 2"),
        (set_field("game", 3), "game must be"),
        (set_field("game", "Brickout"), "names a game that ale-py does not have"),
        (set_field("action_meanings", ["NOOP"]), "has 4 actions, its description names 1"),
        (set_field("action_meanings", "NOOP"), "list of names"),
        (set_field("sampler", {"order": 7}), "order must be 1"),
        (set_field("sampler", {"s_tmax": "soon"}), "soon"),
        (set_field("sampler", [1]), "read as the description"),
        (
            lambda file: rewrite(file, description=lambda fields: "{"),
            "read as the description",
        ),
        (lambda file: rewrite(file, description=lambda fields: "[]"), "expected a mapping, got list"),
        (lost_tensor, r"head.0.bias \(missing\)"),
    ],
)
def test_unusable_files_of_ours(saved, damage, message):
    file = saved / "model.safetensors"
    damage(file) if damage is not nothing_in_it else damage(None, file)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*" + message):
        load_world("Breakout", str(saved))


def test_wrong_games(saved, pt):
    with pytest.raises(
        CheckpointError, match="is a world model of Breakout, not of Pong: give game='Breakout'"
    ):
        load_world("Pong", str(saved))
    with pytest.raises(CheckpointError, match=r"has 4 actions, Pong has 6.*another game"):
        load_world("Pong", str(pt))
    with pytest.raises(UnknownGameError, match="Breakout"):
        load_world("Breakuot", str(saved))


def test_paths_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"no file or folder nowhere.*'auto'"):
        load_world("Breakout", "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no world model.*found nothing"):
        load_world("Breakout", str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"holds no world model.*found notes\.txt"):
        load_agent(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither \.safetensors nor \.pt"):
        load_agent(tmp_path / "notes.txt")
    for impossible in ("x" * 300, "~nobody-of-that-name/x.pt"):
        with pytest.raises(CheckpointNotFoundError, match=r"cannot open .*'auto'"):
            load_world("Breakout", impossible)
    for wrong in ("", None, 3):
        with pytest.raises(InvalidInputError, match="checkpoint must be"):
            load_world("Breakout", wrong)


def test_unreadable_descriptions_of_runs(run):
    folder, _ = run
    path = folder / "config" / "world.json"
    for content in (b"{", b"\xff\xfe", b'{"agent": {"denoiser": 3}}'):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"world\.json"):
            load_world("Breakout", str(folder))


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_unavailable_devices(saved, device):
    with pytest.raises(DeviceError, match=device):
        load_world("Breakout", str(saved), device=device)


@pytest.mark.parametrize(
    "wrong", [{"dtype": "int8"}, {"backend": "maybe"}, {"compile": "maybe"}, {"device": ""}]
)
def test_other_arguments_that_are_refused(saved, wrong):
    with pytest.raises(InvalidInputError, match=repr(*wrong.values())):
        load_world("Breakout", str(saved), **wrong)


def test_wrong_arguments_are_refused_before_anything_is_collected(pt, cache):
    with pytest.raises(InvalidInputError):
        load_world("Breakout", str(pt), dtype="int8")
    assert not list(cache.iterdir())


def test_the_policy_stays_as_it_was_saved(saved):
    world = load_world("Breakout", str(saved), device="cpu", dtype="bfloat16")
    assert world.world_model.denoiser.inner_model.conv_in.weight.dtype == torch.bfloat16
    assert {p.dtype for p in world.agent.actor_critic.parameters()} == {torch.float32}


def test_every_game_can_be_described(agent):
    for game in registration.GAMES:
        description = WorldDescription(None, SAMPLER, game, None)
        assert WorldDescription.from_json(description.to_json(), "here") == description

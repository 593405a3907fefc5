"""The batched simulator: its states, and the same results in any batch."""

import copy

import pytest
import torch

from diamond_gym.errors import InvalidInputError
from diamond_gym.world.policy import draw_class
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests import parity

NUM_GAMES, NUM_STEPS = 5, 4


@pytest.fixture
def world_model():
    agent = parity.agent("tiny")
    return WorldModel(agent.denoiser, agent.rew_end_model)


def context(world_model, num_games=NUM_GAMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = world_model.num_steps_conditioning
    obs = torch.randint(256, (num_games, n, 3, 16, 16), dtype=torch.uint8, generator=generator)
    act = torch.randint(world_model.action_space.num_actions, (num_games, n), generator=generator)
    key = torch.randint(2**62, (num_games,), generator=generator)
    return obs, act, key


def actions(world_model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(world_model.action_space.num_actions, (NUM_STEPS, NUM_GAMES), generator=generator)


def play(world_model, state, acts):
    frames, rews, ends = [], [], []
    for act in acts:
        state, step = world_model.step(state, act)
        frames.append(step.obs)
        rews.append(step.rew)
        ends.append(step.end)
    return state, torch.stack(frames), torch.stack(rews), torch.stack(ends)


def share_equal(a, b):
    return (a == b).float().mean().item()


def test_a_game_is_the_same_alone_and_in_a_batch(world_model):
    obs, act, key = context(world_model)
    acts = actions(world_model)
    _, together, rews, ends = play(world_model, world_model.start(obs, act, key), acts)
    for i in range(NUM_GAMES):
        one = slice(i, i + 1)
        state = world_model.start(obs[one], act[one], key[one])
        _, alone, rew, end = play(world_model, state, acts[:, one])
        # rounding changes a pixel by a level sometimes, and random weights amplify that from frame to frame
        assert share_equal(alone[0, 0], together[0, i]) > 0.95
        assert (alone[:, 0].float() - together[:, i].float()).abs().mean() < 1
        assert torch.equal(rew[:, 0], rews[:, i]) and torch.equal(end[:, 0], ends[:, i])


@pytest.mark.parametrize("padding", [None, torch.tensor([0, 1, 2, 3, 0])])
@pytest.mark.parametrize("s_churn", [0.0, 1.0])
def test_imagined_frames_are_those_of_the_steps(world_model, padding, s_churn):
    config = DiffusionSamplerConfig(s_churn=s_churn)
    world = WorldModel(world_model.denoiser, world_model.rew_end_model, config)
    obs, act, key = context(world)
    acts = actions(world)
    frames = play(world, world.start(obs, act, key, padding), acts)[1]
    assert torch.equal(world.imagine(obs, act, key, acts.mT, padding), frames.transpose(0, 1))


def test_the_same_state_has_the_same_future(world_model):
    start = world_model.start(*context(world_model))
    kept = copy.deepcopy(start)
    acts = actions(world_model)
    first = play(world_model, start, acts)
    for before, after in zip(kept.tensors(), start.tensors(), strict=True):
        assert torch.equal(before, after)  # a step does not change the state that it starts from
    for x, y in zip(first[1:], play(world_model, kept, acts)[1:], strict=True):
        assert torch.equal(x, y)


def test_another_key_gives_another_future(world_model):
    obs, act, key = context(world_model)
    acts = actions(world_model)
    frames = play(world_model, world_model.start(obs, act, key), acts)[1]
    others = play(world_model, world_model.start(obs, act, key + 1), acts)[1]
    assert share_equal(frames, others) < 0.9


def test_churn_draws_fresh_noise_every_step(world_model):
    churned = WorldModel(world_model.denoiser, world_model.rew_end_model, DiffusionSamplerConfig(s_churn=1.0))
    start = world_model.start(*context(world_model))
    acts = actions(world_model)
    plain, noisy = play(world_model, start, acts)[1], play(churned, start, acts)[1]
    assert share_equal(plain, noisy) < 0.9
    assert torch.equal(noisy, play(churned, start, acts)[1])


def test_select_and_replace(world_model):
    state = world_model.start(*context(world_model))
    moved, *_ = play(world_model, state, actions(world_model))
    index = torch.tensor([3, 0])
    mixed = moved.replace(index, state.select(index))
    for old, new, mix in zip(state.tensors(), moved.tensors(), mixed.tensors(), strict=True):
        assert torch.equal(mix[index], old[index])
        assert torch.equal(mix[[1, 2, 4]], new[[1, 2, 4]])
    assert len(state.select(torch.tensor([2, 2, 2]))) == 3


def test_frames_and_actions_roll_through_the_state(world_model):
    obs, act, key = context(world_model)
    state = world_model.start(obs, act, key)
    n, acts = world_model.num_steps_conditioning, actions(world_model)
    state, frames, _, _ = play(world_model, state, acts)
    assert torch.equal(state.obs, frames[-n:].transpose(0, 1))
    assert torch.equal(state.act[:, -n:-1], acts[-n + 1 :].T if n > 1 else act[:, :0])
    assert state.time.tolist() == [NUM_STEPS] * NUM_GAMES


def test_the_last_context_action_is_not_used(world_model):
    obs, act, key = context(world_model)
    other = act.clone()
    other[:, -1] = (other[:, -1] + 1) % world_model.action_space.num_actions
    acts = actions(world_model)
    a = play(world_model, world_model.start(obs, act, key), acts)
    b = play(world_model, world_model.start(obs, other, key), acts)
    assert torch.equal(a[1], b[1])


@pytest.mark.parametrize(
    "change",
    [lambda obs: obs.float(), lambda obs: obs[:, :1], lambda obs: obs[0]],
    ids=["dtype", "number of frames", "no batch"],
)
def test_malformed_contexts_are_refused(world_model, change):
    obs, act, key = context(world_model)
    with pytest.raises(InvalidInputError, match="context frames must be uint8"):
        world_model.start(change(obs), act, key)


def test_draw_class_inverts_the_cumulative_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    u = (torch.arange(1000) + 0.5) / 1000
    counts = draw_class(logits.expand(1000, 3), u).bincount(minlength=3)
    assert (counts - torch.tensor([200, 500, 300])).abs().max() <= 1  # a tie may fall either way


def test_draw_class_reaches_only_possible_classes():
    logits = torch.tensor([[-200.0, 0.0, -200.0]])
    for u in (0.0, 0.5, 1 - 2**-24):
        assert draw_class(logits, torch.tensor([u])).item() == 1

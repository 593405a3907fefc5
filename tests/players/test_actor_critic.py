"""The player of an actor-critic: its probabilities, its memory, its seeds."""

import copy

import numpy as np
import pytest
import torch

from diamond_gym.data.collect import collect
from diamond_gym.errors import InvalidInputError
from diamond_gym.players.actor_critic import ActorCriticPlayer
from diamond_gym.players.player import Player
from diamond_gym.world.models import Agent
from diamond_gym.world.pixels import to_float
from tests import parity


@pytest.fixture(scope="module")
def agent():
    return parity.agent("tiny")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


def play(policy, frames):
    return [policy.act(frame) for frame in frames]


@torch.no_grad()
def logits_of(agent, frames):
    hx_cx, logits = agent.actor_critic.initial_state(1), []
    for frame in torch.from_numpy(frames).permute(0, 3, 1, 2):
        step, _, hx_cx = agent.actor_critic.predict_act_value(to_float(frame[None]), hx_cx)
        logits.append(step[0])
    return torch.stack(logits)


def test_it_is_a_player(agent):
    assert isinstance(ActorCriticPlayer(agent), Player)


def test_without_temperature_it_takes_the_likeliest_action(agent, frames):
    expected = logits_of(agent, frames).argmax(dim=1).tolist()
    assert play(ActorCriticPlayer(agent, temperature=0), frames) == expected


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_actions_follow_the_softmax(agent, frames, temperature):
    counts = np.zeros(6)
    for seed in range(1500):
        counts[play(ActorCriticPlayer(agent, seed=seed, temperature=temperature), frames[:1])[0]] += 1
    expected = 1500 * (logits_of(agent, frames[:1])[0] / temperature).softmax(dim=0).numpy()
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)


def test_seed_and_reset_fix_the_actions(agent, frames):
    policy = ActorCriticPlayer(agent, epsilon=0.5, seed=3)
    first = play(policy, frames)
    policy.reset(3)
    assert play(policy, frames) == first == play(ActorCriticPlayer(agent, epsilon=0.5, seed=3), frames)
    policy.reset(4)
    assert play(policy, frames) != first


def test_reset_forgets(agent, frames):
    policy = ActorCriticPlayer(agent, temperature=0)
    play(policy, frames)
    policy.reset()
    assert play(policy, frames) == play(ActorCriticPlayer(agent, temperature=0), frames)


def test_epsilon_is_the_share_of_uniform_actions(agent, frames):
    policy = ActorCriticPlayer(agent, epsilon=1.0)
    counts = np.bincount([policy.act(frames[0]) for _ in range(1800)], minlength=6)
    assert np.abs(counts - 300).max() < 5 * np.sqrt(300)


def test_collection_accepts_it():
    config = parity.agent_config("tiny")
    config.actor_critic.img_size = 64
    agent = Agent(config.with_num_actions(4))
    assert collect("Breakout", ActorCriticPlayer(agent), num_steps=20, seed=0, progress=False).num_steps == 20


@pytest.mark.parametrize(
    "arguments", [{"epsilon": -0.1}, {"epsilon": 1.1}, {"temperature": -1.0}, {"temperature": float("nan")}]
)
def test_numbers_out_of_range(agent, arguments):
    with pytest.raises(InvalidInputError):
        ActorCriticPlayer(agent, **arguments)


def test_a_world_model_alone_has_no_policy():
    with pytest.raises(InvalidInputError, match="no actor-critic"):
        ActorCriticPlayer(Agent(parity.agent_config("tiny"), with_actor_critic=False))


def test_what_came_before_is_remembered(agent, frames):
    whole, burned_in = ActorCriticPlayer(agent, temperature=0), ActorCriticPlayer(agent, temperature=0)
    play(burned_in, frames)
    burned_in.reset(past=frames[:5])
    assert play(whole, frames)[5:] == play(burned_in, frames[5:])
    assert burned_in.value == whole.value


def test_it_tells_entropy_and_value(agent, frames):
    policy = ActorCriticPlayer(agent, temperature=0)
    assert policy.entropy is policy.value is None
    told = [(policy.act(frame), policy.entropy, policy.value) for frame in frames]
    logits = logits_of(agent, frames)
    entropy = torch.distributions.Categorical(logits=logits).entropy() / np.log(2)
    np.testing.assert_allclose([entropy for _, entropy, _ in told], entropy, rtol=1e-4)
    assert [action for action, _, _ in told] == logits.argmax(dim=1).tolist()
    hx_cx = agent.actor_critic.initial_state(1)
    first = to_float(torch.from_numpy(frames[:1]).permute(0, 3, 1, 2))
    with torch.no_grad():
        value = agent.actor_critic.predict_act_value(first, hx_cx)[1]
    assert told[0][2] == pytest.approx(float(value), abs=1e-5)


def test_a_fork_goes_on_by_itself(agent, frames):
    policy = ActorCriticPlayer(agent, seed=5)
    play(policy, frames[:4])
    fork = copy.deepcopy(policy)
    expected = play(copy.deepcopy(fork), frames[4:])
    assert play(policy, frames[4:]) == expected == play(fork, frames[4:])
    assert fork.actor_critic is policy.actor_critic

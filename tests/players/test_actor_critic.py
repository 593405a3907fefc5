"""An actor-critic plays: its probabilities, its memory, its seeds."""

import numpy as np
import pytest
import torch

from diamond_gym.data.collect import SeededPolicy, collect
from diamond_gym.errors import InvalidInputError
from diamond_gym.players.actor_critic import AgentPolicy
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
    return [policy(frame) for frame in frames]


@torch.no_grad()
def logits_of(agent, frames):
    hx_cx, logits = agent.actor_critic.initial_state(1), []
    for frame in torch.from_numpy(frames).permute(0, 3, 1, 2):
        step, _, hx_cx = agent.actor_critic.predict_act_value(to_float(frame[None]), hx_cx)
        logits.append(step[0])
    return torch.stack(logits)


def test_it_is_a_seeded_policy(agent):
    assert isinstance(AgentPolicy(agent), SeededPolicy)


def test_without_temperature_it_takes_the_likeliest_action(agent, frames):
    expected = logits_of(agent, frames).argmax(dim=1).tolist()
    assert play(AgentPolicy(agent, temperature=0), frames) == expected


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_actions_follow_the_softmax(agent, frames, temperature):
    counts = np.zeros(6)
    for seed in range(1500):
        counts[play(AgentPolicy(agent, seed=seed, temperature=temperature), frames[:1])[0]] += 1
    expected = 1500 * (logits_of(agent, frames[:1])[0] / temperature).softmax(dim=0).numpy()
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 1)


def test_seed_and_reset_fix_the_actions(agent, frames):
    policy = AgentPolicy(agent, epsilon=0.5, seed=3)
    first = play(policy, frames)
    policy.reset(3)
    assert play(policy, frames) == first == play(AgentPolicy(agent, epsilon=0.5, seed=3), frames)
    policy.reset(4)
    assert play(policy, frames) != first


def test_reset_forgets(agent, frames):
    policy = AgentPolicy(agent, temperature=0)
    play(policy, frames)
    policy.reset()
    assert play(policy, frames) == play(AgentPolicy(agent, temperature=0), frames)


def test_epsilon_is_the_share_of_uniform_actions(agent, frames):
    policy = AgentPolicy(agent, epsilon=1.0)
    counts = np.bincount([policy(frames[0]) for _ in range(1800)], minlength=6)
    assert np.abs(counts - 300).max() < 5 * np.sqrt(300)


def test_collection_accepts_it():
    config = parity.agent_config("tiny")
    config.actor_critic.img_size = 64
    agent = Agent(config.with_num_actions(4))
    assert collect("Breakout", AgentPolicy(agent), num_steps=20, seed=0, progress=False).num_steps == 20


@pytest.mark.parametrize(
    "arguments", [{"epsilon": -0.1}, {"epsilon": 1.1}, {"temperature": -1.0}, {"temperature": float("nan")}]
)
def test_numbers_out_of_range(agent, arguments):
    with pytest.raises(InvalidInputError):
        AgentPolicy(agent, **arguments)


def test_a_world_model_alone_has_no_policy():
    with pytest.raises(InvalidInputError, match="no actor-critic"):
        AgentPolicy(Agent(parity.agent_config("tiny"), with_actor_critic=False))


def test_a_decision_tells_entropy_and_value(agent, frames):
    policy = AgentPolicy(agent, temperature=0)
    decisions = [policy.decide(frame) for frame in frames]
    logits = logits_of(agent, frames)
    entropy = torch.distributions.Categorical(logits=logits).entropy() / np.log(2)
    np.testing.assert_allclose([d.entropy for d in decisions], entropy, rtol=1e-4)
    assert [d.action for d in decisions] == logits.argmax(dim=1).tolist()
    hx_cx = agent.actor_critic.initial_state(1)
    first = to_float(torch.from_numpy(frames[:1]).permute(0, 3, 1, 2))
    with torch.no_grad():
        value = agent.actor_critic.predict_act_value(first, hx_cx)[1]
    assert decisions[0].value == pytest.approx(float(value), abs=1e-5)


def test_a_fork_goes_on_by_itself(agent, frames):
    policy = AgentPolicy(agent, seed=5)
    play(policy, frames[:4])
    fork = policy.fork()
    expected = play(fork.fork(), frames[4:])
    assert play(policy, frames[4:]) == expected == play(fork, frames[4:])
    assert fork.actor_critic is policy.actor_critic

"""Rollouts of the actor-critic: what is recorded at ends, and games that can be saved and restored."""

import copy
import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diamond_gym.world.models import ActorCritic, ActorCriticConfig
from diamond_gym.world.pixels import to_float, to_uint8
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests import parity
from tests.recordings import episode
from tests.worlds import tiny_agent
from trainers.diamond.config import ActorCriticTrainingConfig, OptimizerConfig
from trainers.diamond.learner import ActorCriticObjective, Learner
from trainers.diamond.losses import ActorCriticLossConfig, actor_critic_loss
from trainers.diamond.replay import Replay
from trainers.diamond.rollout import ImaginedGames, Outcome, begin, play


@pytest.fixture
def actor_critic():
    torch.manual_seed(0)
    network = ActorCritic(ActorCriticConfig(lstm_dim=8, channels=[4, 4], down=[1, 1], num_actions=3))
    for linear in (network.actor_linear, network.critic_linear):
        torch.nn.init.normal_(linear.weight)
    return network.eval()


@pytest.fixture
def world_model():
    agent = tiny_agent(num_actions=3, end_bias=-20.0)
    return WorldModel(agent.denoiser, agent.rew_end_model, DiffusionSamplerConfig(num_steps_denoising=1))


class Script:
    """Two games with prescribed ends, in which every frame is filled with a number of its own."""

    def __init__(self, ends, truncs):
        self.ends, self.truncs, self.time, self.restarts = ends, truncs, 0, []

    def step(self, act):
        self.acts = act
        obs = self.frame(self.time + 1)
        end, trunc = (torch.tensor(x[self.time], dtype=torch.bool) for x in (self.ends, self.truncs))
        self.time += 1
        return Outcome(obs, torch.tensor([1.0, -2.0]), end, trunc)

    def restart(self, index):
        self.restarts.append(index.tolist())
        return to_float(torch.stack([self.frame(100 + i)[index] for i in range(4)], dim=1))

    @staticmethod
    def frame(number):
        return torch.full((2, 3, 64, 64), number, dtype=torch.uint8)


def values_along(actor_critic, frames):
    """Compute the value of the last of some frames, by an LSTM that starts at zero at the first."""
    hx_cx = actor_critic.initial_state(1)
    for frame in frames:
        _, value, hx_cx = actor_critic.predict_act_value(to_float(frame[:1]), hx_cx)
    return value.item()


def test_a_value_after_an_end_is_of_the_final_frame_and_the_next_game_starts_without_memory(actor_critic):
    games = Script(ends=[[0, 0], [1, 0], [0, 0]], truncs=[[0, 0], [0, 0], [0, 1]])
    frame = games.frame
    state = begin(actor_critic, to_float(frame(0)[:, None]))
    state, steps = play(actor_critic, games, state, torch.rand(3, 2))
    assert games.restarts == [[0], [1]]
    context = [frame(100 + i) for i in range(4)]
    first, second = steps.val_bootstrap[:, 1].tolist(), steps.val[:, 2].tolist()
    assert first[0] == pytest.approx(values_along(actor_critic, [frame(0), frame(1), frame(2)]), abs=1e-5)
    assert second[0] == pytest.approx(values_along(actor_critic, context), abs=1e-5)
    assert first[1] == pytest.approx(second[1], abs=1e-6), (
        "a game that continues bootstraps from its next value"
    )
    last = steps.val_bootstrap[1, 2].item()
    assert last == pytest.approx(values_along(actor_critic, [frame(i) for i in range(4)]), abs=1e-5)
    assert steps.rew.tolist() == [[1, 1, 1], [-2, -2, -2]]
    assert state.obs[:, 0, 0, 0].tolist() == [3, 103]
    assert steps.val.requires_grad and steps.logits_act.requires_grad
    assert not steps.val_bootstrap.requires_grad and not state.hx.requires_grad


class RecordedGames:
    """The games of a case of ac_rollout.npz, with the recorded results for any action."""

    def __init__(self, d):
        self.d, self.time = d, -1

    def step(self, act):
        self.time += 1
        d, t = self.d, self.time
        return Outcome(d["frames_u8"][t], d["rew"][t], d["end"][t], d["restarted"][t] & ~d["end"][t])

    def restart(self, index):
        assert index.tolist() == self.d["restarted"][self.time].nonzero().flatten().tolist()
        return to_float(self.d["fresh_u8"][self.time, index])


@pytest.mark.parametrize("case", ["plain", "ends"])
def test_losses_and_gradients_of_rollouts_are_the_published_ones(case):
    prefix = f"ac_rollout_{case}_"
    d = {k.removeprefix(prefix): v for k, v in parity.numbers("ac_rollout").items() if k.startswith(prefix)}
    network = copy.deepcopy(parity.agent("tiny").actor_critic)
    parameters = dict(network.named_parameters())
    games, config = RecordedGames(d), ActorCriticLossConfig()
    with torch.no_grad():
        state = begin(network, to_float(d["start_u8"][:, None]))
    for number in range(2):
        network.zero_grad()
        state, steps = play(network, games, state, torch.rand(15, 4))
        act = d["act"][15 * number : 15 * (number + 1)].T
        loss, _ = actor_critic_loss(dataclasses.replace(steps, act=act), config)
        loss.backward()
        expected = {k.removeprefix(f"round{number}_"): v for k, v in d.items() if f"round{number}_" in k}
        assert_close(loss.detach(), expected.pop("loss"), rtol=1e-4, atol=1e-6)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
        assert_close(norm, expected.pop("grad_norm"), rtol=1e-4, atol=1e-6)
        assert len(expected) == 4
        for name, gradient in expected.items():
            assert_close(parameters[name.removeprefix("grad_")].grad, gradient, rtol=1e-3, atol=1e-5)


class StartedScript(Script):
    """A script whose first games start like later ones."""

    def start(self):
        return self.restart(torch.arange(2))


def test_the_first_games_begin_without_memory_and_later_ones_are_burned_in(actor_critic):
    games = StartedScript(ends=[[1, 0], [0, 0]], truncs=[[0, 0], [0, 0]])
    objective = ActorCriticObjective(actor_critic, games, 1, ActorCriticLossConfig(), nullcontext)
    seen = [
        objective.example(Replay(), np.random.default_rng(t), t).batch["val"][:, 0].tolist() for t in range(2)
    ]
    context = [games.frame(100 + i) for i in range(4)]
    alone = values_along(actor_critic, context[-1:])
    assert seen[0] == pytest.approx([alone, alone], abs=1e-5)
    burned_in, played = values_along(actor_critic, context), [context[-1], games.frame(1)]
    assert seen[1] == pytest.approx([burned_in, values_along(actor_critic, played)], abs=1e-5)
    assert burned_in != pytest.approx(alone, abs=1e-3)


def imagined_games(world_model, replay, horizon=4):
    def draw(rng):
        n = world_model.num_steps_conditioning
        return replay.draw(rng, 1, n, sample_weights=None, pad_after=False)

    return ImaginedGames(world_model, draw, num_games=3, horizon=horizon, seed=(0, 0))


def test_imagined_games_are_cut_at_the_horizon_and_start_at_the_replays_frames(world_model):
    replay = Replay([episode(12, number=i) for i in range(3)])
    games = imagined_games(world_model, replay)
    obs = games.start()
    n = world_model.num_steps_conditioning
    assert obs.shape == (3, n, 3, 64, 64)
    recorded = {level for i in range(3) for level in range(10 * i, 10 * i + 12)}
    padded = obs == 0
    assert set(to_uint8(obs[~padded]).tolist()) <= recorded
    truncs = [games.step(torch.zeros(3, dtype=torch.int64)).trunc.tolist() for _ in range(4)]
    assert truncs == [[False] * 3] * 3 + [[True] * 3]
    games.restart(torch.tensor([0, 2]))
    assert games.step(torch.zeros(3, dtype=torch.int64)).trunc.tolist() == [False, True, False]


def test_what_was_before_an_episode_is_exactly_mid_grey_for_all_networks(world_model):
    """Padding is 0 in [-1, 1], which no byte maps to; every game starts at its first step, after padding."""
    replay = Replay([episode(1, number=i) for i in range(3)])
    games = imagined_games(world_model, replay)
    frames = games.start()
    n = world_model.num_steps_conditioning
    assert (frames[:, :-1] == 0).all() and (frames[:, -1] != 0).all()
    seen = []
    hook = world_model.denoiser.inner_model.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    for _ in range(n):
        games.step(torch.zeros(3, dtype=torch.int64))
    hook.remove()
    blank = [[(x.unflatten(1, (n, -1))[:, i] == 0).all().item() for i in range(n)] for x in seen]
    assert blank == [[i + 1 < n - t for i in range(n)] for t in range(n)]
    start = games._start(torch.arange(3))
    zeros = torch.zeros(3, n, *frames.shape[2:])
    zeros[:, -1] = to_float(start.obs[:, -1])
    _, _, (hx, _) = world_model.rew_end_model.predict_rew_end(zeros[:, :-1], start.act[:, :-1], zeros[:, 1:])
    assert_close(start.hx, hx[0])


def test_saved_imagined_games_go_on_exactly(world_model):
    replay = Replay([episode(12, number=i) for i in range(3)])

    def go_on(games):
        outcomes = [games.step(torch.tensor([t % 3, 0, 1])) for t in range(3)]
        frames = games.restart(torch.tensor([1]))
        outcomes.append(games.step(torch.tensor([0, 1, 2])))
        return [outcome.obs for outcome in outcomes] + [frames]

    games, other = imagined_games(world_model, replay), imagined_games(world_model, replay)
    games.start()
    games.step(torch.tensor([0, 1, 2]))
    other.load_state_dict(games.state_dict())
    for x, y in zip(go_on(games), go_on(other), strict=True):
        assert torch.equal(x, y)


class Bandit:
    """Eight games whose frame says which action is rewarded; they end at random."""

    def __init__(self):
        self.rng = torch.Generator().manual_seed(0)
        self.target = torch.randint(3, (8,), generator=self.rng)

    def start(self):
        return to_float(self.frames()[:, None])

    def frames(self):
        return (100 * self.target).to(torch.uint8)[:, None, None, None].expand(8, 3, 16, 16)

    def step(self, act):
        rew = (act == self.target).float()
        end = torch.rand(8, generator=self.rng) < 0.2
        self.target = torch.randint(3, (8,), generator=self.rng)
        return Outcome(self.frames(), rew, end, torch.zeros(8, dtype=torch.bool))

    def restart(self, index):
        return to_float(self.frames()[index][:, None])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_the_objective_teaches_what_is_rewarded():
    torch.set_num_threads(1)  # the work is too small for several threads
    torch.manual_seed(0)
    sizes = {"lstm_dim": 16, "channels": [4, 4], "down": [1, 1], "img_size": 16}
    network = ActorCritic(ActorCriticConfig(num_actions=3, **sizes))
    torch.nn.init.normal_(network.actor_linear.weight)
    loss = ActorCriticLossConfig(gamma=0.0)
    objective = ActorCriticObjective(network, Bandit(), 5, loss, nullcontext)
    config, optimizer = ActorCriticTrainingConfig(lr_warmup_steps=0), OptimizerConfig(lr=5e-3, weight_decay=0)
    part = Learner.of("actor_critic", network, config, optimizer, objective)
    rewards = [part.step(Replay(), seed=0, lr_factor=1.0)["rew"].item() for _ in range(100)]
    assert np.mean(rewards[:5]) < 0.6 and np.mean(rewards[-10:]) > 0.9

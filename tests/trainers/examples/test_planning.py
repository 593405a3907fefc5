"""Planning: the best imagined sequence is chosen, with the same noise for all, and plays real games."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete

import diamond_gym  # noqa: F401
import tests.moving_dot  # noqa: F401 (registers SteeredDot-*-v0)
from diamond_gym.errors import InvalidInputError
from diamond_gym.world.action_space import ActionSpace
from tests import worlds
from trainers.examples import planning
from trainers.examples.planning import (
    LONGEST_HOLD,
    Planner,
    PlannerConfig,
    SequenceDistribution,
    uniform_actions,
)


@pytest.fixture
def planner(tiny_world):
    envs = gym.make_vec("DiamondBreakout-v0", 6, checkpoint=tiny_world, max_episode_steps=-1, **worlds.PLAIN)
    yield Planner(envs, PlannerConfig(num_sequences=6, horizon=5, num_taken=3), seed=0)
    envs.close()


def context():
    bank = worlds.contexts()
    return {"obs": bank.obs[2], "act": bank.act[2]}


def test_the_first_actions_of_the_best_sequence_are_taken(planner, monkeypatch):
    drawn, judged = [], []
    draw, imagine = planner._draw, planner._imagine
    monkeypatch.setattr(planner, "_draw", lambda: drawn.append(draw()) or drawn[-1])
    monkeypatch.setattr(planner, "_imagine", lambda x: judged.append(imagine(x)) or judged[-1])
    taken = planner(context())
    best = np.flatnonzero(judged[0] == judged[0].max())
    assert taken in drawn[0][best, :3].tolist()


def test_sequences_differ_by_their_actions_alone(planner):
    planner.envs.reset(options={"context": context()})
    state = planner.envs.clone_state()
    planner.envs.restore_state(state.select([0] * 6))
    obs, rew, *_ = planner.envs.step(np.array([1, 1, 1, 1, 1, 2]))
    assert all(np.array_equal(obs[0], frame) for frame in obs[1:5]) and len(set(rew[:5])) == 1
    assert not np.array_equal(obs[0], obs[5])


def test_returns_are_discounted_and_stop_at_an_end(planner, monkeypatch):
    rewards, ends = np.array([[1.0, 0, 2], [0, 0, 4]]).T, np.array([[0, 1, 0], [0, 0, 0]], bool).T
    steps = iter(zip(rewards, ends, strict=True))
    monkeypatch.setattr(planner.envs, "step", lambda acts: (None, *next(steps), None, None))
    monkeypatch.setattr(planner, "config", PlannerConfig(2, 3, 1, gamma=0.5, end_penalty=3))
    assert planner._imagine(np.zeros((2, 3), int)).tolist() == [1 - 1.5, 1.0]


def test_drawn_actions_are_held(planner, monkeypatch):
    monkeypatch.setattr(planner, "config", PlannerConfig(2000, 12))
    sequences = planner._draw()
    assert sequences.shape == (2000, 12) and set(sequences.flat) == {0, 1, 2, 3}
    kept = (sequences[:, 1:] == sequences[:, :-1]).mean()
    changed = 2 / (1 + LONGEST_HOLD)
    assert kept == pytest.approx(1 - changed + changed / 4, abs=0.01)


def test_the_whole_command(tiny_world, capsys):
    short = "--episodes 1 --max-steps 12 --num-sequences 3 --horizon 4 --device cpu".split()
    assert planning.main([*short, "--checkpoint", tiny_world]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["planner", "random"]
    assert planning.main([*short, "--checkpoint", tiny_world, "--num-taken", "9"]) == 2
    assert planning.main([*short, "--checkpoint", "nowhere.pt"]) == 1
    assert planning.main([*short, "--game", "Nogame"]) == 2


def test_wrong_config():
    with pytest.raises(InvalidInputError, match="at least 1"):
        PlannerConfig(num_sequences=0)
    with pytest.raises(InvalidInputError, match="gamma"):
        PlannerConfig(gamma=1.5)
    with pytest.raises(InvalidInputError, match="end_penalty must be finite"):
        PlannerConfig(end_penalty=float("nan"))


SPACES = (
    gym.spaces.Discrete(5),
    MultiDiscrete([4, 2]),
    MultiBinary(3),
    Box(np.array([-2, 0]), np.array([2, 1])),
)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_cross_entropy_method_finds_the_best_sequence(space):
    rng = np.random.default_rng(0)
    goal = uniform_actions(space, rng, (3,)).astype(float)
    sequences = uniform_actions(space, rng, (64, 3))

    def cost(sequences):
        return np.abs(sequences - goal).reshape(len(sequences), -1).sum(1)

    first = cost(sequences).min()
    for _ in range(8):
        elites = sequences[np.argsort(cost(sequences))[:10]]
        sequences = SequenceDistribution(space, elites).draw(rng, 64)
    assert all(space.contains(act) for act in sequences.reshape(-1, *sequences.shape[2:]).astype(space.dtype))
    assert cost(sequences).min() < max(0.5 * first, 0.8)
    assert len(np.unique(sequences, axis=0)) > 1, "it never stops to explore"


@pytest.mark.parametrize("kind", ["box", "multi_binary"])
def test_planning_in_another_environment(kind, tmp_path, capsys):
    env = gym.make(f"SteeredDot-{kind}-v0")
    checkpoint = worlds.save_tiny_world_of(tmp_path, ActionSpace.of(env.action_space))
    short = "--episodes 1 --max-steps 8 --num-sequences 6 --horizon 4 --num-iterations 2 --device cpu".split()
    arguments = [*short, "--env", f"SteeredDot-{kind}-v0"]
    assert planning.main([*arguments, "--checkpoint", checkpoint]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["planner", "random"]
    assert planning.main(arguments) == 2
    assert "needs checkpoint=RUN" in capsys.readouterr().err


def test_more_iterations_never_lose_the_best(planner, monkeypatch):
    planner.config = PlannerConfig(num_sequences=6, horizon=5, num_taken=3, num_iterations=3)
    judged = []
    imagine = planner._imagine
    monkeypatch.setattr(planner, "_imagine", lambda x: judged.append((x, imagine(x))) or judged[-1][1])
    taken = planner(context())
    best = max(returns.max() for _, returns in judged)
    assert len(judged) == 3 and max(judged[-1][1]) == best
    assert taken in judged[-1][0][judged[-1][1] >= best - 1e-9, :3].tolist()

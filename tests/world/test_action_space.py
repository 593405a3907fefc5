"""Action spaces: from and to Gymnasium and text, what they accept, and the networks' encoders of them."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformAction
from torch import nn

from diamond_gym.errors import InvalidInputError
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models.actions import action_embedding

SPACES = {
    "discrete(4)": spaces.Discrete(4),
    "multi_discrete(3, 2)": spaces.MultiDiscrete([3, 2]),
    "multi_discrete[2x2](3, 2, 4, 5)": spaces.MultiDiscrete([[3, 2], [4, 5]]),
    "multi_binary(4)": spaces.MultiBinary(4),
    "multi_binary[2x3](2, 2, 2, 2, 2, 2)": spaces.MultiBinary([2, 3]),
    "box(-2.0..2.0)": spaces.Box(-2, 2, (1,)),
    "box(-1.0..1.0, 0.0..0.10000000149011612)": spaces.Box(np.array([-1, 0]), np.array([1, 0.1])),
    "box[2x2](0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0)": spaces.Box(0, 1, (2, 2), np.float64),
}


@pytest.mark.parametrize("text", SPACES)
def test_gymnasium_and_text(text):
    space = ActionSpace.of(SPACES[text])
    assert str(space) == text and ActionSpace.parse(text) == space
    theirs = space.to_gymnasium(seed=0)
    assert ActionSpace.of(theirs) == space and theirs.shape == SPACES[text].shape
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert space.convert(np.asarray(theirs.sample())) is not None
        act = space.sample(rng)
        assert theirs.contains(np.asarray(act, theirs.dtype)) and space.convert(np.asarray(act)) is not None
    assert space.convert(space.idle) is not None and space.idle.shape == space.shape


def test_starts_are_counted_from_zero():
    given = spaces.MultiDiscrete([3, 2], start=[5, -1])
    space = ActionSpace.of(given)
    given.seed(0)
    acts = np.array([given.sample() - space.first(given) for _ in range(50)])
    assert space.convert(acts) is not None and acts.max(0).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (3,)), r"TransformAction\(env, lambda act: act, .*Box\(-1, 1, \(3,\)\)"),
        (spaces.Box(0, 5, (2,), np.int64), "use MultiDiscrete for a Box of integers"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "TransformAction"),
        (spaces.Tuple([spaces.Discrete(2)]), "the environment takes Tuple"),
        (spaces.Text(5), "the environment takes Text"),
        (spaces.Box(-1, 1, ()), "in an array unless it is discrete"),
        (spaces.Box(-1, 1, (500,)), "1 to 256 parts"),
    ],
)
def test_what_cannot_be_learned(space, message):
    with pytest.raises(InvalidInputError, match=message):
        ActionSpace.of(space)


def test_the_advice_for_an_unbounded_box_works():
    env = gymnasium.make("Pendulum-v1")
    bounded = TransformAction(env, lambda act: act, spaces.Box(-1, 1, env.action_space.shape))
    assert str(ActionSpace.of(bounded.action_space)) == "box(-1.0..1.0)"


@pytest.mark.parametrize(
    "text", ["box(1..-1)", "box(0..nan)", "box()", "cube(3)", "discrete(0)", "discrete(x)", ""]
)
def test_text_that_is_no_space(text):
    with pytest.raises(InvalidInputError):
        ActionSpace.parse(text)


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("multi_discrete(3, 2)", [3, 0]),
        ("multi_discrete(3, 2)", [-1, 0]),
        ("multi_discrete(3, 2)", [1.0, 0.0]),
        ("multi_discrete(3, 2)", [1]),
        ("multi_binary(2)", [2, 0]),
        ("box(-1.0..1.0)", [1.5]),
        ("box(-1.0..1.0)", [np.nan]),
        ("box(-1.0..1.0)", 0.5),
    ],
)
def test_other_actions_are_not_converted(text, act):
    assert ActionSpace.parse(text).convert(np.array(act)) is None


@pytest.mark.parametrize("text", SPACES)
def test_embeddings(text):
    space = ActionSpace.parse(text)
    torch.manual_seed(0)
    embed = action_embedding(space, 8)
    rng = np.random.default_rng(0)
    act = torch.from_numpy(np.stack([[space.sample(rng) for _ in range(5)] for _ in range(3)]))
    encoded = embed(act)
    assert encoded.shape == (3, 5, 8) and encoded.std() > 0.3
    assert torch.equal(embed(act.flatten(0, 1)), encoded.flatten(0, 1))
    assert isinstance(embed, nn.Embedding) == space.is_discrete
    changed = torch.from_numpy(np.stack(np.broadcast_arrays(*space.bounds)))
    assert not torch.allclose(*embed(changed))  # every action has its own code


def test_a_box_is_encoded_between_its_bounds():
    embed = action_embedding(ActionSpace.parse("box(10.0..30.0)"), 4)
    low, middle, high = embed(torch.tensor([[10.0], [20.0], [30.0]]))
    assert torch.allclose((low + high) / 2, middle, atol=1e-6)
    assert torch.allclose(embed.linear.weight[:, 0], high - middle, atol=1e-6)

"""The TorchRL adapter: specs, resets of single games, and the games of the batched environment."""

import signal
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("torchrl")
from torchrl.envs import ExplorationType, TransformedEnv, check_env_specs, exploration_type
from torchrl.envs.transforms import CatFrames, RewardSum, ToTensorImage

from diamond_gym.adapters.torchrl import DiamondTorchRLEnv
from diamond_gym.errors import InvalidInputError
from diamond_gym.registration import register_world_model
from diamond_gym.world.action_space import ActionSpace
from tests import worlds

ID = "DiamondBreakout-v0"
HORIZON = 5


@pytest.fixture
def make(tiny_world):
    with worlds.maker(DiamondTorchRLEnv, checkpoint=tiny_world, max_episode_steps=HORIZON) as make:
        yield make


@pytest.mark.parametrize("with_context", [False, True])
def test_specs(make, with_context):
    env = make(with_context=with_context)
    check_env_specs(env)
    assert ("context" in env.reset()) == with_context


def test_its_games_are_those_of_the_batched_environment(make, tiny_world):
    env = make(seed=4, with_context=True)
    games = gymnasium.make_vec(
        ID, 3, checkpoint=tiny_world, max_episode_steps=HORIZON, autoreset_mode="DISABLED", **worlds.PLAIN
    )
    state, (obs, infos) = env.reset(), games.reset(seed=4)
    np.testing.assert_array_equal(state["pixels"], obs)
    context = infos["context"]
    resets = 0
    for step in range(15):
        act = np.full(3, step % 4)
        both = env.step_and_maybe_reset(state.set("action", torch.from_numpy(act)))
        led_to, state = both[0]["next"], both[1]
        obs, rew, end, trunc, _ = games.step(act)
        np.testing.assert_array_equal(led_to["pixels"], obs)
        np.testing.assert_array_equal(led_to["reward"][:, 0], rew)
        np.testing.assert_array_equal(led_to["terminated"][:, 0], end)
        np.testing.assert_array_equal(led_to["truncated"][:, 0], trunc)
        over = end | trunc
        if over.any():
            resets += 1
            obs, infos = games.reset(options={"reset_mask": over})
            for name in ("obs", "act"):
                context[name][over] = infos["context"][name][over]
        np.testing.assert_array_equal(state["pixels"], obs)
        np.testing.assert_array_equal(state["context", "obs"], context["obs"])
        np.testing.assert_array_equal(state["context", "act"], context["act"])
    assert resets > 2
    games.close()


def test_seeds(make):
    env, other = make(), make(seed=7)
    env.set_seed(7)
    first = env.reset()["pixels"]
    assert torch.equal(first, other.reset()["pixels"])
    assert not torch.equal(first, env.reset()["pixels"])


def test_transforms_and_rollouts(make):
    env = make(seed=0)
    env = TransformedEnv(env, ToTensorImage(in_keys=["pixels"]))
    env.append_transform(CatFrames(4, dim=-3, in_keys=["pixels"]))
    env.append_transform(RewardSum())
    rollout = env.rollout(12, break_when_any_done=False)
    assert rollout["pixels"].shape == (3, 12, 12, 64, 64)
    assert rollout["next", "truncated"].any()


def test_wrong_input(make):
    with pytest.raises(InvalidInputError, match="CartPole-v1 is not an imagined game"):
        DiamondTorchRLEnv("CartPole-v1")
    with pytest.raises(InvalidInputError, match="num_envs is an integer >= 1"):
        make(0)


def test_the_example_trains(tiny_world, tmp_path, capsys, monkeypatch):
    from trainers.examples import torchrl_ppo

    short = f"--checkpoint {tiny_world} --out {tmp_path} --device cpu --num-envs 3 --num-steps 8 --horizon 5"
    short = f"{short} --total-frames 48 --minibatch-size 8 --num-epochs 1".split()
    short += ["--num-games", "2", "--max-game-steps", "20"]
    assert torchrl_ppo.main(short) == 0
    said = capsys.readouterr().out
    assert "imagined return" in said and "mean score of 2 real games: " in said
    weights = torch.load(tmp_path / "agent.pt", weights_only=True)
    policy, _ = torchrl_ppo.make_networks(4, torch.device("cpu"))
    policy.load_state_dict(weights)
    assert torchrl_ppo.main([*short, "--checkpoint", "nowhere.pt"]) == 1

    minibatches = []

    def stop(*arguments):
        minibatches.append(1)
        if len(minibatches) == 1:  # of three in a batch
            signal.raise_signal(signal.SIGTERM)
        learn(*arguments)

    learn = torchrl_ppo._learn
    monkeypatch.setattr(torchrl_ppo, "_learn", stop)
    assert torchrl_ppo.main(short) == 0 and not minibatches, "it is finished, and scored again"
    again = [x.replace(str(tmp_path), str(tmp_path / "again")) for x in short]
    assert torchrl_ppo.main(again) == 143 and len(minibatches) == 3, "the batch is finished"
    assert torch.load(tmp_path / "again" / "checkpoint.pt", weights_only=True)["done"] == 24
    assert torchrl_ppo.main(again) == 0 and len(minibatches) == 6, "the rest is learned"


@pytest.mark.parametrize("space", ["multi_discrete(3, 2)", "multi_binary(3)", "box(-2.0..2.0, 0.0..1.0)"])
def test_worlds_with_other_actions(space, tmp_path):
    checkpoint = worlds.save_tiny_world_of(tmp_path, ActionSpace.parse(space))
    register_world_model("OtherActions-v0", checkpoint, max_episode_steps=4, **worlds.PLAIN)
    try:
        env = DiamondTorchRLEnv("OtherActions-v0", 2, seed=0, with_context=True)
        check_env_specs(env)
        assert env.rollout(3)["action"].shape == (2, 3, ActionSpace.parse(space).size)
        env.close()
    finally:
        del gymnasium.registry["OtherActions-v0"]


def test_without_torchrl_the_extra_is_named_in_a_line():
    command = "import sys, runpy; sys.modules['torchrl'] = sys.modules['tensordict'] = None"
    command += "; runpy.run_module('trainers.examples.torchrl_ppo', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "error: this needs TorchRL: pip install 'diamond-gym[torchrl]'\n"


def test_the_example_is_scored_on_what_it_learned_from(tiny_world, tmp_path, monkeypatch):
    from trainers.examples import torchrl_ppo

    seen = []

    def one_game(player, game, **_):
        frames = np.random.default_rng(0).integers(256, size=(4, 64, 64, 3), dtype=np.uint8)
        seen.append(frames.transpose(0, 3, 1, 2))
        player.reset(past=frames[:-1])
        return [player.act(frames[-1])]

    class Actor(torch.nn.Linear):
        def forward(self, tensordict):
            assert exploration_type() == ExplorationType.RANDOM
            seen.append(tensordict["pixels"])
            return tensordict.set("action", torch.tensor([2]))

    monkeypatch.setattr(torchrl_ppo, "real_scores", one_game)
    args = torchrl_ppo.Settings(checkpoint=str(tiny_world), num_envs=1)
    assert torchrl_ppo.score(Actor(1, 1), "Breakout", args) == [2]
    frames, pixels = seen
    stack = torchrl_ppo.make_env(args).reset()["pixels"]
    assert pixels.shape == stack.shape and pixels.dtype == stack.dtype
    torch.testing.assert_close(pixels[0, -3:], torch.from_numpy(frames[-1]) / 255)
    assert stack.min() >= 0 and 0.3 < stack.max() <= 1

"""The single-file PPO: its frame stacks, its advantages, and a tiny run from nothing to real scores."""

import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from diamond_gym import cli
from diamond_gym.adapters.sb3 import ContextFrameStack, make_sb3_vec_env
from tests.test_untrusted import Canary
from trainers.examples import ppo as cleanrl_ppo
from trainers.examples.ppo import Rollout


def short(tiny_world, out):
    arguments = f"--checkpoint {tiny_world} --out {out} --device cpu --num-envs 3 --num-steps 8 --horizon 5"
    arguments = f"{arguments} --total-timesteps 48 --minibatch-size 8 --num-epochs 1"
    return f"{arguments} --num-games 1 --max-game-steps 20".split()


def settings(tiny_world, out, *more):
    return cli.parse(cleanrl_ppo.Settings, [*short(tiny_world, out), *more])


@pytest.mark.parametrize(
    ("old", "new"), [("planning", "planning"), ("cleanrl_ppo", "ppo"), ("torchrl_ppo", "torchrl_ppo")]
)
def test_old_names_run_the_new_ones(old, new):
    if old == "torchrl_ppo":
        pytest.importorskip("torchrl")
    command = [sys.executable, "-m", f"trainers.{old}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m trainers.examples.{new} ")
    assert f"trainers.{old} is now trainers.examples.{new}" in done.stderr


def test_its_games_are_those_of_the_stable_baselines_adapter(tiny_world, tmp_path):
    args = settings(tiny_world, tmp_path, "--seed", "4")
    ours = cleanrl_ppo.Games(args)
    theirs = ContextFrameStack(
        make_sb3_vec_env(
            "DiamondBreakout-v0", 3, seed=4, max_episode_steps=5, checkpoint=tiny_world, device="cpu"
        ),
        4,
    )

    def flat(stack):
        return stack.permute(0, 3, 4, 1, 2).flatten(3).numpy()

    np.testing.assert_array_equal(flat(ours.stack), theirs.reset())
    kinds = set()
    for step in range(15):
        act = np.full(3, step % 4)
        rew, end, trunc, led_to = ours.step(torch.from_numpy(act))
        obs, expected, dones, infos = theirs.step(act)
        np.testing.assert_array_equal(flat(ours.stack), obs)
        np.testing.assert_array_equal(rew, expected)
        np.testing.assert_array_equal(end | trunc, dones)
        for i in np.flatnonzero(dones):
            kinds.add(bool(end[i]))
            np.testing.assert_array_equal(flat(led_to)[i], infos[i]["terminal_observation"])
    assert kinds == {True, False}
    ours.envs.close(), theirs.close()


def test_the_passes_are_those_asked_for(tiny_world, tmp_path):
    games = cleanrl_ppo.Games(settings(tiny_world, tmp_path, "num_denoising_steps=2"))
    assert games.envs.world.world_model.config.num_steps_denoising == 2
    games.envs.close()


def test_advantages_stop_where_a_game_is_over():
    rew, val = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[0.5], [1.0], [3.0]])
    over = torch.tensor([[False], [True], [False]])
    nothing = torch.zeros(3, 1)
    rollout = Rollout(nothing, nothing, nothing, rew, over, val, torch.tensor([10.0]))
    advantages = rollout.advantages(gamma=0.5, gae_lambda=0.5)[:, 0]
    last = 4 + 0.5 * 10 - 3
    second = 2.0 - 1.0  # nothing comes after it
    first = 1 + 0.5 * 1.0 - 0.5 + 0.25 * second
    assert advantages.tolist() == pytest.approx([first, second, last])


def test_a_horizon_is_bootstrapped_and_an_end_is_not(tiny_world, tmp_path):
    args = settings(tiny_world, tmp_path)
    games = cleanrl_ppo.Games(args)
    agent = cleanrl_ppo.Agent(args.num_frames, games.num_actions)
    with torch.no_grad():
        agent.critic.weight.zero_(), agent.critic.bias.fill_(100.0)
    rollout = cleanrl_ppo.play(agent, games, 25, gamma=0.5)
    cut_short = rollout.rew > 10
    assert cut_short.any() and (rollout.over & ~cut_short).any()
    assert (cut_short <= rollout.over).all()
    assert ((rollout.rew[cut_short] - 50).abs() <= 1).all()
    games.envs.close()


def test_the_whole_command(tiny_world, tmp_path, capsys):
    assert cleanrl_ppo.main(short(tiny_world, tmp_path)) == 0
    assert "mean score of 1 real games" in capsys.readouterr().out
    weights = torch.load(tmp_path / "agent.pt", weights_only=True)
    fresh = cleanrl_ppo.Agent(4, 4)
    fresh.load_state_dict(weights)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_was_stopped_is_continued(tiny_world, tmp_path, monkeypatch, capsys, number, code):
    num_updates, learn = [], cleanrl_ppo.learn

    def counted(*arguments):
        num_updates.append(1)
        if len(num_updates) == 1:
            signal.raise_signal(number)  # the update is finished all the same
        learn(*arguments)

    monkeypatch.setattr(cleanrl_ppo, "learn", counted)
    assert cleanrl_ppo.main(short(tiny_world, tmp_path)) == code
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (saved["done"], len(num_updates)) == (1, 1) and saved["parts"]["optimizer"]["state"]
    cleanrl_ppo.Agent(4, 4).load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    assert cleanrl_ppo.main([*short(tiny_world, tmp_path), "gamma=0.5"]) == 2
    assert "a training with gamma=0.985, not 0.5" in capsys.readouterr().err
    assert cleanrl_ppo.main(short(tiny_world, tmp_path)) == 0
    assert len(num_updates) == 2, "the first one is not learned again"


def test_checkpoints_that_are_damaged_or_hold_code_are_refused_in_one_line(tiny_world, tmp_path, capsys):
    canary = tmp_path / "canary"
    torch.save({"done": 1, "settings": {}, "parts": Canary(canary)}, tmp_path / "pickled.pt")
    torch.save({"done": 1, "settings": {}, "parts": torch.zeros(2**14)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (tmp_path / "damaged.pt").write_bytes(b"damaged")
    reasons = {
        "damaged": "damaged, or no PyTorch file",
        "pickled": "could run code, so it was not loaded",
        "deflated": "is compressed, as PyTorch never does",
        "plain": "cannot be resumed from",
    }
    for name, message in reasons.items():
        out = tmp_path / name
        out.mkdir()
        (tmp_path / f"{name}.pt").rename(out / "checkpoint.pt")
        assert cleanrl_ppo.main(short(tiny_world, out)) == 1
        *told, line = capsys.readouterr().err.splitlines()
        assert not any(x.startswith(("error", "Traceback")) for x in told), told
        assert line.startswith(f"error: {out / 'checkpoint.pt'} cannot be resumed from") and message in line
        assert "weights_only" not in line and len(line) < 600
    assert not canary.exists()


def test_wrong_arguments(tiny_world, tmp_path, capsys):
    assert cleanrl_ppo.main(["--num-envs", "0"]) == 2
    assert cleanrl_ppo.main(["num_games=x"]) == 2
    assert cleanrl_ppo.main(["--num-frames", "5"]) == 2
    capsys.readouterr()
    assert cleanrl_ppo.main(["--learning-rate", "-1"]) == 2
    assert "learning_rate must be finite and above 0, got -1.0" in capsys.readouterr().err
    wrong = {
        "--env-id=CartPole-v1": (2, "CartPole-v1 is not an imagined game"),
        "--env-id=DiamondFoo-v0": (2, "DiamondFoo"),
        "--checkpoint=none.pt": (1, "none.pt"),
    }
    for argument, (code, message) in wrong.items():
        assert cleanrl_ppo.main([*short(tiny_world, tmp_path), argument]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line

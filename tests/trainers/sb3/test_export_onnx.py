from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from trainers.sb3.__main__ import main
from trainers.sb3.agents import _untrained, find_agent, load_agent, save_agent
from trainers.sb3.settings import PRESETS, RECURRENT

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), np.uint8)


def run(folder, feeds):
    session = onnxruntime.InferenceSession(folder / "agent.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def stacked(frames):
    """Frames (b, k, h, w, c) as Stable-Baselines3's agents see them, (b, k c, h, w)."""
    return torch.from_numpy(np.concatenate(frames.transpose(1, 0, 4, 2, 3), axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_embedded_agent(dtype, tmp_path):
    assert main(["export-onnx", f"out={tmp_path / 'agent'}", f"dtype={dtype}"]) == 0
    about = json.loads((tmp_path / "agent" / "agent.json").read_text("utf-8"))
    assert (about["game"], about["algorithm"], about["choice"]) == ("Breakout", "PPO", "logits")
    assert about["agent"]["inputs"]["obs"] == {"dtype": "uint8", "shape": ["games", 4, 64, 64, 3]}
    (logits,) = run(tmp_path / "agent", {"obs": FRAMES})
    agent = load_agent(find_agent("embedded", "Breakout"), device="cpu")
    with torch.no_grad():
        expected = agent.policy.get_distribution(stacked(FRAMES)).distribution.logits.numpy()
    got = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(got, expected, atol=1e-4 if dtype == "float32" else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("algo", [name for name in PRESETS if name != "ppo"])
def test_every_algorithm(algo, tmp_path):
    num_frames = 1 if algo in RECURRENT else 4
    torch.manual_seed(0)
    space = Box(0, 255, (3 * num_frames, 64, 64), np.uint8)
    agent = _untrained(algo, space, Discrete(4), torch.device("cpu"))
    save_agent(agent, tmp_path / "agent.zip")
    out = tmp_path / "out"
    assert main(["export-onnx", f"agent={tmp_path / 'agent.zip'}", f"out={out}", "dtype=float32"]) == 0
    frames = FRAMES[:, :num_frames]
    feeds = {"obs": frames}
    if algo in RECURRENT:
        feeds |= {name: np.full((2, 256), 0.1, np.float32) for name in ("hx", "cx")}
    got = run(out, feeds)[0]
    with torch.no_grad():
        x = stacked(frames)
        if algo == "a2c":
            expected = agent.policy.get_distribution(x).distribution.logits
        elif algo == "dqn":
            expected = agent.policy.q_net(x)
        elif algo == "qrdqn":
            expected = agent.policy.quantile_net(x).mean(dim=1)
        else:
            state = tuple(torch.full((1, 2, 256), 0.1) for _ in range(2))
            distribution, _ = agent.policy.get_distribution(x, state, torch.zeros(2))
            expected = distribution.distribution.logits
    if algo in ("a2c", "recurrent_ppo"):
        got = got - np.log(np.exp(got).sum(-1, keepdims=True))
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_an_agent_of_another_game(tmp_path, capsys):
    path = find_agent("embedded", "Breakout")
    assert main(["export-onnx", f"agent={path}", "game=Pong", f"out={tmp_path / 'agent'}"]) == 2
    assert "has 4 actions, Pong has 6" in capsys.readouterr().err
    assert not (tmp_path / "agent").exists()

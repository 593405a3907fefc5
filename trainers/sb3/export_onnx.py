"""Write an agent of Stable-Baselines3 as an ONNX file, which plays exported worlds; see `docs/onnx.md`."""

from __future__ import annotations

import json
from typing import Any

import torch
from jaxtyping import UInt8
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from diamond_gym import files as disk
from diamond_gym.errors import InvalidInputError
from diamond_gym.export_onnx.export import signature, stored_as
from diamond_gym.export_onnx.graphs import NUM_TRACED_GAMES, Graph, lstm_step, require_onnx, to_onnx
from diamond_gym.games import atari
from diamond_gym.registration import game_name
from trainers.sb3.agents import find_agent, is_off_policy, load_agent
from trainers.sb3.evaluation import frame_stack
from trainers.sb3.settings import ExportOnnxSettings

FORMAT = "diamond_gym.onnx.agent"
FORMAT_VERSION = 1
AGENT_FILE, DESCRIPTION_FILE = "agent.onnx", "agent.json"


class Choice(nn.Module):
    """What an agent chooses its action by: logits of a policy, or values of the actions.

    Args:
        agent: The agent, on the CPU.
    """

    def __init__(self, agent: BaseAlgorithm) -> None:
        super().__init__()
        self.policy: Any = agent.policy.eval().requires_grad_(False)
        self.is_recurrent = hasattr(agent.policy, "lstm_actor")
        self.output = "values" if is_off_policy(agent) else "logits"

    def graph(self, num_frames: int) -> Graph:
        """Return the graph for stacks of some frames."""
        inputs: dict[str, Tensor] = {"obs": torch.zeros(NUM_TRACED_GAMES, num_frames, 64, 64, 3).byte()}
        if not self.is_recurrent:
            return Graph(self, inputs, (self.output,))
        width = self.policy.lstm_actor.hidden_size
        inputs |= {name: torch.zeros(NUM_TRACED_GAMES, width) for name in ("hx", "cx")}
        return Graph(self, inputs, (self.output, "next_hx", "next_cx"))

    def forward(
        self, obs: UInt8[Tensor, "b k h w c"], hx: Tensor | None = None, cx: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return logits or values (b, a), and the next LSTM state where there is one."""
        policy, x = self.policy, obs.permute(0, 1, 4, 2, 3).flatten(1, 2)
        if hasattr(policy, "quantile_net"):
            return policy.quantile_net(x).mean(dim=1)
        if hasattr(policy, "q_net"):
            return policy.q_net(x)
        features = policy.extract_features(x, policy.pi_features_extractor)
        if hx is None or cx is None:
            return policy.action_net(policy.mlp_extractor.forward_actor(features))
        hx, cx = lstm_step(policy.lstm_actor, features, (hx, cx))
        return policy.action_net(policy.mlp_extractor.forward_actor(hx)), hx, cx


def export(settings: ExportOnnxSettings) -> dict[str, int]:
    """Write an agent into a new folder; return the bytes of each file.

    Raises:
        CacheError: The folder exists and is not empty, or cannot be written.
        CheckpointNotFoundError: There is no such agent.
        CheckpointError: It is damaged, or its policy has an operator that ONNX lacks.
        InvalidInputError: It plays another game.
        MissingDependencyError: ONNX is not installed.
    """
    require_onnx()
    game = game_name(settings.game)
    path = find_agent(settings.agent, game)
    agent = load_agent(path, device="cpu", trust=settings.trust)
    meanings, num_actions = atari.action_meanings(game), int(getattr(agent.action_space, "n", 0))
    if num_actions != len(meanings):
        raise InvalidInputError(
            f"{path} has {num_actions} actions, {game} has {len(meanings)}: give the game that it plays"
        )
    num_frames, choice = frame_stack(agent, path), Choice(agent)
    with disk.new_folder(settings.out) as folder:
        model = stored_as(to_onnx(choice.graph(num_frames), settings.opset, str(path)), settings.dtype)
        disk.write_file(folder / AGENT_FILE, model.SerializeToString())
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "game": game,
            "algorithm": type(agent).__name__,
            "dtype": settings.dtype,
            "opset": settings.opset,
            "actions": meanings,
            "choice": choice.output,
            "agent": signature(AGENT_FILE, model),
        }
        disk.write_file(folder / DESCRIPTION_FILE, json.dumps(about, allow_nan=False).encode())
    return {file.name: file.stat().st_size for file in disk.visible(settings.out)}

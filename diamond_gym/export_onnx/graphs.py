"""Networks as ONNX graphs: what a step computes, with tensors as its inputs and outputs.

Frames are uint8 with channels last, as Gymnasium shows them, and actions are int32, as JavaScript likes them.
The LSTM is written out as matrix products, because not every runtime of a browser has one.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, UInt8
from torch import Tensor, nn

from diamond_gym.errors import CheckpointError, MissingDependencyError, first_line
from diamond_gym.export_onnx.settings import MAX_OPSET
from diamond_gym.world.models.actor_critic import ActorCritic
from diamond_gym.world.models.blocks import Modulation, Modulator, Upsample, modulation
from diamond_gym.world.models.rew_end_model import NUM_END_CLASSES, NUM_REWARD_CLASSES, LSTMState, RewEndModel
from diamond_gym.world.noise import Draw
from diamond_gym.world.pixels import to_float, to_uint8
from diamond_gym.world.world_model import WorldModel, draw_class

if TYPE_CHECKING:
    import onnx

GAMES = "games"
"""Name of the first axis of all inputs and outputs: any number of games."""
_LOGGERS = ("onnxscript", "onnx_ir", "torch.onnx")
_Network = TypeVar("_Network", bound=nn.Module)
NUM_TRACED_GAMES = 2
"""Games in example inputs: PyTorch takes an axis of size 1 for a constant."""


@dataclass(frozen=True)
class Graph:
    """A function of tensors, with example inputs, which becomes an ONNX model.

    Attributes:
        module: The function, without gradients.
        inputs: Example inputs by name, in order; the first axis of each is that of the games.
        outputs: Names of the outputs.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


class NextFrame(nn.Module):
    """The sampler and its denoiser: from the last frames, actions and noise to the next frame.

    Args:
        world_model: The world model, on the CPU in float32.
    """

    def __init__(self, world_model: WorldModel) -> None:
        super().__init__()
        self.denoiser = as_constants(world_model.denoiser)
        self.world_model = WorldModel(self.denoiser, world_model.rew_end_model, world_model.config)
        self.draws = [int(Draw.FRAME)]

    def graph(self, h: int, w: int) -> Graph:
        """Return the graph for frames of h by w pixels; `draws` says from then on which noise it takes.

        One step is computed to learn that, and to compute the constants of each noise level.
        """
        n, c = self.world_model.num_steps_conditioning, self.denoiser.config.inner_model.img_channels
        obs = torch.zeros(NUM_TRACED_GAMES, n, h, w, c, dtype=torch.uint8)
        act = torch.zeros(NUM_TRACED_GAMES, n, dtype=torch.int32)
        self.draws = [int(Draw.FRAME)]

        def step_noise(i: int) -> Tensor:
            self.draws.append(Draw.CHURN + i)
            return torch.zeros(NUM_TRACED_GAMES, c, h, w)

        self.world_model.sample_frame(
            _channels_first(obs), act.long(), torch.zeros(NUM_TRACED_GAMES, c, h, w), step_noise
        )
        noise = torch.zeros(NUM_TRACED_GAMES, len(self.draws), c, h, w)
        return Graph(self, {"obs": obs, "act": act, "noise": noise}, ("next_obs",))

    def forward(
        self, obs: UInt8[Tensor, "b n h w c"], act: Int32[Tensor, "b n"], noise: Float32[Tensor, "b k c h w"]
    ) -> UInt8[Tensor, "b h w c"]:
        """Return the next frame; `noise` holds unit normal numbers for each of `draws`."""

        def step_noise(i: int) -> Tensor:
            return noise[:, self.draws.index(Draw.CHURN + i)]

        *_, frame = self.world_model.sample_frame(_channels_first(obs), act.long(), noise[:, 0], step_noise)
        return to_uint8(frame).permute(0, 2, 3, 1)


class RewardAndEnd(nn.Module):
    """One step of the reward/end model, with what is drawn from it.

    Args:
        model: The reward/end model, on the CPU in float32.
    """

    def __init__(self, model: RewEndModel) -> None:
        super().__init__()
        self.model = as_constants(model)

    def graph(self) -> Graph:
        """Return the graph for frames of the size in the model's configuration."""
        config = self.model.config
        frame = torch.zeros(NUM_TRACED_GAMES, *config.frame_size, config.img_channels).byte()
        hx, cx = (torch.zeros(NUM_TRACED_GAMES, config.lstm_dim) for _ in range(2))
        act = torch.zeros(NUM_TRACED_GAMES, dtype=torch.int32)
        inputs = {"obs": frame, "act": act, "next_obs": frame, "uniform": torch.zeros(NUM_TRACED_GAMES, 2)}
        outputs = ("rew", "end", "logits_rew", "logits_end", "next_hx", "next_cx")
        return Graph(self, inputs | {"hx": hx, "cx": cx}, outputs)

    def forward(
        self,
        obs: UInt8[Tensor, "b h w c"],
        act: Int32[Tensor, " b"],
        next_obs: UInt8[Tensor, "b h w c"],
        uniform: Float32[Tensor, "b 2"],
        hx: Float32[Tensor, "b d"],
        cx: Float32[Tensor, "b d"],
    ) -> tuple[Tensor, ...]:
        """Return reward in {-1, 0, 1}, end in {0, 1}, the logits of both, and the next LSTM state.

        `uniform` holds numbers in [0, 1), from which reward and end are drawn.
        """
        frames = torch.cat([to_float(x.permute(0, 3, 1, 2)) for x in (obs, next_obs)], dim=1)
        x = self.model.encoder(frames, self.model.act_emb(act.long())).flatten(1)
        hx, cx = lstm_step(self.model.lstm, x, (hx, cx))
        logits_rew, logits_end = self.model.head(hx).split([NUM_REWARD_CLASSES, NUM_END_CLASSES], dim=-1)
        rew = draw_class(logits_rew, uniform[:, 0]) - 1
        end = draw_class(logits_end, uniform[:, 1])
        return rew.int(), end.int(), logits_rew, logits_end, hx, cx


class Policy(nn.Module):
    """One step of the recurrent actor-critic.

    Args:
        actor_critic: The actor-critic, on the CPU in float32.
    """

    def __init__(self, actor_critic: ActorCritic) -> None:
        super().__init__()
        self.actor_critic = as_constants(actor_critic)

    def graph(self) -> Graph:
        """Return the graph for frames of the size in the configuration."""
        config = self.actor_critic.config
        frame = torch.zeros(NUM_TRACED_GAMES, *config.frame_size, config.img_channels).byte()
        hx, cx = (torch.zeros(NUM_TRACED_GAMES, config.lstm_dim) for _ in range(2))
        return Graph(self, {"obs": frame, "hx": hx, "cx": cx}, ("logits", "value", "next_hx", "next_cx"))

    def forward(
        self, obs: UInt8[Tensor, "b h w c"], hx: Float32[Tensor, "b d"], cx: Float32[Tensor, "b d"]
    ) -> tuple[Tensor, ...]:
        """Return the logits of the actions, the value, and the next LSTM state."""
        network = self.actor_critic
        x = network.encoder(to_float(obs.permute(0, 3, 1, 2))).flatten(1)
        hx, cx = lstm_step(network.lstm, x, (hx, cx))
        return network.actor_linear(hx), network.critic_linear(hx)[:, 0], hx, cx


def lstm_step(lstm: nn.LSTM | nn.LSTMCell, x: Float[Tensor, "b k"], hx_cx: LSTMState) -> LSTMState:
    """One step of an LSTM with one layer, as `torch.nn.LSTMCell` computes it."""
    weight_ih, weight_hh, bias_ih, bias_hh = lstm.parameters()
    hx, cx = hx_cx
    gates = F.linear(x, weight_ih, bias_ih + bias_hh) + F.linear(hx, weight_hh)
    i, f, g, o = gates.chunk(4, dim=-1)
    cx = f.sigmoid() * cx + i.sigmoid() * g.tanh()
    return o.sigmoid() * cx.tanh(), cx


class _ConstantModulator(nn.Module):
    """A `Modulator` whose weights have been put together."""

    def __init__(self, modulator: Modulator) -> None:
        super().__init__()
        self.weight, self.bias = map(nn.Parameter, modulator.weight_and_bias())

    def forward(self, cond: Float[Tensor, "b d"]) -> Modulation:
        return modulation(cond, self.weight, self.bias)


def as_constants(network: _Network) -> _Network:
    """Copy a network in PyTorch's default layout, with everything that only depends on weights computed."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # pyright: ignore
    for module in list(network.modules()):
        if isinstance(module, Upsample):
            module.merges_copies = False  # fewer weights, and no slower in ONNX Runtime
        modulator = getattr(module, "modulator", None)
        if isinstance(modulator, Modulator):
            module.modulator = _ConstantModulator(modulator)
    return network.eval().requires_grad_(False)


def _channels_first(obs: UInt8[Tensor, "b n h w c"]) -> UInt8[Tensor, "b n c h w"]:
    return obs.permute(0, 1, 4, 2, 3)


def require_onnx() -> Any:
    """Import the packages that write ONNX files and return the module `onnx`.

    Raises:
        MissingDependencyError: One is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"an export needs onnx and onnxscript ({first_line(error)}): pip install 'diamond-gym[onnx]'"
        ) from None
    return onnx


def to_onnx(graph: Graph, opset: int, source: str) -> onnx.ModelProto:
    """Convert a graph, with its weights in float32.

    Args:
        graph: The graph.
        opset: Version of ONNX's operators, `MIN_OPSET` to `MAX_OPSET`.
        source: Where the weights come from, for the error message.

    Raises:
        CheckpointError: A network has an operator that ONNX lacks.
        MissingDependencyError: ONNX is not installed.
    """
    require_onnx()
    games = torch.export.Dim(GAMES, min=1)
    with _quietly():
        try:
            program = torch.onnx.export(
                graph.module,
                tuple(x.clone() for x in graph.inputs.values()),  # one tensor twice would be one input
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=[{0: games} for _ in graph.inputs],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # whatever a foreign network causes, in any of PyTorch's passes
            raise CheckpointError(
                f"{source} cannot be written as ONNX with opset={opset}: {_cause(error)}. Give a later opset "
                f"(up to {MAX_OPSET}), or use the world in PyTorch"
            ) from error
    assert program is not None
    return _slim(program.model_proto)


def _cause(error: BaseException) -> str:
    """The message of the first error of a chain; that of PyTorch's last pass is a page long."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}".rstrip(".")


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove long names, and what the exporter notes of source code, with the paths of this machine."""
    owners = [model.graph, *model.graph.node, *model.graph.input, *model.graph.output]
    for owner in [*owners, *model.graph.initializer, *model.functions]:
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")
    del model.graph.value_info[:]
    kept = {value.name for value in [*model.graph.output, *model.graph.input, *model.graph.initializer]}
    renamed = {"": ""}
    for node in model.graph.node:
        node.ClearField("name")
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for name in node.output:
            renamed.setdefault(name, name if name in kept else f"t{len(renamed)}")
        node.output[:] = [renamed[name] for name in node.output]
    return model


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide the progress of PyTorch's exporter, which is meant for its authors."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

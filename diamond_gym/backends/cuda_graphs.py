"""Imagination as CUDA graphs: what a step launches on a GPU is recorded once and launched again as a whole.

A step is some thousand small kernels, and launching them one by one from Python takes longer than running
them. A graph reads its inputs from memory of its own and writes its outputs there, so inputs are copied in,
and copies of the outputs are returned. Weights are read where they are: loading others into the same memory
is fine.

The module sees world models as tensors in, tensors out; it does not depend on environments or training.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from diamond_gym.world.models import Denoiser, LSTMState, RewEndModel
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel, WorldModelState, WorldModelStep

MAX_GRAPHS = 32
"""The most graphs that a world model keeps; inputs of further shapes are computed without one."""
MAX_GRAPHED_STARTS = 64
"""The most games that a graph starts at once; with more, the GPU's work takes longer than its launch."""
_WARM_UP_PASSES = 3
"""Passes before the recording, in which libraries set up, compilers compile, and constants are cached."""

Function = Callable[..., tuple[Tensor, ...]]
"""Maps tensors on a CUDA device to tensors, without PyTorch's random numbers and without synchronising."""


@functools.cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """The one stream for all recordings of a device: matrix products keep tens of megabytes per stream."""
    return torch.cuda.Stream(device)


class Graphs:
    """CUDA graphs of functions of tensors, one for each function and shapes and dtypes of its inputs.

    The graphs share their memory, so a lock lets them run one at a time; all must run on one stream.
    Gradients do not flow through them. Autocast is honoured.

    Args:
        device: A CUDA device, on which all inputs are.
        max_graphs: How many are kept; beyond that, functions are called without a graph.
    """

    def __init__(self, device: torch.device, max_graphs: int = MAX_GRAPHS) -> None:
        self.device, self.max_graphs = device, max_graphs
        self._graphs: dict[Hashable, _Graph] = {}
        self._lock = threading.Lock()
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, function: Function, *inputs: Tensor, key: Hashable = None) -> tuple[Tensor, ...]:
        """Return the function's result for these inputs, in fresh memory.

        Args:
            function: The function; its name distinguishes it from others.
            inputs: Its inputs, contiguous or not.
            key: Anything else that the recording depends on, such as the place of the weights in memory.
        """
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        signature = (function.__name__, key, autocast, shapes)
        with self._lock, torch.cuda.device(self.device):
            graph = self._graphs.get(signature)
            if graph is None and len(self._graphs) >= self.max_graphs:
                with torch.no_grad():
                    return function(*inputs)
            if graph is None:
                graph = self._graphs[signature] = _Graph(function, inputs, self._pool, *autocast)
            return graph.replay(inputs)


class _Graph:
    """One recording of a function."""

    def __init__(
        self,
        function: Function,
        inputs: tuple[Tensor, ...],
        pool: Any,
        autocast: bool,
        autocast_dtype: torch.dtype,
    ) -> None:
        self._graph, stream = torch.cuda.CUDAGraph(), _recording_stream(torch.cuda.current_device())
        # the graph outlives inference mode, and must cast the weights again each time
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cuda", dtype=autocast_dtype, enabled=autocast, cache_enabled=False),
        ):
            self._inputs = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_PASSES):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            # other threads may do CUDA work that does not belong to the recording meanwhile
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)

    @torch.no_grad()
    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        self._graph.replay()
        return tuple(x.clone() for x in self._outputs)


class GraphedWorldModel(WorldModel):
    """A `WorldModel` on a CUDA device whose steps, and starts of few games, run as graphs.

    The first step of each number of games is slow, because it records the graph. Networks must stay where
    they are and in eval mode.

    Args:
        denoiser: As `WorldModel`; on a CUDA device, like the next.
        rew_end_model: As `WorldModel`.
        config: How frames are sampled.
    """

    def __init__(
        self, denoiser: Denoiser, rew_end_model: RewEndModel, config: DiffusionSamplerConfig | None = None
    ) -> None:
        super().__init__(denoiser, rew_end_model, config)
        self.graphs = Graphs(self.device)

    def step(
        self, state: WorldModelState, act: Shaped[Tensor, "b *a"]
    ) -> tuple[WorldModelState, WorldModelStep]:
        """See `WorldModel.step`."""
        outputs = self.graphs.run(self._step_tensors, *state.tensors(), act, key=self._place_of_weights())
        num_state, num_step = len(state.tensors()), len(fields(WorldModelStep)) - 1
        of_state, of_step = outputs[:num_state], outputs[num_state : num_state + num_step]
        trajectory = list(outputs[num_state + num_step :])
        return WorldModelState(*of_state), WorldModelStep(*of_step, trajectory=trajectory)

    def _step_tensors(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        state, step = super().step(WorldModelState(*tensors[:-1]), tensors[-1])
        *of_step, trajectory = (getattr(step, f.name) for f in fields(step))
        return (*state.tensors(), *of_step, *trajectory)

    def imagine(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Shaped[Tensor, "b n *a"],
        key: Int64[Tensor, " b"],
        actions: Shaped[Tensor, "b k *a"],
        padding: Int64[Tensor, " b"] | None = None,
    ) -> UInt8[Tensor, "b k c h w"]:
        """See `WorldModel.imagine`; by whole steps, which are recorded."""
        state = self.start(obs, act, key, padding)
        frames = []
        for action in actions.unbind(1):
            state, step = self.step(state, action)
            frames.append(step.obs)
        return torch.stack(frames, dim=1)

    def burn_in(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Shaped[Tensor, "b n *a"],
        padding: Int64[Tensor, " b"] | None = None,
    ) -> LSTMState:
        """See `WorldModel.burn_in`; numbers of games are rounded up to powers of 2, for fewer graphs."""
        num_games = len(obs)
        if not 0 < num_games <= MAX_GRAPHED_STARTS:
            return super().burn_in(obs, act, padding)
        size = 1 << (num_games - 1).bit_length()
        inputs = (_repeat_last(x, size) for x in (obs, act, padding) if x is not None)
        hx, cx = self.graphs.run(self._burn_in_tensors, *inputs, key=self._place_of_weights())
        return hx[:, :num_games].contiguous(), cx[:, :num_games].contiguous()

    def _burn_in_tensors(self, *tensors: Tensor) -> tuple[Float[Tensor, "1 b d"], Float[Tensor, "1 b d"]]:
        hx, cx = super().burn_in(*tensors)
        return hx, cx

    def _place_of_weights(self) -> Hashable:
        """Addresses and dtypes of the weights, which change when networks are moved or converted."""
        networks = self.denoiser.inner_model, self.rew_end_model.encoder
        return tuple(
            (network.conv_in.weight.data_ptr(), network.conv_in.weight.dtype) for network in networks
        )


def _repeat_last(x: Tensor, size: int) -> Tensor:
    """Lengthen a tensor by repeating its last entry."""
    return torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]) if len(x) < size else x

"""How many CPU threads a step uses: as many as its work pays for, without a change for the caller's own code.

PyTorch divides every operation among OpenMP's threads, which spin while they wait for each other. A step has
hundreds of small operations, so beside another busy process each of them may wait until the system lets the
missing thread run. Here small steps run in one thread. Large batches are cut into chunks of games, each of
which one thread imagines from beginning to end, so that threads wait for each other once a step.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import fields
from typing import Any, TypeVar

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor, nn

from diamond_gym.world.models import Denoiser, RewEndModel
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel, WorldModelState, WorldModelStep

FLOPS_WORTH_A_THREAD = 11e9
"""From this work a step on, a further thread pays by 1.5 times or more: 16 games of an embedded world.

Estimated from processor time: two chunks of 16 games take 134 ms, the whole batch in one thread 114.
"""

_T = TypeVar("_T")


class ThreadedWorldModel(WorldModel):
    """A `WorldModel` on the CPU that uses as many threads as pay, at most `torch.get_num_threads()`.

    Args:
        denoiser: As `WorldModel`; on the CPU, like the next.
        rew_end_model: As `WorldModel`.
        config: How frames are sampled.
        in_chunks: Whether large batches may be cut into chunks, whose sizes differ by at most one game.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rew_end_model: RewEndModel,
        config: DiffusionSamplerConfig | None = None,
        in_chunks: bool = True,
    ) -> None:
        super().__init__(denoiser, rew_end_model, config)
        self._in_chunks = in_chunks
        self._flops = flops_of_a_game(self)

    def resampled(self, config: DiffusionSamplerConfig) -> WorldModel:
        """See `WorldModel.resampled`."""
        return type(self)(self.denoiser, self.rew_end_model, config, self._in_chunks)

    def start(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Shaped[Tensor, "b n *a"],
        key: Int64[Tensor, " b"],
        padding: Int64[Tensor, " b"] | None = None,
    ) -> WorldModelState:
        """See `WorldModel.start`."""
        with using_threads(self._division(len(obs))[1]):
            return super().start(obs, act, key, padding)

    def step(
        self, state: WorldModelState, act: Shaped[Tensor, "b *a"]
    ) -> tuple[WorldModelState, WorldModelStep]:
        """See `WorldModel.step`."""
        step = super().step
        num_chunks, num_threads = self._division(len(state))
        with using_threads(num_threads):
            if num_chunks == 1:
                return step(state, act)
            return _joined(
                in_chunks(len(state), num_chunks, lambda games: step(state.select(games), act[games]))
            )

    def imagine(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Shaped[Tensor, "b n *a"],
        key: Int64[Tensor, " b"],
        actions: Shaped[Tensor, "b k *a"],
        padding: Int64[Tensor, " b"] | None = None,
    ) -> UInt8[Tensor, "b k c h w"]:
        """See `WorldModel.imagine`."""
        imagine = super().imagine

        def chunk(games: Int64[Tensor, " k"]) -> Tensor:
            padded = None if padding is None else padding[games]
            return imagine(obs[games], act[games], key[games], actions[games], padded)

        num_chunks, num_threads = self._division(len(obs))
        with using_threads(num_threads):
            return torch.cat(in_chunks(len(obs), num_chunks, chunk))

    def _division(self, num_games: int) -> tuple[int, int]:
        max_threads = torch.get_num_threads()
        num_chunks, num_threads = divide(num_games, self._flops, max_threads)
        if self._in_chunks and openmp() is not None:
            return num_chunks, num_threads
        return 1, max_threads if num_chunks > 1 else num_threads


def divide(num_games: int, flops: float, max_threads: int) -> tuple[int, int]:
    """Return the number of chunks of a batch, and the number of OpenMP's threads that each of them uses.

    Chunks have at least two games, because a single one may run in another backend.

    Args:
        num_games: Games of the batch.
        flops: FLOPs of a step of one game.
        max_threads: The most threads, at least 1.
    """
    num_paid = max(1, int(num_games * flops / FLOPS_WORTH_A_THREAD))
    num_chunks = max(1, min(num_paid, num_games // 2, max_threads))
    return num_chunks, max_threads // num_chunks if flops >= FLOPS_WORTH_A_THREAD else 1


def in_chunks(num_games: int, num_chunks: int, function: Callable[[Int64[Tensor, " k"]], _T]) -> list[_T]:
    """Call a function with the indices of each chunk of the games, in as many threads; return its results."""
    chunks, num_threads = torch.arange(num_games).tensor_split(num_chunks), torch.get_num_threads()

    def limited(chunk: Tensor) -> _T:
        with using_threads(num_threads):
            return function(chunk)

    others = [_pool(os.getpid()).submit(limited, chunk) for chunk in chunks[1:]]
    try:
        first = function(chunks[0])
    finally:
        wait(others)
    return [first, *(other.result() for other in others)]


# --- the threads of OpenMP


@contextlib.contextmanager
def using_threads(num_threads: int) -> Iterator[None]:
    """Let PyTorch's operations use this many threads where this thread calls them; others are not affected.

    `torch.set_num_threads` would also count for threads that first use PyTorch meanwhile. Where OpenMP cannot
    be asked, nothing is changed.

    Args:
        num_threads: At least 1.
    """
    before, library = torch.get_num_threads(), openmp()  # the question also sets up a thread that is new
    if library is None or num_threads == before:
        yield
        return
    set_mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)  # on x86, its own number counts
    mkl_before = None if set_mkl is None else set_mkl(num_threads)
    library.omp_set_num_threads(num_threads)
    try:
        yield
    finally:
        library.omp_set_num_threads(before)
        if set_mkl is not None:
            set_mkl(mkl_before)


@functools.cache
def openmp() -> Any:
    """The libraries that PyTorch uses, if their OpenMP can be called; it can on Linux and macOS."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(torch._C.__file__)  # also finds what is in the libraries that this one needs
        return library if library.omp_set_num_threads is not None else None
    return None


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads for further chunks; a forked process does not inherit them and gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="diamond_gym")


# --- the work of a step


def flops_of_a_game(world_model: WorldModel) -> float:
    """Return the FLOPs of a step of one game: those of the convolutions and the LSTM, nearly all."""
    rew_end_model = world_model.rew_end_model
    lstm = 2 * sum(weight.numel() for weight in rew_end_model.lstm.parameters())
    denoiser = world_model.config.num_passes * _flops_of_denoiser(world_model)
    return denoiser + _flops_of_encoder(rew_end_model) + lstm


def _flops_of_denoiser(world_model: WorldModel) -> float:
    network, (h, w) = world_model.denoiser.inner_model, world_model.rew_end_model.config.frame_size
    unet, pixels = network.unet, h * w / network.patch_size**2
    down = zip(unet.downsamples, unet.d_blocks, strict=True)
    up = [*zip(unet.upsamples, unet.u_blocks, strict=True)][::-1]
    flops = _flops_at(pixels, network.conv_in, network.conv_out)
    for i, pairs in enumerate(zip(down, up, strict=True)):
        flops += sum(_flops_at(pixels / 4**i, *modules) for modules in pairs)
    return flops + _flops_at(pixels / 4 ** (len(up) - 1), unet.mid_blocks)


def _flops_of_encoder(rew_end_model: RewEndModel) -> float:
    encoder, (h, w) = rew_end_model.encoder, rew_end_model.config.frame_size
    pixels, last = h * w / encoder.patch_size**2, len(rew_end_model.config.channels) - 1
    levels = enumerate(zip(encoder.downsamples, encoder.blocks, strict=True))
    flops = sum(_flops_at(pixels / 4 ** min(i, last), *modules) for i, modules in levels)
    return flops + _flops_at(pixels, encoder.conv_in)


def _flops_at(pixels: float, *modules: nn.Module) -> float:
    """FLOPs of the convolutions of some modules whose images have this many pixels."""
    weights = (weight for module in modules for weight in module.parameters() if weight.ndim == 4)
    return 2 * pixels * sum(weight.numel() for weight in weights)


# --- joining chunks


def _joined(
    chunks: Sequence[tuple[WorldModelState, WorldModelStep]],
) -> tuple[WorldModelState, WorldModelStep]:
    states, steps = zip(*chunks, strict=True)
    state = WorldModelState(*map(torch.cat, zip(*(state.tensors() for state in states), strict=True)))
    names = [f.name for f in fields(WorldModelStep) if f.name != "trajectory"]
    joined = {name: torch.cat([getattr(step, name) for step in steps]) for name in names}
    trajectories = zip(*(step.trajectory for step in steps), strict=True)
    return state, WorldModelStep(**joined, trajectory=[*map(torch.cat, trajectories)])

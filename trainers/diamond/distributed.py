"""Data-parallel training: what rank 0 does, how batches are sharded, and what is all-reduced.

Rank 0 collects, evaluates and writes; every rank computes its shard of every batch. Losses, gradients and
metrics are sums over the ranks. For a single process all of this does nothing. Gradients are all-reduced here
and not by DistributedDataParallel, which sees only `forward`: losses call other methods of the networks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainers.diamond.errors import PROCESS_LOST, FirstProcessFailed, ProcessLostError, StopRequested

_STEP_TIMEOUT = timedelta(minutes=30)
"""How long processes that compute together wait for each other."""
_WAIT_TIMEOUT = timedelta(days=7)
"""How long the others wait while rank 0 works alone; if it dies, they know at once."""
_TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        local_rank: Number of this process on its machine, which is also that of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    _patient: Any = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that collects, evaluates and writes."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Which of `count` things belong to this process; `count` is a multiple of `world_size`."""
        assert count % self.world_size == 0, f"{count} things cannot be shared by {self.world_size} processes"
        each = count // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.world_size == 1:
            return x
        x = x.clone()
        with _all_there():
            dist.all_reduce(x)
        return x

    def all_reduce_(self, tensors: list[Tensor]) -> None:
        """Replace tensors of one type by their sums over the processes, in one message."""
        if self.world_size == 1:
            return
        sums = self.all_reduce(torch.cat([x.flatten() for x in tensors])).split([x.numel() for x in tensors])
        for x, total in zip(tensors, sums, strict=True):
            x.copy_(total.view_as(x))

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set in any process; this does not wait for a GPU."""
        counts = torch.tensor(flags, dtype=torch.int64)
        return [bool(count) for count in (flags if self.world_size == 1 else self.all_reduce(counts))]

    def on_rank_zero(self, work: Callable[[], _T]) -> _T:
        """Do `work` on rank 0 and return its result on every rank; the others wait for it.

        Raises:
            StopRequested: `work` raised it.
            FirstProcessFailed: On the other ranks, when `work` failed.
            ProcessLostError: A process is gone.
        """
        if self.world_size == 1:
            return work()
        if not self.is_rank_zero:
            error, result = self._hear()
            if error is not None:
                raise error
            return result
        try:
            result = work()
        except BaseException as error:
            with suppress(ProcessLostError):
                self._tell(
                    StopRequested() if isinstance(error, StopRequested) else FirstProcessFailed(), None
                )
            raise
        self._tell(None, result)
        return result

    def _tell(self, *what: Any) -> None:
        with _all_there():
            dist.broadcast_object_list([what], src=0, group=self._patient)

    def _hear(self) -> tuple[Exception | None, Any]:
        box: list[Any] = [None]
        with _all_there():
            dist.broadcast_object_list(box, src=0, group=self._patient)
        return box[0]

    def gather(self, state: Any) -> Any:
        """On rank 0, return the shards of all ranks put together; on the others, their own.

        Args:
            state: Dictionaries of tensors and lists with an entry for each sharded thing; under the key
                `REPLICATED`, what is the same in all processes.
        """
        if self.world_size == 1 or not state:
            return state
        states = [None] * self.world_size if self.is_rank_zero else None
        with _all_there():
            dist.gather_object(_on_cpu(state), states, dst=0, group=self._patient)
        return state if states is None else _concatenated(states)

    def shard_state(self, state: Any) -> Any:
        """This process's shard of what `gather` put together; the number of processes may have changed."""
        if isinstance(state, dict):
            return {name: x if name == REPLICATED else self.shard_state(x) for name, x in state.items()}
        return state if self.world_size == 1 else state[self.shard(len(state))]


REPLICATED = "common"
"""In a sharded state, the key of what is the same in every process."""

SINGLE_PROCESS = Group()
"""The group of a single process."""


@contextmanager
def process_group() -> Iterator[Group]:
    """The processes that torchrun started; `SINGLE_PROCESS` without it.

    Raises:
        ProcessLostError: The others do not answer.
    """
    if not os.environ.keys() >= _TORCHRUN or int(os.environ["WORLD_SIZE"]) == 1:
        yield SINGLE_PROCESS
        return
    # gloo beside NCCL: messages on the CPU do not wait for the GPU
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _all_there():
        dist.init_process_group(backend, timeout=_STEP_TIMEOUT)
        patient = dist.new_group(backend="gloo", timeout=_WAIT_TIMEOUT)
    yield Group(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]), patient)
    dist.destroy_process_group()  # not after an error: it would wait for processes that are gone


@contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the backends, which have many kinds
        reason = str(error).strip().partition("\n")[0]
        raise ProcessLostError(
            f"{PROCESS_LOST}, or does not answer ({reason}); `resume` continues from the last saved epoch"
        ) from error


def _on_cpu(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _on_cpu(x) for name, x in state.items()}
    return state.cpu() if isinstance(state, Tensor) else state


def _concatenated(states: list[Any]) -> Any:
    if isinstance(states[0], dict):
        first = states[0]
        return {
            name: x if name == REPLICATED else _concatenated([state[name] for state in states])
            for name, x in first.items()
        }
    if isinstance(states[0], Tensor):
        return torch.cat(states)
    return [x for state in states for x in state]

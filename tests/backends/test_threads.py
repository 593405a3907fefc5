"""The number of threads of a step: it follows the work, and is nobody else's."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from diamond_gym.backends import threads
from diamond_gym.backends.build import build_world_model
from diamond_gym.backends.threads import ThreadedWorldModel, divide, flops_of_a_game, using_threads
from diamond_gym.checkpoints import load_world
from diamond_gym.world.sampler import DiffusionSamplerConfig
from diamond_gym.world.world_model import WorldModel
from tests.worlds import PLAIN, starts, tiny_agent

CONFIG = DiffusionSamplerConfig(num_steps_denoising=2)
EMBEDDED, PAPER = 0.73e9, 18.7e9
"""FLOPs of a step of one game."""

needs_openmp = pytest.mark.skipif(threads.openmp() is None, reason="OpenMP's threads cannot be set here")


@pytest.fixture
def world_model() -> WorldModel:
    return build_world_model(tiny_agent(), CONFIG, **PLAIN)


@pytest.fixture
def plain() -> WorldModel:
    agent = tiny_agent()
    return WorldModel(agent.denoiser, agent.rew_end_model, CONFIG)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def any_work_pays(monkeypatch):
    """A further thread from two games on: what is tested is small."""
    monkeypatch.setattr(threads, "FLOPS_WORTH_A_THREAD", 1.0)


def start(world_model, num_games):
    return world_model.start(*starts(num_games), torch.arange(num_games))


def psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean()))


def in_a_new_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize(
    ("num_games", "flops", "max_threads", "expected"),
    [
        (1, EMBEDDED, 2, (1, 1)),
        (16, EMBEDDED, 2, (1, 1)),
        (32, EMBEDDED, 2, (2, 1)),
        (32, EMBEDDED, 1, (1, 1)),
        (64, EMBEDDED, 16, (4, 1)),
        (1024, EMBEDDED, 16, (16, 1)),
        (1, PAPER, 1, (1, 1)),
        (1, PAPER, 16, (1, 16)),
        (2, PAPER, 2, (1, 2)),
        (6, PAPER, 16, (3, 5)),
        (32, PAPER, 16, (16, 1)),
        (0, EMBEDDED, 2, (1, 1)),
    ],
)
def test_threads_follow_the_work(num_games, flops, max_threads, expected):
    assert divide(num_games, flops, max_threads) == expected


def flops_of_convolution(x, weight, *args, out_shape, **kwargs):
    return conv_flop_count(x, weight, out_shape)


@pytest.mark.parametrize("order", [1, 2])
def test_the_work_is_what_pytorch_counts(world_model, order):
    world_model = world_model.resampled(DiffusionSamplerConfig(num_steps_denoising=2, order=order))
    state = start(world_model, 1)
    convolution = torch.ops.mkldnn._convolution_pointwise
    with FlopCounterMode(display=False, custom_mapping={convolution: flops_of_convolution}) as counter:
        world_model.step(state, state.act[:, -1])
    assert flops_of_a_game(world_model) == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP may be missing elsewhere")
def test_openmp_can_be_asked_on_linux():
    """Without this, the tests that need it would be skipped where they are meant to run."""
    assert threads.openmp() is not None


@needs_openmp
def test_a_small_step_uses_one_thread_and_only_where_it_is_made(world_model, two_threads):
    seen = []
    network = world_model.denoiser.inner_model
    forward = network.forward

    def spy(*inputs):
        seen.append((torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)))
        return forward(*inputs)

    network.forward = spy
    world_model.step(start(world_model, 1), torch.tensor([1]))
    assert set(seen) == {(1, 2)}
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 2


@needs_openmp
def test_the_number_comes_back_after_an_error(two_threads):
    with pytest.raises(KeyError), using_threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


@needs_openmp
def test_mkl_counts_the_same_threads(two_threads):
    """MKL multiplies matrices in float32 and has a number of its own."""
    before = torch.__config__.parallel_info()
    if "mkl_get_max_threads" not in before:
        pytest.skip("PyTorch without MKL")
    with using_threads(1):
        assert "mkl_get_max_threads() : 1\n" in torch.__config__.parallel_info()
    assert torch.__config__.parallel_info() == before


def test_where_openmp_cannot_be_asked_nothing_changes(world_model, two_threads, monkeypatch, any_work_pays):
    monkeypatch.setattr(threads, "openmp", lambda: None)
    with using_threads(1):
        assert torch.get_num_threads() == 2
    state, _ = world_model.step(start(world_model, 3), torch.tensor([1, 2, 3]))
    assert len(state) == 3


@needs_openmp
@pytest.mark.parametrize("num_games", [4, 5])
def test_chunks_imagine_what_the_whole_batch_does(world_model, plain, two_threads, any_work_pays, num_games):
    act = torch.arange(num_games) % 4
    seen = []
    forward = world_model.denoiser.inner_model.forward
    world_model.denoiser.inner_model.forward = lambda x, *more: (seen.append(len(x)), forward(x, *more))[1]
    results = [model.step(start(model, num_games), act) for model in (world_model, plain)]
    assert sorted(set(seen)) == sorted({num_games // 2, num_games - num_games // 2})
    (state, step), (plain_state, plain_step) = results
    assert psnr(step.obs, plain_step.obs) > 60  # some pixels differ, where rounding crosses a boundary
    assert torch.equal(state.obs[:, -1], step.obs) and torch.equal(state.time, plain_state.time)
    torch.testing.assert_close(state.hx, plain_state.hx, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(step.logits_end, plain_step.logits_end, rtol=1e-3, atol=1e-3)
    assert torch.equal(step.rew, plain_step.rew) and torch.equal(step.end, plain_step.end)
    assert [x.shape for x in step.trajectory] == [x.shape for x in plain_step.trajectory]


@needs_openmp
def test_frames_are_imagined_in_chunks_too(world_model, plain, two_threads, any_work_pays):
    inputs = (*starts(4), torch.arange(4), torch.tensor([[0, 1], [2, 3], [1, 1], [2, 2]]))
    for padding in (None, torch.tensor([0, 1, 3, 2])):
        frames, plain_frames = (model.imagine(*inputs, padding) for model in (world_model, plain))
        assert frames.shape == plain_frames.shape and psnr(frames[:, 0], plain_frames[:, 0]) > 60


@needs_openmp
def test_chunks_are_the_same_each_time(world_model, two_threads, any_work_pays):
    state = start(world_model, 5)
    steps = [world_model.step(state, torch.zeros(5, dtype=torch.int64))[1] for _ in range(3)]
    assert all(torch.equal(step.trajectory[-1], steps[0].trajectory[-1]) for step in steps)


@needs_openmp
def test_an_error_in_a_chunk_is_raised(world_model, two_threads, any_work_pays):
    with pytest.raises(IndexError):
        world_model.step(start(world_model, 4), torch.tensor([0, 1]))


@needs_openmp
def test_a_forked_process_has_chunks_of_its_own(world_model, two_threads, any_work_pays):
    state, act = start(world_model, 4), torch.arange(4)
    world_model.step(state, act)  # the parent's threads are there

    def step() -> None:
        world_model.step(state, act)

    process = multiprocessing.get_context("fork").Process(target=step)
    process.start()
    process.join(60)
    is_done = process.exitcode == 0
    process.kill()
    assert is_done


def test_another_sampler_keeps_the_way_of_working(world_model):
    other = world_model.resampled(DiffusionSamplerConfig(num_steps_denoising=1))
    assert isinstance(other, ThreadedWorldModel)
    assert flops_of_a_game(other) < flops_of_a_game(world_model)


def keep_busy(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


@needs_openmp
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_a_busy_neighbour_does_not_make_a_game_spin(two_threads):
    """Threads that wait for each other take processor time, however busy the machine already is."""
    world_model = load_world(
        "Breakout", "embedded", device="cpu", dtype="float32", backend="eager"
    ).world_model
    state = start(world_model, 1)
    neighbour = multiprocessing.get_context("spawn").Process(target=keep_busy, args=(0,), daemon=True)
    neighbour.start()
    used: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(15):
        for num_threads, times in used.items():
            torch.set_num_threads(num_threads)
            before = time.process_time()
            world_model.step(state, torch.tensor([1]))
            times.append(time.process_time() - before)
    neighbour.kill()
    assert np.median(used[2]) < np.median(used[1]) / 0.7

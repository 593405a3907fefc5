"""Random numbers: correct (against Random123), independent, and the same in any batch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from diamond_gym.world.noise import Draw, normal, normal_and_uniform, philox4x32, uniform

FRAME_SHAPE = (3, 64, 64)
LARGEST_KEY = 2**63 - 1

# Published with Random123 (kat_vectors, philox4x32 10): counter, key, output.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def int64(*values: int) -> torch.Tensor:
    return torch.tensor([v - 2**64 if v >= 2**63 else v for v in values])


def python_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Compute the cipher in Python integers, as in the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def words_of(key: int, step: int, draw: int, element: int) -> tuple[int, ...]:
    return python_philox((element // 4, draw, step % 2**32, step >> 32), (key % 2**32, key >> 32))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    assert python_philox(counter, key) == expected
    even = int64(counter[0], counter[2]).view(2, 1, 1)
    odd = int64(counter[1], counter[3]).view(2, 1, 1)
    even, odd = philox4x32(even, odd, int64(key[0] + (key[1] << 32)))
    assert (even[0].item(), odd[0].item(), even[1].item(), odd[1].item()) == expected


def test_all_known_answers_in_one_batch():
    counters, keys, expected = (list(column) for column in zip(*KNOWN_ANSWERS, strict=True))
    words = torch.tensor(counters).T.unsqueeze(-1)
    even, odd = philox4x32(words[[0, 2]], words[[1, 3]], int64(*(low + (high << 32) for low, high in keys)))
    got = torch.stack([even[0], odd[0], even[1], odd[1]]).squeeze(-1).T
    assert got.tolist() == [list(answer) for answer in expected]


@pytest.mark.parametrize("key", [0, 1, 2**32, 0x123456789ABCDEF0, LARGEST_KEY])
@pytest.mark.parametrize("step", [0, 7, 2**32 + 3, LARGEST_KEY])
@pytest.mark.parametrize("draw", [Draw.FRAME, Draw.CHURN + 2, 2**32 - 1])
def test_numbers_follow_the_documented_layout(key, step, draw):
    count = 11
    got_uniform = uniform(int64(key), int64(step), draw, (count,))[0]
    got_normal = normal(int64(key), int64(step), draw, (count,))[0]
    for element in range(count):
        words = words_of(key, step, draw, element)
        assert got_uniform[element].item() == (words[element % 4] >> 8) / 2**24
        first, second = words[element % 4 // 2 * 2 :][:2]
        radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
        turn = (math.cos, math.sin)[element % 2](2 * math.pi * second / 2**32)
        assert got_normal[element].item() == pytest.approx(radius * turn, rel=2e-7, abs=1e-9)


@pytest.mark.parametrize("function", [normal, uniform])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 5), (7,), FRAME_SHAPE])
def test_shape_and_dtype(function, shape):
    numbers = function(int64(3, 4), int64(0, 9), Draw.FRAME, shape)
    assert numbers.shape == (2, *shape)
    assert numbers.dtype == torch.float32


@pytest.mark.parametrize("function", [normal, uniform])
def test_no_games_and_no_elements(function):
    assert function(int64()[:0].long(), int64()[:0].long(), 0, (3,)).shape == (0, 3)
    assert function(int64(1), int64(1), 0, (0,)).shape == (1, 0)


@pytest.mark.parametrize("function", [normal, uniform])
@pytest.mark.parametrize("shape", [(), (5,), FRAME_SHAPE])
def test_a_game_gets_the_same_numbers_at_any_batch_size_and_place(function, shape):
    keys = torch.arange(33) * 0x0123456789ABCDE
    steps = torch.arange(33) % 5
    together = function(keys, steps, Draw.FRAME, shape)
    for i in range(33):
        alone = function(keys[i : i + 1], steps[i : i + 1], Draw.FRAME, shape)
        assert torch.equal(alone[0], together[i])
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(function(keys[order], steps[order], Draw.FRAME, shape), together[order])


@pytest.mark.parametrize("function", [normal, uniform])
def test_an_element_does_not_depend_on_how_many_are_drawn(function):
    many = function(int64(5, 6), int64(1, 2), Draw.FRAME, (1000,))
    for count in (1, 2, 3, 4, 5, 63, 998):
        assert torch.equal(function(int64(5, 6), int64(1, 2), Draw.FRAME, (count,)), many[:, :count])


@pytest.mark.parametrize("function", [normal, uniform])
def test_threads_do_not_change_numbers(function):
    threads = torch.get_num_threads()
    keys, steps = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    try:
        torch.set_num_threads(1)
        one = function(keys, steps, Draw.FRAME, FRAME_SHAPE)
        torch.set_num_threads(2)
        two = function(keys, steps, Draw.FRAME, FRAME_SHAPE)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_two_draws_at_once_are_the_draws():
    key, step = int64(3, 2**40 + 1), int64(0, 7)
    z, u = normal_and_uniform(key, step, Draw.FRAME, (3, 5), Draw.REW_END, (2,))
    assert torch.equal(z, normal(key, step, Draw.FRAME, (3, 5)))
    assert torch.equal(u, uniform(key, step, Draw.REW_END, (2,)))


def test_arguments_and_the_global_generator_are_left_alone():
    keys, steps = int64(11, 12), int64(3, 4)
    state = torch.random.get_rng_state()
    first = normal(keys, steps, Draw.FRAME, FRAME_SHAPE)
    torch.manual_seed(1)
    second = normal(keys, steps, Draw.FRAME, FRAME_SHAPE)
    torch.random.set_rng_state(state)
    normal(keys, steps, Draw.FRAME, FRAME_SHAPE)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert keys.tolist() == [11, 12] and steps.tolist() == [3, 4]


def test_every_bit_of_the_key_and_of_the_step_counts():
    base = uniform(int64(0), int64(0), 0, (4,))[0]
    powers = int64(*(2**i for i in range(63)))
    by_key = uniform(powers, torch.zeros_like(powers), 0, (4,))
    by_step = uniform(torch.zeros_like(powers), powers, 0, (4,))
    everything = torch.cat([base[None], by_key, by_step])
    assert len({tuple(row) for row in everything.tolist()}) == 1 + 63 + 63


def test_purposes_differ():
    draws = [*Draw, Draw.CHURN + 1, Draw.CHURN + 2]
    rows = {tuple(uniform(int64(9), int64(9), draw, (4,))[0].tolist()) for draw in draws}
    assert len(rows) == len(draws)
    assert max(Draw) is Draw.CHURN


def test_draw_outside_32_bits_is_refused():
    for draw in (-1, 2**32):
        with pytest.raises(AssertionError, match="32 bits"):
            uniform(int64(0), int64(0), draw, (1,))


def test_uniform_range_and_moments():
    u = uniform(torch.arange(64), torch.zeros(64, dtype=torch.int64), Draw.REW_END, (4096,)).double()
    count = u.numel()
    assert u.min() >= 0 and u.max() < 1
    assert u.min() < 1e-4 and u.max() > 1 - 1e-4
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    counts = torch.histc(u.float(), bins=256, min=0, max=1)
    chi2 = ((counts - count / 256) ** 2 / (count / 256)).sum().item()
    assert 255 - 5 * math.sqrt(510) < chi2 < 255 + 5 * math.sqrt(510)


def test_normal_moments_and_tails():
    z = normal(torch.arange(64), torch.zeros(64, dtype=torch.int64), Draw.FRAME, (16384,)).double()
    count = z.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / count), power
    for threshold in (1.0, 2.0, 3.0, 4.0):
        expected = math.erfc(threshold / math.sqrt(2))
        share = (z.abs() > threshold).double().mean().item()
        assert abs(share - expected) < 5 * math.sqrt(expected / count), threshold
    assert z.isfinite().all() and z.abs().max() < 6.8


def test_the_largest_normal_is_finite():
    words = torch.tensor([0, 2**32 - 1])
    radius = words.double().add(0.5).mul(2.0**-32).log().mul(-2).sqrt()
    assert radius.isfinite().all() and 6.7 < radius[0] < 6.8 and radius[1] > 0


@pytest.mark.parametrize("neighbours", ["keys", "steps", "draws", "elements"])
def test_neighbouring_streams_are_uncorrelated(neighbours):
    count, shape = 16, (4096,)
    ahead, zeros = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    if neighbours == "keys":
        rows = normal(ahead, zeros, Draw.FRAME, shape)
    elif neighbours == "steps":
        rows = normal(zeros, ahead, Draw.FRAME, shape)
    elif neighbours == "draws":
        rows = torch.cat([normal(zeros[:1], zeros[:1], Draw.CHURN + i, shape) for i in range(count)])
    else:
        rows = normal(zeros[:1], zeros[:1], Draw.FRAME, (count * shape[0],)).view(shape[0], count).T
    correlation = torch.corrcoef(rows.double())
    off_diagonal = correlation[~torch.eye(count, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / math.sqrt(shape[0])
    squares = torch.corrcoef(rows.double() ** 2)
    assert squares[~torch.eye(count, dtype=torch.bool)].abs().max() < 6 / math.sqrt(shape[0])


def test_no_two_streams_share_numbers():
    rows = [
        uniform(int64(key), int64(step), draw, (64,))[0].tolist()
        for key, step, draw in itertools.product((0, 1, 2**32), (0, 1, 2**32), (0, 1, 16))
    ]
    pairs = [tuple(row[i : i + 2]) for row in rows for i in range(0, 64, 2)]
    assert len(set(pairs)) == len(pairs)


@pytest.mark.slow
def test_compiles_without_graph_breaks_to_the_same_numbers(without_shape_checks):
    compiled = torch.compile(
        lambda k, s: (normal(k, s, 0, FRAME_SHAPE), uniform(k, s, 1, (2,))), fullgraph=True
    )
    keys, steps = int64(1, LARGEST_KEY), int64(0, 5)
    z, u = compiled(keys, steps)
    assert torch.equal(u, uniform(keys, steps, 1, (2,)))
    torch.testing.assert_close(z, normal(keys, steps, 0, FRAME_SHAPE), rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
def test_devices_agree_and_a_cuda_graph_replays():
    keys, steps = torch.arange(32) * 0x0123456789ABCDE, torch.arange(32)
    device_keys, device_steps = keys.cuda(), steps.cuda()
    assert torch.equal(uniform(device_keys, device_steps, 1, (2,)).cpu(), uniform(keys, steps, 1, (2,)))
    expected = normal(keys, steps, Draw.FRAME, FRAME_SHAPE)
    got = normal(device_keys, device_steps, Draw.FRAME, FRAME_SHAPE).cpu()
    torch.testing.assert_close(got, expected, rtol=2e-7, atol=1e-12)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = normal(device_keys, device_steps, Draw.FRAME, FRAME_SHAPE)
    device_steps += 1
    graph.replay()
    torch.testing.assert_close(
        captured.cpu(), normal(keys, steps + 1, Draw.FRAME, FRAME_SHAPE), rtol=2e-7, atol=1e-12
    )

"""`bn_act` on emulated CUDA kernels: in three launches, on chip, and in clusters of blocks.

Cases are covering pairs: each dtype meets each shape, each flag and each order of the threads.
"""

from __future__ import annotations

import sys

import pytest
import torch
from emulated_cases import DTYPES, FLAG, as_maps, cases, unaligned, widened

from fasthg import ops

pytestmark = pytest.mark.slow  # a minute to compile

BN_ACT = sys.modules["fasthg.ops.bn_act"]


def bn_act_case(shape, dtype, residual=False, frozen=False):
    """x, residual, grad_y, beta, gamma and, where they are not the batch's own, mean and var."""
    random = torch.Generator().manual_seed(3)
    x, added, grad_y = (
        as_maps(t) for t in torch.randn(3, *shape, generator=random).to(dtype).unbind()
    )
    beta, gamma, mean, var = (torch.rand(4, shape[1], generator=random) + 0.1).to(widened(dtype))
    return x, added if residual else None, grad_y, beta, gamma, *((mean, var) if frozen else ())


def run_bn_act(x, residual, grad_y, beta, gamma, *frozen, relu, onto=None):
    """y, the statistics and the gradients of x, beta, gamma and the residual."""
    leaves = [x, beta, gamma, residual]
    leaves = [t if t is None else t.to(onto or t.dtype).requires_grad_() for t in leaves]
    x, beta, gamma, residual = leaves
    if frozen:
        stats = tuple(t.to(onto or t.dtype) for t in frozen)
        y = ops.bn_act_inference(x, *stats, beta, gamma, residual, relu=relu)
    else:
        y, *stats = ops.bn_act(x, beta, gamma, residual, relu=relu)
    leaves = [t for t in leaves if t is not None]
    return [y.detach(), *stats, *torch.autograd.grad(y, leaves, grad_y.to(y.dtype))]


def check_bn_act(actual, expected, dtype, error, grad_y):
    # The gradient of x is a difference of terms as large as grad_y: of one row nothing is left.
    smallest = [0.0] * len(expected)
    smallest[3] = float(grad_y.abs().max())
    for result, right, least in zip(actual, expected, smallest, strict=True):
        size = max(float(right.abs().max()), least)
        bound = error if result.dtype == dtype else min(error, 1e-5)
        torch.testing.assert_close(result.to(right.dtype), right, rtol=bound, atol=8 * bound * size)


THREE_LAUNCHES, ON_CHIP = (0, 0), "on chip"


def take(monkeypatch, path):
    """Make `bn_act` take a path: ON_CHIP, or blocks of a cluster and vectors of its slice."""
    monkeypatch.setattr(BN_ACT, "_ON_CHIP_ROWS", 1 << 30 if path == ON_CHIP else 0)
    monkeypatch.setattr(BN_ACT, "_choose_clusters", lambda *_: path)


@cases(
    ["shape", "relu", "residual", "frozen", "path"],
    DTYPES,
    [(203, 24), (61, 13), (1, 1), (70, 520), (333, 256), (47, 7)],
    *[FLAG] * 3,
    [THREE_LAUNCHES, ON_CHIP, (2, 4), (1, 2)],
)
def test_bn_act(emulated, monkeypatch, order, dtype, error, shape, relu, residual, frozen, path):
    take(monkeypatch, path)
    inputs = bn_act_case(shape, dtype, residual, frozen)
    expected = run_bn_act(*inputs, relu=relu, onto=widened(dtype))
    with emulated(order):
        actual = run_bn_act(*inputs, relu=relu)
    check_bn_act(actual, expected, dtype, error, inputs[2])


# More rows than a block has threads, and a number of rows that is none of theirs.
@cases(["rows"], DTYPES, [1, 31, 1024, 1289])
def test_bn_act_in_one_launch_and_in_three(emulated, monkeypatch, order, dtype, error, rows):
    inputs, results = bn_act_case((rows, 16), dtype, True), []
    for path in (THREE_LAUNCHES, ON_CHIP, ON_CHIP):
        take(monkeypatch, path)
        with emulated(order):
            results.append(run_bn_act(*inputs, relu=True))
    three, one, again = results
    check_bn_act(one, three, dtype, error, inputs[2])
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


def test_bn_act_takes_one_launch_where_its_channels_fit(emulated, switches, monkeypatch):
    def launches(path, rows=64, channels=16, offset=0, frozen=False):
        take(monkeypatch, path)
        x, _, grad_y, beta, gamma, *stats = bn_act_case(
            (rows, channels), torch.bfloat16, frozen=frozen
        )
        if offset:
            x = as_maps(unaligned(x[0, :, :, 0].t().contiguous()))
        x.requires_grad_()
        with emulated("natural"):
            switches.emulation_launches()
            if frozen:
                y = ops.bn_act_inference(x, *stats, beta, gamma, relu=True)
            else:
                y, *_ = ops.bn_act(x, beta, gamma, relu=True)
            forward = switches.emulation_launches()
            torch.autograd.grad(y, x, grad_y)
            return forward, switches.emulation_launches()

    assert launches(THREE_LAUNCHES) == (3, 3)
    for path in (ON_CHIP, (4, 2)):
        assert launches(path) == (1, 1)
        assert launches(path, channels=12) == (3, 3)  # not whole vectors
        assert launches(path, offset=1) == (3, 3)
    assert launches((4, 2)) == (1, 1) and switches.emulation_cluster() == 4
    assert launches(ON_CHIP, frozen=True) == (1, 1)
    assert launches((4, 2), frozen=True) == (1, 3)
    # 16,000 rows of the backward are more than any block gets, and so are 32,000 of the forward.
    assert launches(ON_CHIP, 16000, 8) == (1, 3)
    assert launches(ON_CHIP, 32000, 8) == (3, 3)


@pytest.fixture
def device(switches):
    """A function that emulates another device than an H200 for the rest of the test."""
    yield lambda capability=9, largest_cluster=16, most_shared=227 << 10: switches.emulation_device(
        capability, largest_cluster, most_shared
    )
    switches.emulation_device(9, 16, 227 << 10)


# Of one row for each line of threads and less, and of several batches of rows; a part of a slice,
# and more than one.
@cases(["shape"], DTYPES, [(203, 8), (5000, 24), (17001, 16)])
def test_bn_act_is_the_same_in_every_cluster(
    emulated, monkeypatch, device, order, dtype, error, shape
):
    inputs, results = bn_act_case(shape, dtype, True), []
    for path in ((1, 2), (2, 4), (8, 2), (16, 4), THREE_LAUNCHES):
        take(monkeypatch, path)
        with emulated(order):
            results.append(run_bn_act(*inputs, relu=True))
    one, *others, three = results
    check_bn_act(one, three, dtype, error, inputs[2])
    # Room for a few rows and for none: the others are read again.
    for most_shared in (48 << 10, 16 << 10):
        device(most_shared=most_shared)
        take(monkeypatch, (2, 2))
        with emulated(order):
            others.append(run_bn_act(*inputs, relu=True))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# The ReLU's mask is computed from x again where a row is read again.
@pytest.mark.parametrize("relu", FLAG)
@pytest.mark.parametrize("most_shared", [227 << 10, 16 << 10])
def test_bn_act_in_clusters_without_a_residual(emulated, monkeypatch, device, most_shared, relu):
    inputs = bn_act_case((9000, 24), torch.bfloat16)
    expected = run_bn_act(*inputs, relu=relu, onto=torch.float32)
    device(most_shared=most_shared)
    take(monkeypatch, (2, 2))
    with emulated("natural"):
        actual = run_bn_act(*inputs, relu=relu)
    check_bn_act(actual, expected, torch.bfloat16, 2.0**-8 + 1e-6, inputs[2])


def test_clusters_are_taken_where_they_fill_the_gpu(emulated, device):
    def chosen(rows, channels, dtype=torch.bfloat16, backward=False):
        with emulated("natural"):
            return BN_ACT._choose_clusters.__wrapped__(dtype, backward, rows, channels, 0)

    large, small = 32 * 64 * 64, 8 * 64 * 64
    assert chosen(large, 128) == chosen(small, 128) == (16, 2)
    # All of the small maps can be kept, and more of the large ones in narrow slices, in two turns.
    assert [chosen(rows, 256) for rows in (small, large)] == [(16, 4), (16, 2)]
    assert chosen(small * 2, 256) == (16, 2)
    assert chosen(small, 64, torch.float32) == chosen(small, 128, torch.float32, True) == (16, 2)
    assert chosen(small, 64) == chosen(small, 132) == THREE_LAUNCHES
    device(largest_cluster=8)
    assert [chosen(small, channels) for channels in (128, 256)] == [THREE_LAUNCHES, (8, 2)]
    device(capability=8)
    assert chosen(small, 256) == THREE_LAUNCHES


def test_bn_act_refuses_a_cluster_that_does_not_divide_the_rows(emulated, monkeypatch):
    inputs = bn_act_case((64, 16), torch.bfloat16)
    for path in ((3, 2), (32, 2), (2, 3)):
        take(monkeypatch, path)
        with emulated("natural"), pytest.raises(RuntimeError, match="a cluster has 1, 2, 4, 8"):
            run_bn_act(*inputs, relu=True)


def test_bn_act_without_gamma(emulated):
    x, _, grad_y, beta, _ = bn_act_case((40, 16), torch.float32)
    expected = run_bn_act(x, None, grad_y, beta, None, relu=True)
    with emulated("natural"):
        actual = run_bn_act(x, None, grad_y, beta, None, relu=True)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@cases(["path"], DTYPES, [THREE_LAUNCHES, ON_CHIP, (2, 2)])
def test_statistics_alone(emulated, monkeypatch, order, dtype, error, path):
    take(monkeypatch, path)
    x, *_ = bn_act_case((61, 16), dtype)
    with emulated(order):
        stats = BN_ACT.moments(x)
    exact = x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)
    for actual, expected in zip(stats, exact, strict=True):
        rtol = max(error, 1e-6)
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=rtol, atol=1e-6)
    torch.testing.assert_close(stats[1].double(), exact[1], rtol=1e-5, atol=1e-6)


@cases(["path", "relu"], DTYPES, [THREE_LAUNCHES, ON_CHIP, (2, 2)], FLAG)
def test_the_backward_in_two_halves(
    emulated, monkeypatch, switches, order, dtype, error, path, relu
):
    take(monkeypatch, path)
    x, _, grad_y, beta, gamma = bn_act_case((61, 16), dtype)
    by = *BN_ACT.moments(x), beta, gamma
    whole = BN_ACT.gradients(grad_y, x, None, *by, relu, False, 1e-3)
    with emulated(order):
        switches.emulation_launches()
        sums = BN_ACT.gradient_sums(grad_y, x, *by, relu, 1e-3)
        assert switches.emulation_launches() == 2
        grad_x = BN_ACT.gradient_from_sums(grad_y, x, *by, whole[1:3], relu, 1e-3)
        assert switches.emulation_launches() == 1
    for actual, expected in zip(sums, whole[1:3], strict=True):
        torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=1e-5, atol=1e-5)
    rtol = max(error, 1e-5)
    torch.testing.assert_close(grad_x.double(), whole[0].double(), rtol=rtol, atol=1e-6)

"""Every operator but `bn_act` on emulated CUDA kernels, against the CPU or plain torch in float64.

Cases are covering pairs: each dtype meets each shape, each flag and each order of the threads.
"""

from __future__ import annotations

import sys

import pytest
import torch
from emulated_cases import DTYPES, FLAG, HALVES, WIDE, as_maps, cases, unaligned, widened
from emulated_extension import ORDERS

from fasthg import ops
from fasthg.ops import reference

pytestmark = pytest.mark.slow  # a minute to compile

# batch, parts, height, width: with vector loads, and where a vector would not divide an image
SHAPES = [(2, 7, 16, 16), (3, 5, 9, 7), (1, 1, 1, 1)]
BN_FOLD = sys.modules["fasthg.ops.bn_fold"]
COVARIANCE = sys.modules["fasthg.ops.channel_covariance"]


@cases(["shape", "channels_last"], DTYPES, SHAPES, FLAG)
def test_gaussian_heatmaps(scene, emulated, order, dtype, error, shape, channels_last):
    keypoints, sigmas, visibility = scene(*shape, dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs = (keypoints, sigmas, shape[2:], visibility)
    expected = ops.gaussian_heatmaps(*inputs, dtype=widened(dtype), memory_format=layout)
    with emulated(order):
        actual = ops.gaussian_heatmaps(*inputs, dtype=dtype, memory_format=layout)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=error, atol=1e-7)


def test_gaussian_heatmaps_over_several_blocks(scene, emulated):
    keypoints, sigmas, visibility = scene(1, 3, 64, 61, torch.float32)
    inputs = (keypoints, sigmas, (64, 61), visibility)
    expected = ops.gaussian_heatmaps(*inputs, memory_format=torch.channels_last)
    with emulated("greedy"):
        actual = ops.gaussian_heatmaps(*inputs, memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@cases(["shape", "channels_last", "gaps"], DTYPES, SHAPES, FLAG, FLAG)
def test_heatmap_mse(scene, emulated, order, dtype, error, shape, channels_last, gaps):
    targets = scene(*shape, dtype)
    batch, parts, height, width = shape
    random = torch.Generator().manual_seed(1)
    size = (height, width, parts) if channels_last else (parts, height, width)
    predictions = torch.randn(2, batch * 2, *size, generator=random).to(dtype)
    predictions = predictions[:, ::2] if gaps else predictions[:, :batch]
    if channels_last:
        predictions = predictions.permute(0, 1, 4, 2, 3)

    def loss_and_grad(predictions):
        predictions = predictions.detach().requires_grad_()
        loss = ops.heatmap_mse(predictions, *targets, subpixel=True)
        grad_loss = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
        return loss.detach(), *torch.autograd.grad(loss, predictions, grad_loss)

    expected_loss, expected_grad = loss_and_grad(predictions.to(widened(dtype)))
    with emulated(order):
        loss, grad = loss_and_grad(predictions)
    assert grad.dtype == dtype
    rtol = 1e-6 if dtype != torch.float64 else 1e-13
    torch.testing.assert_close(loss, expected_loss, rtol=rtol, atol=0)
    torch.testing.assert_close(grad.to(expected_grad.dtype), expected_grad, rtol=error, atol=1e-6)


@cases(["shape", "method"], DTYPES, SHAPES, ("argmax", "quarter", "dark", "plateau"))
def test_heatmap_peaks(scene, emulated, order, dtype, error, shape, method):
    keypoints, sigmas, visibility = scene(*shape, torch.float32)
    maps = ops.gaussian_heatmaps(keypoints, sigmas, shape[2:], visibility)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    maps = (maps + noise * 0.05).to(dtype)
    maps[..., ::3, :] = maps[..., ::3, :].clamp(max=0.9)  # plateaus
    maps[0, 0, 0, 0] = torch.nan
    maps = maps.contiguous(memory_format=torch.channels_last)
    expected_xy, expected_score = ops.heatmap_peaks(maps.to(widened(dtype)), method)
    with emulated(order):
        xy, score = ops.heatmap_peaks(maps, method)
    torch.testing.assert_close(xy, expected_xy, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(score, expected_score, rtol=0, atol=0, equal_nan=True)


# With vector loads and without; a tile, a part of one, and several tiles; in one part and in more.
@cases(
    ["shape", "rows_per_part"],
    HALVES,
    [(203, 24), (61, 13), (1, 1), (150, 136), (70, 131), (9, 264)],
    (68, 256),
)
def test_channel_covariance(emulated, monkeypatch, order, dtype, error, shape, rows_per_part):
    monkeypatch.setitem(COVARIANCE._PARTS, "cuda", (rows_per_part, 128))
    random = torch.Generator().manual_seed(shape[0])
    check_covariance(emulated, order, (torch.randn(shape, generator=random) + 0.5).to(dtype))


def check_covariance(emulated, order, rows):
    x = as_maps(rows)
    expected_mean, expected = ops.channel_covariance(x.double())
    with emulated(order):
        mean, covariance = ops.channel_covariance(x)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(covariance.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(covariance, covariance.mT)
    assert (covariance.diagonal() >= 0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_channel_covariance_of_many_parts_off_the_vectors(emulated, monkeypatch, order):
    monkeypatch.setitem(COVARIANCE._PARTS, "cuda", (85, 128))
    rows = torch.randn(1601, 24, generator=torch.Generator().manual_seed(0)).half()
    check_covariance(emulated, order, unaligned(rows))


def test_channel_covariance_leaves_wide_types_to_torch(emulation):
    with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
        emulation.channel_covariance_cuda(0, 0, 2, 8, 1, 0, 0, 0, 0, 0)


# A part of a block, several of them, and inner products in several chunks.
@cases(
    ["folded", "shape"],
    [(torch.float32, 3e-6), (torch.float64, 1e-13)],
    [torch.bfloat16, torch.float16, None],
    [(1, 1), (7, 13), (40, 130), (6, 300), (261, 5)],
)
def test_bn_fold(emulated, order, dtype, error, folded, shape):
    dtype, real = folded or dtype, dtype
    (outputs, inputs), random = shape, torch.Generator().manual_seed(7)
    a = torch.randn(64, inputs, generator=random, dtype=torch.float64) + 0.3
    d = torch.randn(64, outputs, generator=random, dtype=torch.float64)
    weight = torch.randn(shape, generator=random, dtype=torch.float64) / inputs**0.5
    moments = a.mean(0), torch.cov(a.mT, correction=0).view(inputs, inputs)
    # The kernel and the reference start from the same rounded numbers.
    rounded = [t.to(real) for t in (weight, *moments, d[0], d.mT @ a, d.sum(0))]
    weight, mean, covariance, beta, product, total = rounded
    with emulated(order):
        forward = BN_FOLD.run(weight, mean, covariance, beta, 1e-3, dtype)
        results = (product, total, weight, mean, covariance, *forward[2:], len(a), 1e-3, dtype)
        backward = BN_FOLD.gradients(*results)
    weight, mean, covariance, beta, product, total = (t.double() for t in rounded)
    wide = (1e-3, torch.float64)
    expected = reference.bn_fold(weight, mean, covariance, beta, *wide)
    results = (product, total, weight, mean, covariance, *expected[2:], len(a), *wide)
    grads = reference.bn_fold_backward(*results)
    rounding = torch.finfo(dtype).eps if dtype != real else 0
    # Offset and constant belong to the rounded matrices.
    back, mix = (t.double() for t in backward[1:3])
    expected = [expected[0], beta - forward[0].double() @ mean, *expected[2:]]
    grads = [*grads[:3], -(mix @ mean) - back @ (total / len(a))]
    # Of the weights' gradient, what the norm takes off again may be nearly all.
    sizes = [*expected, product, *grads[1:3], back.abs() @ (total.abs() / len(a))]
    everything = zip([*forward, *backward], [*expected, *grads], sizes, strict=True)
    for actual, right, size in everything:
        scale = float(size.abs().max())
        narrow = rounding if actual.dtype == dtype else 0
        torch.testing.assert_close(
            actual.double(), right, rtol=error + narrow, atol=20 * error * scale + narrow * scale
        )


def test_bn_fold_of_no_rows(emulated):
    weight, mean, covariance = torch.ones(3, 5), torch.zeros(5), torch.zeros(5, 5)
    nothing = torch.zeros(3)
    with emulated("natural"):
        _, _, *moments = BN_FOLD.run(weight, mean, covariance, nothing, 1e-3, torch.float32)
        results = (0 * weight, nothing, weight, mean, covariance, *moments, 0, 1e-3, torch.float32)
        grad_weight, back, mix, constant = BN_FOLD.gradients(*results)
    assert not any(t.any() for t in (grad_weight, mix, constant))
    torch.testing.assert_close(back, torch.full((5, 3), 1e-3**-0.5))


def test_bn_fold_of_a_variance_that_overflows(emulated):
    weight = torch.tensor([[1.0, -1.0], [2.0, 1.0], [0.5, 0.0]])
    mean, beta = torch.tensor([1e30, -1e30]), torch.tensor([1.0, 2.0, 3.0])
    covariance = torch.tensor([[torch.inf, torch.nan], [torch.nan, torch.inf]])
    product, total = torch.full((3, 2), 1e30), torch.ones(3)
    for variances, var_out in (((torch.inf, torch.inf), torch.inf), ((1.0, torch.nan), torch.nan)):
        covariance.diagonal().copy_(torch.tensor(variances))
        arguments = (weight, mean, covariance, beta, 1e-3, torch.bfloat16)
        with emulated("natural"):
            forward = BN_FOLD.run(*arguments)
            backward = BN_FOLD.gradients(
                *(product, total, weight, mean, covariance, *forward[2:]),
                *(9, 1e-3, torch.bfloat16),
            )
        expected = reference.bn_fold(*arguments)
        # A weight of 0 is no weight of an infinite variance: NaN, which is seen.
        assert torch.equal(forward[3].nan_to_num(7.0), expected[3].nan_to_num(7.0))
        torch.testing.assert_close(forward[3][:2], torch.full((2,), var_out), equal_nan=True)
        if var_out == torch.inf:
            assert not forward[0][:2].any() and torch.equal(forward[1][:2], beta[:2])
            assert not backward[0][:2].any()


def test_bn_fold_takes_wide_types_only(emulated):
    half = torch.zeros(1, 1).half()
    with emulated("natural"), pytest.raises(RuntimeError, match="takes float32 and float64"):
        BN_FOLD.run(half, half[0], half, half[0], 1e-3, torch.half)


@cases(
    ["case", "without"],
    WIDE,
    # weights, statistics, first address: with vectors, where one would cross a border, unaligned
    [(1028, 8, 0), (1025, 7, 0), (1028, 7, 0), (1028, 8, 1)],
    ["", "momenta", "averages", "found_inf", "step"],
)
def test_rmsprop_ema(emulated, order, dtype, error, case, without):
    weights, statistics, first = case
    total = weights + statistics
    lengths = {"values": total, "gradient": weights, "squares": weights, "momenta": weights}

    def step():
        random = torch.Generator().manual_seed(4)
        tensors = {
            name: torch.rand(length + first, generator=random).to(dtype)[first:]
            for name, length in {**lengths, "averages": total}.items()
        }
        tensors |= {"rate": torch.tensor(0.1).to(dtype)}
        tensors["average_weight"] = torch.tensor(0.3).to(dtype)
        tensors["found_inf"] = torch.tensor(float(without == "step"))
        if without in tensors:
            tensors[without] = None
        if without == "averages":
            tensors["average_weight"] = None
        numbers = {"decayed": 1001, "weight_decay": 0.1, "decay": 0.9, "eps": 0.5}
        momentum = 0.0 if without == "momenta" else 0.5
        ops.rmsprop_ema(**tensors, **numbers, momentum=momentum)
        return tensors

    expected = step()
    with emulated(order):
        actual = step()
    for name in ("values", "squares", "momenta", "averages"):
        if expected[name] is not None:
            torch.testing.assert_close(actual[name], expected[name], rtol=error, atol=error)


# count, first address: with vectors, where one would cross the end, and unaligned
@cases(["case"], WIDE, [(2052, 0), (1027, 0), (1028, 1), (1, 0)])
def test_moving_statistics(emulated, order, dtype, error, case):
    count, first = case
    random = torch.Generator().manual_seed(5)
    running, batch, correction = (
        torch.rand(count + first, generator=random).to(dtype)[first:] for _ in range(3)
    )
    weight = torch.tensor(0.3, dtype=dtype)
    expected = torch.lerp(running, batch * correction, weight)
    with emulated(order):
        ops.moving_statistics(running, batch, correction, weight)
    torch.testing.assert_close(running, expected, rtol=error, atol=error)


# low's rows, width, channels: with vectors, where one would not divide the channels, several blocks
@cases(["shape", "aligned"], DTYPES, [(3, 5, 16), (3, 4, 13), (1, 1, 1), (2, 37, 64)], FLAG)
def test_upsample2x_add(emulated, order, dtype, error, shape, aligned):
    rows, width, channels = shape
    random = torch.Generator().manual_seed(5)
    low = torch.randn(shape, generator=random).to(dtype)
    high = torch.randn(2 * rows, 2 * width, channels, generator=random).to(dtype)
    if not aligned:
        low, high = unaligned(low), unaligned(high)

    def run(low, high):
        low = as_maps(low).requires_grad_()
        y = ops.upsample2x_add(low, as_maps(high))
        return y.detach(), *torch.autograd.grad(y, low, as_maps(high))

    expected = run(low.to(widened(dtype)), high.to(widened(dtype)))
    with emulated(order):
        results = run(low, high)
    for actual, right in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.to(right.dtype), right, rtol=error, atol=1e-7)


def run_max_pool2x(x, grad_y):
    """Of x (batch, height, width, channels): result, index and gradient."""
    x = x.permute(0, 3, 1, 2).requires_grad_()
    y, index = ops.max_pool2x(x)
    grad_y = grad_y.permute(0, 3, 1, 2)
    grad_x = torch.autograd.grad(y, x, grad_y)
    added = torch.autograd.grad(ops.max_pool2x_fork(x), x, (x.detach(), grad_y))
    return y.detach(), index, *grad_x, *added


# batch, height, width, channels of x: with vectors, odd sides, a side of 1, several blocks
@cases(
    ["shape", "aligned"],
    DTYPES,
    [(2, 4, 6, 16), (2, 5, 7, 16), (1, 3, 4, 13), (1, 2, 2, 1), (1, 2, 75, 64)],
    FLAG,
)
def test_max_pool2x(emulated, order, dtype, error, shape, aligned):
    batch, height, width, channels = shape
    random = torch.Generator().manual_seed(6)
    x = (torch.randn(shape, generator=random) * 3).round().to(dtype)
    x.view(-1)[::17] = torch.nan
    grad_y = torch.randn(batch, height // 2, width // 2, channels, generator=random).to(dtype)
    if not aligned:
        x = unaligned(x)
    expected = run_max_pool2x(x.to(widened(dtype)), grad_y.to(widened(dtype)))
    with emulated(order):
        results = run_max_pool2x(x, grad_y)
    for actual, right in zip(results, expected, strict=True):
        torch.testing.assert_close(
            actual, right.to(actual.dtype), rtol=0, atol=0, equal_nan=True, check_stride=False
        )


@pytest.mark.parametrize("order", ORDERS)
def test_max_pool2x_of_bfloat16_is_the_same_on_both_sides(emulated, order):
    x = torch.randint(-(2**15), 2**15, (1, 64, 64, 24), generator=torch.Generator().manual_seed(7))
    x = x.to(torch.int16).view(torch.bfloat16)  # every kind of number
    grad_y = x[:, ::2, ::2].contiguous()
    expected = run_max_pool2x(x, grad_y)
    with emulated(order):
        results = run_max_pool2x(x, grad_y)
    for actual, right in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=0, atol=0, equal_nan=True)


def test_maps_too_large_for_a_block_are_refused(scene, emulated):
    keypoints, sigmas, visibility = scene(1, 60, 512, 512, torch.float64)
    with (
        emulated("natural"),
        pytest.raises(RuntimeError, match="too large for the GPU's shared memory"),
    ):
        ops.gaussian_heatmaps(keypoints, sigmas, 512, visibility, memory_format=torch.channels_last)

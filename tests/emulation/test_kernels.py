"""Every operator but `bn_act` on emulated CUDA kernels, against the CPU or plain torch in float64.

Cases are covering pairs: each dtype meets each shape, each flag and each order of the threads.
"""

from __future__ import annotations

import pytest
import torch
from emulated_cases import DTYPES, FLAG, WIDE, as_maps, cases, unaligned, widened
from emulated_extension import ORDERS

from fasthg import ops

pytestmark = pytest.mark.slow  # a minute to compile

# batch, parts, height, width: with vector loads, and where a vector would not divide an image
SHAPES = [(2, 7, 16, 16), (3, 5, 9, 7), (1, 1, 1, 1)]


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

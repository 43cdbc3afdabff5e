"""Every CUDA kernel, run on the host, against its CPU twin."""

from __future__ import annotations

import pytest
import torch

ORDERS = {"natural": 0, "greedy": 1, "greedy backward": 2}
# dtype of the maps and one rounding of a value near 1
DTYPES = [
    (torch.float32, 1e-6),
    (torch.float64, 1e-14),
    (torch.float16, 2.0**-11 + 1e-6),
    (torch.bfloat16, 2.0**-8 + 1e-6),
]
# batch, parts, height, width: with vector loads, and where a vector would not divide an image
SHAPES = [(2, 7, 16, 16), (3, 5, 9, 7), (1, 1, 1, 1)]


@pytest.fixture(params=ORDERS.values(), ids=ORDERS.keys(), autouse=True)
def order(request, library):
    library.emulation_order(request.param)


def widened(dtype):
    """The dtype in which the CPU twin computes what the kernel stores as `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_gaussian_heatmaps(scene, cpu, cuda, dtype, error, shape, channels_last):
    described = scene(*shape, dtype)
    wanted = cpu.gaussian_heatmaps(described, shape[2:], widened(dtype), channels_last)
    got = cuda.gaussian_heatmaps(described, shape[2:], dtype, channels_last)
    torch.testing.assert_close(got.to(wanted.dtype), wanted, rtol=error, atol=1e-7)


def test_gaussian_heatmaps_over_several_blocks(scene, cpu, cuda):
    described = scene(1, 3, 64, 61, torch.float32)
    wanted = cpu.gaussian_heatmaps(described, (64, 61), torch.float32, True)
    got = cuda.gaussian_heatmaps(described, (64, 61), torch.float32, True)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_heatmap_mse(scene, cpu, cuda, dtype, error, shape, channels_last, gaps):
    described = scene(*shape, dtype)
    batch, parts, height, width = shape
    random = torch.Generator().manual_seed(1)
    predictions = torch.randn(2, batch * 2, parts * height * width, generator=random).to(dtype)
    predictions = predictions[:, ::2] if gaps else predictions[:, :batch]
    loss, gradient = cuda.heatmap_mse(described, (height, width), predictions, channels_last)
    wide = predictions.to(widened(dtype))
    wanted, slope = cpu.heatmap_mse(described, (height, width), wide, channels_last)
    torch.testing.assert_close(loss, wanted, rtol=1e-6 if dtype != torch.float64 else 1e-13, atol=0)
    torch.testing.assert_close(gradient.to(slope.dtype), slope, rtol=error, atol=1e-6)


@pytest.mark.parametrize("method", range(4), ids=["argmax", "quarter", "dark", "plateau"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_heatmap_peaks(scene, cpu, cuda, dtype, error, shape, method):
    described = scene(*shape, torch.float32)
    maps = cpu.gaussian_heatmaps(described, shape[2:], torch.float32, False).view(shape)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    maps = (maps + noise * 0.05).to(dtype)
    maps[..., ::3, :] = maps[..., ::3, :].clamp(max=0.9)  # plateaus
    maps[0, 0, 0, 0] = torch.nan
    maps = maps.contiguous(memory_format=torch.channels_last)
    xy, score = cuda.heatmap_peaks(maps, method)
    wanted_xy, wanted_score = cpu.heatmap_peaks(maps.to(widened(dtype)), method)
    torch.testing.assert_close(xy, wanted_xy, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(score, wanted_score, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(203, 24), (61, 13), (1, 1), (70, 520)])
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_bn_act(cpu, cuda, dtype, error, shape, relu, residual, frozen):
    random = torch.Generator().manual_seed(3)
    x, added, of_y = torch.randn(3, *shape, generator=random).to(dtype)
    real = widened(dtype)
    beta, gamma, mean, var = (torch.rand(4, shape[1], generator=random) + 0.1).to(real)
    given = (mean, var) if frozen else None
    arguments = (x, added if residual else None, of_y, beta, gamma)
    wide = [t if t is None else t.to(real) for t in arguments]
    wanted = cpu.bn_act(*wide, relu=relu, given=given)
    got = cuda.bn_act(*arguments, relu=relu, given=given)
    for result, right in zip(got, wanted, strict=True):
        size = float(right.abs().max())
        bound = error if result.dtype == dtype else min(error, 1e-5)
        torch.testing.assert_close(result.to(real), right, rtol=bound, atol=8 * bound * size)


def test_bn_act_without_gamma(cpu, cuda):
    x, of_y = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(4))
    arguments = (x, None, of_y, torch.ones(16), None)
    got, wanted = (kernels.bn_act(*arguments, relu=True) for kernels in (cuda, cpu))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("without", ["", "momenta", "averages", "bfloat16", "found_inf", "step"])
# weights, statistics, first address: with vectors, where one would cross a border, and unaligned
@pytest.mark.parametrize("case", [(1028, 8, 0), (1025, 7, 0), (1028, 7, 0), (1028, 8, 1)])
@pytest.mark.parametrize(("dtype", "error"), DTYPES[:2])
def test_rmsprop_ema(cpu, cuda, dtype, error, case, without):
    weights, statistics, first = case
    numbers = {"decayed": 1001, "weight_decay": 0.1, "decay": 0.9, "momentum": 0.5, "eps": 0.5}
    random = torch.Generator()
    total = weights + statistics
    lengths = {"values": total, "gradient": weights, "squares": weights, "momenta": weights}
    one = {"rate": torch.tensor(0.1), "average_weight": torch.tensor(0.3)}
    results = []
    for kernels in (cpu, cuda):
        random.manual_seed(4)
        buffers = {
            name: torch.rand(length + first, generator=random).to(dtype)[first:]
            for name, length in {**lengths, "averages": total}.items()
        }
        buffers["bfloat16"] = torch.zeros(weights, dtype=torch.bfloat16)
        buffers |= {name: number.to(dtype) for name, number in one.items()}
        buffers["found_inf"] = torch.tensor(float(without == "step"))
        if without in buffers:
            buffers[without] = None
        kernels.rmsprop_ema(buffers, **numbers)
        results.append(buffers)
    for name in ("values", "squares", "momenta", "averages"):
        wanted, got = (result[name] for result in results)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, rtol=error, atol=error)
    if without != "bfloat16":
        rounded = results[1]["values"][:weights].to(torch.bfloat16)
        wanted = torch.zeros_like(rounded) if without == "step" else rounded
        assert torch.equal(results[1]["bfloat16"], wanted)


# low's rows, width, channels: with vectors, where one would not divide the channels, several blocks
@pytest.mark.parametrize("shape", [(3, 5, 16), (3, 4, 13), (1, 1, 1), (2, 37, 64)])
@pytest.mark.parametrize("first", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_upsample2x_add(cpu, cuda, dtype, error, first, shape):
    rows, width, channels = shape
    random = torch.Generator().manual_seed(5)
    low, high = (
        torch.randn(first + size, generator=random).to(dtype)[first:]
        for size in (rows * width * channels, 4 * rows * width * channels)
    )
    low, high = low.view(shape), high.view(2 * rows, 2 * width, channels)
    wanted = cpu.upsample2x_add(low.to(widened(dtype)), high.to(widened(dtype)))
    for got, right in zip(cuda.upsample2x_add(low, high), wanted, strict=True):
        torch.testing.assert_close(got.to(right.dtype), right, rtol=error, atol=1e-7)


# batch, height, width, channels of x: with vectors, odd sides, a side of 1, several blocks
@pytest.mark.parametrize(
    "shape", [(2, 4, 6, 16), (2, 5, 7, 16), (1, 3, 4, 13), (1, 2, 2, 1), (1, 2, 75, 64)]
)
@pytest.mark.parametrize("first", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", [dtype for dtype, _ in DTYPES])
def test_max_pool2x(cpu, cuda, dtype, first, shape):
    batch, height, width, channels = shape
    random = torch.Generator().manual_seed(6)
    halved = (batch, height // 2, width // 2, channels)
    x = torch.randn(first + batch * height * width * channels, generator=random)
    x = (x * 3).round().to(dtype)[first:].view(shape)
    x.view(-1)[::17] = torch.nan
    of_y = torch.randn(halved, generator=random).to(dtype)
    wanted = cpu.max_pool2x(x.to(widened(dtype)), of_y.to(widened(dtype)))
    for got, right in zip(cuda.max_pool2x(x, of_y), wanted, strict=True):
        torch.testing.assert_close(got.to(right.dtype), right, rtol=0, atol=0, equal_nan=True)


def test_max_pool2x_of_bfloat16_is_the_same_on_both_sides(cpu, cuda):
    x = torch.randint(-(2**15), 2**15, (1, 64, 64, 24), generator=torch.Generator().manual_seed(7))
    x = x.to(torch.int16).view(torch.bfloat16)  # every kind of number
    of_y = x[:, ::2, ::2].contiguous()
    for got, right in zip(cuda.max_pool2x(x, of_y), cpu.max_pool2x(x, of_y), strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=0, equal_nan=True)


def test_maps_too_large_for_a_block_are_refused(scene, cuda):
    with pytest.raises(RuntimeError, match="too large for the GPU's shared memory"):
        cuda.gaussian_heatmaps(
            scene(1, 60, 512, 512, torch.float64), (512, 512), torch.float64, True
        )

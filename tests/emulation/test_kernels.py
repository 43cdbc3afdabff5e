"""Every CUDA kernel, run on the host, against its CPU twin or plain torch in float64."""

from __future__ import annotations

import sys

import pytest
import torch

from fasthg.ops import reference

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


def bn_act_case(shape, dtype, residual, frozen):
    """Arguments of `Kernels.bn_act`, and given statistics or None."""
    random = torch.Generator().manual_seed(3)
    x, added, grad_y = torch.randn(3, *shape, generator=random).to(dtype)
    beta, gamma, mean, var = (torch.rand(4, shape[1], generator=random) + 0.1).to(widened(dtype))
    arguments = (x, added if residual else None, grad_y, beta, gamma)
    return arguments, (mean, var) if frozen else None


def check_bn_act(got, wanted, dtype, error):
    for result, right in zip(got, wanted, strict=True):
        size = float(right.abs().max())
        bound = error if result.dtype == dtype else min(error, 1e-5)
        torch.testing.assert_close(result.to(right.dtype), right, rtol=bound, atol=8 * bound * size)


@pytest.mark.parametrize("on_chip", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(203, 24), (61, 13), (1, 1), (70, 520)])
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_bn_act(cpu, cuda, dtype, error, shape, relu, residual, frozen, on_chip):
    arguments, given = bn_act_case(shape, dtype, residual, frozen)
    real = widened(dtype)
    wide = [t if t is None else t.to(real) for t in arguments]
    wanted = cpu.bn_act(*wide, relu=relu, given=given)
    got = cuda.bn_act(*arguments, relu=relu, given=given, on_chip=on_chip)
    check_bn_act(got, wanted, dtype, error)


# More rows than a block has threads, and a number of rows that is none of theirs.
@pytest.mark.parametrize("rows", [1, 31, 1024, 1289])
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_bn_act_in_one_launch_and_in_three(cuda, dtype, error, rows):
    arguments, _ = bn_act_case((rows, 16), dtype, True, False)
    three, one, again = (
        cuda.bn_act(*arguments, relu=True, on_chip=once) for once in (False, True, True)
    )
    check_bn_act(one, three, dtype, error)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


def test_bn_act_takes_one_launch_where_its_channels_fit(cuda):
    def sums_in_workspace(on_chip, rows=64, channels=16, offset=0, frozen=False):
        arguments, given = bn_act_case((rows, channels), torch.bfloat16, False, frozen)
        if offset:
            x = arguments[0]
            shifted = torch.cat([x.flatten()[:offset], x.flatten()])[offset:].view_as(x)
            arguments = (shifted, *arguments[1:])
        cuda.bn_act(*arguments, relu=True, given=given, on_chip=on_chip)
        return cuda.sums_in_workspace

    assert sums_in_workspace(False) == (True, True)
    assert sums_in_workspace(True) == (False, False)
    assert sums_in_workspace(True, channels=12) == (True, True)  # not whole vectors
    assert sums_in_workspace(True, offset=1) == (True, True)
    assert sums_in_workspace(True, frozen=True) == (False, False)
    # 16,000 rows of the backward are more than any block gets, and so are 32,000 of the forward.
    assert sums_in_workspace(True, 16000, 8) == (False, True)
    assert sums_in_workspace(True, 32000, 8) == (True, True)


def test_bn_act_without_gamma(cpu, cuda):
    x, grad_y = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(4))
    arguments = (x, None, grad_y, torch.ones(16), None)
    got, wanted = (kernels.bn_act(*arguments, relu=True) for kernels in (cuda, cpu))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on_chip", [False, True])
@pytest.mark.parametrize(("dtype", "error"), DTYPES)
def test_statistics_alone(cpu, cuda, dtype, error, on_chip):
    (x, *_), _ = bn_act_case((61, 16), dtype, False, False)
    for got, wanted in zip(
        cuda.moments(x, on_chip=on_chip), cpu.moments(x.to(widened(dtype))), strict=True
    ):
        torch.testing.assert_close(got, wanted.to(got.dtype), rtol=max(error, 1e-6), atol=1e-6)
    torch.testing.assert_close(got.double(), x.double().var(0, correction=0), rtol=1e-5, atol=1e-6)


# With vector loads and without; a tile, a part of one, and tiles beside each other.
@pytest.mark.parametrize("shape", [(203, 24), (61, 13), (1, 1), (150, 136), (70, 131), (9, 264)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_channel_covariance(cpu, cuda, dtype, shape):
    random = torch.Generator().manual_seed(shape[0])
    x = (torch.randn(shape, generator=random) + 0.5).to(dtype)
    mean, covariance = cuda.channel_covariance(x, min(shape[0], 3))
    wanted_mean, wanted = cpu.channel_covariance(x.double(), 1)
    torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(covariance.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(covariance, covariance.mT)
    assert (covariance.diagonal() >= 0).all()


def test_channel_covariance_of_many_parts_off_the_vectors(cpu, cuda):
    x = torch.randn(1601 * 24 + 1, generator=torch.Generator().manual_seed(0)).half()
    x = x[1:].view(1601, 24)  # starts beside a multiple of 16 bytes
    mean, covariance = cuda.channel_covariance(x, 19)
    wanted_mean, wanted = cpu.channel_covariance(x.double(), 1)
    torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(covariance.double(), wanted, rtol=1e-5, atol=1e-5)


def test_channel_covariance_leaves_wide_types_to_torch(cuda):
    with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
        cuda.channel_covariance(torch.zeros(2, 8), 1)


# A part of a block, several of them, and inner products in several chunks.
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (40, 130), (6, 300), (261, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("real", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_bn_fold(cuda, real, error, dtype, shape):
    outputs, inputs = shape
    random = torch.Generator().manual_seed(outputs)
    a = torch.randn(97, inputs, generator=random, dtype=torch.float64) + 0.5
    d = torch.randn(97, outputs, generator=random, dtype=torch.float64)
    weight = torch.randn(shape, generator=random, dtype=torch.float64) / inputs**0.5
    moments = a.mean(0), torch.cov(a.mT, correction=0).view(inputs, inputs)
    beta, product, total = d[0], d.mT @ a, d.sum(0)
    # The kernel and the reference start from the same rounded numbers.
    given = [t.to(real) for t in (weight, *moments, beta, product, total)]
    weight, mean, covariance, beta, product, total = given
    forward, backward = cuda.bn_fold(
        weight, (mean, covariance), beta, product, total, len(a), dtype
    )
    weight, mean, covariance, beta, product, total = (t.double() for t in given)
    wide = (1e-3, torch.float64)
    wanted = reference.bn_fold(weight, mean, covariance, beta, *wide)
    results = (product, total, weight, mean, covariance, *wanted[2:], len(a), *wide)
    slopes = reference.bn_fold_backward(*results)
    rounding = torch.finfo(dtype).eps if dtype != real else 0
    # Offset and constant belong to the rounded matrices.
    back, mix = (t.double() for t in backward[1:3])
    wanted = [wanted[0], beta - forward[0].double() @ mean, *wanted[2:]]
    slopes = [*slopes[:3], -(mix @ mean) - back @ (total / len(a))]
    # Of the weights' gradient, what the norm takes off again may be nearly all.
    sizes = [*wanted, product, *slopes[1:3], back.abs() @ (total.abs() / len(a))]
    for got, right, size in zip([*forward, *backward], [*wanted, *slopes], sizes, strict=True):
        scale = float(size.abs().max())
        narrow = rounding if got.dtype == dtype else 0
        torch.testing.assert_close(
            got.double(), right, rtol=error + narrow, atol=20 * error * scale + narrow * scale
        )


def test_bn_fold_of_no_rows(cuda):
    weight, mean, covariance = torch.ones(3, 5), torch.zeros(5), torch.zeros(5, 5)
    nothing = torch.zeros(3)
    _, backward = cuda.bn_fold(
        weight, (mean, covariance), nothing, 0 * weight, nothing, 0, torch.float32
    )
    grad_weight, back, mix, constant = backward
    assert not any(t.any() for t in (grad_weight, mix, constant))
    torch.testing.assert_close(back, torch.full((5, 3), 1e-3**-0.5))


def test_bn_fold_takes_wide_types_only(cuda):
    with pytest.raises(RuntimeError, match="takes float32 and float64"):
        half = torch.zeros(1, 1).half()
        cuda.bn_fold(half, (half, half), half, half, half, 1, torch.half)


def rows_of(*shapes, dtype, seed=5):
    """Random matrices whose products are of order 1."""
    random = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=random) / max(shape[1], 1) ** 0.5).to(dtype)
        for shape in shapes
    ]


def convolved(x, weight, bias, residual, second=None, *, relu):
    """Two 1x1 convolutions and what follows them, in float64."""
    y = x.double() @ weight.double().t()
    if second:
        y = y + second[0].double() @ second[1].double().t()
    for added in (bias, residual):
        y = y if added is None else y + added.double()
    return y.relu() if relu else y


# rows, in, in of the second pair, out
CONVOLUTIONS = {
    "one block": (64, 64, 0, 64),
    "edges": (77, 104, 24, 88),
    "no vectors": (65, 35, 7, 13),
    "one": (1, 1, 0, 1),
    "no inputs": (3, 0, 0, 8),
    "vectors in the first pair alone": (70, 96, 7, 136),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize(("dtype", "error"), DTYPES[2:])
def test_conv1x1_act(cuda, dtype, error, shape, relu):
    rows, inputs, inputs2, outputs = shape
    shapes = ((rows, inputs), (outputs, inputs), (rows, inputs2), (outputs, inputs2))
    x, weight, x2, weight2 = rows_of(*shapes, dtype=dtype)
    (residual,) = rows_of((rows, outputs), dtype=dtype, seed=6)
    added = (torch.linspace(-1, 1, outputs), residual) if relu else (None, None)
    arguments = (x, weight, *added, (x2, weight2) if inputs2 else None)
    got, wanted = cuda.conv1x1_act(*arguments, relu=relu), convolved(*arguments, relu=relu)
    torch.testing.assert_close(got.double(), wanted, rtol=error, atol=1e-6)


# Enough rows for the larger blocks, with the edges of each.
@pytest.mark.parametrize("outputs", [64, 136], ids=["narrow", "large"])
def test_conv1x1_act_in_larger_blocks(cuda, outputs):
    rows = 132 * 128 + 5 if outputs == 64 else 66 * 128 + 5
    x, weight, residual = rows_of((rows, 40), (outputs, 40), (rows, outputs), dtype=torch.bfloat16)
    got = cuda.conv1x1_act(x, weight, None, residual, relu=True)
    wanted = convolved(x, weight, None, residual, relu=True)
    torch.testing.assert_close(got.double(), wanted, rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize("moved", ["x", "weight", "residual", "y"])
def test_conv1x1_act_of_unaligned_rows(cuda, moved):
    made = rows_of((70, 48), (40, 48), (70, 40), dtype=torch.bfloat16)
    values = dict(zip(("x", "weight", "residual"), made, strict=True))
    if moved in values:
        there = values[moved]
        values[moved] = torch.cat([there.new_zeros(1), there.flatten()])[1:].view(there.shape)
    arguments = (values["x"], values["weight"], None, values["residual"])
    wanted = convolved(*arguments, relu=True)
    got = cuda.conv1x1_act(*arguments, relu=True, first=int(moved == "y"))
    torch.testing.assert_close(got.double(), wanted, rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_conv1x1_act_as_its_operator_calls_it(cuda, monkeypatch, relu):
    module = sys.modules["fasthg.ops.conv1x1_act"]
    monkeypatch.setattr(module, "_extension", cuda.door())
    weight, weight2 = rows_of((24, 16), (24, 5), dtype=torch.float32)
    x, x2, residual = (
        torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])).to(torch.bfloat16)
        for shape in ((1, 32, 5, 7), (1, 5, 5, 7), (1, 24, 1, 1))
    )
    # A slice, channels first, stride 0; weights to be cast, one of them transposed.
    given = (x[:, ::2], weight.t().contiguous().t(), torch.linspace(-1, 1, 24))
    given += (residual.expand(1, 24, 5, 7), x2, weight2)
    y = module._on_tensor_cores(*given, relu)
    assert y.is_contiguous(memory_format=torch.channels_last)
    x, weight, _, residual, x2, weight2 = (t.to(torch.bfloat16).double() for t in given)
    wanted = reference.conv1x1_act(
        x, weight, given[2].double(), residual, x2=x2, weight2=weight2, relu=relu
    )
    torch.testing.assert_close(y.double(), wanted, rtol=2.0**-8, atol=1e-6)


def test_conv1x1_act_lets_nan_pass_and_refuses_float32(cuda):
    x, weight, residual = rows_of((9, 16), (8, 16), (9, 8), dtype=torch.float16)
    residual[4, 3] = torch.nan
    y = cuda.conv1x1_act(x, weight, None, residual, relu=True)
    assert torch.equal(y.isnan(), residual.isnan())
    with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
        cuda.conv1x1_act(x.float(), weight.float(), None, None, relu=False)


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


# count, first address: with vectors, where one would cross the end, and unaligned
@pytest.mark.parametrize("case", [(2052, 0), (1027, 0), (1028, 1), (1, 0)])
@pytest.mark.parametrize(("dtype", "error"), DTYPES[:2])
def test_moving_statistics(cpu, cuda, dtype, error, case):
    count, first = case
    random = torch.Generator().manual_seed(5)
    running, *read = (torch.rand(count + first, generator=random).to(dtype) for _ in range(3))
    read = [tensor[first:] for tensor in read]
    weight = torch.tensor(0.3, dtype=dtype)
    results = []
    for kernels in (cpu, cuda):
        moved = running.clone()[first:]
        kernels.moving_statistics(moved, *read, weight)
        results.append(moved)
    wanted = torch.lerp(running[first:], read[0] * read[1], weight)
    for result in results:
        torch.testing.assert_close(result, wanted, rtol=error, atol=error)


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
    grad_y = torch.randn(halved, generator=random).to(dtype)
    wanted = cpu.max_pool2x(x.to(widened(dtype)), grad_y.to(widened(dtype)))
    for got, right in zip(cuda.max_pool2x(x, grad_y), wanted, strict=True):
        torch.testing.assert_close(got.to(right.dtype), right, rtol=0, atol=0, equal_nan=True)


def test_max_pool2x_of_bfloat16_is_the_same_on_both_sides(cpu, cuda):
    x = torch.randint(-(2**15), 2**15, (1, 64, 64, 24), generator=torch.Generator().manual_seed(7))
    x = x.to(torch.int16).view(torch.bfloat16)  # every kind of number
    grad_y = x[:, ::2, ::2].contiguous()
    for got, right in zip(cuda.max_pool2x(x, grad_y), cpu.max_pool2x(x, grad_y), strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=0, equal_nan=True)


def test_maps_too_large_for_a_block_are_refused(scene, cuda):
    with pytest.raises(RuntimeError, match="too large for the GPU's shared memory"):
        cuda.gaussian_heatmaps(
            scene(1, 60, 512, 512, torch.float64), (512, 512), torch.float64, True
        )

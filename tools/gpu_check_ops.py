"""Every operator on small shapes in every dtype, against the same operator on the CPU in float64.

    python tools/gpu_check_ops.py [--device cuda] [--only OPERATOR ...] [--without OPERATOR ...]

Small enough for compute-sanitizer; sizes are odd, so that blocks have idle threads. Inputs are made
and results compared on the CPU, so that few kernels but our own run. Needs torch alone. Exit
status: 1 if a result is wrong or an operator has no compiled kernel on the device.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fasthg import ops
from fasthg.ops import conv1x1_bn

# dtype -> error allowed, relative to the largest value.
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# (batch, channels, height, width): one value, odd sizes, whole vectors; then maps whose norms take
# one launch each way, one forward and three backward, and three each way.
SHAPES = [(1, 1, 1, 1), (2, 3, 13, 17), (2, 24, 9, 8)]
NORM_SHAPES = [*SHAPES, (2, 16, 24, 24), (2, 16, 48, 64), (3, 16, 64, 64)]
# Where the GPU has clusters: what it chooses; part of a slice; one block that keeps a part of its
# rows. Blocks of a cluster and vectors of its slice, None: as chosen.
CLUSTERS = {
    (2, 128, 48, 48): None,
    (1, 24, 67, 71): (8, 2),
    (3, 16, 64, 64): (1, 2),
    (2, 16, 48, 48): (4, 4),
}


class Case(NamedTuple):
    """One call of an operator.

    call: the operator, on tensors of one dtype and device; returns tensors, the first of which is
    differentiated. maps: inputs in that dtype; values: in float32 at least. fixed: inputs without a
    gradient, in their own dtype. factor: of the error allowed. gradients: whether to compare them;
    where a ReLU or a maximum rounds to the other side they are only computed. in_norm: compare
    whole tensors by their norm, because half types round between the convolutions of a block.
    clusters: blocks of a cluster and vectors of its slice, in place of what `bn_act` chooses.
    """

    call: Callable[..., Any]
    maps: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    fixed: tuple[Tensor, ...] = ()
    factor: float = 2.0
    gradients: bool = True
    in_norm: bool = False
    clusters: tuple[int, int] | None = None


def normal(*shape: int) -> Tensor:
    """Values of a standard normal distribution, float64, channels_last; the same at each call."""
    random = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=random, dtype=torch.float64)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def points(batch: int, parts: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints on and off the map, one NaN; sigmas; visibility."""
    random = torch.Generator().manual_seed(batch * parts)
    size = torch.tensor([width, height])
    keypoints = (torch.rand(batch, parts, 2, generator=random) * 1.4 - 0.2) * size
    # A quarter off the grid: rounding to a cell is the same in every dtype.
    keypoints = keypoints.round() + 0.25
    keypoints[-1, -1] = torch.nan
    sigmas = torch.randint(2, 8, (batch, parts), generator=random) / 2.0
    visibility = (torch.rand(batch, parts, generator=random) > 0.2).to(torch.uint8) * 2
    return keypoints, sigmas, visibility


def draw(like: Tensor, *of: Tensor, subpixel: bool, layout: torch.memory_format) -> Tensor:
    """gaussian_heatmaps of the size and dtype of `like`."""
    options = {"subpixel": subpixel, "dtype": like.dtype, "memory_format": layout}
    return ops.gaussian_heatmaps(*of[:2], tuple(like.shape[2:]), of[2], **options)


def fork(x: Tensor) -> Tensor:
    """max_pool2x_fork; both results as one, so that both have gradients."""
    return torch.cat([y.flatten(1) for y in ops.max_pool2x_fork(x)], 1)


def between_norms(x: Tensor, weight: Tensor, residual: Tensor, *norm: Tensor) -> tuple[Tensor, ...]:
    """The 1x1 convolution with a norm before and statistics after; x's norm where there is one."""
    of_x = conv1x1_bn.Norm(*norm, None, relu=True, eps=1e-3) if norm else None
    return conv1x1_bn.run(x.detach(), weight.detach(), of_x, residual.detach())


def residual(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """residual_block with its statistics."""
    y, statistics = ops.residual_block(x, *values)
    return y, *statistics


def move(running: Tensor, *others: Tensor) -> Tensor:
    """moving_statistics, which changes its first argument, of a copy."""
    changed = running.detach().clone()
    ops.moving_statistics(changed, *(t.detach() for t in others))
    return changed


def optimise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """rmsprop_ema of copies, with every buffer."""
    v, gradient, s, m, a, rate, share = (t.detach().clone() for t in tensors)
    numbers = {"decay": 0.9, "eps": 0.5, "momentum": 0.5, "weight_decay": 0.1, "decayed": 1001}
    buffers = {"momenta": m, "averages": a, "average_weight": share}
    ops.rmsprop_ema(v, gradient, s, rate, **buffers, **numbers)
    return v, s, m, a


def cases() -> Iterator[tuple[str, Case]]:
    """Every operator with all its inputs; both layouts, and shapes with and without vectors."""
    for shape in (*SHAPES, (3, 7, 64, 64)):
        batch, channels, height, width = shape
        where = points(*shape)
        for layout in (torch.contiguous_format, torch.channels_last):
            x = normal(*shape).contiguous(memory_format=layout)
            for subpixel in (False, True):
                call = partial(draw, subpixel=subpixel, layout=layout)
                yield "gaussian_heatmaps", Case(call, (x,), fixed=where, gradients=False)
            peaks = ops.gaussian_heatmaps(*where[:2], shape[2:], subpixel=True).double()
            peaks = peaks.contiguous(memory_format=layout)
            for method in ("argmax", "quarter", "dark", "plateau"):
                call = partial(ops.heatmap_peaks, method=method)
                # Arithmetic is float32 at least, whatever the maps are.
                yield "heatmap_peaks", Case(call, (peaks,), factor=100, gradients=False)
        stacks = normal(2, batch, height, width, channels).permute(0, 1, 4, 2, 3)
        for maps in (stacks, stacks.contiguous()):
            yield "heatmap_mse", Case(ops.heatmap_mse, (maps,), fixed=where)
        weight = normal(2 * channels, channels, 3, 3) / (3 * channels**0.5)
        yield "conv3x3", Case(ops.conv3x3, (normal(*shape), weight, normal(2 * channels)))
        yield "max_pool2x", Case(ops.max_pool2x, (normal(*shape),), factor=0)
        yield "max_pool2x", Case(fork, (normal(*shape),))
        high = normal(batch, channels, 2 * height, 2 * width)
        yield "upsample2x_add", Case(ops.upsample2x_add, (normal(*shape), high))
        values = (normal(channels), normal(channels).exp(), normal(channels))
        call = lambda x, r, *values: ops.bn_act_inference(x, *values, None, r, relu=True)  # noqa: E731
        yield "bn_act_inference", Case(call, (x, x + 1), values, gradients=False)
    for shape in NORM_SHAPES:
        for relu in (True, False):
            call = partial(lambda x, r, b, relu: ops.bn_act(x, b, None, r, relu=relu), relu=relu)
            maps = (normal(*shape), normal(*shape) + 1)
            yield "bn_act", Case(call, maps, (normal(shape[1]),), gradients=not relu)
    for shape, clusters in CLUSTERS.items():
        values = (normal(shape[1]), normal(shape[1]).exp())
        call = lambda x, r, b, gamma: ops.bn_act(x, b, gamma, r)  # noqa: E731
        maps = (normal(*shape), normal(*shape) + 1)
        yield "bn_act", Case(call, maps, values, clusters=clusters)
        for added in (False, True):  # the ReLU's mask is computed from x, or read
            call = partial(
                lambda x, b, added: ops.bn_act(x, b, None, x if added else None, relu=True),
                added=added,
            )
            case = Case(call, maps[:1], values[:1], gradients=False, clusters=clusters)
            yield "bn_act", case
    third, tenth = torch.tensor([0.3, 0.1], dtype=torch.float64)
    for count in (1, 1027, 2052):
        values = (normal(count), normal(count) + 1, normal(count) + 2, third)
        yield "moving_statistics", Case(move, values=values, gradients=False)
    values = (normal(1032), normal(1025), normal(1025).square(), normal(1025), normal(1032) + 1)
    values += (tenth.view(1), third.view(1))
    yield "rmsprop_ema", Case(optimise, values=values, gradients=False)
    # Last: a fault in asynchronous copies ends the process.
    yield from conv1x1_cases()


def conv1x1_cases() -> Iterator[tuple[str, Case]]:
    """1x1 convolutions, and residuals of them: odd rows and channels, every tile, many weights."""
    for batch, channels, height, width in (*SHAPES, (3, 7, 64, 64)):
        for inputs, inputs2, outputs in ((40, channels, 72), (channels, 8, 136)):
            maps = tuple(normal(batch, c, height, width) for c in (inputs, inputs2, outputs))
            weights = tuple(normal(outputs, c) / c**0.5 for c in (inputs, inputs2))
            for relu in (True, False):
                call = partial(
                    lambda x, x2, r, w, w2, bias, relu: ops.conv1x1_act(
                        x, w, bias, r, x2=x2, weight2=w2, relu=relu
                    ),
                    relu=relu,
                )
                case = Case(call, (*maps, *weights), (normal(outputs),), gradients=not relu)
                yield "conv1x1_act", case
    # Tiles of 256, 128, 64 and 8 outputs, of which a block of 132 multiprocessors walks over more
    # than one.
    for inputs, inputs2, outputs, side in (
        *((64, 7, 256, 200), (24, 8, 128, 200), (24, 8, 64, 230), (40, 13, 7, 230)),
        (1536, 8, 72, 7),
    ):
        maps = tuple(normal(1, c, side, side) for c in (inputs, inputs2, outputs))
        weights = tuple(normal(outputs, c) / c**0.5 for c in (inputs, inputs2))
        call = lambda x, x2, r, w, w2: ops.conv1x1_act(x, w, None, r, x2=x2, weight2=w2)  # noqa: E731
        yield "conv1x1_act", Case(call, (*maps, *weights), gradients=False)
        if inputs % 8 or outputs % 8:
            continue
        maps = normal(1, inputs, side, side), weights[0], normal(1, outputs, side, side)
        norm = normal(inputs), normal(inputs).exp(), normal(inputs)
        for values in ((), norm):
            yield "conv1x1_bn", Case(between_norms, maps, values, gradients=False)
    # Of each form of the kernels; then of their largest tiles, where 132 multiprocessors have rows
    # enough, and some ReLUs round to the other side.
    for channels, side in ((16, 13), (48, 17), (5, 5), (256, 113)):
        half = channels // 2
        sizes = [(half, channels, 1, 1), (half,), (half, half, 3, 3), (half,)]
        sizes += [(channels, half, 1, 1), (channels,)]
        values = tuple(normal(*size) / size[0] ** 0.5 for size in sizes)
        x = normal(1, channels, side, side)
        case = Case(residual, (x,), values, factor=10, in_norm=True, gradients=side < 100)
        yield "residual_block", case


def results(case: Case, dtype: torch.dtype, device: torch.device, *, exact: bool) -> list[Tensor]:
    """Results and gradients, on the CPU in float64. exact: calculate them there and so as well.

    Inputs are rounded to `dtype` in either case.
    """
    at_least_float = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    inputs = [t.to(dtype) for t in case.maps] + [t.to(at_least_float) for t in case.values]
    if exact:
        inputs, device = [t.double() for t in inputs], torch.device("cpu")
    # Copies: a leaf of one device must not be the other's.
    inputs = [t.to(device, copy=True).requires_grad_() for t in inputs]
    made = case.call(*inputs, *(t.to(device) for t in case.fixed))
    made = made if isinstance(made, tuple) else (made,)
    tensors = list(made)
    if made[0].requires_grad:
        grad_y = normal(*made[0].shape).to(dtype).to(made[0])
        gradients = torch.autograd.grad(made[0], inputs, grad_y, allow_unused=True)
        tensors += [g for g in gradients if g is not None and case.gradients]
    return [t.detach().cpu().double() for t in tensors]


def as_asked(case: Case, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which `bn_act` takes the clusters that a case asks for, if the GPU has any."""
    if (
        case.clusters is None
        or device.type != "cuda"
        or torch.cuda.get_device_capability(device) < (9, 0)
    ):
        return contextlib.nullcontext()
    module = importlib.import_module("fasthg.ops.bn_act")
    return mock.patch.object(module, "_choose_clusters", lambda *_: case.clusters)


def check(case: Case, dtype: torch.dtype, error: float, device: torch.device) -> str:
    """What is wrong, or nothing."""
    try:
        with as_asked(case, device):
            actual = results(case, dtype, device, exact=False)
        expected = results(case, dtype, device, exact=True)
    except Exception as error:  # the cases after it are checked all the same
        return f"{type(error).__name__}: {error}"
    for number, (one, right) in enumerate(zip(actual, expected, strict=True)):
        if one.shape != right.shape:
            return f"result {number} has the shape {tuple(one.shape)}, not {tuple(right.shape)}"
        if not right.numel():
            continue
        order = 2 if case.in_norm else torch.inf
        size, off = (float(torch.linalg.vector_norm(t, order)) for t in (right, one - right))
        limit = case.factor * error * max(size, 1.0)
        if not off <= limit:
            return f"result {number} is off by {off:.3g}, allowed {limit:.3g}"
    return ""


def main() -> int:
    """Check the operators that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu; default cuda")
    parser.add_argument("--only", nargs="+", default=[], metavar="OPERATOR")
    parser.add_argument("--without", nargs="+", default=[], metavar="OPERATOR")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.backends.cudnn.allow_tf32 = False
    faults = [
        f"{row.op}: no compiled kernel for {device.type}: {row.reason}"
        for row in ops.paths()
        if (row.device, row.path) == (device.type, "torch reference")
    ]
    printed = ""
    for name, case in cases():
        if name in arguments.without or (arguments.only and name not in arguments.only):
            continue
        for dtype, error in DTYPES.items():
            if error > 1e-4 and not case.maps:
                continue  # the operators on flat buffers have no half types
            # Printed before, so that an operator that hangs or crashes is known.
            if (line := f"{name} in {dtype}") != printed:
                print(printed := line, flush=True)
            if fault := check(case, dtype, error, device):
                faults.append(f"{line}: {fault}")
    print("\n".join([*faults, "operators: FAILED" if faults else "operators: passed"]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

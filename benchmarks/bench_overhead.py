"""Cost of a call apart from its arithmetic: each operator and its like in torch, on tiny tensors.

Forward, and forward with backward where there is one. Each row of `CASES` is one operator: how to
call it, and what one would write in torch without it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from compare import compare

from fasthg import ops


class Case(NamedTuple):
    """Two functions of the same tensors; gradients are taken of those that require them."""

    ours: Callable
    torch: Callable
    tensors: Callable[[torch.device], tuple[torch.Tensor, ...]]


def maps(*shapes):
    """Maps that require gradients."""
    return lambda device: tuple(torch.rand(s, device=device, requires_grad=True) for s in shapes)


def points(device):
    return torch.rand(1, 1, 2, device=device), torch.ones(1, device=device)


def points_and_maps(device):
    return torch.rand(1, 1, 1, 2, 2, device=device, requires_grad=True), *points(device)


def buffers(device):
    return *torch.ones(4, 1, device=device), torch.tensor(0.1, device=device)


def norm(device):
    x, beta = maps((1, 1, 2, 2), (1,))(device)
    return x, beta, torch.zeros(1, device=device), torch.ones(1, device=device)


@functools.cache
def one(device):
    """A scale, without which torch finds no gradient of the offset on a GPU."""
    return torch.ones(1, device=device)


def draw(points, sigmas):
    x, y = points.round()[..., None, None].unbind(2)
    cells = torch.arange(2, device=points.device)
    square = (cells - x) ** 2 + (cells[:, None] - y) ** 2
    return torch.exp(-square / (2 * sigmas[:, None, None] ** 2))


def first_largest(heatmaps):
    score, cell = heatmaps.flatten(2).max(-1)
    return torch.stack([cell % 2, cell // 2], -1), score


def rmsprop(values, gradient, squares, averages, rate):
    averages.lerp_(values, 0.1)
    squares.mul_(0.9).addcmul_(gradient, gradient, value=0.1)
    values.addcdiv_(gradient, (squares + 1.0).sqrt_(), value=-0.1)


CASES = {
    "gaussian_heatmaps": Case(lambda p, s: ops.gaussian_heatmaps(p, s, 2), draw, points),
    "heatmap_mse": Case(
        ops.heatmap_mse,
        lambda maps, p, s: (maps - draw(p, s)).square().sum((2, 3, 4)) / 2,
        points_and_maps,
    ),
    "heatmap_peaks": Case(
        lambda x: ops.heatmap_peaks(x, "argmax"),
        first_largest,
        lambda device: (torch.rand(1, 1, 2, 2, device=device),),
    ),
    "bn_act": Case(
        lambda x, beta, mean, var: ops.bn_act(x, beta, relu=True)[0],
        lambda x, beta, mean, var: F.relu(F.batch_norm(x, None, None, one(x.device), beta, True)),
        norm,
    ),
    "bn_act_inference": Case(
        lambda x, beta, mean, var: ops.bn_act_inference(x, mean, var, beta, relu=True),
        lambda x, beta, mean, var: F.relu(F.batch_norm(x, mean, var, one(x.device), beta)),
        norm,
    ),
    "conv1x1_act": Case(
        lambda x, w, y: ops.conv1x1_act(x, w, None, y, relu=True),
        lambda x, w, y: F.relu(F.conv2d(x, w) + y),
        maps((1, 1, 2, 2), (1, 1, 1, 1), (1, 1, 2, 2)),
    ),
    "moving_statistics": Case(
        lambda running, batch, correction, other, weight: ops.moving_statistics(
            *(running, batch, correction, weight)
        ),
        lambda running, batch, correction, other, weight: running.lerp_(batch * correction, weight),
        buffers,
    ),
    "rmsprop_ema": Case(
        lambda values, gradient, squares, averages, rate: ops.rmsprop_ema(
            *(values, gradient, squares, rate),
            decay=0.9,
            eps=1.0,
            averages=averages,
            average_weight=rate,
        ),
        rmsprop,
        buffers,
    ),
    "max_pool2x": Case(
        lambda x: ops.max_pool2x(x)[0], lambda x: F.max_pool2d(x, 2, 2), maps((1, 1, 2, 2))
    ),
    "upsample2x_add": Case(
        ops.upsample2x_add,
        lambda low, high: high + F.interpolate(low, scale_factor=2, mode="nearest"),
        maps((1, 1, 1, 1), (1, 1, 2, 2)),
    ),
}


# Together they take more than ten seconds.
@pytest.mark.slow
@compare(
    "torch",
    "fasthg",
    calls=(100, 100),
    cold=False,
    operator=CASES,
    way=["forward", "with backward"],
)
def bench_overhead(device, operator, way):
    case = CASES[operator]
    tensors = case.tensors(device)
    differentiable = [t for t in tensors if t.requires_grad]
    if way == "forward":
        tensors = tuple(t.detach() for t in tensors)
        return {"torch": lambda: case.torch(*tensors), "fasthg": lambda: case.ours(*tensors)}
    if not differentiable:
        pytest.skip(f"{operator} has no gradient")

    def with_backward(function):
        grad_y = torch.ones_like(function(*tensors))
        return lambda: torch.autograd.grad(function(*tensors), differentiable, grad_y)

    return {"torch": with_backward(case.torch), "fasthg": with_backward(case.ours)}

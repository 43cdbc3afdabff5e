"""Batch norm, residual and ReLU with gradients, bfloat16: 8 x 64 channels x 128 x 128, and a map of
the hourglass's lower levels, which on a GPU takes one launch each way.

`bench_bn_act_clusters` times each direction by itself for the large maps of the stock network, by
three launches and by one in clusters of 16 blocks with slices of 2 and of 4 vectors.
"""

from __future__ import annotations

import importlib
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import _extension, bn_act

SHAPES = {"relu": (8, 64, 128, 128), "residual": (8, 64, 128, 128), "small": (8, 256, 16, 16)}
# Forward: x twice, y; backward: x and y's gradient twice, x's gradient. A residual adds a read, one
# launch leaves out the second reads.
READS = {"relu": 8, "residual": 9, "small": 5}
BYTES = {kind: READS[kind] * 2 * math.prod(shape) for kind, shape in SHAPES.items()}


@compare("torch", "three launches", "fasthg", bytes_moved=lambda kind: BYTES[kind], kind=SHAPES)
def bench_bn_act(device, kind):
    shape = SHAPES[kind]
    x, residual, grad_y = (
        torch.randn(shape, device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    beta = torch.zeros(shape[1], device=device, requires_grad=True)
    x.requires_grad_()
    residual.requires_grad_()
    added = residual if kind == "residual" else None
    one = torch.ones(shape[1], device=device)  # without it, no gradient of beta on a GPU
    inputs = (x, beta) if added is None else (x, beta, added)

    def plain():
        y = F.batch_norm(x, None, None, one, beta, True, eps=1e-3)
        return F.relu(y, inplace=True) if added is None else y + added

    def fused():
        return bn_act(x, beta, None, added, relu=added is None)[0]

    def three_launches():
        module = importlib.import_module("fasthg.ops.bn_act")
        with (
            mock.patch.object(module, "_ON_CHIP_ROWS", 0),
            mock.patch.object(module, "_choose_clusters", lambda *_: (0, 0)),
        ):
            return torch.autograd.grad(fused(), inputs, grad_y)

    choice = device.type == "cuda" and kind == "small"
    return {
        "torch": lambda: torch.autograd.grad(plain(), inputs, grad_y),
        "three launches": three_launches if choice else "small maps on a GPU alone have the choice",
        "fasthg": lambda: torch.autograd.grad(fused(), inputs, grad_y),
    }


MAPS = ((32, 256, 64, 64), (32, 128, 64, 64), (8, 256, 64, 64), (8, 128, 64, 64), (8, 128, 32, 32))
LARGE = {" x ".join(map(str, shape)): shape for shape in MAPS}
MAPS_MOVED = {"forward": 2, "backward": 3}  # each read or written once


@compare(
    *("torch", "three launches", "2 vectors", "4 vectors", "fasthg"),
    bytes_moved=lambda shape, way: MAPS_MOVED[way] * 2 * math.prod(LARGE[shape]),
    shape=LARGE,
    way=MAPS_MOVED,
)
def bench_bn_act_clusters(device, shape, way):
    if device.type != "cuda":
        pytest.skip("a GPU alone has the choice")
    x, grad_y = (
        torch.randn(LARGE[shape], device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    beta, one = torch.zeros(x.shape[1], device=device), torch.ones(x.shape[1], device=device)
    module = importlib.import_module("fasthg.ops.bn_act")
    _, mean, var = module.train(x, beta, None, None, True, 1e-3)
    leaves = [t.requires_grad_() for t in (x.detach().clone(), one, beta.clone())]
    plain = F.relu(F.batch_norm(leaves[0], None, None, *leaves[1:], True, eps=1e-3), inplace=True)

    def with_torch():
        if way == "backward":
            return torch.autograd.grad(plain, leaves, grad_y, retain_graph=True)
        with torch.no_grad():
            return F.relu(F.batch_norm(x, None, None, one, beta, True, eps=1e-3), inplace=True)

    def ours():
        if way == "forward":
            return module.train(x, beta, None, None, True, 1e-3)
        return module.gradients(grad_y, x, None, mean, var, beta, None, True, False, 1e-3)

    def by(blocks, vectors):
        def run():
            with mock.patch.object(module, "_choose_clusters", lambda *_: (blocks, vectors)):
                return ours()

        return run

    code, index = _extension.DTYPE_CODES[x.dtype], x.device.index
    held = _extension.native.bn_act_clusters_cuda(code, way == "backward", 16, index)
    none = "this GPU has no clusters of 16 blocks"
    return {
        "torch": with_torch,
        "three launches": by(0, 0),
        "2 vectors": by(16, 2) if held else none,
        "4 vectors": by(16, 4) if held else none,
        "fasthg": ours,
    }

"""A 1x1 convolution between two batch norms, 32 images, 64 x 64, bfloat16, on a GPU: in one pass,
and by the norm's result, cuBLAS and the next norm's statistics in turn.

No path of the network takes it yet: these times say whether its gradients are worth writing, which
they are from 3.2 TB/s on.
"""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from compare import compare

ROWS = 32 * 64 * 64
CHANNELS = {"statistics": (256, 128), "norm and statistics": (128, 256)}


def bytes_moved(kind):
    """x read, y written."""
    return ROWS * sum(CHANNELS[kind]) * 2


@compare("apart", "fasthg", bytes_moved=bytes_moved, kind=CHANNELS)
def bench_conv1x1_bn(device, kind):
    if device.type != "cuda":
        pytest.skip("a GPU alone has the kernel")
    ours, norms = (importlib.import_module(f"fasthg.ops.{n}") for n in ("conv1x1_bn", "bn_act"))
    inputs, outputs = CHANNELS[kind]
    x = torch.randn(32, inputs, 64, 64, device=device).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).to(torch.bfloat16)
    is_conv_weight = weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
    norm = None
    if kind != "statistics":
        mean, var, beta = (torch.rand(inputs, device=device) + shift for shift in (0.0, 0.5, 0.0))
        norm = ours.Norm(mean, var, beta, None, True, 1e-3)

    def apart():
        a = x
        if norm is not None:
            a = norms.infer(x, norm.mean, norm.var, norm.beta, None, None, True, norm.eps)
        y = F.conv2d(a, is_conv_weight)
        return y, *norms.moments(y)

    return {"apart": apart, "fasthg": lambda: ours.run(x, weight, norm)}

"""1x1 convolution with bias and residual, as in a residual block: 8 images, 64 x 64, bfloat16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from compare import compare

from fasthg.ops import conv1x1_act

ROWS = 8 * 64 * 64
CHANNELS = {"128 to 256": (128, 256), "256 to 128": (256, 128)}


def bytes_moved(kind):
    """x and residual read, y written."""
    inputs, outputs = CHANNELS[kind]
    return ROWS * (inputs + 2 * outputs) * 2


@compare("torch", "fasthg", bytes_moved=bytes_moved, kind=CHANNELS)
def bench_conv1x1_act(device, kind):
    inputs, outputs = CHANNELS[kind]
    x, residual = (
        torch.randn(8, channels, 64, 64, device=device)
        .to(torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        for channels in (inputs, outputs)
    )
    weight = (torch.randn(outputs, inputs, device=device) / inputs**0.5).to(torch.bfloat16)
    is_conv_weight = weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
    bias = torch.randn(outputs, device=device)
    rounded = bias.to(torch.bfloat16)
    return {
        "torch": lambda: F.conv2d(x, is_conv_weight, rounded) + residual,
        "fasthg": lambda: conv1x1_act(x, weight, bias, residual),
    }

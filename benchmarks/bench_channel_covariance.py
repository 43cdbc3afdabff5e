"""Mean and covariance of the channels of 8 bfloat16 maps of 64 x 64: 128 and 256 channels."""

from __future__ import annotations

import torch
from compare import compare

from fasthg.ops import channel_covariance

ROWS = 8 * 64 * 64


def bytes_moved(channels):
    return ROWS * channels * 2 + channels * (channels + 1) * 4


@compare("torch", "bfloat16", "fasthg", bytes_moved=bytes_moved, channels=[128, 256])
def bench_channel_covariance(device, channels):
    x = torch.randn(8, channels, 64, 64, device=device).relu().to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)

    def plain():
        wide = rows.float()
        mean = wide.mean(0)
        centred = wide - mean
        return mean, centred.mT @ centred / ROWS

    def coarse():
        mean = rows.mean(0, dtype=torch.float32)
        return mean, (rows.mT @ rows).float() / ROWS - mean[:, None] * mean

    return {"torch": plain, "bfloat16": coarse, "fasthg": lambda: channel_covariance(x)}

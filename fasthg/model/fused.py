"""The choice between fasthg's operators and torch's own, one for all layers (key FUSED)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fasthg.ops import has_kernel

FEW_VALUES = 1 << 18
"""Values of a map from which fasthg's pooling and upsampling are the faster ones on a CPU, float32.
Below, where the cost of a call decides, they took up to twice as long as torch's; 0.8 times at four
times as many values, 0.65 at nine."""


def runs_fused(
    fused: str,
    x: Tensor,
    slower_on_cpu: Collection[torch.dtype] = (),
    least_on_cpu: int = 0,
) -> bool:
    """Whether a layer runs fasthg's operator on x.

    Args:
        fused: "on", "off", or "auto": where the compiled kernels serve x and gain time.
        x: the layer's input.
        slower_on_cpu: dtypes for which torch's own kernels are the faster ones on a CPU.
        least_on_cpu: values of x from which fasthg's operator is the faster one on a CPU.
    """
    if fused != "auto":
        return fused == "on"
    if x.device.type == "cpu" and (x.dtype in slower_on_cpu or x.numel() < least_on_cpu):
        return False
    return has_kernel(x)

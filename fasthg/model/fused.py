"""The choice between fasthg's operators and torch's own, one for all layers (key FUSED)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from fasthg.ops import has_kernel


def runs_fused(fused: str, x: Tensor, slower_on_cpu: Collection[torch.dtype] = ()) -> bool:
    """Whether a layer runs fasthg's operator on x.

    Args:
        fused: "on", "off", or "auto": where the compiled kernels serve x and gain time.
        x: the layer's input.
        slower_on_cpu: dtypes for which torch's own kernels are the faster ones on a CPU.
    """
    if fused != "auto":
        return fused == "on"
    return has_kernel(x) and not (x.device.type == "cpu" and x.dtype in slower_on_cpu)

"""1x1 convolutions, bias, residual and ReLU in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fasthg.ops.reference.dtypes import arithmetic_dtype


def conv1x1_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    x2: Tensor | None = None,
    weight2: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`relu?(x weight^T + x2 weight2^T + bias + residual)` in the arithmetic dtype, channels last.

    x, x2, residual: (batch, channels, height, width); weights (out, in); bias (out,).
    """
    work = arithmetic_dtype(x.dtype)

    def rows(maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).to(work)

    y = functional.linear(rows(x), weight.to(work), None if bias is None else bias.to(work))
    if x2 is not None and weight2 is not None:
        y = y + functional.linear(rows(x2), weight2.to(work))
    if residual is not None:
        y = y + rows(residual)
    return (functional.relu(y) if relu else y).permute(0, 3, 1, 2)

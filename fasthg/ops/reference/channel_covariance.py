"""Mean and covariance of channels in plain torch."""

from __future__ import annotations

from torch import Tensor

from fasthg.ops.reference.dtypes import arithmetic_dtype


def channel_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (channels,) and biased covariance (channels, channels), in the arithmetic dtype.

    x: (batch, channels, height, width). An empty batch gives zeros.
    """
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).to(arithmetic_dtype(x.dtype))
    count = max(len(rows), 1)
    mean = rows.sum(0) / count
    centred = rows - mean
    covariance = centred.mT @ centred / count
    # A product need not be symmetric to the last bit.
    return mean, (covariance + covariance.mT) / 2

"""Moving statistics of batch norm in plain torch."""

from __future__ import annotations

from torch import Tensor


def moving_statistics(running: Tensor, batch: Tensor, correction: Tensor, weight: Tensor) -> None:
    """`running += weight * (correction * batch - running)`, in place."""
    running.lerp_(batch * correction, weight.reshape(()))

"""One step of RMSProp and moving averages in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rmsprop_ema(
    values: Tensor,
    gradient: Tensor,
    squares: Tensor,
    momenta: Tensor | None,
    averages: Tensor | None,
    rate: Tensor,
    average_weight: Tensor | None,
    found_inf: Tensor | None,
    decayed: int,
    weight_decay: float,
    decay: float,
    momentum: float,
    eps: float,
) -> None:
    """Averages towards the values, then `weights -= rate * g / sqrt(squares + eps)`, in place."""
    weights = values[: len(gradient)]
    if averages is not None and average_weight is not None:
        averages.lerp_(values, average_weight.reshape(()))
    g = gradient.clone()
    g[:decayed] += weight_decay * weights[:decayed]
    new_squares = decay * squares + (1 - decay) * g * g
    change = rate.reshape(()) * g / (new_squares + eps).sqrt()
    if momenta is not None:
        change = momentum * momenta + change
    # Chosen on the device: asking for the number would wait for the GPU.
    kept = torch.zeros((), device=values.device) if found_inf is None else found_inf.reshape(())
    updated = [(squares, new_squares), (momenta, change), (weights, weights - change)]
    for old, new in updated:
        if old is not None:
            old.copy_(torch.where(kept == 0, new, old))

"""Convolution weights in half precision, rounded all at once instead of one by one under autocast.

In a large network the casts of single weights, and of their gradients on the way back, are more
launches than the convolutions themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fasthg.training.flat_params import FlatParameters


def num_rounded(flat: FlatParameters[Any]) -> int:
    """How many of the first values of `flat` hold the weights of all convolutions."""
    return flat.num_decayed if flat.statistics_begin == len(flat.weights) else flat.statistics_begin


class HalfParameters:
    """Leaves in half precision that stand in for weights and biases of all convolutions.

    Results are those of autocast, bit for bit: it rounds the same weights. A module that wants a
    weight as it was finds it in the stand-in's `master`.

    Args:
        flat: its network's convolutions are among the weights with L2, or fixed.
        dtype: float16 or bfloat16.
    """

    leaves: list[Tensor | None]
    """In the order of `flat.parameters`; None for those that nothing stands in for."""

    def __init__(self, flat: FlatParameters[Any], dtype: torch.dtype) -> None:
        self._weights = flat.values[: num_rounded(flat)]
        self._values = torch.zeros_like(self._weights, dtype=dtype)
        self._places: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
        for module in flat.network.modules():
            if isinstance(module, nn.Conv2d):
                for name, weight in module.named_parameters():
                    half = self._leaf(weight)
                    self._places.append((module._parameters, name, weight, half))
        halves = {id(weight): half for *_, weight, half in self._places}
        self.leaves = [halves.get(id(parameter)) for parameter in flat.parameters]

    def _leaf(self, weight: Tensor) -> Tensor:
        begin = (weight.data_ptr() - self._weights.data_ptr()) // weight.itemsize
        shape = weight.shape, weight.stride(), begin
        half = self._values.as_strided(*shape).detach().requires_grad_(weight.requires_grad)
        half.master = weight  # type: ignore[attr-defined]
        return half

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Forward and backward within run on the weights of now; nothing waits for the device."""
        with torch.no_grad():
            self._values.copy_(self._weights)
        for parameters, name, _, half in self._places:
            parameters[name] = half
        try:
            yield
        finally:
            for parameters, name, weight, _ in self._places:
                parameters[name] = weight

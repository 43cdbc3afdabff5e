"""Layouts of a test's tensors, the error of a result, and how torch sees an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    return x.contiguous()


def some_channels(x: Tensor) -> Tensor:
    """Every second channel of a channels_last tensor: gaps inside a pixel."""
    return channels_last(x.repeat_interleave(2, 1))[:, ::2]


def some_rows(x: Tensor) -> Tensor:
    """Every second row of a dense tensor: gaps inside an image."""
    return x.repeat_interleave(2, 2)[:, :, ::2]


LAYOUTS = [dense, channels_last, some_channels, some_rows]


def relative_error(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Norm of the error over the norm of `scale`, by default the expected values."""
    assert actual.shape == expected.shape
    scale = expected if scale is None else scale
    error = (actual.detach().double() - expected.detach().double()).norm()
    return float(error / scale.detach().double().norm().clamp(min=1e-30))


def check_registration(operator: Any, arguments: Sequence[Any]) -> None:
    """Schema, autograd registration, and the fake kernel's shapes, strides and dtypes.

    All of `torch.library.opcheck` but its compilation with dynamic shapes, which takes a hundred
    times as long as these together and depends neither on layout nor on dtype: once an operator,
    a full opcheck in float32 and channels_last is enough.
    """
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, tuple(arguments), test_utils=quick)

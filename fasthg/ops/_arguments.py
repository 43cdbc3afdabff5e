"""Arguments that may be tensors, NumPy arrays, lists or plain numbers, as tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(op: str, name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """A tensor as it is; anything else through NumPy, on `device` (None: the CPU).

    An array shares its memory, but is copied where torch cannot read it: negative strides, a
    foreign byte order, fields of a packed record, no right to write. Python's own numbers become
    float64. Raises ValueError for what is no rectangle of real numbers, or of a dtype that torch
    lacks.
    """
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "buif":
        raise ValueError(f"{op}: {name}: expected numbers, got {_described(value)}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch warns of an array that it must not write to.
    readable = array.flags.writeable and array.flags.aligned
    if not readable or any(s < 0 or s % array.itemsize for s in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array).to(device)
    except TypeError:
        raise ValueError(f"{op}: {name}: torch has no {array.dtype}; give float64") from None


def height_width(op: str, size: Any) -> tuple[Any, Any]:
    """`size`, one integer or two of any integer type, as (height, width).

    Raises ValueError for anything else, and for negative sides.
    """
    several = isinstance(size, (tuple, list)) or (isinstance(size, np.ndarray) and size.ndim > 0)
    sides = list(size) if several else [size, size]
    try:
        # A symbolic integer of torch.compile stays one.
        height, width = (s if isinstance(s, torch.SymInt) else operator.index(s) for s in sides)
    except (TypeError, ValueError):
        raise ValueError(
            f"{op}: size: expected an integer or (height, width), got {_described(size)}"
        ) from None
    if height < 0 or width < 0:
        raise ValueError(f"{op}: size: expected >= 0, got {(height, width)}")
    return height, width


def check_like(
    op: str, x: Tensor, expected: Mapping[str, tuple[Tensor | None, tuple[int, ...]]]
) -> None:
    """Raise ValueError where an argument has another shape than its own here, or x's device not.

    expected: name -> tensor and shape; None is an argument that was not given.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{op}: {name}: expected {shape}, got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, x on {x.device}: move them to one device"
            )


def _described(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]} ... ({type(value).__name__})"

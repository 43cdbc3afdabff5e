"""Writer of TensorFlow's `GraphDef`, without TensorFlow.

Protocol buffers are fields one after the other, each a number with a wire type, then the value.
Field numbers are those of TensorFlow's graph.proto, node_def.proto, attr_value.proto, tensor.proto,
tensor_shape.proto, types.proto and versions.proto.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fasthg.data.records.protobuf import delimited, encode_varint, integer

TYPES = {torch.float32: 1, torch.int32: 3, torch.bfloat16: 14, torch.float16: 19}
"""torch dtype -> number in `DataType`."""
# Producer version of TensorFlow 1.12 to 1.14: every version that runs MARS knows its operators.
PRODUCER = 27


def _bytes(field: int, value: bytes | str) -> bytes:
    return delimited(field, value.encode() if isinstance(value, str) else value)


@dataclass(frozen=True)
class Shape:
    """A shape as an attribute; -1 for a side that is not fixed."""

    sides: tuple[int, ...]


Attribute = str | torch.dtype | Shape | Tensor | Sequence[int]
"""Text, `DataType`, `TensorShapeProto`, `TensorProto` or a list of numbers."""


def _shape(sides: Sequence[int]) -> bytes:
    return b"".join(_bytes(2, integer(1, side)) for side in sides)


def _tensor(tensor: Tensor) -> bytes:
    content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    shape = _bytes(2, _shape(tensor.shape))
    return integer(1, TYPES[tensor.dtype]) + shape + _bytes(4, content)


def _attribute(value: Attribute) -> bytes:
    if isinstance(value, str):
        return _bytes(2, value)
    if isinstance(value, torch.dtype):
        return integer(6, TYPES[value])
    if isinstance(value, Shape):
        return _bytes(7, _shape(value.sides))
    if isinstance(value, Tensor):
        return _bytes(8, _tensor(value))
    return _bytes(1, _bytes(3, b"".join(map(encode_varint, value))))


class GraphDef:
    """A graph of operators; nodes are kept as serialised bytes, in the order of the calls."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []

    def node(
        self, name: str, op: str, inputs: Sequence[str], attributes: Mapping[str, Attribute]
    ) -> str:
        """Add a node; returns its name, which other nodes take as an input."""
        parts = [_bytes(1, name), _bytes(2, op), *(_bytes(3, one) for one in inputs)]
        for key, value in sorted(attributes.items()):
            parts.append(_bytes(5, _bytes(1, key) + _bytes(2, _attribute(value))))
        self._nodes.append(b"".join(parts))
        return name

    def constant(self, name: str, value: Tensor) -> str:
        """Add a `Const`: any shape, float32, float16, bfloat16 or int32."""
        return self.node(name, "Const", (), {"dtype": value.dtype, "value": value})

    def serialize(self) -> bytes:
        """The file's content."""
        versions = _bytes(4, integer(1, PRODUCER))
        return b"".join(_bytes(1, node) for node in self._nodes) + versions

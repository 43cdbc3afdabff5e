"""TensorFlow's `GraphDef` read by protobuf, of a schema written out here, and run in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {1: torch.float32, 3: torch.int32, 14: torch.bfloat16, 19: torch.float16}


def graph_class() -> Any:
    """`tensorflow.GraphDef`, as far as frozen graphs go."""
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

    def message(name: str, *fields: tuple[str, int, str], **more: Any) -> dict[str, Any]:
        """Fields as (name, number, type); a type in [] is repeated, after * a member of a oneof."""
        described = []
        for field, number, of in fields:
            kind = of.strip("[]*")
            description: dict[str, Any] = {
                "name": field,
                "number": number,
                "label": "LABEL_REPEATED" if of[0] == "[" else "LABEL_OPTIONAL",
            }
            if kind.isupper() or kind[-2:].isdigit():
                description["type"] = f"TYPE_{kind.upper()}"
            else:
                description["type_name"] = f".tensorflow.{kind}"
            if of[0] == "*":
                description["oneof_index"] = 0
            described.append(description)
        return {"name": name, "field": described, **more}

    entry = message(
        "AttrEntry",
        *(("key", 1, "STRING"), ("value", 2, "AttrValue")),
        options={"map_entry": True},
    )
    dim = message("Dim", ("size", 1, "INT64"), ("name", 2, "STRING"))
    messages = [
        message("VersionDef", ("producer", 1, "INT32"), ("min_consumer", 2, "INT32")),
        message(
            "TensorShapeProto",
            *(("dim", 2, "[TensorShapeProto.Dim]"), ("unknown_rank", 3, "BOOL")),
            nested_type=[dim],
        ),
        message(
            "TensorProto",
            *(("dtype", 1, "INT32"), ("tensor_shape", 2, "TensorShapeProto")),
            ("tensor_content", 4, "BYTES"),
        ),
        message("ListValue", ("i", 3, "[INT64]")),
        message(
            "AttrValue",
            *(("list", 1, "*ListValue"), ("s", 2, "*BYTES"), ("i", 3, "*INT64")),
            *(("b", 5, "*BOOL"), ("type", 6, "*INT32"), ("shape", 7, "*TensorShapeProto")),
            ("tensor", 8, "*TensorProto"),
            oneof_decl=[{"name": "value"}],
        ),
        message(
            "NodeDef",
            *(("name", 1, "STRING"), ("op", 2, "STRING"), ("input", 3, "[STRING]")),
            *(("device", 4, "STRING"), ("attr", 5, "[NodeDef.AttrEntry]")),
            nested_type=[entry],
        ),
        message("GraphDef", ("node", 1, "[NodeDef]"), ("versions", 4, "VersionDef")),
    ]
    file = {"name": "g.proto", "package": "tensorflow", "syntax": "proto3"}
    pool = descriptor_pool.DescriptorPool()
    pool.Add(
        json_format.ParseDict(
            file | {"message_type": messages}, descriptor_pb2.FileDescriptorProto()
        )
    )
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.GraphDef"))


def parse(content: bytes) -> Any:
    graph = graph_class()()
    graph.ParseFromString(content)
    return graph


def constant(node: Any) -> Tensor:
    value = node.attr["value"].tensor
    assert value.dtype == node.attr["dtype"].type
    raw = torch.frombuffer(bytearray(value.tensor_content), dtype=DTYPES[value.dtype])
    return raw.reshape([dim.size for dim in value.tensor_shape.dim])


def weights(graph: Any) -> dict[str, Tensor]:
    """Tensors of the network by their names there, convolution weights as torch has them."""
    found = {}
    for node in graph.node:
        if node.op == "Const" and not node.name.endswith("/size"):
            tensor = constant(node)
            name = "network." + node.name.replace("/", ".")
            found[name] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    return found


def run(graph: Any, images: np.ndarray) -> np.ndarray:
    """`output_heatmaps` for `images`, both `(batch, height, width, channels)`."""
    values: dict[str, Tensor] = {}
    for node in graph.node:
        given = [values[name] for name in node.input]
        values[node.name] = (
            torch.from_numpy(images)
            if node.op == "Placeholder"
            else (_OPERATORS[node.op](node, *given))
        )
    return values["output_heatmaps"].numpy()


def _convolution(node: Any, x: Tensor, weight: Tensor) -> Tensor:
    assert node.attr["padding"].s == b"SAME" and node.attr["data_format"].s == b"NHWC"
    one, *steps, last = node.attr["strides"].list.i
    assert one == last == 1
    pads: list[int] = []
    for size, kernel, step in zip(x.shape[1:3], weight.shape[:2], steps, strict=True):
        total = max((-(-size // step) - 1) * step + kernel - size, 0)
        pads = [total // 2, total - total // 2, *pads]
    y = F.conv2d(F.pad(x.permute(0, 3, 1, 2), pads), weight.permute(3, 2, 0, 1), None, steps)
    return y.permute(0, 2, 3, 1)


def _pool(node: Any, x: Tensor) -> Tensor:
    assert list(node.attr["ksize"].list.i) == list(node.attr["strides"].list.i) == [1, 2, 2, 1]
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).amax((2, 4))


def _resize(node: Any, x: Tensor, size: Tensor) -> Tensor:
    assert size.tolist() == [2 * x.shape[1], 2 * x.shape[2]]
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


_OPERATORS = {
    "Const": constant,
    "Cast": lambda node, x: x.to(DTYPES[node.attr["DstT"].type]),
    "Conv2D": _convolution,
    "BiasAdd": lambda _, x, bias: x + bias,
    "Relu": lambda _, x: x.relu(),
    "MaxPool": _pool,
    "ResizeNearestNeighbor": _resize,
    "Add": lambda _, x, y: x + y,
    "Identity": lambda _, x: x,
}

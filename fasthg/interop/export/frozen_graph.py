"""MARS's frozen graph: the traced network in TensorFlow's operators and layout, node by node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from fasthg.interop.export.graphdef import Attribute, GraphDef, Shape

INPUT, OUTPUT = "images", "output_heatmaps"

_FLOAT: dict[str, Attribute] = {"T": torch.float32}
_NHWC: dict[str, Attribute] = {**_FLOAT, "data_format": "NHWC"}
_ATEN = torch.ops.aten


def frozen_graph(program: ExportedProgram, stored: torch.dtype) -> bytes:
    """A `GraphDef` that TensorFlow 1.15 and later load: `images` -> `output_heatmaps`.

    `images` is float32 `(batch, height, width, 3)`, RGB in [-1, 1]; `output_heatmaps` is float32
    `(batch, height / 4, width / 4, parts)`. Constants bear the names of the network's tensors with
    `/` for the dots, convolution weights as `(height, width, in, out)`.

    Args:
        program: of an `ExportNetwork` without peaks that computes in float32.
        stored: dtype of convolution weights in the file; a `Cast` after each widens it.
    """
    return _Translation(program, stored).graph.serialize()


class _Translation:
    def __init__(self, program: ExportedProgram, stored: torch.dtype) -> None:
        self.graph, self.stored = GraphDef(), stored
        signature = program.graph_signature
        tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._names: dict[Node, str] = {}
        self._pads: dict[Node, list[int]] = {}
        """What `pad` adds, in torch's order; the next convolution applies it."""
        for node in program.graph.nodes:
            if node.op == "placeholder":
                path = tensors.get(node.name)
                if path is None:
                    batch, channels, *sides = node.meta["val"].shape
                    shape = Shape((-1, *sides, channels))
                    attributes: dict[str, Attribute] = {"dtype": torch.float32, "shape": shape}
                    self._names[node] = self.graph.node(INPUT, "Placeholder", (), attributes)
                else:
                    name = path.removeprefix("network.").replace(".", "/")
                    self._names[node] = self._constant(name, program.state_dict[path])
            elif node.op == "call_function":
                self._names[node] = self._call(node)
            else:
                (result,) = node.args[0]
                self.graph.node(OUTPUT, "Identity", [self._names[result]], _FLOAT)

    def _constant(self, name: str, tensor: Tensor) -> str:
        if tensor.ndim != 4:
            return self.graph.constant(name, tensor)
        value = tensor.permute(2, 3, 1, 0).to(self.stored)
        constant = self.graph.constant(name, value)
        if self.stored == torch.float32:
            return constant
        types: dict[str, Attribute] = {"SrcT": self.stored, "DstT": torch.float32}
        return self.graph.node(f"{name}/wide", "Cast", [constant], types)

    def _call(self, node: Node) -> str:
        inputs = [self._names[arg] for arg in node.args if isinstance(arg, Node)]
        match node.target:
            case _ATEN.pad.default:
                self._pads[node] = list(node.args[1])  # type: ignore[arg-type]
                return inputs[0]
            case _ATEN.conv2d.default:
                return self._convolution(node)
            case _ATEN.relu.default:
                return self.graph.node(node.name, "Relu", inputs, _FLOAT)
            case _ATEN.max_pool2d.default:
                window: dict[str, Attribute] = {"ksize": (1, 2, 2, 1), "strides": (1, 2, 2, 1)}
                return self.graph.node(
                    node.name, "MaxPool", inputs, {**_NHWC, **window, "padding": "VALID"}
                )
            case _ATEN.upsample_nearest2d.vec:
                sides = torch.tensor(node.meta["val"].shape[2:], dtype=torch.int32)
                size = self.graph.constant(f"{node.name}/size", sides)
                return self.graph.node(
                    node.name, "ResizeNearestNeighbor", [inputs[0], size], _FLOAT
                )
            case _ATEN.add.Tensor:
                return self.graph.node(node.name, "Add", inputs, _FLOAT)
        raise NotImplementedError(f"{node.target}: no TensorFlow operator is known for it")

    def _convolution(self, node: Node) -> str:
        x, weight, bias, stride, padding = _arguments(node)
        left, right, top, bottom = self._pads.get(x, (0, 0, 0, 0))
        padded = [(top + padding[0], bottom + padding[0]), (left + padding[1], right + padding[1])]
        unpadded = x.args[0] if x in self._pads else x
        assert isinstance(unpadded, Node)
        sides, kernel = unpadded.meta["val"].shape[2:], weight.meta["val"].shape[2:]
        if padded != [_same(*axis) for axis in zip(sides, kernel, stride, strict=True)]:
            raise NotImplementedError(f"{node.name}: padding {padded} is not TensorFlow's SAME")
        y = self.graph.node(
            node.name,
            "Conv2D",
            [self._names[x], self._names[weight]],
            {**_NHWC, "strides": (1, *stride, 1), "padding": "SAME"},
        )
        if bias is None:
            return y
        return self.graph.node(f"{y}/bias", "BiasAdd", [y, self._names[bias]], _NHWC)


def _arguments(node: Node) -> tuple[Node, Node, Node | None, list[int], list[int]]:
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0]]
    arguments: list[Any] = list(node.args)
    return tuple(arguments + defaults[len(arguments) :])


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Rows before and after, as TensorFlow's SAME pads an axis of `size`."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2

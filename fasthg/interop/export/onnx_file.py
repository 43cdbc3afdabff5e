"""ONNX content of a traced network, by torch's exporter."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from fasthg.errors import missing_package

OPSET = 18
"""Operators as of ONNX 1.13 (2022), which runtimes of today know."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def need_packages() -> None:
    """Raise EnvironmentFault where a package of the extra is missing."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise missing_package("--to onnx", name, "export") from None


def onnx_content(
    program: ExportedProgram,
    outputs: list[str],
    metadata: Mapping[str, str],
    stored: torch.dtype,
) -> bytes:
    """The content of one file, weights within.

    Args:
        outputs: names of the results; the input's is `images`.
        metadata: goes to `metadata_props`.
        stored: bfloat16 stores the float32 weights of convolutions in it, each with a `Cast` to
            float32 that a session runs once at its start: CPU runtimes have no convolution of
            bfloat16.
    """
    with _quiet():
        exported = torch.onnx.export(
            *(program, ()),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            output_names=outputs,
        )
    assert exported is not None
    model = exported.model_proto
    _describe(model, metadata)
    if stored == torch.bfloat16:
        store_bfloat16(model.graph)
    content: bytes = model.SerializeToString()
    return content


def _describe(model: Any, metadata: Mapping[str, str]) -> None:
    """Add metadata and the name of the batch axis; remove what names this machine."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    graph = model.graph
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    for value in (*graph.input, *graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = "batch"


def store_bfloat16(graph: Any) -> None:
    """Store float32 weights of convolutions in bfloat16, with a `Cast` to float32 after each."""
    import onnx

    casts = []
    for tensor in graph.initializer:
        if len(tensor.dims) != 4 or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        name = tensor.name
        weights = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        tensor.name = f"{name}.bfloat16"
        tensor.data_type = onnx.TensorProto.BFLOAT16
        tensor.raw_data = weights.bfloat16().view(torch.uint8).numpy().tobytes()
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages about torchvision and torch's own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)

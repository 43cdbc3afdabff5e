"""Trained networks for other runtimes: ONNX, torch.export and MARS's frozen graph."""

from __future__ import annotations

from fasthg.interop.export.comparison import Difference, check, need_runtime
from fasthg.interop.export.exporter import (
    FORMATS,
    PRECISIONS,
    Exported,
    Trained,
    export,
    open_trained,
)

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "Difference",
    "Exported",
    "Trained",
    "check",
    "export",
    "need_runtime",
    "open_trained",
]

"""Export of a run or a weights file to one file for another runtime."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram

from fasthg import __version__
from fasthg.config import Config
from fasthg.errors import ConfigError, FasthgError
from fasthg.files import write_atomically
from fasthg.interop.export.frozen_graph import frozen_graph
from fasthg.interop.export.network import ExportNetwork, traced
from fasthg.interop.export.onnx_file import need_packages, onnx_content
from fasthg.model import StackedHourglass
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import WeightsFile, load_model

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "mars-pb": ".pb"}
"""--to -> suffix of the file."""
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MARS_INPUT = 256


@dataclass(frozen=True)
class Trained:
    """A trained network and its origin."""

    path: Path
    """The weights file."""
    model: StackedHourglass
    config: Config
    metadata: dict[str, str]
    """Of the weights file; values are JSON."""
    stem: Path
    """The default target without a suffix."""


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    kind: str
    precision: str
    decode: str | None
    """How the graph decodes keypoints; None without --peaks."""
    notes: list[str]


def open_trained(source: RunFolder | WeightsFile, config: Config) -> Trained:
    """The best weights of a run folder, or those of a weights file.

    config: the source's, with overrides.

    Raises:
        DataError: it has no weights that can be read, or others than `config` describes.
    """
    model, metadata = load_model(source.best, config)
    path = source.path
    stem = path.with_suffix("") if isinstance(source, WeightsFile) else path / path.resolve().name
    return Trained(source.best, model, config, metadata, stem)


def export(
    trained: Trained,
    kind: str,
    *,
    target: Path | None = None,
    precision: str = "fp32",
    peaks: bool = False,
) -> Exported:
    """Write one file, atomically in place of an older one.

    Args:
        kind: one of FORMATS.
        target: the file; the run's name in the run folder where None, or the weights file's folder.
        precision: one of PRECISIONS. fp16 computes in float16 in onnx and pt2, bf16 in bfloat16 in
            pt2; elsewhere the weights are stored in it and the arithmetic is float32.
        peaks: also output keypoints and scores, decoded by DECODE.

    Raises:
        ConfigError: an unknown kind or precision, or peaks that the kind cannot have.
        EnvironmentFault: a package is missing.
        FasthgError: the file cannot be written.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--to {kind}: unknown format; use {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision}: unknown; use {', '.join(PRECISIONS)}")
    if kind == "mars-pb" and peaks:
        raise ConfigError("--peaks: MARS's graph has heatmaps only; leave it out, or use --to onnx")
    if kind == "onnx":
        need_packages()
    config = trained.config
    stored = PRECISIONS[precision]
    computes = kind == "pt2" or (kind == "onnx" and stored == torch.float16)
    computed = stored if computes else torch.float32
    decode = config.DECODE if peaks else None
    program = traced(ExportNetwork(trained.model, stored, computed, decode), config)
    path = target or trained.stem.with_name(trained.stem.name + FORMATS[kind])
    if path.is_dir():
        raise FasthgError(f"{path}: is a folder; give -o a file")
    metadata = _metadata(trained, precision, decode)
    if kind == "onnx":
        outputs = ["heatmaps", "keypoints", "scores"] if peaks else ["heatmaps"]
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        content = onnx_content(program, outputs, texts, stored)
    elif kind == "pt2":
        content = _pt2_content(program, metadata)
    else:
        content = frozen_graph(program, stored)
    write_atomically(path, lambda temporary: _write(temporary, content))
    return Exported(path, kind, precision, decode, _notes(config, kind))


def _pt2_content(program: ExportedProgram, metadata: dict[str, Any]) -> bytes:
    program.example_inputs = None  # else the images are saved as well
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _metadata(trained: Trained, precision: str, decode: str | None) -> dict[str, Any]:
    """Metadata that the file carries."""
    config = trained.config
    known = ("step", "val_error_mean_px")
    return {
        **{k: json.loads(text) for k, text in trained.metadata.items() if k in known},
        "fasthg": __version__,
        "parts": config.PARTS.NAMES,
        "sigmas": config.PARTS.SIGMAS,
        "left_right_pairs": config.PARTS.LEFT_RIGHT_PAIRS,
        "input_size": config.INPUT_SIZE,
        "heatmap_size": config.HEATMAP_SIZE,
        "input": "RGB / 127.5 - 1",
        "precision": precision,
        "decode": decode,
    }


def _notes(config: Config, kind: str) -> list[str]:
    notes = []
    if kind == "mars-pb" and config.INPUT_SIZE != _MARS_INPUT:
        notes.append(f"images are {config.INPUT_SIZE} px a side; MARS gives {_MARS_INPUT}")
    if config.FLIP_TEST:
        notes.append("FLIP_TEST: the average with the mirrored image is left out")
    return notes

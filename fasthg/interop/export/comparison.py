"""Comparison of an exported file with fasthg's own inference, on real frames."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import make_loader
from fasthg.data.sampler import BatchSampler
from fasthg.errors import ConfigError, DataError, EnvironmentFault
from fasthg.inference.predictor import Forward
from fasthg.interop.export.exporter import Exported, Trained
from fasthg.interop.export.frozen_graph import INPUT, OUTPUT
from fasthg.model import normalise
from fasthg.model.hourglass import STRIDE
from fasthg.ops import heatmap_peaks

MAX_INSTANCES = 64
"""Instances that are compared, spread evenly over the data."""
_BATCH = 8
HEATMAPS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest difference of a heatmap that passes, as a share of the largest value in any."""

# Normalised images (batch, 3, height, width) -> heatmaps (batch, parts, height, width) and, where
# the file has peaks, keypoints (batch, parts, 2) in input px and scores.
Runner = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Difference:
    """Differences between an exported file and fasthg in float32 on a CPU."""

    instances: int
    heatmap_max: float
    """Largest difference of a cell."""
    highest: float
    """Largest value, either sign, in fasthg's heatmaps."""
    keypoint_mean_px: float
    """Between keypoints decoded by DECODE, image px."""
    keypoint_max_px: float
    tolerance: float
    """Largest `heatmap_max` that passes."""

    @property
    def passed(self) -> bool:
        """Whether the heatmaps are within the tolerance; NaN is not."""
        return self.heatmap_max <= self.tolerance

    def lines(self) -> list[str]:
        """The result as text."""
        return [
            f"check on {self.instances} instances: keypoints {self.keypoint_mean_px:.2g} px apart "
            f"in the mean, {self.keypoint_max_px:.2g} at most (image px)",
            f"heatmaps {self.heatmap_max:.2g} apart at most, of at most {self.highest:.3g}: "
            f"{'within' if self.passed else 'BEYOND'} the tolerance of {self.tolerance:.2g}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """The result for JSON."""
        return {**asdict(self), "passed": self.passed}


def need_runtime(kind: str) -> None:
    """Raise EnvironmentFault if the runtime of this kind of file is not installed."""
    if kind == "mars-pb":
        _tensorflow()


def check(exported: Exported, trained: Trained, data: Sequence[str] | None) -> Difference:
    """Run a file and fasthg on the same frames.

    Args:
        data: TFRecord globs; the run's test split where None, or else val.

    Raises:
        ConfigError: there is no split.
        DataError: no frame can be read.
        EnvironmentFault: the file's runtime is not installed.
    """
    config = trained.config.model_copy(
        update={"FLIP_TEST": False, "DEVICE": "cpu", "LOADER": "portable"}
    )
    patterns = data or config.DATA.TEST or config.DATA.VAL
    if not patterns:
        raise ConfigError("--check: DATA has neither TEST nor VAL; give --data GLOB")
    runner = _RUNNERS[exported.kind](exported)
    index = RecordIndex.build(patterns, config.PARTS.NUM_PARTS)
    ours = Forward(trained.model, config, torch.float32)
    heatmaps, keypoints, highest = [0.0], [], 0.0
    for images, to_image in _frames(index, config):
        expected = ours(images)[-1]
        actual, *peaks = runner(normalise(images))
        heatmaps.append(float((actual - expected).abs().amax()))
        highest = max(highest, float(expected.abs().amax()))
        cells = peaks[0] / STRIDE if peaks else heatmap_peaks(actual, config.DECODE)[0]
        pairs = cells, heatmap_peaks(expected, config.DECODE)[0]
        points = [geometry.apply(xy.double().numpy(), to_image) for xy in pairs]
        keypoints.append(np.linalg.norm(points[0] - points[1], axis=-1).ravel())
    if not keypoints:
        raise DataError("--check: no image could be read; run: fasthg data check")
    distances = np.concatenate(keypoints)
    return Difference(
        instances=len(distances) // config.PARTS.NUM_PARTS,
        heatmap_max=float(np.max(heatmaps)),
        highest=highest,
        keypoint_mean_px=float(distances.mean()),
        keypoint_max_px=float(distances.max()),
        tolerance=HEATMAPS[exported.precision] * highest,
    )


def _frames(index: RecordIndex, config: Config) -> Any:
    """Images (batch, input, input, 3) uint8 and maps (batch, 2, 3) from cells to image px."""
    sampler = BatchSampler(
        index, config, training=False, seed=0, batch_size=min(_BATCH, len(index))
    )
    count = min(sampler.batches_per_epoch, MAX_INSTANCES // _BATCH)
    loader = make_loader(sampler, config, torch.device("cpu"))
    with contextlib.closing(loader):
        for step in np.linspace(0, sampler.batches_per_epoch - 1, count).astype(int):
            for batch in loader.batches(int(step), int(step) + 1):
                yield batch.images, batch.crop_to_image.double().numpy()


def _onnx(exported: Exported) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(t) for t in session.run(None, {"images": images.numpy()})]

    return run


def _pt2(exported: Exported) -> Runner:
    module = torch.export.load(exported.path).module()

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            results: Sequence[Tensor] = module(images)
            return results

    return run


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow
    except ImportError:
        raise EnvironmentFault(
            "--check: a mars-pb file runs in TensorFlow, which is not installed; run: "
            "pip install tensorflow-cpu, or leave out --check"
        ) from None
    return tensorflow.compat.v1


def run_tensorflow(exported: Exported) -> Runner:
    """A TensorFlow session that runs a mars-pb file.

    Raises:
        EnvironmentFault: it is not installed.
    """
    tf = _tensorflow()
    definition = tf.GraphDef()
    definition.ParseFromString(exported.path.read_bytes())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
    session = tf.Session(graph=graph)

    def run(images: Tensor) -> Sequence[Tensor]:
        inputs: npt.NDArray[np.float32] = images.permute(0, 2, 3, 1).contiguous().numpy()
        heatmaps = session.run(f"{OUTPUT}:0", {f"{INPUT}:0": inputs})
        return [torch.from_numpy(heatmaps).permute(0, 3, 1, 2)]

    return run


_RUNNERS: dict[str, Callable[[Exported], Runner]] = {
    "onnx": _onnx,
    "pt2": _pt2,
    "mars-pb": run_tensorflow,
}

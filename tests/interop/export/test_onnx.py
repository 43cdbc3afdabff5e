"""ONNX files in onnxruntime."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from small_weights import opened
from torch import Tensor

from fasthg.errors import EnvironmentFault
from fasthg.interop.export import Trained, export
from fasthg.interop.export.onnx_file import store_bfloat16
from fasthg.ops import heatmap_peaks


def run(model: Any, images: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [torch.from_numpy(t) for t in session.run(None, {"images": images.numpy()})]


@pytest.fixture(scope="module")
def dark(shallow: Trained) -> Path:
    return export(shallow, "onnx", peaks=True).path


@pytest.mark.slow
@torch.no_grad()
def test_heatmaps_and_peaks_at_any_batch(shallow: Trained, dark: Path) -> None:
    model = onnx.load(dark)
    onnx.checker.check_model(model)
    for batch in (1, 3):
        images = torch.rand(batch, 3, 64, 64) * 2 - 1
        expected = shallow.model(images)[-1]
        points, heights = heatmap_peaks(expected, "dark")
        maps, keypoints, scores = run(model, images)
        assert maps.dtype == keypoints.dtype == torch.float32
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(scores, heights, rtol=0, atol=1e-4)
        torch.testing.assert_close(keypoints, points * 4, rtol=0, atol=2e-2)


@pytest.mark.slow
def test_the_file_describes_itself_and_nothing_else(dark: Path, repository: Path) -> None:
    content = dark.read_bytes()
    model = onnx.load_from_string(content)
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert told["parts"][0] == "nose" and told["left_right_pairs"] == [[2, 1], [5, 4]]
    assert (told["input_size"], told["heatmap_size"], told["decode"]) == (64, 16, "dark")
    assert (told["step"], told["val_error_mean_px"], told["precision"]) == (7, 1.5, "fp32")
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["heatmaps", "keypoints", "scores"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in shape] == ["batch", 3, 64, 64]
    assert {node.domain for node in model.graph.node} == {""}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    for word in (str(repository), sys.prefix, "fasthg::", "network.py"):
        assert word.encode() not in content


@pytest.mark.slow
@torch.no_grad()
def test_float16_within_and_float32_without(shallow: Trained, dark: Path, tmp_path: Path) -> None:
    trained = opened(shallow.path, "DECODE=quarter")
    done = export(trained, "onnx", target=tmp_path / "h.onnx", precision="fp16", peaks=True)
    model = onnx.load(done.path)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    maps, keypoints, _ = run(model, images)
    points, _ = heatmap_peaks(maps, "quarter")
    torch.testing.assert_close(keypoints, points * 4)
    expected = shallow.model(images)[-1]
    assert 0 < (maps - expected).norm() / expected.norm() < 5e-3
    assert done.path.stat().st_size < 0.75 * dark.stat().st_size


@pytest.mark.slow
@torch.no_grad()
def test_bfloat16_is_stored_and_cast(shallow: Trained, dark: Path) -> None:
    whole = onnx.load(dark)
    model = onnx.load(dark)
    store_bfloat16(model.graph)
    onnx.checker.check_model(model)
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) == 4 and t.dims[0] > 1}
    assert kinds == {onnx.TensorProto.BFLOAT16}
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    maps, expected = run(model, images)[0], run(whole, images)[0]
    assert 0 < (maps - expected).norm() / expected.norm() < 4e-2


def test_a_missing_package_is_named_with_its_remedy(
    shallow: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EnvironmentFault, match=r"onnxscript.*fasthg\[export\]"):
        export(shallow, "onnx")

"""torch.export files, loaded where fasthg is not, and the comparison with fasthg."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_weights import opened, written

from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError, EnvironmentFault
from fasthg.interop.export import Exported, Trained, check, export, need_runtime
from fasthg.interop.export.network import ExportNetwork
from fasthg.ops import heatmap_peaks

LOAD = """
import json, sys
sys.modules["fasthg"] = None  # not to be imported
import torch
path, images, out = sys.argv[1:]
extra = {"metadata.json": ""}
program = torch.export.load(path, extra_files=extra)
operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
assert all(name.startswith("aten.") for name in operators), operators
module, images = program.module(), torch.load(images)
torch.save([module(images), module(images[:1]), json.loads(extra["metadata.json"])], out)
"""


@pytest.fixture(scope="module")
def exported(shallow: Trained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(shallow, "pt2", target=tmp_path_factory.mktemp("pt2") / "a.pt2")


@pytest.mark.slow
@torch.no_grad()
def test_plain_torch_loads_it(shallow: Trained, exported: Exported, tmp_path: Path) -> None:
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    torch.save(images, tmp_path / "images.pt")
    files = [exported.path, tmp_path / "images.pt", tmp_path / "out.pt"]
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True, cwd=tmp_path)
    several, one, told = torch.load(files[2])
    expected = shallow.model(images)[-1]
    scale = max(1.0, float(expected.abs().max()))
    for actual, count in ((several, 3), (one, 1)):
        torch.testing.assert_close(actual[0], expected[:count], rtol=0, atol=1e-5 * scale)
    assert (told["decode"], told["input_size"], len(told["parts"])) == (None, 64, 7)


@pytest.mark.parametrize("method", ["argmax", "quarter", "dark"])
@torch.no_grad()
def test_peaks_are_those_of_the_operator_in_input_px(shallow: Trained, method: str) -> None:
    maps, keypoints, scores = ExportNetwork(shallow.model, decode=method)(torch.rand(3, 3, 64, 64))
    points, heights = heatmap_peaks(maps, method)
    torch.testing.assert_close(keypoints, points * 4, rtol=0, atol=1e-3)
    assert torch.equal(scores, heights)


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=5, frames={"val": 5}, size=(192, 160))
    return [str(folder / "val_dataset-*")]


@pytest.mark.slow
def test_the_check_passes_and_tells_other_weights_apart(
    shallow: Trained, exported: Exported, mice: list[str], tmp_path: Path
) -> None:
    found = check(exported, shallow, mice)
    assert found.passed and found.instances == 10
    assert found.keypoint_mean_px <= found.keypoint_max_px < 0.1
    path = written(tmp_path / "other.safetensors", seed=1, NUM_STACKS=1)
    found = check(exported, opened(path), mice)
    assert not found.passed and found.keypoint_mean_px > 1
    assert "BEYOND" in found.lines()[1]
    with pytest.raises(ConfigError, match="--data GLOB"):
        check(exported, shallow, None)


def test_mistakes_end_in_one_line(shallow: Trained, tmp_path: Path, monkeypatch) -> None:
    for arguments, message in (
        ({"kind": "onxn"}, "use onnx, pt2, mars-pb"),
        ({"kind": "pt2", "precision": "fp8"}, "use fp32, fp16, bf16"),
        ({"kind": "mars-pb", "peaks": True}, "heatmaps only"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(shallow, **arguments)
    plateau = opened(shallow.path, "DECODE=plateau")
    with pytest.raises(ConfigError, match="DECODE=dark"):
        export(plateau, "pt2", peaks=True)
    bare = tmp_path / "bare.safetensors"
    with pytest.raises(DataError, match="no such weights"):
        opened(bare)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, bare)
    with pytest.raises(DataError, match="has no configuration in it"):
        opened(bare)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(EnvironmentFault, match="tensorflow-cpu"):
        need_runtime("mars-pb")


@pytest.mark.slow
def test_the_command(shallow: Trained, mice: list[str], tmp_path: Path, capsys, monkeypatch):
    from fasthg.cli import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt2").write_text("older")
    words = ["--to", "pt2", "-o", "a.pt2", "--precision", "bf16", "--check", "--json", "--data"]
    app(["export", str(shallow.path), *words, *mice], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    size = (tmp_path / "a.pt2").stat().st_size
    assert told["check"]["passed"] and told["bytes"] == size > 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]

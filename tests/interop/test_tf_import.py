"""Weights from TensorFlow checkpoints: the reference's outputs, and words for what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tf_bundle import write_bundle

from fasthg.data.synthetic.dataset import render, write_dataset
from fasthg.errors import ConfigError, DataError
from fasthg.interop.tf_import import read_checkpoint
from fasthg.interop.tf_names import EMA_SUFFIX, network_keys, variable_names
from fasthg.model import StackedHourglass
from fasthg.runs.checkpoint import save_weights
from fasthg.runs.weights import load_model, trained

CHECKPOINT = "mars/model/checkpoint_2stack_f32_with_slots/model.ckpt-1234"


def variables(stacks: int = 1, **shape: int) -> dict[str, np.ndarray]:
    """Averages and one slot of a small network, as TensorFlow names and shapes them."""
    torch.manual_seed(stacks)
    net = StackedHourglass(stacks=stacks, **{"features": 8, "stem_features": 4, **shape})
    state, found = net.state_dict(), {"global_step": np.array(7, np.int64)}
    for name, target in variable_names(net).items():
        value = state[target].permute(2, 3, 1, 0) if state[target].ndim == 4 else state[target]
        found[name] = np.zeros(value.shape, np.float32)
        found[name + EMA_SUFFIX] = value.numpy()
        found[f"{name}/RMSProp"] = np.ones(value.shape, np.float32)
    return found


@pytest.mark.parametrize("mode", ["ema", "raw"])
def test_outputs_equal_the_reference(
    test_data: Path, tmp_path: Path, repository: Path, fasthg, mode: str
) -> None:
    """MARS's stock config_train.yaml knows nothing of FEATURES: the checkpoint tells."""
    stock, out = repository / "tests/config/stock_config_train.yaml", tmp_path / "w.safetensors"
    arguments = ("-o", out, "--config", stock, f"--{mode}", "--json", "NUM_STACKS=2")
    code, printed, err = fasthg("import-tf", test_data / CHECKPOINT, *arguments)
    assert code == 0, err
    told = json.loads(printed)
    assert (told["step"], told["NUM_STACKS"], told["FEATURES"]) == (1234, 2, 32)
    assert len(told["variables"]) == 400
    assert told["not_used"]["RMSProp"] == told["not_used"]["RMSProp_1"] == 204
    model, metadata = load_model(out, trained(out).config())
    assert json.loads(metadata["step"]) == 1234
    golden = np.load(test_data / "mars/model/golden_2stack_f32_with_slots.npz")
    images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        single = model(images).permute(0, 1, 3, 4, 2)
        exact = model.double()(images.double()).permute(0, 1, 3, 4, 2)
    for stack in range(2):
        expected = torch.from_numpy(golden[f"eval_{mode}_stack{stack}"])
        # Where maps reach 171, float32 itself is 1e-4 from exact arithmetic.
        peak = float(expected.abs().max())
        assert float((exact[stack] - expected).abs().max()) <= max(1e-4, 1e-6 * peak)
        assert float((single[stack] - expected).abs().max()) <= max(1e-4, 1.5e-6 * peak)


@pytest.mark.parametrize("stacks", [2, 8])
def test_the_network_is_known_by_its_variables(test_data: Path, stacks: int) -> None:
    text = (test_data / f"mars/model/variables_{stacks}stack.txt").read_text()
    rows = [line.split("\t") for line in text.splitlines() if line and line[0] != "#"]
    shapes = {name: [int(n) for n in shape.split("x") if n] for name, shape, *_ in rows}
    keys = {"NUM_STACKS": stacks, "FEATURES": 256, "STEM_FEATURES": 64, "PARTS.NUM_PARTS": 7}
    assert network_keys(shapes) == keys
    assert network_keys({"other/weights": [3, 3]}) == {}


def test_a_person_sees_what_was_mapped(tmp_path: Path, fasthg) -> None:
    write_bundle(tmp_path / "model.ckpt-7", {**variables(), "learning/rate": np.zeros(1)})
    out = tmp_path / "w.safetensors"
    code, text, _ = fasthg("import-tf", tmp_path, "-o", out)
    assert code == 0 and out.is_file()
    for line in ("step 7, moving averages", "FEATURES 8", "stem        44 var", "stack 0     174 "):
        assert line in text
    assert "218 raw values, 218 RMSProp, learning/rate\n" in text
    _, text, _ = fasthg("import-tf", tmp_path, "-o", out, "--table")
    assert f"HourGlass/Conv/weights{EMA_SUFFIX}  stem.conv.conv.weight  4x3x7x7\n" in text


@pytest.mark.slow
def test_an_imported_file_predicts_and_is_evaluated(tmp_path: Path, fasthg, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "m", variables(), shards=2)
    sizes = ("INPUT_SIZE=64", "HEATMAP_SIZE=16", "NUM_INPUT_THREADS=0")
    assert fasthg("import-tf", "m", "-o", "w.safetensors", *sizes)[0] == 0
    cv2.imwrite("mouse.png", render(3, "film", 0, (160, 128)).image)
    code, _, err = fasthg(
        "predict", "w.safetensors", "mouse.png", "--boxes", "whole", "DECODE=argmax"
    )
    assert code == 0, err
    (table,) = Path().glob("*.csv")
    assert len(table.read_text().splitlines()) >= 2
    write_dataset(tmp_path / "mice", seed=5, frames={"test": 2}, size=(160, 128))
    code, text, err = fasthg("eval", "w.safetensors", "--data", "mice/test_dataset-*")
    assert code == 0 and "weights of step 7" in text, err
    assert (tmp_path / "w.eval/data/metrics.json").is_file()
    code, _, err = fasthg("eval", "w.safetensors", "--data", "mice/test_dataset-*", "--report")
    assert code == 2 and "w.safetensors is of none" in err
    code, _, err = fasthg("predict", "none.safetensors", "mouse.png")
    assert code == 1 and "none.safetensors: no such weights file" in err


def changed(change: Callable[[dict[str, np.ndarray]], object]) -> dict[str, np.ndarray]:
    found = variables()
    change(found)
    return found


BETA = "HourGlass/Conv/BatchNorm/beta"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (changed(lambda v: v.pop(BETA + EMA_SUFFIX)), f"missing: {BETA}{EMA_SUFFIX};"),
        (
            changed(lambda v: v.update({"HourGlass/extra/weights": np.zeros(1)})),
            "surplus: HourGlass/extra/weights;",
        ),
        (
            changed(lambda v: v.update({BETA + EMA_SUFFIX: np.zeros(5, np.float32)})),
            f"shape: {BETA}{EMA_SUFFIX} 5 instead of 4;",
        ),
        (
            changed(lambda v: v[BETA + EMA_SUFFIX].fill(np.nan)),
            f"not finite, of a training that diverged: {BETA};",
        ),
        ({k: v for k, v in variables().items() if EMA_SUFFIX not in k}, "give --raw"),
        ({"other": np.zeros(1)}, "none of its 1 variables is of MARS's pose network"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, found, said: str) -> None:
    write_bundle(tmp_path / "m", found)
    with pytest.raises(DataError) as caught:
        read_checkpoint(tmp_path / "m", None)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_keys_of_another_network_are_named(tmp_path: Path, fasthg) -> None:
    write_bundle(tmp_path / "m", variables(2))
    (tmp_path / "c.yaml").write_text("NUM_STACKS: 8\nFEATURES: 8\n")
    with pytest.raises(ConfigError, match=r"has NUM_STACKS 2, and .*c\.yaml NUM_STACKS 8; set NUM"):
        read_checkpoint(tmp_path / "m", tmp_path / "c.yaml")
    write_bundle(tmp_path / "m", variables(parts=3))
    with pytest.raises(ConfigError, match=r"stock values PARTS\.NUM_PARTS 7; .*in the order of"):
        read_checkpoint(tmp_path / "m", None)
    code, _, err = fasthg("import-tf", tmp_path / "m", "-o", tmp_path / "w.pt")
    assert code == 2 and "end it in .safetensors" in err


def test_a_weights_file_of_another_writer_has_no_configuration(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(DataError, match="has no configuration in it"):
        trained(tmp_path / "w.safetensors").config()

"""Flip averaging, affine maps and the weights file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.errors import DataError
from fasthg.inference import predictor
from fasthg.inference.predictor import flip_back, forward
from fasthg.model import StackedHourglass, build_model, fold_batch_norm
from fasthg.ops import gaussian_heatmaps
from fasthg.runs.checkpoint import save_weights
from fasthg.runs.weights import load_model, weights_metadata
from fasthg.runtime import cuda_graph

SMALL = {"NUM_STACKS": 1, "FEATURES": 8, "STEM_FEATURES": 4, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16}


def test_flip_back_puts_mirrored_keypoints_where_they_were() -> None:
    """A keypoint at u lies at width - u in the mirrored crop, left and right exchanged."""
    points = torch.tensor([[[3.0, 4.0], [9.0, 7.5], [12.0, 2.0]]])
    sigmas = torch.full((3,), 1.5)
    mirrored = torch.stack([16.0 - points[..., 0], points[..., 1]], dim=-1)[:, [0, 2, 1]]
    straight = gaussian_heatmaps(points, sigmas, 16, subpixel=True)
    back = flip_back(gaussian_heatmaps(mirrored, sigmas, 16, subpixel=True), [(2, 1)])
    torch.testing.assert_close(back[..., 1:], straight[..., 1:])


def test_flip_test_changes_the_last_stack_only() -> None:
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    plain, flipped = Config(**SMALL), Config(**SMALL, FLIP_TEST=True)
    model = build_model(Config(**{**SMALL, "NUM_STACKS": 2})).eval()
    first = forward(model, images, plain, torch.float32)
    second = forward(model, images, flipped, torch.float32)
    assert torch.equal(first[0], second[0])
    mirrored = forward(model, images.flip(2), plain, torch.float32)
    expected = (first[-1] + flip_back(mirrored[-1], plain.PARTS.LEFT_RIGHT_PAIRS)) / 2
    torch.testing.assert_close(second[-1], expected)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.005)])
def test_half_precision_follows_float32(dtype: torch.dtype, bound: float) -> None:
    """A rounding is 2^-9 (bfloat16) or 2^-12 (float16); normalised layers add them up slowly."""
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    config = Config(**{**SMALL, "NUM_STACKS": 2, "FEATURES": 32})
    model = build_model(config).eval()
    single = forward(model, images, config, torch.float32)
    half = forward(model, images, config, dtype)
    assert float((half - single).norm() / single.norm()) < bound


def test_networks_of_one_seed_are_equal() -> None:
    first, second = build_model(Config(**SMALL)), build_model(Config(**SMALL))
    other = build_model(Config(**SMALL, RANDOM_SEED=2))
    weight = "stem.conv.conv.weight"
    assert torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    config = Config(**SMALL)
    path = tmp_path / "best.safetensors"
    save_weights(path, build_model(config).state_dict(), weights_metadata(config, 5, 1.5))
    model, metadata = load_model(path, config)
    assert not model.training
    assert metadata["step"] == "5"
    with pytest.raises(DataError, match="does not fit"):
        load_model(path, Config(**{**SMALL, "FEATURES": 12}))
    names = [f"p{i}" for i in range(7)]
    parts = {"NUM_PARTS": 7, "NAMES": names, "LEFT_RIGHT_PAIRS": [], "SIGMAS": [1.0] * 7}
    with pytest.raises(DataError, match="its parts are"):
        load_model(path, Config(**SMALL, PARTS=parts))


def test_images_of_one_shape_are_captured_at_the_third_time(monkeypatch) -> None:
    """With what a graph does on a GPU: the work runs on the images that lie where the first did."""
    captures: list[int] = []

    def capture(work, device):
        captures.append(1)
        result = work()
        return SimpleNamespace(replay=lambda: result.copy_(work()))

    monkeypatch.setattr(cuda_graph, "capture", capture)
    config = Config(**SMALL)
    run = predictor.Forward(build_model(config).eval(), config, torch.float32)
    monkeypatch.setattr(run, "_captures", True)
    for size, captured in ((2, 0), (2, 0), (2, 1), (2, 1), (1, 1), (2, 1), (2, 1), (2, 2)):
        images = torch.randint(0, 256, (size, 64, 64, 3), dtype=torch.uint8)
        got = run(images).clone()
        assert torch.equal(got, forward(run.model, images, config, torch.float32))
        assert len(captures) == captured


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predict_folds_unless_fused_is_off(monkeypatch: pytest.MonkeyPatch, dtype) -> None:
    folded = []

    def spy(model: StackedHourglass, as_dtype: torch.dtype) -> StackedHourglass:
        folded.append(as_dtype)
        return fold_batch_norm(model, as_dtype)

    monkeypatch.setattr(predictor, "fold_batch_norm", spy)
    batch = Batch(
        images=torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8),
        keypoints=torch.full((2, 7, 2), 8.0),
        visibility=torch.full((2, 7), 2, dtype=torch.uint8),
        sigmas=torch.full((2, 7), 1.5),
        crop_to_image=torch.tensor([[[4.0, 0, 0], [0, 4.0, 0]]]).repeat(2, 1, 1),
        area=torch.ones(2),
        crop_area=torch.ones(2),
        instance=torch.arange(2),
    )
    index = SimpleNamespace(keypoints=np.zeros((2, 7, 2)), visibility=np.ones((2, 7), np.uint8))
    scores = []
    for fused in ("off", "auto"):
        config = Config(**SMALL, FUSED=fused)
        found = predictor.predict(build_model(config).eval(), [batch], index, config, dtype)
        scores.append(torch.from_numpy(found[config.DECODE].scores))
    assert folded == [dtype]
    # Folded, the 3x3 convolutions of float32 run by Winograd, which rounds some five times as much.
    roundings = 128 if dtype == torch.float32 else 16
    close = roundings * torch.finfo(dtype).eps * scores[0].abs().max().item()
    torch.testing.assert_close(*scores, rtol=0, atol=close)

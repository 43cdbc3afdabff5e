"""Crops of MARS's evaluation, against torch's corner-aligned sampling and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader, make_loader
from fasthg.data.opencv_loader import crop_and_resize
from fasthg.data.records.schema import Record
from fasthg.data.sampler import BatchSampler
from fasthg.errors import ConfigError
from fasthg.model import normalise

Make = Callable[..., Config]
WIDTH, HEIGHT = 120, 90
BOXES = np.float32(
    [[0.31, 0.2, 0.57, 0.83], [0.0, 0.4, 0.2, 0.6], [0.7, 0.55, 1.0, 1.0], [0.4, 0.4, 0.42, 0.43]]
)


def frame() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        ((0.0, 0.0, 1.0, 1.0), [0, 50, 100, 150, 200]),
        ((0.5, 0.0, 1.0, 1.0), [100, 125, 150, 175, 200]),
        ((0.1, 0.0, 0.3, 1.0), [20, 30, 40, 50, 60]),
        ((0.5, 0.0, 1.5, 1.0), [100, 150, 200, 0, 0]),
        ((1.0, 0.0, 0.0, 1.0), [200, 150, 100, 50, 0]),
    ],
)
def test_centres_of_the_first_and_last_px_are_the_ends(
    crop: tuple[float, ...], expected: list[int]
) -> None:
    row = np.uint8([0, 100, 200])
    image = np.repeat(np.tile(row, (4, 1))[..., None], 3, axis=2)
    sampled = crop_and_resize(image, np.float32(crop), 5)
    assert sampled.shape == (5, 5, 3) and sampled.dtype == np.float32
    np.testing.assert_allclose(sampled, np.tile(np.array(expected)[:, None], (5, 1, 3)), atol=1e-4)


@pytest.mark.parametrize("size", [7, 64])
def test_against_torch(size: int) -> None:
    image = frame()
    planes = torch.from_numpy(image).double().permute(2, 0, 1)[None]
    for x1, y1, x2, y2 in geometry.unrounded_crop(BOXES, 0.3).astype(float):
        x, y = (
            2 * torch.linspace(low, high, size, dtype=torch.float64) - 1
            for low, high in ((x1, x2), (y1, y2))
        )
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        wanted = grid_sample(planes, grid, align_corners=True, padding_mode="border")
        found = crop_and_resize(image, np.float32([x1, y1, x2, y2]), size)
        np.testing.assert_allclose(found, wanted[0].permute(1, 2, 0), atol=0.02)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.4, 0.6, (0.34, 0.66)),
        (0.05, 0.45, (0.0, 0.5)),
        (0.0, 0.3, (0.0, 0.3)),
        (0.6, 1.0, (0.6, 1.0)),
        (-0.1, 0.5, (0.0, 0.4)),
        (0.5, 1.1, (0.6, 1.0)),
    ],
)
def test_padding_without_rounding(low: float, high: float, expected: tuple[float, float]) -> None:
    for axis in (0, 1):
        box = np.zeros(4)
        box[[axis, axis + 2]] = low, high
        crop = geometry.unrounded_crop(box[None], 0.6)
        assert crop.dtype == np.float32
        assert crop[0, [axis, axis + 2]] == pytest.approx(expected, abs=1e-7)


@pytest.fixture
def animals(index_of: Callable[..., RecordIndex]) -> RecordIndex:
    centres = (BOXES[:, None, :2] + BOXES[:, None, 2:]) / 2
    record = Record(
        encoded=cv2.imencode(".png", frame()[..., ::-1])[1].tobytes(),
        width=WIDTH,
        height=HEIGHT,
        bbox=BOXES,
        keypoints=np.concatenate([BOXES[:, None, :2], centres, BOXES[:, None, 2:]], axis=1),
    )
    return index_of([record])


def test_an_evaluation_as_mars(
    animals: RecordIndex, configure: Make, open_loader: Callable[..., Loader]
) -> None:
    cfg = configure(parts=3, EVAL_CROP="mars", LOOSE_BBOX_PAD_FACTOR=0.3)
    sampler = BatchSampler(animals, cfg, training=False, seed=0, final=True)
    (batch,) = open_loader("portable", sampler).batches(0, 1)
    crops = geometry.unrounded_crop(BOXES, np.float32(0.3))
    for image, crop in zip(batch.images.numpy(), crops, strict=True):
        np.testing.assert_array_equal(image, crop_and_resize(frame(), crop, 256))
    # Heatmaps are read as MARS reads them: cell 0 is the crop's corner, cell 64 the opposite one.
    corners = geometry.apply(np.float64([[[0, 0], [64, 64]]] * 4), batch.crop_to_image.numpy())
    np.testing.assert_allclose(corners.reshape(4, 4), crops * ([WIDTH, HEIGHT] * 2), atol=1e-4)
    back = geometry.apply(batch.keypoints.numpy(), batch.crop_to_image.numpy())
    np.testing.assert_allclose(back, animals.keypoints, atol=1e-3)
    sides = (crops[:, 2:] - crops[:, :2]) * [WIDTH, HEIGHT]
    np.testing.assert_allclose(batch.crop_area, sides.prod(axis=1), rtol=1e-5)


def test_only_the_final_evaluation_is(
    animals: RecordIndex, configure: Make, open_loader: Callable[..., Loader]
) -> None:
    mars, own = (configure(parts=3, EVAL_CROP=crop) for crop in ("mars", "training"))
    (validation, plain) = (
        next(open_loader("portable", sampler).batches(0, 1))
        for sampler in (
            BatchSampler(animals, mars, training=False, seed=0),
            BatchSampler(animals, own, training=False, seed=0, final=True),
        )
    )
    assert validation.images.dtype == torch.uint8
    assert torch.equal(validation.images, plain.images)
    training = BatchSampler(animals, mars, training=True, seed=0, final=True)
    assert not training.crops_as_mars


def test_dali_is_never_asked_for_them(animals: RecordIndex, configure: Make) -> None:
    cfg = configure(parts=3, EVAL_CROP="mars")
    sampler = BatchSampler(animals, cfg, training=False, seed=0, final=True)
    with pytest.raises(ConfigError, match="EVAL_CROP: mars is not for the dali loader"):
        make_loader(sampler, cfg, torch.device("cpu"), "dali")
    loader = make_loader(sampler, cfg, torch.device("cuda"))
    assert loader.name == "portable", "what LOADER: auto takes, with a GPU as well"
    loader.close()


def test_a_damaged_image_is_left_out(
    animals: RecordIndex, configure: Make, open_loader: Callable[..., Loader]
) -> None:
    cfg = configure(parts=3, EVAL_CROP="mars")
    broken = replace(animals, jpeg_length=animals.jpeg_length // 2)
    sampler = BatchSampler(broken, cfg, training=False, seed=0, final=True)
    loader = open_loader("portable", sampler)
    assert list(loader.batches(0, 1)) == [] and len(loader.corrupt) == 1


def test_normalising_leaves_the_images_alone() -> None:
    """A flip test reads them a second time."""
    images = torch.full((1, 2, 2, 3), 255.0)
    assert (normalise(images) == 1).all() and (images == 255).all()

"""Crops that leave the image, against its padding by np.pad and positions worked out here."""

from __future__ import annotations

from collections.abc import Callable
from math import floor

import cv2
import numpy as np
import pytest

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader
from fasthg.data.records.schema import Record
from fasthg.data.sampler import BatchSampler, BatchSpec

Make = Callable[..., Config]
Open = Callable[..., Loader]
KINDS = ("portable", "dali")
WIDTH, HEIGHT = 120, 90
SIZE = 192
"""At the widest margin the whole image shrinks by 1.9, and so nothing is smoothed first."""
BEYOND = 200
"""Image px around the image, more than any crop here shows."""
BOXES = {
    "left": (0, 30, 40, 60),
    "right": (80, 30, 120, 60),
    "top": (40, 0, 80, 25),
    "bottom": (40, 65, 80, 90),
    "upper left": (0, 0, 30, 30),
    "upper right": (90, 0, 120, 30),
    "lower left": (0, 60, 30, 90),
    "lower right": (90, 60, 120, 90),
    "near a corner": (5, 4, 36, 30),
    "fractions of a px": (10.4, 20.6, 50.5, 61.5),
    "one px in a corner": (119, 89, 120, 90),
    "wholly outside": (125, -9, 130, -4),
    "larger than the image": (-30, -20, 150, 110),
}
FACTORS = (0.0, 0.5, 2.0)
"""Sums of powers of two, so that no edge depends on how a product is rounded."""
MOVING = {
    "DO_RANDOM_PADDING": True,
    "RANDOM_PADDING_MAX": 2.0,
    "DO_RANDOM_BBOX_SHIFT": 1.0,
    "RANDOM_BBOX_SHIFT_EXTENT": 25.0,
    "DO_RANDOM_FLIP_LEFT_RIGHT": 0.5,
    "DO_RANDOM_ROTATION": True,
}


def frame() -> np.ndarray:
    """A smooth picture (height, width, 3) whose borders are nowhere constant."""
    coarse = np.random.default_rng(4).uniform(0, 255, (10, 12, 3)).astype(np.float32)
    image = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@pytest.fixture
def animals(index_of: Callable[..., RecordIndex]) -> RecordIndex:
    """One frame with an animal of three parts in each of BOXES."""
    size = np.float32([WIDTH, HEIGHT])
    parts = np.float32([[3.25, 2.5], [60.0, 44.75], [118.5, 89.0]])
    record = Record(
        encoded=cv2.imencode(".png", frame()[..., ::-1])[1].tobytes(),
        width=WIDTH,
        height=HEIGHT,
        bbox=np.float32(list(BOXES.values())) / np.tile(size, 2),
        keypoints=np.repeat((parts / size)[None], len(BOXES), axis=0),
    )
    return index_of([record])


def cut(box: tuple[float, ...]) -> list[int]:
    """Whole px of a box within the image, at least one of them."""
    x1, y1, x2, y2 = (
        min(max(round(e), 0), end) for e, end in zip(box, (WIDTH, HEIGHT) * 2, strict=True)
    )
    x1, y1 = min(x1, WIDTH - 1), min(y1, HEIGHT - 1)
    return [x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)]


def rectangle(
    box: tuple[float, ...], factor: float, clip: bool, shift: tuple[float, ...] = (0, 0, 0, 0)
) -> list[int]:
    """x1 y1 x2 y2 of a crop, one axis after the other."""
    edges, found = cut(box), [0] * 4
    for axis, length in enumerate((WIDTH, HEIGHT)):
        low, high = edges[axis] - shift[axis], edges[axis + 2] + shift[axis + 2]
        if clip:
            low, high = max(low, 0), min(high, length)
        pad = factor * (high - low) / 2
        if clip:
            pad = min(pad, low, length - high)
        found[axis], found[axis + 2] = floor(low - pad), floor(high + pad)
    return found


def looked_at(crop: list[int], flip: bool = False, angle: float = 0.0) -> np.ndarray:
    """What the input shows of the padded image: bilinear, (size, size, 3) float64."""
    x1, y1, x2, y2 = crop
    u, v = np.meshgrid(*[(np.arange(SIZE) + 0.5) / SIZE - 0.5] * 2)
    turn = np.deg2rad(angle)
    u, v = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    x = (x1 + x2) / 2 + (-u if flip else u) * (x2 - x1) + BEYOND - 0.5
    y = (y1 + y2) / 2 + v * (y2 - y1) + BEYOND - 0.5
    image = np.pad(frame(), ((BEYOND, BEYOND), (BEYOND, BEYOND), (0, 0)), mode="edge").astype(float)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    right, lower = (x - column)[..., None], (y - row)[..., None]
    upper = image[row, column] * (1 - right) + image[row, column + 1] * right
    below = image[row + 1, column] * (1 - right) + image[row + 1, column + 1] * right
    return upper * (1 - lower) + below * lower


def crops_of(plan: BatchSpec) -> np.ndarray:
    """(instances, 4) x1 y1 x2 y2 of crops that are neither turned nor mirrored, image px."""
    corners = geometry.apply(
        np.tile([[0, 0], [SIZE, SIZE]], (len(plan), 1, 1)), plan.input_to_image
    )
    return corners.reshape(-1, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("border", ["clip", "edge"])
def test_crops_are_those_of_a_padded_image(
    animals: RecordIndex, configure: Make, open_loader: Open, border: str, factor: float, kind: str
) -> None:
    cfg = configure(
        parts=3,
        INPUT_SIZE=SIZE,
        HEATMAP_SIZE=SIZE // 4,
        LOOSE_BBOX_PAD_FACTOR=factor,
        CROP_BORDER=border,
        BATCH_SIZE=len(BOXES),
    )
    sampler = BatchSampler(animals, cfg, training=False, seed=0)
    plan = sampler.plan(0)
    expected = [rectangle(box, factor, border == "clip") for box in BOXES.values()]
    np.testing.assert_allclose(crops_of(plan), expected, atol=1e-9)
    assert not plan.smoothing.any()
    (batch,) = open_loader(kind, sampler).batches(0, 1)
    for name, image, crop in zip(BOXES, batch.images.numpy(), expected, strict=True):
        assert np.abs(image - looked_at(crop)).max() <= 1, name


@pytest.mark.parametrize("kind", KINDS)
def test_turned_mirrored_and_shifted_crops_leave_the_image_alike(
    animals: RecordIndex, configure: Make, open_loader: Open, kind: str
) -> None:
    cfg = configure(parts=3, INPUT_SIZE=SIZE, HEATMAP_SIZE=SIZE // 4, CROP_BORDER="edge", **MOVING)
    sampler = BatchSampler(animals, cfg, training=True, seed=6)
    boxes = list(BOXES.values())
    seen = 0
    for step, batch in enumerate(open_loader(kind, sampler).batches(0, 4)):
        plan = sampler.plan(step)
        for row, instance in enumerate(plan.instances.tolist()):
            draws = plan.draws
            crop = rectangle(boxes[instance], draws.pad[row], False, draws.shift[row])
            flip, angle = bool(draws.flip[row]), float(draws.angle[row])
            if plan.smoothing[row].any():
                continue
            seen += 1
            difference = np.abs(batch.images[row].numpy() - looked_at(crop, flip, angle))
            assert difference.max() <= 1, (boxes[instance], crop)
    assert seen >= 24


@pytest.mark.parametrize("border", ["clip", "edge"])
@pytest.mark.parametrize("factor", FACTORS)
def test_parts_are_where_their_px_are_and_lead_back(
    animals: RecordIndex, configure: Make, border: str, factor: float
) -> None:
    keys = {"CROP_BORDER": border, "LOOSE_BBOX_PAD_FACTOR": factor, "BATCH_SIZE": len(BOXES)}
    plan = BatchSampler(animals, configure(parts=3, **keys), training=False, seed=0).plan(0)
    crops = np.array([rectangle(box, factor, border == "clip") for box in BOXES.values()])
    sides = crops[:, 2:] - crops[:, :2]
    cells = (animals.keypoints - crops[:, None, :2]) * 64 / sides[:, None]
    np.testing.assert_allclose(plan.keypoints, cells, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(plan.crop_area, sides.prod(axis=1))
    back = geometry.apply(plan.keypoints, plan.crop_to_image)
    np.testing.assert_allclose(back, animals.keypoints, atol=1e-2)


def test_the_decoded_window_stays_inside_the_image(animals: RecordIndex, configure: Make) -> None:
    keys = {"CROP_BORDER": "edge", "BATCH_SIZE": 64, **MOVING}
    plan = BatchSampler(animals, configure(parts=3, **keys), training=True, seed=2).plan(0)
    window = plan.window
    assert (window[:, :2] >= 0).all() and (window[:, 2:] <= [WIDTH, HEIGHT]).all()
    assert (window[:, 2:] > window[:, :2]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shrinking_beyond_the_border_is_close_to_area_averaging(
    animals: RecordIndex, configure: Make, open_loader: Open, kind: str
) -> None:
    """The image is smoothed before its edge px are repeated; the reference pads first."""
    keys = {"CROP_BORDER": "edge", "LOOSE_BBOX_PAD_FACTOR": 2.0, "BATCH_SIZE": len(BOXES)}
    cfg = configure(parts=3, INPUT_SIZE=64, HEATMAP_SIZE=16, **keys)
    sampler = BatchSampler(animals, cfg, training=False, seed=0)
    (batch,) = open_loader(kind, sampler).batches(0, 1)
    padded = np.pad(frame(), ((BEYOND, BEYOND), (BEYOND, BEYOND), (0, 0)), mode="edge")
    row = list(BOXES).index("larger than the image")
    assert (sampler.plan(0).smoothing[row] > 1).all()
    x1, y1, x2, y2 = np.array(rectangle(BOXES["larger than the image"], 2.0, False)) + BEYOND
    averaged = cv2.resize(padded[y1:y2, x1:x2], (64, 64), interpolation=cv2.INTER_AREA)
    error = np.mean((batch.images[row].numpy().astype(float) - averaged) ** 2)
    assert 10 * np.log10(255**2 / error) >= 38

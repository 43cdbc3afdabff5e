"""The two loaders agree: same plans, same pixels up to rounding, same corrupt images.

Bounds are stated per augmentation as (grey levels, share of values within them); each augmentation
is on for every instance.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader, make_loader
from fasthg.data.records.schema import Record
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import make_record
from fasthg.errors import DataError

Make = Callable[..., Config]
Open = Callable[..., Loader]
Pixels = Callable[[Loader, int, int], np.ndarray]
KINDS = ("portable", "dali")

GEOMETRY = {
    "DO_RANDOM_PADDING": True,
    "DO_RANDOM_BBOX_SHIFT": 1.0,
    "RANDOM_BBOX_SHIFT_EXTENT": 12.0,
    "DO_RANDOM_FLIP_LEFT_RIGHT": 0.5,
    "DO_RANDOM_ROTATION": True,
}
SMALL = {"INPUT_SIZE": 64, "HEATMAP_SIZE": 16}
WIDE = {"CROP_BORDER": "edge", "RANDOM_PADDING_MAX": 4.0}
COLOUR = {"DO_COLOR_DISTORTION": 1.0}
BLUR = {"DO_RANDOM_BLURRING": True, "RANDOM_BLUR_FREQ": 1.0, "MAX_BLUR": 3}
NOISE = {"DO_RANDOM_NOISE": True, "RANDOM_NOISE_FREQ": 1.0, "RANDOM_NOISE_SCALE": 0.05}
LOSSY = {"DO_JPEG_ARTIFACTS": True, "RANDOM_JPEG_FREQ": 1.0}
EVERYTHING = {**GEOMETRY, **COLOUR, **BLUR, **NOISE, **LOSSY}

# name: (keys, {grey levels: share of values that differ by no more})
BOUNDS = {
    "nothing": ({}, {1: 1.0}),
    "geometry": (GEOMETRY, {1: 1.0}),
    "smoothed geometry": ({**GEOMETRY, **SMALL}, {1: 1.0}),
    "beyond the image": ({**GEOMETRY, **WIDE}, {1: 1.0}),
    "smoothed beyond the image": ({**GEOMETRY, **WIDE, **SMALL}, {1: 1.0}),
    "colour": (COLOUR, {1: 0.999, 2: 1.0}),
    "fast colour": ({**COLOUR, "COLOR_DISTORT_FAST": True}, {1: 0.999, 2: 1.0}),
    "blur": (BLUR, {1: 1.0}),
    "noise": (NOISE, {1: 1.0}),
    "jpeg": (LOSSY, {1: 0.99, 2: 0.999}),
    "everything always": (EVERYTHING, {2: 0.97, 6: 0.99}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_pixels_agree(
    mice: RecordIndex, configure: Make, open_loader: Open, pixels_of: Pixels, name: str
) -> None:
    keys, bounds = BOUNDS[name]
    sampler = BatchSampler(mice, configure(**keys), training=True, seed=9)
    first, second = (pixels_of(open_loader(kind, sampler), 0, 6).astype(int) for kind in KINDS)
    difference = np.abs(first - second)
    for levels, share in bounds.items():
        assert (difference <= levels).mean() >= share, np.bincount(difference.ravel())[:12]


@pytest.mark.slow
def test_stock_augmentation_agrees(mice: RecordIndex, open_loader: Open, pixels_of: Pixels) -> None:
    sampler = BatchSampler(mice, Config(BATCH_SIZE=8), training=True, seed=9)
    first, second = (pixels_of(open_loader(kind, sampler), 0, 9).astype(int) for kind in KINDS)
    assert (np.abs(first - second) <= 2).mean() >= 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_where_no_jpeg_is_involved(mice: RecordIndex) -> None:
    pytest.importorskip("nvidia.dali")
    # JPEG artefacts are left out: DALI has another algorithm for them on a GPU.
    cfg = Config(BATCH_SIZE=8, DO_JPEG_ARTIFACTS=False)
    sampler = BatchSampler(mice, cfg, training=True, seed=9)
    pixels = []
    for kind, device in (("portable", "cpu"), ("dali", "cuda")):
        loader = make_loader(sampler, cfg, torch.device(device), kind)
        batches = [batch.to("cpu") for batch in loader.batches(0, 9)]
        pixels.append(np.concatenate([batch.images.numpy() for batch in batches]).astype(int))
        loader.close()
    assert (np.abs(pixels[0] - pixels[1]) <= 3).mean() >= 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_can_continue_anywhere(
    mice: RecordIndex, open_loader: Open, pixels_of: Pixels, kind: str
) -> None:
    sampler = BatchSampler(mice, Config(BATCH_SIZE=5), training=True, seed=4)
    whole = pixels_of(open_loader(kind, sampler), 0, 7)
    assert np.array_equal(pixels_of(open_loader(kind, sampler), 4, 7), whole[4 * 5 :])


def dot(x: float, y: float, part: int) -> Record:
    """A dark frame with a bright round dot centred at image px (x, y), labelled as `part`."""
    width, height = 320, 240
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
    image = np.repeat(np.rint(20 + 220 * spot).astype(np.uint8)[..., None], 3, axis=2)
    keypoints = np.full((1, 4, 2), np.nan, np.float32)
    keypoints[0, part] = x / width, y / height
    return Record(
        # PNG, so that no compression moves the dot.
        encoded=cv2.imencode(".png", image)[1].tobytes(),
        width=width,
        height=height,
        bbox=np.float32([[100 / width, 70 / height, 220 / width, 160 / height]]),
        keypoints=keypoints,
        visibility=np.where(np.isfinite(keypoints[..., 0]), 2, 0).astype(np.uint8),
    )


@pytest.mark.parametrize("size", [256, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_keypoints_follow_the_pixels(
    index_of: Callable[..., RecordIndex], configure: Make, open_loader: Open, kind: str, size: int
) -> None:
    rng = np.random.default_rng(5)
    places = rng.uniform([145, 100], [175, 130], (24, 2))
    index = index_of([dot(x, y, i % 4) for i, (x, y) in enumerate(places)])
    cfg = configure(parts=4, **GEOMETRY, INPUT_SIZE=size, HEATMAP_SIZE=size // 4)
    sampler = BatchSampler(index, cfg, training=True, seed=2)
    centre = np.arange(size) + 0.5
    flips = 0
    for step, batch in enumerate(open_loader(kind, sampler).batches(0, 9)):
        draws = sampler.plan(step).draws
        flips += int(draws.flip.sum())
        assert (draws.angle != 0).all()
        for row, image in enumerate(batch.images.numpy()):
            (labelled,) = np.flatnonzero(batch.visibility[row].numpy())
            own = int(batch.instance[row]) % 4
            assert labelled == ({1: 2, 2: 1}.get(own, own) if draws.flip[row] else own)
            bright = np.maximum(image[..., 0].astype(float) - 30, 0)
            seen = [(bright.sum(0) * centre).sum(), (bright.sum(1) * centre).sum()] / bright.sum()
            expected = batch.keypoints[row, labelled].numpy() * 4
            np.testing.assert_allclose(seen, expected, atol=0.1)
    assert 10 < flips < 62


def damaged(good: Record) -> dict[str, Record]:
    data = good.encoded
    scan = data.index(b"\xff\xda")
    return {
        "is a truncated JPEG": replace(good, encoded=data[: len(data) // 2]),
        "is neither JPEG nor PNG": replace(good, encoded=bytes(1000)),
        "record says": replace(good, width=good.width + 8),
        "cannot be decoded": replace(good, encoded=data[:scan] + b"\xff\xd9"),
    }


@pytest.fixture
def partly_corrupt(index_of: Callable[..., RecordIndex]) -> RecordIndex:
    """Ten records with two mice each; 1, 3, 5 and 7 have images damaged in different ways."""
    records = [make_record(1, "train", number, (256, 192)) for number in range(10)]
    for number, record in zip((1, 3, 5, 7), damaged(records[0]).values(), strict=True):
        records[number] = replace(record, image_id=f"bad{number}")
    return index_of(records)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_corrupt_images_are_named_counted_and_skipped_alike(
    partly_corrupt: RecordIndex,
    configure: Make,
    open_loader: Open,
    caplog: pytest.LogCaptureFixture,
    training: bool,
) -> None:
    sampler = BatchSampler(partly_corrupt, configure(BATCH_SIZE=6), training=training, seed=3)
    results = []
    for kind in KINDS:
        caplog.clear()
        loader = open_loader(kind, sampler)
        with caplog.at_level(logging.WARNING, logger="fasthg"):
            batches = list(loader.batches(0, 7))
        assert sorted(loader.corrupt) == [1, 3, 5, 7]
        for record, reason in zip((1, 3, 5, 7), damaged(make_record(1, "train", 0)), strict=True):
            assert reason in loader.corrupt[record]
            assert sum(f"bad{record}" in message for message in caplog.messages) == 1
        results.append(batches)
    for first, second in zip(*results, strict=True):
        assert first.instance.tolist() == second.instance.tolist()
        assert np.array_equal(first.keypoints.numpy(), second.keypoints.numpy(), equal_nan=True)
        assert np.abs(first.images.numpy().astype(int) - second.images.numpy()).max() <= 1
        used = partly_corrupt.record[first.instance.numpy()]
        assert not set(used.tolist()) & {1, 3, 5, 7}
    if training:
        assert all(len(batch) == 6 for batch in results[0])
    else:
        shown = [i for batch in results[0] for i in batch.instance.tolist()]
        assert partly_corrupt.record[shown].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 9, 9]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_batches_without_any_usable_image(
    index_of: Callable[..., RecordIndex], configure: Make, open_loader: Open, kind: str
) -> None:
    records = [make_record(1, "train", number, (256, 192)) for number in range(3)]
    records[1] = damaged(records[1])["cannot be decoded"]
    index = index_of(records)
    cfg = configure(BATCH_SIZE=2)
    shown = list(open_loader(kind, BatchSampler(index, cfg, training=False, seed=0)).batches(0, 3))
    assert [batch.instance.tolist() for batch in shown] == [[0, 1], [4, 5]]

    index = index_of(records[1:2])
    with pytest.raises(DataError, match=r"record 0 .*cannot be decoded.*data check"):
        next(open_loader(kind, BatchSampler(index, cfg, training=True, seed=0)).batches(0, 1))

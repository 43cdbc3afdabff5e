"""CropTransforms, part locations and sigmas against those that MARS itself wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader
from fasthg.data.records.schema import Record
from fasthg.data.sampler import BatchSampler, BatchSpec

Make = Callable[..., Config]
Golden = dict[str, np.ndarray]
CASES = ("left", "top", "tall", "two2v", "three")
MIXED = "tall"
"""Its loose crop is 48 x 272: enlarged one way, shrunk the other."""


@pytest.fixture(scope="module")
def golden(test_data: Path) -> Golden:
    with np.load(test_data / "mars" / "preprocessing_golden.npz") as file:
        return {key: file[key] for key in file.files}


def record_of(golden: Golden, case: str) -> Record:
    """The case as a record; PNG, so that no decoder stands between the pixels."""
    image = golden[f"{case}__image"]
    encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    count = len(golden[f"{case}__bboxes"])
    return Record(
        encoded=encoded,
        width=image.shape[1],
        height=image.shape[0],
        image_id=case,
        bbox=golden[f"{case}__bboxes"],
        keypoints=golden[f"{case}__parts"].reshape(count, 4, 2),
        visibility=golden[f"{case}__vis"].astype(np.uint8),
        area=golden[f"{case}__areas_px"],
    )


def config(configure: Make, golden: Golden, loose: bool, by_area: bool = False) -> Config:
    parts = {
        "NUM_PARTS": 4,
        "NAMES": ["snout", "leftear", "rightear", "tailbase"],
        "SIGMAS": golden["sigmas"].tolist(),
        "LEFT_RIGHT_PAIRS": golden["left_right_pairs"].tolist(),
        "SCALE_SIGMAS_BY_AREA": by_area,
    }
    return configure(PARTS=parts, LOOSE_BBOX_CROP=loose, LOOSE_BBOX_PAD_FACTOR=0.65)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2)))


def interior(side: int) -> slice:
    """Output px that lie more than half a source px inside: beyond it, ours reads neighbours of the
    crop where the reference repeats its edge."""
    margin = int(np.ceil(0.5 * 256 / side))
    return slice(margin, -margin)


@pytest.fixture(scope="module", params=[False, True], ids=["loose0", "loose1"])
def loose(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("case", CASES)
def test_part_locations_are_exact(
    golden: Golden, configure: Make, index_of: Callable[..., RecordIndex], case: str, loose: bool
) -> None:
    record = record_of(golden, case)
    # The index forgets where invisible parts are; the reference writes their locations too.
    keypoints = record.keypoints * np.float32([record.width, record.height])
    index = replace(index_of([record]), keypoints=keypoints)
    plan = BatchSampler(index, config(configure, golden, loose), training=False, seed=0).plan(0)
    expected = golden[f"{case}__loose{int(loose)}__part_locs"].reshape(-1, 4, 2) * 64
    np.testing.assert_array_equal(np.rint(plan.keypoints), expected)


@pytest.mark.parametrize("kind", ["portable", "dali"])
@pytest.mark.parametrize("case", CASES)
def test_crops(
    golden: Golden,
    configure: Make,
    index_of: Callable[..., RecordIndex],
    open_loader: Callable[..., Loader],
    case: str,
    loose: bool,
    kind: str,
) -> None:
    index = index_of([record_of(golden, case)])
    sampler = BatchSampler(index, config(configure, golden, loose), training=False, seed=0)
    (batch,) = open_loader(kind, sampler).batches(0, 1)
    expected = golden[f"{case}__loose{int(loose)}__crops"]
    assert batch.images.shape == expected.shape
    sides = np.rint(np.abs(sampler.plan(0).input_to_image[:, [0, 1], [0, 1]]) * 256).astype(int)
    for got, crop, (width, height) in zip(batch.images.numpy(), expected, sides, strict=True):
        if max(width, height) > 256:
            # The reference averages areas, which repeats source px along the enlarged axis.
            assert (case, loose) == (MIXED, True)
            assert psnr(got, crop) > 41.5
        else:
            inner = interior(height), interior(width)
            assert np.abs(got[inner].astype(int) - crop[inner]).max() <= 1


@pytest.mark.parametrize("box", [(10, 20, 310, 300), (60, 10, 560, 470), (0, 0, 640, 480)])
@pytest.mark.parametrize("kind", ["portable", "dali"])
def test_shrinking_is_close_to_area_averaging(
    golden: Golden,
    configure: Make,
    index_of: Callable[..., RecordIndex],
    open_loader: Callable[..., Loader],
    box: tuple[int, int, int, int],
    kind: str,
) -> None:
    record = record_of(golden, "left")
    x1, y1, x2, y2 = box
    record = replace(record, bbox=np.float32([[x1 / 640, y1 / 480, x2 / 640, y2 / 480]]))
    sampler = BatchSampler(
        index_of([record]), config(configure, golden, False), training=False, seed=0
    )
    (batch,) = open_loader(kind, sampler).batches(0, 1)
    crop = golden["left__image"][y1:y2, x1:x2]
    averaged = cv2.resize(crop, (256, 256), interpolation=cv2.INTER_AREA)
    assert psnr(batch.images[0].numpy(), averaged) >= 45


@pytest.mark.parametrize(
    ("variant", "by_area"), [("scale0_px", False), ("scale1_px", True), ("scale1_small", True)]
)
@pytest.mark.parametrize("case", CASES)
def test_plans_describe_the_heatmaps_of_mars(
    golden: Golden,
    configure: Make,
    index_of: Callable[..., RecordIndex],
    case: str,
    loose: bool,
    variant: str,
    by_area: bool,
) -> None:
    index = index_of([record_of(golden, case)])
    if variant == "scale1_small":
        index = replace(index, area=golden[f"{case}__areas_small"])
    cfg = config(configure, golden, loose, by_area)
    plan = BatchSampler(index, cfg, training=False, seed=0).plan(0)
    expected = golden[f"{case}__loose{int(loose)}__{variant}__heatmaps"]
    np.testing.assert_allclose(heatmaps(plan), expected, atol=2e-5)


def heatmaps(plan: BatchSpec) -> np.ndarray:
    """The Gaussians a plan describes, (instances, 64, 64, parts)."""
    cell = np.arange(64)
    centre = np.rint(plan.keypoints.astype(np.float64))[:, None, None]
    x = (cell[None, None, :, None] - centre[..., 0]) ** 2
    y = (cell[None, :, None, None] - centre[..., 1]) ** 2
    sigma = plan.sigmas[:, None, None].astype(np.float64)
    return np.where(plan.visibility[:, None, None] > 0, np.exp(-(x + y) / (2 * sigma**2)), 0)

"""Synthetic frames: the same every time, MARS' format, keypoints where the picture shows them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fasthg.data.check import check
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.synthetic import dataset

PAIRS = [(2, 1), (5, 4)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("synthetic")
    return dataset.write_dataset(
        out, seed=1, frames={"train": 25, "val": 4}, size=(320, 240), shard_size=10
    )


def test_files_and_records(files: list[Path]) -> None:
    assert [path.name for path in files] == [
        "train_dataset-00000-of-00003",
        "train_dataset-00001-of-00003",
        "train_dataset-00002-of-00003",
        "val_dataset-00000-of-00001",
    ]
    index = RecordIndex.build([str(path) for path in files], 7)
    assert (index.num_records, len(index)) == (29, 58)
    assert index.image_id(0) == "train000000" and index.image_id(28) == "val000003"
    assert (index.width == 320).all() and (index.height == 240).all()


def test_check_finds_nothing(files: list[Path]) -> None:
    splits = {path.name: str(path) for path in files}
    report, _ = check(splits, 7, names=dataset.PART_NAMES, pairs=PAIRS)
    assert report.lines() == ["no problem found"]
    assert sum(counts.instances for counts in report.splits.values()) == 58


def test_frames_depend_on_seed_split_and_number_only(files: list[Path], tmp_path: Path) -> None:
    again = dataset.write_dataset(tmp_path, seed=1, frames={"val": 4}, size=(320, 240))
    assert again[0].read_bytes() == files[-1].read_bytes()
    images = [
        dataset.render(seed, split, number, (320, 240)).image
        for seed, split, number in ((1, "val", 0), (1, "val", 1), (1, "train", 0), (2, "val", 0))
    ]
    for i, one in enumerate(images):
        assert all(not np.array_equal(one, other) for other in images[:i])


def test_the_black_mouse_is_dark_and_the_white_one_bright() -> None:
    for number in range(8):
        frame = dataset.render(0, "train", number)
        grey = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY).astype(float)
        # Between neck and base of tail lies the back.
        backs = frame.keypoints[:, [3, 4, 5, 6]].mean(axis=1)
        levels = []
        for (x, y), visible in zip(backs.round().astype(int), frame.visibility, strict=True):
            if (visible == 2).all():
                levels.append(grey[y - 4 : y + 5, x - 4 : x + 5].mean())
            else:
                levels.append(np.nan)
        assert not levels[0] > 75 and not levels[1] < 120


def test_contact_brings_mice_on_one_another_and_alike_ones_are_both_black() -> None:
    def distances(nearest: float) -> np.ndarray:
        frames = (
            dataset.render(1, "train", n, (160, 128), dataset.ALIKE, nearest) for n in range(30)
        )
        return np.array([np.hypot(*np.ptp(f.keypoints.mean(axis=1), axis=0)) for f in frames])

    length = 0.27 * 160
    apart, contact = distances(dataset.APART), distances(dataset.CONTACT)
    assert apart.min() > 0.25 * length and contact.min() < 0.2 * length
    record = dataset.make_record(1, "train", 0, (160, 128), dataset.ALIKE, dataset.CONTACT)
    assert record.bbox_text == dataset.ALIKE and record.bbox_label == (0, 0)


def test_right_is_right() -> None:
    """Facing up the image, the right side of an animal seen from above has the larger x."""
    for number in range(10):
        for points in dataset.render(0, "train", number, (256, 256)).keypoints:
            ahead = points[0] - points[6]
            right = np.array([-ahead[1], ahead[0]])
            assert (points[4] - points[5]) @ right > 0
            head = points[0] - points[3]
            assert (points[1] - points[2]) @ np.array([-head[1], head[0]]) > 0


@pytest.mark.slow
def test_parts_under_the_other_mouse_are_occluded() -> None:
    frames = [dataset.render(0, "train", number, (256, 192)) for number in range(60)]
    flags = np.stack([frame.visibility for frame in frames])
    assert set(np.unique(flags)) == {1, 2}
    assert not (flags == 1).any(axis=2).all(axis=1).any(), "both animals lie on top of each other"


def test_too_small_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"100x200: .* at least 128x128"):
        dataset.write_dataset(tmp_path, seed=0, frames={"train": 1}, size=(100, 200))
    for number in range(5):
        points = dataset.render(0, "train", number, (128, 128)).keypoints
        assert (points > 0).all() and (points < 128).all()

"""The contact sheet shows what training does, and each augmentation apart."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from fasthg.cli import main
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader
from fasthg.data.preview import AUGMENTATIONS, Crop, Preview, make_preview
from fasthg.data.preview.sheet import as_page, as_png, draw, part_marks
from fasthg.data.records.schema import Record
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.drawing.marks import DISC, RING, SQUARE
from fasthg.drawing.palette import part_colours
from fasthg.errors import DataError

Make = Callable[..., Config]
# How each is switched on, seldom enough that a row has to force it.
ON: dict[str, dict[str, object]] = {
    "padding": {"DO_RANDOM_PADDING": True, "RANDOM_PADDING_FREQ": 0.01},
    "box shift": {"DO_RANDOM_BBOX_SHIFT": 0.01},
    "flip": {"DO_RANDOM_FLIP_LEFT_RIGHT": 0.01},
    "rotation": {"DO_RANDOM_ROTATION": True, "RANDOM_ROTATION_FREQ": 0.01},
    "colour": {"DO_COLOR_DISTORTION": 0.01},
    "blur": {"DO_RANDOM_BLURRING": True, "RANDOM_BLUR_FREQ": 0.01},
    "noise": {"DO_RANDOM_NOISE": True, "RANDOM_NOISE_FREQ": 0.01},
    "JPEG": {"DO_JPEG_ARTIFACTS": True, "RANDOM_JPEG_FREQ": 0.01},
}
TOLD = {
    "padding": r"margin 0\.\d\d of the side",
    "box shift": r"edges out by (\d\.\d ){4}px",
    "flip": "mirrored",
    "rotation": r"rotation [+-]\d+°",
    "colour": r".*brightness [+-]\d+.*",
    "blur": r"blur sigma [12] px",
    "noise": r"noise sd 3\.2 of 255",
    "JPEG": r"JPEG quality \d+",
}
GEOMETRIC = ("padding", "box shift", "flip", "rotation")
SMALL = {"INPUT_SIZE": 64, "HEATMAP_SIZE": 16}


def switched(*names: str) -> dict[str, object]:
    return {key: value for name in names for key, value in ON[name].items()}


def row(preview: Preview, name: str) -> Sequence[Crop]:
    (found,) = (row.crops for row in preview.rows if row.name == name)
    return found


@pytest.mark.parametrize(
    "names", [(), ("flip",), ("noise", "JPEG"), tuple(ON)], ids=["none", "one", "two", "all"]
)
def test_a_row_for_each_augmentation_that_is_on(
    mice: RecordIndex, configure: Make, names: Sequence[str]
) -> None:
    preview = make_preview(mice, configure(**SMALL, **switched(*names)), count=2)
    assert [row.name for row in preview.rows] == [*names, "as training does"]
    assert set(preview.off) == set(ON) - set(names)
    assert len(preview.before) == 2 and all(len(row.crops) == 2 for row in preview.rows)


@pytest.mark.parametrize(
    ("key", "value", "name", "told"),
    [
        ("LOOSE_BBOX_CROP", False, "padding", "LOOSE_BBOX_CROP: false"),
        ("RANDOM_ROTATION_DELTA", 0.0, "rotation", "RANDOM_ROTATION_DELTA: 0.0"),
        ("RANDOM_NOISE_FREQ", 0.0, "noise", "RANDOM_NOISE_FREQ: 0.0"),
        ("DO_JPEG_ARTIFACTS", False, "JPEG", "DO_JPEG_ARTIFACTS: false"),
    ],
)
def test_what_is_off_is_named_with_its_key(
    mice: RecordIndex, configure: Make, key: str, value: object, name: str, told: str
) -> None:
    cfg = configure(**{**SMALL, **switched(*ON), key: value})
    assert make_preview(mice, cfg, count=1).off == {name: told}


def test_each_row_draws_its_own_augmentation_always_and_no_other(
    mice: RecordIndex, configure: Make
) -> None:
    preview = make_preview(mice, configure(**switched(*ON)), count=3, seed=5)
    for augmentation in AUGMENTATIONS:
        name = augmentation.name
        for before, after in zip(preview.before, row(preview, name), strict=True):
            assert re.fullmatch(TOLD[name], after.told), after.told
            assert not np.array_equal(before.image, after.image), name
            moved = not np.array_equal(before.keypoints, after.keypoints)
            assert moved == (name in GEOMETRIC), name


def test_the_flip_row_mirrors_targets_and_exchanges_pairs(
    mice: RecordIndex, configure: Make
) -> None:
    cfg = configure(**switched("flip"))
    preview = make_preview(mice, cfg, count=4)
    exchanged = [0, 2, 1, 3, 5, 4, 6]  # the stock pairs [2, 1] and [5, 4]
    for before, after in zip(preview.before, row(preview, "flip"), strict=True):
        mirrored = before.keypoints[exchanged] * (-1, 1) + (cfg.INPUT_SIZE, 0)
        np.testing.assert_allclose(after.keypoints, mirrored, atol=1e-3)
        assert np.abs(after.image.astype(int) - before.image[:, ::-1]).max() <= 1
    without = cfg.PARTS.model_copy(update={"LEFT_RIGHT_PAIRS": ()})
    wrong = make_preview(mice, cfg.model_copy(update={"PARTS": without}), count=1)
    before, after = wrong.before[0], row(wrong, "flip")[0]
    mirrored = before.keypoints * (-1, 1) + (cfg.INPUT_SIZE, 0)
    np.testing.assert_allclose(after.keypoints, mirrored, atol=1e-3)


def test_the_last_row_is_what_the_loader_gives(
    mice: RecordIndex, configure: Make, open_loader: Callable[..., Loader]
) -> None:
    cfg = Config(RANDOM_SEED=3, DO_RANDOM_BBOX_SHIFT=0.5)
    preview = make_preview(mice, cfg, count=5)
    sampler = BatchSampler(mice, cfg, training=True, seed=3, batch_size=5)
    (batch,) = open_loader("portable", sampler).batches(0, 1)
    assert preview.instances == tuple(map(mice.describe, batch.instance.tolist()))
    for number, crop in enumerate(preview.rows[-1].crops):
        assert np.array_equal(crop.image, batch.images[number].numpy())
        np.testing.assert_allclose(crop.keypoints, batch.keypoints[number].numpy() * 4)
        np.testing.assert_allclose(crop.radii, np.multiply(cfg.PARTS.SIGMAS, 4))


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_line_shows_where_the_image_ends(
    index_of: Callable, configure: Make, mirrored: bool
) -> None:
    keys = {"CROP_BORDER": "edge", "LOOSE_BBOX_PAD_FACTOR": 1.0, **switched("flip")}
    cfg = configure(parts=3, INPUT_SIZE=128, HEATMAP_SIZE=32, **keys)
    given = records([], 1)[0]
    given.bbox = np.array([[0.0, 0.2, 0.5, 0.7]], np.float32)
    preview = make_preview(index_of([given]), cfg, count=1)
    # The box has 50 x 40 px, the crop -25..75 x -4..76 of 100 x 80: 2.56 shown px each.
    crop = row(preview, "flip")[0] if mirrored else preview.before[0]
    left = [128 - 32.0, 6.4] if mirrored else [32.0, 6.4]
    np.testing.assert_allclose(crop.border[0], left)
    shown = draw(crop, part_marks(cfg.PARTS))
    column = round(2 * left[0] - 0.5)
    assert (shown[20:250, column - 1 : column + 2].max(axis=1) > 200).all()
    assert (shown[0:5] == 90).all(), "nothing where no border is"
    assert "beyond it its edge pixels are repeated" in as_page(preview, cfg.PARTS, "t")
    inside = make_preview(index_of(records([], 1)), configure(parts=3, **SMALL), count=1)
    assert inside.before[0].border is None
    assert "edge pixels" not in as_page(inside, cfg.PARTS, "t")


def test_another_seed_shows_other_animals(mice: RecordIndex, configure: Make) -> None:
    first, second = (make_preview(mice, configure(**SMALL), count=4, seed=s) for s in (0, 1))
    assert first.instances != second.instances


def records(damaged: Sequence[int], count: int = 4) -> list[Record]:
    image = cv2.imencode(".jpg", np.full((80, 100, 3), 90, np.uint8))[1].tobytes()
    return [
        Record(
            encoded=image[:-30] if number in damaged else image,
            width=100,
            height=80,
            image_id=f"id{number}",
            bbox=np.array([[0.2, 0.2, 0.8, 0.8]], np.float32),
            keypoints=np.array([[[0.5, 0.3], [0.4, 0.5], [np.nan, np.nan]]], np.float32),
        )
        for number in range(count)
    ]


def test_unreadable_images_are_replaced_and_named(index_of: Callable, configure: Make) -> None:
    cfg = configure(parts=3, **SMALL)
    index = index_of(records([0, 2]))
    preview = make_preview(index, cfg, count=4)
    assert sorted(re.findall(r"id\d", " ".join(preview.instances))) == ["id1", "id3"]
    assert sorted(re.findall(r"id\d", " ".join(preview.replaced))) == ["id0", "id2"]
    assert all("truncated JPEG" in line for line in preview.replaced)


def test_nothing_readable_is_one_line(index_of: Callable, configure: Make) -> None:
    with pytest.raises(DataError, match=r"truncated JPEG.*no other image") as caught:
        make_preview(index_of(records(range(4))), configure(parts=3, **SMALL))
    assert "\n" not in str(caught.value)


def test_no_mark_without_a_target(index_of: Callable, configure: Make) -> None:
    cfg = configure(parts=3, **SMALL)
    (crop,) = make_preview(index_of(records([], 1)), cfg, count=4).before
    assert np.isnan(crop.keypoints).all(axis=1).tolist() == [False, False, True]
    assert (draw(crop, part_marks(cfg.PARTS)) != 90).any()


def test_marks_tell_left_from_right() -> None:
    parts = Config().PARTS
    styles = part_marks(parts)
    assert [style.shape for style in styles] == [SQUARE, RING, DISC, SQUARE, RING, DISC, SQUARE]
    assert [style.colour for style in styles] == part_colours(parts)


def test_marks_lie_on_the_targets(configure: Make) -> None:
    parts = configure(parts=3).PARTS
    points = np.array([[64, 30], [40.5, 64.5], [90.5, 64.5]])
    crop = Crop(np.zeros((128, 128, 3), np.uint8), points, np.array([10, 12, 20.0]), "")
    styles = part_marks(parts)
    image = draw(crop, styles)
    assert image.shape == (256, 256, 3)

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(image[int(y * 2), int(x * 2)].tolist())

    assert at(64, 30) == styles[0].colour
    assert at(40.5, 64.5) == styles[1].colour, "a disc is full"
    assert max(at(90.5, 64.5)) < 20, "a ring is not"
    for (x, y), radius, style in zip(points, crop.radii, styles, strict=True):
        near = image[int(y * 2), int((x - radius) * 2) - 1 : int((x - radius) * 2) + 2]
        assert (near.max(axis=0) >= np.array(style.colour) / 2).all(), "one sigma"
        inside = image[int(y * 2), int((x - 0.75 * radius) * 2)]
        assert not inside.any()


@pytest.fixture
def fasthg(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs a verb on a small data set; returns exit code and all output."""
    write_dataset(tmp_path, seed=2, frames={"train": 2}, size=(160, 128))
    config = tmp_path / "c.yaml"
    config.write_text(
        f"DATA: {{TRAIN: '{tmp_path}/train_dataset-*'}}\nINPUT_SIZE: 64\nHEATMAP_SIZE: 16\n"
    )

    def run(*arguments: object) -> tuple[int, str]:
        given = ["fasthg", "data", "preview", str(config), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr())

    return run


def test_a_picture_and_a_page(fasthg: Callable, tmp_path: Path) -> None:
    code, said = fasthg("DO_JPEG_ARTIFACTS=false", "-o", tmp_path / "a.png", "--count", 2)
    assert code == 0
    assert "off: JPEG (DO_JPEG_ARTIFACTS: false)" in said
    picture = cv2.imread(str(tmp_path / "a.png"))
    # Six augmentations are on, and the last row: seven rows of two pairs.
    assert picture.shape[0] > 7 * 256 and picture.shape[1] > 2 * 2 * 256
    code, said = fasthg("DO_JPEG_ARTIFACTS=false", "-o", tmp_path / "a.html", "--count", 2)
    assert (code, said.splitlines()[-1]) == (0, f"wrote {tmp_path / 'a.html'}")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<h2>") == 7 and page.count("data:image/png") == 1 + 7 * 2
    assert "JPEG (DO_JPEG_ARTIFACTS: false)" in page
    assert "exchanges the names of left ear and right ear" in page
    fasthg("DO_RANDOM_FLIP_LEFT_RIGHT=false", "-o", tmp_path / "a.html", "--count", 1)
    assert "exchanges the names" not in (tmp_path / "a.html").read_text()


def test_a_failed_write_leaves_the_older_file(
    fasthg: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    out = tmp_path / "out" / "a.png"
    out.parent.mkdir()
    out.write_text("older")
    monkeypatch.setattr(os, "fsync", full)
    code, said = fasthg("-o", out)
    assert code == 1 and len(said.splitlines()) == 1
    assert out.read_text() == "older" and os.listdir(out.parent) == ["a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.jpg"], "-o a.jpg: neither .png nor .html"),
        (["--split", "all"], "--split all: no such split"),
        (["--split", "val"], "DATA.VAL is not set"),
    ],
)
def test_mistakes_are_one_line(fasthg: Callable, arguments: list[str], message: str) -> None:
    code, said = fasthg(*arguments)
    assert code == 2 and message in said and len(said.splitlines()) == 1


def test_many_parts_and_one_animal(index_of: Callable) -> None:
    """More parts than colours, and a legend of several lines."""
    count = 30
    names = [f"a part with a long name {i}" for i in range(count)]
    keypoints = np.random.default_rng(0).uniform(0.3, 0.7, (1, count, 2)).astype(np.float32)
    given = records([], 1)[0]
    given.keypoints = keypoints
    cfg = Config(
        PARTS={
            "NUM_PARTS": count,
            "NAMES": names,
            "SIGMAS": [2.0] * count,
            "LEFT_RIGHT_PAIRS": [],
        },
        **SMALL,
    )
    preview = make_preview(index_of([given]), cfg)
    assert len(preview.instances) == 1
    picture = cv2.imdecode(np.frombuffer(as_png(preview, cfg.PARTS, "t"), np.uint8), 1)
    assert picture.shape[0] > len(preview.rows) * 256
    assert as_page(preview, cfg.PARTS, "t").count("<figure>") == 1 + len(preview.rows)

"""`fasthg.load`: prediction in memory is that of the command line."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from tiny_run import run, tiny

import fasthg
from fasthg.data.records.schema import decode
from fasthg.data.records.tfrecord import read_frames
from fasthg.data.synthetic.film import Film, write_film
from fasthg.errors import ConfigError, DataError
from fasthg.inference.video.predict import predict_all
from fasthg.inference.video.predict_source import WHOLE, Options
from fasthg.inference.video.video_writer import write_video
from fasthg.runs.weights import trained


@pytest.fixture(scope="module")
def path(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny(mice, tmp_path_factory.mktemp("runs"))).run.path


@pytest.fixture(scope="module")
def model(path: Path) -> fasthg.Model:
    return fasthg.load(path)


@pytest.fixture(scope="module")
def images(mice: Path) -> list[np.ndarray]:
    frames = read_frames(mice / "test_dataset-00000-of-00001")
    encoded = [decode(frame.payload, "").encoded for frame in frames]
    pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in encoded]
    return [picture[..., ::-1] for picture in pictures]


def by_files(path: Path, inputs: list[Path], **options: object) -> pd.DataFrame:
    """What `fasthg predict` writes."""
    predict_all(trained(path), inputs, [], Options(**options), Console(quiet=True))  # type: ignore[arg-type]
    target = next(inputs[0].parent.glob("*.pose.csv"))
    return pd.read_csv(target)


def same(table: pd.DataFrame, written: pd.DataFrame) -> None:
    for column in ("frame", "animal", "part"):
        assert list(table[column]) == list(written[column])
    for column, digits in (("time_s", 6), ("x", 3), ("y", 3), ("score", 5)):
        np.testing.assert_allclose(table[column], written[column], atol=0.6 * 10**-digits)


def test_images_in_memory_as_files(
    model: fasthg.Model, path: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        cv2.imwrite(str(file), image[..., ::-1])
    table = model.predict(images, "whole").table()
    assert np.ptp(table["x"]) > 1
    same(table, by_files(path, files, boxes=WHOLE))


def test_one_image_as_array_tensor_grey_and_box(
    model: fasthg.Model, images: list[np.ndarray]
) -> None:
    image = images[0]
    height, width = image.shape[:2]
    box = [0, 0, width, height]
    expected = model.predict(image, box)
    assert expected.keypoints.shape == (1, len(model.parts), 2)
    for given, boxes in (
        (torch.from_numpy(image.copy()), box),
        (image, "whole"),
        (np.asfortranarray(image), [box]),
    ):
        np.testing.assert_array_equal(model.predict(given, boxes).keypoints, expected.keypoints)
    grey = image[..., 1]
    found = model.predict([grey, np.stack([grey] * 3, axis=-1)], "whole")
    np.testing.assert_allclose(found[0].keypoints, found[1].keypoints, atol=1e-3)
    two = model.predict(np.stack([image, image]), [[box, box], None])
    # Batches of other sizes are summed in another order.
    np.testing.assert_allclose(two[0].keypoints[1], expected.keypoints[0], atol=1e-3)
    assert np.isnan(two[1].keypoints).all() and model.predict([]) == []


def test_nothing_is_looked_for_where_all_boxes_are_given(
    model: fasthg.Model, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    located = replace(model._networks, locator=object())  # type: ignore[arg-type]
    monkeypatch.setattr(model, "_networks", located)
    found = model.predict([images[0], images[1]], [[9, 9, 90, 90], np.zeros((0, 4))])
    assert [pose.animals for pose in found] == [("animal1",)] * 2
    assert np.isfinite(found[0].keypoints).all() and np.isnan(found[1].keypoints).all()
    nothing = model.predict(images[0], np.zeros((0, 4)))
    assert nothing.keypoints.shape == (0, len(model.parts), 2) and nothing.table().empty


def test_boxes_of_frames_of_a_film(model: fasthg.Model, tmp_path: Path) -> None:
    film, _ = write_film(tmp_path, Film(frames=6, size=(192, 160)), write_video)
    whole = list(model.predict_video(film, boxes="whole"))
    boxes = {number: [[0, 0, 192, 160]] for number in range(6) if number != 3}
    some = list(model.predict_video(film, boxes=boxes))
    assert [bool(np.isnan(pose.keypoints).all()) for pose in some] == [n == 3 for n in range(6)]
    np.testing.assert_allclose(some[5].keypoints, whole[5].keypoints, atol=1e-3)
    with pytest.raises(ConfigError, match="boxes: 'hole' is none"):
        model.predict_video(film, boxes="hole")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="start 3, stop 3: hold no frame"):
        model.predict_video(film, boxes="whole", start=3, stop=3)
    with pytest.raises(ConfigError, match="animals: 0; give 1 or more"):
        model.predict_video(film, animals=0)


@pytest.mark.parametrize(
    ("change", "boxes", "error", "message"),
    [
        (lambda i: i / 255, None, ConfigError, r"image 0: float64; give uint8"),
        (lambda i: i.transpose(2, 0, 1), None, ConfigError, r"image 0: shape \(3, 160, 192\)"),
        (lambda i: i, [1, 2, 3], ConfigError, r"boxes of image 0: shape \(1, 3\)"),
        (lambda i: i, "all", ConfigError, "boxes: 'all' is none"),
        (lambda i: i, [["a", "b", "c", "d"]], ConfigError, "boxes of image 0: no numbers"),
        (lambda i: i, [0, 0, np.inf, 9], ConfigError, "boxes of image 0: .* finite"),
        (lambda i: [i], 5, ConfigError, "boxes: 5 is none"),
        (lambda i: i, [9, 9, 5, 5], DataError, "boxes: frame 0, animal1: box 9 9 5 5 is empty"),
        (lambda i: i, None, ConfigError, "nothing says where the animals are"),
        (lambda i: [i, i], [[0, 0, 9, 9]], ConfigError, "boxes: 1 for 2 images"),
    ],
)
def test_bad_arguments_are_named(model, images, change, boxes, error, message) -> None:
    with pytest.raises(error, match=message):
        model.predict(change(images[0]), boxes)


def test_film_as_the_command_line_and_in_part(
    model: fasthg.Model, path: Path, tmp_path: Path
) -> None:
    film, _ = write_film(tmp_path, Film(frames=12, size=(192, 160)), write_video)
    written = by_files(path, [film], boxes=WHOLE)
    same(model.predict_video(film, boxes="whole").table(), written)
    part = model.predict_video(film, boxes="whole", start=3, stop=7).table()
    same(part, written[written["frame"].between(3, 6)])
    before = threading.active_count()
    with model.predict_video(film, boxes="whole") as poses:
        assert next(poses).frame == 0
    assert threading.active_count() == before


def test_evaluates_and_exports(model: fasthg.Model, path: Path, mice: Path, tmp_path: Path) -> None:
    test = model.evaluate(out=tmp_path / "test")
    again = model.evaluate(mice / "test_dataset-*", out=tmp_path / "again")
    assert test["error_px"] == again["error_px"] and test["split"] == "test"
    assert model.export("pt2", tmp_path / "net.pt2").stat().st_size > 10_000
    alone = fasthg.load(path / "checkpoints/best.safetensors", DECODE="argmax")
    assert alone.config.DECODE == "argmax" and alone.parts == model.parts

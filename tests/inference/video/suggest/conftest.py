"""A film of dots whose network makes known mistakes, and records of some of its frames."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from moving_dots import OFFSETS, PARTS, Dots, DotsLocator, dots, write_video

from fasthg.config import Config
from fasthg.config.keys import Data
from fasthg.data.convert import dlc
from fasthg.inference.video.predict_source import Options
from fasthg.inference.video.suggest.suggest import Suggestions, suggest
from fasthg.inference.video.video_file import VideoSource

FRAMES = 40
DIM, SHIFTED, BLIND = 12, 21, 30
"""Frames with a faint blue dot, with a displaced green one, and unseen by the locator."""
LABELLED, SEEN_BEFORE = (3, 6), 34
"""Frames that records name, and one whose picture is in a record of another name."""


def centre(number: int, animal: int = 0) -> np.ndarray:
    return np.array([60 + 2.0 * number, 60 + 30 * np.sin(number / 9) + 80 * animal])


def picture(number: int, animals: int = 1) -> np.ndarray:
    image = np.zeros((192, 256, 3), np.uint8)
    for animal in range(animals):
        own = dots(centre(number, animal))
        if animal == 0 and number == DIM:
            own[..., 0] //= 3
        if animal == 0 and number == SHIFTED:
            own[..., 1] = np.roll(own[..., 1], -14, axis=0)
        image = np.maximum(image, own)
    return image


def project(
    folder: Path, film: str, frames: Sequence[int], animals: int = 1, names: Sequence[int] = ()
) -> Path:
    """A DeepLabCut project with labels of frames. names: their numbers there, others than ours."""
    own = ("left", "right") if animals > 1 else ("",)
    labelled = folder / "labeled-data" / film
    labelled.mkdir(parents=True)
    key = "multianimalbodyparts" if animals > 1 else "bodyparts"
    (folder / "config.yaml").write_text(
        f"scorer: me\nmultianimalproject: {str(animals > 1).lower()}\n{key}: {list(PARTS)}\n"
    )
    columns = [(a, p, axis) for a in own for p in PARTS for axis in "xy"]
    with (labelled / "CollectedData_me.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scorer", *["me"] * len(columns)])
        if animals > 1:
            writer.writerow(["individuals", *(a for a, _, _ in columns)])
        writer.writerow(["bodyparts", *(p for _, p, _ in columns)])
        writer.writerow(["coords", *(axis for _, _, axis in columns)])
        for number, frame in zip(names or frames, frames, strict=True):
            name = f"img{number:02d}.png"
            cv2.imwrite(str(labelled / name), picture(frame, animals))
            points = [OFFSETS + centre(frame, animal) for animal in range(animals)]
            writer.writerow([f"labeled-data/{film}/{name}", *np.concatenate(points).ravel()])
    return folder


@dataclass
class Labelling:
    """A film, the records of its labelled frames, and how to have others suggested."""

    folder: Path
    records: Path
    config: Config
    film: VideoSource
    choose: Callable[..., Suggestions]


@pytest.fixture(params=[1])
def labelling(request: pytest.FixtureRequest, tmp_path: Path, config: Config) -> Labelling:
    animals = request.param
    path = write_video(tmp_path / "film.mp4", (picture(n, animals) for n in range(FRAMES)))
    records = tmp_path / "records"
    for source in (
        project(tmp_path / "lab", "film", LABELLED, animals),
        project(tmp_path / "other", "elsewhere", [SEEN_BEFORE, 18], animals, names=[1, 2]),
    ):
        dlc.convert(source, records, fractions=(1.0, 0.0, 0.0))
    settings = config.model_copy(update={"DATA": Data(TRAIN=[str(records / "train_dataset-*")])})
    film = VideoSource(path)

    def choose(count: int = 6, films: Sequence[VideoSource] = (film,), **given: Any) -> Suggestions:
        locator: Any = DotsLocator(most=animals, blind=[BLIND])
        found = suggest(films, count, Dots(), settings, Options(), locator, **given)
        assert found is not None
        return found

    return Labelling(tmp_path, records, settings, film, choose)

"""What `data check` calls unusable is what training refuses or leaves out, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import fuzz_sources
import numpy as np
import pytest
import torch
from mutate import Mutator

from fasthg.config import Config
from fasthg.config.keys import Data
from fasthg.data.check import check, problems
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import frame
from fasthg.errors import DataError
from fasthg.training.setup import open_data

PARTS = 2
REFUSED = {problems.NOTHING, problems.BROKEN_RECORD, problems.WRONG_COUNTS, problems.BAD_BOX}


_GREYS = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
JPEG, PNG = (cv2.imencode(kind, _GREYS)[1].tobytes() for kind in (".jpg", ".png"))


def record(number: int, **changes: Any) -> Record:
    """A sound record of one animal."""
    points = np.array([[[0.2, 0.3], [0.5, 0.6]]], np.float32)
    sound = Record(
        *(JPEG, 40, 30),
        image_id=f"id{number}",
        bbox=np.array([[0.1, 0.1, 0.8, 0.9]], np.float32),
        keypoints=points,
    )
    return replace(sound, **changes)


def boxed(*edges: float) -> Record:
    return record(3, bbox=np.array([edges], np.float32))


NOBODY = {
    "keypoints": np.zeros((0, PARTS, 2), np.float32),
    "bbox": np.zeros((0, 4), np.float32),
    "visibility": None,
}
SOUND = frame(encode(record(0)))
UNLABELLED = {"keypoints": np.full((1, PARTS, 2), np.nan, np.float32)}
FAULTS: dict[str, bytes] = {
    "none": b"",
    "trailing zeros": bytes(40),
    "an animal without labels": frame(encode(record(3, **UNLABELLED))),
    "a frame without animals": frame(encode(record(3, **NOBODY))),
    "the same again": SOUND,
    "a part far outside": frame(encode(record(3, keypoints=np.full((1, 2, 2), 9.0, np.float32)))),
    "a part at 3e38": frame(encode(record(3, keypoints=np.full((1, 2, 2), 3e38, np.float32)))),
    "a box beyond the image": frame(encode(boxed(-0.5, 0.1, 1.5, 0.9))),
    "a box outside": frame(encode(boxed(1.5, 1.5, 1.9, 1.9))),
    "a tiny box": frame(encode(boxed(0.5, 0.5, 0.501, 0.501))),
    "a box of a hundredth of a px": frame(encode(boxed(0.5, 0.5, 0.50001, 0.50001))),
    "a box without area": frame(encode(boxed(0.5, 0.5, 0.5, 0.9))),
    "a box upside down": frame(encode(boxed(0.8, 0.9, 0.1, 0.1))),
    "a box of NaN": frame(encode(boxed(np.nan, 0.1, 0.8, 0.9))),
    "an infinite box": frame(encode(boxed(0.1, 0.1, np.inf, 0.9))),
    "another number of parts": frame(
        encode(record(3, keypoints=np.full((1, 3, 2), 0.5, np.float32)))
    ),
    "an area of 0": frame(encode(record(3, area=np.zeros(1, np.float32)))),
    "a negative area": frame(encode(record(3, area=np.array([-5], np.float32)))),
    "a wrong checksum": SOUND[:-1] + bytes([SOUND[-1] ^ 1]),
    "a wrong header": bytes([SOUND[0] ^ 1]) + SOUND[1:],
    "a cut record": SOUND[:-9],
    "text": b"this is no record",
    "no protobuf": frame(b"this is no record"),
    "no image": frame(encode(record(3, encoded=b""))),
    "an image of another size": frame(encode(record(3, width=320))),
    "half an image": frame(encode(record(3, encoded=JPEG[: len(JPEG) // 2]))),
    "text as image": frame(encode(record(3, encoded=b"this is no image"))),
    "a strange record": frame(Mutator(1, 5).record()),
}


def trained(path: Path, config: Config) -> set[int] | None:
    """The records that a few batches of all animals leave out; None where training is refused."""
    left_out: set[int] = set()
    config = config.model_copy(update={"DATA": Data(TRAIN=str(path))})
    try:
        with open_data(config, torch.device("cpu")) as (split, _):
            try:
                for _ in split.loader.batches(0, 6):
                    pass
            finally:
                left_out |= split.loader.corrupt.keys()
    except DataError:
        return left_out or None
    return left_out


def compare(path: Path, config: Config) -> str:
    """One of sound, refused and left out, by both."""
    found, indices = check({"train": str(path)}, PARTS)
    kinds = {problem.kind for problem in found.problems}
    bad = {problem.record for problem in found.of(problems.BAD_IMAGE)}
    left_out = trained(path, config)
    refused = bool(kinds & REFUSED)
    if not indices["train"].visibility.any() and len(indices["train"]):
        assert problems.UNLABELLED in kinds
        refused = True
    assert refused == (left_out is None), kinds
    if left_out is None:
        return "refused"
    # Only an animal's image is read.
    assert left_out == bad & {*indices["train"].record.tolist()}
    return "left out" if left_out else "sound"


@pytest.fixture
def config(configure: Callable[..., Config], caplog: pytest.LogCaptureFixture) -> Config:
    caplog.set_level(logging.CRITICAL)
    return configure(parts=PARTS, BATCH_SIZE=4, NUM_INPUT_THREADS=0, INPUT_SIZE=64, HEATMAP_SIZE=16)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault(fault: str, tmp_path: Path, config: Config) -> None:
    path = tmp_path / "set"
    outcomes = []
    for around in (SOUND + frame(encode(record(1))), b""):
        path.write_bytes(around + FAULTS[fault])
        outcomes.append(compare(path, config))
    assert fault != "none" or outcomes == ["sound", "refused"]


@pytest.mark.slow
def test_strange_records_and_images(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "set"
    outcomes = set()
    for number in range(240):
        payload = Mutator(7, number).record()
        if number % 2:
            image = fuzz_sources.Mutator(7, number).changed((JPEG, PNG)[number % 4 // 2], "")
            payload = encode(record(3, encoded=image))
        path.write_bytes(SOUND + frame(payload))
        outcomes.add(compare(path, config))
    assert outcomes == {"sound", "refused", "left out"}

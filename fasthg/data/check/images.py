"""Checks of images: damaged ones, duplicates and near-duplicates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.data.check.problems import BAD_IMAGE, NEAR_IMAGE, SAME_ID, SAME_IMAGE, Problem
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.jpeg import image_fault
from fasthg.errors import DataError

SIDE = 32
"""Side of a thumbnail, px."""
TOLERANCE = 4.0
"""Grey levels: two images are much alike where no pixel of their thumbnails differs by more, once
the brightness is made equal. Encoding again changes less, an animal that moved a pixel more."""
_POOLED = 8
_CANDIDATES = 8
_BLOCK = 1024
# A reduced image costs all of the reading and little of the computing.
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    (1, cv2.IMREAD_GRAYSCALE),
)


class _Look(NamedTuple):
    fault: str | None
    digest: bytes = b""
    thumbnail: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Looks:
    """The sound images of a split. records: (images,) rows of the index; digests: of their bytes;
    thumbnails: (images, SIDE, SIDE) uint8."""

    records: npt.NDArray[np.int64]
    digests: list[bytes]
    thumbnails: npt.NDArray[np.uint8]


def look(index: RecordIndex, split: str) -> tuple[Looks, list[Problem]]:
    """Read and decode every image of a split."""
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # images are the parallelism
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            looks = list(pool.map(lambda r: _look(index, r), range(index.num_records)))
    finally:
        cv2.setNumThreads(cv2_threads)
    problems = [
        Problem(BAD_IMAGE, split, index.describe_record(record), one.fault, record)
        for record, one in enumerate(looks)
        if one.fault
    ]
    sound = [(record, one) for record, one in enumerate(looks) if one.thumbnail is not None]
    thumbnails = [one.thumbnail for _, one in sound if one.thumbnail is not None]
    return Looks(
        np.array([record for record, _ in sound], np.int64),
        [one.digest for _, one in sound],
        np.stack(thumbnails) if thumbnails else np.zeros((0, SIDE, SIDE), np.uint8),
    ), problems


def _look(index: RecordIndex, record: int) -> _Look:
    if not index.jpeg_length[record]:  # a record that could not be read; it is named as such
        return _Look(None)
    try:
        data = index.jpeg(record)
    except DataError as error:
        return _Look(str(error))
    width, height = int(index.width[record]), int(index.height[record])
    fault = image_fault(data, width, height)
    if fault is not None:
        return _Look(f"image {fault}")
    shorter = min(width, height)
    flags = next((f for by, f in _REDUCED if shorter >= 1.5 * SIDE * by), cv2.IMREAD_GRAYSCALE)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        return _Look("image cannot be decoded")
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return _Look(None, hashlib.blake2b(data, digest_size=16).digest(), np.asarray(small, np.uint8))


def repeated(indices: Mapping[str, RecordIndex], looks: Mapping[str, Looks]) -> Iterator[Problem]:
    """Ids and images that are there again, in their own split or another; near-duplicates of
    images of an earlier split."""
    ids: dict[str, tuple[str, int]] = {}
    images: dict[bytes, tuple[str, int]] = {}

    def named(place: tuple[str, int]) -> str:
        return f"{place[0]}: {indices[place[0]].describe_record(place[1])}"

    exact: set[tuple[str, int]] = set()
    for split, index in indices.items():
        for record in range(index.num_records):
            image_id = index.image_id(record)
            first = ids.setdefault(image_id, (split, record))
            if image_id and first != (split, record):
                name = index.describe_record(record)
                yield Problem(SAME_ID, split, name, f"first in {named(first)}", record)
        for record, digest in zip(looks[split].records.tolist(), looks[split].digests, strict=True):
            first = images.setdefault(digest, (split, record))
            if first != (split, record):
                exact.add((split, record))
                detail = f"the same bytes as {named(first)}"
                weight = float(first[0] != split)
                name = index.describe_record(record)
                yield Problem(SAME_IMAGE, split, name, detail, record, weight=weight)
    splits = list(indices)
    for later in range(1, len(splits)):
        split = splits[later]
        for earlier in splits[:later]:
            for a, b, apart in _near(looks[split], looks[earlier]):
                if (split, a) not in exact:
                    detail = (
                        f"{earlier}: {indices[earlier].describe_record(b)} differs by at most "
                        f"{apart:.1f} grey levels at {SIDE}x{SIDE} px"
                    )
                    name = indices[split].describe_record(a)
                    yield Problem(NEAR_IMAGE, split, name, detail, a, weight=-apart)


def _near(those: Looks, others: Looks) -> Iterator[tuple[int, int, float]]:
    """Records of `those` with the nearest of `others` within TOLERANCE, and how far it is.

    Means over the blocks of a coarser grid differ by no more than the pixels do, so that a distance
    between coarse images, which is one product of matrices, leaves few pairs to compare in full.
    """
    if not len(those.records) or not len(others.records):
        return
    fine, other_fine = (_level(one.thumbnails) for one in (those, others))
    coarse, other_coarse = (_pooled(one) for one in (fine, other_fine))
    bound = TOLERANCE**2 * _POOLED**2
    squares = (other_coarse**2).sum(1)
    few = min(_CANDIDATES, len(other_coarse))
    for begin in range(0, len(coarse), _BLOCK):
        block = coarse[begin : begin + _BLOCK]
        distance = (block**2).sum(1)[:, None] + squares - 2 * block @ other_coarse.T
        nearest = np.argpartition(distance, few - 1, axis=1)[:, :few]
        near = np.take_along_axis(distance, nearest, 1) <= bound + 1e-2 * np.abs(squares).max()
        for row in np.flatnonzero(near.any(axis=1)):
            candidates = nearest[row][near[row]]
            apart = np.abs(other_fine[candidates] - fine[begin + row]).max(axis=(1, 2))
            best = int(apart.argmin())
            if apart[best] <= TOLERANCE:
                record = int(those.records[begin + row])
                yield record, int(others.records[candidates[best]]), float(apart[best])


def _level(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Thumbnails as float32 minus the mean of each."""
    values = thumbnails.astype(np.float32)
    return np.asarray(values - values.mean(axis=(1, 2), keepdims=True), np.float32)


def _pooled(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(images, 64): means over blocks of pixels."""
    step = SIDE // _POOLED
    blocks = images.reshape(-1, _POOLED, step, _POOLED, step).mean(axis=(2, 4))
    return np.asarray(blocks.reshape(len(images), -1), np.float32)

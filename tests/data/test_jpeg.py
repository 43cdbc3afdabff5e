"""Faults of encoded images: bytes after the end are none, a truncated image is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader
from fasthg.data.records.jpeg import image_fault
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import make_record

WIDTH, HEIGHT = 96, 72
TRUNCATED = "is a truncated JPEG (no end marker)"
END = b"\xff\xd9"


def encoded(*options: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.GaussianBlur(noise, (5, 5), 1), options)[1].tobytes()


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def with_thumbnail() -> bytes:
    """A JPEG whose header holds another one, as EXIF has it."""
    data = encoded()
    return data[:2] + segment(0xE1, b"Exif\0\0" + encoded(width=32, height=24)) + data[2:]


def with_comment() -> bytes:
    """A progressive JPEG with an end marker in a comment before its last scan."""
    data = encoded(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + segment(0xFE, b"a" + END) + data[scan:]


SOUND = {
    "baseline": encoded(),
    "progressive": encoded(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart markers": encoded(cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "thumbnail": with_thumbnail(),
    "comment": with_comment(),
    "fill bytes": encoded()[:-2] + b"\xff\xff" + END,
    "comment at the end": encoded()[:-2] + segment(0xFE, b"") + END,
}
TRAILERS = {
    "nothing": b"",
    "zeros": bytes(1500),
    "random bytes": np.random.default_rng(1).bytes(1 << 16),
    "a second JPEG": encoded(width=64, height=48),
    "a truncated JPEG": encoded(width=64, height=48)[:-300],
}


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("name", SOUND)
def test_any_bytes_may_follow_the_end(name: str, trailer: str) -> None:
    data = SOUND[name] + TRAILERS[trailer]
    assert image_fault(data, WIDTH, HEIGHT) is None
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", SOUND)
def test_a_truncated_jpeg_is_refused(name: str) -> None:
    data = SOUND[name]
    for length in range(2, len(data) - 1):
        assert image_fault(data[:length], WIDTH, HEIGHT) is not None, length
    scan = data.rindex(b"\xff\xda")
    for length in range(scan + 20, len(data) - 1, 97):
        assert image_fault(data[:length], WIDTH, HEIGHT) == TRUNCATED
        # A damaged copy may go on with zeros.
        assert image_fault(data[:length] + bytes(2000), WIDTH, HEIGHT) == TRUNCATED


def test_the_end_of_a_thumbnail_is_not_that_of_the_image() -> None:
    data = with_thumbnail()
    thumbnail_end = data.index(END) + 2
    assert image_fault(data[:thumbnail_end], WIDTH, HEIGHT) == TRUNCATED
    assert image_fault(data[: thumbnail_end + 700], WIDTH, HEIGHT) == TRUNCATED


@pytest.mark.parametrize("trailer", TRAILERS)
def test_any_bytes_may_follow_the_end_of_a_png(trailer: str) -> None:
    data = cv2.imencode(".png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
    assert image_fault(data + TRAILERS[trailer], WIDTH, HEIGHT) is None
    for length in range(8, len(data)):
        assert image_fault(data[:length], WIDTH, HEIGHT) == "is a truncated PNG"
    cut = data[:-30] + TRAILERS[trailer]
    assert image_fault(cut, WIDTH, HEIGHT) == "is a truncated PNG"


@pytest.mark.parametrize("kind", ["portable", "dali"])
def test_loaders_decode_a_jpeg_with_a_trailer(
    index_of: Callable[..., RecordIndex],
    configure: Callable[..., Config],
    open_loader: Callable[..., Loader],
    kind: str,
) -> None:
    record = make_record(1, "train", 0, (256, 192))
    records = [replace(record, encoded=record.encoded + end) for end in TRAILERS.values()]
    cfg = configure(BATCH_SIZE=10, INPUT_SIZE=64, HEATMAP_SIZE=16)
    sampler = BatchSampler(index_of(records), cfg, training=False, seed=0)
    loader = open_loader(kind, sampler)
    (batch,) = loader.batches(0, 1)
    assert loader.corrupt == {}
    images = batch.images.numpy().reshape(len(TRAILERS), 2, 64, 64, 3)
    assert (images == images[:1]).all()

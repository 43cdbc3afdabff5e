"""Images as they are predicted: turned by EXIF, of 12 bits, notes of macOS and stacks."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fasthg.errors import DataError
from fasthg.inference.video.sources import ImageSource, find_sources


def test_images_as_a_viewer_shows_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:6, :9] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # its left column is shown as the top row
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\x16\7")
    (source,) = find_sources([tmp_path])
    with caplog.at_level(logging.WARNING):
        images = [frame.image for frame in source.frames()]
    assert len(images) == 2
    for image in images:
        assert image is not None and image.shape == (30, 20, 3)
        assert image[2, 17].min() > 200 and image[2, 2].max() < 60
    (line,) = caplog.messages
    assert "a.jpg: EXIF turns it; positions are those in the image as shown" in line


def test_twelve_bits_of_sixteen(tmp_path: Path) -> None:
    for number, value in enumerate((2000, 4000)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((20, 30), value, np.uint16))
    files = sorted(tmp_path.iterdir())
    images = [frame.image for frame in ImageSource(tmp_path, files, tmp_path / "x").frames()]
    assert [int(image.max()) for image in images if image is not None] == [125, 250]


def test_a_stack_is_no_image(tmp_path: Path) -> None:
    data, pages = io.BytesIO(), [Image.new("L", (30, 20), value) for value in (0, 255)]
    pages[0].save(data, "TIFF", save_all=True, append_images=pages[1:])
    (tmp_path / "a.tif").write_bytes(data.getvalue())
    (source,) = find_sources([tmp_path])
    with pytest.raises(
        DataError, match=r"a\.tif: holds 2 images or pages, one is expected; save each"
    ):
        list(source.frames())

"""Image files of a conversion: turned by EXIF, of 12 bits, of several pages, damaged."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fasthg.data.convert import coco
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.exif import orientation, turned, upright
from fasthg.errors import ConfigError, DataError, FasthgError

SHOWN = np.zeros((48, 64, 3), np.uint8)
SHOWN[8:16, 40:56] = 255  # a patch around (48, 12)
POINTS = [48.0, 12.0, 2.0, 40.0, 20.0, 2.0]


def tagged(kind: str, value: int, shown: np.ndarray = SHOWN) -> bytes:
    """An image whose stored pixels EXIF turns into `shown`."""
    back = {6: 8, 8: 6}.get(value, value)
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = value
    how = {"tiffinfo": {0x0112: value}} if kind == "TIFF" else {"exif": exif}
    Image.fromarray(turned(shown, back)).save(data, kind, **how)
    return data.getvalue()


def project(folder: Path, *images: bytes, size: tuple[int, int] | None = (64, 48)) -> coco.Source:
    """A COCO file whose images are all labelled at POINTS."""
    folder.mkdir(parents=True)
    entries, annotations = [], []
    for number, data in enumerate(images):
        (folder / f"i{number}.png").write_bytes(data)
        entry: dict[str, object] = {"id": number, "file_name": f"i{number}.png"}
        entries.append(entry | (dict(zip(("width", "height"), size, strict=True)) if size else {}))
        label = {"id": number, "image_id": number, "category_id": 1, "keypoints": POINTS}
        annotations.append(label)
    kinds = [{"id": 1, "name": "mouse", "keypoints": ["nose", "tail"]}]
    content = {"images": entries, "annotations": annotations, "categories": kinds}
    (folder / "a.json").write_text(json.dumps(content))
    return coco.Source(folder / "a.json", "train")


def pictures(report: coco.Report) -> list[np.ndarray]:
    """The images of the records as loaders decode them, in the order of their ids."""
    index = RecordIndex.build([str(path) for path in report.files], 2)
    order = sorted(range(index.num_records), key=index.image_id)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    encoded = [index.jpeg(record) for record in order]
    assert all(orientation(data) == 1 for data in encoded)
    return [cv2.imdecode(np.frombuffer(data, np.uint8), flags) for data in encoded]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_of_every_kind_and_value(kind: str) -> None:
    for value in range(1, 9):
        data = tagged(kind, value)
        assert orientation(data) == value
        stored = upright(data)
        assert orientation(stored) == 1 and len(stored) == len(data)
        pixels = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
        assert np.abs(turned(pixels, value).astype(int) - SHOWN).mean() < 2
    assert orientation(data[: len(data) // 8]) in (1, 8)
    assert orientation(b"") == orientation(b"II*\0\xff\xff\xff\xff") == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", [3, 6])
def test_labels_of_images_as_shown_and_as_stored(tmp_path: Path, kind: str, value: int) -> None:
    data = tagged(kind, value)
    source = project(tmp_path / "p", data, size=None)
    with pytest.raises(DataError, match=r"i0\.png: EXIF turns this image .* say --exif shown or"):
        coco.convert([source], tmp_path / "o")
    assert not (tmp_path / "o").exists()
    (shown,) = pictures(coco.convert([source], tmp_path / "a", exif="shown"))
    assert shown.shape == SHOWN.shape and shown[12, 48].min() > 200
    (stored,) = pictures(coco.convert([source], tmp_path / "b", exif="stored"))
    assert np.abs(turned(stored, value).astype(int) - SHOWN).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_that_labels_name_tells_for_all(tmp_path: Path, kind: str) -> None:
    source = project(tmp_path / "p", tagged(kind, 6), tagged(kind, 3))
    report = coco.convert([source], tmp_path / "a")
    assert all(image[12, 48].min() > 200 for image in pictures(report))
    assert any(
        note.startswith("EXIF turns 2 images, labels are of them as") for note in report.notes
    )
    stored = project(tmp_path / "q", tagged(kind, 6), size=(48, 64))
    (image,) = pictures(coco.convert([stored], tmp_path / "b"))
    assert image.shape == (64, 48, 3)
    with pytest.raises(ConfigError, match="--exif sideways: use shown or stored"):
        coco.convert([source], tmp_path / "c", exif="sideways")


def deep(peak: int) -> bytes:
    ramp = np.linspace(0, peak, 48 * 64).reshape(48, 64).astype(np.uint16)
    return cv2.imencode(".png", ramp)[1].tobytes()


@pytest.mark.parametrize(("peak", "bits"), [(255, 8), (4095, 12), (16000, 14), (65535, 16)])
def test_16_bit_images_are_as_bright_as_the_bits_that_they_use(
    tmp_path: Path, peak: int, bits: int
) -> None:
    report = coco.convert([project(tmp_path / "p", deep(peak // 2), deep(peak))], tmp_path / "o")
    dark, bright = pictures(report)
    assert bright.max() >= 248 and abs(int(dark.max()) - 127) < 6, "one scale for a folder"
    noted = [
        note for note in report.notes if note.startswith(f"16-bit images that use {bits} bits")
    ]
    assert len(noted) == (bits < 16)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "GIF", "PNG"])
def test_files_of_several_images_are_refused(tmp_path: Path, kind: str) -> None:
    data, pages = io.BytesIO(), [Image.fromarray(np.roll(SHOWN, 5 * n, 0)) for n in range(3)]
    pages[0].save(data, kind, save_all=True, append_images=pages[1:])
    source = project(tmp_path / "p", data.getvalue())
    with pytest.raises(DataError, match=r"i0\.png: holds 3 images or pages, one is expected"):
        coco.convert([source], tmp_path / "o")


def huge() -> bytes:
    """The start of a PNG of 2^31 px."""
    header = struct.pack(">IIBBBBB", 1 << 16, 1 << 15, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (huge(), r"i1\.png: is larger than 2\^30 px; replace"),
        (tagged("PNG", 1)[:-40], r"i1\.png: is a truncated PNG; replace"),
        (b"<html>", r"i1\.png: not an image that OpenCV can read; replace"),
    ],
)
def test_nothing_is_written_where_an_image_cannot_be_used(
    tmp_path: Path, image: bytes, message: str
) -> None:
    source = project(tmp_path / "p", tagged("PNG", 1), image)
    with pytest.raises(DataError, match=message):
        coco.convert([source], tmp_path / "o", shard_size=1)
    assert not (tmp_path / "o").exists() or not [*(tmp_path / "o").iterdir()]


def test_jpegs_that_do_not_decode_are_noted(tmp_path: Path) -> None:
    jpeg = tagged("JPEG", 1)
    frame = jpeg.index(b"\xff\xc0")
    lossless = jpeg[: frame + 1] + b"\xc3" + jpeg[frame + 2 :]
    twelve = jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :]
    source = project(tmp_path / "p", jpeg, jpeg[:-200], lossless, twelve)
    (note,) = [n for n in coco.convert([source], tmp_path / "o").notes if "leave out" in n]
    assert note == (
        "3 images that training will leave out: i1.png is a truncated JPEG (no end marker), "
        "i2.png is a lossless JPEG, i3.png is a JPEG of 12 bits"
    )


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "o").touch()
    with pytest.raises(FasthgError, match="o: cannot write"):
        coco.convert([project(tmp_path / "p", tagged("JPEG", 1))], tmp_path / "o")

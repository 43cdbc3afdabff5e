"""Images as they are predicted: turned by EXIF, of 12 bits, notes of macOS and stacks."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from moving_dots import write_video
from PIL import Image

from fasthg.errors import ConfigError, DataError
from fasthg.inference.video.made_from import write_record
from fasthg.inference.video.predict_source import Options, check_targets
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


def black(path: Path) -> Path:
    return write_video(path, [np.zeros((32, 48, 3), np.uint8)] * 2)


def test_a_folder_gives_its_films_in_order_and_its_images_as_one_sequence(tmp_path: Path) -> None:
    for name in ("film10.mp4", "film2.mkv"):
        black(tmp_path / name)
    for name in ("notes.txt", "._film2.mkv", ".hidden.mp4"):
        (tmp_path / name).write_text("no film")
    cv2.imwrite(str(tmp_path / "arena.png"), np.zeros((20, 30), np.uint8))
    images, *films = find_sources([tmp_path])
    assert images.names == ("arena.png",) and images.path == tmp_path
    assert [film.path.name for film in films] == ["film2.mkv", "film10.mp4"]
    # A film that was named is not taken twice.
    named = find_sources([tmp_path / "film10.mp4", tmp_path])
    assert [each.path.name for each in named] == ["film10.mp4", tmp_path.name, "film2.mkv"]
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "film10.mp4").read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.mp4: cannot be read as a video"):
        find_sources([tmp_path])


def test_what_fasthg_wrote_in_a_folder_is_no_input(tmp_path: Path) -> None:
    film, drawn = black(tmp_path / "film.mp4"), black(tmp_path / "film.overlay.mp4")
    cv2.imwrite(str(tmp_path / "film.sheet.png"), np.zeros((20, 30), np.uint8))
    results = {"overlay": drawn, "sheet": tmp_path / "film.sheet.png"}
    write_record(tmp_path / ".film.made.json", film, {}, 2, True, results)
    assert [each.path for each in find_sources([tmp_path])] == [film]
    film.unlink()
    with pytest.raises(DataError, match=r"holds what fasthg wrote, such as film\.overlay\.mp4"):
        find_sources([tmp_path])


def test_folders_in_a_folder(tmp_path: Path) -> None:
    for folder in ("day2", "day10", "day2/cam1", ".trash"):
        (tmp_path / folder).mkdir()
        black(tmp_path / folder / "a.mp4")
    with pytest.raises(DataError, match="or --recursive for those of its folders"):
        find_sources([tmp_path])
    found = find_sources([tmp_path], recursive=True)
    names = [each.path.relative_to(tmp_path).as_posix() for each in found]
    assert names == ["day2/a.mp4", "day2/cam1/a.mp4", "day10/a.mp4"]
    check_targets(found, Options())
    with pytest.raises(ConfigError, match=r"both would write a\.pose\.csv"):
        check_targets(found, Options(folder=tmp_path))


def test_two_films_of_one_stem_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        black(tmp_path / name)
    with pytest.raises(ConfigError, match=r"a\.mp4 and .*a\.mkv: both would write a\.pose\.csv"):
        check_targets(find_sources([tmp_path]), Options())

"""Images found by paths of any system, and read as JPEG."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fasthg.data.convert.images import (
    as_jpeg,
    find_among,
    find_image,
    locate,
    relative_parts,
    trailing,
)


def test_paths_of_any_system(tmp_path: Path) -> None:
    assert relative_parts("C:\\a\\b/c.png") == ("C:", "a", "b", "c.png")
    (tmp_path / "b").mkdir()
    for name in ("c.png", "b/c.png"):
        (tmp_path / name).touch()
    assert find_image(tmp_path, "s3://bucket/b/c.png") == tmp_path / "b" / "c.png"
    assert find_image(tmp_path, "elsewhere\\c.png") == tmp_path / "c.png"
    assert find_image(tmp_path, "d.png") is None


def test_names_that_stay_when_paths_are_added() -> None:
    paths = ["C:\\a\\cam1\\x.png", "C:\\b\\cam1\\x.png", "/b/cam2/x.png"]
    short = trailing(paths, 2)
    assert list(short.values()) == [("cam1", "x.png"), ("b", "cam1", "x.png"), ("cam2", "x.png")]
    assert trailing(paths[:1], 2)[paths[0]] == short[paths[0]]
    assert trailing(["x.png", "../y.png"], 2) == {"x.png": ("x.png",), "../y.png": ("y.png",)}


def test_the_longest_match_wins(tmp_path: Path) -> None:
    for folder in ("one", "two/v"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").touch()
    folders = [tmp_path / "one", tmp_path / "two"]
    assert locate("v/x.png", None, folders) == tmp_path / "two" / "v" / "x.png"
    assert locate("w/x.png", None, folders) == tmp_path / "one" / "x.png"
    assert locate("v/x.png", tmp_path / "one", folders) == tmp_path / "one" / "x.png"


def test_a_folder_that_is_there_is_the_one_that_is_named(tmp_path: Path) -> None:
    for name in ("A/x.png", "B/y.png", "B/deep/z.png", "x.png", "y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folders = [tmp_path / "A", tmp_path]
    for name in ("B/x.png", "C:\\old\\B\\x.png", "s3://bucket/new/B/x.png"):
        assert find_among(folders, name) is None, "B has no x.png"
    assert find_among(folders, "C/x.png") == tmp_path / "A/x.png", "there is no C"
    assert find_among(folders, "B/z.png") is None, "nor where it is deeper in B"
    assert find_among([*folders, tmp_path / "B/deep"], "B/z.png") == tmp_path / "B/deep/z.png"
    assert find_image(tmp_path, "B/x.png") is None
    assert find_image(tmp_path, "old/B/y.png") == tmp_path / "B/y.png"


def test_names_as_other_systems_write_them(tmp_path: Path) -> None:
    for name in ("Ma\u0308use/ka\u0308fig.png", "a/x.PNG", "b/my film/y 1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = find_image(tmp_path, "M\u00e4use/k\u00e4fig.png")
    assert found is not None and found.samefile(tmp_path / "Ma\u0308use/ka\u0308fig.png")
    assert find_image(tmp_path, "C:\\p\\a\\x.png") == tmp_path / "a/x.PNG"
    assert find_image(tmp_path, "file:///p/b/my%20film/y%201.png") == tmp_path / "b/my film/y 1.png"
    assert locate(f"{tmp_path}/a/x.png", None, []) == tmp_path / "a/x.PNG"
    assert find_image(tmp_path, "a/X.png") is None, "letters of the name itself count"
    for name in ("a/x.Png", "a/x%20.png", "a/x .png"):
        (tmp_path / name).touch()
    assert find_image(tmp_path, "a/x.png") is None, "there are x.PNG and x.Png"
    assert find_image(tmp_path, "a/x.Png") == tmp_path / "a/x.Png"
    assert find_image(tmp_path, "a/x%20.png") == tmp_path / "a/x%20.png"


def test_jpegs_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
    assert as_jpeg(path.read_bytes(), "") == (path.read_bytes(), 30, 20)
    grey = tmp_path / "grey.png"
    cv2.imwrite(str(grey), np.full((20, 30), 7, np.uint16) * 256)
    data, width, height = as_jpeg(grey.read_bytes(), "")
    assert (width, height) == (30, 20) and data.startswith(b"\xff\xd8")

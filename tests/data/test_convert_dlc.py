"""DeepLabCut projects in every layout their tables come in, against MARS' own conversion of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from fasthg.data.boxes import box_around
from fasthg.data.convert import dlc
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import DataError, EnvironmentFault

CONFIG = "scorer: me\nmultianimalproject: false\nbodyparts:\n- nose\n- left ear\n- tail\n"
HEADER = [
    "scorer,me,me,me,me,me,me",
    "bodyparts,nose,nose,left ear,left ear,tail,tail",
    "coords,x,y,x,y,x,y",
]
ROWS = [
    "labeled-data/video1/img0.png,10,20,15,22,60,40",
    "labeled-data/video1/img1.png,11.5,21.25,,,61,41",
    "labeled-data/video1/img2.png,,,,,,",
    "labeled-data/video1/img3.png,12,22,nan,nan,NaN,",
]
ALL_TRAIN = (1.0, 0.0, 0.0)


def make(folder: Path, lines: Sequence[str], config: str = CONFIG, images: int = 4) -> Path:
    labels = folder / "labeled-data" / "video1"
    labels.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (labels / "CollectedData_me.csv").write_text("\n".join(lines) + "\n")
    for number in range(images):
        image = np.full((80, 100, 3), 6 * number, np.uint8)
        cv2.imwrite(str(labels / f"img{number}.png"), image)
    return folder


def index_of(report: dlc.Report, parts: int = 3) -> RecordIndex:
    return RecordIndex.build([str(path) for path in report.files], parts)


def by_id(index: RecordIndex) -> dict[str, np.ndarray]:
    return {index.image_id(int(r)): index.keypoints[i] for i, r in enumerate(index.record)}


def test_single_animal(tmp_path: Path) -> None:
    report = dlc.convert(
        make(tmp_path / "p", [*HEADER, *ROWS]), tmp_path / "out", fractions=ALL_TRAIN
    )
    assert [path.name for path in report.files] == ["train_dataset-00000-of-00001"]
    assert report.frames == {"train": 2, "val": 0, "test": 0}
    assert (report.animals, report.unlabelled_parts) == (2, 1)
    assert report.skipped == {
        "animals with fewer than 2 labelled parts": 1,
        "frames without a labelled animal": 2,
    }
    assert report.lines()[:2] == [
        "2 frames (2 train, 0 val, 0 test), 2 animals, 1 part unlabelled",
        "parts: 0 nose, 1 left ear, 2 tail",
    ]
    index = index_of(report)
    found = by_id(index)
    np.testing.assert_allclose(found["video1/img0"], [[10, 20], [15, 22], [60, 40]], atol=1e-4)
    np.testing.assert_allclose(
        found["video1/img1"], [[11.5, 21.25], [np.nan] * 2, [61, 41]], atol=1e-4
    )
    first = next(r for r in range(2) if index.image_id(r) == "video1/img0")
    image = cv2.imdecode(np.frombuffer(index.jpeg(first), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (80, 100, 3) and abs(image.astype(int)).max() <= 1
    np.testing.assert_allclose(index.bbox[first], [0.06, 0.21, 0.64, 0.54], atol=1e-6)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda line: line.replace("labeled-data/video1/", "labeled-data\\video1\\"),
        lambda line: line.replace("labeled-data/video1/", "labeled-data,video1,"),
        lambda line: line.replace("labeled-data/video1/", "C:\\work\\p\\labeled-data\\video1\\"),
        lambda line: line.replace("labeled-data/video1/", "labeled-data/a former name/"),
    ],
)
def test_ways_to_name_a_row(tmp_path: Path, rewrite: object) -> None:
    assert callable(rewrite)
    rows = [rewrite(row) for row in ROWS]
    header = list(HEADER)
    if rows[0].startswith("labeled-data,"):
        header = [line.replace(",", ",,,", 1) for line in HEADER]
    plain = dlc.convert(make(tmp_path / "p", [*HEADER, *ROWS]), tmp_path / "a")
    other = dlc.convert(make(tmp_path / "q", [*header, *rows]), tmp_path / "b")
    assert [p.read_bytes() for p in other.files] == [p.read_bytes() for p in plain.files]


def test_several_animals(tmp_path: Path) -> None:
    config = (
        "scorer: me\nmultianimalproject: true\nbodyparts: MULTI!\nindividuals:\n- a\n- b\n"
        "uniquebodyparts:\n- corner\nmultianimalbodyparts:\n- nose\n- tail\n"
    )
    lines = [
        "scorer,,," + ",".join(["me"] * 10),
        "individuals,,,a,a,a,a,b,b,b,b,single,single",
        "bodyparts,,,nose,nose,tail,tail,nose,nose,tail,tail,corner,corner",
        "coords,,,x,y,x,y,x,y,x,y,x,y",
        "labeled-data,video1,img0.png,1,2,30,40,50,60,70,70,5,5",
        "labeled-data,video1,img1.png,,,,,50,61,70,71,5,5",
        "labeled-data,video1,img2.png,,,,,,,,,5,5",
    ]
    report = dlc.convert(make(tmp_path / "p", lines, config), tmp_path / "o", fractions=ALL_TRAIN)
    assert report.notes == ["left out, not body parts of an animal: corner"]
    assert report.skipped["frames without a labelled animal"] == 1
    index = index_of(report, 2)
    assert (len(index), index.num_records) == (3, 2)
    two = [i for i in range(3) if index.image_id(int(index.record[i])) == "video1/img0"]
    expected = [[[1, 2], [30, 40]], [[50, 60], [70, 70]]]
    np.testing.assert_allclose(index.keypoints[two], expected, atol=1e-4)


def test_parts_can_be_chosen_renamed_and_ordered(tmp_path: Path) -> None:
    report = dlc.convert(
        make(tmp_path / "p", [*HEADER, *ROWS]),
        tmp_path / "out",
        parts={"tail": "base of tail", "nose": "nose"},
        fractions=ALL_TRAIN,
    )
    assert report.parts == ("base of tail", "nose")
    assert "names: tail -> base of tail" in report.lines()
    np.testing.assert_allclose(
        by_id(index_of(report, 2))["video1/img0"], [[60, 40], [10, 20]], atol=1e-4
    )
    with pytest.raises(DataError, match="no body part named paw; there are nose, left ear, tail"):
        dlc.convert(tmp_path / "p", tmp_path / "out", parts={"paw": "paw"})


def test_lateral_parts_without_a_pair_are_named(tmp_path: Path) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    report = dlc.convert(project, tmp_path / "o", parts={"nose": "LH", "tail": "RF"})
    (line,) = [line for line in report.lines() if "'LH', 'RF'" in line]
    assert line.endswith(
        "without a partner on the other side: check them before images are mirrored"
    )
    report = dlc.convert(project, tmp_path / "q", parts={"nose": "LH", "tail": "RH"})
    assert report.pairs == [(0, 1)] and report.unpaired == []


@pytest.mark.parametrize("name", ["config.yaml", "labeled-data/video1/CollectedData_me.csv"])
def test_encodings(tmp_path: Path, name: str) -> None:
    lines = [line.replace("nose", "n\u00e4schen") for line in (*HEADER, *ROWS)]
    project = make(tmp_path / "p", lines, CONFIG.replace("nose", "n\u00e4schen"))
    text = (project / name).read_text()
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        (project / name).write_text(text, encoding=encoding)
        assert dlc.convert(project, tmp_path / encoding).parts[0] == "n\u00e4schen"
    for encoding, byte in (("cp1252", "e4"), ("mac_roman", "8a")):
        (project / name).write_text(text, encoding=encoding)
        with pytest.raises(DataError, match=rf"{name}:\d: byte 0x{byte} is not UTF-8; save the"):
            dlc.convert(project, tmp_path / "o")
    (project / name).write_bytes(b"bodyparts: [a, \0]")
    with pytest.raises(DataError, match=rf"{name}: is no text; check the path"):
        dlc.convert(project, tmp_path / "o")
    (project / name).write_bytes(b"PK\3\4\x14\0\xff\xff")
    with pytest.raises(DataError, match=rf"{name}: is a ZIP archive or an Excel file; unpack"):
        dlc.convert(project, tmp_path / "o")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_that_a_spreadsheet_saved(tmp_path: Path, separator: str) -> None:
    lines = [line.replace(",", separator) for line in (*HEADER, *ROWS)]
    for number, first in enumerate(([], [f"sep={separator}"])):
        project = make(tmp_path / str(number), [*first, *lines])
        with pytest.raises(DataError, match=r"me\.csv: columns are separated by '.+', as a spread"):
            dlc.convert(project, tmp_path / "o")


def test_a_row_is_of_the_folder_that_it_names(tmp_path: Path) -> None:
    other = [row.replace("video1", "video2") for row in ROWS]
    project = make(tmp_path / "p", [*HEADER, *other])
    named = project / "labeled-data" / "video2"
    named.mkdir()
    for number in range(2):
        cv2.imwrite(str(named / f"img{number}.png"), np.full((80, 100, 3), 200, np.uint8))
    with pytest.raises(DataError, match=r"2 of 4 labelled images are missing .*video2/img2.png"):
        dlc.convert(project, tmp_path / "o")
    report = dlc.convert(project, tmp_path / "o", skip_missing=True, fractions=ALL_TRAIN)
    assert {*by_id(index_of(report))} == {"video2/img0", "video2/img1"}


@pytest.mark.parametrize("written", ["labeled-data/video2/", "video2/", "C:\\p\\video2\\"])
def test_a_row_of_a_table_given_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """The images next to the table are not those of the folder that its rows name."""
    rows = [row.replace("labeled-data/video1/", written) for row in ROWS]
    project = make(tmp_path / "p", [*HEADER, *rows])
    folder = project / "labeled-data" / "video1"
    (folder.parent / "video2").mkdir()
    monkeypatch.chdir(folder)
    for table in (folder / "CollectedData_me.csv", Path("CollectedData_me.csv")):
        with pytest.raises(DataError, match="4 of 4 labelled images are missing"):
            dlc.convert(table, tmp_path / "o")
    for path in folder.glob("*.png"):
        path.rename(folder.parent / "video2" / path.name)
    report = dlc.convert(folder / "CollectedData_me.csv", tmp_path / "o", fractions=ALL_TRAIN)
    assert "video2/img0" in by_id(index_of(report))


def test_notes_of_macos_beside_files_are_left_alone(tmp_path: Path) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    labels = project / "labeled-data" / "video1"
    for name in ("._CollectedData_me.csv", "._img0.png", "._CollectedData_x.h5"):
        (labels / name).write_bytes(b"\0\5\x16\7")
    (project / "labeled-data" / "._video1").touch()
    assert dlc.convert(project, tmp_path / "o", fractions=ALL_TRAIN).frames["train"] == 2


def test_missing_images(tmp_path: Path) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS], images=1)
    with pytest.raises(
        DataError,
        match=r"3 of 4 labelled images are missing \(labeled-data/video1/img1.png, .*img3.png\)",
    ):
        dlc.convert(project, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = dlc.convert(project, tmp_path / "out", skip_missing=True, fractions=ALL_TRAIN)
    assert report.skipped["frames without an image"] == 3 and report.frames["train"] == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["nonsense"], "no DeepLabCut header"),
        ([*HEADER, "labeled-data/video1/img0.png,1,2"], ":4: 3 columns where the header has 7"),
        ([*HEADER, ROWS[0].replace("60", "sixty")], ":4: could not convert .*'sixty'"),
        (HEADER, "no labelled frame to write"),
    ],
)
def test_bad_tables(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dlc.convert(make(tmp_path / "p", lines), tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("bodyparts: MULTI!\n", "config.yaml: bodyparts is no list of names"),
        ("bodyparts: [nose\n", "config.yaml:2: .*correct the file"),
        ("- nose\n", "not a DeepLabCut config"),
    ],
)
def test_bad_configs(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dlc.convert(make(tmp_path / "p", [*HEADER, *ROWS], config), tmp_path / "out")


def test_no_project_and_no_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config.yaml: No such file"):
        dlc.convert(tmp_path, tmp_path / "out")
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(DataError, match="no CollectedData_"):
        dlc.convert(tmp_path, tmp_path / "out")


def test_several_scorers(tmp_path: Path) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    folder = project / "labeled-data" / "video1"
    (folder / "CollectedData_you.csv").write_text("not read")
    assert dlc.convert(project, tmp_path / "out").animals == 2
    (folder / "CollectedData_me.csv").rename(folder / "CollectedData_her.csv")
    with pytest.raises(DataError, match=r"several scorers .*her, .*you.* set scorer"):
        dlc.convert(project, tmp_path / "out")


def test_h5_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    (project / "labeled-data" / "video1" / "CollectedData_me.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tables", None)
    assert dlc.convert(project, tmp_path / "out").animals == 2
    with pytest.raises(EnvironmentFault, match=r"needs tables; pip install 'fasthg\[dlc\]'"):
        dlc.convert(project, tmp_path / "out", prefer_h5=True)


def test_h5_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("tables")
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    (project / "labeled-data" / "video1" / "CollectedData_me.h5").write_bytes(b"text")
    remedy = r"; save the file .*, or, if CollectedData_me.csv beside it .* --csv"
    for prefer_h5 in (None, True):
        with pytest.raises(DataError, match=rf"CollectedData_me.h5: .*{remedy}"):
            dlc.convert(project, tmp_path / "out", prefer_h5=prefer_h5)
    assert dlc.convert(project, tmp_path / "out", prefer_h5=False).animals == 2


def test_splits_depend_on_the_seed_only(tmp_path: Path) -> None:
    rows = [f"img{number}.png,10,20,15,22,60,40" for number in range(40)]
    project = make(tmp_path / "p", [*HEADER, *rows], images=40)
    reports = [
        dlc.convert(project, tmp_path / name, seed=seed, shard_size=20)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert reports[0].frames == {"train": 34, "val": 2, "test": 4}
    names = [path.name for path in reports[0].files]
    assert names[:2] == ["train_dataset-00000-of-00002", "train_dataset-00001-of-00002"]
    contents = [[path.read_bytes() for path in report.files] for report in reports]
    assert contents[0] == contents[1] != contents[2]
    ids = [index_of(report) for report in reports]
    order = [f"video1/img{number}" for number in np.random.default_rng(0).permutation(40)]
    assert [ids[0].image_id(r) for r in range(40)] == order
    with pytest.raises(DataError, match=r"split 0.5 0.5 0.5: give three fractions"):
        dlc.convert(project, tmp_path / "d", fractions=(0.5, 0.5, 0.5))


def test_unreadable_image(tmp_path: Path) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    (project / "labeled-data" / "video1" / "img1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"img1.png: not an image"):
        dlc.convert(project, tmp_path / "out", fractions=ALL_TRAIN)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[0.5, 0.5], [0.6, 0.7], [np.nan, 0.9]], [0.46, 0.46, 0.64, 0.74]),
        # The nearer border limits the growth of both sides of an axis.
        ([[0.01, 0.5], [0.3, 0.6]], [0.0, 0.46, 0.31, 0.64]),
        ([[0.0, 0.99], [0.3, 1.2]], [0.0, 0.98, 0.3, 1.0]),
    ],
)
def test_boxes(points: list[list[float]], expected: list[float]) -> None:
    np.testing.assert_allclose(box_around(np.array(points)), expected, atol=1e-6)


def test_no_box_without_parts() -> None:
    with pytest.raises(ValueError, match="no labelled part"):
        box_around(np.full((3, 2), np.nan))


def test_openfield_equals_the_references_conversion(tmp_path: Path, test_data: Path) -> None:
    report = dlc.convert(test_data / "openfield", tmp_path / "csv")
    assert report.frames == {"train": 98, "val": 6, "test": 12}
    ours = index_of(report, 4)
    theirs = RecordIndex.build(str(test_data / "mars" / "one_mouse" / "*"), 4)
    one, two = (np.lexsort(index.keypoints[..., 0].T) for index in (ours, theirs))
    np.testing.assert_allclose(ours.keypoints[one], theirs.keypoints[two], atol=1e-4)
    np.testing.assert_allclose(ours.bbox[one], theirs.bbox[two], atol=1e-6)
    np.testing.assert_allclose(ours.area[one], theirs.area[two], rtol=1e-5)

    pytest.importorskip("tables")
    from_h5 = dlc.convert(test_data / "openfield", tmp_path / "h5", prefer_h5=True)
    for one_file, other in zip(report.files, from_h5.files, strict=True):
        assert one_file.read_bytes() == other.read_bytes()


def test_a_frame_labelled_twice(tmp_path: Path) -> None:
    again = "labeled-data\\video1\\img0.png,10,20,15,22,60,41"
    project = make(tmp_path / "p", [*HEADER, *ROWS, again])
    with pytest.raises(DataError, match=r"me.csv:4 and .*me.csv:8: both label .*img0.png, and dif"):
        dlc.convert(project, tmp_path / "out")
    # The same labels, or a row without any, contradict nothing.
    same = [again.replace("41", "40"), "labeled-data/video1/img0.png,,,,,,"]
    report = dlc.convert(make(tmp_path / "q", [*HEADER, *ROWS, *same]), tmp_path / "out")
    assert report.animals == 2 and report.skipped["frames labelled twice, the same way"] == 1
    named = make(tmp_path / "r", [*HEADER, ROWS[0], ROWS[1].replace("img1.png", "img0.jpg")])
    images = named / "labeled-data" / "video1"
    (images / "img1.png").rename(images / "img0.jpg")
    with pytest.raises(DataError, match=r"img0.jpg would have the id video1/img0, as .*img0.png"):
        dlc.convert(named, tmp_path / "o")


def test_names_that_are_there_twice(tmp_path: Path) -> None:
    header = [line.replace("left ear", "nose") for line in HEADER]
    with pytest.raises(DataError, match=r"me.csv: 2 columns are named me nose x; rename or"):
        dlc.convert(make(tmp_path / "p", [*header, *ROWS]), tmp_path / "out")
    config = CONFIG.replace("left ear", "nose")
    with pytest.raises(DataError, match=r"config.yaml: several body parts are named nose"):
        dlc.convert(make(tmp_path / "q", [*HEADER, *ROWS], config), tmp_path / "out")


def put_h5(project: Path, rows: Sequence[str]) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    columns = [("me", part, axis) for part in ("nose", "left ear", "tail") for axis in "xy"]
    names = pandas.MultiIndex.from_tuples(columns, names=["scorer", "bodyparts", "coords"])
    cells = [row.split(",") for row in rows]
    frame = pandas.DataFrame(
        [[float(cell or "nan") for cell in row[1:]] for row in cells],
        index=[row[0] for row in cells],
        columns=names,
    )
    path = project / "labeled-data" / "video1" / "CollectedData_me.h5"
    frame.to_hdf(path, key="df_with_missing", mode="w")


def test_the_h5_counts_and_a_csv_that_differs_is_named(tmp_path: Path) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    put_h5(project, [ROWS[0].replace("60", "61.005"), ROWS[1].replace("61", "61.005"), *ROWS[2:]])
    report = dlc.convert(project, tmp_path / "a", fractions=ALL_TRAIN)
    assert by_id(index_of(report))["video1/img0"][2, 0] == pytest.approx(61.005, abs=1e-3)
    # A csv that is rounded does not differ.
    assert report.notes == [
        f"{project}/labeled-data/video1/CollectedData_me.csv and CollectedData_me.h5 differ in 1 "
        f"frames (img0.png); labels from CollectedData_me.h5, --csv reads the other"
    ]
    report = dlc.convert(project, tmp_path / "b", prefer_h5=False, fractions=ALL_TRAIN)
    assert by_id(index_of(report))["video1/img0"][2, 0] == pytest.approx(60, abs=1e-3)
    assert report.notes[0].endswith("labels from CollectedData_me.csv, --h5 reads the other")


def test_an_h5_that_is_newer_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    folder = project / "labeled-data" / "video1"
    (folder / "CollectedData_me.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tables", None)
    report = dlc.convert(project, tmp_path / "a")
    assert report.notes[0].startswith("labels from CollectedData_me.csv, not compared with the .h5")
    os.utime(folder / "CollectedData_me.csv", (1e9, 1e9))
    with pytest.raises(EnvironmentFault, match=r"CollectedData_me.h5: reading HDF5 needs tables"):
        dlc.convert(project, tmp_path / "b")
    assert dlc.convert(project, tmp_path / "b", prefer_h5=False).animals == 2


def test_a_table_without_a_project(tmp_path: Path) -> None:
    """As in Lightning Pose: the table is at the root, and config.yaml missing or another's."""
    project = make(tmp_path / "p", [*HEADER, *ROWS])
    plain = dlc.convert(project, tmp_path / "a")
    (project / "config.yaml").unlink()
    table = project / "CollectedData.csv"
    (project / "labeled-data" / "video1" / "CollectedData_me.csv").rename(table)
    (project / "CollectedData_new.csv").write_text("of other films")
    for number, given in enumerate((project, table, project)):
        report = dlc.convert(given, tmp_path / f"b{number}")
        assert report.parts == plain.parts
        assert [p.read_bytes() for p in report.files] == [p.read_bytes() for p in plain.files]
        (project / "config.yaml").write_text("data:\n  keypoint_names: [nose]\n")
    table.rename(project / "CollectedData_old.csv")
    with pytest.raises(DataError, match=r"several tables .*_new.csv, .*_old.csv\); give one of"):
        dlc.convert(project, tmp_path / "out")

"""What labelling tools are given, and that what comes back from them joins the records."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from film_rows import film_rows

from fasthg.config import Parts
from fasthg.data.convert import coco, dlc, slp
from fasthg.data.convert.common import Report
from fasthg.data.records.schema import Record, decode
from fasthg.data.records.tfrecord import read_frames
from fasthg.errors import ConfigError, DataError
from fasthg.inference.video.suggest.folder import write_folder
from fasthg.inference.video.suggest.suggest import Suggestion, Suggestions
from fasthg.inference.video.video_file import VideoSource

PARTS = Parts(
    NUM_PARTS=4,
    NAMES=("nose", "neck", "hip", "tail"),
    SIGMAS=(1.0,) * 4,
    LEFT_RIGHT_PAIRS=(),
    SKELETON=((0, 1), (1, 2)),
)
CHOSEN = (4, 30, 31)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> VideoSource:
    from moving_dots import write_video

    path = tmp_path_factory.mktemp("films") / "day1.mp4"
    random = np.random.default_rng(0)
    return VideoSource(write_video(path, random.integers(0, 255, (40, 96, 128, 3), np.uint8)))


def suggestions(film: VideoSource, animals: int = 1) -> Suggestions:
    """Frame 4 with an unsure tail; in frame 31 the first animal is missing."""
    rows = film_rows(frames=40, animals=animals, sizes=np.full((40, 2), 1, np.int32))
    rows.keypoints[:] = rows.keypoints * 0.2
    rows.boxes[:] = rows.boxes * 0.2
    rows.scores[4, 0, 3] = 0.1
    rows.keypoints[31, 0], rows.scores[31, 0], rows.boxes[31, 0] = np.nan, np.nan, np.nan
    if animals > 1:
        rows = replace(rows, animals=("left", "right"))
    frames = [Suggestion(0, n, n / 25, "jump", "hip", 3.0) for n in CHOSEN]
    return Suggestions([film], [rows], frames)


@pytest.fixture(params=[1, 2])
def written(request: pytest.FixtureRequest, film: VideoSource, tmp_path: Path) -> Any:
    pytest.importorskip("tables")
    pytest.importorskip("sleap_io")
    found = suggestions(film, request.param)
    files, notes = write_folder(found, PARTS, tmp_path / "next", confidence=0.3, scorer="me")
    assert notes == []
    assert all(file.is_file() for file in files)
    return found, tmp_path / "next"


def labels_of(folder: Path) -> Any:
    import pandas

    return pandas.read_hdf(folder / "labeled-data/day1/machinelabels-iter0.h5")


def corrected(folder: Path, shift: float = 1.5) -> Any:
    """What napari saves: likelihoods gone, the config's scorer, here with points moved."""
    import pandas

    table = labels_of(folder).drop(columns="likelihood", level="coords") + shift
    names = table.columns.names
    table.columns = pandas.MultiIndex.from_tuples(
        [("me", *each[1:]) for each in table.columns], names=names
    )
    table.to_hdf(folder / "labeled-data/day1/CollectedData_me.h5", key="df_with_missing")
    return table


def records(report: Report) -> dict[str, Record]:
    found = [decode(f.payload, "") for path in report.files for f in read_frames(path)]
    return {each.image_id: each for each in found}


def truth(found: Suggestions, frame: int) -> Any:
    """(animals there, parts, 2) px, NaN for unsure parts."""
    rows = found.rows[0]
    points = np.where(rows.scores[frame][..., None] >= 0.3, rows.keypoints[frame], np.nan)
    return points[np.isfinite(points).any(axis=(1, 2))]


def px(record: Record) -> Any:
    return record.keypoints.astype(float) * (record.width, record.height)


def test_deeplabcuts_folder(written, film: VideoSource) -> None:
    found, folder = written
    several = len(found.rows[0].animals) > 1
    table = labels_of(folder)
    names = [f"img{n:02d}.png" for n in CHOSEN]
    assert list(table.index) == [("labeled-data", "day1", name) for name in names]
    levels = ["scorer", *(["individuals"] if several else []), "bodyparts", "coords"]
    assert table.columns.names == levels
    values = table.to_numpy().reshape(3, -1, 4, 3)
    rows = found.rows[0]
    np.testing.assert_allclose(values[..., 2], rows.scores[list(CHOSEN)])
    assert np.isnan(values[0, 0, 3, :2]).all()
    np.testing.assert_allclose(values[1, ..., :2], rows.keypoints[30])
    pictures = {frame.number: frame.image for frame in film.frames()}
    for number, name in zip(CHOSEN, names, strict=True):
        image = cv2.imread(str(folder / "labeled-data/day1" / name))
        assert np.array_equal(image, pictures[number])
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["scorer"] == "me"
    assert settings["multianimalproject"] == several
    assert settings["skeleton"] == [["nose", "neck"], ["neck", "hip"]]
    assert list(settings["video_sets"]) == [str(film.path)]
    assert not list(folder.rglob("CollectedData*"))


def test_what_nobody_corrected_is_nobodys_label(written, tmp_path: Path) -> None:
    _, folder = written
    with pytest.raises(DataError, match="label frames in DeepLabCut first"):
        dlc.convert(folder, tmp_path / "a")
    with pytest.raises(DataError, match=r"suggestions\.json: holds machine labels .*--predictions"):
        coco.convert([coco.Source(folder / "suggestions.json")], tmp_path / "b")
    with pytest.raises(DataError, match="--predictions"):
        slp.convert(folder / "suggestions.slp", tmp_path / "c")
    report = coco.convert(
        [coco.Source(folder / "suggestions.json")], tmp_path / "d", predictions=True
    )
    assert {*records(report)} == {"day1/img04", "day1/img30", "day1/img31"} - (
        {"day1/img31"} if report.animals == 2 else set()
    )


def test_frames_that_napari_saves_as_they_were_are_told_of(written, tmp_path: Path) -> None:
    _, folder = written
    corrected(folder, shift=0.0)
    report = dlc.convert(folder, tmp_path / "a")
    assert any("labelled exactly as by the model" in note for note in report.notes)
    corrected(folder)
    report = dlc.convert(folder, tmp_path / "b")
    assert not any("exactly" in note for note in report.notes)


def before(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Records of another project, and the splits of its frames."""
    lab = tmp_path / "lab"
    folder = lab / "labeled-data/day0"
    folder.mkdir(parents=True)
    names = ",".join(f"{p},{p}" for p in PARTS.NAMES)
    lines = ["scorer" + ",you" * 8, f"bodyparts,{names}", "coords" + ",x,y" * 4]
    for number in range(10):
        cv2.imwrite(str(folder / f"img{number}.png"), np.full((96, 128, 3), 9 * number, np.uint8))
        values = ",".join(str(10 + number + each) for each in range(8))
        lines.append(f"labeled-data/day0/img{number}.png,{values}")
    (folder / "CollectedData_you.csv").write_text("\n".join(lines) + "\n")
    (lab / "config.yaml").write_text(
        yaml.safe_dump({"scorer": "you", "bodyparts": list(PARTS.NAMES)})
    )
    dlc.convert(lab, tmp_path / "data", fractions=(0.6, 0.2, 0.2))
    return tmp_path / "data", splits(tmp_path / "data")


def splits(data: Path) -> dict[str, str]:
    frames: dict[str, str] = json.loads((data / "splits.json").read_text())["frames"]
    return frames


def from_dlc(found: Suggestions, folder: Path, data: Path) -> Report:
    corrected(folder)
    return dlc.convert(folder, data)


def from_coco(found: Suggestions, folder: Path, data: Path) -> Report:
    """As a tool exports it: what is in `info` and the scores are its own."""
    path = folder / "suggestions.json"
    content = json.loads(path.read_text())
    content["info"] = {"description": "a tool"}
    for annotation in content["annotations"]:
        del annotation["score"]
        xyv = np.array(annotation["keypoints"]).reshape(-1, 3)
        xyv[xyv[:, 2] > 0, :2] += 1.5
        annotation["keypoints"] = xyv.ravel().tolist()
    path.write_text(json.dumps(content))
    return coco.convert([coco.Source(path)], data)


def from_slp(found: Suggestions, folder: Path, data: Path) -> Report:
    """As SLEAP does it: a user's instance in the place of the predicted one."""
    import sleap_io

    labels = sleap_io.load_slp(str(folder / "suggestions.slp"))
    assert [each.frame_idx for each in labels.suggestions] == [*CHOSEN]
    for frame in labels.labeled_frames:
        frame.instances = [
            sleap_io.Instance.from_numpy(
                each.numpy() + 1.5, skeleton=each.skeleton, track=each.track, from_predicted=each
            )
            for each in frame.instances
        ]
    labels.save(str(folder / "suggestions.slp"), verbose=False)
    return slp.convert(folder / "suggestions.slp", data)


@pytest.mark.parametrize("back", [from_dlc, from_coco, from_slp])
def test_corrected_frames_join_the_records_and_the_others_stay(
    written, tmp_path: Path, back
) -> None:
    found, folder = written
    data, old = before(tmp_path)
    back(found, folder, data)
    now = splits(data)
    assert {name: now[name] for name in old} == old
    assert len(now) == len(old) + (3 if len(found.rows[0].animals) > 1 else 2)
    everything = {
        each.image_id: each
        for path in sorted(data.glob("*_dataset-*"))
        for each in (decode(f.payload, "") for f in read_frames(path))
    }
    assert {*everything} == {*now}
    for name in {*now} - {*old}:
        record = everything[name]
        number = int(name[-2:])
        expected = truth(found, number) + 1.5
        np.testing.assert_allclose(px(record), expected, atol=2e-3)
        if back is not from_coco and len(found.rows[0].animals) > 1:
            assert list(record.object_id) == ["left", "right"][-len(expected) :]


def test_a_folder_that_holds_anything_is_left_alone(film: VideoSource, tmp_path: Path) -> None:
    (tmp_path / "work.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already; give a new folder with -o"):
        write_folder(suggestions(film), PARTS, tmp_path, confidence=0.3, scorer="me")
    assert [path.name for path in tmp_path.iterdir()] == ["work.txt"]


def test_formats_whose_packages_are_missing_are_left_out(
    film: VideoSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tables", "sleap_io"):
        monkeypatch.setitem(sys.modules, name, None)
    files, notes = write_folder(
        suggestions(film), PARTS, tmp_path / "next", confidence=0.3, scorer="me"
    )
    assert [file.name for file in files] == ["suggestions.json"]
    assert ["fasthg[dlc]" in notes[0], "fasthg[sleap]" in notes[1]] == [True, True]
    assert len(list((tmp_path / "next").rglob("*.png"))) == 3


def test_a_writer_that_fails_leaves_nothing(
    film: VideoSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fasthg.inference.video.suggest import write_coco

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_coco, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_folder(suggestions(film), PARTS, tmp_path / "next", confidence=0.3, scorer="me")
    assert not any((tmp_path / "next").iterdir())

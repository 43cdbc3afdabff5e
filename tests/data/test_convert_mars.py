"""MARS projects: every form of labels, repaired swaps, medians, and whatever may be missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fasthg.data.convert import mars
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import DataError

KEYPOINTS = ["nose", "right ear", "left ear", "base of tail"]
CONFIG = """
project_name: test
species: mouse
animal_names: [black, white]
keypoints: [nose, right ear, left ear, base of tail]
check_pairs: [[right ear, left ear]]
pixels_per_cm: 10
pose:
  top: [black, white]
"""
SIZE = (200, 100)
# Image px, (parts, 2) of each animal.
TRUTH = {
    "black": np.array([[50, 20], [60, 30], [40, 30], [50, 80]], float),
    "white": np.array([[150, 80], [140, 70], [160, 70], [150, 25]], float),
}
OFFSETS = np.array([[0, 0], [1, -1], [-1, 1], [2, 0.5], [-2, -0.5]])
ALL_TRAIN = (1.0, 0.0, 0.0)


def workers() -> dict[str, np.ndarray]:
    """Five workers scattered about the truth, (workers, parts, 2) px an animal."""
    return {name: xy[None] + OFFSETS[:, None] for name, xy in TRUTH.items()}


def make(folder: Path, config: str = CONFIG, frames: int = 3) -> Path:
    images = folder / "annotation_data" / "raw_images"
    images.mkdir(parents=True)
    (folder / "project_config.yaml").write_text(config)
    for number in range(frames):
        image = np.full((SIZE[1], SIZE[0], 3), 50 * number, np.uint8)
        cv2.imwrite(str(images / f"frame{number}.jpg"), image)
    return folder


def content(labels: dict[str, np.ndarray], worker: int) -> dict[str, Any]:
    keypoints = [
        {"label": f"{animal} mouse {part}", "x": x, "y": y}
        for animal, xy in labels.items()
        for part, (x, y) in zip(KEYPOINTS, xy[worker].tolist(), strict=True)
        if np.isfinite(x)
    ]
    size = {"width": SIZE[0], "height": SIZE[1]}
    return {"annotatedResult": {"keypoints": keypoints, "inputImageProperties": size}}


def line(number: int, labels: dict[str, np.ndarray], job: str = "annotatedResult") -> str:
    answers = [
        {
            "workerId": f"worker{worker}",
            "annotationData": {"content": json.dumps(content(labels, worker))},
        }
        for worker in range(5)
    ]
    return json.dumps(
        {
            "source-ref": f"s3://bucket/some/folder/frame{number}.jpg",
            f"{job}-metadata": {"type": "groundtruth/custom", "job-name": "job"},
            job: {"annotationsFromAllWorkers": answers},
        }
    )


def put_manifest(project: Path, lines: list[str], name: str = "output.manifest") -> None:
    (project / "annotation_data" / name).write_text("\n".join(lines) + "\n")


def keypoints(report: mars.Report) -> np.ndarray:
    """(animals of all frames, parts, 2) px of what was written."""
    return RecordIndex.build([str(path) for path in report.files], 4).keypoints


def test_manifest(tmp_path: Path) -> None:
    project = make(tmp_path)
    put_manifest(project, [line(number, workers()) for number in range(3)])
    report = mars.convert(project, fractions=ALL_TRAIN)
    assert report.files == [project / "pose/top_tfrecords_pose/train_dataset-00000-of-00001"]
    assert (report.frames["train"], report.animals, report.swaps) == (3, 6, 0)
    assert report.parts == tuple(KEYPOINTS)
    for frame in keypoints(report).reshape(3, 2, 4, 2):
        np.testing.assert_allclose(frame, [TRUTH["black"], TRUTH["white"]], atol=1e-4)
    index = RecordIndex.build(str(report.files[0]), 4)
    assert sorted(index.image_id(r) for r in range(3)) == ["frame0", "frame1", "frame2"]
    # Black: 40..60 of 200 and 20..80 of 100, grown by 0.04.
    np.testing.assert_allclose(index.bbox[0], [0.16, 0.16, 0.34, 0.84], atol=1e-6)


def test_a_swapped_worker_and_a_missing_point(tmp_path: Path) -> None:
    labels = workers()
    labels["black"][3, [1, 2]] = labels["black"][3, [2, 1]]
    labels["white"][:, 3] = np.nan
    labels["white"][1, 0] = np.nan
    project = make(tmp_path)
    put_manifest(project, [line(0, labels)])
    report = mars.convert(project, fractions=ALL_TRAIN)
    assert report.swaps == 1
    assert "up to 5 workers a frame; 1 swaps of left and right repaired" in report.lines()
    black, white = keypoints(report)
    np.testing.assert_allclose(black, TRUTH["black"], atol=1e-4)
    # Worker 1 (offset 1, -1) left the nose out: the median of 0, -1, 2, -2 and 0, 1, 0.5, -0.5.
    np.testing.assert_allclose(white[0], TRUTH["white"][0] + (-0.5, 0.25), atol=1e-4)
    assert np.isnan(white[3]).all() and report.unlabelled_parts == 1


def test_forms_of_a_manifest_line(tmp_path: Path) -> None:
    labels = workers()
    image = {"source-ref": "frame0.jpg"}
    answers: list[list[Any]] = [
        [{"annotationData": {"content": content(labels, w)}} for w in range(5)],
        [{"answerContent": content(labels, w)} for w in range(5)],
        [content(labels, w)["annotatedResult"] for w in range(5)],
    ]
    lines = [json.dumps({**image, "my-job": {"annotations": rows}}) for rows in answers]
    lines.append(line(0, labels, job="another-job"))
    for number, text in enumerate(lines):
        project = make(tmp_path / str(number))
        put_manifest(project, [text])
        found = keypoints(mars.convert(project, fractions=ALL_TRAIN))
        np.testing.assert_allclose(found, [TRUTH["black"], TRUTH["white"]], atol=1e-4)


def test_lines_without_labels_and_unknown_labels(tmp_path: Path) -> None:
    project = make(tmp_path)
    strange = json.loads(line(1, workers()))
    answer = {"keypoints": [{"label": "grey mouse nose", "x": 1, "y": 2}]}
    strange["annotatedResult"]["annotationsFromAllWorkers"].append(answer)
    put_manifest(project, ['{"source-ref": "frame0.jpg"}', json.dumps(strange)])
    report = mars.convert(project, fractions=ALL_TRAIN)
    assert report.skipped["frames without labels"] == 1
    assert report.notes[-1].endswith("no keypoint or animal of the project: grey mouse nose")
    np.testing.assert_allclose(keypoints(report)[0], TRUTH["black"], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "output.manifest:2: not a line of crowd-keypoint labels"),
        ('{"a": 1}', "output.manifest:2: .*'source-ref'"),
        (
            '{"source-ref": "a", "j": {"annotations": [{"keypoints": [{"label": "n"}]}]}}',
            "output.manifest:2: .*'x'",
        ),
    ],
)
def test_bad_manifests(tmp_path: Path, text: str, message: str) -> None:
    project = make(tmp_path)
    put_manifest(project, [line(0, workers()), text])
    with pytest.raises(DataError, match=message):
        mars.convert(project)


def test_csv_with_a_scorer_for_each_worker(tmp_path: Path) -> None:
    labels = workers()
    header: list[list[str]] = [["scorer"], ["bodyparts"], ["coords"]]
    row = ["labeled-data/somewhere/frame0.jpg"]
    for worker in range(5):
        for animal in TRUTH:
            for number, part in enumerate(KEYPOINTS):
                for axis in range(2):
                    header[0].append(f"worker{worker}")
                    header[1].append(f"{animal} mouse {part}")
                    header[2].append("xy"[axis])
                    row.append(str(labels[animal][worker, number, axis]))
    project = make(tmp_path)
    text = "\n".join(",".join(cells) for cells in [*header, row])
    (project / "annotation_data" / "labels.csv").write_text(text)
    found = keypoints(mars.convert(project, fractions=ALL_TRAIN))
    np.testing.assert_allclose(found, [TRUTH["black"], TRUTH["white"]], atol=1e-4)


def processed(labels: dict[str, np.ndarray]) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": "C:\\p\\raw_images\\frame0.jpg", "ann_label": KEYPOINTS}
    entry.update(width=SIZE[0], height=SIZE[1])
    for animal, xy in labels.items():
        scaled = np.nan_to_num(xy / SIZE)
        entry[f"ann_{animal}"] = {"X": scaled[..., 0].tolist(), "Y": scaled[..., 1].tolist()}
    return entry


def test_processed_keypoints(tmp_path: Path) -> None:
    labels = workers()
    labels["white"][:, 3] = np.nan
    project = make(tmp_path)
    path = project / "annotation_data" / "processed_keypoints.json"
    path.write_text(json.dumps([processed(labels)]))
    black, white = keypoints(mars.convert(project, fractions=ALL_TRAIN))
    np.testing.assert_allclose(black, TRUTH["black"], atol=1e-4)
    assert np.isnan(white[3]).all() and np.isfinite(white[:3]).all()

    entry = processed(workers())
    for animal, xy in TRUTH.items():
        entry[f"ann_{animal}"] = {"med": (xy / SIZE).T[::-1].tolist()}
    path.write_text(json.dumps([entry]))
    found = keypoints(mars.convert(project, fractions=ALL_TRAIN))
    np.testing.assert_allclose(found, [TRUTH["black"], TRUTH["white"]], atol=1e-4)

    del entry["ann_white"]
    path.write_text(json.dumps([entry]))
    with pytest.raises(DataError, match=r"processed_keypoints.json: entry 0: no 'ann_white'"):
        mars.convert(project)


def test_which_file_of_labels(tmp_path: Path) -> None:
    project = make(tmp_path)
    with pytest.raises(DataError, match=r"processed_keypoints.json: No such file"):
        mars.convert(project)
    put_manifest(project, [line(0, workers())], "a.manifest")
    put_manifest(project, ["{"], "b.manifest")
    with pytest.raises(DataError, match=r"several files of labels \(a.manifest, b.manifest\)"):
        mars.convert(project)
    (project / "project_config.yaml").write_text(CONFIG + "manifest_name: a.manifest\n")
    assert mars.convert(project, fractions=ALL_TRAIN).animals == 2
    with pytest.raises(DataError, match=r"b.manifest:1"):
        mars.convert(project, annotations=project / "annotation_data" / "b.manifest")


def test_models_and_animals(tmp_path: Path) -> None:
    config = CONFIG + "  one: [white]\n  none: []\n  other: [grey]\n"
    project = make(tmp_path, config)
    put_manifest(project, [line(0, workers())])
    report = mars.convert(project, pose_model="one", fractions=ALL_TRAIN)
    assert report.files[0].parent.name == "one_tfrecords_pose"
    np.testing.assert_allclose(keypoints(report), [TRUTH["white"]], atol=1e-4)
    assert mars.convert(project, pose_model="none", fractions=ALL_TRAIN).animals == 2
    for model, message in (
        (None, "pose names 4 models .*; choose one"),
        ("side", "no model side; there are top, one, none, other"),
        ("other", "pose.other names grey, which animal_names lacks"),
    ):
        with pytest.raises(DataError, match=message):
            mars.convert(project, pose_model=model)


def test_one_kind_of_animal(tmp_path: Path) -> None:
    config = CONFIG.replace("[black, white]", "[]")
    project = make(tmp_path, config)
    text = line(0, workers()).replace("black mouse nose", "nose")
    put_manifest(project, [text.replace("black mouse ", "mouse ").replace("white mouse ", "fly ")])
    report = mars.convert(project, fractions=ALL_TRAIN)
    np.testing.assert_allclose(keypoints(report), [TRUTH["black"]], atol=1e-4)


def test_missing_images(tmp_path: Path) -> None:
    project = make(tmp_path, frames=1)
    put_manifest(project, [line(number, workers()) for number in range(3)])
    with pytest.raises(DataError, match=r"2 of 3 labelled images are missing .*frame1.jpg"):
        mars.convert(project)
    report = mars.convert(project, skip_missing=True, fractions=ALL_TRAIN)
    assert report.frames["train"] == 1 and report.skipped["frames without an image"] == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("species: mouse\n", "keypoints is no list"),
        (CONFIG.replace("[[right ear, left ear]]", "[[right ear, paw]]"), "check_pairs: .*paw"),
        ("a: [\n", "project_config.yaml:2: "),
    ],
)
def test_bad_configs(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mars.convert(make(tmp_path, config))


def test_parts_and_videos(tmp_path: Path) -> None:
    project = make(tmp_path, frames=0)
    for number in range(6):
        path = project / "annotation_data" / "raw_images" / f"mouse{number // 2}_00{number}.jpg"
        cv2.imwrite(str(path), np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    lines = [line(number, workers()) for number in range(6)]
    names = [f"mouse{number // 2}_00{number}.jpg" for number in range(6)]
    put_manifest(project, [text.replace(f"frame{n}.jpg", names[n]) for n, text in enumerate(lines)])
    parts = {"base of tail": "tail", "nose": "nose"}
    report = mars.convert(project, parts=parts, split_by="video")
    assert report.frames == {"train": 2, "val": 2, "test": 2}
    assert report.mapping == parts and report.parts == ("tail", "nose")
    index = RecordIndex.build([str(path) for path in report.files], 2)
    black = TRUTH["black"][[3, 0]]
    np.testing.assert_allclose(index.keypoints[index.object_number == 0], [black] * 6, atol=1e-4)
    assert len({index.image_id(record)[:6] for record in range(2)}) == 1
    with pytest.raises(DataError, match=r"project_config.yaml: no body part named paw; there"):
        mars.convert(project, parts={"paw": "paw"})


def test_a_frame_labelled_twice(tmp_path: Path) -> None:
    project = make(tmp_path)
    lines = [line(0, workers()), line(1, workers()), line(0, workers())]
    put_manifest(project, lines)
    assert mars.convert(project).skipped["frames labelled twice, the same way"] == 1
    labels = workers()
    labels["black"] = labels["black"] + 1
    put_manifest(project, [*lines[:2], line(0, labels)])
    message = r"manifest:1 and .*manifest:3: both label .*frame0.jpg, and differ; keep one of them"
    with pytest.raises(DataError, match=message):
        mars.convert(project)


def test_models_do_not_replace_each_other(tmp_path: Path) -> None:
    project = make(tmp_path, CONFIG + "  one: [white]\n")
    put_manifest(project, [line(0, workers())])
    mars.convert(project, tmp_path / "out", pose_model="top")
    with pytest.raises(DataError, match=r"frame0 is there already, of .*manifest \(top\); "):
        mars.convert(project, tmp_path / "out", pose_model="one")

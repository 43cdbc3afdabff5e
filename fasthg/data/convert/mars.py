"""MARS projects: `project_config.yaml`, the workers' labels, and `annotation_data/raw_images/`.

Read from project_config.yaml: `keypoints`, `animal_names` (may be empty), `species`,
`check_pairs` (pairs of keypoints that workers may swap), `pose` ({model: [animals]}; an empty list
means all) and `manifest_name`. Labels come from the first of these that exists, or from the file
that the caller names:

1. `annotation_data/<manifest_name>`, then the only `*.manifest`, then the only `*.csv` there.
   - `.manifest`, JSON lines as SageMaker Ground Truth writes them for the crowd-keypoint task::

         {"source-ref": "s3://bucket/folder/frame.jpg",
          "annotatedResult": {"annotationsFromAllWorkers": [
              {"workerId": "...", "annotationData": {"content": "<JSON>"}}, ...]},
          "annotatedResult-metadata": {...}}

     where <JSON> (a string, or the object itself) is::

         {"annotatedResult": {"keypoints": [{"label": "black mouse nose", "x": 1.5, "y": 2.5}, ...],
                              "inputImageProperties": {"width": 1024, "height": 570}}}

     x and y are image px. The name of the labelling job, twice `annotatedResult` here, may be any.
     The list may be called `annotations`, the inner object `answerContent` (the form of worker
     responses), and a worker's entry may hold `keypoints` directly. A line without labels is
     skipped and counted. A label is an animal's name, the species (optional) and a keypoint.
   - `.csv`: a DeepLabCut table whose scorers are the workers, and whose body parts are labels as
     above or, with an `individuals` row, keypoints.
2. `annotation_data/processed_keypoints.json`, which MARS derives from these: a list of::

       {"image": "...", "width": W, "height": H, "ann_label": [keypoints],
        "ann_<animal>": {"X": [[x by part] by worker], "Y": ..., "med": [[y by part], [x by part]]}}

   with coordinates divided by W and H; 0, 0 stands for a part left out. `X` and `Y` are used where
   they are, otherwise `med`.

An image is looked for under `raw_images/` by as much of its path as exists there.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from fasthg.data.agreement import Crowd, crowd_of, measure
from fasthg.data.convert.common import (
    Labelled,
    WriteOptions,
    keep_labelled,
    write_splits,
)
from fasthg.data.convert.crowd import consensus, repair_swaps
from fasthg.data.convert.images import find_image, missing_images
from fasthg.data.convert.kept import source_name
from fasthg.data.convert.mars_files import read_frames, read_project
from fasthg.data.convert.names import choose_parts
from fasthg.data.convert.report import Report, new_report
from fasthg.errors import DataError


def convert(
    project: Path,
    out: Path | None = None,
    *,
    pose_model: str | None = None,
    annotations: Path | None = None,
    parts: Mapping[str, str] | None = None,
    skip_missing: bool = False,
    boxes: str | None = None,
    **options: Unpack[WriteOptions],
) -> Report:
    """Write a project's frames as TFRecords: one record a frame, one object an animal.

    out: by default `<project>/pose/<model>_tfrecords_pose`, where MARS puts them; there no
    configuration is written, as `fasthg train` takes it from the project. pose_model: which
    model of `pose` to write the animals of; needed where there are several. annotations: the file
    of labels, instead of the search described above. A video is a folder below `raw_images`, or
    what an image's name says before its last number. The rest as in `dlc.convert`.
    Of several workers, OKS_SIGMAS are measured as by `fasthg data agreement`. The report counts
    swaps of left and right that were repaired. Raises DataError, naming file,
    line and remedy, for anything in the project that cannot be used.
    """
    config = read_project(Path(project))
    option = f"choose one with --pose-model {next(iter(config.pose), '')}"
    model, animals = config.model(pose_model, option)
    own_place = out is None
    out = config.folder / "pose" / f"{model}_tfrecords_pose" if out is None else Path(out)
    if own_place:
        options["ready"] = False
    source = config.annotations if annotations is None else Path(annotations)
    mapping = choose_parts(config.keypoints, parts, config.config)
    chosen = [config.keypoints.index(name) for name in mapping]
    report = new_report(mapping)
    pairs = [pair for pair in config.pairs if {*pair} <= {*chosen}]
    report.take_pairs((chosen.index(a), chosen.index(b)) for a, b in pairs)
    report.pixels_per_cm = config.pixels_per_cm
    report.notes.append(f"labels from {source}; animals: {', '.join(animals)}")
    frames: list[Labelled] = []
    missing: list[str] = []
    total, swaps, most = 0, 0, 0
    images = config.folder / "annotation_data" / "raw_images"
    labels = read_frames(source, config)
    for frame in labels.frames:
        total += 1
        image = find_image(images, frame.image)
        if image is None:
            missing.append(frame.image)
            continue
        keypoints = []
        for animal in animals:
            workers, repaired = repair_swaps(frame.workers[animal], config.pairs)
            keypoints.append(consensus(workers)[chosen])
            swaps += repaired
            most = max(most, len(workers))
        image_id = _image_id(images, image)
        where = frame.where or str(source)
        # Workers label in a browser, which obeys EXIF; other sources of labels do not.
        frames.append(
            Labelled(image, image_id, np.stack(keypoints), animals, shown=None, where=where)
        )
    if missing and not skip_missing:
        raise missing_images(missing, total, images)
    report.skipped = {
        "frames without an image": len(missing),
        "frames without labels": labels.empty,
    }
    report.notes.append(f"up to {most} workers a frame; {swaps} swaps of left and right repaired")
    report.swaps = swaps
    if labels.unknown:
        names = ", ".join(sorted(labels.unknown))
        report.notes.append(f"labels that name no keypoint or animal of the project: {names}")
    if most > 1:
        report.measured = _measured(crowd_of(config, source, labels.frames), chosen)
    name = source_name(source, out, model)
    report = write_splits(
        keep_labelled(frames, report, boxes), out, report, sources=[name], **options
    )
    if own_place and report.frames["train"]:
        model_key = f" POSE_MODEL={shlex.quote(model)}" if len(config.pose) > 1 else ""
        report.train = f"fasthg train MARS_PROJECT={shlex.quote(str(config.folder))}{model_key}"
    return report


def _measured(crowd: Crowd, chosen: Sequence[int]) -> dict[str, Any]:
    """OKS_SIGMAS of the `chosen` keypoints by what `data agreement` prints, of all animals, and the
    number of workers behind them; nothing where they cannot be measured."""
    try:
        found = measure(crowd)
    except DataError:  # no part has labels of two workers
        return {}
    sigmas = [round(float(found.sigmas[part]), 4) for part in chosen]
    if not all(sigma > 0 for sigma in sigmas):
        return {}
    return {"OKS_SIGMAS": sigmas, "workers": len(found.workers) - len(found.outliers)}


def _image_id(folder: Path, image: Path) -> str:
    return image.relative_to(folder).with_suffix("").as_posix()

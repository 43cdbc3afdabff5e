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

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import numpy as np

from fasthg.data.convert.common import (
    Labelled,
    Report,
    WriteOptions,
    keep_labelled,
    new_report,
    write_splits,
)
from fasthg.data.convert.crowd import consensus, repair_swaps
from fasthg.data.convert.images import find_image, missing_images
from fasthg.data.convert.kept import source_name
from fasthg.data.convert.mars_files import read_frames, read_project
from fasthg.data.convert.names import choose_parts


def convert(
    project: Path,
    out: Path | None = None,
    *,
    pose_model: str | None = None,
    annotations: Path | None = None,
    parts: Mapping[str, str] | None = None,
    skip_missing: bool = False,
    **options: Unpack[WriteOptions],
) -> Report:
    """Write a project's frames as TFRecords: one record a frame, one object an animal.

    out: by default `<project>/pose/<model>_tfrecords_pose`, where MARS puts them. pose_model: which
    model of `pose` to write the animals of; needed where there are several. annotations: the file
    of labels, instead of the search described above. A video is a folder below `raw_images`, or
    what an image's name says before its last number. The rest as in `dlc.convert`.
    The report counts swaps of left and right that were repaired. Raises DataError, naming file,
    line and remedy, for anything in the project that cannot be used.
    """
    config = read_project(Path(project))
    option = f"choose one with --pose-model {next(iter(config.pose), '')}"
    model, animals = config.model(pose_model, option)
    out = config.folder / "pose" / f"{model}_tfrecords_pose" if out is None else Path(out)
    source = config.annotations if annotations is None else Path(annotations)
    mapping = choose_parts(config.keypoints, parts, config.config)
    chosen = [config.keypoints.index(name) for name in mapping]
    report = new_report(mapping)
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
    name = source_name(source, out, model)
    return write_splits(keep_labelled(frames, report), out, report, sources=[name], **options)


def _image_id(folder: Path, image: Path) -> str:
    return image.relative_to(folder).with_suffix("").as_posix()

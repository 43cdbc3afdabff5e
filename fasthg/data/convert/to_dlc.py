"""TFRecords as a DeepLabCut project.

    config.yaml
    labeled-data/<folder>/CollectedData_<scorer>.csv    image px, empty where unlabelled
    labeled-data/<folder>/<image>

Folder and image are named by the record's id, the folder by the split where the id has none.
Records with several animals make a multi-animal project; the individuals are the animals' own
names, or animal1, animal2, ... Boxes, areas, occlusion and splits have no place in DeepLabCut.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from fasthg.config import Config
from fasthg.data.convert.export import DECIMALS, FileNames, records
from fasthg.data.convert.report import Report, new_report
from fasthg.data.records.exif import upright
from fasthg.errors import DataError
from fasthg.files import write_bytes


@dataclass(frozen=True)
class _Row:
    """image: its file's name; keypoints: (animals, parts, 2) px; ids: the animals'."""

    image: str
    keypoints: npt.NDArray[np.float64]
    ids: tuple[str, ...]


def export(
    config: Config, out: Path, *, splits: Sequence[str] = (), scorer: str = "fasthg"
) -> Report:
    """Write the records that DATA names, or those of `splits`, as a project in the folder `out`.

    scorer: who labelled, for DeepLabCut. config.yaml appears last. Raises DataError where `out` is
    a project already, and as `export.records`.
    """
    out = Path(out)
    if (out / "config.yaml").exists():
        raise DataError(f"{out}: holds a project already; give another folder")
    parts = [str(name) for name in config.PARTS.NAMES]
    report = new_report({name: name for name in parts})
    paths = FileNames(flat=True)
    folders: dict[str, list[_Row]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    counts: Counter[str] = Counter()
    for split, record in records(config, splits):
        if not len(record.keypoints):
            report.skip("frames without an animal")
            continue
        folder, image = paths.new(record, split)
        write_bytes(out / "labeled-data" / folder / image, upright(record.encoded))
        xy = record.keypoints.astype(np.float64) * (record.width, record.height)
        folders.setdefault(folder, []).append(_Row(image, xy, tuple(record.object_id)))
        sizes.setdefault(folder, (record.width, record.height))
        counts[split] += 1
        report.animals += len(xy)
        report.unlabelled_parts += int(np.isnan(xy[..., 0]).sum())
    if not folders:
        raise DataError(f"{out}: no animal in the records of the config; check DATA")
    individuals = _individuals([row for rows in folders.values() for row in rows])
    for folder, rows in folders.items():
        path = out / "labeled-data" / folder / f"CollectedData_{scorer}.csv"
        write_bytes(path, _table(folder, rows, parts, individuals, scorer).encode())
        report.files.append(path)
    settings = project_settings(out, parts, individuals, scorer, sizes)
    settings["skeleton"] = [[parts[a], parts[b]] for a, b in config.PARTS.SKELETON]
    write_bytes(out / "config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    report.files.append(out / "config.yaml")
    report.frames = dict(counts)
    report.notes.append(
        f"{len(folders)} folders of images; for training in DeepLabCut: "
        f"deeplabcut.convertcsv2h5('{(out / 'config.yaml').as_posix()}', userfeedback=False)"
    )
    return report


def _individuals(rows: Sequence[_Row]) -> list[str]:
    """Names of the columns' animals, empty for a project of one animal."""
    most = max(len(row.keypoints) for row in rows)
    if most == 1:
        return []
    named = all(
        len(set(row.ids)) == len(row.keypoints) and not any(map(str.isdigit, row.ids))
        for row in rows
    )
    if named:
        return list(dict.fromkeys(name for row in rows for name in row.ids))
    return [f"animal{number + 1}" for number in range(most)]


def _table(
    folder: str, rows: Sequence[_Row], parts: Sequence[str], animals: Sequence[str], scorer: str
) -> str:
    columns = [(a, part, axis) for a in animals or [""] for part in parts for axis in "xy"]
    names = [("scorer", [scorer] * len(columns))]
    if animals:
        names.append(("individuals", [animal for animal, _, _ in columns]))
    names.append(("bodyparts", [part for _, part, _ in columns]))
    names.append(("coords", [axis for _, _, axis in columns]))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([name, "", "", *cells] for name, cells in names)
    for row in rows:
        xy = np.full((max(1, len(animals)), len(parts), 2), np.nan)
        for number, points in enumerate(row.keypoints):
            own = row.ids[number] if number < len(row.ids) else ""
            xy[animals.index(own) if own in animals else number] = points
        cells = [round(v, DECIMALS) if np.isfinite(v) else "" for v in xy.ravel().tolist()]
        writer.writerow(["labeled-data", folder, row.image, *cells])
    return text.getvalue()


def project_settings(
    out: Path,
    parts: list[str],
    individuals: list[str],
    scorer: str,
    sizes: dict[str, tuple[int, int]],
) -> dict[str, Any]:
    """Content of a project's config.yaml, with the keys that DeepLabCut's own template has.

    out: the project's folder. individuals: names of several animals, empty for one. sizes: (width,
    height) px of the images by their folder in labeled-data.
    """
    several = bool(individuals)
    own: dict[str, Any] = {"bodyparts": parts}
    if several:
        own = {"individuals": individuals, "uniquebodyparts": [], "multianimalbodyparts": parts}
        own["bodyparts"] = "MULTI!"
    return {
        "Task": out.resolve().name,
        "scorer": scorer,
        "date": date.today().strftime("%b%d"),
        "multianimalproject": several,
        "identity": False if several else None,
        "project_path": str(out.resolve()),
        # DeepLabCut finds the folders of labeled-data by the names of the videos.
        "video_sets": {
            str(out.resolve() / "videos" / f"{folder}.mp4"): {"crop": f"0, {width}, 0, {height}"}
            for folder, (width, height) in sizes.items()
        },
        **own,
        "start": 0,
        "stop": 1,
        "numframes2pick": 20,
        "skeleton": [],
        "skeleton_color": "black",
        "pcutoff": 0.6,
        "dotsize": 6,
        "alphavalue": 0.7,
        "colormap": "rainbow",
        "TrainingFraction": [0.95],
        "iteration": 0,
        "default_net_type": "resnet_50",
        "default_augmenter": "default",
        "snapshotindex": -1,
        "batch_size": 8,
        "cropping": False,
        "x1": 0,
        "x2": 640,
        "y1": 277,
        "y2": 624,
        "corner2move2": [50, 50],
        "move2corner": True,
    }

"""DeepLabCut projects: `config.yaml` and `labeled-data/*/CollectedData_*.{csv,h5}`.

Each labelled frame becomes a record with one object an individual. Parts keep the order of
`bodyparts` (or `multianimalbodyparts`) in config.yaml; `uniquebodyparts` belong to no animal and
are left out. Boxes are those of `boxes.box_around`. An animal with fewer than two labelled parts
is left out, and so is a frame without animals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import yaml

from fasthg.data.convert.common import (
    Labelled,
    Report,
    WriteOptions,
    keep_labelled,
    new_report,
    write_splits,
)
from fasthg.data.convert.images import find_among, missing_images, relative_parts
from fasthg.data.convert.names import choose_parts
from fasthg.data.convert.tables import Row, Table, read_table
from fasthg.data.convert.text import read_text
from fasthg.errors import DataError


def convert(
    project: Path,
    out: Path,
    *,
    parts: Mapping[str, str] | None = None,
    prefer_h5: bool = False,
    skip_missing: bool = False,
    **options: Unpack[WriteOptions],
) -> Report:
    """Write a project's labels and images to `out` as TFRecords of MARS' format.

    parts: names in the project -> names to write, in the order to write them; by default all, under
    their own names. prefer_h5: read the .h5 where there are both, instead of the .csv.
    skip_missing: leave out frames whose image is not there, instead of raising. options: which
    frame goes to which split; a video is a folder of labeled-data.
    Raises DataError, naming file and remedy, for anything in the project that cannot be used.
    """
    project, out = Path(project), Path(out)
    config = _read_config(project / "config.yaml")
    own = _config_parts(project, config)
    mapping = choose_parts(own, parts, project / "config.yaml")
    report = new_report(mapping)
    frames: list[Labelled] = []
    missing: list[str] = []
    ignored: set[str] = set()
    total = 0
    for path in _label_files(project, config, prefer_h5):
        table = read_table(path)
        used = {column.part for column in table.columns}
        ignored |= used - set(own)
        total += len(table.rows)
        for row in table.rows:
            image = _find(project, path.parent, row.image)
            if image is None:
                missing.append(row.image)
            else:
                frames.append(_labelled(image, row, table, list(mapping)))
    if missing and not skip_missing:
        raise missing_images(missing, total, project)
    if missing:
        report.skipped["frames without an image"] = len(missing)
    if ignored:
        report.notes.append(f"left out, not body parts of an animal: {', '.join(sorted(ignored))}")
    return write_splits(keep_labelled(frames, report), out, report, **options)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(read_text(path))
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; give the folder of a DeepLabCut project"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise DataError(f"{path}{line}: {problem}; correct the file") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: not a DeepLabCut config; give the folder of a project")
    return config


def _config_parts(project: Path, config: Mapping[str, Any]) -> list[str]:
    key = "multianimalbodyparts" if config.get("multianimalproject") else "bodyparts"
    names = config.get(key)
    if not isinstance(names, list) or not names:
        raise DataError(f"{project / 'config.yaml'}: {key} is no list of names; add it")
    return [str(name) for name in names]


def _label_files(project: Path, config: Mapping[str, Any], prefer_h5: bool) -> list[Path]:
    """One table of labels a video folder: that of the project's scorer where there are several."""
    order = (".h5", ".csv") if prefer_h5 else (".csv", ".h5")
    chosen = []
    for folder in sorted(path for path in (project / "labeled-data").glob("*") if path.is_dir()):
        tables = [path for path in sorted(folder.glob("CollectedData_*")) if path.suffix in order]
        stems = sorted({path.stem for path in tables})
        if len(stems) > 1:
            own = f"CollectedData_{config.get('scorer')}"
            if own not in stems:
                raise DataError(
                    f"{folder}: labels of several scorers ({', '.join(stems)}) and none is the "
                    f"project's; set scorer in config.yaml"
                )
            tables = [path for path in tables if path.stem == own]
        tables.sort(key=lambda path: order.index(path.suffix))
        chosen += tables[:1]
    if not chosen:
        raise DataError(
            f"{project / 'labeled-data'}: no CollectedData_*.csv or .h5 in any folder there; "
            f"label frames in DeepLabCut first"
        )
    return chosen


def _find(project: Path, folder: Path, path: str) -> Path | None:
    """The image of a row of the table in `folder`: what the row names in the project, and where
    the project has no folder of that name any more, the file of that name next to the table."""
    image = find_among([folder, project], path)
    named = relative_parts(path)[-3:-1]
    if image is None or len(named) < 2 or image.parent.name == named[1]:
        return image
    # The table's folder was renamed, unless the folder that the row names is there, too.
    return None if project.joinpath(*named).is_dir() else image


def _labelled(image: Path, row: Row, table: Table, parts: list[str]) -> Labelled:
    individuals = list(
        dict.fromkeys(column.individual for column in table.columns if column.part in parts)
    )
    keypoints = np.full((len(individuals), len(parts), 2), np.nan)
    for column, xy in row.points.items():
        if column.part in parts:
            keypoints[individuals.index(column.individual), parts.index(column.part)] = xy
    image_id = "/".join((*relative_parts(str(image.parent))[-1:], image.stem))
    names = tuple(individuals) if individuals != [""] else ()
    return Labelled(image, image_id, keypoints, names)

"""DeepLabCut projects: `config.yaml` and `labeled-data/*/CollectedData_*.{h5,csv}`.

Of the two, the .h5 is read: DeepLabCut trains on it, and the .csv is a copy, which may be old. The
report says where they differ.

Each labelled frame becomes a record with one object an individual. Parts keep the order of
`bodyparts` (or `multianimalbodyparts`) in config.yaml; `uniquebodyparts` belong to no animal and
are left out; `skeleton` goes into the configuration that is written. Boxes are those of
`boxes.box_around`. `machinelabels*.h5`, which a model wrote, is never read for labels; the report
says which frames are labelled exactly so. An animal with fewer than two labelled parts is left out,
and so is a frame without animals.

A table may also be given by itself, or lie in a folder without `config.yaml`, as in Lightning Pose
projects. Its columns then name the parts, but for those of the individual that DeepLabCut calls
`single`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from fasthg.data.convert.common import (
    Labelled,
    WriteOptions,
    keep_labelled,
    write_splits,
)
from fasthg.data.convert.images import find_among, missing_images, relative_parts, some
from fasthg.data.convert.kept import source_name
from fasthg.data.convert.names import choose_parts
from fasthg.data.convert.report import Report, new_report
from fasthg.data.convert.tables import Column, Row, Table, read_table
from fasthg.data.convert.text import read_yaml
from fasthg.errors import DataError, EnvironmentFault

_SUFFIXES = (".h5", ".csv")
# A csv is text: its coordinates may be rounded.
_TOLERANCE_PX = 0.01
# DeepLabCut saves both tables at once.
_TOGETHER_S = 60
_LABELS = "labeled-data"


def convert(
    project: Path,
    out: Path,
    *,
    parts: Mapping[str, str] | None = None,
    prefer_h5: bool | None = None,
    skip_missing: bool = False,
    boxes: str | None = None,
    **options: Unpack[WriteOptions],
) -> Report:
    """Write a project's labels and images to `out` as TFRecords of MARS' format.

    project: a project's folder, or one table of labels. parts: names in the project -> names to
    write, in the order to write them; by default all, under their own names. prefer_h5: which table
    to read where there are both; by default the .h5, or the .csv where the packages that read .h5
    are missing and it is not the older one. skip_missing: leave out frames whose image is not
    there, instead of raising. boxes: as in `common.keep_labelled`. options: which frame goes to
    which split, and what stays of an earlier conversion; a video is a folder of labeled-data.
    Raises DataError, naming file and remedy, for anything in the project that cannot be used;
    EnvironmentFault for an .h5 without the packages.
    """
    project, out = Path(project), Path(out)
    notes: list[str] = []
    single = _single_table(project)
    if single is None:
        config = _read_config(project / "config.yaml")
        own, origin = _config_parts(project, config), project / "config.yaml"
        files = _label_files(project, config)
        tables = [_read_labels(choices, prefer_h5, notes) for choices in files]
    else:
        origin = single
        choices = [single]
        if project.is_dir():
            choices = [single.with_suffix(suffix) for suffix in (".h5", ".csv")]
            choices = [path for path in choices if path.is_file()]
        tables = [_read_labels(choices, prefer_h5, notes)]
        own = _table_parts(tables[0][1])
    mapping = choose_parts(own, parts, origin)
    report = new_report(mapping)
    report.notes += notes
    if single is None:
        report.take_skeleton(own, _edges(config.get("skeleton"), own))
    frames: list[Labelled] = []
    missing: list[str] = []
    ignored: set[str] = set()
    total = 0
    folders = _image_folders(project if single is None else single.parent)
    for path, table in tables:
        report.notes += _as_by_machine(path.parent, table)
        used = {column.part for column in table.columns}
        ignored |= used - set(own)
        total += len(table.rows)
        for row in table.rows:
            image = find_among([path.parent, *folders], row.image)
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
    name = source_name(project if single is None else single, out)
    return write_splits(
        keep_labelled(frames, report, boxes), out, report, sources=[name], **options
    )


def is_project(folder: Path) -> bool:
    """Whether a folder is a DeepLabCut project."""
    try:
        return _names_parts(folder / "config.yaml")
    except DataError:  # no YAML, and so of another program
        return False


def is_table(path: Path) -> bool:
    """Whether a path is a table of labels, or a folder that holds one instead of a project."""
    if path.is_file():
        return path.suffix in _SUFFIXES
    tables = [table for table in path.glob("CollectedData*") if table.suffix in _SUFFIXES]
    return bool(tables) and not is_project(path)


def _single_table(project: Path) -> Path | None:
    """The table that `project` is, or that it holds instead of a DeepLabCut project."""
    if project.suffix in _SUFFIXES and project.is_file():
        return project
    tables = sorted(path for path in project.glob("CollectedData*") if path.suffix in _SUFFIXES)
    if not tables or _names_parts(project / "config.yaml"):
        return None
    if len({path.stem for path in tables}) == 1:
        return tables[0]
    plain = [path for path in tables if path.stem == "CollectedData"]
    if plain:
        return plain[0]
    names = ", ".join(path.name for path in tables)
    raise DataError(f"{project}: several tables of labels ({names}); give one of them")


def _names_parts(path: Path) -> bool:
    """Whether a config.yaml is DeepLabCut's: other programs call theirs so, too."""
    if not path.is_file():
        return False
    return not {"bodyparts", "multianimalbodyparts"}.isdisjoint(_read_config(path))


def _table_parts(table: Table) -> list[str]:
    individuals = {column.individual for column in table.columns}
    left_out = "single" if len(individuals) > 1 else None
    names = (column.part for column in table.columns if column.individual != left_out)
    return list(dict.fromkeys(names))


def _read_labels(
    choices: Sequence[Path], prefer_h5: bool | None, notes: list[str]
) -> tuple[Path, Table]:
    """Read the table that counts of a .h5 and a .csv, and note where the other one differs."""
    h5, csv = (next((p for p in choices if p.suffix == suffix), None) for suffix in _SUFFIXES)
    if h5 is None or csv is None:
        return choices[0], read_table(choices[0])
    try:
        of_h5 = read_table(h5)
    except EnvironmentFault as error:
        newer = h5.stat().st_mtime - csv.stat().st_mtime > _TOGETHER_S
        if prefer_h5 or (prefer_h5 is None and newer):
            raise
        notes.append(f"labels from {csv.name}, not compared with the .h5 that counts: {error}")
        return csv, read_table(csv)
    except DataError as error:
        if prefer_h5 is not False:
            remedy = f"or, if {csv.name} beside it is whole, read that with --csv"
            raise DataError(f"{error}, {remedy}") from None
        notes.append(str(error))
        return csv, read_table(csv)
    try:
        of_csv = read_table(csv)
    except DataError as error:
        if prefer_h5 is False:
            raise
        notes.append(f"{error} (labels are from {h5.name})")
        return h5, of_h5
    differing = _differing(of_h5, of_csv)
    chosen = (csv, of_csv) if prefer_h5 is False else (h5, of_h5)
    if differing:
        other = "--h5 reads the other" if prefer_h5 is False else "--csv reads the other"
        notes.append(
            f"{csv} and {h5.name} differ in {len(differing)} frames ({some(differing)}); labels "
            f"from {chosen[0].name}, {other}"
        )
    return chosen


def _differing(one: Table, two: Table) -> list[str]:
    """Names of the images whose labels differ, in the order of the tables."""
    labels = [{row.image: row.points for row in table.rows if row.points} for table in (one, two)]
    return [
        relative_parts(image)[-1]
        for image in dict.fromkeys([*labels[0], *labels[1]])
        if not _same(labels[0].get(image, {}), labels[1].get(image, {}))
    ]


def _same(one: Mapping[Column, tuple[float, float]], two: Mapping[Column, Any]) -> bool:
    if one.keys() != two.keys():
        return False
    return all(math.dist(xy, two[column]) < _TOLERANCE_PX for column, xy in one.items())


def _as_by_machine(folder: Path, table: Table) -> list[str]:
    """A note on frames whose labels are those of a folder's machine labels, to the last digit:
    napari saves all that it shows, also what nobody has looked at."""
    alike = []
    for path in sorted(folder.glob("machinelabels*.h5")):
        try:
            machine = {row.image: _plain(row) for row in read_table(path).rows}
        except (DataError, EnvironmentFault):
            continue
        alike += [r.image for r in table.rows if r.points and machine.get(r.image) == _plain(r)]
    if not alike:
        return []
    names = some([relative_parts(image)[-1] for image in alike])
    return [
        f"{folder}: {len(alike)} of {len(table.rows)} frames ({names}) are labelled exactly as by "
        "the model; make sure that somebody looked at them"
    ]


def _plain(row: Row) -> dict[tuple[str, str], tuple[float, float]]:
    """Labels of a row, whoever scored."""
    return {(column.individual, column.part): xy for column, xy in row.points.items()}


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path, "give the folder of a DeepLabCut project, or a table of labels")
    if not isinstance(config, dict):
        raise DataError(f"{path}: not a DeepLabCut config; give the folder of a project")
    return config


def _config_parts(project: Path, config: Mapping[str, Any]) -> list[str]:
    key = "multianimalbodyparts" if config.get("multianimalproject") else "bodyparts"
    names = config.get(key)
    if not isinstance(names, list) or not names:
        raise DataError(f"{project / 'config.yaml'}: {key} is no list of names; add it")
    return [str(name) for name in names]


def _edges(skeleton: Any, own: Sequence[str]) -> list[tuple[int, int]]:
    """DeepLabCut's `skeleton`, chains of names, as pairs of indices; names of no part are left
    out: the skeleton serves pictures alone."""
    places = {name: number for number, name in enumerate(own)}
    chains = [
        [str(name) for name in chain]
        for chain in (skeleton if isinstance(skeleton, list) else ())
        if isinstance(chain, list)
    ]
    named = [pair for chain in chains for pair in itertools.pairwise(chain)]
    return [(places[a], places[b]) for a, b in named if a in places and b in places]


def _label_files(project: Path, config: Mapping[str, Any]) -> list[list[Path]]:
    """The table of labels of each video folder, of the project's scorer where there are several: a
    .h5, a .csv, or both."""
    chosen = []
    for folder in sorted(path for path in (project / _LABELS).glob("*") if path.is_dir()):
        tables = [
            path for path in sorted(folder.glob("CollectedData_*")) if path.suffix in _SUFFIXES
        ]
        stems = sorted({path.stem for path in tables})
        if len(stems) > 1:
            own = f"CollectedData_{config.get('scorer')}"
            if own not in stems:
                raise DataError(
                    f"{folder}: labels of several scorers ({', '.join(stems)}) and none is the "
                    f"project's; set scorer in config.yaml"
                )
            tables = [path for path in tables if path.stem == own]
        if tables:
            chosen.append(tables)
    if not chosen:
        raise DataError(
            f"{project / _LABELS}: no CollectedData_*.csv or .h5 in any folder there; "
            f"label frames in DeepLabCut first"
        )
    return chosen


def _image_folders(folder: Path) -> list[Path]:
    """Where to look for what rows name, given a project or the folder of a table: rows are written
    from the project on, and some tools leave labeled-data out."""
    place = folder.absolute()
    project = place.parent.parent if place.parent.name == _LABELS else folder
    return [project, project / _LABELS]


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
    return Labelled(image, image_id, keypoints, names, where=row.where)

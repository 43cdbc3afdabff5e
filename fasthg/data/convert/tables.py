"""DeepLabCut's tables of labels, CSV or HDF5, as plain rows.

Columns have a header of three levels (scorer, bodyparts, coords) or four (scorer, individuals,
bodyparts, coords); a row is named by one path or by its three components (labeled-data, video,
image), with the separators of the system it was labelled on. MARS reads the same CSV, with one
scorer for each worker.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fasthg.data.convert.text import read_text
from fasthg.errors import DataError, missing_package

# A row of the header, with semicolons or tabs.
_OTHER_SEPARATOR = re.compile(
    r"""(?:"?(?:scorer|individuals|bodyparts|coords)"?|sep=)([;\t])""", re.I
)


class Column(NamedTuple):
    """Whose label: individual is empty in tables of one animal."""

    scorer: str
    individual: str
    part: str


@dataclass(frozen=True)
class Row:
    """image: the path as written, with forward slashes; points: image px, labelled ones only;
    where: file and line, of HDF5 the row from 1."""

    image: str
    points: dict[Column, tuple[float, float]]
    where: str


@dataclass(frozen=True)
class Table:
    """A table: its columns in the order of the file, and its rows."""

    columns: tuple[Column, ...]
    rows: list[Row]


def read_table(path: Path) -> Table:
    """Read `CollectedData_*.csv` or `.h5`. Raises DataError that names the file and line, or
    EnvironmentFault where the packages for HDF5 are missing."""
    try:
        return _read_h5(path) if path.suffix == ".h5" else _read_csv(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a CollectedData file") from None


def _read_csv(path: Path) -> Table:
    text = read_text(path)
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise DataError(f"{path}: {error}; save the file from DeepLabCut again") from None
    levels: dict[str, list[str]] = {}
    for line in lines[:4]:
        levels[line[0].strip().lower() if line else ""] = line
    if "coords" not in levels:
        for first_line in text.splitlines()[:4]:
            if other := _OTHER_SEPARATOR.match(first_line):
                # A spreadsheet that writes these has other decimal and thousands separators, too,
                # and has perhaps read the numbers by them.
                raise DataError(
                    f"{path}: columns are separated by {other[1]!r}, as a spreadsheet saves them, "
                    "which may have changed numbers; save the file from DeepLabCut again"
                )
        raise DataError(
            f"{path}: no DeepLabCut header (scorer, bodyparts, coords) in the first lines; "
            f"give a CollectedData file"
        )
    coords = [cell.strip().lower() for cell in levels["coords"]]
    first = next((i for i, cell in enumerate(coords) if cell in ("x", "y")), len(coords))

    def level(name: str) -> list[str]:
        cells = [cell.strip() for cell in levels.get(name, [""] * len(coords))]
        if len(cells) != len(coords):
            raise DataError(
                f"{path}: header rows of {len(coords)} and {len(cells)} columns; "
                f"save the file from DeepLabCut again"
            )
        return cells

    keys = [
        (Column(*names), coord)
        for *names, coord in zip(
            level("scorer"), level("individuals"), level("bodyparts"), coords, strict=True
        )
    ][first:]
    _check_columns(path, keys)
    rows = []
    header = lines.index(levels["coords"]) + 1
    for index, line in enumerate(lines[header:], header + 1):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(coords):
            raise DataError(
                f"{path}:{index}: {len(line)} columns where the header has {len(coords)}; "
                f"save the file from DeepLabCut again"
            )
        try:
            values = [float(cell) if cell.strip() else math.nan for cell in line[first:]]
        except ValueError as error:
            raise DataError(f"{path}:{index}: {error}; correct the cell") from None
        rows.append(_row(line[:first], keys, values, f"{path}:{index}"))
    return _table(keys, rows)


def _read_h5(path: Path) -> Table:
    try:
        import pandas
        import tables  # noqa: F401  pandas asks for it only when it reads
    except ImportError as error:
        name = str(error.name)
        raise missing_package(f"{path}: reading HDF5", name, "dlc", "use the CSV") from None
    try:
        frame = pandas.read_hdf(path)
    except Exception as error:
        # What a damaged file makes pandas and PyTables raise has no end. HDF5's own errors are a
        # trace of its C functions with the cause in the last line.
        reason = ([type(error).__name__, *str(error).strip().splitlines()])[-1]
        raise DataError(f"{path}: {reason}; save the file from DeepLabCut again") from None
    names = [str(name).lower() for name in frame.columns.names]
    if not {"scorer", "bodyparts", "coords"} <= set(names):
        raise DataError(
            f"{path}: columns are {', '.join(names)}, not scorer, bodyparts, coords; "
            f"give a CollectedData file"
        )
    keys = []
    for labels in frame.columns:
        level = dict(zip(names, map(str, labels), strict=True))
        column = Column(level["scorer"], level.get("individuals", ""), level["bodyparts"])
        keys.append((column, level["coords"].lower()))
    _check_columns(path, keys)
    rows = []
    for number, (name, values) in enumerate(
        zip(frame.index, frame.to_numpy(float), strict=True), 1
    ):
        parts = name if isinstance(name, tuple) else (name,)
        rows.append(_row(parts, keys, values.tolist(), f"{path}: row {number}"))
    return _table(keys, rows)


def _check_columns(path: Path, keys: Sequence[tuple[Column, str]]) -> None:
    """Raise DataError for two columns of one name, of which only one could be read."""
    for (column, coord), count in Counter(keys).items():
        if count > 1:
            name = " ".join(filter(None, (column.scorer, column.individual, column.part, coord)))
            raise DataError(
                f"{path}: {count} columns are named {name}; rename or remove all but one"
            )


def _row(
    name: Iterable[object], keys: Sequence[tuple[Column, str]], values: Sequence[float], where: str
) -> Row:
    coordinates: dict[Column, dict[str, float]] = {}
    for (column, coord), value in zip(keys, values, strict=True):
        coordinates.setdefault(column, {})[coord] = value
    points = {}
    for column, xy in coordinates.items():
        x, y = xy.get("x", math.nan), xy.get("y", math.nan)
        if math.isfinite(x) and math.isfinite(y):
            points[column] = (x, y)
    image = "/".join(str(part).strip() for part in name).replace("\\", "/")
    return Row(image, points, where)


def _table(keys: Sequence[tuple[Column, str]], rows: list[Row]) -> Table:
    return Table(tuple(dict.fromkeys(column for column, _ in keys)), rows)

"""What results are of, since their names do not say all of it.

`.<name>.made.json`, next to the results: the source, what its poses were made from, and the files.
It keeps one film's results from another of the same name, and tells what is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fasthg.files import write_text


@dataclass(frozen=True)
class Record:
    """What is known of the results of one source."""

    source: str
    """Its absolute path."""
    made_from: dict[str, Any]
    """As in the rows file, and the version of fasthg and PRECISION; with an overlay its confidence
    too. Records of older versions name fewer."""
    rows: int
    finished: bool
    files: dict[str, list[int | str]]
    """Format or "overlay" -> name, size (bytes) and time of change (ns) of its file."""
    earlier: dict[str, list[int | str]] = field(default_factory=dict)
    """Name -> source, its identity, size and time of files that predictions before this one wrote
    and that are unchanged since. They are told apart from `files`: other weights may have made
    them."""

    def unchanged(self, kind: str, path: Path) -> bool:
        """Whether `path` is the file of that kind that was written then."""
        return path.exists() and self.files.get(kind) == _state(path)

    def known(self) -> dict[str, list[int | str]]:
        """All files, as `earlier`."""
        origin = [self.source, str(self.made_from.get("source"))]
        now = {str(name): [*origin, *state] for name, *state in self.files.values()}
        return {**self.earlier, **now}

    def of_another(self, path: Path, source: Path, identity: str) -> str | None:
        """The source of `path`, where that is unchanged and of another source than this one."""
        entry = self.known().get(path.name)
        if entry is None or not _same(path, entry):
            return None
        # A source of the same identity was moved.
        return (
            None if os.path.abspath(source) == entry[0] or identity == entry[1] else str(entry[0])
        )

    def differs(self, made_from: Mapping[str, Any], unknown: Collection[str] = ()) -> str | None:
        """The first thing that is another now, or None.

        unknown: what counts as the same where this record, of an older version, does not name it.
        """
        now = json.loads(json.dumps(made_from))
        known = (key for key in now if key in self.made_from or key not in unknown)
        return next((key for key in known if self.made_from.get(key) != now[key]), None)


def read_record(path: Path) -> Record | None:
    """The record in a file; None where there is none that can be used."""
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    sound = (
        isinstance(record.source, str)
        and isinstance(record.made_from, dict)
        and isinstance(record.rows, int)
        and isinstance(record.finished, bool)
        and _states(record.files, [str, int, int])
        and _states(record.earlier, [str, str, int, int])
    )
    return record if sound else None


def write_record(
    path: Path,
    source: Path,
    made_from: Mapping[str, Any],
    rows: int,
    finished: bool,
    files: Mapping[str, Path],
) -> None:
    """Write the record of files that have just been written; those of the record before that are
    unchanged stay known.

    Raises:
        FasthgError: it cannot be written.
    """
    states = {kind: _state(file) for kind, file in files.items()}
    before, names = read_record(path), {file.name for file in files.values()}
    earlier = {
        name: entry
        for name, entry in ({} if before is None else before.known()).items()
        if name not in names and _same(path.with_name(name), entry)
    }
    record = Record(os.path.abspath(source), dict(made_from), rows, finished, states, earlier)
    write_text(path, json.dumps(asdict(record)) + "\n")


def is_overlay(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a record beside `path` names it as a drawing, by its name and one of `suffixes`."""
    path = Path(os.path.abspath(path))  # "." has no name
    for suffix in suffixes:
        if not path.name.endswith(suffix):
            continue
        record = read_record(path.with_name(f".{path.name.removesuffix(suffix)}.made.json"))
        if record is not None:
            return path.name in record.known()
    return False


def results_in(folder: Path) -> set[str]:
    """Names of the files in a folder that its records know as results, changed since or not."""
    names: set[str] = set()
    for path in folder.glob(".*.made.json"):
        record = read_record(path)
        if record is not None:
            names.update(record.known())
    return names


def _states(files: Any, types: Sequence[type]) -> bool:
    """Whether `files` is a mapping whose values are lists of these types."""
    return isinstance(files, dict) and all(
        isinstance(state, list) and [type(value) for value in state] == types
        for state in files.values()
    )


def _same(path: Path, entry: Sequence[int | str]) -> bool:
    """Whether `path` is the file of an entry of `Record.known`."""
    return path.exists() and _state(path) == [path.name, *entry[2:]]


def _state(path: Path) -> list[int | str]:
    status = path.stat()
    # A folder changes when somebody looks through it with a file manager.
    if path.is_dir():
        return [path.name, 0, 0]
    return [path.name, status.st_size, status.st_mtime_ns]

"""What the run folders below a folder came to, and in what their configurations differ."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from fasthg.errors import DataError
from fasthg.files import natural
from fasthg.runs.run_folder import RunFolder, early_stop

State = Literal["finished", "stopped early", "stopped", "running", "unknown"]

PLACE_KEYS = ("RUN_NAME", "RUNS_DIR")
"""Keys that say where a run lies and nothing of how it trained."""
ABSENT = object()
"""In place of a key's value where a run's configuration does not name the key: it has no effect
there, or its version of fasthg did not know it."""
_MARKS = ("config.resolved.yaml", "metrics.jsonl", "checkpoints")
"""What tells a run folder, whole or damaged, from any other."""


@dataclass(frozen=True)
class RunSummary:
    """One run folder.

    Attributes:
        path: the folder.
        problem: what is wrong with its files; None where it is sound.
        state: whether its training reached the last step, was stopped before (early: by
            EARLY_STOP_PATIENCE), or goes on now; None where the folder is no run's.
        step, total: the last step that was logged, and NUM_TRAIN_ITERATIONS.
        best_px, best_step: least mean error on the validation data, image px, and its step.
        split, mean_px, median_px: errors of its evaluation on test, or else val; image px.
        seconds: that it trained, where its log has times.
        keys: its configuration, dotted name to value.
    """

    path: Path
    problem: str | None = None
    state: State | None = None
    step: int = 0
    total: int | None = None
    best_px: float | None = None
    best_step: int | None = None
    split: str | None = None
    mean_px: float | None = None
    median_px: float | None = None
    seconds: float | None = None
    keys: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    def as_json(self) -> dict[str, Any]:
        """Everything but the configuration, for JSON."""
        kept = {name: value for name, value in vars(self).items() if name != "keys"}
        return {"name": self.name, **kept, "path": str(self.path)}


def run_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, or itself if it is a run; as people number them.

    Folders that are no run are among them, so that nobody wonders where one went; hidden ones are
    not.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that holds runs, as RUNS_DIR says")
    if _looks_like_run(folder):
        return [folder]
    inside = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return sorted(inside, key=lambda path: natural(path.name))


def _looks_like_run(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in _MARKS)


def summarise(path: Path) -> RunSummary:
    """What a run folder came to; a damaged or foreign one has a `problem` and raises nothing."""
    if not _looks_like_run(path):
        return RunSummary(path, "not a run folder")
    run = RunFolder(path)
    problems: list[str] = []
    keys, rows, tested = (_readable(read, run, problems) for read in (read_keys, _rows, _tested))
    rows = rows or []
    total = (keys or {}).get("NUM_TRAIN_ITERATIONS")
    step = max((row["step"] for row in rows), default=0)
    best, best_step = _best(rows)
    state: State = "unknown"
    if isinstance(total, int):
        state = "stopped early" if early_stop(rows) else "stopped"
        state = "finished" if step >= total else state
    if tested and not rows:
        state = "unknown"
        if not any(problem.startswith("metrics.jsonl") for problem in problems):
            problems.append("metrics.jsonl is missing or empty")
    return RunSummary(
        path=path,
        problem="; ".join(problems) or None,
        state="running" if run.in_use() else state,
        step=step,
        total=total if isinstance(total, int) else None,
        best_px=best,
        best_step=best_step,
        seconds=trained_seconds(rows),
        keys=keys,
        **(tested or {}),
    )


def _readable(read: Callable[[RunFolder], Any], run: RunFolder, problems: list[str]) -> Any:
    """What `read` gives, or None and a line more in `problems`."""
    try:
        return read(run)
    except DataError as error:
        problems.append(str(error).removeprefix(f"{run.path}/"))
    except OSError as error:
        problems.append(f"{Path(error.filename or run.path).name}: {error.strerror or error}")
    return None


def _rows(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of its log that have a step."""
    try:
        found = run.logged()
    except UnicodeDecodeError:
        raise DataError(f"{run.path}/metrics.jsonl is damaged") from None
    return [row for row in found if isinstance(row, dict) and isinstance(row.get("step"), int)]


def read_keys(run: RunFolder) -> dict[str, Any]:
    """A run's configuration by dotted name, also where this version knows other keys.

    Raises:
        DataError: the file is missing or no YAML.
        OSError: it cannot be read.
    """
    try:
        text = run.resolved.read_text(encoding="utf-8")
        loaded = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise DataError(f"{run.path}/{run.resolved.name} is missing") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise DataError(f"{run.path}/{run.resolved.name} is damaged") from None
    if not isinstance(loaded, dict):
        raise DataError(f"{run.path}/{run.resolved.name} is damaged")
    return dict(_flat(loaded))


def _flat(section: Mapping[Any, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _best(rows: Sequence[Mapping[str, Any]]) -> tuple[float | None, int | None]:
    found = [
        (float(row["val_error_mean_px"]), row["step"])
        for row in rows
        if _is_number(row.get("val_error_mean_px"))
    ]
    return min(found, default=(None, None))


def _tested(run: RunFolder) -> dict[str, Any]:
    """Errors of the evaluation on test, or else on val; nothing without one."""
    for split in ("test", "val"):
        path = run.eval_folder(split) / "metrics.json"
        try:
            overall = json.loads(path.read_text(encoding="utf-8"))["error_px"]["all"]
            mean, median = (overall[key] for key in ("mean", "median"))
            if not all(value is None or _is_number(value) for value in (mean, median)):
                raise ValueError
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{run.path}/{path.relative_to(run.path)} is damaged") from None
        return {"split": split, "mean_px": mean, "median_px": median}
    return {}


def trained_seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of training by the rows' `elapsed_s`, which starts anew in a resumed run if it
    falls; None where no row has it."""
    times = [float(row["elapsed_s"]) for row in rows if _is_number(row.get("elapsed_s"))]
    if not times:
        return None
    ends = (a for a, b in itertools.pairwise(times) if b < a)
    return sum(ends) + times[-1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def differences(runs: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Of each configuration the keys that are not the same in all, without RUN_NAME and RUNS_DIR.

    Args:
        runs: configurations by dotted name; None has no differences and does not count.

    Returns:
        A dictionary for each, in order. A key that one of them lacks is ABSENT there, which is no
        difference to null.
    """
    known = [run for run in runs if run is not None]
    names = dict.fromkeys(name for run in known for name in run)
    differing = [
        name
        for name in names
        if name not in PLACE_KEYS and any(run.get(name) != known[0].get(name) for run in known)
    ]
    return [
        {} if run is None else {name: run.get(name, ABSENT) for name in differing} for run in runs
    ]


def told(differing: Mapping[str, Any], most: int = 6) -> str:
    """The keys and values of one run's differences, for a person; those with a value first."""
    left = dict(differing)
    data = [name for name in left if name.startswith("DATA.")]
    patterns = [pattern for name in data if isinstance(left[name], list) for pattern in left[name]]
    folders = {str(Path(str(pattern)).parent) for pattern in patterns}
    first: dict[str, Any] = {}
    # What differs together is told once: the splits of a data set, the lists of parts.
    if len(data) > 1 and len(folders) == 1:
        first["DATA"] = folders.pop()
        left = {name: value for name, value in left.items() if name not in data}
    if "PARTS.NAMES" in left:
        first["PARTS.NAMES"] = left["PARTS.NAMES"]
        left = {name: value for name, value in left.items() if not name.startswith("PARTS.")}
    items = [*first.items(), *sorted(left.items(), key=lambda item: item[1] in (None, ABSENT))]
    # One more is no longer than the words that would stand for it.
    most += len(items) == most + 1
    text = ", ".join(f"{name} {shown(value)}" for name, value in items[:most])
    return f"{text} and {len(items) - most} more" if len(items) > most else text


def shown(value: Any, most: int = 40) -> str:
    """A value as YAML has it; a long list by its length; a dash for ABSENT."""
    if value is ABSENT:
        return "\N{EM DASH}"
    if isinstance(value, list):
        text = ", ".join(shown(item, most) for item in value)
        return text if len(text) <= most or len(value) < 2 else f"{len(value)} entries"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)

"""The files of a MARS project, read into workers' labels; `convert.mars` describes their form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from fasthg.data.convert.tables import read_table
from fasthg.errors import DataError

Workers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Project:
    """What is needed of project_config.yaml. pairs: indices into keypoints; pose: animals of each
    model, empty for all; annotations: the file of labels found."""

    folder: Path
    keypoints: tuple[str, ...]
    animals: tuple[str, ...]
    species: str
    pairs: tuple[tuple[int, int], ...]
    pose: dict[str, tuple[str, ...]]
    annotations: Path


@dataclass(frozen=True)
class CrowdFrame:
    """image: its path as written; workers: {animal: (workers, parts, 2) image px or NaN}; names:
    the workers', empty where the file has none."""

    image: str
    workers: dict[str, Workers]
    names: tuple[str, ...] = ()


@dataclass
class Labels:
    """The labelled frames of a file, the number without labels, and labels that fit no keypoint."""

    frames: list[CrowdFrame] = field(default_factory=list)
    empty: int = 0
    unknown: set[str] = field(default_factory=set)


def read_project(folder: Path) -> Project:
    """Read project_config.yaml and find the file of labels. Raises DataError."""
    path = folder / "project_config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the folder of a MARS project") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(
            f"{path}{line}: {getattr(error, 'problem', None) or 'not YAML'}; correct the file"
        ) from None
    if not isinstance(config, dict) or not config.get("keypoints"):
        raise DataError(f"{path}: keypoints is no list of names; add it")
    keypoints = tuple(str(name) for name in config["keypoints"])
    species = str(config.get("species") or "mouse")
    pairs = []
    for pair in config.get("check_pairs") or ():
        absent = [name for name in pair if name not in keypoints]
        if absent or len(pair) != 2:
            raise DataError(f"{path}: check_pairs: {pair} is no pair of keypoints; correct it")
        pairs.append((keypoints.index(pair[0]), keypoints.index(pair[1])))
    pose = {
        str(key): tuple(map(str, value or ())) for key, value in (config.get("pose") or {}).items()
    }
    return Project(
        folder=folder,
        keypoints=keypoints,
        animals=tuple(map(str, config.get("animal_names") or ())) or (species,),
        species=species,
        pairs=tuple(pairs),
        pose=pose,
        annotations=_find_annotations(folder / "annotation_data", config.get("manifest_name")),
    )


def _find_annotations(folder: Path, name: str | None) -> Path:
    if name and (folder / name).is_file():
        return folder / name
    for pattern in ("*.manifest", "*.csv"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(
                f"{folder}: several files of labels ({names}); "
                f"set manifest_name in project_config.yaml"
            )
        if found:
            return found[0]
    return folder / "processed_keypoints.json"


def read_frames(path: Path, project: Project) -> Labels:
    """The labels of a .manifest, .csv or .json file. Raises DataError, naming file and line."""
    readers = {".manifest": _read_manifest, ".csv": _read_csv, ".json": _read_processed}
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: unknown kind of labels; give a .manifest, .csv or .json file")
    try:
        return reader(path, project)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; put the labels into annotation_data of the project"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; download the labels again") from None


class _Frame:
    """Collects labels of one frame from worker after worker."""

    def __init__(self, project: Project, labels: Labels) -> None:
        self.project = project
        self.labels = labels
        self.workers: list[Workers] = []
        self.names: list[str] = []

    def add(self, worker: str, points: Iterable[tuple[str, float, float]]) -> None:
        shape = (len(self.project.animals), len(self.project.keypoints), 2)
        xy = np.full(shape, np.nan)
        for label, x, y in points:
            place = self._place(label)
            if place is None:
                self.labels.unknown.add(label)
            else:
                xy[place] = (x, y)
        self.workers.append(xy)
        self.names.append(worker)

    def _place(self, label: str) -> tuple[int, int] | None:
        """(animal, keypoint) of a label such as "black mouse left ear"."""
        animals, keypoints = self.project.animals, self.project.keypoints
        rest = " ".join(label.split())
        animal = 0 if len(animals) == 1 else None
        # Longest first: "first black" before "black".
        for number in sorted(range(len(animals)), key=lambda i: -len(animals[i])):
            shorter = _without(rest, animals[number])
            if shorter != rest:
                animal, rest = number, shorter
                break
        if rest not in keypoints:
            rest = _without(rest, self.project.species)
        if animal is None or rest not in keypoints:
            return None
        return animal, keypoints.index(rest)

    def done(self, image: str) -> None:
        stack = np.stack(self.workers) if self.workers else np.empty(0)
        if not np.isfinite(stack).any():
            self.labels.empty += 1
            return
        workers = {name: stack[:, i] for i, name in enumerate(self.project.animals)}
        names = tuple(self.names) if all(self.names) else ()
        self.labels.frames.append(CrowdFrame(image, workers, names))


def _without(text: str, words: str) -> str:
    """`text` less one occurrence of `words` as whole words."""
    return " ".join(re.sub(rf"(?<!\S){re.escape(words)}(?!\S)", "", text, count=1).split())


def _read_manifest(path: Path, project: Project) -> Labels:
    labels = Labels()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            image = entry["source-ref"]
            frame = _Frame(project, labels)
            for answer in _answers(entry):
                points = ((p["label"], float(p["x"]), float(p["y"])) for p in _keypoints(answer))
                frame.add(str(answer.get("workerId") or ""), points)
            frame.done(image)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
            raise DataError(
                f"{path}:{number}: not a line of crowd-keypoint labels ({reason}); "
                f"download the manifest again"
            ) from None
    return labels


def _answers(entry: Mapping[str, Any]) -> list[Any]:
    """The workers' answers of a line: those of the first key that has any."""
    for value in entry.values():
        if isinstance(value, dict):
            for key in ("annotationsFromAllWorkers", "annotations"):
                if isinstance(value.get(key), list):
                    return list(value[key])
    return []


def _keypoints(answer: Mapping[str, Any]) -> list[Any]:
    """The list under `keypoints` at any depth of an answer, JSON in strings included."""
    pending: list[Any] = [answer]
    while pending:
        value = pending.pop(0)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = json.loads(value)
        if isinstance(value, dict):
            if isinstance(value.get("keypoints"), list):
                return list(value["keypoints"])
            pending += value.values()
    return []


def _read_csv(path: Path, project: Project) -> Labels:
    labels = Labels()
    table = read_table(path)
    scorers = list(dict.fromkeys(column.scorer for column in table.columns))
    for row in table.rows:
        frame = _Frame(project, labels)
        for scorer in scorers:
            points = (
                (f"{column.individual} {column.part}".strip(), *xy)
                for column, xy in row.points.items()
                if column.scorer == scorer
            )
            frame.add(scorer, points)
        frame.done(row.image)
    return labels


def _read_processed(path: Path, project: Project) -> Labels:
    labels = Labels()
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: {error}; let MARS write the file again") from None
    for number, entry in enumerate(entries):
        try:
            order = [list(entry["ann_label"]).index(name) for name in project.keypoints]
            size = np.array([entry["width"], entry["height"]], float)
            workers = {}
            for name in project.animals:
                xy = _processed_animal(entry[f"ann_{name}"])[:, order]
                xy[(xy == 0).all(axis=2)] = np.nan
                workers[name] = xy * size
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise DataError(
                f"{path}: entry {number}: {reason}; let MARS write the file again"
            ) from None
        if any(np.isfinite(xy).any() for xy in workers.values()):
            labels.frames.append(CrowdFrame(str(entry["image"]), workers))
        else:
            labels.empty += 1
    return labels


def _processed_animal(animal: Mapping[str, Any]) -> Workers:
    """(workers, parts, 2), normalised."""
    if animal.get("X") and animal.get("Y"):
        return np.stack([np.array(animal["X"], float), np.array(animal["Y"], float)], axis=-1)
    y, x = np.array(animal["med"], float)
    return np.stack([x, y], axis=-1)[None]

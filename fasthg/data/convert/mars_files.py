"""The files of a MARS project, read into workers' labels; `convert.mars` describes their form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg.data.convert.tables import read_table
from fasthg.data.convert.text import read_text, read_yaml
from fasthg.errors import DataError

Workers = npt.NDArray[np.float64]


PROJECT_CONFIG = "project_config.yaml"
"""The file that makes a folder a MARS project."""


@dataclass(frozen=True)
class Project:
    """Keys of project_config.yaml. pairs: indices into keypoints; pose: animals of each model,
    empty for all; pixels_per_cm: image px, None where unknown; manifest: manifest_name."""

    folder: Path
    keypoints: tuple[str, ...]
    animals: tuple[str, ...]
    species: str
    pairs: tuple[tuple[int, int], ...]
    pose: dict[str, tuple[str, ...]]
    pixels_per_cm: float | None
    manifest: str | None

    @property
    def config(self) -> Path:
        """Path of project_config.yaml."""
        return self.folder / PROJECT_CONFIG

    @property
    def annotations(self) -> Path:
        """The file of labels, which may be absent. Raises DataError where there are several."""
        return _find_annotations(self.folder / "annotation_data", self.manifest)

    def model(self, name: str | None, option: str = "choose one") -> tuple[str, tuple[str, ...]]:
        """A model of `pose` and its animals; the only one for None.

        option: how to choose, for messages. Raises DataError for an unknown model, an unknown
        animal of it, or None where there is not exactly one model.
        """
        names = ", ".join(self.pose)
        if not self.pose:
            raise DataError(f"{self.config}: pose names no model; add e.g. pose: {{top: []}}")
        if name is None:
            if len(self.pose) != 1:
                raise DataError(
                    f"{self.config}: pose names {len(self.pose)} models ({names}); {option}"
                )
            name = next(iter(self.pose))
        if name not in self.pose:
            raise DataError(f"{self.config}: pose names no model {name}; there are {names}")
        animals = self.pose[name] or self.animals
        unknown = [animal for animal in animals if animal not in self.animals]
        if unknown:
            raise DataError(
                f"{self.config}: pose.{name} names {', '.join(unknown)}, which animal_names lacks; "
                f"correct one of them"
            )
        return name, animals


@dataclass(frozen=True)
class CrowdFrame:
    """image: its path as written; workers: {animal: (workers, parts, 2) image px or NaN}; names:
    the workers', empty where the file has none; where: file and line or entry."""

    image: str
    workers: dict[str, Workers]
    names: tuple[str, ...] = ()
    where: str = ""


@dataclass
class Labels:
    """The labelled frames of a file, the number without labels, and labels that fit no keypoint."""

    frames: list[CrowdFrame] = field(default_factory=list)
    empty: int = 0
    unknown: set[str] = field(default_factory=set)


def read_project(folder: Path) -> Project:
    """Read project_config.yaml. Raises DataError, one line with file, key and remedy."""
    path = folder / PROJECT_CONFIG
    config = read_yaml(path, "give the folder of a MARS project")
    if not isinstance(config, dict):
        raise DataError(f"{path}: keypoints is no list of names; add it")
    keypoints = _names(path, config, "keypoints")
    if not keypoints:
        raise DataError(f"{path}: keypoints is no list of names; add it")
    species = str(config.get("species") or "mouse")
    pose = config.get("pose") or {}
    if not isinstance(pose, dict):
        raise DataError(f"{path}: pose names no models with their animals; write pose: {{top: []}}")
    manifest = config.get("manifest_name")
    return Project(
        folder=folder,
        keypoints=keypoints,
        animals=_names(path, config, "animal_names") or (species,),
        species=species,
        pairs=_pairs(path, config.get("check_pairs") or (), keypoints),
        pose={str(model): _names(path, pose, model, "pose.") for model in pose},
        pixels_per_cm=_scale(path, config.get("pixels_per_cm")),
        manifest=str(manifest) if manifest else None,
    )


def _names(path: Path, config: Mapping[Any, Any], key: Any, under: str = "") -> tuple[str, ...]:
    """A list of distinct names; empty where the key is absent or has no value."""
    values = config.get(key) or []
    if not isinstance(values, list) or any(isinstance(v, list | dict) or v is None for v in values):
        raise DataError(f"{path}: {under}{key} is no list of names; write {key}: [first, second]")
    names = tuple(map(str, values))
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: {under}{key}: {name} is there twice; name each once")
    return names


def _pairs(path: Path, pairs: Any, keypoints: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    indices = []
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        whole = isinstance(pair, list) and len(pair) == 2 and all(p in keypoints for p in pair)
        if not whole or pair[0] == pair[1]:
            raise DataError(f"{path}: check_pairs: {pair} is no pair of keypoints; correct it")
        indices.append((keypoints.index(pair[0]), keypoints.index(pair[1])))
    return tuple(indices)


def _scale(path: Path, value: Any) -> float | None:
    """Image px in a centimetre; MARS takes 0 and nothing for unknown."""
    if not value:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DataError(
            f"{path}: pixels_per_cm: {value!r} is no number above 0; correct it, or write 0 for "
            "unknown"
        )
    return float(value)


def _find_annotations(folder: Path, name: str | None) -> Path:
    if name and (folder / name).is_file():
        return folder / name
    for pattern in ("*.manifest", "*.csv"):
        # macOS keeps a `._` file beside each file on other systems' disks.
        paths = sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(
                f"{folder}: several files of labels ({names}); "
                f"set manifest_name in project_config.yaml"
            )
        if paths:
            return paths[0]
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

    def done(self, image: str, where: str) -> None:
        stack = np.stack(self.workers) if self.workers else np.empty(0)
        if not np.isfinite(stack).any():
            self.labels.empty += 1
            return
        workers = {name: stack[:, i] for i, name in enumerate(self.project.animals)}
        names = tuple(self.names) if all(self.names) else ()
        self.labels.frames.append(CrowdFrame(image, workers, names, where))


def _without(text: str, words: str) -> str:
    """`text` less one occurrence of `words` as whole words."""
    return " ".join(re.sub(rf"(?<!\S){re.escape(words)}(?!\S)", "", text, count=1).split())


def _read_manifest(path: Path, project: Project) -> Labels:
    labels = Labels()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            image = entry["source-ref"]
            if not isinstance(image, str):
                raise TypeError(f"source-ref is {image!r}")
            frame = _Frame(project, labels)
            for answer in _answers(entry):
                points = ((p["label"], float(p["x"]), float(p["y"])) for p in _keypoints(answer))
                frame.add(str(answer.get("workerId") or ""), points)
            frame.done(image, f"{path}:{number}")
        except (
            *(ValueError, KeyError, TypeError, AttributeError),
            *(OverflowError, RecursionError),
        ) as error:
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
        frame.done(row.image, row.where)
    return labels


def _read_processed(path: Path, project: Project) -> Labels:
    labels = Labels()
    try:
        entries = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
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
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise DataError(
                f"{path}: entry {number}: {reason}; let MARS write the file again"
            ) from None
        if any(np.isfinite(xy).any() for xy in workers.values()):
            where = f"{path}: entry {number}"
            labels.frames.append(CrowdFrame(str(entry["image"]), workers, where=where))
        else:
            labels.empty += 1
    return labels


def _processed_animal(animal: Mapping[str, Any]) -> Workers:
    """(workers, parts, 2), normalised."""
    if animal.get("X") and animal.get("Y"):
        return np.stack([np.array(animal["X"], float), np.array(animal["Y"], float)], axis=-1)
    y, x = np.array(animal["med"], float)
    return np.stack([x, y], axis=-1)[None]

"""What a user's labels are, by their files: which converter reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fasthg.data.convert import coco, dlc, yolo
from fasthg.data.convert.mars_files import PROJECT_CONFIG
from fasthg.data.convert.text import read_text
from fasthg.errors import ConfigError, DataError

_LOOKED_FOR = (
    "a DeepLabCut project (config.yaml with bodyparts), CollectedData tables (Lightning Pose), "
    "SLEAP labels (.slp), COCO keypoints (.json), a MARS project (project_config.yaml) or a YOLO "
    "pose data set (a YAML with kpt_shape)"
)
# Names of COCO's folder of files.
_ANNOTATIONS = "annotations"


@dataclass(frozen=True)
class Found:
    """Labels of a kind. kind: the converter (dlc, coco, slp, mars, yolo); paths: what it reads,
    several for COCO alone, each as `[SPLIT=]FILE`; what: the kind in words."""

    kind: str
    paths: tuple[str, ...]
    what: str

    def command(self) -> str:
        """The command that converts these alone."""
        return f"fasthg data convert {self.kind} {' '.join(self.paths)}"


def recognise(source: Path) -> Found:
    """The labels that `source`, a file or folder, holds.

    Raises:
        ConfigError: there are none of a known kind, or of several.
    """
    if not source.exists():
        raise ConfigError(f"{source}: no such file or folder; give {_LOOKED_FOR}")
    found = [each for look in _KINDS if (each := look(source)) is not None]
    if not found:
        raise ConfigError(f"{source}: found no labels there; looked for {_LOOKED_FOR}")
    if len(found) > 1:
        ways = "; or ".join(each.command() for each in found)
        kinds = ", ".join(each.what for each in found)
        raise ConfigError(f"{source}: holds labels of several kinds ({kinds}); choose: {ways}")
    return found[0]


def _mars(source: Path) -> Found | None:
    folder = source.parent if source.name == PROJECT_CONFIG else source
    if not (folder / PROJECT_CONFIG).is_file():
        return None
    return Found("mars", (str(folder),), "MARS project")


def _dlc(source: Path) -> Found | None:
    project = source.parent if source.name == "config.yaml" else source
    if dlc.is_project(project):
        return Found("dlc", (str(project),), "DeepLabCut project")
    if dlc.is_table(source):
        return Found("dlc", (str(source),), "table of labels, as of Lightning Pose")
    return None


def _yolo(source: Path) -> Found | None:
    files = [*source.glob("*.y*ml")] if source.is_dir() else [source]
    # Which of several is for the converter to ask.
    known = any(path.suffix in (".yaml", ".yml") and yolo.is_data_yaml(path) for path in files)
    return Found("yolo", (str(source),), "YOLO pose data set") if known else None


def _slp(source: Path) -> Found | None:
    files = sorted(source.glob("*.slp")) if source.is_dir() else [source]
    files = [path for path in files if path.suffix == ".slp" and path.is_file()]
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ConfigError(f"{source}: several files of SLEAP labels ({names}); give one of them")
    return Found("slp", (str(files[0]),), "SLEAP labels") if files else None


def _coco(source: Path) -> Found | None:
    files = [source]
    if source.is_dir():
        files = sorted([*source.glob("*.json"), *(source / _ANNOTATIONS).glob("*.json")])
    files = [path for path in files if path.suffix == ".json" and _is_coco(path)]
    if not files:
        return None
    if len(files) == 1:
        return Found("coco", (str(files[0]),), "COCO keypoints")
    splits = {coco.split_of(path): path for path in files}
    if None in splits or len(splits) < len(files):
        names = ", ".join(path.name for path in files)
        raise ConfigError(
            f"{source}: several COCO files ({names}), whose names do not say which is train, val "
            "and test; say it: fasthg data convert coco train=FILE val=FILE FOLDER"
        )
    paths = tuple(f"{split}={path}" for split, path in splits.items())
    return Found("coco", paths, "COCO keypoints")


def _is_coco(path: Path) -> bool:
    """Whether a file holds COCO annotations with keypoints."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError, DataError):
        return False
    if not isinstance(content, dict) or not {"images", "annotations"} <= {*content}:
        return False
    annotations = content["annotations"]
    return isinstance(annotations, list) and any(
        isinstance(each, dict) and each.get("keypoints") for each in annotations
    )


_KINDS: tuple[Callable[[Path], Found | None], ...] = (_mars, _dlc, _slp, _coco, _yolo)

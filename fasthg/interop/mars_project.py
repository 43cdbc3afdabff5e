"""Training in a MARS project: configuration, records and runs of its folder.

A project is the folder of `project_config.yaml`. Runs lie in `pose/<model>_log`, where MARS logs a
training; MARS reads only the files of that folder itself, so run folders in it do no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasthg.config import (
    Config,
    Document,
    Parts,
    parse_override,
    read_document,
    resolve,
)
from fasthg.config.keys import project_data
from fasthg.config.sides import left_right_pairs
from fasthg.config.types import local_path
from fasthg.data.convert.mars_files import PROJECT_CONFIG, Project, read_project
from fasthg.data.convert.splits import load_splits
from fasthg.errors import ConfigError, DataError
from fasthg.metrics import plain_part
from fasthg.runs.run_folder import RunFolder

_SPLITS = ("train", "val", "test")
_LOG = "_log"
# Where a training outside of a project puts its run, unless RUNS_DIR says otherwise.
_RUNS = "runs"
# MARS's stock sigmas in heatmap cells: small parts have a sharper target than those on the trunk.
_SIGMAS, _TRUNK = {"nose": 1.5, "ear": 2.0}, 3.0


@dataclass(frozen=True)
class ProjectConfig:
    """The configuration of a training in a project.

    Attributes:
        source: the configuration file in the project; None for stock values.
        model: name of the pose model.
        lines: what was taken from the project, for the user.
    """

    config: Config
    source: Path | None
    model: str
    lines: tuple[str, ...]


def find_project(start: Path) -> Path | None:
    """The project that a path lies in, or is: the nearest folder with project_config.yaml."""
    start = Path(os.path.abspath(start))
    for folder in (start, *start.parents):
        if (folder / PROJECT_CONFIG).is_file():
            return folder
    return None


def project_config(overrides: Sequence[str], start: Path) -> ProjectConfig | None:
    """The configuration of `fasthg train` without CONFIG; None outside of a project.

    It is `pose/config_train.yaml`, or the stock values where that is absent. Keys that it does not
    set come from project_config.yaml: records, parts, PIXELS_PER_CM, the folder of the runs; and
    OKS_SIGMAS from the conversion, where several workers labelled the frames. Its own PARTS are
    kept if they have as many keypoints and are not MARS's unedited ones.

    Args:
        overrides: `KEY=VALUE`; MARS_PROJECT names the project, POSE_MODEL the model of `pose`.
        start: where to look for a project, and above, without MARS_PROJECT.

    Raises:
        ConfigError: the configuration is wrong.
        DataError: MARS_PROJECT is no project, its project_config.yaml is wrong, or there are no
            records to train on.
    """
    named = _override(overrides, "MARS_PROJECT")
    root = find_project(start) if named is None else Path(os.path.abspath(local_path(named)))
    if root is None:
        return None
    project = read_project(root)
    first = next(iter(project.pose), "")
    model, animals = project.model(
        _override(overrides, "POSE_MODEL"), f"choose one with POSE_MODEL={first}"
    )
    present = _records(project, model)
    path = root / "pose" / "config_train.yaml"
    own = path.is_file()
    document = read_document(path) if own else Document({}, {})
    lines = [_summary(project, model, animals, path if own else None)]
    lines += _complete(document.values, project, model, present)
    # The project's absolute path is set already; the override may be a relative one.
    rest = [text for text in overrides if text.partition("=")[0].strip() != "MARS_PROJECT"]
    config = resolve(document, str(path if own else project.config), rest)
    return ProjectConfig(config, path if own else None, model, tuple(lines))


def _override(overrides: Sequence[str], key: str) -> str | None:
    """The value of the last override of a key; None without one."""
    last = None
    for text in overrides:
        if text.partition("=")[0].strip() == key:
            value = parse_override(text)[1]
            last = None if value is None else str(value)
    return last


def _records(project: Project, model: str) -> list[str]:
    """The splits that have records. Raises DataError where there are none to train on."""
    folder = project.folder / "pose" / f"{model}_tfrecords_pose"
    present = [split for split in _SPLITS if any(folder.glob(f"{split}_dataset-*"))]
    if "train" not in present:
        raise DataError(
            f"{folder}: no train_dataset-* to train on; run: fasthg data convert mars "
            f"{project.folder} --pose-model {model}"
        )
    return present


def _summary(project: Project, model: str, animals: Sequence[str], source: Path | None) -> str:
    scale = "pixels_per_cm unknown, so no errors in cm"
    if project.pixels_per_cm is not None:
        scale = f"{project.pixels_per_cm:g} px in a cm"
    origin = "stock values" if source is None else str(source.relative_to(project.folder))
    return (
        f"project  {project.folder}: {model} ({', '.join(animals)}), "
        f"{len(project.keypoints)} keypoints, {scale}; {origin}"
    )


def _complete(
    values: dict[str, Any], project: Project, model: str, present: Sequence[str]
) -> list[str]:
    """Add values of the project to those of a file; returns notes for the user."""
    root, lines = project.folder, []
    patterns = project_data(str(root), model)
    values["MARS_PROJECT"], values["POSE_MODEL"] = str(root), model
    values.setdefault("DATA", {s.upper(): list(getattr(patterns, s.upper())) for s in present})
    values.setdefault("RUNS_DIR", str(root / "pose" / f"{model}{_LOG}"))
    values.setdefault("PIXELS_PER_CM", project.pixels_per_cm)
    parts = values.get("PARTS", {})
    if isinstance(parts, Mapping):
        values["PARTS"], changed = _parts(parts, project)
        if changed and parts:
            lines.append(
                "project  PARTS of pose/config_train.yaml are of other keypoints: "
                f"keypoints and check_pairs of {PROJECT_CONFIG} serve"
            )
    lines += _measured(values, root / "pose" / f"{model}_tfrecords_pose")
    if "val" not in present:
        lines.append("project  no val_dataset-*: the newest weights count as the best")
    if "test" not in present:
        lines.append("project  no test_dataset-*: nothing is written for MARS's notebooks")
    return lines


def _measured(values: dict[str, Any], records: Path) -> list[str]:
    """Set OKS_SIGMAS to what the conversion measured on the project's workers; notes on it."""
    with contextlib.suppress(DataError):  # splits.json is not needed for anything else here
        splits = load_splits(records)
        found = splits.measured_sigmas() if splits else None
        parts = values.get("PARTS")
        own = parts.get("NAMES") if isinstance(parts, Mapping) else None
        if splits and found and own == splits.parts and "OKS_SIGMAS" not in values:
            values["OKS_SIGMAS"] = [*found[0]]
            return [f"project  OKS_SIGMAS measured on {found[1]} workers by the conversion"]
    return []


def _parts(section: Mapping[str, Any], project: Project) -> tuple[dict[str, Any], bool]:
    """PARTS for the project's keypoints, and whether those of the file were replaced."""
    names, own = list(project.keypoints), section.get("NAMES")
    if own == names:
        return dict(section), False
    if section.get("NUM_PARTS") == len(names) and own != list(Parts().NAMES):
        return {**section, "NAMES": names}, False
    pairs = list(project.pairs)
    paired = {part for pair in pairs for part in pair}
    pairs += [pair for pair in left_right_pairs(names) if paired.isdisjoint(pair)]
    return {
        **section,
        "NUM_PARTS": len(names),
        "NAMES": names,
        "LEFT_RIGHT_PAIRS": [list(pair) for pair in pairs],
        "SIGMAS": [_SIGMAS.get(plain_part(name), _TRUNK) for name in names],
    }, True


def newest_run(overrides: Sequence[str], start: Path) -> RunFolder:
    """The run whose best weights are the newest, of the project around `start`; where there is no
    project, of the folder `runs` in `start`.

    Args:
        overrides: POSE_MODEL among them limits the search to one model of the project.
        start: where to look for a project, and above, or for `runs`.

    Raises:
        ConfigError: there is neither.
        DataError: no run has weights yet.
    """
    root = find_project(start)
    if root is None:
        folder, pattern = start, _RUNS
        if not (start / _RUNS).is_dir():
            raise ConfigError(
                f"no RUN given, no folder {_RUNS} in {os.path.abspath(start)}, and no "
                f"{PROJECT_CONFIG} there or above; give {_RUNS}/<name>"
            )
    else:
        folder, pattern = root / "pose", f"{_override(overrides, 'POSE_MODEL') or '*'}{_LOG}"
    runs = [RunFolder(path.parent) for path in folder.glob(f"{pattern}/*/checkpoints")]
    ready = [run for run in runs if run.resolved.is_file() and run.best.is_file()]
    if not ready:
        raise DataError(f"{folder / pattern}: no run with weights; run: fasthg train")
    return max(ready, key=lambda run: (run.best.stat().st_mtime_ns, run.path.name))


def relocation_overrides(run: RunFolder) -> list[str]:
    """Overrides with the present paths, for a run in a project whose folder was moved."""
    root, config = find_project(run.path), run.config()
    model, old = config.POSE_MODEL, config.MARS_PROJECT
    if root is None or model is None or old is None or old == str(root):
        return []
    if Path(os.path.abspath(run.path)).parent.parent != root / "pose":
        return []
    patterns = project_data(str(root), model)
    splits = [split.upper() for split in _SPLITS]
    data = {s: getattr(patterns, s) for s in splits if getattr(config.DATA, s) is not None}
    return [f"MARS_PROJECT={json.dumps(str(root))}", f"DATA={json.dumps(data)}"]

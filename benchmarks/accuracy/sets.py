"""The data sets that recipes are compared on, and how each is divided.

`prepare` writes records of one fold with fasthg's own converters. Real labels are read below a
folder that the caller names (`--data`), laid out as their sources lay them out; the rendered mice
are made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import fasthg
from fasthg.config.presets import find_config
from fasthg.data.synthetic.dataset import write_dataset


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        what: one line for a table.
        source: file or folder below the data folder that is converted; None: rendered.
        split: frame ids (sorted), fold -> split of each, `train`, `val` or `test`; None: the
            source's own `splits.json`, which is copied.
        folds: how many there are.
        seeds: how many trainings of a fold the published table has.
        parts: source's names -> names in the records, for those that are kept; None: all.
        pairs: LEFT_RIGHT_PAIRS where the names do not tell them.
        test_source, test_parts: another source, all frames of which are the test.
        anchor: published figures for the same source, with their conditions.
        views: end of a part's name -> the view of several in a picture that it belongs to.
    """

    what: str
    source: str | None
    split: Callable[[list[str], int], dict[str, str]] | None = None
    folds: int = 1
    seeds: int = 2
    parts: Mapping[str, str] | None = None
    pairs: tuple[tuple[int, int], ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    test_source: str | None = None
    test_parts: Mapping[str, str] | None = None
    anchor: str = ""
    views: Mapping[str, str] = field(default_factory=dict)


def _fifths(frames: list[str], fold: int) -> dict[str, str]:
    """Every fifth frame of a fixed shuffle is the test, six of the others choose the weights."""
    order = [frames[i] for i in np.random.default_rng(0).permutation(len(frames))]
    split = {name: "test" if place % 5 == fold else "train" for place, name in enumerate(order)}
    rest = [name for name in order if split[name] == "train"]
    return split | dict.fromkeys(rest[:6], "val")


def _by_film(frames: list[str], fold: int) -> dict[str, str]:
    """One film is the test, the next one chooses the weights, the others train."""
    films = sorted({name.rpartition("/")[0] for name in frames})
    role = {films[fold]: "test", films[(fold + 1) % len(films)]: "val"}
    return {name: role.get(name.rpartition("/")[0], "train") for name in frames}


def _blocks_of_film(frames: list[str], fold: int) -> dict[str, str]:
    """One film in time: 88 % trains, 6 % chooses the weights, the last 6 % is the test."""
    first, last = round(0.88 * len(frames)), round(0.94 * len(frames))
    roles = ["train"] * first + ["val"] * (last - first) + ["test"] * (len(frames) - last)
    return dict(zip(frames, roles, strict=True))


_HOMECAGE = {"snout": "snout", "left-ear": "leftear", "right-ear": "rightear"}
_HOMECAGE |= {"tailbase": "tailbase"}
SETS = {
    "openfield": DataSet(
        "black mouse from above, 116 frames of one film, 4 parts; five folds",
        "openfield",
        _fifths,
        folds=5,
        seeds=3,
        anchor="DeepLabCut, ResNet-50, whole frames, other random splits: mean 2.81 px at 15,000 "
        "steps, 2.65 to 2.97 at 50,000, 1.77 to 2.36 at 100,000 on a GPU; RMSE of two human "
        "annotators about 2.7 px",
    ),
    "mirror_mouse": DataSet(
        "mouse on a wheel, side and bottom view, 90 frames, 17 parts",
        "mirror_mouse",
        seeds=3,
        pairs=((0, 3), (1, 2), (8, 11), (9, 10)),
        anchor="Lightning Pose, ResNet-50, 100 training frames, other mice as test: mean 6.40 to "
        "7.11 px",
        views={"_top": "from the side", "_bot": "in the mirror, from below"},
    ),
    "homecage": DataSet(
        "black mouse in its home cage, infrared, three films, 5 parts; each film tests once",
        "homecage",
        _by_film,
        folds=3,
        parts=_HOMECAGE | {"tailtip": "tailtip"},
        anchor="none published",
    ),
    "reaching": DataSet(
        "hand of a mouse at a joystick, 55 frames, 5 parts; test at another scale",
        "reaching",
        anchor="none published for these frames",
    ),
    "flies_pair": DataSet(
        "two courting flies that touch, one film, 13 parts; its end tests",
        "flies_pair/clip.slp",
        _blocks_of_film,
        pairs=((3, 4), (5, 6), (7, 8), (9, 10), (11, 12)),
        anchor="SLEAP, data of this family: below 2.8 px for 95 % of parts",
    ),
    "rendered": DataSet("two rendered mice, 150 frames, 7 parts", None),
    "shift": DataSet(
        "trained on openfield, tested on homecage's four shared parts",
        "openfield",
        test_source="homecage",
        test_parts=_HOMECAGE,
    ),
}

RENDERED = {"train": 100, "val": 10, "test": 40}
"""Frames of the rendered mice, of two animals each."""


def prepare(name: str, fold: int, data: Path, work: Path) -> tuple[Path, dict[str, Any]]:
    """Records of one fold of a set, and the configuration that belongs to them.

    Args:
        data: folder of the sources.
        work: where records go; those that are there are taken.

    Returns:
        The folder of the records, and the keys DATA and PARTS.
    """
    one = SETS[name]
    folder = work / f"{name}-{fold}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _rendered(folder) if one.source is None else _converted(one, fold, data, folder)
        (folder / "ready").touch()
    written = yaml.safe_load((folder / "config.yaml").read_text())["PARTS"]
    parts = {key: written[key] for key in ("NUM_PARTS", "NAMES", "LEFT_RIGHT_PAIRS")}
    if one.pairs is not None:
        parts["LEFT_RIGHT_PAIRS"] = [list(pair) for pair in one.pairs]
    splits = ("train", "val", "test")
    data_keys = {split.upper(): str(folder / f"{split}_dataset-*") for split in splits}
    values: dict[str, Any] = {"DATA": data_keys, "PARTS": parts}
    if one.test_source is not None:
        values["DATA"]["TEST"] = str(folder / "other" / "*_dataset-*")
    return folder, values


def _rendered(folder: Path) -> None:
    write_dataset(folder, seed=0, frames=RENDERED)
    shutil.copy(find_config("small"), folder / "config.yaml")


def _converted(one: DataSet, fold: int, data: Path, folder: Path) -> None:
    assert one.source is not None
    source = data / one.source
    options = dict(one.options) | ({"parts": one.parts} if one.parts else {})
    own = source / "splits.json"
    if one.split is None and own.exists():
        folder.mkdir(parents=True)
        shutil.copy(own, folder / "splits.json")
    fasthg.convert(source, folder, **options)
    if one.split is not None:
        path = folder / "splits.json"
        there = json.loads(path.read_text())
        there["frames"] = one.split(sorted(there["frames"]), fold)
        there["groups"] = {}
        there["by"] = "frame"
        path.write_text(json.dumps(there))
        fasthg.convert(source, folder, split_by="frame", **options)
    if one.test_source is not None:
        other = folder / "other"
        fasthg.convert(data / one.test_source, other, parts=one.test_parts)

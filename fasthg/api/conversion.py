"""Conversion from Python and from `fasthg init`: whatever the labels are, records come of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fasthg.data.convert import coco, dlc, mars, slp, yolo
from fasthg.data.convert.names import parse_parts
from fasthg.data.convert.recognise import Found, recognise
from fasthg.data.convert.report import Report
from fasthg.data.convert.splits import parse_fractions
from fasthg.errors import ConfigError

_OWN = {
    "images": ("--images", ("coco", "slp")),
    "categories": ("--category", ("coco",)),
    "predictions": ("--predictions", ("coco", "slp")),
    "pose_model": ("--pose-model", ("mars",)),
}
"""Options that some converters alone have: of the command line, and of which converters."""


def convert(
    source: str | Path,
    folder: str | Path | None = None,
    /,
    *,
    split: Sequence[float] | str | None = None,
    split_by: Literal["frame", "video", "session", "block"] | None = None,
    session_pattern: str | None = None,
    seed: int = 0,
    parts: Mapping[str, str] | Sequence[str] | str | None = None,
    boxes: Literal["whole"] | None = None,
    skip_missing: bool = False,
    replace: bool = False,
    exif: Literal["shown", "stored"] | None = None,
    images: str | Path | None = None,
    categories: Sequence[str] | None = None,
    predictions: bool = False,
    pose_model: str | None = None,
) -> Report:
    """Make records and a ready config.yaml from labels; then `train(folder)`.

    Args:
        source: a project of DeepLabCut, Lightning Pose or MARS, SLEAP's .slp, COCO's .json, or a
            data set of YOLO pose.
        folder: where the records go; default: `SOURCE-fasthg` in the current directory.
        split: shares of training, validation and test, which sum to 1, also as "0.8/0.1/0.1";
            default: those before in the folder, or 0.85, 0.05, 0.1. A frame that the folder has
            keeps its split.
        split_by: what stays together in one split; "block" cuts each video into pieces of time.
        session_pattern: a regular expression that finds the session in a video's name.
        seed: decides which frame goes to which split.
        parts: the parts to write, in this order; or a mapping from own names to those written, also
            as "tail=tailbase,nose".
        boxes: "whole": the frame is the box of its one animal.
        skip_missing: leave out frames whose image is not there.
        replace: remove all other records of the folder, instead of keeping other sources'.
        exif: whether labels are of images as EXIF turns them, or as stored.
        images: the folder of the images or videos (COCO, SLEAP).
        categories: those to convert (COCO).
        predictions: also what a model wrote and nobody corrected (COCO, SLEAP).
        pose_model: of a MARS project with several.

    Returns:
        Counts, parts, pairs, the files written, and `lines()` for a person.

    Raises:
        ConfigError: the labels are of no known kind or of several, or an option does not fit them.
        DataError: the labels or images cannot be used.
        EnvironmentFault: a package is missing.
    """
    if isinstance(split, str):
        split = parse_fractions(split)
    if isinstance(parts, str):
        parts = parse_parts(parts)
    chosen = {name: name for name in parts} if isinstance(parts, Sequence) else parts
    options = {
        "fractions": split,
        "split_by": split_by,
        "session_pattern": session_pattern,
        "seed": seed,
        "parts": chosen,
        "boxes": boxes,
        "skip_missing": skip_missing,
        "replace": replace,
        "exif": exif,
    }
    own = {
        "images": None if images is None else Path(images),
        "categories": [categories] if isinstance(categories, str) else categories,
        "predictions": predictions,
        "pose_model": pose_model,
    }
    found = recognise(Path(source))
    return convert_found(found, folder_of(Path(source), folder), options, own)


def folder_of(source: Path, folder: str | Path | None) -> Path:
    """Where records of a source go by default."""
    if folder is not None:
        return Path(folder)
    path = source.resolve()
    if path.is_file() and path.suffix in (".yaml", ".yml", ".csv", ".h5"):
        path = path.parent  # config.yaml, data.yaml, CollectedData.csv: their folder has the name
    name = path.name.partition(".")[0] if path.is_file() else path.name
    return Path(f"{name}-fasthg")


def convert_found(
    found: Found, folder: Path, options: Mapping[str, Any], own: Mapping[str, Any]
) -> Report:
    """`convert` of labels whose kind is known.

    Args:
        options: those that all converters share, as their arguments.
        own: those of some converters; None, False or nothing where not given.
    """
    given = {name: value for name, value in own.items() if value}
    for name in given:
        option, kinds = _OWN[name]
        if found.kind not in kinds:
            place = found.paths[0]
            raise ConfigError(f"{option}: has no meaning for {found.what} ({place}); leave it out")
    how: dict[str, Any] = {**options, **given}
    if found.kind == "coco":
        return coco.convert([coco.Source.parse(path) for path in found.paths], folder, **how)
    path = Path(found.paths[0])
    if found.kind == "slp":
        return slp.convert(path, folder, videos=how.pop("images", None), **how)
    converter = {"dlc": dlc, "mars": mars, "yolo": yolo}[found.kind]
    return converter.convert(path, folder, **how)

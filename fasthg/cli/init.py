"""`fasthg init`: labels of any known kind to records and a ready configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fasthg.cli.common import AsJson
from fasthg.cli.convert import (
    Categories,
    PoseModel,
    Predictions,
    print_report,
    shared_options,
)
from fasthg.errors import ConfigError

if TYPE_CHECKING:
    from fasthg.data.convert.recognise import Found
    from fasthg.data.convert.report import Report

_OWN = {
    "images": ("--images", ("coco", "slp")),
    "categories": ("--category", ("coco",)),
    "predictions": ("--predictions", ("slp",)),
    "pose_model": ("--pose-model", ("mars",)),
}
"""Options that some converters alone have, and which."""


@shared_options
def init(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="DeepLabCut, Lightning Pose or MARS project, SLEAP .slp, COCO .json, YOLO pose "
            "data set.",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Where records go; default: SOURCE-fasthg here."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FOLDER", help="Folder of the images, or of the videos."),
    ] = None,
    category: Categories = None,
    predictions: Predictions = False,
    pose_model: PoseModel = None,
    *,
    how: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Make records and a configuration from labels; then: fasthg train FOLDER."""
    from fasthg.data.convert.recognise import recognise
    from fasthg.runtime.signals import unwinding

    found = recognise(source)
    own = {
        "images": images,
        "categories": category,
        "predictions": predictions,
        "pose_model": pose_model,
    }
    own = {name: value for name, value in own.items() if value}
    for name in own:
        option, kinds = _OWN[name]
        if found.kind not in kinds:
            raise ConfigError(f"{option}: has no meaning for {found.what} ({source}); leave it out")
    out = folder or Path(f"{_name(source)}-fasthg")
    if not as_json:
        print(f"{source}: {found.what}, to {out}")
    with unwinding():
        report = _convert(found, out, own | how)
    print_report(report, as_json)


def _name(source: Path) -> str:
    """The name of a project's folder or of a file."""
    path = source.resolve()
    return path.name.partition(".")[0] if path.is_file() else path.name


def _convert(found: Found, out: Path, how: dict[str, Any]) -> Report:
    path = Path(found.paths[0])
    if found.kind == "mars":
        from fasthg.data.convert import mars

        return mars.convert(path, out, **how)
    if found.kind == "dlc":
        from fasthg.data.convert import dlc

        return dlc.convert(path, out, **how)
    if found.kind == "slp":
        from fasthg.data.convert import slp

        return slp.convert(path, out, videos=how.pop("images", None), **how)
    if found.kind == "yolo":
        from fasthg.data.convert import yolo

        return yolo.convert(path, out, **how)
    from fasthg.data.convert import coco

    return coco.convert([coco.Source.parse(each) for each in found.paths], out, **how)

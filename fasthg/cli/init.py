"""`fasthg init`: labels of any known kind to records and a ready configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fasthg.cli.common import AsJson
from fasthg.cli.convert import (
    Categories,
    PoseModel,
    Predictions,
    print_report,
    shared_options,
)


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
    from fasthg.api.conversion import convert_found, folder_of
    from fasthg.data.convert.recognise import recognise
    from fasthg.runtime.signals import unwinding

    found, out = recognise(source), folder_of(source, folder)
    own = {
        "images": images,
        "categories": category,
        "predictions": predictions,
        "pose_model": pose_model,
    }
    if not as_json:
        print(f"{source}: {found.what}, to {out}")
    with unwinding():
        report = convert_found(found, out, how, own)
    print_report(report, as_json)

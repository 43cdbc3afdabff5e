"""`fasthg predict`: keypoints of new images and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import console
from fasthg.errors import ConfigError


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT... [KEY=VALUE]...",
            help="Images, folders of images, videos; overrides, such as BATCH_SIZE=32.",
        ),
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(help="csv, mars, coco, dlc_h5, sleap_h5; may be given several times."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Default: beside the input."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Boxes: csv frame,x1,y1,x2,y2[,animal], MARS or COCO."),
    ] = None,
    track: Annotated[
        bool,
        typer.Option(
            "--track", help="One animal: look around where it was before; --boxes may start it."
        ),
    ] = False,
    confidence: Annotated[
        float, typer.Option(min=0.0, help="Least score of a part that is tracked, drawn solid.")
    ] = 0.3,
    margin: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Growth of a tracked box, share of the image."),
    ] = None,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw the keypoints into a video or images.")
    ] = False,
    flip_test: Annotated[
        bool, typer.Option("--flip-test", help="Average with the mirrored image.")
    ] = False,
    decode: Annotated[
        str | None, typer.Option(help="dark (sub-pixel), quarter, argmax, plateau.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on behind the rows of an interrupted run.")
    ] = False,
) -> None:
    """Find the keypoints of new images and videos with a run's best weights.

    Without --boxes or --track the whole frame is one animal's box.
    """
    from fasthg.data.boxes import GROWTH
    from fasthg.predict.job import Options
    from fasthg.predict.several import predict_all
    from fasthg.run import RunFolder

    overrides = [text for text in inputs if "=" in text and not Path(text).exists()]
    paths = [Path(text) for text in inputs if text not in overrides]
    if not paths:
        raise ConfigError("no input; give images, folders of images or videos")
    if flip_test:
        overrides.append("FLIP_TEST=true")
    if decode is not None:
        overrides.append(f"DECODE={decode}")
    options = Options(
        formats=tuple(dict.fromkeys(to or ["csv"])),
        folder=out,
        boxes=boxes,
        track=track,
        confidence=confidence,
        margin=GROWTH if margin is None else margin,
        overlay=overlay,
        resume=resume,
    )
    signal = predict_all(RunFolder.open(run), paths, overrides, options, console())
    if signal is not None:
        raise typer.Exit(128 + signal)

"""`fasthg predict`: keypoints of new images and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import configure, console
from fasthg.errors import ConfigError
from fasthg.runtime.output import lasting_output


@lasting_output()
def predict(
    run: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]",
            help="Run folder or .safetensors file; may be left out in a MARS project: its newest.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT... [KEY=VALUE]...",
            help="Images, videos, folders of them; overrides, such as BATCH_SIZE=32.",
        ),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(help="csv, mars, coco, dlc_h5, sleap_h5, netcdf; may be given several times."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Default: the folder of the input."),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Boxes of all frames or some: csv frame,x1,y1,x2,y2[,animal], MARS or COCO; or: "
            "whole.",
        ),
    ] = None,
    animals: Annotated[
        int | None,
        typer.Option(min=1, help="How many animals at most; default: as in training frames."),
    ] = None,
    confidence: Annotated[
        float, typer.Option(min=0.0, help="Least score of a part that is drawn solid.")
    ] = 0.3,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw the keypoints into a video or images.")
    ] = False,
    flip_test: Annotated[
        bool, typer.Option("--flip-test", help="Average with the mirrored image.")
    ] = False,
    decode: Annotated[
        str | None, typer.Option(help="dark (sub-pixel), quarter, argmax, plateau.")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Take the folders in a folder too.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the rows of an interrupted run.")
    ] = False,
) -> None:
    """Find the keypoints of new images and videos with a run's best weights, or a file's.

    The run's locator finds the animals; in films they are followed from frame to frame.
    """
    from fasthg.inference.video.predict import predict_all
    from fasthg.inference.video.predict_source import Options
    from fasthg.interop.mars_project import find_project, newest_run
    from fasthg.runs.run_folder import RunFolder
    from fasthg.runs.weights import SUFFIX, trained

    texts = list(inputs or [])
    # In a project, what is there and no run is the first input.
    first = RunFolder(Path(run))
    left_out = not first.resolved.is_file() and find_project(Path()) is not None
    left_out = left_out and (Path(run).exists() or "=" in run) and not run.endswith(SUFFIX)
    if left_out:
        texts.insert(0, run)
    overrides = [text for text in texts if "=" in text and not Path(text).exists()]
    paths = [Path(text) for text in texts if text not in overrides]
    if not paths:
        raise ConfigError("no input; give images, videos or folders of them")
    screen = console()
    if left_out:
        newest = newest_run(overrides, Path())
        screen.print(f"run      {newest.path}", markup=False, highlight=False, soft_wrap=True)
    folder = newest if left_out else trained(Path(run))
    if flip_test:
        overrides.append("FLIP_TEST=true")
    if decode is not None:
        overrides.append(f"DECODE={decode}")
    options = Options(
        formats=tuple(dict.fromkeys(to or ["csv"])),
        folder=out,
        boxes=boxes,
        animals=animals,
        confidence=confidence,
        overlay=overlay,
        resume=resume,
        recursive=recursive,
    )
    configure(folder.config(overrides))
    signal = predict_all(folder, paths, overrides, options, screen)
    if signal is not None:
        raise typer.Exit(128 + signal)

"""`fasthg predict`: keypoints of new images and videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasthg.cli.common import configure, console
from fasthg.errors import ConfigError
from fasthg.runtime.output import lasting_output

if TYPE_CHECKING:
    from fasthg.runs.run_folder import RunFolder
    from fasthg.runs.weights import WeightsFile


@lasting_output()
def predict(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="Run folder or .safetensors file; left out: newest of runs/ or the MARS project.",
            show_default=False,
        ),
    ] = None,
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
    trail: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Draw where each animal was in the N frames before."),
    ] = 0,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Show the least sure frames on one picture.")
    ] = False,
    flip_test: Annotated[
        bool, typer.Option("--flip-test", help="Average with the mirrored image.")
    ] = False,
    decode: Annotated[
        str | None, typer.Option(help="dark (sub-pixel), quarter, argmax, plateau.")
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="median:5|savgol:7:2",
            help="Smooth films over so many frames, into files of their own: film.filtered.*",
        ),
    ] = None,
    filter_score: Annotated[
        float | None,
        typer.Option(min=0.0, help="There, leave out points of a lower score first."),
    ] = None,
    fill: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="There, fill gaps of at most N frames, linearly."),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            metavar="A:B", help="Only frames A to B-1 of each film, from 0; either may be left out."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Predict also what is done, in place of leaving it out.")
    ] = False,
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
    from fasthg.runs.run_folder import WEIGHTS_SUFFIX, RunFolder

    if run is None:
        raise ConfigError("no RUN and no input; for example: fasthg predict runs/mouse film.mp4")
    texts = list(inputs or [])
    # What is there and no run is the first input, and RUN was left out.
    left_out = not RunFolder(Path(run)).resolved.is_file() and not run.endswith(WEIGHTS_SUFFIX)
    left_out = left_out and (Path(run).exists() or "=" in run)
    if left_out:
        texts.insert(0, run)
    overrides = [text for text in texts if "=" in text and not Path(text).exists()]
    paths = [Path(text) for text in texts if text not in overrides]
    if not paths and not left_out and not Path(run).exists():
        raise ConfigError(f"no input, and {run} is not there; give RUN, then images or videos")
    if not paths:
        raise ConfigError("no input; give images, videos or folders of them")
    screen = console()
    folder: RunFolder | WeightsFile | None = None
    if left_out:
        folder = _newest(overrides, run)
    elif not run.endswith(WEIGHTS_SUFFIX):
        folder = RunFolder.open(Path(run))
    # These take seconds, which a mistake in the arguments need not wait for.
    from fasthg.inference.video.filtering import Filter
    from fasthg.inference.video.frame import WHOLE_FILM, FrameRange
    from fasthg.inference.video.predict import predict_all
    from fasthg.inference.video.predict_source import Options
    from fasthg.runs.weights import trained

    folder = folder or trained(Path(run))
    if left_out:
        screen.print(f"run      {folder.path}", markup=False, highlight=False, soft_wrap=True)
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
        trail=trail,
        sheet=sheet,
        resume=resume,
        frames=WHOLE_FILM if frames is None else FrameRange.parse(frames),
        filter=Filter.parse(filter_, filter_score, fill),
        again=again,
        recursive=recursive,
    )
    configure(folder.config(overrides))
    signal = predict_all(folder, paths, overrides, options, screen)
    if signal is not None:
        raise typer.Exit(128 + signal)


def _newest(overrides: list[str], first: str) -> RunFolder:
    """The newest run. Raises ConfigError that names the argument `first`, where there is none."""
    from fasthg.interop.mars_project import newest_run

    try:
        return newest_run(overrides, Path())
    except ConfigError as error:
        raise ConfigError(f"{first} is not a run folder; give RUN first ({error})") from None

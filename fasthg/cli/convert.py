"""`fasthg data convert`: annotations of other tools to TFRecords and back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fasthg.cli.common import AsJson, ConfigPath, Overrides, print_json, read_config
from fasthg.errors import ConfigError

app = typer.Typer(help="Convert annotations of other tools, and back.", no_args_is_help=True)


@app.callback()
def _unwinding(context: typer.Context) -> None:
    from fasthg.runtime.signals import unwinding

    context.with_resource(unwinding())


Out = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the TFRecords go.")]
Images = Annotated[
    Path | None, typer.Option("--images", metavar="FOLDER", help="Folder of the images.")
]
Categories = Annotated[
    list[str] | None,
    typer.Option("--category", help="Category to convert; may be given several times."),
]
Predictions = Annotated[
    bool, typer.Option("--predictions", help="Convert uncorrected predictions, too.")
]
PoseModel = Annotated[
    str | None, typer.Option(help="Model of project_config.yaml; needed where it has several.")
]
OnlySplits = Annotated[
    list[str] | None,
    typer.Option("--split", help="train, val or test; may be given several times. Default: all."),
]


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all converters share, before the command's --json; the command gets
    them as `how`, the keyword arguments of a converter."""
    own = inspect.signature(command, eval_str=True).parameters
    shared = inspect.signature(_how, eval_str=True).parameters
    last = [name for name in own if name == "as_json"]
    parameters = [own[name] for name in own if name not in (*last, "how")]
    parameters += [*shared.values(), *(own[name] for name in last)]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        how = _how(**{name: values.pop(name) for name in shared})
        command(**values, how=how)

    # typer reads both.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _how(
    seed: Annotated[
        int, typer.Option("--seed", help="Decides which frame goes to which split.")
    ] = 0,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="TRAIN/VAL/TEST",
            help="Shares of the splits; default: as before in FOLDER, or 0.85/0.05/0.1. Frames "
            "that FOLDER has keep their split.",
        ),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            "--split-by",
            metavar="frame|video|session|block",
            help="What stays together in one split; block: each video is cut into a piece of time "
            "for each split, for a single film. Default: as before in FOLDER, or frame.",
        ),
    ] = None,
    session_pattern: Annotated[
        str | None,
        typer.Option(
            "--session-pattern",
            metavar="REGEX",
            help="Finds the session in a video's name; default: less its last _ or - token.",
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts", metavar="OLD=NEW,KEPT,...", help="Parts to write, in this order, renamed."
        ),
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            "--boxes",
            metavar="whole",
            help="whole: the frame is the box of its one animal; default: boxes of the source, or "
            "around the parts.",
        ),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Skip frames without image.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove all other records; default: keep those.")
    ] = False,
    exif: Annotated[
        str | None,
        typer.Option(
            "--exif",
            metavar="shown|stored",
            help="Whether labels are of images as EXIF turns them or as stored; default: as known.",
        ),
    ] = None,
) -> dict[str, Any]:
    """The options that all converters share, as their arguments."""
    from fasthg.data.convert.names import parse_parts
    from fasthg.data.convert.splits import parse_fractions

    return {
        "seed": seed,
        "fractions": parse_fractions(split),
        "split_by": split_by,
        "session_pattern": session_pattern,
        "parts": parse_parts(parts),
        "boxes": boxes,
        "skip_missing": skip_missing,
        "replace": replace,
        "exif": exif,
    }


@app.command("dlc")
@shared_options
def convert_dlc(
    project: Annotated[
        Path,
        typer.Argument(
            metavar="PROJECT", help="Folder with config.yaml or CollectedData.csv, or a table."
        ),
    ],
    out: Out,
    prefer_h5: Annotated[
        bool | None,
        typer.Option(
            "--h5/--csv", help="Which to read of two tables; default: .h5, as DeepLabCut."
        ),
    ] = None,
    *,
    how: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Convert a DeepLabCut or Lightning Pose project, single- or multi-animal."""
    from fasthg.data.convert import dlc

    print_report(dlc.convert(project, out, prefer_h5=prefer_h5, **how), as_json)


@app.command("mars")
@shared_options
def convert_mars(
    project: Annotated[
        Path, typer.Argument(metavar="PROJECT", help="Folder with project_config.yaml.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Default: the project's own place.")
    ] = None,
    pose_model: PoseModel = None,
    *,
    how: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Convert a MARS project: median over workers, left and right swaps repaired."""
    from fasthg.data.convert import mars

    print_report(mars.convert(project, out, pose_model=pose_model, **how), as_json)


@app.command("coco")
@shared_options
def convert_coco(
    annotations: Annotated[
        list[str],
        typer.Argument(metavar="[SPLIT=]ANNOTATIONS.json...", help="One, or train=... val=..."),
    ],
    out: Out,
    images: Images = None,
    category: Categories = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Convert uncorrected machine labels, too.")
    ] = False,
    *,
    how: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Convert COCO keypoint annotations; boxes, areas and visibility are kept."""
    from fasthg.data.convert import coco

    sources = [coco.Source.parse(text) for text in annotations]
    report = coco.convert(
        *(sources, out), images=images, categories=category or (), predictions=predictions, **how
    )
    print_report(report, as_json)


@app.command("slp")
@shared_options
def convert_slp(
    labels: Annotated[Path, typer.Argument(metavar="FILE", help="A .slp or .pkg.slp file.")],
    out: Out,
    videos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the videos or images.")
    ] = None,
    predictions: Predictions = False,
    *,
    how: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Convert SLEAP labels, .slp or .pkg.slp; needs the package sleap-io."""
    from fasthg.data.convert import slp

    report = slp.convert(labels, out, videos=videos, predictions=predictions, **how)
    print_report(report, as_json)


@app.command("yolo")
@shared_options
def convert_yolo(
    source: Annotated[
        Path, typer.Argument(metavar="DATA.yaml", help="Data YAML with kpt_shape, or its folder.")
    ],
    out: Out,
    *,
    how: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Convert labels of a YOLO pose model: images, text files and a data YAML."""
    from fasthg.data.convert import yolo

    print_report(yolo.convert(source, out, **how), as_json)


@app.command("to-coco")
def export_coco(
    config: ConfigPath,
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="Images go to its folder.")],
    overrides: Overrides = None,
    splits: OnlySplits = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Write the images, too.")
    ] = True,
    category: Annotated[str, typer.Option(help="Name of the animals' category.")] = "animal",
    as_json: AsJson = False,
) -> None:
    """Write the data of a configuration as COCO keypoint annotations."""
    from fasthg.data.convert import to_coco

    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; give the name of a JSON file")
    settings = read_config(config, overrides)
    report = to_coco.export(settings, out, splits=splits or (), images=images, category=category)
    print_report(report, as_json)


@app.command("to-dlc")
def export_dlc(
    config: ConfigPath,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="The new project's folder.")],
    overrides: Overrides = None,
    splits: OnlySplits = None,
    scorer: Annotated[str, typer.Option(help="Who labelled, for DeepLabCut.")] = "fasthg",
    as_json: AsJson = False,
) -> None:
    """Write the data of a configuration as a DeepLabCut project."""
    from fasthg.data.convert import to_dlc

    settings = read_config(config, overrides)
    print_report(to_dlc.export(settings, out, splits=splits or (), scorer=scorer), as_json)


def print_report(report: Any, as_json: bool) -> None:
    """Print what a conversion tells, in words or as JSON."""
    if as_json:
        print_json(asdict(report))
        return
    for line in report.lines():
        print(line)

"""`fasthg data convert`: annotations of other tools to TFRecords and back."""

from __future__ import annotations

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
SplitSeed = Annotated[int, typer.Option("--seed", help="Decides which frame goes to which split.")]
SplitBy = Annotated[
    str | None,
    typer.Option(
        "--split-by",
        metavar="frame|video|session",
        help="What stays together in one split; default: as before in FOLDER, or frame.",
    ),
]
SessionPattern = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Finds the session in a video's name; default: the name less its last _ or - token.",
    ),
]
PartNames = Annotated[
    str | None,
    typer.Option(
        "--parts", metavar="OLD=NEW,KEPT,...", help="Parts to write, in this order, renamed."
    ),
]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Skip frames without image.")]
Exif = Annotated[
    str | None,
    typer.Option(
        "--exif",
        metavar="shown|stored",
        help="Whether labels are of images as EXIF turns them or as stored; default: as known.",
    ),
]
Replace = Annotated[
    bool,
    typer.Option("--replace", help="Remove all other records; default: keep other sources'."),
]
OnlySplits = Annotated[
    list[str] | None,
    typer.Option("--split", help="train, val or test; may be given several times. Default: all."),
]


def _how(
    seed: int,
    split_by: str | None,
    session_pattern: str | None,
    parts: str | None,
    skip: bool,
    replace: bool,
    exif: str | None,
) -> dict[str, Any]:
    """The options that all converters share, as their arguments."""
    from fasthg.data.convert.names import parse_parts

    return {
        "seed": seed,
        "split_by": split_by,
        "session_pattern": session_pattern,
        "parts": parse_parts(parts),
        "skip_missing": skip,
        "replace": replace,
        "exif": exif,
    }


@app.command("dlc")
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
    seed: SplitSeed = 0,
    split_by: SplitBy = None,
    session_pattern: SessionPattern = None,
    parts: PartNames = None,
    skip_missing: SkipMissing = False,
    replace: Replace = False,
    exif: Exif = None,
    as_json: AsJson = False,
) -> None:
    """Convert a DeepLabCut or Lightning Pose project, single- or multi-animal."""
    from fasthg.data.convert import dlc

    how = _how(seed, split_by, session_pattern, parts, skip_missing, replace, exif)
    _print_report(dlc.convert(project, out, prefer_h5=prefer_h5, **how), as_json)


@app.command("mars")
def convert_mars(
    project: Annotated[
        Path, typer.Argument(metavar="PROJECT", help="Folder with project_config.yaml.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Default: the project's own place.")
    ] = None,
    pose_model: Annotated[
        str | None, typer.Option(help="Model of project_config.yaml; needed where it has several.")
    ] = None,
    seed: SplitSeed = 0,
    split_by: SplitBy = None,
    session_pattern: SessionPattern = None,
    parts: PartNames = None,
    skip_missing: SkipMissing = False,
    replace: Replace = False,
    exif: Exif = None,
    as_json: AsJson = False,
) -> None:
    """Convert a MARS project: median over workers, left and right swaps repaired."""
    from fasthg.data.convert import mars

    how = _how(seed, split_by, session_pattern, parts, skip_missing, replace, exif)
    _print_report(mars.convert(project, out, pose_model=pose_model, **how), as_json)


@app.command("coco")
def convert_coco(
    annotations: Annotated[
        list[str],
        typer.Argument(metavar="[SPLIT=]ANNOTATIONS.json...", help="One, or train=... val=..."),
    ],
    out: Out,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the images.")
    ] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Category to convert; may be given several times.")
    ] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Convert uncorrected machine labels, too.")
    ] = False,
    seed: SplitSeed = 0,
    split_by: SplitBy = None,
    session_pattern: SessionPattern = None,
    parts: PartNames = None,
    skip_missing: SkipMissing = False,
    replace: Replace = False,
    exif: Exif = None,
    as_json: AsJson = False,
) -> None:
    """Convert COCO keypoint annotations; boxes, areas and visibility are kept."""
    from fasthg.data.convert import coco

    how = _how(seed, split_by, session_pattern, parts, skip_missing, replace, exif)
    sources = [coco.Source.parse(text) for text in annotations]
    report = coco.convert(
        *(sources, out), images=images, categories=category or (), predictions=predictions, **how
    )
    _print_report(report, as_json)


@app.command("slp")
def convert_slp(
    labels: Annotated[Path, typer.Argument(metavar="FILE", help="A .slp or .pkg.slp file.")],
    out: Out,
    videos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the videos or images.")
    ] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Convert uncorrected predictions, too.")
    ] = False,
    seed: SplitSeed = 0,
    split_by: SplitBy = None,
    session_pattern: SessionPattern = None,
    parts: PartNames = None,
    skip_missing: SkipMissing = False,
    replace: Replace = False,
    exif: Exif = None,
    as_json: AsJson = False,
) -> None:
    """Convert SLEAP labels, .slp or .pkg.slp; needs the package sleap-io."""
    from fasthg.data.convert import slp

    how = _how(seed, split_by, session_pattern, parts, skip_missing, replace, exif)
    report = slp.convert(labels, out, videos=videos, predictions=predictions, **how)
    _print_report(report, as_json)


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
    _print_report(report, as_json)


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
    _print_report(to_dlc.export(settings, out, splits=splits or (), scorer=scorer), as_json)


def _print_report(report: Any, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
        return
    for line in report.lines():
        print(line)

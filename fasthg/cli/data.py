"""`fasthg data`: make, convert and check data sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fasthg.cli.common import AsJson, ConfigPath, Overrides, print_json
from fasthg.errors import ConfigError

app = typer.Typer(help="Make, convert and check data sets.", no_args_is_help=True)
convert_app = typer.Typer(help="Convert annotations of other tools.", no_args_is_help=True)
app.add_typer(convert_app, name="convert")


@app.command("synth")
def synth(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.")],
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
    train_frames: Annotated[int, typer.Option("--train", min=0, help="Training frames.")] = 400,
    val_frames: Annotated[int, typer.Option("--val", min=0, help="Validation frames.")] = 40,
    test_frames: Annotated[int, typer.Option("--test", min=0, help="Test frames.")] = 60,
    width: Annotated[int, typer.Option(min=128, help="Frame width, px.")] = 512,
    height: Annotated[int, typer.Option(min=128, help="Frame height, px.")] = 384,
) -> None:
    """Render a data set in MARS's format: two mice with 7 parts in a cage."""
    from fasthg.data.synthetic import write_dataset

    frames = {"train": train_frames, "val": val_frames, "test": test_frames}
    frames = {split: count for split, count in frames.items() if count}
    for path in write_dataset(out, seed=seed, frames=frames, size=(width, height)):
        print(path)


SplitSeed = Annotated[int, typer.Option("--seed", help="Decides which frame goes to which split.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Skip frames without image.")]


@convert_app.command("dlc")
def convert_dlc(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder with config.yaml.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the TFRecords go.")],
    seed: SplitSeed = 0,
    prefer_h5: Annotated[
        bool, typer.Option("--h5", help="Read .h5 where .csv is there too.")
    ] = False,
    skip_missing: SkipMissing = False,
    as_json: AsJson = False,
) -> None:
    """Convert a DeepLabCut project, single- or multi-animal."""
    from fasthg.data.convert import dlc

    _print_report(
        dlc.convert(project, out, seed=seed, prefer_h5=prefer_h5, skip_missing=skip_missing),
        as_json,
    )


@convert_app.command("mars")
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
    skip_missing: SkipMissing = False,
    as_json: AsJson = False,
) -> None:
    """Convert a MARS project: median over workers, left and right swaps repaired."""
    from fasthg.data.convert import mars

    _print_report(
        mars.convert(project, out, pose_model=pose_model, seed=seed, skip_missing=skip_missing),
        as_json,
    )


def _print_report(report: Any, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
        return
    for line in report.lines():
        print(line)


@app.command("check")
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image (slower).")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for damaged images and doubtful labels in a configuration's data; exit 1 if any."""
    from fasthg.config import load_config
    from fasthg.data.check import check as examine
    from fasthg.data.convert.images import decode as decoder
    from fasthg.data.index import RecordIndex

    settings = load_config(config, list(overrides or []))
    splits = {s: getattr(settings.DATA, s.upper()) for s in ("train", "val", "test")}
    if not any(splits.values()):
        raise ConfigError(f"{config}: DATA names no split; set DATA.TRAIN to a glob")
    parts = settings.PARTS
    reports = {
        split: examine(
            RecordIndex.build(patterns, parts.NUM_PARTS),
            names=parts.NAMES,
            pairs=parts.LEFT_RIGHT_PAIRS,
            decode=decoder if decode else None,
        )
        for split, patterns in splits.items()
        if patterns
    }
    if as_json:
        print_json({s: asdict(r) for s, r in reports.items()})
    else:
        for split, report in reports.items():
            print(f"{split}:")
            for line in report.lines():
                print(f"  {line}")
    if any(report.problems for report in reports.values()):
        raise typer.Exit(1)

"""The command line. Verbs import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fasthg.errors import ConfigError, FasthgError

# OpenMP's waiting threads spin by default and starve the loader's workers on small machines.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Train and evaluate stacked-hourglass networks for animal pose estimation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
convert_app = typer.Typer(help="Convert annotations of other tools.", no_args_is_help=True)
config_app = typer.Typer(help="Look at and check configurations.", no_args_is_help=True)
data_app = typer.Typer(help="Make, convert and check data sets.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
data_app.add_typer(convert_app, name="convert")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, dotted for sections."),
]
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file in MARS's style.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def _console() -> Console:
    # Tables need their width where the output is a file.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


@app.command()
def train(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="YAML file in MARS's style.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on in this run folder.")
    ] = None,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="Do not evaluate at the end.")] = False,
) -> None:
    """Train a network, then evaluate its best weights.

    With --resume, CONFIG may be left out: the run's own configuration is used.
    """
    from fasthg import evaluate as evaluation
    from fasthg import train as training
    from fasthg.config import load_config
    from fasthg.run import RunFolder

    given = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        given.insert(0, config)
        config = None
    console = _console()
    if config is not None:
        source = Path(config)
        settings = load_config(source, given)
        outcome = training.train(settings, console, source=source, stem=source.stem, resume=resume)
    elif resume is not None:
        settings = RunFolder.open(resume).config(given)
        outcome = training.train(settings, console, resume=resume)
    else:
        raise ConfigError("no CONFIG given; for example: fasthg train configs/demo.yaml")
    if outcome.interrupted:
        console.print(f"stopped at step {outcome.step}; go on with: --resume {outcome.run.path}")
        raise typer.Exit(130)
    if no_eval:
        return
    split = evaluation.default_split(settings)
    if split is not None:
        evaluation.evaluate_run(outcome.run, settings, split, None).print(console)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None, typer.Option(help="TFRecord glob; may be given several times.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test; a name for --data otherwise.")
    ] = None,
    decode: Annotated[
        str | None, typer.Option(help="argmax, quarter, dark, plateau, or all of them: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the best weights of a run; writes metrics, predictions and pictures."""
    from fasthg import evaluate as evaluation
    from fasthg.run import RunFolder

    folder = RunFolder.open(run)
    settings = folder.config(list(overrides or []))
    chosen = split or ("data" if data else evaluation.default_split(settings))
    if chosen is None:
        raise ConfigError(f"{run}: its DATA names no split; give --data GLOB")
    report = evaluation.evaluate_run(folder, settings, chosen, data, decode=decode)
    if as_json:
        _print_json(report.metrics)
    else:
        report.print(_console())


@config_app.command("show")
def config_show(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]")] = None,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print YAML, not a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every key with type, stock value and meaning; with CONFIG, its values."""
    from fasthg.config import describe, dump_config, load_config

    settings = load_config(config, list(overrides or [])) if config else None
    if resolved:
        if settings is None:
            raise ConfigError("--resolved needs a CONFIG")
        print(dump_config(settings), end="")
        return
    rows = describe(settings)
    if as_json:
        _print_json([row.__dict__ for row in rows])
        return
    headings = ["key", "type", "stock value", *(["value"] if settings else []), "meaning"]
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        value = [str(_value(settings, row.key))] if settings else []
        meaning = f"{row.description} (no effect: {row.reason})" if row.reason else row.description
        table.add_row(row.key, row.type, row.default, *value, meaning)
    _console().print(table)


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    return settings


@config_app.command("check")
def config_check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration; lists the keys that have no effect."""
    from fasthg.config import inert_keys, load_config

    settings = load_config(config, list(overrides or []))
    console = _console()
    for key, reason in inert_keys(settings):
        console.print(f"no effect: {key}: {reason}", markup=False, soft_wrap=True)
    console.print(f"{config}: ok", markup=False)


@data_app.command("synth")
def data_synth(
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
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(report), indent=2, default=str))
        return
    for line in report.lines():
        print(line)


@data_app.command("check")
def data_check(
    config: ConfigPath,
    overrides: Overrides = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image (slower).")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for damaged images and doubtful labels in a configuration's data; exit 1 if any."""
    from dataclasses import asdict

    from fasthg.config import load_config
    from fasthg.data.check import check
    from fasthg.data.convert.images import decode as decoder
    from fasthg.data.index import RecordIndex

    settings = load_config(config, list(overrides or []))
    splits = {s: getattr(settings.DATA, s.upper()) for s in ("train", "val", "test")}
    if not any(splits.values()):
        raise ConfigError(f"{config}: DATA names no split; set DATA.TRAIN to a glob")
    parts = settings.PARTS
    reports = {
        split: check(
            RecordIndex.build(patterns, parts.NUM_PARTS),
            names=parts.NAMES,
            pairs=parts.LEFT_RIGHT_PAIRS,
            decode=decoder if decode else None,
        )
        for split, patterns in splits.items()
        if patterns
    }
    if as_json:
        print(json.dumps({s: asdict(r) for s, r in reports.items()}, indent=2, default=str))
    else:
        for split, report in reports.items():
            print(f"{split}:")
            for line in report.lines():
                print(f"  {line}")
    if any(report.problems for report in reports.values()):
        raise typer.Exit(1)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Tell which path every op and loader takes on this machine, and why."""
    from fasthg.environment import describe_environment

    facts = describe_environment()
    if as_json:
        _print_json(facts)
        return
    console = _console()
    table = Table("", "", "", box=None, pad_edge=False, show_header=False)
    table.add_row("fasthg", facts["fasthg"], f"Python {facts['python']}, {facts['platform']}")
    table.add_row("cpus", str(facts["cpus"]), f"torch uses {facts['torch_threads']} threads")
    for gpu in facts["gpus"]:
        capability = gpu["compute_capability"]
        table.add_row("gpu", gpu["name"], f"{capability}, {gpu['memory_gib']} GiB")
    if not facts["gpus"]:
        table.add_row("gpu", "none", "torch finds no CUDA device")
    table.add_row("device", facts["device"], f"precision {facts['precision']}")
    table.add_row("loader", facts["loader"]["path"], facts["loader"]["reason"])
    for op in facts["ops"]:
        table.add_row(f"op {op['op']}, {op['device']}", op["path"], op["reason"])
    for name, version in facts["packages"].items():
        table.add_row("package", name, version or "not installed")
    console.print(table)


def main() -> None:
    """Run the command line; a user's mistake ends in one line, never in a traceback."""
    try:
        app()
    except FasthgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        name = error.filename or "file"
        print(f"error: {name}: {error.strerror}; check the path and its rights", file=sys.stderr)
        sys.exit(1)

"""`fasthg export`: trained networks for other runtimes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasthg.cli.common import AsJson, console, first_argument, print_json
from fasthg.errors import ConfigError

if TYPE_CHECKING:
    from fasthg.runs.run_folder import RunFolder
    from fasthg.runs.weights import WeightsFile


def export(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Run folder or weights file; left out: newest of runs/, or project.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as DECODE=argmax.")
    ] = None,
    to: Annotated[str, typer.Option(help="onnx, pt2 (torch.export) or mars-pb.")] = "",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Default: named and placed as the run."),
    ] = None,
    peaks: Annotated[
        bool, typer.Option("--peaks", help="Also give keypoints in input px, and scores.")
    ] = False,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16.")] = "fp32",
    with_check: Annotated[
        bool,
        typer.Option(
            "--check", help="Compare the file with fasthg on real frames; exit 1 if they differ."
        ),
    ] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(help="TFRecord glob for --check, in place of the run's test or val split."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the best weights of a run as a file for another runtime."""
    from fasthg.interop import export as exporting
    from fasthg.interop.mars_project import newest_run, relocation_overrides
    from fasthg.runs.run_folder import RunFolder
    from fasthg.runs.weights import trained

    if not to:
        raise ConfigError(f"--to: not given; use one of {', '.join(exporting.FORMATS)}")
    run, keys = first_argument(run, overrides)
    source = newest_run(keys, Path()) if run is None else trained(Path(run))
    moves = relocation_overrides(source) if isinstance(source, RunFolder) else []
    if with_check:
        exporting.need_runtime(to)
    network = exporting.open_trained(source, source.config([*moves, *keys]))
    start = time.perf_counter()
    done = exporting.export(network, to, target=out, precision=precision, peaks=peaks)
    located = _locator(source, done.path, to, precision)
    seconds, size = time.perf_counter() - start, done.path.stat().st_size
    comparison = exporting.check(done, network, data) if with_check else None
    if as_json:
        print_json(
            {
                "file": done.path,
                "locator": located,
                "bytes": size,
                "seconds": seconds,
                "weights": network.path,
                "notes": done.notes,
                "check": None if comparison is None else comparison.as_dict(),
            }
        )
    else:
        lines = [f"{done.path}  {size / 1e6:.2f} MB, {precision}, {seconds:.1f} s", *done.notes]
        if located is not None:
            lines.append(f"{located}  the locator, which finds the animals in whole frames")
        if comparison is not None:
            lines += comparison.lines()
        for line in lines:
            console().print(line, markup=False, soft_wrap=True)
    if comparison is not None and not comparison.passed:
        raise typer.Exit(1)


def _locator(source: RunFolder | WeightsFile, beside: Path, to: str, precision: str) -> Path | None:
    """Export a run's locator beside its network; None where there is none, or for MARS, whose
    detector is another network."""
    from fasthg.inference.locator import locator_folder
    from fasthg.interop import export as exporting
    from fasthg.runs.run_folder import RunFolder

    if not isinstance(source, RunFolder) or to == "mars-pb":
        return None
    locator = RunFolder(locator_folder(source.path))
    if not locator.best.exists():
        return None
    network = exporting.open_trained(locator, locator.config())
    target = beside.with_name(f"{beside.stem}.locator{beside.suffix}")
    return exporting.export(network, to, target=target, precision=precision).path

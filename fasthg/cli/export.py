"""`fasthg export`: trained networks for other runtimes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import AsJson, console, first_argument, print_json
from fasthg.errors import ConfigError


def export(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="Run folder or weights file; in a MARS project its newest run."
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
    seconds, size = time.perf_counter() - start, done.path.stat().st_size
    comparison = exporting.check(done, network, data) if with_check else None
    if as_json:
        print_json(
            {
                "file": done.path,
                "bytes": size,
                "seconds": seconds,
                "weights": network.path,
                "notes": done.notes,
                "check": None if comparison is None else comparison.as_dict(),
            }
        )
    else:
        lines = [f"{done.path}  {size / 1e6:.2f} MB, {precision}, {seconds:.1f} s", *done.notes]
        if comparison is not None:
            lines += comparison.lines()
        for line in lines:
            console().print(line, markup=False, soft_wrap=True)
    if comparison is not None and not comparison.passed:
        raise typer.Exit(1)

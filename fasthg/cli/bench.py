"""`fasthg bench`: what limits a training on this machine."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from fasthg.cli.common import (
    AsJson,
    ConfigPath,
    Overrides,
    configure,
    console,
    print_json,
    read_config,
)


def bench(
    config: ConfigPath,
    overrides: Overrides = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="For each of the three measurements.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure loader, training step and both together: which one limits, and what to change."""
    from fasthg.training.profile import bench as measure

    settings = read_config(config, overrides)
    configure(settings)
    if as_json:
        print_json(measure(settings, seconds).as_json())
        return
    out = console()
    measure(settings, seconds, partial(out.print, soft_wrap=True)).print(out)

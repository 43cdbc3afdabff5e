"""`fasthg doctor`: what this machine offers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from fasthg.cli.common import AsJson, console, print_json


def doctor(
    with_ops: Annotated[bool, typer.Option("--ops", help="A line for each operator.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what this machine offers: device, loader, compiled kernels; a verdict at the end."""
    from fasthg.training.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print_json(facts)
        return
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    table.add_row("fasthg", f"{facts['fasthg']}, Python {facts['python']}, {facts['platform']}")
    table.add_row("cpus", f"{facts['cpus']}, threads of torch: {facts['torch_threads']}")
    for gpu in facts["gpus"]:
        capability = f"compute capability {gpu['compute_capability']}"
        table.add_row("gpu", f"{gpu['name']}, {capability}, {gpu['memory_gib']} GiB")
    if not facts["gpus"]:
        table.add_row("gpu", "none: torch finds no CUDA device")
    table.add_row("device", f"{facts['device']}, precision {facts['precision']}")
    table.add_row("loader", f"{facts['loader']['path']}: {facts['loader']['reason']}")
    for device, text in facts["kernels"].items():
        table.add_row(f"{device} ops", text)
    if with_ops:
        for op in facts["ops"]:
            table.add_row(f"{op['op']}, {op['device']}", f"{op['path']}: {op['reason']}")
    there = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    table.add_row("packages", ", ".join(there))
    missing = [name for name, version in facts["packages"].items() if not version]
    if missing:
        table.add_row("missing", f"{', '.join(missing)} (extras bring them)")
    out = console()
    out.print(table)
    out.print(facts["verdict"], markup=False, highlight=False, soft_wrap=True)

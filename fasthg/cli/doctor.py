"""`fasthg doctor`: what this machine offers."""

from __future__ import annotations

from rich.table import Table

from fasthg.cli.common import AsJson, console, print_json


def doctor(as_json: AsJson = False) -> None:
    """Tell which path every op and loader takes on this machine, and why."""
    from fasthg.training.environment import describe_environment

    facts = describe_environment()
    if as_json:
        print_json(facts)
        return
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
    console().print(table)

"""`fasthg config`: look at and check configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fasthg.cli.common import AsJson, ConfigPath, Overrides, console, print_json
from fasthg.errors import ConfigError

app = typer.Typer(help="Look at and check configurations.", no_args_is_help=True)


@app.command("show")
def show(
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
        print_json([row.__dict__ for row in rows])
        return
    headings = ["key", "type", "stock value", *(["value"] if settings else []), "meaning"]
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        value = [str(_value(settings, row.key))] if settings else []
        meaning = f"{row.description} (no effect: {row.reason})" if row.reason else row.description
        table.add_row(row.key, row.type, row.default, *value, meaning)
    console().print(table)


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    return settings


@app.command("check")
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration; lists the keys that have no effect."""
    from fasthg.config import inert_keys, load_config

    settings = load_config(config, list(overrides or []))
    out = console()
    for key, reason in inert_keys(settings):
        out.print(f"no effect: {key}: {reason}", markup=False, soft_wrap=True)
    out.print(f"{config}: ok", markup=False)

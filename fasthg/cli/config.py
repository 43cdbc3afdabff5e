"""`fasthg config`: make, look at and check configurations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fasthg.cli.common import AsJson, ConfigPath, Overrides, console, print_json, read_config
from fasthg.errors import ConfigError
from fasthg.runtime.tables import print_blocks

if TYPE_CHECKING:
    from fasthg.config import KeyInfo

app = typer.Typer(help="Make, look at and check configurations.", no_args_is_help=True)

_TABLE_WIDTH = 110
"""Columns of a terminal from which keys stand in a table; in narrower ones, one below the other."""


@app.command("new")
def new(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="small, mars or demo.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Default: it is printed.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write a preset, with its comments, as a configuration of your own."""
    from fasthg.config import preset_text
    from fasthg.files import write_text

    text = preset_text(preset)
    if out is None:
        print(text, end="")
        return
    if out.exists() and not force:
        raise ConfigError(f"{out}: is there already; choose another name, or --force overwrites it")
    write_text(out, text)
    print(f"wrote {out}; set DATA and PARTS in it, then: fasthg train {out}")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of configurations, by which editors complete and check them."""
    from fasthg.config import json_schema

    print_json(json_schema())


@app.command("show")
def show(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="YAML file, folder with a config.yaml, or preset."),
    ] = None,
    overrides: Overrides = None,
    grep: Annotated[
        str, typer.Option(metavar="TEXT", help="Only keys with TEXT in their name or meaning.")
    ] = "",
    resolved: Annotated[bool, typer.Option("--resolved", help="Print YAML, not a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every key with type, stock value and meaning; with CONFIG, its values.

    In a file or pipe each key is one line, its columns separated by tabs.
    """
    from fasthg.config import describe, dump_config

    settings = read_config(config, overrides) if config else None
    if resolved:
        if settings is None:
            raise ConfigError("--resolved needs a CONFIG")
        print(dump_config(settings), end="")
        return
    rows = [row for row in describe(settings) if _holds(row, grep)]
    if not rows:
        raise ConfigError(f"--grep {grep}: in no key and no meaning; leave it out to see all")
    if as_json:
        print_json([row.__dict__ for row in rows])
        return
    headings = ["key", "type", "stock value", *(["value"] if settings else []), "meaning"]
    cells = [_cells(row, settings) for row in rows]
    out = console()
    if not out.is_terminal:
        for line in [headings, *cells]:
            print("\t".join(line))
    elif out.width < _TABLE_WIDTH:
        print_blocks(out, headings, cells)
    else:
        table = Table(box=None, pad_edge=False)
        table.add_column(headings[0], no_wrap=True, overflow="fold")
        for heading in headings[1:]:
            table.add_column(heading, overflow="fold")
        for line in cells:
            table.add_row(*map(Text, line))
        out.print(table)


def _holds(row: KeyInfo, text: str) -> bool:
    return text.casefold() in f"{row.key}\n{row.description}".casefold()


def _cells(row: KeyInfo, settings: Any) -> list[str]:
    from fasthg.config.types import show as as_yaml

    value = [as_yaml(_value(settings, row.key), limit=1000)] if settings else []
    meaning = f"{row.description} (no effect: {row.reason})" if row.reason else row.description
    return [row.key, row.type, row.default, *value, meaning]


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings[name] if isinstance(settings, dict) else getattr(settings, name)
    return settings


@app.command("check")
def check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a configuration; lists the keys that have no effect."""
    from fasthg.config import inert_keys

    settings = read_config(config, overrides)
    out = console()
    for key, reason in inert_keys(settings):
        out.print(f"no effect: {key}: {reason}", markup=False, soft_wrap=True)
    out.print(f"{config}: ok", markup=False)

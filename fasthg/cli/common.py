"""What the verbs share: argument types, the console, JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fasthg.errors import ConfigError

if TYPE_CHECKING:
    from fasthg.config import Config

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, dotted for sections."),
]
ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="YAML file, folder of records with a config.yaml, or preset."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


def console() -> Console:
    """Standard output; tables keep their width where it is a file. Of several ranks one prints."""
    if os.environ.get("RANK", "0") != "0":
        return Console(quiet=True)
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=120)


def refuse_ranks(verb: str) -> None:
    """Refuse what only one process can do, where torchrun started several.

    Raises:
        ConfigError: it did.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(f"{verb}: runs in one process; start it without torchrun")


def read_config(config: Path, overrides: list[str] | None) -> Config:
    """The configuration that a user means by CONFIG and KEY=VALUE.

    Raises:
        ConfigError: see `find_config` and `load_config`.
    """
    from fasthg.config import find_config, load_config

    return load_config(find_config(config), list(overrides or []))


def configure(config: Config) -> None:
    """Set what DEVICE and DETERMINISTIC ask of the whole process: see `configure_process`.

    Raises:
        EnvironmentFault: see `choose_device`.
    """
    from fasthg.runtime.device import choose_device
    from fasthg.runtime.process import configure_process

    configure_process(choose_device(config.DEVICE), deterministic=config.DETERMINISTIC)


def print_json(value: Any) -> None:
    """Print for a machine to read; what JSON does not know is written as text."""
    print(json.dumps(value, indent=2, default=str))


def first_argument(first: str | None, overrides: list[str] | None) -> tuple[str | None, list[str]]:
    """The first argument, None if it was left out and is an override; and all overrides."""
    rest = list(overrides or [])
    if first is not None and "=" in first and not Path(first).exists():
        return None, [first, *rest]
    return first, rest

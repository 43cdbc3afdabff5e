"""Configurations as a caller gives them: a file, a folder, a preset, values, or a MARS project."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fasthg.config import (
    FOLDER_CONFIG,
    Config,
    Document,
    find_config,
    load_config,
    resolve,
)
from fasthg.errors import ConfigError
from fasthg.interop.mars_project import project_config, relocation_overrides
from fasthg.runs.run_folder import RunFolder

ConfigLike = Config | Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class Settings:
    """A resolved configuration and where it is from."""

    config: Config
    source: Path | None = None
    """Its file."""
    stem: str = "run"
    """Names the run folder, with the time, where RUN_NAME is null."""
    lines: tuple[str, ...] = ()
    """What was taken from a MARS project, for a person."""


def settings_of(
    config: ConfigLike | None, overrides: Sequence[str] = (), resume: Path | None = None
) -> Settings:
    """The configuration that a caller means.

    Args:
        config: a YAML file, a folder of records with a config.yaml, the name of a preset, a mapping
            of keys, or a Config. None: that of the run to resume, or else of the MARS project
            around the current directory.
        overrides: `KEY=VALUE`, applied in order.
        resume: a run folder.

    Raises:
        ConfigError: there is none, or it has faults.
        DataError: the run folder is none.
    """
    if isinstance(config, Config):
        if not overrides:
            return Settings(config)
        # What it was not given stays so: a recipe chooses it.
        given = config.model_dump(mode="json", exclude_unset=True)
        return Settings(resolve(Document(given, {}), "config", overrides))
    if isinstance(config, Mapping):
        try:
            text = json.dumps(config, default=_plain)
        except TypeError:
            raise ConfigError(
                "config: holds a value that YAML lacks; give numbers, text, lists"
            ) from None
        document = Document(json.loads(text), {})
        return Settings(resolve(document, "config", overrides))
    if config is not None and not isinstance(config, str | PurePath):
        raise ConfigError(
            f"config: a {type(config).__name__} is none; give a path, preset or mapping"
        )
    if config is not None:
        path = find_config(config)
        stem = path.absolute().parent.name if path.name == FOLDER_CONFIG else path.stem
        return Settings(load_config(path, overrides), path, stem)
    if resume is not None:
        folder = RunFolder.open(resume)
        return Settings(folder.config([*relocation_overrides(folder), *overrides]), None, "")
    project = project_config(overrides, Path())
    if project is None:
        raise ConfigError(
            "no CONFIG given, and no project_config.yaml here or above; for example: "
            "fasthg train configs/demo.yaml"
        )
    return Settings(project.config, project.source, project.model, project.lines)


def as_overrides(keys: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as `KEY=VALUE`: `BATCH_SIZE=16`, `PARTS={"SIGMAS": [1, 1]}`.

    A mapping changes the named keys of its section alone.

    Raises:
        ConfigError: a value is none that YAML has.
    """
    found = []
    for key, value in keys.items():
        if isinstance(value, Mapping):
            found += as_overrides({f"{key}.{name}": item for name, item in value.items()})
        else:
            try:
                found.append(f"{key}={json.dumps(value, default=_plain)}")
            except TypeError:
                kind = type(value).__name__
                raise ConfigError(
                    f"{key}: a {kind} is no value; give numbers, text, lists"
                ) from None
    return found


def _plain(value: Any) -> Any:
    """What JSON does not know of a caller's values."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError

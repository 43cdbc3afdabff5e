"""Text files of other programs, in whatever encoding they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from fasthg.data.records.foreign import FIRST_BYTES, foreign_kind
from fasthg.errors import DataError


def read_yaml(path: Path, otherwise: str) -> Any:
    """The value of a YAML file.

    otherwise: the remedy where the file cannot be read.

    Raises DataError, naming file, line and remedy.
    """
    try:
        return yaml.safe_load(read_text(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; {otherwise}") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise DataError(f"{path}{line}: {problem}; correct the file") from None


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, which its first bytes tell apart.

    Other encodings cannot be told from each other. Raises DataError, naming file, line and remedy,
    for them and for files that are no text; OSError passes.
    """
    data = path.read_bytes()
    # JSON, YAML and tables begin with ASCII, whose zeros show UTF-16 without its mark, too.
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        kind = foreign_kind(data[:FIRST_BYTES])
        if kind is None and b"\0" in data:
            kind = "is no text; check the path"
        if kind is not None:
            raise DataError(f"{path}: {kind}") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 "
            "(an editor shows its encoding; in Excel: CSV UTF-8)"
        ) from None
    if "\0" in text:
        kind = foreign_kind(data[:FIRST_BYTES]) or "is no text; check the path"
        raise DataError(f"{path}: {kind}")
    return text

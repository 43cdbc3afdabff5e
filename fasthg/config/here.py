"""`$HERE` in a configuration: the folder of its file, wherever a command is started.

A configuration beside its records names them by it, and both can move together.
"""

from __future__ import annotations

import glob
import json
import os
import re
from pathlib import Path
from typing import Any

_HERE = re.compile(r"\$(HERE\b|\{HERE\})")


def expand_here(values: dict[str, Any], folder: Path) -> None:
    """Replace `$HERE` in DATA and INIT.WEIGHTS of a parsed file by the absolute path of `folder`.

    What is no text there stays for the checks to refuse.
    """
    here = os.path.abspath(folder)
    data, init = values.get("DATA"), values.get("INIT")
    if isinstance(data, dict):
        # The folder's own name is no pattern.
        values["DATA"] = {split: _expanded(text, glob.escape(here)) for split, text in data.items()}
    if isinstance(init, dict) and "WEIGHTS" in init:
        values["INIT"] = {**init, "WEIGHTS": _expanded(init["WEIGHTS"], here)}


def _expanded(value: Any, here: str) -> Any:
    if isinstance(value, list | tuple):
        return [_expanded(item, here) for item in value]
    return _HERE.sub(lambda _: here, value) if isinstance(value, str) else value


def text_elsewhere(text: str, folder: Path) -> str:
    """The text of a configuration in `folder` as a copy in another folder must have it.

    `$HERE` is replaced outside of lines that are comments.
    """
    # As a quoted text in YAML has it; a usual path is the same without quotes.
    here = json.dumps(glob.escape(os.path.abspath(folder)), ensure_ascii=False)[1:-1]
    lines = (
        line if line.lstrip().startswith("#") else _HERE.sub(lambda _: here, line)
        for line in text.splitlines(keepends=True)
    )
    return "".join(lines)

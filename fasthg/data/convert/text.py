"""Text files of other programs, in whatever encoding they come."""

from __future__ import annotations

import codecs
from pathlib import Path

from fasthg.data.records.foreign import FIRST_BYTES, foreign_kind
from fasthg.errors import DataError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 that begins with its byte order mark.

    Other encodings cannot be told from each other. Raises DataError, naming file, line and remedy,
    for them and for files that are no text; OSError passes.
    """
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
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
    return text

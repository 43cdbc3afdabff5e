"""Files of other kinds, recognised by their first bytes, for messages."""

from __future__ import annotations

import zlib

# (place, bytes, what the file is, remedy)
_KINDS = (
    (0, b"\x1f\x8b\x08", "is compressed with gzip", "decompress it with gunzip"),
    (0, b"BZh", "is compressed with bzip2", "decompress it with bunzip2"),
    (0, b"\xfd7zXZ\0", "is compressed with xz", "decompress it with unxz"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd", "decompress it with unzstd"),
    (0, b"PK\3\4", "is a ZIP archive or an Excel file", "unpack it, or save it as plain text"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack it"),
    (257, b"ustar", "is a tar archive", "unpack it with tar -x"),
    (0, b"PAR1", "is a Parquet table", "convert it to TFRecords"),
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file", "give the file itself that is asked for"),
    (0, b"%PDF", "is a PDF", "give the file itself that is asked for"),
    (0, b"version https://git-lfs", "is a pointer of Git LFS", "run git lfs pull"),
    (0, b"/annex/objects/", "is a pointer of git-annex", "run git annex get"),
    (0, b"<!DOCTYPE html", "is a web page", "download the file again"),
    (0, b"<!doctype html", "is a web page", "download the file again"),
    (0, b"<html", "is a web page", "download the file again"),
    (0, b"\0\5\x16\7", "is a note of macOS about another file", "leave out files named ._*"),
)
FIRST_BYTES = 512
"""How many bytes `foreign_kind` wants."""


def foreign_kind(data: bytes) -> str | None:
    """What a file is that was taken for another, and the remedy, by its first FIRST_BYTES bytes:
    `is compressed with gzip; decompress it with gunzip`. None for a kind that is not known."""
    for place, magic, kind, remedy in _KINDS:
        if data.startswith(magic, place):
            return f"{kind}; {remedy}"
    if _is_zlib(data):
        return "is compressed with zlib; write it without TensorFlow's ZLIB option"
    return None


def _is_zlib(data: bytes) -> bool:
    """Whether the bytes begin a zlib stream, whose header of two bytes alone proves little."""
    try:
        return len(zlib.decompressobj().decompress(data)) > 0
    except zlib.error:
        return False

"""Damaged files of every format: an error that names the file, or data; never a traceback."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import FORMATS, Format

from fasthg.errors import FasthgError

# What may be in place of any file. Text in another encoding is made of the file's own.
STRANGE = {
    "empty": b"",
    "a line": b"\n",
    "zeros": bytes(300),
    "noise": bytes(range(256)) * 3,
    "text": "kein Maß: Übung\n".encode(),
    "latin-1": "kein Maß: Übung\n".encode("latin-1"),
    "json null": b"null",
    "json list": b"[]",
    "json number": b"3",
    "json object": b"{}",
    "json of lists": json.dumps({"images": {}, "annotations": 3, "categories": [1]}).encode(),
    "json of nulls": json.dumps({"images": None, "annotations": [None], "bbox": [None]}).encode(),
    "deep json": b"[" * 3000,
    "yaml tags": b"a: !!python/object:os.system {}\n",
    "yaml list": b"- 1\n- 2\n",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(40),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(600),
    "zip": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "mp4": b"\x00\x00\x00\x18ftypmp42" + bytes(60),
    "avi": b"RIFF\xff\x00\x00\x00AVI LIST" + bytes(60),
}


def damages(sound: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Name and content; None: there is no such file."""
    yield "missing", None
    yield from STRANGE.items()
    for share in (0.02, 0.3, 0.5, 0.9, 0.99):
        yield f"cut at {share:.0%}", sound[: int(len(sound) * share)]
    yield "cut by a byte", sound[:-1]
    yield "twice", sound * 2
    yield "tail", sound + b"\x00\xff tail"
    for place in (0.1, 0.5, 0.8):
        at = int(len(sound) * place)
        yield f"zeros at {place:.0%}", sound[:at] + bytes(20) + sound[at + 20 :]
    try:
        text = sound.decode()
    except UnicodeDecodeError:
        return
    for encoding in ("utf-16", "utf-16-be", "utf-32", "utf-8-sig"):
        yield encoding, text.encode(encoding)
    for name in ("nose", "black", "v/img", "frame"):
        if name in text:
            yield f"umlaut in {name}", text.replace(name, f"Ä{name}").encode("cp1252")
    yield "semicolons", text.replace(",", ";").encode()
    yield "carriage returns", text.replace("\n", "\r").encode()
    yield "tabs", text.replace(" ", "\t").encode()
    yield "null bytes", text.replace("e", "\0").encode()
    yield "huge numbers", text.replace("1", "1" * 400).encode()
    yield "NaN", text.replace("2", "NaN").encode()
    yield "negative", text.replace(" 1", " -1").replace(",1", ",-1").encode()
    yield "strings", text.replace("1", '"1"').encode()
    yield "empty lists", text.replace("[", "[[").replace("]", "]]").encode()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_no_traceback(form: Format, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if form.needs:
        pytest.importorskip(form.needs)
    caplog.set_level(logging.ERROR)
    form.build(tmp_path)
    form.read(tmp_path)  # as it is, it is sound
    findings = []
    for name in form.files:
        path = tmp_path / name
        sound = path.read_bytes()
        for damage, content in damages(sound):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            findings += finding(form, tmp_path, path, damage)
        path.unlink()
        path.mkdir()
        findings += finding(form, tmp_path, path, "a folder")
        path.rmdir()
        path.write_bytes(sound)
    assert not findings, "\n".join(findings)


# What a sound file without labels, or with names of other images, is told.
CONTENT = ("no labelled frame to write", "labelled images are missing")


def finding(form: Format, folder: Path, path: Path, damage: str) -> list[str]:
    """What is wrong with what came of a damaged file, if anything is."""
    where = f"{form.name}, {path.name}, {damage}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            form.read(folder)
    except FasthgError as error:
        lines = str(error).splitlines()
        # A configuration has a line for each fault. What is not there is named by where it belongs.
        named = all(path.name in line for line in lines)
        if named or damage in ("missing", "a folder") or any(c in lines[0] for c in CONTENT):
            return []
        return [f"{where}: {lines}"]
    except Exception as error:  # whatever it is, it is a finding
        return [f"{where}: {type(error).__name__}: {str(error)[:150]}"]
    return []

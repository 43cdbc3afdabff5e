"""The configuration beside converted records, which `fasthg train FOLDER` takes.

Its recipe is the text of a preset; data, parts and what else a source tells replace the preset's.
A digest in its first lines tells whether it was edited since: an edited file stays as it is, and
what is new goes to another one.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fasthg.config import FOLDER_CONFIG
from fasthg.config.presets import presets_folder
from fasthg.config.sides import doubts
from fasthg.config.yaml_lines import YamlFault, dump_value, parse_document
from fasthg.data.convert.report import Report
from fasthg.files import write_text

PRESET = "small"
_NEW = "config.new{}.yaml"
_DIGEST = re.compile(r"^# As fasthg wrote it: ([0-9a-f]{16})\n", re.MULTILINE)
_WIDTH = 98
_COMMENTS = {
    "NUM_PARTS": "keypoints of an animal",
    "NAMES": "in the order of the records",
    "LEFT_RIGHT_PAIRS": "part indices from 0; they change places in mirrored images",
    "SKELETON": "part indices from 0, joined by a line in pictures",
    "COLORS": "of each part in pictures",
}


def write_ready(
    out: Path, report: Report, splits: Sequence[str], *, sources: Sequence[str], kept: bool
) -> None:
    """Write `config.yaml` in the folder `out`, and complete the report.

    splits: those that have records; sources: names of what they are of, for the header; kept:
    whether records of other sources stayed, for which what an unedited or edited `config.yaml` says
    of skeleton, colours and scale holds where this source says nothing. An edited one is never
    written over: what differs goes to `config.new.yaml`, and into the report's notes.
    """
    path = out / FOLDER_CONFIG
    there = _read(path)
    before = _values(there)
    text = _signed(_text(report, splits, sources, _known(report, before) if kept else {}))
    place = shlex.quote(str(out))
    report.train = f"fasthg train {place}" if "train" in splits else ""
    if there is None or _unedited(there):
        write_text(path, text)
        report.config = path
        return
    found, new = _DIGEST.search(there), _DIGEST.search(text)
    assert new is not None, "the text is signed"
    if found and found[1] == new[1]:
        report.notes.append(f"{path}: edited since fasthg wrote it, and kept")
        return
    changes = _changes(before, _values(text))
    if not changes:
        return
    number = 1
    while True:
        other = out / _NEW.format(number if number > 1 else "")
        own = _read(other)
        if own is None or _unedited(own):
            break
        number += 1
    write_text(other, text)
    report.config = other
    origin = "edited since fasthg wrote it" if found else "not written by fasthg"
    report.notes.append(
        f"{path}: {origin}, and kept; what fasthg would write is {other.name}, in which differ: "
        f"{'; '.join(changes)}"
    )
    if before.get("PARTS", {}).get("NAMES") != [*report.parts] and report.train:
        report.train = f"fasthg train {shlex.quote(str(other))}"


def _text(
    report: Report, splits: Sequence[str], sources: Sequence[str], known: Mapping[str, Any]
) -> str:
    """The configuration, not yet signed. known: values that take the place of the report's."""
    text = (presets_folder() / f"{PRESET}.yaml").read_text(encoding="utf-8")
    text = _without_head(text)
    text = _set(text, "PARTS", _parts(report, known))
    pairs = known.get("LEFT_RIGHT_PAIRS", report.pairs)
    doubtful = doubts(report.parts, [(int(a), int(b)) for a, b in pairs])
    if doubtful:
        why = (
            f"Off: {'; '.join(doubtful)}. A mirrored image would exchange the wrong parts. Correct "
            "LEFT_RIGHT_PAIRS and write 0.5, or leave it off where animals always face one way."
        )
        for key in ("DO_RANDOM_FLIP_LEFT_RIGHT", "FLIP_TEST"):
            if _block(text, key) or key.startswith("DO"):
                text = _set(text, key, f"{_comment(why)}{key}: false\n")
    text = _set(text, "DATA", "")
    scale = known.get("PIXELS_PER_CM", report.pixels_per_cm)
    sigmas = known.get("OKS_SIGMAS", report.measured.get("OKS_SIGMAS"))
    if scale is not None:
        line = f"PIXELS_PER_CM: {dump_value(scale)}"
        text = _set(text, "PIXELS_PER_CM", f"{line:<32} # image pixels; adds errors in cm\n")
    if sigmas:
        workers = report.measured.get("workers")
        origin = f"measured on {workers} workers" if workers else "measured on several workers"
        why = f"# Spread of annotators, {origin}, as a fraction of the root of the area.\n"
        text = _set(text, "OKS_SIGMAS", why + _entry("OKS_SIGMAS", [*sigmas]))
    return f"{_head(sources)}\n{_data(splits)}\n{text}"


def _head(sources: Sequence[str]) -> str:
    names = " ".join(", ".join(sources).split())
    return _comment(
        f"Made by fasthg from {names}. Edit it as you like: a later conversion leaves an edited "
        f"file as it is. The recipe is that of the preset `{PRESET}`, for some hundred labelled "
        "frames."
    )


def _data(splits: Sequence[str]) -> str:
    lines = [
        "# ---------------------------------------------------------------- Data",
        # On a line of its own, which a copy in a run keeps.
        "# $HERE is the folder that this file was written to.",
        "DATA:",
    ]
    lines += [f'  {split.upper()}: "$HERE/{split}_dataset-*"' for split in splits]
    missing = [split.upper() for split in ("val", "test") if split not in splits]
    if missing:
        lines.append(f"  # no records for {' and '.join(missing)}")
    return "\n".join(lines) + "\n"


def _parts(report: Report, known: Mapping[str, Any]) -> str:
    values: dict[str, Any] = {
        "NUM_PARTS": len(report.parts),
        "NAMES": [*report.parts],
        "LEFT_RIGHT_PAIRS": known.get("LEFT_RIGHT_PAIRS", report.pairs),
        "SKELETON": known.get("SKELETON", report.skeleton),
        "COLORS": known.get("COLORS", report.colors),
    }
    text = "PARTS:\n"
    for key, value in values.items():
        if key in ("SKELETON", "COLORS") and not value:
            continue
        entry, comment = _entry(f"  {key}", value), f"# {_COMMENTS[key]}"
        if entry.count("\n") == 1 and len(entry) + len(comment) < _WIDTH:
            text += f"{entry[:-1]:<32} {comment}\n"
        else:
            text += f"  {comment}\n{entry}"
    return text


def _entry(key: str, value: Any) -> str:
    """Lines `key: value`, of which those of a long list are indented below the key."""
    if isinstance(value, list):
        value = [[*item] if isinstance(item, tuple) else item for item in value]
    text = f"{key}: {dump_value(value, _WIDTH - len(key) - 2)}"
    indent = " " * (len(key) - len(key.lstrip()))
    return text.replace("\n", f"\n{indent}") + "\n"


def _known(report: Report, before: Mapping[str, Any]) -> dict[str, Any]:
    """Values of an earlier configuration of the same parts that this source does not give."""
    parts = before.get("PARTS")
    if not isinstance(parts, dict) or parts.get("NAMES") != [*report.parts]:
        return {}
    known: dict[str, Any] = {}
    if isinstance(before.get("OKS_SIGMAS"), list) and not report.measured:
        known["OKS_SIGMAS"] = before["OKS_SIGMAS"]
    own = {"LEFT_RIGHT_PAIRS": report.pairs_given, "SKELETON": report.skeleton}
    known |= {key: parts[key] for key, given in own.items() if not given and _pairs(parts.get(key))}
    if parts.get("COLORS") and not report.colors:
        known["COLORS"] = parts["COLORS"]
    scale = before.get("PIXELS_PER_CM")
    if not isinstance(scale, int | float):
        return known
    if report.pixels_per_cm is None:
        known["PIXELS_PER_CM"] = scale
    elif report.pixels_per_cm != scale:
        known["PIXELS_PER_CM"] = None
        report.notes.append(
            f"PIXELS_PER_CM is left out: {scale:g} in records that were there, "
            f"{report.pixels_per_cm:g} in these"
        )
    return known


def _pairs(value: Any) -> bool:
    """Whether a value is a list of pairs of numbers, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, int) for end in pair)
            for pair in value
        )
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys of which the two texts have other values; of the parts, which."""
    flat_before, flat_after = _flat(before), _flat(after)
    changes = []
    for key in dict.fromkeys([*flat_before, *flat_after]):
        old, new = flat_before.get(key), flat_after.get(key)
        if old == new:
            continue
        if key != "PARTS.NAMES" or not isinstance(old, list) or not isinstance(new, list):
            changes.append(key)
            continue
        gone = [str(name) for name in old if name not in new]
        come = [str(name) for name in new if name not in old]
        what = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(come)}"] * bool(
            come
        )
        changes.append(f"{key} ({' and '.join(what) or 'another order'})")
    return changes


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return flat


def _read(path: Path) -> str | None:
    """The text of a file; None where there is none, and empty where it is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError):
        return ""


def _values(text: str | None) -> dict[str, Any]:
    try:
        return parse_document(text or "").values
    except YamlFault:
        return {}


def _signed(text: str) -> str:
    """The text with its digest before the first empty line."""
    head, rest = text.split("\n\n", 1)
    return f"{head}\n# As fasthg wrote it: {_digest(text)}\n\n{rest}"


def _unedited(text: str) -> bool:
    found = _DIGEST.search(text)
    return found is not None and found[1] == _digest(_DIGEST.sub("", text, count=1))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def _without_head(text: str) -> str:
    """The text less the comment that it begins with."""
    return re.sub(r"\A(#[^\n]*\n)+\n*", "", text)


def _block(text: str, key: str) -> re.Match[str] | None:
    """A key with its value, up to the next line that is not indented."""
    return re.search(rf"^{key}:[^\n]*\n(?:[ \t]+[^\n]*\n)*", text, re.MULTILINE)


def _set(text: str, key: str, block: str) -> str:
    """The text with a key replaced by `block`, or with it at the end."""
    found = _block(text, key)
    if found is None:
        return text + block
    return text[: found.start()] + block + text[found.end() :]

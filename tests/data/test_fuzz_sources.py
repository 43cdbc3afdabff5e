"""Changed files of every format: read or refused, never a traceback."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import fuzz_sources
import pytest
from sources import FORMATS, Format

from fasthg.errors import DataError

THERE = [form for form in FORMATS if not form.needs or importlib.util.find_spec(form.needs)]


@pytest.mark.slow
def test_no_promise_is_broken(tmp_path: Path) -> None:
    findings, outcomes = fuzz_sources.run(1, range(120), tmp_path, THERE)
    assert findings == []
    # The changes get past the first look at a file: most formats are read as often as refused.
    read = {outcome.removesuffix(": read") for outcome in outcomes if outcome.endswith("read")}
    refused = {outcome.removesuffix(": refused") for outcome in outcomes if "refused" in outcome}
    assert len(read & refused) >= 5


def test_broken_promises_are_found(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "a.json").write_text('{"a": [1, 2]}')

    def read(folder: Path) -> None:
        text = (folder / "a.json").read_text(errors="replace")
        if "2" not in text:
            raise IndexError("gone")
        if "1" not in text:
            raise DataError("a.json: no 1")

    form = Format("lists", build, read, ("a.json",))
    findings, outcomes = fuzz_sources.run(0, range(60), tmp_path, [form])
    assert findings and all(
        "lists, a.json: IndexError at test_fuzz" in text for _, text in findings
    )
    assert set(outcomes) == {"lists: read", "lists: refused"}
    # An input is a function of the seed and its number.
    number, text = findings[0]
    assert fuzz_sources.run(0, [number], tmp_path, [form])[0] == [(number, text)]

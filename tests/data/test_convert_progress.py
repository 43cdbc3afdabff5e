"""The bar of a conversion: on a terminal alone, and gone at the end."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from fasthg.data.convert.progress import progress


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_on_a_terminal_alone(terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=80)
    with progress("writing", 1500, console) as done:
        for _ in range(1500):
            done()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.getvalue())
    assert ("1500/1500 frames" in plain) == terminal
    assert terminal or not text.getvalue()


def test_no_bar_for_a_few_frames() -> None:
    text = io.StringIO()
    with progress("writing", 5, Console(file=text, force_terminal=True)) as done:
        done()
    assert "frames" not in text.getvalue()

"""Output that nobody reads, or whose encoding lacks a character, ends nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORK = """
import sys
sys.path.insert(0, {path!r})
from rich.console import Console
from fasthg.runtime.output import lasting_output, spell_out
spell_out()
"""


def script(code: str) -> list[str]:
    return [sys.executable, "-c", WORK.format(path=sys.path[0]) + code]


@pytest.mark.parametrize(
    "line",
    [
        "print('line', flush=True)",
        "Console().print('line')",
        "sys.stdout.writelines(['line\\n']); sys.stdout.flush()",
    ],
)
def test_work_goes_on_when_the_reader_has_gone(tmp_path, line: str) -> None:
    done = tmp_path / "done"
    code = f"""
with lasting_output():
    {line}
    sys.stdin.readline()
    for number in range(3):
        {line}
    open({str(done)!r}, "w").close()
"""
    process = subprocess.Popen(
        script(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 0
    assert done.exists()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("latin-1", b"<=5 \xe9 \\u03b1 \xff \xe9\xff\\u03b1<=\\ud800"),
        ("ascii", b"<=5 \\xe9 \\u03b1 \xff \\xe9\xff\\u03b1<=\\ud800"),
    ],
)
def test_what_an_encoding_lacks_is_spelt_out(encoding: str, expected: bytes) -> None:
    code = "print('\\u22645 \\xe9 \\u03b1 \\udcff \\xe9\\udcff\\u03b1\\u2264\\ud800')"
    result = subprocess.run(
        script(code), env={"PYTHONIOENCODING": encoding}, capture_output=True, check=True
    )
    assert result.stdout.rstrip(b"\n") == expected

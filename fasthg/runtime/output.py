"""Standard output that decides neither whether work is finished nor whether it goes on."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)
_ASCII = {"≤": "<=", "≥": ">=", "²": "^2", "°": " degrees", "–": "-", "…": "...", "×": "x"}
_NAME = "fasthg-ascii"


def spell_out() -> None:
    """Print in ASCII what the encoding of a terminal or log file lacks, rather than raise:
    <= for ≤, \\xNN for others."""
    codecs.register_error(_NAME, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=_NAME)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # Python hands over a whole run; each letter is dealt with by itself, as it may hold both kinds.
    letter, end = error.object[error.start], error.start + 1
    if "\udc80" <= letter <= "\udcff":
        # A byte of a file name that is no text: printed as it is, as `ls` does.
        return letter.encode("ascii", "surrogateescape"), end
    known = _ASCII.get(letter, letter)
    return known.encode("ascii", "backslashreplace").decode("ascii"), end


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Go on where nobody reads standard output or error any more: the pager or `tee` has ended, the
    terminal is closed. What is printed from then on is lost."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, stream and _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream whose writes succeed after its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of the stream."""
        with self._or_nowhere():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As of the stream."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As of the stream."""
        with self._or_nowhere():
            self._stream.flush()

    @contextlib.contextmanager
    def _or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # Whoever else writes to it, such as the interpreter at its end, does not fail either.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

"""`report.html` of a run: one file to look at, to keep and to send."""

from __future__ import annotations

from fasthg.report.page import NAME, write

__all__ = ["NAME", "write"]

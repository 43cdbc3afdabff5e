"""`report.html` of a run, one file to look at, to keep and to send; what MARS's notebooks read."""

from __future__ import annotations

from fasthg.report.frame import picture_frame
from fasthg.report.page import NAME, write
from fasthg.report.performance import write_performance

__all__ = ["NAME", "picture_frame", "write", "write_performance"]

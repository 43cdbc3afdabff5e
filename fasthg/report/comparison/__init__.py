"""Several runs on one page: curves and errors together, seeds as a band, paired differences."""

from __future__ import annotations

from fasthg.report.comparison.measured import Group, MeasuredRun, groups, read_runs
from fasthg.report.comparison.page import write

__all__ = ["Group", "MeasuredRun", "groups", "read_runs", "write"]

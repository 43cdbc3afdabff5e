"""How well several workers agree about the same frames: the work of `fasthg data agreement`."""

from __future__ import annotations

from fasthg.report.agreement.crowd import Crowd, Repair, read_crowd, repair
from fasthg.report.agreement.measure import Agreement, measure

__all__ = ["Agreement", "Crowd", "Repair", "measure", "read_crowd", "repair"]

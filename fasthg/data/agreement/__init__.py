"""How well several workers agree about the same frames: the numbers of `fasthg data agreement`."""

from __future__ import annotations

from fasthg.data.agreement.crowd import Crowd, Repair, crowd_of, read_crowd, repair
from fasthg.data.agreement.measure import Agreement, measure

__all__ = ["Agreement", "Crowd", "Repair", "crowd_of", "measure", "read_crowd", "repair"]

"""fasthg: a fast trainer of stacked-hourglass networks for animal pose estimation."""

from __future__ import annotations

__version__ = "0.1.0"

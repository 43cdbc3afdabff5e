"""Conversion from Python."""

from __future__ import annotations


def convert() -> None:
    """Not yet."""

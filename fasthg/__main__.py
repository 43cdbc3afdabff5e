"""`python -m fasthg` is the same as `fasthg`."""

from __future__ import annotations

from fasthg.cli import main

main()

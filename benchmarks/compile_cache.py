"""What torch.compile made, in files that another process or another machine can begin with.

BENCH_COMPILED names their folder; without it there are none. Files serve the same torch on the same
kind of GPU, and elsewhere are ignored. On one machine the folders of TORCHINDUCTOR_CACHE_DIR and
TRITON_CACHE_DIR do as much.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch


def load() -> None:
    """Unpack all files into torch's own folders."""
    folder = _folder()
    for file in sorted(folder.glob("*.bin")) if folder else ():
        torch.compiler.load_cache_artifacts(file.read_bytes())


def save(name: str) -> None:
    """Keep in a file of this name what this process compiled or found compiled."""
    made = torch.compiler.save_cache_artifacts()
    if (folder := _folder()) is None or made is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.bin"
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(made[0])
    temporary.replace(file)


def hits() -> int:
    """How many functions this process found compiled."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_hit"]


def _folder() -> Path | None:
    name = os.environ.get("BENCH_COMPILED")
    return Path(name) if name else None

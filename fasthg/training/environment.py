"""Facts of this machine and installation, for `fasthg doctor` and a run's `env.json`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from fasthg import __version__, ops
from fasthg.config import Config
from fasthg.data.loader import loader_choice
from fasthg.runtime.device import choose_device, choose_precision

PACKAGES = (
    "torch",
    "numpy",
    "opencv-python-headless",
    "nvidia-dali-cuda130",
    "safetensors",
    "pydantic",
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_environment() -> dict[str, Any]:
    """Versions, hardware, and the path that every op and the loader take, with the reason."""
    device = choose_device("auto")
    loader, reason = loader_choice(Config(), device)
    gpus = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        gpus.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return {
        "fasthg": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": gpus,
        "device": str(device),
        "precision": choose_precision("auto", device).name,
        "loader": {"path": loader, "reason": reason},
        "ops": [path._asdict() for path in ops.paths()],
    }

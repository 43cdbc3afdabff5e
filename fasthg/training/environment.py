"""Facts of this machine and installation, for `fasthg doctor` and a run's `env.json`."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fasthg
from fasthg import ops
from fasthg.config import Config
from fasthg.data.loader import loader_choice
from fasthg.ops import OpPath
from fasthg.runtime.device import choose_device, choose_precision

PACKAGES = (
    "torch",
    "numpy",
    "av",
    "google-crc32c",
    "h5py",
    "nvidia-dali-cuda130",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "pydantic",
    "PyYAML",
    "rich",
    "safetensors",
    "scipy",
    "sleap-io",
    "tables",
    "tensorboard",
    "typer",
)
"""What fasthg and its extras need, the two of every installation first."""

_OF_A_START = ("date", "command", "host", "git", "fasthg")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_environment() -> dict[str, Any]:
    """Versions, hardware, and the path that every op and the loader take, with the reason.

    `kernels` sums up `ops`, a text for each kind of device; `verdict` is one sentence.
    """
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
    paths = ops.paths()
    return {
        "fasthg": fasthg.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": gpus,
        "device": str(device),
        "precision": choose_precision("auto", device).name,
        "loader": {"path": loader, "reason": reason},
        "kernels": summarise(paths),
        "ops": [path._asdict() for path in paths],
        "verdict": verdict(bool(gpus), paths),
    }


def summarise(paths: Sequence[OpPath]) -> dict[str, str]:
    """Kind of device -> how many operators are compiled for it, and with what or why none is."""
    texts = {}
    for device in dict.fromkeys(path.device for path in paths):
        rows = [path for path in paths if path.device == device]
        left = sum(path.path == "torch" for path in rows)
        compiled = [path for path in rows if path.path == "native"]
        reason = next((path.reason for path in rows if path.path != "torch"), "")
        of_torch = f", {left} by torch itself, which is faster" if left else ""
        count = f"{len(compiled)} compiled{of_torch} ({reason})"
        texts[device] = count if compiled else f"none compiled: {reason}"
    return texts


def verdict(has_gpu: bool, paths: Sequence[OpPath]) -> str:
    """What `fasthg doctor` ends with, for the device that a training takes here."""
    device, name = ("cuda", "GPU") if has_gpu else ("cpu", "CPU only")
    missing = [path for path in paths if (path.device, path.path) == (device, "torch reference")]
    if not missing:
        return f"{name}; all kernels compiled"
    return f"{name}; no compiled kernels, plain torch runs in their place: {missing[0].reason}"


def describe_start(before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`describe_environment`, and how this process was started: a run's `env.json`.

    date: UTC, ISO 8601. command: its words. git: commit of the checkout that fasthg runs from, and
    whether its files differ from it (`dirty`); None without a checkout. earlier: the same of
    the processes that trained the run before, the oldest first.

    Args:
        before: the run's `env.json`, where it is resumed.
    """
    earlier = []
    if before is not None:
        own = {key: before[key] for key in _OF_A_START if key in before}
        earlier = [*before.get("earlier", []), own]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "host": socket.gethostname(),
        "git": checkout(Path(fasthg.__file__).resolve().parent.parent),
        **describe_environment(),
        "earlier": earlier,
    }


def checkout(folder: Path) -> dict[str, Any] | None:
    """The state of a checkout; None where `folder` is none, or where git does not answer."""
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        # Without untracked files: notes beside the sources change nothing.
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None

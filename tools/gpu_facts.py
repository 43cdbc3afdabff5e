"""Print this machine's GPU, its driver and the versions of what runs there, as a line of JSON."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def packages() -> tuple[dict[str, str], list[str]]:
    """Versions of the project's packages, those to develop with too, and those not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    versions, missing = {}, []
    for requirement in wanted:
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return versions, missing


def first_line(*command: str) -> str:
    """The first line that a command prints, or that it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not found ({type(error).__name__})"
    return (done.stdout.strip().splitlines() or ["no answer"])[0].strip()


def opcheck_needs(torch: Any) -> str | None:
    """The package that torch's opcheck lacks; some releases import more than torch declares."""
    try:
        torch.library.opcheck(torch.ops.aten.neg.default, (torch.ones(2),))
    except ModuleNotFoundError as error:
        return error.name
    except Exception:  # it works well enough to say that neg is no custom operator
        return None
    return None


def main() -> int:
    """Print the facts, or the problem."""
    try:
        import torch
    except ImportError as error:
        print(json.dumps({"problem": f"torch does not load in {sys.executable} ({error})"}))
        return 0
    if not torch.cuda.is_available():
        problem = f"torch {torch.__version__} finds no GPU here; the tests for a CPU: make test"
        print(json.dumps({"problem": problem}))
        return 0
    versions, missing = packages()
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "gpu": {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
            "driver": first_line(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            ),
        },
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": first_line("sh", "-c", "${NVCC:-nvcc} --version | grep release"),
        "platform": platform.platform(),
        "packages": versions,
        "missing": missing,
        "opcheck_needs": opcheck_needs(torch),
    }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

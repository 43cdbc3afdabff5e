"""A training on a GPU, from its first frame to its evaluation, by the verbs that a user has.

python tools/gpu_training.py [--frames N] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu_report import ROOT, figure


def fasthg(folder: Path, *arguments: str) -> str:
    """What a verb prints; raises SystemExit with its words if it fails."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fasthg", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if "--json" not in arguments or done.returncode:
        print(done.stdout)
    print(f"{time.perf_counter() - begin:.1f} s  fasthg {' '.join(arguments)}", flush=True)
    if done.returncode:
        raise SystemExit(f"fasthg {arguments[0]} ended with {done.returncode}")
    return done.stdout


def main() -> int:
    """Render, train, evaluate, and measure what limits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=400, help="to train on; default 400")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="of the configuration")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, frames = Path(name), arguments.frames
        few = str(max(frames // 8, 4))
        sizes = ["--train", str(frames), "--val", few, "--test", few]
        fasthg(folder, "data", "synth", "demo-data", "--seed", "0", *sizes)
        config = str(ROOT / "configs" / "demo.yaml")
        begin = time.perf_counter()
        fasthg(folder, "train", config, *arguments.keys)
        figure("train demo.yaml", time.perf_counter() - begin, "s")
        (run,) = (folder / "runs").iterdir()
        found = json.loads(fasthg(folder, "eval", str(run), "--json"))
        print(json.dumps(found)[:1500])
        measured = fasthg(folder, "bench", config, "--seconds", "3", "--json", *arguments.keys)
        rates = json.loads(measured)
        for part in ("loader", "step", "both"):
            figure(f"bench demo.yaml: {part}", rates[part]["images_per_s"], "images/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One training in a process of its own: `python -m benchmarks.accuracy.train_one SPECIFICATION`.

The specification is a JSON file with `config` (a YAML file), `folder` (of the run), `steps` or
`budget` (processor seconds), and `out`, the file that the result goes to. Cost is the processor
time of this process, all threads, while it trains: it is what a shared machine disturbs least. The
process loads its images itself, so that they count.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fasthg
from fasthg.report.calibration import exchanges
from fasthg.report.evaluate import evaluate_run
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime import process
from fasthg.runtime.device import choose_device

CALIBRATION = 14
"""Steps that are timed to turn a budget into a number of steps; the first four are left out."""

ALONE = {"LOCATOR": "off", "NUM_INPUT_THREADS": 0}


def seconds_a_step(config: Path) -> float:
    """Median processor seconds of a step, loader in."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        fasthg.train(
            config,
            evaluate=False,
            verbose=False,
            on_log=lambda row: times.append(time.process_time()),
            NUM_TRAIN_ITERATIONS=CALIBRATION,
            LEARNING_RATE_WARMUP_STEPS=1,
            LOG_EVERY_N_STEPS=1,
            VALIDATE_EVERY_N_STEPS=10**6,
            **ALONE,
            RUNS_DIR=folder,
        )
    # The last two hold the validation of the last step, or nothing as the loader was ahead.
    return statistics.median(np.diff(times)[4:-2])


def train_and_test(specification: dict[str, Any]) -> dict[str, Any]:
    """Train, evaluate on the test split, and return what a result file keeps of a run."""
    config = Path(specification["config"])
    process.configure_process(choose_device("cpu"), deterministic=False)
    steps, overrides = specification.get("steps"), dict(specification["overrides"])
    if steps is None and specification.get("budget"):
        steps = max(int(specification["budget"] / seconds_a_step(config)), 20)
    if steps is not None:
        overrides["NUM_TRAIN_ITERATIONS"] = steps
        overrides["LEARNING_RATE_WARMUP_STEPS"] = max(steps // 20, 1)
        overrides["VALIDATE_EVERY_N_STEPS"] = max(steps // 4, 1)
    curve: list[dict[str, float]] = []
    began, wall = time.process_time(), time.perf_counter()
    result = fasthg.train(
        config,
        evaluate=False,
        on_validate=lambda row: curve.append(
            {
                "step": row["step"],
                "cpu_seconds": round(time.process_time() - began, 1),
                "val_mean_px": row["val_error_mean_px"],
            }
        ),
        **ALONE,
        RUNS_DIR=specification["folder"],
        **overrides,
    )
    cost, elapsed = time.process_time() - began, time.perf_counter() - wall
    run = RunFolder(result.path)
    tested = result.load().config
    test = evaluate_run(run, tested, "test", None)
    index, found = test.index, test.predictions
    pairs = exchanges(found.keypoints, found.truth, found.visibility, tested.PARTS.LEFT_RIGHT_PAIRS)
    boxes = index.bbox[found.instance] * np.tile(
        np.stack([index.width, index.height], 1)[index.record[found.instance]], 2
    )
    sides = boxes[:, 2:] - boxes[:, :2]
    return {
        "steps": result.step,
        "cpu_seconds": round(cost, 1),
        "wall_seconds": round(elapsed, 1),
        "best_step": test.metrics["step"],
        "animal_px": round(float(np.median(np.sqrt(sides.prod(axis=1)))), 1),
        "parts": list(result.load().parts),
        "curve": curve,
        "sides": {
            "judged": sum(2 * pair.judged for pair in pairs),
            "exchanged": sum(pair.first + pair.second for pair in pairs),
        },
        "frames": [index.image_id(int(index.record[row])) for row in found.instance],
        "errors": [
            [None if np.isnan(error) else round(float(error), 3) for error in row]
            for row in found.errors()
        ],
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train_and_test(given)))

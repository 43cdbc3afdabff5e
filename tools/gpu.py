"""Build fasthg on a machine with a GPU, prove it there, and measure it: `make gpu`.

Uses the Python it is run by, and nothing from the network. Stages are independent and bounded in
time; what a missing package prevents is named. Prints a table last and writes everything into
benchmarks/results/<gpu>-<date>-<commit>.json; GPU_RESULTS or OUT names another folder, GPU_COMMIT
the commit of a tree without its history.
Exit status: 0, 1 if a stage failed, 3 without a GPU.

    python tools/gpu.py [--dry-run] [--only STAGE ...] [--limit SECONDS]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_report
from gpu_report import COPY_RATE, ROOT, Result
from gpu_stages import Stage, list_stages

LIMIT = 530.0
SKIPPED = 77  # exit status of a stage that cannot run here and said why in its last line
NO_GPU = 3


def environment() -> dict[str, str]:
    """This process's, with the tree first on the path."""
    folders = [str(ROOT / name) for name in ("", "tools", "benchmarks", "tests/support")]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def read_facts() -> dict[str, Any]:
    """GPU, driver and versions; `problem` instead of them where there is no GPU."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu_facts.py")],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"problem": (done.stderr.strip().splitlines() or ["no answer"])[-1]}


def run_together(stages: list[Stage], left: float) -> list[Result]:
    """Start stages side by side, wait for each until its limit, and end what is over it."""
    begin = time.monotonic()
    running = []
    for stage in stages:
        output = tempfile.TemporaryFile()  # noqa: SIM115  closed when it has been read
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env={**environment(), **stage.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.append((stage, process, output, begin + min(stage.limit, left)))
    finished: dict[str, tuple[int | None, float]] = {}
    while len(finished) < len(running):
        time.sleep(0.05)
        for stage, process, _, end in running:
            if stage.name in finished:
                continue
            status, over = process.poll(), time.monotonic() > end
            if status is None and over:
                # The stage's own process group: compilers and workers that it started go too.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if status is not None or over:
                finished[stage.name] = status, time.monotonic() - begin
    results = []
    for stage, _, output, _ in running:
        output.seek(0)
        text = output.read().decode(errors="replace")
        output.close()
        results.append(judge(stage, *finished[stage.name], text))
    return results


def judge(stage: Stage, status: int | None, seconds: float, output: str) -> Result:
    """What an exit status (None: ended at its limit) and an output mean."""
    lines = [line for line in output.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(gpu_report.MARK)]
    note = said[-1].strip()[:160] if said else ""
    if status is None:
        verdict, note = "stopped" if stage.may_stop else "FAILED", f"at its limit; {note}"
    elif status == SKIPPED:
        verdict = "skipped"
    elif status:
        verdict, note = "FAILED", note if status > 0 else f"signal {-status}; {note}"
    else:
        verdict = "passed"
    result = Result(stage.name, verdict, round(seconds, 1), note, " ".join(stage.command))
    result.figures = gpu_report.read_figures(output)
    try:
        stage.read(result, output)
    except (OSError, ValueError, KeyError) as error:
        result.status, result.note = "FAILED", f"{result.note}; its report cannot be read: {error}"
    if stage.missing:
        result.note = f"{result.note} ({stage.missing})"
    if result.status != "passed" or stage.keep_output:
        result.output = "\n".join(said)[-gpu_report.KEPT_OUTPUT :]
    return result


def add_shares(results: list[Result]) -> None:
    """Bandwidths of all stages as shares of the copy's, where that was measured."""
    found = {f.name: f.value for r in results for f in r.figures}
    for result in results:
        if COPY_RATE in found and all(f.name != COPY_RATE for f in result.figures):
            result.figures += gpu_report.shares(result.figures, found[COPY_RATE])


def commit() -> str:
    """Short name of the commit, with -changed if the tree is not it; `unknown` without git.

    GPU_COMMIT names it where the tree came without its history.
    """
    if given := os.environ.get("GPU_COMMIT"):
        return given
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    if name.returncode:
        return "unknown"
    return name.stdout.strip() + ("-changed" if state.stdout.strip() else "")


def run(stages: list[Stage], facts: dict[str, Any], limit: float) -> list[Result]:
    """All stages, group after group; the file is written anew after each group."""
    begin = time.monotonic()
    now = datetime.datetime.now(datetime.UTC)
    facts = {"date": now.isoformat(timespec="seconds"), "commit": commit(), **facts}
    folder = os.environ.get("GPU_RESULTS") or os.environ.get("OUT") or ROOT / "benchmarks/results"
    name = gpu_report.result_name(facts["gpu"]["name"], f"{now:%Y%m%d}", facts["commit"])
    results: list[Result] = []
    for group in sorted({stage.group for stage in stages}):
        together = [stage for stage in stages if stage.group == group]
        left = limit - (time.monotonic() - begin)
        print(
            f"{time.monotonic() - begin:5.0f} s  {', '.join(s.name for s in together)}", flush=True
        )
        ready = [s for s in together if not s.impossible and left > 0]
        for stage in together:
            if stage.impossible:
                results.append(Result(stage.name, "skipped", 0, stage.impossible))
            elif left <= 0:
                verdict = "stopped" if stage.may_stop else "FAILED"
                results.append(Result(stage.name, verdict, 0, "no time was left"))
        results += run_together(ready, left)
        gpu_report.write(Path(folder) / name, facts, results)
    add_shares(results)
    gpu_report.write(Path(folder) / name, facts, results)
    for result in results:
        if result.status == "FAILED" and result.output:
            print(f"\n--- {result.name}\n{result.output[-1500:]}")
    print(gpu_report.table(results))
    print(f"{Path(folder) / name}")
    return results


def main() -> int:
    """Find the GPU, run the stages, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="list the stages; needs no GPU")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="run these stages alone")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds, default {LIMIT:.0f}")
    arguments = parser.parse_args()
    facts = read_facts()
    problem = facts.pop("problem", None)
    if problem and not arguments.dry_run:
        print(f"gpu: {problem}", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder:
        stages = list_stages(ROOT, Path(folder), facts.get("opcheck_needs"))
        unknown = set(arguments.only or []) - {stage.name for stage in stages}
        if unknown:
            parser.error(f"no stage {', '.join(sorted(unknown))}; --dry-run lists them")
        stages = [s for s in stages if not arguments.only or s.name in arguments.only]
        if arguments.dry_run:
            for stage in stages:
                hint = "; ".join(filter(None, [stage.impossible, stage.missing]))
                print(f"{stage.group:2} {stage.name:12} {stage.limit:4.0f} s  {hint}".rstrip())
            return 0
        if facts["missing"]:
            print(f"not installed: {', '.join(facts['missing'])}")
        return int(not gpu_report.passed(run(stages, facts, arguments.limit)))


if __name__ == "__main__":
    sys.exit(main())

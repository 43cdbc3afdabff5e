"""Build fasthg on a machine with a GPU, prove it there and measure it: `make gpu`.

    python tools/gpu.py [--dry-run] [--only STAGE ...] [--limit SECONDS]

The stages take more than the limit, so that what nobody knows comes first; a second and a third
call, `--only compiled captured-2` and `--only autotuned`, go on. What torch.compile made is kept in
build/, with OUT set also in OUT/compiled: to go on at another machine, copy that to build/compiled.

Runs by any Python that has torch and takes nothing from the network. Each stage is a process with a
time limit; what a missing package prevents is skipped and named. All results go to one file,
benchmarks/results/<gpu>-<time>-<commit>.json, which `make performance` reads; GPU_RESULTS or OUT
names another folder, GPU_COMMIT the commit of a tree that came without its history.
Exit status: 0, 1 if a stage failed, 3 without a GPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
LIMIT, LIMIT_CHECKS = 530.0, 150.0
GRACE = 15.0  # seconds between an interrupt and the end
WORKERS = min(8, len(os.sched_getaffinity(0)))
NO_GPU = 3
KEPT_OUTPUT = 6000  # characters
# In place of pyproject's options, one of which belongs to a plugin that may be missing.
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
PYTEST += ["-o", "addopts=--strict-markers --import-mode=importlib"]
INTERRUPTED, NO_TESTS = 2, 5  # pytest's exit status
ABSENT = re.compile(r"No module named '?(?!fasthg)([\w.]+)")
SUMMARY = r"(?:ERROR|RACECHECK) SUMMARY: .*"
WHOLE_NETWORK = ("pytest", "pytest_benchmark", "pydantic", "yaml", "cv2", "google_crc32c")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# racecheck ends with an error of its own ("failed to handle a hardware exception"; 2025.3.1, H200)
# at the asynchronous copies of these; the other tools find nothing in them.
WITH_ASYNC_COPIES = ("conv1x1_act", "conv1x1_bn", "residual_block")
BUILD = "build"
# Tests of the kernels that few visits have proved: before the others, which may take all the time.
LEAST_PROVED = (
    "test_bn_act",
    "test_conv1x1_act",
    "test_conv1x1_bn",
    "test_max_pool2x",
    "test_residual",
)
STOCK = ("2-8", "8-8")  # stacks and batch
EAGER = ("reference", "reference, TF32", "eager channels_last")
CAPTURED = ("captured", "captured, fp16")
COMPILED = ("torch.compile", "torch.compile, max-autotune")
VARIANTS, PIECES = "step_variants and cuda", "step_pieces and cuda"
# Ignored folders, kept between visits to a machine; files of MADE also serve another machine.
MADE = ROOT / "build" / "compiled"
COMPILER = {
    "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "inductor"),
    "TRITON_CACHE_DIR": str(ROOT / "build" / "triton"),
    "TORCHINDUCTOR_COMPILE_THREADS": str(len(os.sched_getaffinity(0))),
    "BENCH_COMPILED": str(MADE),
}
TRAINING = """
data="demo-data --seed 0 --train 400 --val 50 --test 50"
{python} -m fasthg data synth $data
{python} -m fasthg train {root}/configs/demo.yaml
{python} -m fasthg eval runs/* --json
{python} -m fasthg bench {root}/configs/demo.yaml --seconds 3 --json
"""


@dataclass
class Stage:
    """One process.

    limit: seconds since its group's start. needs: packages without which it is skipped. measures:
    reaching the limit is no failure, and the results until then count. summary: pattern of a line
    that the output must have. report: a file of pytest-benchmark that the command writes.
    """

    name: str
    limit: float
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    measures: bool = False
    summary: str = ""
    report: Path | None = None
    folder: Path = ROOT


@dataclass
class Result:
    """Outcome of a stage. status: passed, FAILED, stopped (at its limit) or skipped."""

    name: str
    status: str
    seconds: float = 0.0
    note: str = ""
    command: str = ""
    output: str = ""


def list_groups(
    folder: Path, opcheck_needs: str | None = None, capability: str = "9.0"
) -> list[list[Stage]]:
    """Groups of stages, which run side by side; groups run one after the other.

    folder: for what they write. opcheck_needs: a package that torch's opcheck lacks. capability:
    the GPU's, for which alone the kernels are compiled.
    """
    script = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    architecture = {"9.0": "90a"}.get(capability, capability.replace(".", ""))
    architecture = os.environ.get("FASTHG_CUDA_ARCH", architecture)
    environment = {"FASTHG_CUDA": "on", "FASTHG_CUDA_ARCH": architecture}
    build = Stage(BUILD, LIMIT_CHECKS, script, environment, ("pybind11", "setuptools"))
    check = [sys.executable, str(ROOT / "tools" / "gpu_check_ops.py")]
    checks = [Stage("operators", LIMIT_CHECKS, check, ONE_THREAD)]
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [find_sanitizer() or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        if tool != "memcheck":  # hazards in torch's kernels are not ours to find, and cost time
            command += ["--kernel-name", "kns=fasthg"]
        command += check
        if tool == "racecheck":
            command += ["--without", *WITH_ASYNC_COPIES]
        # Each tensor has an allocation of its own, so that reading beyond its end is seen.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **ONE_THREAD}
        checks.append(Stage(tool, LIMIT_CHECKS, command, environment, summary=SUMMARY))
    selection = ["-k", "not opcheck"] if opcheck_needs else []
    for file in gpu_tests():
        command = [*PYTEST, "-m", "gpu", *selection, file]
        checks.append(Stage(file, LIMIT_CHECKS, command, ONE_THREAD, ("pytest",)))

    def networks(name: str, limit: float, *rows: str, compiles: bool = False) -> Stage:
        report = folder / f"{name}.json"
        command = [*PYTEST, f"--benchmark-json={report}", *rows]
        environment = COMPILER if compiles else {}
        return Stage(name, limit, command, environment, WHOLE_NETWORK, True, report=report)

    report = folder / "benchmarks.json"
    operators = [*PYTEST, f"--benchmark-json={report}", "-m", "gpu and not slow"]
    operators += [f"benchmarks/{path.name}" for path in sorted(BENCHMARKS.glob("bench_*.py"))]
    training = ["bash", "-exc", TRAINING.format(python=sys.executable, root=ROOT)]
    default, autotuned = (["fasthg", name] for name in COMPILED)
    compiled = of_steps(8, default) + names_of("inference", STOCK, default)
    # One at a time, because these are timed: first what no results file has, last what was measured
    # most often. The proofs have their time in every visit, whatever comes before them takes.
    profiled = names_of("step_profile", (8, 32, 64), ("STEP eager", "fasthg"))
    pieces = ["benchmarks/bench_training_step.py", "-k", PIECES]
    first = [
        networks("profile", 85, *profiled),
        networks("captured-8", 100, *of_steps(8, ("fasthg", *CAPTURED))),
    ]
    then = [
        networks("pieces", 150, *pieces),
        networks("compiled", 300, *compiled, compiles=True),
        networks("captured-2", 75, *of_steps(2, ("fasthg", *CAPTURED))),
        networks("autotuned", 500, *of_steps(8, autotuned), compiles=True),
        networks("whole", 100, *names_of("end_to_end", ("8-8",), ("fasthg", *CAPTURED))),
        networks("inference", 60, *names_of("inference", STOCK, ("fasthg", *CAPTURED, *EAGER))),
        networks("eager-8", 100, *of_steps(8, ("fasthg", *EAGER))),
        networks("eager-2", 75, *of_steps(2, ("fasthg", *EAGER))),
        networks("variants", 90, "benchmarks/bench_training_step.py", "-k", VARIANTS),
        Stage("benchmarks", 75, operators, {}, WHOLE_NETWORK, True, report=report),
        Stage("training", 150, training, {}, WHOLE_NETWORK, True, folder=folder),
    ]
    return [[build], *([stage] for stage in first), checks, *([stage] for stage in then)]


def names_of(benchmark: str, values: Iterable[object], providers: Iterable[str]) -> list[str]:
    """pytest's names of rows on a GPU: those of a benchmark for values of its parameters."""
    file = "training_step" if benchmark.startswith("step") else benchmark
    start = f"benchmarks/bench_{file}.py::bench_{benchmark}[cuda"
    return [f"{start}-{value}-{provider}]" for value in values for provider in providers]


def of_steps(stacks: int, providers: Iterable[str]) -> list[str]:
    """Rows of training steps with batches of 8, 32 and 64."""
    return names_of("training_step", [f"{stacks}-{batch}" for batch in (8, 32, 64)], providers)


def gpu_tests() -> list[str]:
    """Test files with the mark gpu, in themselves or in their folder's fixtures."""
    files = []
    for path in sorted((ROOT / "tests").rglob("test_*.py"), reverse=True):
        sources = [path, *path.parent.glob("conftest.py")]
        if any("mark.gpu" in source.read_text(encoding="utf-8") for source in sources):
            files.append(str(path.relative_to(ROOT)))
    return sorted(files, key=lambda file: not Path(file).stem.startswith(LEAST_PROVED))


def kernels_problem() -> str | None:
    """Why fasthg has no kernels on this GPU, None if it has; in a process of its own, anew."""
    code = (
        "import json; from fasthg.ops import _extension as e; print(json.dumps(e.choose('cuda')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        return done.stderr.strip()[-300:]
    works, reason = json.loads(done.stdout.splitlines()[-1])
    return None if works else reason


def find_sanitizer() -> str | None:
    """compute-sanitizer on the path, or next to nvcc, where not every toolkit links it."""
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [place.parent / "compute-sanitizer" for place in places]
    places += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    return shutil.which("compute-sanitizer", path=path)


def run_stage(stage: Stage, end: float) -> Result:
    """Run a stage, and stop it when `end`, on the monotonic clock, has come."""
    begin = time.monotonic()
    absent = [name for name in stage.needs if importlib.util.find_spec(name) is None]
    if absent or begin >= end:
        status = "skipped" if absent else "stopped" if stage.measures else "FAILED"
        note = f"not installed: {', '.join(absent)}" if absent else "no time was left"
        return Result(stage.name, status, 0.0, note)
    folders = [str(ROOT / name) for name in ("", "benchmarks", "tests/support")]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    status: int | None
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                stage.command,
                cwd=stage.folder,
                env={
                    **os.environ,
                    "PYTHONPATH": path,
                    "PYTHONUNBUFFERED": "1",
                    **stage.environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Result(stage.name, "skipped", 0.0, f"{stage.command[0]}: {error.strerror}")
        try:
            status = process.wait(end - begin)
        except subprocess.TimeoutExpired:
            status = None
            # All of its processes; at an interrupt pytest still writes its report.
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    return judge(stage, status, time.monotonic() - begin, text)


def judge(stage: Stage, status: int | None, seconds: float, output: str) -> Result:
    """The result of a stage from its exit status (None: stopped at its limit) and its output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or [""]
    note, absent = lines[-1], ABSENT.search(lines[-1] if status != INTERRUPTED else output)
    summary = re.findall(stage.summary, output) if stage.summary else ["none needed"]
    if status is None:
        verdict, note = "stopped" if stage.measures else "FAILED", f"at its limit; {note}"
    elif "Device not supported" in output and stage.summary:
        verdict, note = "skipped", "compute-sanitizer does not serve this device"
    elif status == NO_TESTS and "pytest" in stage.command:
        verdict = "skipped"
    elif status and absent:
        verdict, note = "skipped", f"not installed: {absent[1]}"
    elif status or not summary:
        verdict, note = "FAILED", f"signal {-status}; {note}" if status and status < 0 else note
    else:
        verdict = "passed"
    if stage.summary and summary:
        note = summary[-1]
    result = Result(stage.name, verdict, round(seconds, 1), note[:160], " ".join(stage.command))
    result.output = "\n".join(lines)[-KEPT_OUTPUT:]
    return result


def run(groups: list[list[Stage]], facts: dict[str, Any], limit: float) -> bool:
    """Run all groups and write the results file anew after each; whether no stage failed."""
    begin, now = time.monotonic(), datetime.datetime.now(datetime.UTC)
    name, dirty = commit()
    place = os.environ.get("GPU_RESULTS") or os.environ.get("OUT") or BENCHMARKS / "results"
    gpu = re.sub(r"[^a-z0-9]+", "-", facts["gpu"]["name"].lower()).strip("-")
    # By the minute: the stages of one visit may be spread over several calls.
    mark = f"{now:%Y%m%dT%H%M}-{name[:7]}{'-changed' if dirty else ''}"
    file = Path(place) / f"{gpu}-{mark}.json"
    content = {
        "passed": True,
        "datetime": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "commit_info": {"id": name, "dirty": dirty},
        **facts,
    }
    results: list[Result] = []
    rows: list[dict[str, Any]] = []
    for group in groups:
        start = time.monotonic()
        print(f"{start - begin:5.0f} s  {', '.join(stage.name for stage in group)}", flush=True)
        ends = [min(start + stage.limit, begin + limit) for stage in group]
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            results += pool.map(run_stage, group, ends)
        for stage in group:
            if stage.report and stage.report.is_file():
                report = json.loads(stage.report.read_text(encoding="utf-8"))
                rows += report["benchmarks"]
                content |= {"machine_info": report["machine_info"], "benchmarks": rows}
        built = any(stage.name == BUILD for stage in group)
        problem = kernels_problem() if built else None
        if problem:
            # What follows would measure and check torch's operators in the kernels' name.
            results.append(Result("kernels", "FAILED", note=problem, output=problem))
        content["passed"] = all(result.status != "FAILED" for result in results)
        content["stages"] = [vars(result) for result in results]
        write(file, content)
        if problem:
            break
    if (out := os.environ.get("OUT")) and MADE.is_dir():
        shutil.copytree(MADE, Path(out) / MADE.name, dirs_exist_ok=True)
    for row in rows:
        print(told(row))
    for result in results:
        if result.status == "FAILED":
            print(f"\n--- {result.name}\n{result.output[-1500:]}")
    for result in results:
        print(f"{result.name:40} {result.status:8} {result.seconds:6.1f} s  {result.note}".rstrip())
    print(file)
    return bool(content["passed"])


def told(row: dict[str, Any]) -> str:
    """A row of pytest-benchmark in words, with its kernels' ms by class where it has a profile."""
    info = row["extra_info"]
    name = f"{row['group']}: {row['params']['provider']}"
    line = f"{name:60} {row['stats']['median'] * 1e3:10.4g} ms  {info.get('x fasthg', '')}"
    if "compiled in s" in info:
        line += f"  compiled in {info['compiled in s']} s"
        line += f", {info['functions from a cache']} functions from a cache"
    if profile := info.get("profile"):
        classes = profile["classes"].items()
        sums = (f"{kind} {total['us'] / 1e3:.2f}" for kind, total in classes)
        line += f"\n    {profile['ms of kernels']} ms of kernels: {', '.join(sums)}"
    return line


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a results file, whole or not at all, without the places of this machine."""
    text = json.dumps(content, indent=1)
    # An environment may lie in the tree, so that the tree goes last.
    for place, name in ((sys.executable, "python3"), (sys.prefix, "PREFIX"), (f"{ROOT}/", "")):
        text = text.replace(place, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(file)


def first_line(*command: str) -> str:
    """The first line that a command prints, or that it was not found."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not found ({type(error).__name__})"
    return (done.stdout.strip().splitlines() or ["no answer"])[0].strip()


def commit() -> tuple[str, bool]:
    """Name of the commit, and whether the tree differs from it; `unknown` without git."""
    if name := os.environ.get("GPU_COMMIT"):
        return name, False
    name = first_line("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not re.fullmatch("[0-9a-f]{40}", name):
        return "unknown", False
    return name, first_line("git", "-C", str(ROOT), "status", "--porcelain") != "no answer"


def read_facts() -> dict[str, Any]:
    """GPU, driver and versions; or `problem`, why there is no GPU."""
    try:
        import torch
    except ImportError as error:
        return {"problem": f"torch does not load in {sys.executable} ({error})"}
    if not torch.cuda.is_available():
        return {"problem": f"torch {torch.__version__} finds no GPU here; for a CPU: make test"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions, missing = {}, []
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        name = re.split(r"[^\w.-]", requirement)[0]
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_gib": round(gpu.total_memory / 2**30, 1),
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
    """Find the GPU, run the stages, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="list the stages; needs no GPU")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these, or below this folder")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds, default {LIMIT:.0f}")
    arguments = parser.parse_args()
    facts = read_facts()
    if "problem" in facts and not arguments.dry_run:
        print(f"gpu: {facts['problem']}", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder:
        capability = facts.get("gpu", {}).get("capability", "9.0")
        groups = list_groups(Path(folder), facts.get("opcheck_needs"), capability)
        builds = groups[0]
        if arguments.only:
            words, stages = arguments.only, [stage.name for group in groups for stage in group]
            if unknown := [
                w for w in words if not any(f"{s}/".startswith(f"{w}/") for s in stages)
            ]:
                parser.error(f"no stage {', '.join(unknown)}; --dry-run lists them")
            groups = [
                [s for s in group if any(f"{s.name}/".startswith(f"{w}/") for w in words)]
                for group in groups
            ]
            groups = [group for group in groups if group]
        if arguments.dry_run:
            for number, group in enumerate(groups):
                for stage in group:
                    print(f"{number:2} {stage.limit:4.0f} s  {stage.name}")
            return 0
        if groups[0] != builds and (problem := kernels_problem()):
            print(f"built first: {problem}")
            groups.insert(0, builds)
        if facts["missing"]:
            print(f"not installed: {', '.join(facts['missing'])}")
        return int(not run(groups, facts, arguments.limit))


if __name__ == "__main__":
    sys.exit(main())

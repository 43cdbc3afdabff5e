"""Mutation check: plausible defects in a copy of the tree, each of which a test must notice.

    python tools/mutants.py [--list] [--only NAME]... [--keep]

Each mutant replaces one piece of text in one file. Its tests must pass without it and fail with it.
All happens in a temporary copy, so that the tree, and whoever works on it, is left alone. A mutant
of csrc builds the extension there, for the CPU; objects are kept by the preprocessed source, so
that only what a mutant changes is compiled again. --list also checks the table against the files.

Exit status: 1 if a mutant survives, if its tests do not pass without it, or if its text does not
stand exactly once in its file any more; else 0.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LIMIT_S = 600  # of the tests of one mutant; one that hangs is noticed, too
TESTS_FAILED = 1  # pytest's exit status; others mean that no test has judged


@dataclass(frozen=True)
class Mutant:
    """A defect: in `file`, `old` becomes `new`; `tests` are pytest's files or node ids."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "rates of one rank",
        "fasthg/training/logging.py",
        "        images_per_s *= group.size\n",
        "",
        ("tests/training/test_logging.py::test_rates_and_losses_are_those_of_all_ranks",),
    ),
    Mutant(
        "no fsync",
        "fasthg/files.py",
        "        os.fsync(file.fileno())\n",
        "        pass\n",
        ("tests/test_files.py",),
    ),
    Mutant(
        "last row stands in for all",
        "fasthg/data/sampler.py",
        "return good[place % len(good)]",
        "return good[np.minimum(place, len(good) - 1)]",
        ("tests/data/test_sampler.py::test_rows_that_stand_in",),
    ),
    Mutant(
        "brightness only up",
        "fasthg/data/augment.py",
        "_between(u[12], -MAX_BRIGHTNESS, MAX_BRIGHTNESS)",
        "_between(u[12], 0.0, MAX_BRIGHTNESS)",
        ("tests/data/test_augment.py::test_ranges_are_filled_and_never_left",),
    ),
    Mutant(
        "border reflected",
        "fasthg/data/opencv_loader.py",
        "borderMode=cv2.BORDER_REPLICATE",
        "borderMode=cv2.BORDER_REFLECT_101",
        ("tests/data/test_loaders_agree.py::test_pixels_agree",),
    ),
    Mutant(
        "window without margin",
        "fasthg/geometry.py",
        "np.floor(read.min(axis=1) - 0.5).astype(np.int64) - 1 - margin",
        "np.floor(read.min(axis=1) - 0.5).astype(np.int64) + 1 - margin",
        ("tests/test_geometry.py::test_the_window_holds_every_pixel_the_warp_reads",),
    ),
    Mutant(
        "fractional decay steps",
        "fasthg/training/optim.py",
        "max(int(epoch * config.NUM_EPOCHS_PER_DELAY), 1)",
        "max(epoch * config.NUM_EPOCHS_PER_DELAY, 1)",
        ("tests/training/test_optim.py::test_decay_steps_are_whole_as_in_tensorflow",),
    ),
    Mutant(
        "precision right of a recall",
        "fasthg/metrics.py",
        'np.searchsorted(row, _RECALLS, side="left")',
        'np.searchsorted(row, _RECALLS, side="right")',
        ("tests/test_metrics.py",),
    ),
    Mutant(
        "one miss more",
        "fasthg/inference/video/tracking.py",
        "if self._misses >= PATIENCE",
        "if self._misses > PATIENCE",
        (
            "tests/inference/video/test_predict_source.py::test_tracking_follows_loses_and_finds_again",
        ),
    ),
    Mutant(
        "flip without its shift",
        "fasthg/inference/predictor.py",
        "return torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=3)",
        "return mirrored",
        (
            "tests/inference/test_predictor.py::test_flip_back_puts_mirrored_keypoints_where_they_were",
        ),
    ),
    Mutant(
        "another seed resumes",
        "fasthg/training/resume.py",
        '(("batch_size", "BATCH_SIZE"), ("seed", "RANDOM_SEED"))',
        '(("batch_size", "BATCH_SIZE"),)',
        ("tests/training/test_resume.py::test_another_order_of_the_data_is_refused",),
    ),
    Mutant(
        "index of a replaced file",
        "fasthg/data/index/cache.py",
        "stat.st_mtime_ns, stat.st_ctime_ns)",
        "stat.st_mtime_ns)",
        ("tests/data/test_index_cache.py::test_other_files_have_another_index",),
    ),
    Mutant(
        "averages of a failed capture",
        "fasthg/training/step.py",
        "tensors = [self.flat.values, self.averages]",
        "tensors = [self.flat.values]",
        ("tests/training/test_step.py::test_replayed_steps_are_those_that_python_runs[stock]",),
    ),
    Mutant(
        "no record_stream",
        "fasthg/data/prefetch.py",
        "            tensor.record_stream(compute)\n",
        "            pass\n",
        (
            "tests/data/test_device_batches.py::test_copies_wait_for_no_step_and_steps_for_their_copies",
        ),
    ),
    Mutant(
        "unfinished rows stay",
        "fasthg/inference/video/row_store.py",
        "self._file.truncate(len(self._head) + self.done * self._record.itemsize)",
        "pass",
        (
            "tests/inference/video/test_predict_source.py::test_stopping_leaves_finished_rows_and_resume_goes_on",
        ),
    ),
    Mutant(
        "kept half as often",
        "fasthg/runs/checkpoint.py",
        "if saved - self._last_kept >= self.keep_every:",
        "if saved - self._last_kept > 2 * self.keep_every:",
        ("tests/runs/test_checkpoint.py::test_one_in_n_hours_stays_for_good",),
    ),
    Mutant(
        "overflow stops the averages",
        "csrc/rmsprop_ema_cpu.cpp",
        "if (b.averages) average_block",
        "if (b.averages && !skip) average_block",
        ("tests/ops/test_rmsprop_ema.py::test_an_overflow_moves_the_averages_only",),
    ),
    Mutant(
        "NaN becomes 0 in conv3x3",
        "csrc/conv3x3_cpu.cpp",
        "values[c] = conv.relu && value < 0 ? 0.0f : value;",
        "values[c] = conv.relu ? (value > 0 ? value : 0.0f) : value;",
        ("tests/ops/test_conv3x3.py::test_nan_passes_and_stays_in_its_tiles",),
    ),
    Mutant(
        "determinant of DARK in C++ alone",
        "csrc/heatmap_peaks_math.h",
        "kMinimumDeterminant = 1e-3",
        "kMinimumDeterminant = 1e-2",
        ("tests/ops/test_heatmap_peaks.py::test_dark_steps_along_blunt_ridges_alone",),
    ),
    Mutant(
        "end of the work not told",
        "csrc/parallel.h",
        "if (finished_ == items_) all_finished_.notify_one();",
        "if (finished_ == items_ + 1) all_finished_.notify_one();",
        ("tests/ops/test_gaussian_heatmaps.py::test_a_forked_process_waits_for_its_threads",),
    ),
    Mutant(
        "last share left out",
        "csrc/parallel.h",
        "while ((begin = next_.fetch_add(size_)) < items_) {",
        "while ((begin = next_.fetch_add(size_)) + size_ < items_ + 1) {",
        (
            "tests/ops/test_upsample2x_add.py::test_threads_and_runs_do_not_change_a_bit",
            "tests/ops/test_moving_statistics.py::test_threads_and_runs_do_not_change_a_bit",
        ),
    ),
    Mutant(
        "ties of bfloat16 away from 0",
        "csrc/bfloat16.h",
        "word += 0x7fffu + (word >> 16 & 1u);",
        "word += 0x8000u;",
        ("tests/ops/test_upsample2x_add.py::test_sums_in_bfloat16_round_ties_to_even",),
    ),
    Mutant(
        "a fake result lies otherwise",
        "fasthg/ops/upsample2x_add.py",
        "lambda low, high: _layout.empty_like(high),",
        "lambda low, high: high.new_empty(high.shape),",
        ("tests/ops/test_upsample2x_add.py::test_gradcheck_and_registration",),
    ),
    Mutant(
        "any layout read as channels last",
        "fasthg/ops/_layout.py",
        "return _extension.as_dtype(values, dtype).contiguous(memory_format=torch.channels_last)",
        "return _extension.as_dtype(values, dtype)",
        ("tests/ops/test_max_pool2x.py::test_against_torch",),
    ),
    Mutant(
        "biased running variance",
        "fasthg/model/running_stats.py",
        "corrections.fill_(count / max(count - 1, 1))",
        "corrections.fill_(1.0)",
        ("tests/model/test_running_stats.py::test_equals_layers_that_move_by_themselves",),
    ),
)


def copy_tree(target: Path) -> None:
    """Copy what git tracks or would track, and the built extension."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    built = [str(path.relative_to(REPOSITORY)) for path in extensions(REPOSITORY)]
    for name in [*filter(None, names.stdout.split("\0")), *built]:
        if (REPOSITORY / name).is_file():  # not one that is deleted, but not yet for git
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


def extensions(tree: Path) -> list[Path]:
    """The built extension, if there is one."""
    return sorted((tree / "fasthg").glob("_C*.so"))


def build(tree: Path) -> None:
    """Build the extension of a tree for the CPU, with `compile_once` as the compiler.

    Raises:
        SystemExit: it does not compile; the compiler's words are on stderr.
    """
    compiler = f"{sys.executable} {Path(__file__).resolve()} --compile {tree.parent / 'objects'}"
    environment = {**os.environ, "FASTHG_CUDA": "off", "FASTHG_NATIVE": "0"}
    environment |= {"CC": f"{compiler} gcc", "CXX": f"{compiler} g++"}
    for old in extensions(tree):
        old.unlink()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, env=environment, check=True)
    if not extensions(tree):  # setup.py leaves it out where it does not compile
        raise SystemExit(f"mutants: the extension in {tree} does not compile")


def compile_once(objects: Path, command: list[str]) -> int:
    """Run a compiler, or copy the object that it made of the same preprocessed source before."""
    if "-c" not in command:
        return subprocess.run(command).returncode
    target = Path(command[command.index("-o") + 1])
    preprocess = [word for word in command if word != "-c"]
    preprocess[preprocess.index("-o") : preprocess.index("-o") + 2] = ["-E", "-P"]
    source = subprocess.run(preprocess, capture_output=True, check=True).stdout
    # What -D and -I did stands in the source.
    flags = [word for word in command if word.startswith(("-O", "-f", "-m", "-std"))]
    kept = objects / hashlib.sha256(source + repr(flags).encode()).hexdigest()
    if not kept.is_file():
        status = subprocess.run(command).returncode
        if status:
            return status
        objects.mkdir(exist_ok=True)
        shutil.copy2(target, kept)
    shutil.copy2(kept, target)
    return 0


def run_tests(tree: Path, tests: Iterable[str], limit: float) -> tuple[int | None, str]:
    """Exit status (None at the limit in seconds), and the first failure or pytest's last line."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    # Whether and when a test fails must not depend on byte code of the file before.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no"]
    try:
        done = subprocess.run(
            [*command, "-rf", *tests],
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return None, f"no end within {limit:.0f} s"
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith("FAILED ")]
    return done.returncode, (failed or lines or [""])[0 if failed else -1].removeprefix("FAILED ")


def stale(mutant: Mutant, tree: Path) -> str:
    """Why a mutant cannot be made, or nothing."""
    path = tree / mutant.file
    if not path.is_file():
        return f"{mutant.file} is gone"
    count = path.read_text().count(mutant.old)
    if count != 1:
        return f"{mutant.file} has {mutant.old.strip()!r} {count} times: expected once"
    for test in mutant.tests:
        file, _, function = test.partition("[")[0].partition("::")
        if not (tree / file).is_file():
            return f"no {file}"
        if function and f"def {function}(" not in (tree / file).read_text():
            return f"no {function} in {file}"
    return ""


def judge(mutant: Mutant, tree: Path) -> tuple[bool, str]:
    """Make a mutant in the tree, run its tests and undo it: whether it was noticed, and by what."""
    native = mutant.file.startswith("csrc/")
    path = tree / mutant.file
    text = path.read_text()
    kept = {so: so.read_bytes() for so in extensions(tree)}
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        if native:
            build(tree)
        status, line = run_tests(tree, mutant.tests, LIMIT_S)
    finally:
        path.write_text(text)
        if native:
            for so, content in kept.items():
                so.write_bytes(content)
    if status in (TESTS_FAILED, None):
        return True, f"killed    {mutant.name}: {line}"
    word = "SURVIVED " if status == 0 else "NOT RUN  "
    return False, f"{word} {mutant.name}: {' '.join(mutant.tests)} ends with: {line}"


def main() -> int:
    """Judge the mutants; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="check the table against the files")
    parser.add_argument("--only", action="append", metavar="NAME", help="these mutants")
    parser.add_argument("--keep", action="store_true", help="leave the copy where it is")
    arguments = parser.parse_args()
    names = [mutant.name for mutant in MUTANTS]
    for name in arguments.only or ():
        if name not in names:
            parser.error(f"no mutant {name!r}; --list names them")
    chosen = [m for m in MUTANTS if not arguments.only or m.name in arguments.only]
    reasons = {mutant.name: reason for mutant in chosen if (reason := stale(mutant, REPOSITORY))}
    if arguments.list or reasons:
        for mutant in chosen:
            print(f"{mutant.name}: {reasons.get(mutant.name, mutant.file)}")
        return int(bool(reasons))
    folder = Path(tempfile.mkdtemp(prefix="fasthg-mutants-"))
    try:
        tree = folder / "tree"
        copy_tree(tree)
        if any(mutant.file.startswith("csrc/") for mutant in chosen) or not extensions(tree):
            build(tree)
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        status, line = run_tests(tree, tests, LIMIT_S * len(chosen))
        if status != 0:
            print(f"the tests do not pass without a mutant: {line}")
            return 1
        survivors = []
        for mutant in chosen:
            begin = time.monotonic()
            noticed, line = judge(mutant, tree)
            print(f"{line}  ({time.monotonic() - begin:.0f} s)", flush=True)
            survivors += [] if noticed else [mutant.name]
    finally:
        if arguments.keep:
            print(f"the copy is in {folder}")
        else:
            shutil.rmtree(folder)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants are noticed")
    return int(bool(survivors))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        sys.exit(compile_once(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())

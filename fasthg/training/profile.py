"""Memory and time of a training on this machine: `fasthg bench` and `fasthg train --dry-run`.

`bench` measures the loader, the step and both together, and says which one limits. `dry_run` runs
two steps, a validation and a save as a training does, and says what the whole run would take.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.data.loader import Loader, available_cores, loader_choice, make_loader
from fasthg.data.prefetch import Prefetcher
from fasthg.data.split import Split, open_split
from fasthg.errors import ConfigError
from fasthg.inference.predictor import Predictions
from fasthg.model import build_model
from fasthg.ops import paths
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.device import choose_device, choose_precision
from fasthg.runtime.process import peak_bytes
from fasthg.runtime.tables import print_table
from fasthg.training import recipe
from fasthg.training.environment import describe_environment
from fasthg.training.finetune import starting_weights
from fasthg.training.logging import EventWriter, ProgressLine
from fasthg.training.memory import GIB, explained_out_of_memory
from fasthg.training.setup import check_batch_norm, open_data
from fasthg.training.step import TrainStep
from fasthg.training.trainer import Training
from fasthg.words import duration

FRAMES, FRAME_SIZE = 48, (1024, 570)
"""Synthetic frames that replace DATA.TRAIN where it is not set; MARS films 1024x570 px."""
LEAST_STEPS, MOST_STEPS = 3, 2000
"""Steps that `bench` times, however long or short they take."""
WAIT_LIMIT = 0.1
"""Share of the time waiting for data from which on the loader limits."""
DRY_STEPS = 2
"""Steps of a dry run: the first may compile, capture or allocate, the second is like all others."""
DRY_BATCHES = 8
"""Validation batches of a dry run, at most; the time of all follows from them."""
_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Report:
    """What `bench` measured, and what limits."""

    figures: dict[str, Any]
    """data, batch_size, loader, step, both and memory; images a second, seconds, bytes."""
    limits: Literal["loader", "step"]
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """Everything, with the facts of the machine."""
        advice = {"limits": self.limits, "sentence": self.sentence}
        return {**self.figures, **advice, "environment": describe_environment()}

    def print(self, console: Console) -> None:
        """Print the table and the sentence."""
        loader, step, both = (self.figures[part] for part in ("loader", "step", "both"))
        memory = self.figures["memory"]
        workers = f"{loader['threads']} of {loader['cores']} cores" if loader["threads"] else "none"
        notes = {
            "loader alone": f"{loader['name']}, workers: {workers}",
            "step alone": f"{step['mode']}, {step['precision']} on {step['device']}, "
            f"{step['seconds_median']:.3g} s a step (median of {step['steps']})",
            "both": f"{both['wait_share']:.0%} of the time waiting for data",
        }
        rows = [
            [name, _rate(part["images_per_s"]), note]
            for (name, note), part in zip(notes.items(), (loader, step, both), strict=True)
        ]
        print_table(console, ["", "images/s", ""], rows, text_last=True)
        console.print(f"peak memory: {memory['peak_bytes'] / GIB:.2f} GiB of {memory['of']}")
        console.print(self.sentence, markup=False, highlight=False, soft_wrap=True)


def bench(
    config: Config, seconds: float = 10.0, say: Callable[[str], None] = lambda text: None
) -> Report:
    """Measure loader, step, and both together as a training runs them.

    Args:
        config: its data is used; synthetic frames where DATA.TRAIN is not set.
        seconds: for each of the three; LEAST_STEPS are timed in any case.
        say: called with lines of progress.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.
    """
    device = choose_device(config.DEVICE)
    config, choices = recipe.resolved(config, device)
    for line in choices:
        say(line)
    with contextlib.ExitStack() as stack:
        synthetic = config.DATA.TRAIN is None
        if synthetic:
            say(f"DATA.TRAIN is not set: {FRAMES} synthetic frames replace it")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fasthg-bench-"))
            config = with_synthetic_frames(config, Path(folder))
        check_batch_norm(config)
        assert config.DATA.TRAIN is not None
        split = open_split(config, config.DATA.TRAIN, device, training=True)
        stack.callback(split.close)
        stack.enter_context(explained_out_of_memory(config, device))
        _begin_peak(device)
        say(f"measuring the loader, {seconds:g} s")
        loading, batch = _time_loader(split.loader, config, device, seconds)
        # Closed, so that it makes nothing while the step is timed alone.
        split.close()
        say(f"measuring the step, {seconds:g} s")
        step = TrainStep(config, build_model(config).to(device), device)
        stepping = _time_step(step, batch, seconds)
        say(f"measuring both, {seconds:g} s")
        loader = make_loader(split.sampler, config, device)
        stack.callback(loader.close)
        both = _time_both(loader, step, config, seconds)
    figures = {
        "data": {"instances": len(split.index), "synthetic": synthetic},
        "batch_size": config.BATCH_SIZE,
        "loader": {"name": split.loader.name, **_threads(config), **loading},
        "step": {
            "mode": step.mode.name,
            "precision": step.precision.name,
            "device": device.type,
            **stepping,
        },
        "both": both,
        "memory": {
            "peak_bytes": _peak_memory(device),
            "of": "the GPU" if device.type == "cuda" else "this process",
        },
    }
    return Report(figures, *advise(config, figures))


def with_synthetic_frames(config: Config, folder: Path) -> Config:
    """The configuration with frames rendered into a folder as its training split.

    Raises:
        ConfigError: its animals have other parts than the synthetic mice.
    """
    from fasthg.data.synthetic.dataset import PART_NAMES, write_dataset

    if len(PART_NAMES) != config.PARTS.NUM_PARTS:
        raise ConfigError(
            f"DATA.TRAIN: not set, and the synthetic frames that would replace it have "
            f"{len(PART_NAMES)} parts, not {config.PARTS.NUM_PARTS}; give a glob of TFRecord files"
        )
    files = write_dataset(folder, seed=0, frames={"train": FRAMES}, size=FRAME_SIZE)
    data = config.DATA.model_copy(update={"TRAIN": tuple(str(path) for path in files)})
    return config.model_copy(update={"DATA": data})


def advise(config: Config, figures: dict[str, Any]) -> tuple[Literal["loader", "step"], str]:
    """What limits, and one sentence that says so and what to change; figures: see `Report`."""
    loader, step, both = (figures[part] for part in ("loader", "step", "both"))
    wait = both["wait_share"]
    if wait >= WAIT_LIMIT:
        change = _faster_loader(config, loader, step["device"])
        return "loader", f"The loader limits: {wait:.0%} of the time waiting for data; {change}."
    shared = ""
    if step["device"] == "cpu" and both["images_per_s"] < 0.9 * step["images_per_s"]:
        shared = (
            f"; it shares {loader['cores']} cores with the loader, alone it makes "
            f"{_rate(step['images_per_s'])} images/s"
        )
    change = _faster_step(config, step, loader["cores"])
    return "step", f"The step limits ({wait:.0%} waiting{shared}): {change}."


def _faster_loader(config: Config, loader: dict[str, Any], device: str) -> str:
    cores, threads = loader["cores"], config.NUM_INPUT_THREADS
    changes = []
    automatic = config.model_copy(update={"LOADER": "auto"})
    best, _ = loader_choice(automatic, torch.device(device))
    if loader["name"] == config.LOADER == "portable" and best == "dali":
        changes.append("set LOADER=dali, which decodes on the GPU")
    if threads < cores:
        changes.append(f"raise NUM_INPUT_THREADS (now {threads} of {cores} cores)")
    if not changes:
        all_cores = f"all {cores} cores load" if cores > 1 else "the only core loads"
        return f"{all_cores} already, so use more cores or smaller frames"
    return ", or ".join(changes)


def _faster_step(config: Config, step: dict[str, Any], cores: int) -> str:
    device, settings = step["device"], []
    if device == "cpu":
        threads = torch.get_num_threads()
        if torch.cuda.is_available():
            settings.append("DEVICE=cuda")
        elif threads < cores:
            settings.append(f"OMP_NUM_THREADS={cores} (torch uses {threads} of the cores)")
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    # auto takes the fastest; of the two half types none is faster.
    best = choose_precision("auto", torch.device(device), config.FEATURES).name
    if "float32" in (best, step["precision"]) and best != step["precision"]:
        settings.append(f"PRECISION={names[best]}")
    has_kernels = any(row.device == device and row.path == "native" for row in paths())
    if config.FUSED == "off" and step["mode"] != "compile" and has_kernels:
        settings.append("FUSED=auto")
    if step["mode"] == "eager" and device == "cuda":
        settings.append("STEP=auto")
    if config.RECOMPUTE != "none":
        settings.append("RECOMPUTE=none if memory allows")
    smaller = f"a smaller network (NUM_STACKS now {config.NUM_STACKS}, FEATURES {config.FEATURES})"
    if not settings:
        return f"only {smaller} would be faster"
    return f"set {', '.join(settings)}; then {smaller}"


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:.{1 if images_per_s >= 10 else 2}f}"


def _threads(config: Config) -> dict[str, int]:
    cores = available_cores()
    return {"threads": min(config.NUM_INPUT_THREADS, cores), "cores": cores}


def _most_ready(config: Config) -> int:
    """Batches that may lie ready after idle time: two a worker, and the one being made."""
    return 1 + 2 * max(_threads(config)["threads"], 1)


def _time_loader(
    loader: Loader, config: Config, device: torch.device, seconds: float
) -> tuple[dict[str, Any], Batch]:
    """Speed of a loader whose batches nobody uses; one more batch, on the device."""
    batches = loader.batches(0, _ENDLESS)
    _warm_up(lambda: next(batches), _most_ready(config), seconds)
    count, elapsed = _repeat(lambda: next(batches), device, seconds)
    batch = next(batches).to(device)
    # A copy: the loader's own buffer goes with it.
    batch = batch.replace(images=batch.images.clone())
    return {**_speed(count, elapsed, config), "batches": count, "seconds": elapsed}, batch


def _time_step(step: TrainStep, batch: Batch, seconds: float) -> dict[str, Any]:
    """Median of single steps on a batch that stays; the first ones choose, compile, capture."""
    numbers = itertools.count()

    def work() -> None:
        step(batch, next(numbers))

    work()
    once = _repeat(work, step.device, 0.0, least=1)[1]
    count = min(max(math.ceil(seconds / once), LEAST_STEPS), MOST_STEPS)
    median = statistics.median(_durations(work, count, step.device))
    return {**_speed(1, median, step.config), "seconds_median": median, "steps": count}


def _time_both(loader: Loader, step: TrainStep, config: Config, seconds: float) -> dict[str, Any]:
    """Speed as in training, and the share of the time that the step waited for data."""
    prefetcher = Prefetcher(loader.batches(0, _ENDLESS), step.device)
    numbers = itertools.count()
    waited: list[float] = []

    def work() -> None:
        batch = next(prefetcher)
        waited.append(prefetcher.waited)
        step(batch, next(numbers))

    _warm_up(work, _most_ready(config), seconds)
    waited.clear()
    count, elapsed = _repeat(work, step.device, seconds)
    timed = {"steps": count, "seconds": elapsed, "wait_share": sum(waited) / elapsed}
    return {**_speed(count, elapsed, config), **timed}


def _speed(count: int, seconds: float, config: Config) -> dict[str, float]:
    return {"images_per_s": count * config.BATCH_SIZE / seconds}


def _warm_up(work: Callable[[], Any], count: int, seconds: float) -> None:
    """Do work `count` times, or for `seconds` if that is shorter."""
    begin = time.perf_counter()
    for _ in range(count):
        work()
        if time.perf_counter() - begin > seconds:
            return


def _repeat(
    work: Callable[[], Any], device: torch.device, seconds: float, least: int = LEAST_STEPS
) -> tuple[int, float]:
    """Do work for `seconds` and at least `least` times; how often, and the seconds it took."""
    _wait_for(device)
    begin, count = time.perf_counter(), 0
    while count < least or time.perf_counter() - begin < seconds:
        work()
        count += 1
    _wait_for(device)
    return count, time.perf_counter() - begin


def _durations(work: Callable[[], Any], count: int, device: torch.device) -> Iterator[float]:
    """Seconds of each of `count` calls; on a GPU of their kernels, without waits in between."""
    if device.type != "cuda":
        for _ in range(count):
            begin = time.perf_counter()
            work()
            yield time.perf_counter() - begin
        return
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    _wait_for(device)
    for begun, ended in itertools.pairwise(marks):
        yield begun.elapsed_time(ended) / 1000


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _begin_peak(device: torch.device) -> int:
    """Begin to measure a peak of memory; the bytes that are taken already (0 on a GPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    status = Path("/proc/self/statm")
    if not status.exists():
        return peak_bytes()
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took of a GPU, or this process of the machine."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


class Facts(NamedTuple):
    """What the parts of a dry run took, in seconds and bytes."""

    first_step: float
    step: float
    """The second one, with its wait for data."""
    validation: float
    """A whole one, scaled up from its first batches where it has more than DRY_BATCHES."""
    save: float
    checkpoint: int
    measured: int
    """Peak of the memory in the steps; on a CPU that by which the process grew."""


def dry_run(config: Config, console: Console, *, source: Path | None = None) -> Facts | None:
    """Train for two steps, validate, save, print what a whole run takes; None if interrupted.

    Everything happens as in a training, in a temporary run folder in RUNS_DIR, which is removed.

    Args:
        config: the resolved configuration.
        console: where everything is printed.
        source: the configuration file.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.
    """
    device = choose_device(config.DEVICE)
    config, choices = recipe.resolved(config, device)
    for line in choices:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    check_batch_norm(config)
    short = config.model_copy(
        update={
            "NUM_TRAIN_ITERATIONS": DRY_STEPS,
            "VALIDATE_EVERY_N_STEPS": DRY_STEPS,
            "SAVE_INTERVAL_SECS": 1e9,  # it saves at its end
            "RUN_NAME": f".dry-run-{os.getpid()}-{time.time_ns()}",
        }
    )
    with (
        open_data(short, device) as (train, validation),
        _temporary_run(short, source) as run,
        explained_out_of_memory(config, device),
    ):
        before = _begin_peak(device)
        training = _TimedTraining(short, device, train, validation, run, console)
        training.describe()
        training.begin(starting_weights(config))
        if training.fit().signal is not None:
            return None
        rates = [row["images_per_s"] for row in run.logged() if "images_per_s" in row]
        first_step, step = (config.BATCH_SIZE / rate for rate in rates)
        facts = Facts(
            first_step=first_step,
            step=step,
            validation=training.validating,
            save=training.saving,
            checkpoint=run.last.stat().st_size,
            measured=max(training.peak - before, 0),
        )
    lines = describe_run(config, facts, device)
    if validation is not None and validation.sampler.batches_per_epoch > DRY_BATCHES:
        of = f"{DRY_BATCHES} of its {validation.sampler.batches_per_epoch} batches"
        lines.append(f"         a validation was tried on {of}")
    for line in lines:
        console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
    return facts


def describe_run(config: Config, facts: Facts, device: torch.device) -> list[str]:
    """Lines about memory and time of a whole run of `config`, extrapolated from `facts`."""
    kind = "peak on the GPU" if device.type == "cuda" else "by which this process grew"
    steps = config.NUM_TRAIN_ITERATIONS
    validations = -(-steps // config.VALIDATE_EVERY_N_STEPS)
    training, validating = steps * facts.step, validations * facts.validation
    # The last save comes at the end; SAVE_INTERVAL_SECS 0 saves after each step.
    apart = max(config.SAVE_INTERVAL_SECS, facts.step)
    saves = 1 + min(int((training + validating) / max(apart, 1e-9)), steps - 1)
    saving = saves * facts.save
    return [
        f"memory   {facts.measured / GIB:.2f} GiB measured ({kind})",
        f"step     {facts.step:.3g} s, the first {facts.first_step:.3g} s",
        f"whole    about {duration(training + validating + saving)}: {steps} x {facts.step:.3g} s, "
        f"validation {validations} x {facts.validation:.3g} s, save {saves} x {facts.save:.3g} s",
        f"saved    {facts.checkpoint / 1e6:.1f} MB a checkpoint; {config.MAX_TO_KEEP} stay, and "
        f"one more every {config.KEEP_CHECKPOINT_EVERY_N_HOURS:g} hours",
    ]


class _TimedTraining(Training):
    """A training that validates on a few batches and times its last validation and save."""

    validating = saving = 0.0
    """Seconds; `validating` of all batches, as if each took as long as those tried."""
    peak = 0
    """Bytes at most before the validation."""

    def _validate(self, events: EventWriter, progress: ProgressLine) -> None:
        self.peak = _peak_memory(self.device)
        self._untried = 0.0
        begin = time.perf_counter()
        super()._validate(events, progress)
        self.validating = time.perf_counter() - begin + self._untried

    def _predict(self, split: Split, batches: int) -> Predictions:
        tried = min(batches, DRY_BATCHES)
        begin = time.perf_counter()
        predictions = super()._predict(split, tried)
        self._untried = (time.perf_counter() - begin) * (batches / tried - 1)
        return predictions

    def _save(self) -> None:
        begin = time.perf_counter()
        super()._save()
        self.saving = time.perf_counter() - begin


@contextlib.contextmanager
def _temporary_run(config: Config, source: Path | None) -> Iterator[RunFolder]:
    """A run folder as a training makes it; removed with the folders that were made to hold it."""
    parent = Path(config.RUNS_DIR).absolute()
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        yield RunFolder.create(config, source, "dry-run")
    finally:
        shutil.rmtree(parent / str(config.RUN_NAME), ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):  # another run is in it by now
                folder.rmdir()

"""What limits a training on this machine, its loader or its step: measured, with what to change."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.data.loader import Loader, available_cores, loader_choice, make_loader
from fasthg.data.prefetch import Prefetcher
from fasthg.data.split import open_split
from fasthg.errors import ConfigError
from fasthg.model import build_model
from fasthg.ops import paths
from fasthg.runtime.device import choose_device, choose_precision
from fasthg.runtime.process import peak_bytes
from fasthg.train.environment import describe_environment
from fasthg.train.memory import GIB, is_out_of_memory, out_of_memory
from fasthg.train.step import TrainStep

FRAMES, FRAME_SIZE = 48, (1024, 570)
"""The synthetic data that stands in where DATA.TRAIN is not set; MARS films 1024x570 px."""
LEAST = 3
"""Steps that are timed even where they take longer than the time given."""
WAITING = 0.1
"""Share of the time waiting for data from which the loader counts as what limits."""
_ENDLESS = 1 << 40
_MOST = 2000


@dataclass(frozen=True)
class Report:
    """What was measured, and what limits."""

    figures: dict[str, Any]
    """Numbers and names, see `bench`."""
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
        table = Table("", "images/s", "", box=None, pad_edge=False, header_style="")
        table.columns[1].justify = "right"
        workers = f"{loader['threads']} of {loader['cores']} cores" if loader["threads"] else "none"
        notes = {
            "loader alone": f"{loader['name']}, workers: {workers}",
            "step alone": f"{step['mode']}, {step['precision']} on {step['device']}, "
            f"{step['seconds_median']:.3g} s a step (median of {step['steps']})",
            "both": f"{both['wait_share']:.0%} of the time waiting for data",
        }
        for (name, note), part in zip(notes.items(), (loader, step, both), strict=True):
            table.add_row(name, _rate(part["images_per_s"]), note)
        console.print(table)
        console.print(f"peak memory: {memory['peak_bytes'] / GIB:.2f} GiB of {memory['of']}")
        console.print(self.sentence, markup=False, highlight=False, soft_wrap=True)


class Situation(NamedTuple):
    """What the advice depends on, beside the configuration."""

    device: torch.device
    cores: int
    loader: str
    """dali or portable."""
    precision: torch.dtype
    mode: str
    """eager, graph or compile."""
    alone: float
    """Images a second of the step without the loader."""
    both: float
    """Images a second of both together."""
    waiting: float
    """Share of the time that they waited for data, 0..1."""


def bench(
    config: Config, seconds: float = 10.0, say: Callable[[str], None] = lambda text: None
) -> Report:
    """Measure loader, step, and both together as a training runs them.

    Args:
        config: its data is used; synthetic frames where DATA.TRAIN is not set.
        seconds: for each of the three; three steps are timed in any case.
        say: told what is going on.

    Raises:
        ConfigError, DataError, EnvironmentFault, FasthgError: one line, with a remedy.
    """
    device = choose_device(config.DEVICE)
    with contextlib.ExitStack() as stack:
        synthetic = config.DATA.TRAIN is None
        if synthetic:
            say(f"DATA.TRAIN is not set: {FRAMES} synthetic frames stand in")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fasthg-bench-"))
            config = with_synthetic_frames(config, Path(folder))
        assert config.DATA.TRAIN is not None
        split = open_split(config, config.DATA.TRAIN, device, training=True)
        stack.callback(split.close)
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            say(f"measuring the loader, {seconds:g} s")
            loading, batch = _loader_alone(split.loader, config, device, seconds)
            # Closed, so that it makes nothing while the step is timed alone.
            split.close()
            say(f"measuring the step, {seconds:g} s")
            step = TrainStep(config, build_model(config).to(device), device)
            stepping = _step_alone(step, batch, seconds)
            say(f"measuring both, {seconds:g} s")
            loader = make_loader(split.sampler, config, device)
            stack.callback(loader.close)
            both = _both(loader, step, config, seconds)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(config, device, error) from error
            raise
        figures = {
            "data": {"instances": len(split.index), "synthetic": synthetic},
            "batch_size": config.BATCH_SIZE,
            "loader": {"name": split.loader.name, **_threads(config), **loading},
            "step": {
                "mode": step.mode.name,
                "precision": str(step.precision).removeprefix("torch."),
                "device": str(device),
                **stepping,
            },
            "both": both,
            "memory": _peak(device),
        }
    situation = Situation(
        device=device,
        cores=available_cores(),
        loader=split.loader.name,
        precision=step.precision,
        mode=step.mode.name,
        alone=stepping["images_per_s"],
        both=both["images_per_s"],
        waiting=both["wait_share"],
    )
    return Report(figures, *advise(config, situation))


def with_synthetic_frames(config: Config, folder: Path) -> Config:
    """The configuration with frames rendered into a folder as its training split.

    Raises:
        ConfigError: its animals have other parts than the synthetic mice.
    """
    from fasthg.data.synthetic.dataset import PART_NAMES, write_dataset

    if len(PART_NAMES) != config.PARTS.NUM_PARTS:
        raise ConfigError(
            f"DATA.TRAIN: not set, and the synthetic frames that would stand in have "
            f"{len(PART_NAMES)} parts, not {config.PARTS.NUM_PARTS}; give a glob of TFRecord files"
        )
    files = write_dataset(folder, seed=0, frames={"train": FRAMES}, size=FRAME_SIZE)
    data = config.DATA.model_copy(update={"TRAIN": tuple(str(path) for path in files)})
    return config.model_copy(update={"DATA": data})


def advise(config: Config, now: Situation) -> tuple[Literal["loader", "step"], str]:
    """What limits, and one sentence that says so and what to change; see `Situation`."""
    if now.waiting >= WAITING:
        return "loader", (
            f"The loader limits: {now.waiting:.0%} of the time waiting for data; "
            f"{_faster_loader(config, now)}."
        )
    shared = ""
    if now.device.type == "cpu" and now.both < 0.9 * now.alone:
        shared = (
            f"; it shares {now.cores} cores with the loader, alone it makes "
            f"{_rate(now.alone)} images/s"
        )
    return "step", (
        f"The step limits ({now.waiting:.0%} waiting{shared}): {_faster_step(config, now)}."
    )


def _faster_loader(config: Config, now: Situation) -> str:
    choices = []
    automatic = loader_choice(config.model_copy(update={"LOADER": "auto"}), now.device)[0]
    if now.loader == "portable" and config.LOADER == "portable" and automatic == "dali":
        choices.append("set LOADER=dali, which decodes on the GPU")
    threads = config.NUM_INPUT_THREADS
    if threads < now.cores:
        choices.append(f"raise NUM_INPUT_THREADS (now {threads} of {now.cores} cores)")
    if not choices:
        cores = f"all {now.cores} cores load" if now.cores > 1 else "the only core loads"
        return f"{cores} already, so use more cores or smaller frames"
    return ", or ".join(choices)


def _faster_step(config: Config, now: Situation) -> str:
    settings = []
    if now.device.type == "cpu":
        if torch.cuda.is_available():
            settings.append("DEVICE=cuda")
        elif torch.get_num_threads() < now.cores:
            used = torch.get_num_threads()
            settings.append(f"OMP_NUM_THREADS={now.cores} (torch uses {used} of the cores)")
    best = choose_precision("auto", now.device)
    halves = (torch.bfloat16, torch.float16)
    if (now.precision in halves) != (best in halves):
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        settings.append(f"PRECISION={names[best]}")
    served = {row.device for row in paths() if row.path == "native"}
    if config.FUSED == "off" and now.mode != "compile" and now.device.type in served:
        settings.append("FUSED=auto")
    if now.mode == "eager" and now.device.type == "cuda":
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


def _made_ahead(config: Config) -> int:
    """Batches that may lie ready after idle time: two a worker, and the one being made."""
    return 1 + 2 * max(_threads(config)["threads"], 1)


def _loader_alone(
    loader: Loader, config: Config, device: torch.device, seconds: float
) -> tuple[dict[str, Any], Batch]:
    """Speed of a loader whose batches nobody uses; one more batch, on the device."""
    batches = loader.batches(0, _ENDLESS)
    _warm_up(lambda: next(batches), _made_ahead(config), seconds)
    count, elapsed = _repeat(lambda: next(batches), device, seconds)
    batch = next(batches).to(device)
    # A copy: the loader's own buffer goes with it.
    batch = batch.replace(images=batch.images.clone())
    return {**_speed(count, elapsed, config), "batches": count, "seconds": elapsed}, batch


def _step_alone(step: TrainStep, batch: Batch, seconds: float) -> dict[str, Any]:
    """Median of single steps on a batch that stays; the first ones choose, compile, capture."""
    numbers = itertools.count()

    def work() -> None:
        step(batch, next(numbers))

    work()
    once = _repeat(work, step.device, 0.0, least=1)[1]
    count = min(max(math.ceil(seconds / once), LEAST), _MOST)
    median = statistics.median(_durations(work, count, step.device))
    return {**_speed(1, median, step.config), "seconds_median": median, "steps": count}


def _both(loader: Loader, step: TrainStep, config: Config, seconds: float) -> dict[str, Any]:
    """Speed as in training, and the share of the time that the step waited for data."""
    feeder = Prefetcher(loader.batches(0, _ENDLESS), step.device)
    numbers = itertools.count()
    waited: list[float] = []

    def work() -> None:
        batch = next(feeder)
        waited.append(feeder.waited)
        step(batch, next(numbers))

    _warm_up(work, _made_ahead(config), seconds)
    waited.clear()
    count, elapsed = _repeat(work, step.device, seconds)
    share = sum(waited) / elapsed
    timed = {"steps": count, "seconds": elapsed, "wait_share": share}
    return {**_speed(count, elapsed, config), **timed}


def _speed(count: int, seconds: float, config: Config) -> dict[str, float]:
    return {"images_per_s": count * config.BATCH_SIZE / seconds}


def _warm_up(work: Callable[[], Any], count: int, seconds: float) -> None:
    """Do work so often, or for so long, if that is less."""
    begin = time.perf_counter()
    for _ in range(count):
        work()
        if time.perf_counter() - begin > seconds:
            return


def _repeat(
    work: Callable[[], Any], device: torch.device, seconds: float, least: int = LEAST
) -> tuple[int, float]:
    """Do work for so long, and at least so often; how often, and the seconds it took."""
    _wait_for(device)
    begin, count = time.perf_counter(), 0
    while count < least or time.perf_counter() - begin < seconds:
        work()
        count += 1
    _wait_for(device)
    return count, time.perf_counter() - begin


def _durations(work: Callable[[], Any], count: int, device: torch.device) -> Iterator[float]:
    """Seconds of each of so many calls; on a GPU of what they launch, without waits in between."""
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


def _peak(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(device), "of": "the GPU"}
    return {"peak_bytes": peak_bytes(), "of": "this process"}

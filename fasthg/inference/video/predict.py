"""All inputs of one call: the network is loaded once, then source after source."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fasthg.errors import ConfigError, DataError, FasthgError
from fasthg.inference.networks import open_networks
from fasthg.inference.video.frame import Source
from fasthg.inference.video.made_from import is_overlay
from fasthg.inference.video.pipeline import Clock
from fasthg.inference.video.predict_source import (
    STAGES,
    WHOLE,
    Options,
    SourceResult,
    check_targets,
    predict_source,
)
from fasthg.inference.video.progress import Advance, Shown
from fasthg.inference.video.sources import ImageSource, find_sources
from fasthg.inference.video.video_file import VideoSource
from fasthg.runs.checkpoint import CHECKSUM
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import WeightsFile
from fasthg.runtime.signals import Signals
from fasthg.words import counted

_OVERLAYS = (".overlay.mp4", ".overlay", ".sheet.png")


def predict_all(
    run: RunFolder | WeightsFile,
    inputs: Sequence[Path],
    overrides: Sequence[str],
    options: Options,
    console: Console,
) -> int | None:
    """Predict every input with a run's best weights, or a file's, and say what was written.

    Of several inputs one that cannot be predicted is named, and the others are predicted.

    Returns:
        The number of the signal that ended it before its end, else None.

    Raises:
        ConfigError: options that contradict each other or the inputs.
        DataError: an input, the boxes or the weights cannot be used; of several inputs, at the end.
        EnvironmentFault: a package or device is missing.
    """
    options.check()
    config = run.config(list(overrides))
    sources = find_sources(inputs, options.recursive)
    drawn = [source for source in sources if is_overlay(source.path, _OVERLAYS)]
    if len(drawn) == len(sources):
        raise DataError(f"{drawn[0].path}: fasthg drew it; give the film or images it is of")
    for source in drawn:
        sources.remove(source)
        _say(console, f"{source.path}: left out, fasthg drew it")
    for path in inputs:
        if path.is_dir():
            _say(console, *_contents(path, sources))
    check_targets(sources, options)
    if options.boxes not in (None, WHOLE) and len(sources) > 1:
        raise ConfigError(f"--boxes {options.boxes}: is for one input; predict one after the other")
    networks = open_networks(run, config, locate=options.boxes != WHOLE)
    options = replace(options, frames_are_crops=networks.frames_are_crops)
    weights = networks.metadata.get(CHECKSUM, "")
    with Signals() as signals:
        failed: list[str] = []
        counts = [options.frames.of(source.count) for source in sources]
        with Shown(Advance(counts), [each.path.name for each in sources], console) as shown:
            for source in sources:
                shown.begin()
                clock, start = Clock(), time.perf_counter()
                try:
                    result = predict_source(
                        *(source, networks.pose, config, options, networks.locator),
                        weights=weights,
                        clock=clock,
                        progress=shown.reached,
                        stop=lambda: signals.stop is not None,
                    )
                except FasthgError as error:
                    if not isinstance(error, DataError) and type(error) is not FasthgError:
                        raise  # of all sources: options, the machine
                    if len(sources) == 1:
                        raise
                    # The others of a night's films are not lost for one.
                    failed.append(source.path.name)
                    _say(console, f"error: {error}")
                    continue
                finally:
                    shown.end()
                _say(console, *_lines(source.path, result, clock, time.perf_counter() - start))
                if signals.stop is not None:
                    break
    if failed and signals.stop is None:
        raise DataError(
            f"{len(failed)} of {len(sources)} inputs not predicted, see above: {', '.join(failed)}"
        )
    return signals.stop


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _contents(folder: Path, sources: Sequence[Source]) -> list[str]:
    """A line on what a folder gives, where that is more than its images."""
    inside = [each for each in sources if each.path.is_relative_to(folder)]
    films = sum(isinstance(source, VideoSource) for source in inside)
    if len(inside) == 1 and not films:
        return []
    images = [f"the images of {each.path}" for each in inside if isinstance(each, ImageSource)]
    sequences = " as one sequence" if images else ""
    said = [*([counted(films, "film")] if films else []), *images]
    return [f"{folder}: {', '.join(said)}{sequences}"]


def _lines(path: Path, result: SourceResult, clock: Clock, seconds: float) -> list[str]:
    lines = [f"{path}: {note}" for note in result.notes]
    if result.finished:
        return lines
    replaced = " (in place of an older one)"
    lines += [f"{file}{replaced if file in result.replaced else ''}" for file in result.files]
    spent = {stage: clock.seconds[stage] for stage in STAGES if clock.seconds[stage]}
    rates = ", ".join(f"{stage} {result.new / spent[stage]:.0f}" for stage in spent)
    kept = result.rows - result.new
    lines.append(
        f"{path}: {counted(result.new, 'frame')} in {seconds:.1f} s: "
        f"{result.new / seconds:.1f} a second"
        + (f"; each stage alone (frames/s): {rates}" if result.new else "")
        + (f"; the {max(spent, key=lambda stage: spent[stage])} limits" if result.new else "")
        + (f"; {kept} rows were there" if kept else "")
    )
    if result.stopped:
        lines.append(f"{path}: stopped after {counted(result.rows, 'frame')}; go on with --resume")
    return lines

"""Where a run comes from: program, machine, data and duration; and a methods sentence on it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex, expand
from fasthg.errors import FasthgError
from fasthg.model import build_model
from fasthg.runs.listing import trained_seconds
from fasthg.runs.run_folder import RunFolder
from fasthg.words import counted, duration

STYLE = """
.origin { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem;
  margin: 1rem 0; font-size: .9rem; }
.origin dt { opacity: .65; } .origin dd { margin: 0; overflow-wrap: anywhere; }
"""
_SPLITS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Provenance:
    """What is known of how a run came about; None where its files do not tell.

    Attributes:
        date: of the training's start, as YYYY-MM-DD.
        version, torch: of fasthg and torch.
        commit: of fasthg's sources, with a note on changes.
        command: as it was typed.
        device: a GPU's name, or the CPU with its threads.
        minutes: of the training.
        parameters: weights of the network that training changes.
        data: split -> (frames, animals), of those splits whose files are still there.
        early: the step at which EARLY_STOP_PATIENCE ended the training.
    """

    date: str | None
    version: str | None
    torch: str | None
    commit: str | None
    command: str | None
    device: str | None
    minutes: float | None
    parameters: int
    data: dict[str, tuple[int, int]]
    early: int | None = None

    @classmethod
    def of(cls, run: RunFolder, config: Config) -> Provenance:
        """Read env.json, the log and the index of the data; what is missing is left out.

        config: the run's own.
        """
        env = _environment(run)
        seconds = early = None
        with contextlib.suppress(OSError, UnicodeDecodeError):
            seconds = trained_seconds(run.logged())
            early = run.stopped_early()
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_model(config).parameters())
        packages = env.get("packages")
        return cls(
            date=_text(env.get("date"), 10),
            version=_text(env.get("fasthg")),
            torch=_text(packages.get("torch")) if isinstance(packages, dict) else None,
            commit=_commit(env.get("git") or env.get("commit")),
            command=_command(env.get("command")),
            device=_device(env),
            minutes=None if seconds is None else seconds / 60,
            parameters=parameters,
            data=_data(config),
            early=None if early is None else early[0],
        )

    def facts(self, config: Config) -> Iterator[tuple[str, str]]:
        """Label and text of each line that stands on top of a page."""
        program = f"fasthg {self.version}" if self.version else "fasthg of unknown version"
        if self.commit:
            program += f" ({self.commit})"
        where = f" on {self.device}" if self.device else ""
        when = f"{self.date}, " if self.date else ""
        took = f" in {duration(60 * self.minutes)}" if self.minutes is not None else ""
        yield "Trained", f"{when}{program}{where}"
        steps = counted(config.NUM_TRAIN_ITERATIONS, "step")
        if self.early is not None:
            steps = f"{self.early} of {steps} (stopped early)"
        yield (
            "Network",
            f"{counted(config.NUM_STACKS, 'stack')}, {config.FEATURES} features, "
            f"{self.parameters:,} weights; {steps} of {config.BATCH_SIZE} animals{took}",
        )
        if self.data:
            yield (
                "Data",
                "; ".join(f"{_SPLITS[s]} {_frames(*counts)}" for s, counts in self.data.items()),
            )
        if self.command:
            yield "Command", self.command

    def methods(self, config: Config, split: str, index: RecordIndex, measured: str) -> str:
        """Sentences for a paper's methods, of what is known.

        split, index: what was evaluated; measured: its result in words.
        """
        program = f"fasthg {self.version}" if self.version else "fasthg"
        if self.torch:
            program += f" (PyTorch {self.torch})"
        on = f" on {_frames(*self.data['train'])}" if "train" in self.data else ""
        seconds = (
            f", {duration(60 * self.minutes)} on {self.device}" if self.minutes is not None else ""
        )
        stacked = "hourglass" if config.NUM_STACKS == 1 else "hourglasses"
        steps = f"{config.NUM_TRAIN_ITERATIONS} steps"
        if self.early is not None:
            patience = counted(config.EARLY_STOP_PATIENCE or 0, "validation")
            steps = (
                f"{self.early} of at most {steps} (until the validation error had not improved in "
                f"{patience})"
            )
        number = _frames(*_counts(index))
        if split == "val":
            number += ", the same"
        elif not _shares_files(index, config):
            number += ", none of which was used for training"
        chosen = (
            "the weights with the least mean error on the validation data "
            f"({_frames(*self.data['val'])})"
            if "val" in self.data
            else "the last weights"
        )
        return (
            f"Poses were estimated by a stacked-hourglass network ({config.NUM_STACKS} {stacked} "
            f"of {config.FEATURES} features, {self.parameters:,} weights; input "
            f"{config.INPUT_SIZE} x {config.INPUT_SIZE} px, heatmaps {config.HEATMAP_SIZE} x "
            f"{config.HEATMAP_SIZE}), trained with {program}{on} for "
            f"{steps} of {config.BATCH_SIZE} animals "
            f"({config.OPTIMIZER}, initial learning rate {config.INITIAL_LEARNING_RATE:g}, "
            f"{config.LEARNING_RATE_DECAY_TYPE} decay, random seed {config.RANDOM_SEED}{seconds}). "
            f"Weights were averaged exponentially (decay {config.MOVING_AVERAGE_DECAY:g}), and "
            f"{chosen} were evaluated on {number}: {measured}."
        )


def lines(facts: Iterator[tuple[str, str]]) -> str:
    """Facts as a list of terms."""
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f'<dl class="origin">{inside}</dl>'


def _frames(frames: int, animals: int) -> str:
    return f"{counted(animals, 'animal')} in {counted(frames, 'frame')}"


def _environment(run: RunFolder) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((run.path / "env.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _text(value: Any, most: int = 200) -> str | None:
    return str(value)[:most] if value else None


def _command(value: Any) -> str | None:
    if isinstance(value, list):
        words = [str(word) for word in value]
        # The program's place on that machine says nothing.
        words[:1] = [word.replace("\\", "/").rpartition("/")[2] for word in words[:1]]
        return shlex.join(words) or None
    return _text(value, 10000)


def _commit(value: Any) -> str | None:
    if isinstance(value, dict):
        number, dirty = value.get("commit"), value.get("dirty")
        return f"commit {str(number)[:12]}{', changed' if dirty else ''}" if number else None
    return f"commit {str(value)[:12]}" if value else None


def _device(env: dict[str, Any]) -> str | None:
    device = _text(env.get("device"))
    gpus = env.get("gpus")
    if device and device.startswith("cuda") and isinstance(gpus, list) and gpus:
        return str(gpus[0].get("name", device)) if isinstance(gpus[0], dict) else device
    if device == "cpu" and isinstance(env.get("torch_threads"), int):
        return f"a CPU with {counted(env['torch_threads'], 'thread')}"
    return device


def _data(config: Config) -> dict[str, tuple[int, int]]:
    found = {}
    for split in _SPLITS:
        patterns = getattr(config.DATA, split.upper())
        if patterns is None:
            continue
        with contextlib.suppress(FasthgError, OSError):
            found[split] = _counts(RecordIndex.open(patterns, config.PARTS.NUM_PARTS))
    return found


def _counts(index: RecordIndex) -> tuple[int, int]:
    """Frames with an animal, and animals."""
    return len(np.unique(index.record)), len(index)


def _shares_files(index: RecordIndex, config: Config) -> bool:
    """Whether a file of the index is one of the training; so too where those are gone."""
    try:
        trained = {os.path.realpath(path) for path in expand(config.DATA.TRAIN or ())}
    except FasthgError:
        return True
    return not trained.isdisjoint(os.path.realpath(path) for path in index.files)

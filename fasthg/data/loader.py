"""The Loader protocol, and the choice between its two implementations."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from typing import Protocol

import torch

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.data.records.jpeg import image_fault
from fasthg.data.sampler import BatchSampler
from fasthg.errors import ConfigError, EnvironmentFault, install_hint

log = logging.getLogger(__name__)


class Loader(Protocol):
    """Batches of a sampler's plans, made ahead in the background.

    Images depend on the plan alone, not on threads, workers, prefetching or earlier passes; the two
    loaders differ by rounding only. A record whose image cannot be used is named in one warning,
    noted in `corrupt`, and its rows are replaced (training: by the next usable row of the same
    batch) or left out (evaluation; a batch without any row left is skipped).
    """

    name: str

    @property
    def corrupt(self) -> dict[int, str]:
        """Records met so far whose image cannot be used -> the reason."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches start..stop-1, in order; an evaluation ends with its last batch at the latest.

        One pass at a time: asking for another one ends the one before. DALI on a GPU gives images
        on that GPU, the rest of a batch is on the CPU. Raises DataError if a training batch has no
        usable image or a file vanished.
        """

    def close(self) -> None:
        """End workers and free buffers; may be called twice."""


def loader_choice(cfg: Config, device: torch.device) -> tuple[str, str]:
    """The loader that LOADER means on this device, and why: ("dali" | "portable", reason)."""
    if cfg.LOADER != "auto":
        return cfg.LOADER, f"LOADER is {cfg.LOADER}"
    if device.type != "cuda":
        return "portable", f"on {device.type} OpenCV is faster than DALI"
    if not _dali_installed():
        return "portable", f"DALI is not installed; on Linux: {install_hint('dali')}"
    return "dali", "decodes and augments on the GPU"


def make_loader(
    sampler: BatchSampler, cfg: Config, device: torch.device, kind: str | None = None
) -> Loader:
    """A loader of the sampler's batches; the caller closes it.

    kind: "dali" or "portable"; as `loader_choice` decides unless given. NUM_INPUT_THREADS, at most
    the cores this process may use, is the number of processes or threads. The crops of MARS's
    evaluation are made by the portable loader alone. Raises EnvironmentFault if DALI is asked for
    and cannot be imported, ConfigError for another kind and for those crops by DALI.
    """
    threads = min(cfg.NUM_INPUT_THREADS, available_cores())
    chosen = kind or loader_choice(cfg, device)[0]
    if sampler.crops_as_mars and chosen == "dali":
        if kind or cfg.LOADER == "dali":
            raise ConfigError("EVAL_CROP: mars is not for the dali loader; set LOADER: portable")
        chosen = "portable"
    if chosen == "dali" and kind is None and cfg.LOADER == "auto":
        from fasthg.data.dali_loader import import_dali

        try:
            import_dali()
        except EnvironmentFault as error:
            log.warning("%s; the portable loader is used", error)
            chosen = "portable"
    if chosen == "portable":
        from fasthg.data.opencv_loader import PortableLoader

        return PortableLoader(sampler, threads)
    if chosen == "dali":
        from fasthg.data.dali_loader import DaliLoader, window_decoding_works

        windows = True
        if device.type == "cuda":
            windows = window_decoding_works(_sound_image(sampler), device)
            if not windows:
                log.warning("DALI cannot decode part of an image here; it decodes whole images")
        return DaliLoader(sampler, device, max(threads, 1), decode_window=windows)
    raise ConfigError(f"LOADER: {chosen!r} is not a loader; use auto, portable or dali")


def _sound_image(sampler: BatchSampler) -> bytes:
    """The first image without a fault; the first of all where each has one."""
    index = sampler.index
    for record in range(index.num_records):
        data = index.jpeg(record)
        if image_fault(data, int(index.width[record]), int(index.height[record])) is None:
            return data
    return index.jpeg(0)


def available_cores() -> int:
    """CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _dali_installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False

"""One split of the data: its index, the plan of its batches, and the loader that makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader, available_cores, make_loader
from fasthg.data.sampler import BatchSampler


@dataclass(frozen=True)
class Split:
    """One split of the data, which can be loaded repeatedly; `open_split`'s caller closes it."""

    index: RecordIndex
    sampler: BatchSampler
    loader: Loader

    def close(self) -> None:
        """End the loader's workers; may be called twice."""
        self.loader.close()


def open_split(
    config: Config,
    patterns: str | Sequence[str],
    device: torch.device,
    *,
    training: bool,
    rank: int = 0,
    ranks: int = 1,
) -> Split:
    """Index the files of a split and make its loader; rank, ranks: see `BatchSampler`.

    Raises:
        DataError: a file cannot be used; nothing has been written yet.
    """
    index = open_index(config, patterns)
    return make_split(config, index, device, training=training, rank=rank, ranks=ranks)


def open_index(config: Config, patterns: str | Sequence[str]) -> RecordIndex:
    """The index of some files, read by as many processes as load images.

    Raises:
        DataError: as `RecordIndex.open`.
    """
    processes = min(config.NUM_INPUT_THREADS, available_cores())
    return RecordIndex.open(patterns, config.PARTS.NUM_PARTS, processes=processes)


def make_split(
    config: Config,
    index: RecordIndex,
    device: torch.device,
    *,
    training: bool,
    rank: int = 0,
    ranks: int = 1,
) -> Split:
    """`open_split` of records that are indexed already."""
    seed = int(config.RANDOM_SEED)
    sampler = BatchSampler(index, config, training=training, seed=seed, rank=rank, ranks=ranks)
    if not training and len(index) < 512:
        # A small split is loaded in this process: starting workers costs more than it saves.
        config = config.model_copy(update={"NUM_INPUT_THREADS": 0})
    return Split(index, sampler, make_loader(sampler, config, device))

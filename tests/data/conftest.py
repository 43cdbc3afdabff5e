"""Data sets and loaders shared by the tests of the loading path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import WITHOUT_AUGMENTATION

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader
from fasthg.data.opencv_loader import PortableLoader
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import write_dataset


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """Makes a Config without augmentation but for what is given; parts=N for N unpaired parts."""

    def make(*, parts: int | None = None, **given: object) -> Config:
        if parts is not None:
            given["PARTS"] = {
                "NUM_PARTS": parts,
                "NAMES": [f"part{i}" for i in range(parts)],
                "SIGMAS": [2.0] * parts,
                "LEFT_RIGHT_PAIRS": [[1, 2]] if parts > 2 else [],
            }
        return Config(**{**WITHOUT_AUGMENTATION, "BATCH_SIZE": 8, **given})

    return make


@pytest.fixture(scope="session")
def mice(tmp_path_factory: pytest.TempPathFactory) -> RecordIndex:
    """Twelve synthetic frames with two mice of seven parts each."""
    files = write_dataset(tmp_path_factory.mktemp("mice"), seed=3, frames={"train": 12})
    return RecordIndex.build(files, 7)


@pytest.fixture
def index_of(tmp_path: Path) -> Callable[[Sequence[Record]], RecordIndex]:
    """Makes the index of some records by way of a file."""

    def make(records: Sequence[Record]) -> RecordIndex:
        path = tmp_path / "train_dataset-00000-of-00001"
        write_frames(path, [encode(record) for record in records])
        return RecordIndex.build(path, records[0].keypoints.shape[1])

    return make


@pytest.fixture
def open_loader() -> Iterator[Callable[..., Loader]]:
    """Makes loaders by name and closes them after the test; skips where DALI is missing."""
    opened: list[Loader] = []

    def make(
        kind: str,
        sampler: BatchSampler,
        *,
        threads: int = 0,
        prefetch: int = 2,
        window: bool = True,
    ) -> Loader:
        if kind == "portable":
            opened.append(PortableLoader(sampler, threads))
        else:
            pytest.importorskip("nvidia.dali", reason="DALI is not installed")
            from fasthg.data.dali_loader import DaliLoader

            opened.append(
                DaliLoader(
                    sampler,
                    torch.device("cpu"),
                    max(1, threads),
                    prefetch=prefetch,
                    decode_window=window,
                )
            )
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


@pytest.fixture(scope="session")
def pixels_of() -> Callable[[Loader, int, int], np.ndarray]:
    """Images of batches start..stop-1, (instances, input, input, 3) uint8."""

    def collect(loader: Loader, start: int, stop: int) -> np.ndarray:
        return np.concatenate([batch.images.numpy() for batch in loader.batches(start, stop)])

    return collect

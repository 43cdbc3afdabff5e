from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader, make_loader
from fasthg.data.sampler import BatchSampler
from fasthg.errors import EnvironmentFault

Open = Callable[..., Loader]
Pixels = Callable[[Loader, int, int], np.ndarray]


@pytest.fixture
def sampler(mice: RecordIndex) -> BatchSampler:
    cfg = Config(BATCH_SIZE=5, INPUT_SIZE=64, HEATMAP_SIZE=16)
    return BatchSampler(mice, cfg, training=True, seed=4)


@pytest.mark.slow
def test_threads_and_prefetching_make_no_difference(
    sampler: BatchSampler, open_loader: Open, pixels_of: Pixels
) -> None:
    first = pixels_of(open_loader("dali", sampler, threads=1, prefetch=1), 0, 5)
    assert np.array_equal(
        pixels_of(open_loader("dali", sampler, threads=2, prefetch=3), 0, 5), first
    )


@pytest.mark.slow
def test_decoding_the_window_only_differs_by_rounding(
    sampler: BatchSampler, configure: Callable[..., Config], open_loader: Open, pixels_of: Pixels
) -> None:
    cfg = configure(DO_RANDOM_ROTATION=True, DO_RANDOM_PADDING=True)
    sampler = BatchSampler(sampler.index, cfg, training=True, seed=4)
    window = pixels_of(open_loader("dali", sampler), 0, 3).astype(int)
    whole = pixels_of(open_loader("dali", sampler, window=False), 0, 3)
    assert np.abs(window - whole).max() <= 1


@pytest.mark.slow
def test_any_range_can_follow(sampler: BatchSampler, open_loader: Open, pixels_of: Pixels) -> None:
    loader = open_loader("dali", sampler)
    whole = pixels_of(loader, 0, 6).reshape(6, 5, 64, 64, 3)
    assert np.array_equal(pixels_of(loader, 3, 6), whole[3:].reshape(-1, 64, 64, 3))
    abandoned = loader.batches(0, 6)
    next(abandoned)
    assert np.array_equal(pixels_of(loader, 1, 3), whole[1:3].reshape(-1, 64, 64, 3))
    assert next(abandoned, None) is None


def test_a_batch_keeps_its_pixels_while_others_are_made(
    sampler: BatchSampler, open_loader: Open
) -> None:
    loader = open_loader("dali", sampler)
    running = loader.batches(0, 8)
    first = next(running).images
    copy = first.clone()
    for _ in running:
        pass
    assert torch.equal(first, copy)


def test_an_evaluation_ends_with_its_short_batch_and_can_be_repeated(
    mice: RecordIndex, open_loader: Open
) -> None:
    sampler = BatchSampler(
        mice, Config(INPUT_SIZE=64, HEATMAP_SIZE=16), training=False, seed=0, batch_size=10
    )
    loader = open_loader("dali", sampler)
    for _ in range(2):
        batches = list(loader.batches(0, 99))
        assert [len(batch) for batch in batches] == [10, 10, 4]
        assert [batch.images.shape[0] for batch in batches] == [10, 10, 4]


def test_closing_frees_the_graph(sampler: BatchSampler, open_loader: Open) -> None:
    loader = open_loader("dali", sampler)
    next(loader.batches(0, 1))
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.batches(0, 1))


def test_without_dali_the_error_names_package_and_remedy(
    sampler: BatchSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'fasthg\[dali\]'.*LOADER: portable"):
        make_loader(sampler, Config(), torch.device("cpu"), "dali")


@pytest.mark.slow
def test_the_trial_of_window_decoding_tells_success_from_failure(
    mice: RecordIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from fasthg.data import dali_loader

    cpu = torch.device("cpu")
    monkeypatch.setattr(dali_loader, "_windows_work", {})
    assert not dali_loader.window_decoding_works(b"no image", cpu)
    assert not dali_loader.window_decoding_works(mice.jpeg(0), cpu)  # once for a device
    dali_loader._windows_work.clear()
    assert dali_loader.window_decoding_works(mice.jpeg(0), cpu)

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from fasthg.ops import has_kernel

T = TypeVar("T")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def full_float32_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN rounds the factors of float32 convolutions to TF32's ten bits unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Set the number of OpenMP threads until the end of the test.

    A test run has one thread (OMP_NUM_THREADS=1), with which the kernels' `parallel_for` never
    takes a thread pool.
    """
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def on_threads(set_threads: Callable[[int], None]) -> Callable[..., list[T]]:
    """Results of a function with one, two and five OpenMP threads, and once more with five."""

    def run(function: Callable[[], T]) -> list[T]:
        results = []
        for threads in (1, 2, 5, 5):
            set_threads(threads)
            results.append(function())
        return results

    return run


@pytest.fixture
def scene() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Keypoints (on, next to and far off the map, NaN, infinite), sigmas and visibility."""

    def make(
        batch: int,
        parts: int,
        height: int,
        width: int,
        device: torch.device | str = "cpu",
        *,
        sigma_per_instance: bool = True,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        keypoints = torch.rand(batch, parts, 2, generator=random) * 1.4 - 0.2
        keypoints *= torch.tensor([width, height])
        odd = [torch.nan, torch.inf, -torch.inf, 1e30, -3e38, 0.5, 1.5, 2.5]
        flat = keypoints.view(-1)
        flat[1::5] = torch.tensor(odd).repeat(len(flat))[: len(flat[1::5])]
        shape = (batch, parts) if sigma_per_instance else (parts,)
        sigmas = torch.rand(shape, generator=random) * 3 + 0.7
        visibility = (torch.rand(batch, parts, generator=random) > 0.2).to(torch.uint8) * 2
        return keypoints.to(device), sigmas.to(device), visibility.to(device)

    return make


@pytest.fixture
def compiled_kernels():
    """Skips where the CPU has no compiled kernels, for tests of what only the kernels promise."""
    if not has_kernel(torch.empty(0)):
        pytest.skip("no compiled kernels: built without a compiler, or FASTHG_NATIVE_DISABLE")

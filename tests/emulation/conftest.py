"""Runs the operators of fasthg.ops, wrappers and all, on CUDA kernels that g++ compiled."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import emulated_extension
import pytest
import torch
from emulated_extension import ORDERS
from torch import Tensor

from fasthg.ops import _extension


@pytest.fixture(scope="session")
def emulation(repository: Path) -> ModuleType:
    """The extension with emulated kernels, compiled once for each content of the sources."""
    if shutil.which(emulated_extension.COMPILER) is None:
        pytest.skip(f"no {emulated_extension.COMPILER} to build the emulation with")
    return emulated_extension.load(emulated_extension.built(repository))


@pytest.fixture(scope="session")
def switches(emulation: ModuleType) -> ctypes.CDLL:
    """The C functions at the end of cuda_emulation.h."""
    return ctypes.CDLL(emulation.__file__)


@pytest.fixture(scope="session")
def emulated(
    emulation: ModuleType, switches: ctypes.CDLL
) -> Callable[[str], AbstractContextManager[None]]:
    """A context in which CPU tensors take the CUDA kernels, whose threads run in the order named.

    Uninitialised tensors are filled with NaN or the largest integer there, so that a value that a
    kernel never writes shows.
    """

    @contextmanager
    def context(order: str) -> Iterator[None]:
        before = torch.are_deterministic_algorithms_enabled()
        switches.emulation_order(ORDERS.index(order))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_extension, "native", emulation)
            patch.setattr(_extension, "backend", lambda tensor: "cuda")
            patch.setattr(_extension, "has_kernel", lambda t: t.dtype in _extension.DTYPE_CODES)
            patch.setattr(_extension, "_device_and_stream", lambda tensor: (0, 0))
            torch.use_deterministic_algorithms(True)
            try:
                assert torch.empty(3).isnan().all()
                yield
            finally:
                torch.use_deterministic_algorithms(before)

    return context


@pytest.fixture
def gpu(switches: ctypes.CDLL) -> Iterator[Callable[..., None]]:
    """A function that emulates another GPU for the rest of the test: its multiprocessors, and the
    kibibytes of shared memory that a block may have."""

    def become(multiprocessors: int, kibibytes: int = 227) -> None:
        switches.emulation_multiprocessors(multiprocessors)
        switches.emulation_device(9, 16, kibibytes << 10)

    yield become
    become(132)


@pytest.fixture(scope="session")
def scene() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Keypoints (NaN and far off the map among them), sigmas and visibility."""

    def make(batch: int, parts: int, height: int, width: int, dtype: torch.dtype):
        random = torch.Generator().manual_seed(0)
        keypoints = torch.rand(batch, parts, 2, generator=random) * torch.tensor([width, height])
        keypoints.view(-1)[3::7] = torch.nan
        keypoints.view(-1)[5::11] = 1e30
        sigmas = torch.rand(batch, parts, generator=random) + 1
        visibility = (torch.rand(batch, parts, generator=random) > 0.1).to(torch.uint8)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        return keypoints.to(real), sigmas.to(real), visibility

    return make

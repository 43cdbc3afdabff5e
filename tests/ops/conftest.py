from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions on a GPU round float32 to ten bits unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def scene() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Keypoints (on, beside and far off the map, NaN and infinite), sigmas and visibility."""

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

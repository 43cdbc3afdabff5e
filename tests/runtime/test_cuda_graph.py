"""A captured function is captured anew for inputs of another shape, dtype or memory order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fasthg.runtime import cuda_graph
from fasthg.runtime.cuda_graph import GraphedCallable


class Recorded:
    """Runs the captured function again, as a graph on a GPU would."""

    def __init__(self, work: Callable[[], Tensor], device: torch.device) -> None:
        self.replay = work


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(3, 4),
        torch.full((2, 3), 2.5, dtype=torch.float64),
        torch.arange(6.0).reshape(3, 2).t(),
    ],
    ids=["shape", "dtype", "strides"],
)
def test_another_layout_of_inputs_is_captured_anew(
    monkeypatch: pytest.MonkeyPatch, other: Tensor
) -> None:
    monkeypatch.setattr(cuda_graph, "capture", Recorded)
    graphed = GraphedCallable(lambda x: x.reshape(-1), torch.device("cpu"))
    graphed(torch.zeros(2, 3))
    first = graphed.captured
    graphed(torch.ones(2, 3))
    assert graphed.captured is first
    result = graphed(other)
    assert graphed.captured is not first
    assert result.dtype == other.dtype and torch.equal(result, other.reshape(-1))

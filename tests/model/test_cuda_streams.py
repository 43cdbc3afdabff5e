"""Gradients found beside the rest are the same ones; the streams themselves need a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasthg.model import cuda_streams
from fasthg.model.cuda_streams import convolve, join_weight_gradients, overlap_weight_gradients


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (7, 2)])
@pytest.mark.parametrize("grad_x", [True, False])
def test_a_captured_convolution_is_torchs(
    monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int, grad_x: bool
) -> None:
    monkeypatch.setattr(cuda_streams, "_captures", lambda _: True)
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, kernel, stride, kernel // 2, bias=False)
    x = torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last).requires_grad_(grad_x)
    leaves = [conv.weight, x][: 2 if grad_x else 1]
    found = []
    for y in (convolve(conv, x), conv(x)):
        slopes = torch.autograd.grad(y.square().sum(), leaves)
        found.append([y.detach(), *slopes])
    assert type(convolve(conv, x).grad_fn).__name__ == "_ConvolvedBackward"
    for got, wanted in zip(*found, strict=True):
        assert torch.equal(got, wanted)


def test_a_frozen_weight_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_streams, "_captures", lambda _: True)
    conv = nn.Conv2d(2, 2, 3, bias=False).requires_grad_(False)
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    convolve(conv, x).sum().backward()
    assert conv.weight.grad is None and x.grad is not None


def test_outside_a_capture_nothing_happens() -> None:
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    assert join_weight_gradients(x) is x
    with overlap_weight_gradients(x):
        assert cuda_streams._beside is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_waits_for_what_ran_beside() -> None:
    """Large products beside a chain of small ones: read too early, they would not be there."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    convs = [nn.Conv2d(256, 256, 3, padding=1, bias=False).to(device) for _ in range(4)]
    x = torch.randn(8, 256, 64, 64, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()
    weights = [conv.weight for conv in convs]

    def work() -> list[torch.Tensor]:
        y = x
        for conv in convs:
            y = convolve(conv, join_weight_gradients(y))
        loss = y.square().mean()
        with overlap_weight_gradients(loss):
            return list(torch.autograd.grad(loss, weights))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = [slope.clone() for slope in work()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        found = [slope + 0 for slope in work()]
    for _ in range(3):
        for slope in found:
            slope.zero_()
        graph.replay()
        for got, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-6)

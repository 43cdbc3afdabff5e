"""Overlapped weight gradients equal torch's; the overlap itself needs a GPU."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fasthg.model import cuda_streams
from fasthg.model.cuda_streams import SideStreams


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (7, 2)])
@pytest.mark.parametrize("grad_x", [True, False])
def test_a_captured_convolution_is_torchs(
    monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int, grad_x: bool
) -> None:
    monkeypatch.setattr(cuda_streams, "_is_capturing", lambda _: True)
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, kernel, stride, kernel // 2, bias=False)
    x = torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last).requires_grad_(grad_x)
    leaves = [conv.weight, x][: 2 if grad_x else 1]
    results = []
    overlapped = SideStreams().convolve(conv, x)
    for y in (overlapped, conv(x)):
        grads = torch.autograd.grad(y.square().sum(), leaves)
        results.append([y.detach(), *grads])
    assert type(overlapped.grad_fn).__name__ == "_OverlappedConvolutionBackward"
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def test_a_frozen_weight_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_streams, "_is_capturing", lambda _: True)
    conv = nn.Conv2d(2, 2, 3, bias=False).requires_grad_(False)
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    SideStreams().convolve(conv, x).sum().backward()
    assert conv.weight.grad is None and x.grad is not None


def test_outside_a_capture_nothing_happens() -> None:
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    side_streams = SideStreams()
    assert side_streams.join_weight_gradients(x) is x
    with side_streams.overlap_weight_gradients(x):
        assert side_streams._weight_gradients is None
    assert side_streams.path(x, 4) is None


def test_a_copy_of_a_network_has_side_streams_of_its_own() -> None:
    side_streams = SideStreams()
    side_streams._paths[1, 2] = object()  # type: ignore[assignment]
    for other in (
        *copy.deepcopy([side_streams, side_streams]),
        copy.copy(side_streams),
        pickle.loads(pickle.dumps(side_streams)),
    ):
        assert other is not side_streams and not other._paths
    one, two = copy.deepcopy([side_streams, side_streams])
    assert one is two


@pytest.mark.gpu
def test_a_graph_waits_for_overlapped_gradients() -> None:
    """Large products overlap a chain of small ones: read too early, they would be incomplete."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    convs = [nn.Conv2d(256, 256, 3, padding=1, bias=False).to(device) for _ in range(4)]
    x = torch.randn(8, 256, 64, 64, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()
    weights = [conv.weight for conv in convs]
    side_streams = SideStreams()

    def work() -> list[torch.Tensor]:
        y = x
        for conv in convs:
            y = side_streams.convolve(conv, side_streams.join_weight_gradients(y))
        loss = y.square().mean()
        with side_streams.overlap_weight_gradients(loss):
            return list(torch.autograd.grad(loss, weights))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [grad.clone() for grad in work()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        actual = [grad + 0 for grad in work()]
    for _ in range(3):
        for grad in actual:
            grad.zero_()
        graph.replay()
        for grad, right in zip(actual, expected, strict=True):
            torch.testing.assert_close(grad, right, rtol=1e-3, atol=1e-6)

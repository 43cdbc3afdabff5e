"""Batch norm over several processes, here threads, against batch norm of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasthg.model import StackedHourglass
from fasthg.model.layers import BatchNorm, Residual
from fasthg.model.sync_norm import sync_norm


class Thread:
    """One of two threads that stand for processes."""

    size = 2

    def __init__(self, rank: int, barrier: Barrier, given: list[Tensor]) -> None:
        self.rank, self.barrier, self.given = rank, barrier, given

    def stacked(self, tensor: Tensor) -> Tensor:
        self.given[self.rank] = tensor
        self.barrier.wait(20)
        both = torch.stack(self.given)
        self.barrier.wait(20)
        return both

    def sum(self, tensor: Tensor) -> None:
        tensor.copy_(self.stacked(tensor.clone()).sum(0))


def together(work: Callable[[Thread], list[Tensor]]) -> list[list[Tensor]]:
    """What two threads make that talk to each other."""
    barrier, given = Barrier(2), [torch.empty(0)] * 2
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, [Thread(rank, barrier, given) for rank in range(2)]))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_it_is_the_batch_norm_of_both_batches(relu: bool, with_residual: bool) -> None:
    compare(torch.device("cpu"), torch.float64, relu, with_residual, rtol=1e-12, atol=1e-13)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_it_is_so_on_a_gpu(relu: bool, with_residual: bool) -> None:
    compare(torch.device("cuda"), torch.float32, relu, with_residual, rtol=1e-4, atol=1e-5)


def compare(
    device: torch.device, dtype: torch.dtype, relu: bool, with_residual: bool, **close: float
) -> None:
    random = torch.Generator().manual_seed(0)
    x, residual, slope = (
        (torch.randn(4, 3, 5, 5, generator=random) * 2 + 1)
        .to(device, dtype)
        .to(memory_format=torch.channels_last)
        for _ in range(3)
    )
    bias = torch.randn(3, generator=random).to(device, dtype)

    def inputs(rows: slice) -> list[Tensor]:
        given = [x[rows], bias, residual[rows]][: 3 if with_residual else 2]
        return [tensor.clone().requires_grad_() for tensor in given]

    def work(peers: Thread) -> list[Tensor]:
        rows = slice(2 * peers.rank, 2 * peers.rank + 2)
        given = inputs(rows)
        added = given[2] if with_residual else None
        y, mean, var = sync_norm(*given[:2], added, peers, relu=relu, eps=1e-3)
        return [y, mean, var, *torch.autograd.grad((y * slope[rows]).sum(), given)]

    first, second = together(work)
    given = inputs(slice(None))
    y = F.batch_norm(given[0], None, None, torch.ones_like(bias), given[1], True, eps=1e-3)
    y = y + given[2] if with_residual else y
    y = y.relu() if relu else y
    slopes = torch.autograd.grad((y * slope).sum(), given)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), y, **close)
    for one in (first, second):
        torch.testing.assert_close(one[1], mean, **close)
        torch.testing.assert_close(one[2], var, **close)
    torch.testing.assert_close(torch.cat([first[3], second[3]]), slopes[0], **close)
    torch.testing.assert_close(first[4] + second[4], slopes[1], **close)
    if with_residual:
        torch.testing.assert_close(torch.cat([first[5], second[5]]), slopes[2], **close)


def test_moving_statistics_are_those_of_both_batches() -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))

    def work(peers: Thread) -> list[Tensor]:
        layer = BatchNorm(3, decay=0.5)
        layer.peers = peers
        layer(x[2 * peers.rank : 2 * peers.rank + 2])
        return [layer.running_mean, layer.running_var]

    whole = BatchNorm(3, decay=0.5)
    whole(x)
    for found in together(work):
        torch.testing.assert_close(found[0], whole.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[1], whole.running_var, rtol=1e-5, atol=1e-6)


def test_every_norm_of_a_network_takes_part_and_whole_residuals_do_not() -> None:
    model = StackedHourglass(1, 2, 8, 4, fused="on")
    model.set_peers(Thread(0, Barrier(1), []))
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert norms and all(norm.peers is not None for norm in norms)
    residuals = [m for m in model.modules() if isinstance(m, Residual)]
    assert not any(block.fused_for(torch.zeros(1, 8, 16, 16)) for block in residuals)
    model.set_peers(None)
    assert all(block.fused_for(torch.zeros(1, 8, 16, 16)) for block in residuals)

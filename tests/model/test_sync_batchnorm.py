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
from fasthg.model.layers import BatchNorm
from fasthg.model.sync_batchnorm import sync_norm


class Thread:
    """One of two threads that stand for processes."""

    size = 2

    def __init__(self, rank: int, barrier: Barrier, tensors: list[Tensor]) -> None:
        self.rank, self.barrier, self.tensors = rank, barrier, tensors

    def stacked(self, tensor: Tensor) -> Tensor:
        self.tensors[self.rank] = tensor
        self.barrier.wait(20)
        both = torch.stack(self.tensors)
        self.barrier.wait(20)
        return both

    def sum(self, tensor: Tensor) -> None:
        tensor.copy_(self.stacked(tensor.clone()).sum(0))


def together(work: Callable[[Thread], list[Tensor]]) -> list[list[Tensor]]:
    """Results of two threads that exchange tensors."""
    barrier, tensors = Barrier(2), [torch.empty(0)] * 2
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, [Thread(rank, barrier, tensors) for rank in range(2)]))


def draw(
    device: torch.device, dtype: torch.dtype, with_residual: bool
) -> tuple[list[Tensor], Tensor]:
    """x, bias and perhaps a residual of four images; and the gradient of y."""
    random = torch.Generator().manual_seed(0)
    x, residual, grad_y = (
        (torch.randn(4, 3, 5, 5, generator=random) * 2 + 1)
        .to(device, dtype)
        .to(memory_format=torch.channels_last)
        for _ in range(3)
    )
    bias = torch.randn(3, generator=random).to(device, dtype)
    return [x, bias, residual][: 3 if with_residual else 2], grad_y


def leaves(tensors: list[Tensor], rows: slice) -> list[Tensor]:
    """x, bias and residual of some images, as leaves."""
    parts = [t if t.dim() == 1 else t[rows] for t in tensors]
    return [part.clone().requires_grad_() for part in parts]


def torch_gradients(tensors: list[Tensor], grad_y: Tensor, relu: bool) -> list[Tensor]:
    """y and the gradients, by torch, of all images together."""
    x, bias, *residual = whole = leaves(tensors, slice(None))
    y = F.batch_norm(x, None, None, torch.ones_like(bias), bias, True, eps=1e-3)
    y = y + residual[0] if residual else y
    y = y.relu() if relu else y
    return [y, *torch.autograd.grad((y * grad_y).sum(), whole)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_it_is_the_batch_norm_of_both_batches(relu: bool, with_residual: bool) -> None:
    tensors, grad_y = draw(torch.device("cpu"), torch.float64, with_residual)

    def work(group: Thread) -> list[Tensor]:
        rows = slice(2 * group.rank, 2 * group.rank + 2)
        x, bias, *residual = own = leaves(tensors, rows)
        added = residual[0] if residual else None
        y, mean, var = sync_norm(x, bias, added, group, relu=relu, eps=1e-3)
        return [mean, var, y, *torch.autograd.grad((y * grad_y[rows]).sum(), own)]

    first, second = together(work)
    var, mean = torch.var_mean(tensors[0], (0, 2, 3), correction=0)
    close = {"rtol": 1e-12, "atol": 1e-13}
    for one in (first, second):
        torch.testing.assert_close(one[0], mean, **close)
        torch.testing.assert_close(one[1], var, **close)
    for one, other, right in zip(
        first[2:], second[2:], torch_gradients(tensors, grad_y, relu), strict=True
    ):
        # Each has the bias's gradient of its own images.
        both = one + other if right.dim() == 1 else torch.cat([one, other])
        torch.testing.assert_close(both, right, **close)


class Alone:
    """The only process."""

    size = 1

    def stacked(self, tensor: Tensor) -> Tensor:
        return tensor[None]

    def sum(self, tensor: Tensor) -> None:
        pass


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_kernels_of_a_gpu(dtype: torch.dtype, relu: bool, with_residual: bool) -> None:
    """Alone: a GPU has one thread for all backwards, where two could not wait for each other."""
    tensors, grad_y = draw(torch.device("cuda"), torch.float32, with_residual)
    tensors = [t if t.dim() == 1 else t.to(dtype).float() for t in tensors]
    expected = torch_gradients(tensors, grad_y.to(dtype).float(), relu)
    half = [t if t.dim() == 1 else t.to(dtype) for t in tensors]
    x, bias, *residual = own = leaves(half, slice(None))
    y, _, _ = sync_norm(x, bias, *(residual or [None]), Alone(), relu=relu, eps=1e-3)
    actual = [y, *torch.autograd.grad((y * grad_y.to(dtype)).sum(), own)]
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    for ours, right in zip(actual, expected, strict=True):
        assert (ours.float() - right).norm() <= limit * right.norm()


def test_moving_statistics_are_those_of_both_batches() -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))

    def work(group: Thread) -> list[Tensor]:
        layer = BatchNorm(3, decay=0.5)
        layer.process_group = group
        layer(x[2 * group.rank : 2 * group.rank + 2])
        return [layer.running_mean, layer.running_var]

    whole = BatchNorm(3, decay=0.5)
    whole(x)
    for mean, var in together(work):
        torch.testing.assert_close(mean, whole.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var, whole.running_var, rtol=1e-5, atol=1e-6)


def test_every_norm_of_a_network_takes_part() -> None:
    model = StackedHourglass(1, 2, 8, 4)
    model.set_process_group(Thread(0, Barrier(1), []))
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert norms and all(norm.process_group is not None for norm in norms)
    model.set_process_group(None)
    assert all(norm.process_group is None for norm in norms)

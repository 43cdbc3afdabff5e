"""A CUDA graph's semantics on the CPU, for tests of work that a GPU captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasthg.runtime.cuda_graph import WARM_UP

FORBIDDEN = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Tape(TorchDispatchMode):
    """A CUDA graph's semantics on the CPU: operators recorded once, replayed on the same tensors.

    What Python did between the operators is not repeated, numbers that it passed stay as they were,
    and every result is written where it was at first. What a capture forbids is an error.
    """

    def __init__(self, work: Callable[[], Tensor]) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        with self:
            self.result = work().detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FORBIDDEN:
            raise AssertionError(f"{func} reads a value on the host: it cannot be captured")
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tensors_of((args, kwargs))}
        fresh = [
            (i, t)
            for i, t in enumerate(tensors_of(result))
            if t.numel() and t.untyped_storage().data_ptr() not in given
        ]
        self._calls.append((func, args, kwargs or {}, fresh))
        return result

    @torch.no_grad()
    def replay(self) -> Tensor:
        for func, args, kwargs, fresh in self._calls:
            results = tensors_of(func(*args, **kwargs))
            for i, place in fresh:
                place.copy_(results[i])
        return self.result


def record(work: Callable[[], Tensor], device: torch.device) -> Tape:
    """In place of `fasthg.runtime.cuda_graph.capture`."""
    for _ in range(WARM_UP):
        work()
    return Tape(work)

"""All weights of a network in one buffer, so that one kernel can update them.

The network's tensors become views: names, shapes and strides (channels_last) stay as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Every tensor begins at a multiple of so many values (256 bytes), as one of its own would: kernels
for convolutions ask for it. The gaps stay 0."""

Network = TypeVar("Network", bound=nn.Module)


class FlatParameters(Generic[Network]):
    """Weights, their gradients and the moving statistics of a network in flat buffers.

    The gradients of the parameters become views as well: `set_gradient` writes all at once, and
    `Tensor.backward` adds to them one by one, for which `gradient` is filled with 0 beforehand.

    Args:
        network: on its device and in its memory format, which stay as they are from here on.
        decayed: its parameters with L2.
        plain: its other parameters that are trained.
        fixed: parameters and buffers that never change.

    Raises:
        ValueError: a tensor is not float32 or on another device than the others, or `decayed`,
            `plain` and `fixed` are not the parameters of the network.
    """

    values: Tensor
    """(total,): weights, those with L2 first, then what is fixed, then the moving statistics."""
    weights: Tensor
    """(weights,): the first part of `values`. Its `.grad` is `gradient`."""
    gradient: Tensor
    """(weights,)."""
    parameters: list[Tensor]
    """Those that are trained, with L2 first."""
    num_decayed: int
    """The first so many weights have L2."""
    statistics_begin: int
    """Index in `values` of the first moving statistic."""

    def __init__(
        self,
        network: Network,
        decayed: Sequence[Tensor],
        plain: Sequence[Tensor],
        fixed: Sequence[Tensor] = (),
    ) -> None:
        parameters = [*decayed, *plain]
        buffers = {id(t): t for t in network.buffers()}
        given = {id(t) for t in (*parameters, *fixed)} - buffers.keys()
        if given != {id(p) for p in network.parameters()}:
            raise ValueError("decayed, plain and fixed: expected the parameters of the network")
        for tensor in fixed:
            buffers.pop(id(tensor), None)
        tensors = [*parameters, *fixed, *buffers.values()]
        for tensor in tensors:
            if tensor.dtype != torch.float32 or tensor.device != tensors[0].device:
                raise ValueError(
                    f"expected float32 on {tensors[0].device}, got {tensor.dtype} on "
                    f"{tensor.device}: move the network to one device and keep it in float32"
                )
        names = {id(t): name for name, t in network.state_dict(keep_vars=True).items()}
        self.network = network
        self.parameters = parameters
        self._names = [names[id(t)] for t in tensors]
        self.values = _flatten(tensors)
        self.num_decayed = _length(decayed)
        self.weights = self.values[: self.num_decayed + _length(plain)]
        self.statistics_begin = len(self.weights) + _length(fixed)
        self.gradient = torch.zeros_like(self.weights)
        self.weights.grad = self.gradient
        self._places: list[tuple[Tensor, list[int]]] = []
        for parameter, gradient in zip(parameters, _views(self.gradient, parameters), strict=True):
            parameter.grad = gradient
            order = sorted(range(gradient.dim()), key=gradient.stride, reverse=True)
            self._places.append((_flattened(gradient, order), order))

    @property
    def statistics(self) -> Tensor:
        """The last part of `values`: the network's buffers in order, with gaps of zeros; not those
        that are fixed."""
        return self.values[self.statistics_begin :]

    def groups(self) -> tuple[Tensor, Tensor]:
        """Weights with and without L2, with their gradients, as optimisers of torch take them."""
        parts = self.weights.detach().tensor_split([self.num_decayed])
        for part, gradient in zip(
            parts, self.gradient.tensor_split([self.num_decayed]), strict=True
        ):
            part.grad = gradient
        return parts[0], parts[1]

    def set_gradient(self, found: Sequence[Tensor | None]) -> None:
        """Write gradients, in the order of `parameters`, into `gradient`; None is 0.

        Tensors of one dtype are copied together: on a GPU in a few launches, where adding to the
        parameters' own gradients would launch a kernel for each.
        """
        copied: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for (place, order), gradient in zip(self._places, found, strict=True):
            if gradient is None:
                place.zero_()
                continue
            places, values = copied.setdefault(gradient.dtype, ([], []))
            places.append(place)
            values.append(_flattened(gradient, order))
        for places, values in copied.values():
            torch._foreach_copy_(places, values)

    def copy(self) -> tuple[Network, Tensor]:
        """The network once more, over a buffer of its own, `(total,)` in the order of `values`."""
        other = copy.deepcopy(self.network)
        tensors = other.state_dict(keep_vars=True)
        return other, _flatten([tensors[name] for name in self._names])


def _length(tensors: Sequence[Tensor]) -> int:
    return sum(-(-t.numel() // ALIGNMENT) * ALIGNMENT for t in tensors)


def _flattened(tensor: Tensor, order: list[int]) -> Tensor:
    """All values, dimension after dimension; a view where they lie in memory in that order."""
    return tensor.detach().permute(order).reshape(-1)


def _views(buffer: Tensor, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Where each tensor lies in a buffer: one after the other, without gaps of their own."""
    begin = 0
    for tensor in tensors:
        dense = torch.empty_like(tensor, device="meta")
        yield buffer[begin:].as_strided(tensor.shape, dense.stride())
        begin += _length([tensor])


@torch.no_grad()
def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors, which stay the same objects, into one new buffer."""
    buffer = tensors[0].new_zeros(_length(tensors))
    for tensor, view in zip(tensors, _views(buffer, tensors), strict=True):
        tensor.data = view.copy_(tensor)
    return buffer

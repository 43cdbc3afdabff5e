"""The network with batch norm folded into its convolutions, for inference."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasthg.model.hourglass import StackedHourglass
from fasthg.model.layers import ConvBN, Residual
from fasthg.ops import conv1x1_act, residual_block_inference


def _folded(layer: ConvBN, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights, in `dtype`, and float32 offset (out,) of a convolution that includes its norm."""
    norm = layer.bn
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = layer.conv.weight.double() * scale[:, None, None, None]
    offset = norm.bias.double() - norm.running_mean.double() * scale
    return weight.to(dtype, memory_format=torch.channels_last), offset.float()


class FoldedConv(nn.Module):
    """`ConvBN` in inference: a convolution with an offset, and ReLU; no residual."""

    weight: Tensor
    offset: Tensor

    def __init__(self, layer: ConvBN, dtype: torch.dtype) -> None:
        super().__init__()
        weight, offset = _folded(layer, dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("offset", offset)
        self.stride, self.padding, self.pad = layer.conv.stride, layer.conv.padding, layer.pad
        self.relu = layer.relu

    def forward(self, x: Tensor) -> Tensor:
        """As `ConvBN`."""
        x = x.to(self.weight.dtype)
        if self.weight.shape[-1] == 1:
            return conv1x1_act(x, self.weight, self.offset, relu=self.relu)
        if self.pad is not None:
            x = F.pad(x, self.pad)
        with torch.autocast(x.device.type, enabled=False):
            y = F.conv2d(x, self.weight, self.offset.to(x.dtype), self.stride, self.padding)
        return y.relu_() if self.relu else y


class FoldedResidual(nn.Module):
    """`Residual` in inference: see `residual_block_inference`."""

    weight1: Tensor
    offset1: Tensor
    weight2: Tensor
    offset2: Tensor
    weight3: Tensor
    offset3: Tensor
    weight_skip: Tensor | None

    def __init__(self, block: Residual, dtype: torch.dtype) -> None:
        super().__init__()
        folded = [_folded(layer, dtype) for layer in (block.conv1, block.conv2, block.conv3)]
        if block.skip is not None:
            weight, offset = _folded(block.skip, dtype)
            folded[2] = folded[2][0], folded[2][1] + offset
        for i, tensors in enumerate(folded, start=1):
            for name, tensor in zip(("weight", "offset"), tensors, strict=True):
                self.register_buffer(f"{name}{i}", tensor)
        self.register_buffer("weight_skip", None if block.skip is None else weight)

    def forward(self, x: Tensor) -> Tensor:
        """As `Residual`."""
        return residual_block_inference(
            x.to(self.weight1.dtype),
            weight1=self.weight1,
            offset1=self.offset1,
            weight2=self.weight2,
            offset2=self.offset2,
            weight3=self.weight3,
            offset3=self.offset3,
            weight_skip=self.weight_skip,
        )


@torch.no_grad()
def fold_batch_norm(model: StackedHourglass, dtype: torch.dtype) -> StackedHourglass:
    """A copy of the network for inference, with every batch norm folded into its convolution.

    Args:
        model: stays unchanged; its running statistics are folded in.
        dtype: of the folded weights and of all maps but the heads': that of the autocast under
            which the copy runs, or float32 without one.

    Returns:
        The copy, in evaluation mode; its `state_dict` has other names, and it cannot be trained.
    """
    folded = copy.deepcopy(model)
    _fold_children(folded, dtype)
    return folded.eval().requires_grad_(False)


def _fold_children(parent: nn.Module, dtype: torch.dtype) -> None:
    for name, child in list(parent.named_children()):
        if isinstance(child, Residual):
            setattr(parent, name, FoldedResidual(child, dtype))
        elif isinstance(child, ConvBN):
            setattr(parent, name, FoldedConv(child, dtype))
        else:
            _fold_children(child, dtype)

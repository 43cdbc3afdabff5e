"""The network for other runtimes: torch's own operators only, heatmaps of the last stack only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fasthg.config import Config
from fasthg.errors import ConfigError
from fasthg.model import StackedHourglass, fold_batch_norm
from fasthg.model.fold_bn import FoldedConv, FoldedResidual
from fasthg.model.hourglass import STRIDE, Stack
from fasthg.model.layers import Hourglass
from fasthg.ops import reference


class ExportNetwork(nn.Module):
    """A trained network in inference, of `conv2d`, `relu`, `max_pool2d`, nearest `interpolate` and
    sums; no operator of fasthg.

    Args:
        model: in evaluation mode; batch norm is folded into a copy (`fold_batch_norm`).
        stored: what convolutions' weights are rounded to, after folding.
        computed: dtype of the arithmetic, and of all maps but images and results.
        decode: also decode the peaks by this method of `heatmap_peaks`; plateau has no form without
            a loop.

    Raises:
        ConfigError: decode is plateau.
    """

    def __init__(
        self,
        model: StackedHourglass,
        stored: torch.dtype = torch.float32,
        computed: torch.dtype = torch.float32,
        decode: str | None = None,
    ) -> None:
        super().__init__()
        if decode == "plateau":
            raise ConfigError(
                "--peaks: DECODE plateau needs a loop that an exported graph lacks; "
                "add DECODE=dark, quarter or argmax"
            )
        self.computed, self.decode = computed, decode
        self.network = fold_batch_norm(model, stored)
        for tensor in (*self.network.buffers(), *self.network.parameters()):
            # Offsets are few: they are rounded by the arithmetic alone.
            rounded = tensor.data.to(stored) if tensor.ndim == 4 else tensor.data
            # torch.export.save warns of channels_last; convolutions take as long either way.
            tensor.data = rounded.to(computed).contiguous()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Heatmaps and, with `decode`, keypoints and scores; all float32.

        Args:
            images: float32 `(batch, 3, height, width)`, RGB in [-1, 1].

        Returns:
            heatmaps `(batch, parts, height / 4, width / 4)` of the last stack; keypoints
            `(batch, parts, 2)` x, y in input px; scores `(batch, parts)`, the peaks' heights.
        """
        stem = self.network.stem
        half = self.computed != torch.float32
        x = _conv(stem.conv, images.to(self.computed) if half else images)
        x = F.max_pool2d(_residual(stem.residual1, x), 2, 2)
        x = _residual(stem.residual3, _residual(stem.residual2, x))
        for stack in self.network.stacks:
            x, heatmap = _stack(stack, x)
        maps = heatmap.float() if half else heatmap
        if self.decode is None:
            return (maps,)
        cells, scores = reference.heatmap_peaks(maps, self.decode)
        return maps, cells * STRIDE, scores


def _conv(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, FoldedConv)
    if layer.pad is not None:
        x = F.pad(x, layer.pad)
    y = F.conv2d(x, layer.weight, layer.offset, layer.stride, layer.padding)
    return F.relu(y) if layer.relu else y


def _biased(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias)


def _residual(block: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(block, FoldedResidual)
    first, second, third = (
        (block.get_buffer(f"weight{i}"), block.get_buffer(f"offset{i}")) for i in (1, 2, 3)
    )
    y = F.relu(F.conv2d(x, *first))
    y = F.relu(F.conv2d(y, *second, padding=1))
    y = F.conv2d(y, *third)
    skip = block._buffers["weight_skip"]
    return y + (x if skip is None else F.conv2d(x, skip))


def _hourglass(hourglass: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(hourglass, Hourglass)
    lower = _residual(hourglass.lower1, F.max_pool2d(x, 2, 2))
    inner = hourglass.lower2
    deeper = _hourglass if isinstance(inner, Hourglass) else _residual
    lower = _residual(hourglass.lower3, deeper(inner, lower))
    return _residual(hourglass.upper, x) + F.interpolate(lower, scale_factor=2.0)


def _stack(stack: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(stack, Stack)
    features = _conv(stack.features, _residual(stack.residual, _hourglass(stack.hourglass, x)))
    heatmap = _biased(stack.heatmap, features)
    if stack.remap_features is not None and stack.remap_heatmap is not None:
        x = x + _biased(stack.remap_features, features) + _biased(stack.remap_heatmap, heatmap)
    return x, heatmap


def traced(network: ExportNetwork, config: Config) -> ExportedProgram:
    """The graph of a network, for images of INPUT_SIZE in batches of any size from 1."""
    # Two images: torch.export would treat a batch of 1 as a constant.
    images = torch.zeros(2, 3, config.INPUT_SIZE, config.INPUT_SIZE)
    with torch.no_grad():
        program = torch.export.export(
            network.eval(), (images,), dynamic_shapes={"images": {0: Dim("batch", min=1)}}
        )
    for node in program.graph.nodes:
        # These would write local paths of this machine into the file.
        for key in ("stack_trace", "nn_module_stack", "torch_fn"):
            node.meta.pop(key, None)
    return program

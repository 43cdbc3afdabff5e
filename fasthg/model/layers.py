"""Blocks of the MARS network: convolution + batch norm, residual, hourglass.

All maps are `(batch, channels, height, width)` in memory format channels_last.
Source of the architecture: Newell et al., "Stacked Hourglass Networks for Human Pose Estimation",
2016, in the variant that MARS trains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasthg.model.cuda_streams import SideStreams
from fasthg.model.fused import FEW_VALUES, runs_fused
from fasthg.model.sync_batchnorm import SyncGroup, sync_norm
from fasthg.ops import (
    bn_act,
    bn_act_inference,
    conv3x3,
    max_pool2x,
    max_pool2x_fork,
    residual_block,
    update_statistics,
    upsample2x_add,
)
from fasthg.ops.conv3x3 import has_own_kernel
from fasthg.ops.residual_block import has_kernels as has_block_kernels

HOURGLASS_LEVELS = 4
UNBIASED = 1 << 62
"""A count of values at which biased and unbiased variance are equal: `var` is unbiased already."""


class BatchStats(NamedTuple):
    """Batch mean and variance of one `BatchNorm` from one forward pass."""

    layer: BatchNorm
    mean: Tensor
    """`(channels,)`."""
    var: Tensor
    """`(channels,)`, biased; unbiased where `size` is UNBIASED."""
    size: int
    """Values of a channel."""


class BatchStatsCollector:
    """Gathers the batch statistics of one network, whose batch norms share it.

    An object of the network: with a module global, two networks that train in two threads would
    mix their statistics. A thread-local would miss the layers that RECOMPUTE runs again in the
    backward, on a thread of autograd.
    """

    def __init__(self) -> None:
        self.stats: list[BatchStats] | None = None
        """Those of the open `collect`; None: each layer updates its running statistics itself."""

    @contextlib.contextmanager
    def collect(self) -> Iterator[list[BatchStats]]:
        """While open, batch norms append to the list and leave their running statistics alone.

        The caller applies the list with `RunningStats.apply`. A list that is dropped, such as that
        of a forward that fails, changes nothing.
        """
        before, self.stats = self.stats, []
        try:
            yield self.stats
        finally:
            self.stats = before


class BatchNorm(nn.Module):
    """Batch norm with an offset and no scale, then an optional residual and an optional ReLU.

    `y = relu?((x - mean) / sqrt(var + eps) + bias + residual)`. Training normalises with the biased
    variance of the batch and updates `running_var` with the unbiased one: `running = decay *
    running + (1 - decay) * batch`, as `tf.contrib.slim.batch_norm` does.

    Args:
        channels: number of channels.
        eps: added to the variance (BATCHNORM_EPSILON).
        decay: share of the running statistics kept per step (BATCHNORM_MOVING_AVERAGE_DECAY).
            An attribute, so that a step may warm it up.
        fused: "on" runs `fasthg.ops.bn_act`, "off" torch's own modules, "auto" the first where
            the device has compiled kernels and they are faster (FUSED).

    Attributes:
        process_group: the processes whose batches are normalised together in training
            (BATCHNORM_SYNC); None normalises the batch of this process.
        collector: takes the batch statistics of training; see `share_collector`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, eps: float = 1e-3, decay: float = 0.9997, fused: str = "auto"
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = eps
        self.decay = decay
        self.fused = fused
        self.process_group: SyncGroup | None = None
        self.collector = BatchStatsCollector()

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalise `(batch, channels, height, width)`; in training, report batch statistics.

        The result has the dtype of `x`, also where `residual` has another.
        """
        if self.training and self.process_group is not None:
            y, mean, var = sync_norm(
                *(x, self.bias, residual, self.process_group), relu=relu, eps=self.eps
            )
            self.report_stats(mean, var, x.numel() // x.shape[1] * self.process_group.size)
            return y
        # torch's own float32 kernels are the faster ones on a CPU.
        if runs_fused(self.fused, x, slower_on_cpu=(torch.float32,)):
            return self._fused(x, residual, relu)
        # In channels_last on a GPU, torch computes no gradient of an offset without a scale.
        scale = torch.ones_like(self.bias) if x.is_cuda else None
        if self.training and self.collector.stats is not None:
            # With momentum 1 torch's kernel writes the batch's statistics, var unbiased. It adds
            # 0 times the old value, so that is 0. The decay is not read here: torch.compile would
            # compile anew for each.
            mean, var = self.running_mean.new_zeros((2, len(self.bias)))
            y = F.batch_norm(x, mean, var, scale, self.bias, True, 1.0, self.eps)
            self.report_stats(mean, var, UNBIASED)
        else:
            running = (self.running_mean, self.running_var)
            momentum = 1.0 - self.decay
            y = F.batch_norm(x, *running, scale, self.bias, self.training, momentum, self.eps)
        if residual is not None:
            y = y + residual.to(y.dtype)
        return F.relu(y, inplace=True) if relu else y

    def _fused(self, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        if not self.training:
            means = (self.running_mean, self.running_var)
            return bn_act_inference(
                x, *means, self.bias, residual=residual, relu=relu, eps=self.eps
            )
        y, mean, var = bn_act(x, self.bias, residual=residual, relu=relu, eps=self.eps)
        self.report_stats(mean, var, x.numel() // x.shape[1])
        return y

    def report_stats(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Give a batch's statistics to the collector, or update the running ones where none is on.

        Args:
            mean, var: see `BatchStats`; neither may change later.
            count: values of a channel, or UNBIASED.
        """
        if self.collector.stats is None:
            self.update_running_stats(mean, var, count)
        else:
            self.collector.stats.append(BatchStats(self, mean, var, count))

    def update_running_stats(self, mean: Tensor, var: Tensor, count: int) -> None:
        """`running = decay * running + (1 - decay) * batch`; arguments as of `report_stats`."""
        update_statistics(self.running_mean, self.running_var, mean, var, count, self.decay)


def set_fused(network: nn.Module, fused: str) -> None:
    """Choose the operators of all layers of a network, or a part of one: see `BatchNorm`."""
    for module in network.modules():
        if hasattr(module, "fused"):
            module.fused = fused  # type: ignore[assignment]


def share_collector(network: nn.Module) -> BatchStatsCollector:
    """One new collector for all batch norms of a network."""
    collector = BatchStatsCollector()
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.collector = collector
    return collector


def conv_on_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """A 7x7 convolution of stride 2 as one of 4x4 and stride 1 over blocks of 2x2 pixels.

    The four pixels of a block are four channels; a fourth channel of zeros makes them 16, and an
    eighth row and column of zeros makes the kernel 4x4 blocks. Tensor cores multiply 16 channels
    at once and are nearly idle with 3: on an H200 the stem's first convolution and its gradient
    reached 33 TFLOP/s. The products are the same; their order in the sum is not.

    Args:
        x: `(batch, 3, height, width)`, even sides, without padding.
        weight: `(out, 3, 7, 7)`.

    Returns:
        `(batch, out, height / 2, width / 2)`: x padded as TensorFlow's SAME does, by two pixels
        before and three after, and convolved.
    """
    channels = -x.shape[1] % 4
    x = F.pad(x, (2, 4, 2, 4, 0, channels))
    weight = F.pad(weight, (0, 1, 0, 1, 0, channels))
    blocks = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(blocks, F.pixel_unshuffle(weight, 2))


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, optional residual, optional ReLU.

    Padding is TensorFlow's SAME: the 7x7 stem of stride 2 has two pixels before and three after,
    which torch's symmetric padding cannot express.

    Attribute `side_streams`: those of the network (`SideStreams`).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        stride: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        total = kernel - stride
        before, after = total // 2, total - total // 2
        padding = before if before == after else 0
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.pad = None if before == after else (before, after, before, after)
        self.bn = BatchNorm(channels_out)
        self.relu = relu
        self.side_streams = SideStreams()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`(batch, in, height, width)` -> `(batch, out, height / stride, width / stride)`.

        residual: shaped as the result; added before the ReLU.
        """
        y: Tensor = self.bn(self._convolve(x), residual, self.relu)
        return y

    def fork(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x for another reader, and `forward(x)`: the backward adds the gradients of both."""
        skip, y = self.side_streams.convolve_fork(self.conv, x)
        return skip, self.bn(y, None, self.relu)

    def takes_blocks(self, x: Tensor) -> bool:
        """Whether `conv_on_blocks` does the convolution: the stem's first, on tensor cores."""
        if self.conv.kernel_size != (7, 7) or self.conv.stride != (2, 2) or not x.is_cuda:
            return False
        return runs_fused(self.bn.fused, x) and torch.is_autocast_enabled("cuda")

    def _convolve(self, x: Tensor) -> Tensor:
        if self.takes_blocks(x):
            half = torch.get_autocast_dtype(x.device.type)
            return conv_on_blocks(x.to(half), self.conv.weight.to(half))
        if self.pad is not None:
            x = F.pad(x, self.pad)
        if self.conv.kernel_size == (3, 3) and self.conv.stride == (1, 1) and x.is_cpu:
            fused, weight = self.bn.fused, self.conv.weight
            runs = fused == "on" or (fused == "auto" and has_own_kernel(x, weight))
            if runs and not torch.is_autocast_enabled("cpu"):
                return conv3x3(x, weight)
        return self.side_streams.convolve(self.conv, x)


class Residual(nn.Module):
    """1x1 to half the width, 3x3, 1x1 to the full width, plus the input; no ReLU after the sum.

    Attribute `recomputed`: whether the forward runs again in the backward (RECOMPUTE).
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.recomputed = False
        self.conv1 = ConvBN(channels_in, half)
        self.conv2 = ConvBN(half, half, kernel=3)
        self.conv3 = ConvBN(half, channels_out, relu=False)
        self.skip = (
            None if channels_in == channels_out else ConvBN(channels_in, channels_out, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in, height, width)` -> `(batch, out, height, width)`."""
        if self.fuses(x):
            return self._fused(x)
        if self.forks(x):
            skip, inner = self.conv1.fork(x)
        else:
            skip, inner = x if self.skip is None else self.skip(x), self.conv1(x)
        y: Tensor = self.conv3(self.conv2(inner), skip)
        return y

    def forks(self, x: Tensor) -> bool:
        """Whether the backward of the first convolution adds the gradient of the identity path.

        In half types on a GPU; on a CPU that gains nothing.
        """
        if self.skip is not None or not (torch.is_grad_enabled() and x.requires_grad):
            return False
        if x.dtype != self.conv1.conv.weight.dtype or torch.compiler.is_compiling():
            return False
        return x.is_cuda and x.element_size() == 2 and runs_fused(self.conv1.bn.fused, x)

    def fuses(self, x: Tensor) -> bool:
        """Whether one operator, `residual_block`, does the whole residual.

        With FUSED: on, where the backward of the first convolution could add the gradient of the
        identity path, but not with FREEZE, BATCHNORM_SYNC, DETERMINISTIC or RECOMPUTE. FUSED: auto
        leaves it out: no GPU has measured it.
        """
        norm = self.conv1.bn
        if norm.fused != "on" or not (self.training and self.forks(x)) or self.recomputed:
            return False
        if torch.are_deterministic_algorithms_enabled() or norm.process_group is not None:
            return False
        trained = all(weight.requires_grad for weight in self._weights())
        return trained and has_block_kernels(x, len(norm.bias))

    def _weights(self) -> list[Tensor]:
        """Weight and offset of each layer but the skip convolution."""
        return [t for layer in self._layers() for t in (layer.conv.weight, layer.bn.bias)]

    def _layers(self) -> tuple[ConvBN, ConvBN, ConvBN]:
        return self.conv1, self.conv2, self.conv3

    def _fused(self, x: Tensor) -> Tensor:
        aside = self.conv1.side_streams.gradient_of_weight
        y, statistics = residual_block(x, *self._weights(), eps=self.conv1.bn.eps, aside=aside)
        for layer, mean, var in zip(self._layers(), statistics[::2], statistics[1::2], strict=True):
            layer.bn.report_stats(mean, var, x.numel() // x.shape[1])
        return y


def upsample2x(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling: `(batch, channels, h, w)` -> `(batch, channels, 2h, 2w)`.

    Under torch.compile it expands a channels-last view: the backward of an expand is a plain sum,
    that of `F.interpolate` scatters with atomics. In eager mode `F.interpolate` is faster: it is
    one kernel forwards and one backwards.
    """
    if not torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    b, c, h, w = x.shape
    nhwc = x.permute(0, 2, 3, 1)[:, :, None, :, None, :]
    return nhwc.expand(b, h, 2, w, 2, c).reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


def halve(x: Tensor, fused: str) -> Tensor:
    """Maximum of two by two values: `(batch, channels, h, w)` -> `(batch, channels, h/2, w/2)`."""
    if runs_fused(fused, x, least_on_cpu=FEW_VALUES):
        return max_pool2x(x)[0]
    return F.max_pool2d(x, 2, 2)


def fork(x: Tensor, fused: str) -> tuple[Tensor, Tensor]:
    """x and `halve(x)` for the two paths of an hourglass, whose gradients are added in one pass."""
    if runs_fused(fused, x, least_on_cpu=FEW_VALUES):
        return max_pool2x_fork(x)
    return x, F.max_pool2d(x, 2, 2)


class Hourglass(nn.Module):
    """One hourglass: at each level a residual at full size plus a path at half size.

    Args:
        levels: how often the size is halved.
        channels: number of channels.

    Attributes:
        fused: as in `BatchNorm`, for halving and upsampling.
        overlap: whether the two paths may overlap in a CUDA graph.
        side_streams: those of the network (`SideStreams`).
    """

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.fused = "auto"
        self.overlap = True
        self.side_streams = SideStreams()
        self.upper = Residual(channels, channels)
        self.lower1 = Residual(channels, channels)
        self.lower2: nn.Module = (
            Hourglass(levels - 1, channels) if levels > 1 else Residual(channels, channels)
        )
        self.lower3 = Residual(channels, channels)
        self._levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, height, width)` -> the same; sides are multiples of `2 ** levels`."""
        side = self.side_streams.path(x, self._levels) if self.overlap else None
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(x.device))  # but not for the pooling
        skip, half = fork(x, self.fused)
        if side is None:
            upper: Tensor = self.upper(skip)
        else:
            with torch.cuda.stream(side):
                upper = self.upper(skip)
            if torch.is_grad_enabled():
                # The last reader of x is the backward of `upper`, on the side stream.
                x.record_stream(side)
        lower: Tensor = self.lower3(self.lower2(self.lower1(half)))
        if side is not None:
            torch.cuda.current_stream(x.device).wait_stream(side)
        if runs_fused(self.fused, upper, least_on_cpu=FEW_VALUES):
            return upsample2x_add(lower, upper)
        return upper + upsample2x(lower)


def decayed_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Trained parameters with L2 (weights and biases of convolutions) and without (BN offsets).

    Frozen parameters are in neither list.
    """
    offsets = {id(m.bias) for m in model.modules() if isinstance(m, BatchNorm)}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed: list[Tensor] = [p for p in trained if id(p) not in offsets]
    plain: list[Tensor] = [p for p in trained if id(p) in offsets]
    return decayed, plain

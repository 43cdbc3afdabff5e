"""The stacked hourglass: stem, then stacks of hourglass, features and heatmaps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fasthg.model.cuda_streams import SideStreams
from fasthg.model.layers import (
    HOURGLASS_LEVELS,
    BatchNorm,
    BatchStatsCollector,
    ConvBN,
    Hourglass,
    Residual,
    halve,
    set_fused,
    share_collector,
)
from fasthg.model.sync_batchnorm import SyncGroup
from fasthg.ops import conv1x1_act, has_kernel

if TYPE_CHECKING:
    from fasthg.config import Config

STRIDE = 4
"""Input pixels per heatmap cell, along each axis."""


class Stem(nn.Module):
    """`(batch, 3, height, width)` -> `(batch, features, height / 4, width / 4)`."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.fused = "auto"
        self.conv = ConvBN(3, width, kernel=7, stride=2)
        self.residual1 = Residual(width, 2 * width)
        self.residual2 = Residual(2 * width, 2 * width)
        self.residual3 = Residual(2 * width, features)

    def forward(self, images: Tensor) -> Tensor:
        """The first stack's input; see the class for shapes."""
        x = halve(self.residual1(self.conv(images)), self.fused)
        return self.residual3(self.residual2(x))


_Contexts = tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]


def _recompute_contexts(collector: BatchStatsCollector) -> _Contexts:
    """Contexts of forward and recomputation: the batch statistics of the latter are dropped."""
    return contextlib.nullcontext(), collector.collect()


class Stack(nn.Module):
    """One stack; all but the last remap features and heatmaps into the next one's input.

    Attribute `fused`: as in `BatchNorm`, for the convolutions with a bias. "auto" takes
    `conv1x1_act` for half types on a GPU: torch's kernels that add the bias, and sum its gradient,
    take longer there than the convolution itself.
    """

    def __init__(self, features: int, parts: int, last: bool) -> None:
        super().__init__()
        self.fused = "auto"
        self.hourglass = Hourglass(HOURGLASS_LEVELS, features)
        self.residual = Residual(features, features)
        self.features = ConvBN(features, features)
        self.heatmap = nn.Conv2d(features, parts, 1)
        self.remap_features = None if last else nn.Conv2d(features, features, 1)
        self.remap_heatmap = None if last else nn.Conv2d(parts, features, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The next stack's input, `(batch, features, height, width)`, and `parts` heatmaps."""
        features = self.features(self.residual(self.hourglass(x)))
        if self.fused_for(features):
            return self._fused(x, features)
        heatmap = self.heatmap(features)
        if self.remap_features is not None and self.remap_heatmap is not None:
            x = x + self.remap_features(features) + self.remap_heatmap(heatmap)
        return x, heatmap

    def fused_for(self, features: Tensor) -> bool:
        """Whether `conv1x1_act` does the convolutions with a bias."""
        if self.fused != "auto":
            return self.fused == "on"
        return features.is_cuda and features.element_size() == 2 and has_kernel(features)

    def _fused(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        heatmap = conv1x1_act(features, *_full(self.heatmap))
        if self.remap_features is None or self.remap_heatmap is None:
            return x, heatmap
        (weight, bias), (weight2, bias2) = _full(self.remap_features), _full(self.remap_heatmap)
        bias = bias + bias2
        return conv1x1_act(features, weight, bias, x, x2=heatmap, weight2=weight2), heatmap


def _full(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias in float32, also where `HalfParameters` stand in for them.

    `conv1x1_act` adds the bias, and keeps its gradient, in float32.
    """
    assert conv.bias is not None
    return getattr(conv.weight, "master", conv.weight), getattr(conv.bias, "master", conv.bias)


def block_modules(block: str) -> tuple[str, ...]:
    """Names of the modules of a block of INIT.FREEZE: `stem`, `stack 0` or `stack 0 body`."""
    if block == "stem":
        return ("stem",)
    _, number, *body = block.split()
    stack = f"stacks.{number}"
    return (
        tuple(f"{stack}.{n}" for n in ("hourglass", "residual", "features")) if body else (stack,)
    )


def normalise(images: Tensor) -> Tensor:
    """Grey levels `(batch, height, width, 3)`, uint8 or float32, in [-1, 1]: float32 `(batch, 3,
    height, width)`."""
    # A copy of float32 as well, which the next operations change in place.
    own = images.permute(0, 3, 1, 2).to(torch.float32, copy=True)
    return own.mul_(1.0 / 127.5).sub_(1.0)


class StackedHourglass(nn.Module):
    """The MARS network.

    Args:
        stacks: number of hourglasses (NUM_STACKS).
        parts: number of heatmaps (PARTS.NUM_PARTS).
        features: width of every hourglass (FEATURES; MARS: 256). Inner widths are half of it.
        stem_features: width of the first convolution (STEM_FEATURES; MARS: 64); the stem's
            residuals have twice as many. At full resolution, it decides what a small network costs.
        head_scale: factor on the initial weights of the heatmap convolutions. At 1 (Xavier) the
            first loss is over a hundred times that of an all-zero output and short runs collapse.
        bn_eps, bn_decay, fused: see `BatchNorm`.
        recompute: "stack" keeps only each stack's input in training and computes its maps again in
            the backward (RECOMPUTE); "none" keeps all maps that the backward needs.

    Attributes:
        collector: of all batch norms; see `BatchStatsCollector`.
        side_streams: of all convolutions and hourglasses; see `SideStreams`.
    """

    def __init__(
        self,
        stacks: int = 8,
        parts: int = 7,
        features: int = 256,
        stem_features: int = 64,
        head_scale: float = 1.0,
        bn_eps: float = 1e-3,
        bn_decay: float = 0.9997,
        fused: str = "auto",
        recompute: str = "none",
    ) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []
        self.recompute = recompute
        self.stem = Stem(stem_features, features)
        self.stacks = nn.ModuleList(
            Stack(features, parts, last=i == stacks - 1) for i in range(stacks)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, BatchNorm):
                module.eps, module.decay = bn_eps, bn_decay
            elif isinstance(module, Residual):
                module.recomputed = recompute == "stack"
        self.collector = share_collector(self)
        self.side_streams = SideStreams()
        for module in self.modules():
            if isinstance(module, ConvBN | Hourglass):
                module.side_streams = self.side_streams
        self.set_fused(fused)
        with torch.no_grad():
            for stack in self.stacks:
                assert isinstance(stack, Stack)
                stack.heatmap.weight.mul_(head_scale)

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps of every stack.

        Args:
            images: `(batch, 3, height, width)` in [-1, 1]; sides are multiples of 64.

        Returns:
            `(stacks, batch, parts, height / 4, width / 4)` heatmaps; each stack's maps lie in
            memory channels-last, as the convolutions write them.
        """
        x = self.stem(images)
        heatmaps = []
        recompute = self.recompute == "stack" and self.training and torch.is_grad_enabled()
        for stack in self.stacks:
            x = self.side_streams.join_weight_gradients(x)
            if recompute:
                x, heatmap = checkpoint(
                    *(stack, x),
                    use_reentrant=False,
                    preserve_rng_state=False,
                    context_fn=partial(_recompute_contexts, self.collector),
                )
            else:
                x, heatmap = stack(x)
            heatmaps.append(heatmap.permute(0, 2, 3, 1))
        return torch.stack(heatmaps).permute(0, 1, 4, 2, 3)

    def set_process_group(self, process_group: SyncGroup | None) -> None:
        """Set the processes whose batches are normalised together: see `BatchNorm`."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.process_group = process_group
            elif isinstance(module, Hourglass):
                # Collectives keep one order, on one stream.
                module.overlap = process_group is None

    def freeze(self, blocks: Sequence[str]) -> None:
        """Keep the parameters and statistics of blocks as they are; see `block_modules`.

        Weights have no gradient. Batch norms normalise with the running statistics, also in
        training, and do not update them: statistics of other images would not fit the weights.
        """
        names = [name for block in blocks for name in block_modules(block)]
        self._frozen = [self.get_submodule(name) for name in names]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def frozen(self) -> list[Tensor]:
        """Parameters and buffers of the frozen blocks, each once."""
        tensors = {id(t): t for m in self._frozen for t in (*m.parameters(), *m.buffers())}
        return list(tensors.values())

    def train(self, mode: bool = True) -> Self:
        """As in torch; frozen blocks stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def set_fused(self, fused: str) -> None:
        """Choose the operators of all layers: see `BatchNorm`."""
        set_fused(self, fused)


# torch has one random state for a process: two threads initialise their networks in turn.
_RANDOM_STATE = threading.Lock()


def build_model(config: Config) -> StackedHourglass:
    """The network that `config` describes, initialised from RANDOM_SEED, in channels_last."""
    with _RANDOM_STATE, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(config.RANDOM_SEED))
        model = StackedHourglass(
            stacks=config.NUM_STACKS,
            parts=config.PARTS.NUM_PARTS,
            features=config.FEATURES,
            stem_features=config.STEM_FEATURES,
            head_scale=config.HEAD_INIT_SCALE,
            bn_eps=config.BATCHNORM_EPSILON,
            bn_decay=config.BATCHNORM_MOVING_AVERAGE_DECAY,
            fused=config.FUSED,
            recompute=config.RECOMPUTE,
        )
    model.freeze(config.INIT.FREEZE)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

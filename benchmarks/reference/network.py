"""The reference recipe, network: MARS's stacked hourglass in plain PyTorch.

For benchmarks and tests only. torch's own modules and functions in torch's own layout (NCHW), one
call after the other, as one writes the network from its description.
Source: Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", 2016, as MARS
(Segalin et al., 2021) trains it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 4


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with an offset but no scale: the scale stays 1 and is not trained."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=3e-4)
        self.weight.requires_grad_(False)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and, unless told otherwise, ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(channels_out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in, height, width)` -> `(batch, out, height, width)`."""
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class Residual(nn.Module):
    """1x1 to half the width, 3x3, 1x1 to the full width, plus the input; no ReLU after the sum."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.path = nn.Sequential(
            ConvNorm(channels_in, half),
            ConvNorm(half, half, kernel=3),
            ConvNorm(half, channels_out, relu=False),
        )
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.skip = ConvNorm(channels_in, channels_out, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in, height, width)` -> `(batch, out, height, width)`."""
        return self.path(x) + self.skip(x)


class Stem(nn.Module):
    """`(batch, 3, height, width)` -> `(batch, features, height / 4, width / 4)`."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, stride=2, bias=False)
        self.norm = BatchNorm(width)
        self.residual1 = Residual(width, 2 * width)
        self.residual2 = Residual(2 * width, 2 * width)
        self.residual3 = Residual(2 * width, features)

    def forward(self, images: Tensor) -> Tensor:
        """See the class for shapes."""
        # TensorFlow's SAME for a kernel of 7 and stride 2.
        x = self.conv(F.pad(images, (2, 3, 2, 3)))
        x = F.relu(self.norm(x), inplace=True)
        x = F.max_pool2d(self.residual1(x), 2)
        return self.residual3(self.residual2(x))


class Hourglass(nn.Module):
    """A residual at full size plus a path at half size, which holds the next smaller hourglass."""

    def __init__(self, levels: int, features: int) -> None:
        super().__init__()
        self.upper = Residual(features, features)
        self.lower = nn.Sequential(
            Residual(features, features),
            Hourglass(levels - 1, features) if levels > 1 else Residual(features, features),
            Residual(features, features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, features, height, width)` -> the same; sides are multiples of `2 ** levels`."""
        lower = self.lower(F.max_pool2d(x, 2))
        return self.upper(x) + enlarge(lower)


def enlarge(x: Tensor) -> Tensor:
    """Nearest neighbour: `(batch, channels, h, w)` -> `(batch, channels, 2h, 2w)`."""
    if not torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    # torch.compile makes a scatter with atomics of the other's backward, and of this one's a sum.
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1)[:, :, None, :, None, :].expand(b, h, 2, w, 2, c)
    return rows.reshape(b, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class Stack(nn.Module):
    """One hourglass with its heatmaps; all but the last make the next one's input."""

    def __init__(self, features: int, parts: int, last: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Hourglass(LEVELS, features),
            Residual(features, features),
            ConvNorm(features, features),
        )
        self.heatmap = nn.Conv2d(features, parts, 1)
        self.last = last
        if not last:
            self.remap_features = nn.Conv2d(features, features, 1)
            self.remap_heatmap = nn.Conv2d(parts, features, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The next stack's input, `(batch, features, height, width)`, and `parts` heatmaps."""
        features = self.features(x)
        heatmap = self.heatmap(features)
        if not self.last:
            x = x + self.remap_features(features) + self.remap_heatmap(heatmap)
        return x, heatmap


class ReferenceHourglass(nn.Module):
    """The MARS network, initialised as MARS does: Xavier uniform, biases 0.

    Args:
        stacks: number of hourglasses.
        parts: number of heatmaps.
        features: width of every hourglass; inner widths are half of it.
        stem_features: width of the first convolution; the stem's residuals have twice as many.
    """

    def __init__(
        self, stacks: int = 8, parts: int = 7, features: int = 256, stem_features: int = 64
    ) -> None:
        super().__init__()
        self.stem = Stem(stem_features, features)
        self.stacks = nn.ModuleList(
            Stack(features, parts, last=number == stacks - 1) for number in range(stacks)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`(batch, 3, height, width)` in [-1, 1] -> heatmaps of every stack.

        Each is `(batch, parts, height / 4, width / 4)`; sides are multiples of 64.
        """
        x = self.stem(images)
        heatmaps = []
        for stack in self.stacks:
            x, heatmap = stack(x)
            heatmaps.append(heatmap)
        return heatmaps

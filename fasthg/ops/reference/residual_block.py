"""The residual of the hourglass in plain torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fasthg.ops.reference.bn_act import moments, normalise


def residual_block(
    x: Tensor,
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    beta3: Tensor,
    *,
    eps: float = 1e-3,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """1x1, 3x3 and 1x1 convolution with batch norm, ReLU after the first two, plus the input.

    Returns y and mean and biased variance of each batch norm, in the order of the arguments; see
    `fasthg.ops.residual_block`.
    """
    statistics: list[Tensor] = []

    def layer(
        inner: Tensor, weight: Tensor, beta: Tensor, added: Tensor | None, relu: bool
    ) -> Tensor:
        inner = functional.conv2d(inner, weight, padding=weight.shape[-1] // 2)
        mean_var = moments(inner)
        statistics.extend(mean_var)
        return normalise(inner, *mean_var, beta, None, added, relu=relu, eps=eps).to(x.dtype)

    inner = layer(x, weight1, beta1, None, True)
    inner = layer(inner, weight2, beta2, None, True)
    return layer(inner, weight3, beta3, x, False), tuple(statistics)

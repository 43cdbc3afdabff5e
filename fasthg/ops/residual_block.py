"""A whole residual of the hourglass as one operator, whose last convolution is never written."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _arguments, _extension
from fasthg.ops._residual_passes import empty_gradients, empty_results, gradients, train
from fasthg.ops.conv1x1_act import conv1x1_act
from fasthg.ops.conv3x3 import conv3x3


class ResidualStatistics(NamedTuple):
    """Mean and biased variance of the batch, (channels,), in front of each batch norm.

    float64 for float64 maps, else float32; 0 for an empty batch; the last two are empty where there
    is no skip convolution.
    """

    mean1: Tensor
    var1: Tensor
    mean2: Tensor
    var2: Tensor
    mean3: Tensor
    var3: Tensor
    mean_skip: Tensor
    var_skip: Tensor


def _setup_train(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight1, beta1, weight2, beta2, weight3, _, weight_skip, beta_skip, eps = inputs
    _, y1, y2, *values = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    weights = weight1, beta1, weight2, beta2, weight3, weight_skip
    ctx.save_for_backward(x, y1, y2, *values, *weights)
    ctx.eps = eps


@once_differentiable
def _backward_train(ctx: Any, grad_y: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 10
    x, y1, y2, *values = ctx.saved_tensors
    weights = values[12:]
    grad_x, *results = _backward_operator(
        grad_y, x, y1, y2, values[:8], values[8:12], *weights, ctx.eps
    )
    weight1, _, weight2, _, weight3, weight_skip = weights
    grad_weight1, grad_beta1, grad_weight2, grad_beta2, grad_weight3, grad_beta3, grad_skip = (
        results
    )
    has_skip = weight_skip is not None
    return (
        grad_x,
        *(grad_weight1.view(weight1.shape), grad_beta1, grad_weight2, grad_beta2),
        *(grad_weight3.view(weight3.shape), grad_beta3),
        *((grad_skip.view(weight_skip.shape), grad_beta3) if has_skip else (None, None)),
        None,
    )


_WEIGHTS = "Tensor weight1, Tensor beta1, Tensor weight2, Tensor beta2, Tensor weight3"
_operator = _extension.register(
    f"residual_block(Tensor x, {_WEIGHTS}, Tensor beta3, Tensor? weight_skip, Tensor? beta_skip,"
    f" float eps) -> ({', '.join(['Tensor'] * 15)})",
    train,
    lambda x, weight1, *others: empty_results(x, weight1, others[3], others[5]),
    setup_context=_setup_train,
    backward=_backward_train,
)
_backward_operator = _extension.register(
    "residual_block_backward(Tensor grad_y, Tensor x, Tensor y1, Tensor y2, Tensor[] statistics,"
    f" Tensor[] moments, {_WEIGHTS}, Tensor? weight_skip, float eps)"
    f" -> ({', '.join(['Tensor'] * 8)})",
    gradients,
    lambda grad_y, x, y1, y2, statistics, moments, *weights: empty_gradients(
        x, weights[0], weights[2], weights[4], weights[5]
    ),
)


def _check(x: Tensor, arguments: dict[str, Tensor | None]) -> None:
    """Check shapes, dtypes and devices; raises ValueError."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            "residual_block: x: expected floating (batch, in, height, width), got"
            f" {x.dtype} {tuple(x.shape)}"
        )
    half, full = (0 if w is None else len(w) for w in (arguments["weight1"], arguments["weight3"]))
    expected: dict[str, tuple[int, ...]] = {
        "weight1": (half, x.shape[1], 1, 1),
        "beta1": (half,),
        "weight2": (half, half, 3, 3),
        "beta2": (half,),
        "weight3": (full, half, 1, 1),
        "beta3": (full,),
        "weight_skip": (full, x.shape[1], 1, 1),
        "beta_skip": (full,),
    }
    named = {name: (tensor, expected[name]) for name, tensor in arguments.items()}
    _arguments.check_like("residual_block", x, named)
    if (arguments["weight_skip"] is None) != (arguments["beta_skip"] is None):
        raise ValueError("residual_block: weight_skip and beta_skip: give both or neither")
    if arguments["weight_skip"] is None and full != x.shape[1]:
        raise ValueError(
            f"residual_block: {x.shape[1]} channels become {full}: give weight_skip and beta_skip"
        )


def residual_block(
    x: Tensor,
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    beta3: Tensor,
    weight_skip: Tensor | None = None,
    beta_skip: Tensor | None = None,
    *,
    eps: float = 1e-3,
) -> tuple[Tensor, ResidualStatistics]:
    """Three convolutions with batch norm around a shortcut, for training.

    The convolutions are 1x1 to `half` channels, 3x3, and 1x1 to `out` channels, each followed by
    batch norm by the statistics of the batch; the first two by ReLU; then x is added, or its own
    convolution (1x1) with batch norm. Kept for the backward: x, the results of the first two
    convolutions, and small matrices; all else is made again there.

    Args:
        x: (batch, in, height, width), any floating dtype, in which all maps are stored; channels
            last in memory without a copy.
        weight1: (half, in, 1, 1); weight2: (half, half, 3, 3); weight3: (out, half, 1, 1); any
            floating dtype. The algebra on weight3 and weight_skip is float32 (float64 for float64
            x), and their product with the norm's scale is rounded once to x's dtype.
        beta1, beta2, beta3: (half,), (half,), (out,): the norms' offsets.
        weight_skip, beta_skip: (out, in, 1, 1), (out,); None = x itself is added, in = out.
        eps: added to each variance.

    Returns:
        y (batch, out, height, width) in x's dtype, channels last, once differentiable with respect
        to all tensors; and the statistics, which are not.

    Equivalent to:
        norm = lambda x, beta: F.batch_norm(x, None, None, None, beta, training=True, eps=eps)
        inner = F.relu(norm(F.conv2d(x, weight1), beta1))
        inner = F.relu(norm(F.conv2d(inner, weight2, padding=1), beta2))
        skip = x if weight_skip is None else norm(F.conv2d(x, weight_skip), beta_skip)
        y = norm(F.conv2d(inner, weight3), beta3) + skip

    Error: every map that is stored, also between two convolutions, is rounded to x's dtype once;
    sums are float32 at least. No farther from the exact result than twice torch's own operators.

    Memory: with a map of `out` channels as the unit and in = out, forward moves 8.5 units and
    backward 17.5; the least possible, with every norm part of a convolution, is 5.5 and 9.5 (65 %
    and 54 %). `bn_act` after three convolutions moves 11 and 21, and keeps 4 units for the
    backward instead of 2.

    Raises:
        ValueError: wrong shape, mixed devices, not floating, one of the two skip arguments alone.
    """
    weights = (weight1, beta1, weight2, beta2, weight3, beta3, weight_skip, beta_skip)
    names = ("weight1", "beta1", "weight2", "beta2", "weight3", "beta3", "weight_skip", "beta_skip")
    _check(x, dict(zip(names, weights, strict=True)))
    y, _, _, *values = _operator(x, *weights, eps)
    return y, ResidualStatistics(*values[:8])


def residual_block_inference(
    x: Tensor,
    weight1: Tensor,
    offset1: Tensor,
    weight2: Tensor,
    offset2: Tensor,
    weight3: Tensor,
    offset3: Tensor,
    weight_skip: Tensor | None = None,
) -> Tensor:
    """The block with batch norm folded into weights and offsets: three convolutions and a ReLU.

    Shapes as for `residual_block`; offsets are (half,), (half,) and (out,), the skip convolution's
    added to the last; weights are cast to x's dtype, and so is offset2. Returns y as
    `residual_block` does, once differentiable.

    Equivalent to:
        inner = F.relu(F.conv2d(x, weight1, offset1))
        inner = F.relu(F.conv2d(inner, weight2, offset2, padding=1))
        y = F.conv2d(inner, weight3, offset3)
        y += x if weight_skip is None else F.conv2d(x, weight_skip)

    Memory: with a map of `out` channels as the unit and in = out, 6 units; all in one kernel would
    be 2, the floor (33 %).
    """
    inner = conv1x1_act(x, weight1.flatten(1), offset1, relu=True)
    inner = conv3x3(inner, weight2, offset2, relu=True)
    if weight_skip is None:
        return conv1x1_act(inner, weight3.flatten(1), offset3, x)
    return conv1x1_act(inner, weight3.flatten(1), offset3, x2=x, weight2=weight_skip.flatten(1))

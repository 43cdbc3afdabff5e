"""RMSProp and the moving average of the weights, one pass over flat buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from fasthg.ops import _extension, reference


def _run(
    values: Tensor,
    gradient: Tensor,
    squares: Tensor,
    momenta: Tensor | None,
    averages: Tensor | None,
    rate: Tensor,
    average_weight: Tensor | None,
    found_inf: Tensor | None,
    decayed: int,
    weight_decay: float,
    decay: float,
    momentum: float,
    eps: float,
) -> None:
    buffers = (values, gradient, squares, momenta, averages)
    scalars = (rate, average_weight, found_inf)
    if not _extension.has_kernel(values):
        reference.rmsprop_ema(*buffers, *scalars, decayed, weight_decay, decay, momentum, eps)
    elif values.numel():
        tensors = dict(zip(_NAMES, (*buffers, *scalars), strict=True))
        _extension.call_kernel(
            "rmsprop_ema",
            values,
            _extension.native.RmspropStep(
                **{name: 0 if t is None else t.data_ptr() for name, t in tensors.items()},
                total=values.numel(),
                weights=gradient.numel(),
                decayed=decayed,
                weight_decay=weight_decay,
                decay=decay,
                momentum=momentum,
                eps=eps,
            ),
        )
    # What torch's own in-place operators do, so that a backward through an old value is refused.
    torch.autograd.graph.increment_version([t for t in _written(*buffers) if t is not None])


_NAMES = (
    *("values", "gradient", "squares", "momenta", "averages"),
    *("rate", "average_weight", "found_inf"),
)


def _written(
    values: Tensor,
    gradient: Tensor,
    squares: Tensor,
    momenta: Tensor | None,
    averages: Tensor | None,
) -> tuple[Tensor | None, ...]:
    return values, squares, momenta, averages


_operator = _extension.register(
    "rmsprop_ema(Tensor(a!) values, Tensor gradient, Tensor(b!) squares, Tensor(c!)? momenta,"
    " Tensor(d!)? averages, Tensor rate, Tensor? average_weight,"
    " Tensor? found_inf, int decayed, float weight_decay, float decay, float momentum, float eps)"
    " -> ()",
    _run,
    lambda *arguments: None,
)


def rmsprop_ema(
    values: Tensor,
    gradient: Tensor,
    squares: Tensor,
    rate: Tensor,
    *,
    decay: float,
    eps: float,
    momentum: float = 0.0,
    momenta: Tensor | None = None,
    weight_decay: float = 0.0,
    decayed: int | None = None,
    averages: Tensor | None = None,
    average_weight: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One step of moving averages and RMSProp over flat buffers, all in place.

    All buffers are one-dimensional, without gaps, on one device, and of one dtype, float32 or
    float64, where nothing else is said. `rate`, `average_weight` and `found_inf` hold one number
    each and are read on the device, so a CUDA graph may be replayed with other numbers in them.

    Args:
        values: (total,), the weights and, after them, values that only have averages (moving
            statistics of batch norm).
        gradient: (weights,).
        squares: (weights,), moving mean of the squared gradient; TensorFlow starts it at 1.
        rate: learning rate, in the dtype of values.
        decay: share of the old mean square kept.
        eps: added to the mean square, inside the root.
        momentum, momenta: share of the old momentum kept, and (weights,) the momentum, which
            starts at 0; None = no momentum.
        weight_decay, decayed: L2 of the first `decayed` weights (all, if None).
        averages, average_weight: (total,), and the share of the value in its new average, in the
            dtype of values; None = no averages.
        found_inf: float32; unless it is 0, only the averages move.

    Equivalent to:
        averages.lerp_(values, average_weight)
        gradient = gradient + weight_decay * weights
        squares = decay * squares + (1 - decay) * gradient²
        momenta = momentum * momenta + rate * gradient / sqrt(squares + eps)
        weights -= momenta

    Memory, in units of the weights: 5 (gradient read, values and squares read and written), 2 more
    each for momenta and averages; the floor, in one pass.

    Error: a few roundings of each result. Without autograd. The number of threads changes no bit.

    Raises:
        ValueError: a shape, dtype, device or layout that differs from the above, or an argument
            without its partner.

    Source: `tf.train.RMSPropOptimizer` and `tf.train.ExponentialMovingAverage` of TensorFlow 1.15;
    the average takes the weights that a step starts from, as in MARS's training.
    """
    weights = gradient.numel()
    decayed = weights if decayed is None else decayed
    if values.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rmsprop_ema: values: expected float32 or float64, got {values.dtype}")
    if not 0 <= decayed <= weights <= values.numel():
        raise ValueError(
            f"rmsprop_ema: expected decayed <= weights <= values, got {decayed}, {weights}, "
            f"{values.numel()}"
        )
    if (averages is None) != (average_weight is None):
        raise ValueError("rmsprop_ema: averages and average_weight: expected both or none")
    if momentum and momenta is None:
        raise ValueError("rmsprop_ema: momentum without momenta: give (weights,) zeros")
    total, dtype = values.numel(), values.dtype
    for name, tensor, length, expected in (
        ("values", values, total, dtype),
        ("gradient", gradient, weights, dtype),
        ("squares", squares, weights, dtype),
        ("momenta", momenta, weights, dtype),
        ("averages", averages, total, dtype),
        ("rate", rate, None, dtype),
        ("average_weight", average_weight, None, dtype),
        ("found_inf", found_inf, None, torch.float32),
    ):
        if tensor is not None:
            _check(name, tensor, length, expected, values.device)
    _operator(
        *(values, gradient, squares, momenta, averages, rate, average_weight, found_inf),
        *(decayed, weight_decay, decay, momentum, eps),
    )


def _check(
    name: str, tensor: Tensor, length: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    """A flat buffer of `length` values or, without a length, a tensor of any shape with one."""
    right = tensor.numel() == 1 if length is None else tensor.shape == (length,)
    if not right or not tensor.is_contiguous():
        expected = "one value" if length is None else f"({length},) without gaps"
        raise ValueError(
            f"rmsprop_ema: {name}: expected {expected}, got {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}"
        )
    if tensor.dtype != dtype:
        raise ValueError(f"rmsprop_ema: {name}: expected {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(
            f"rmsprop_ema: {name} is on {tensor.device}, values on {device}: "
            "move them to one device"
        )

"""Batch norm folded into the 1 x 1 convolution before it, by the moments of the latter's input."""

from __future__ import annotations

import torch
from torch import Tensor

from fasthg.ops import _extension, reference


def _call_kernel(
    name: str,
    weight: Tensor,
    moments: tuple[Tensor, Tensor],
    moments_out: tuple[Tensor, Tensor],
    eps: float,
    dtype: torch.dtype,
    *others: Tensor | int,
) -> None:
    """Run a kernel; all tensors lie without gaps. `others` are the launcher's further arguments."""
    fold = _extension.native.BnFold(
        weight=weight.data_ptr(),
        mean=moments[0].data_ptr(),
        covariance=moments[1].data_ptr(),
        mean_out=moments_out[0].data_ptr(),
        var_out=moments_out[1].data_ptr(),
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        eps=eps,
        folded_dtype=_extension.DTYPE_CODES[dtype],
    )
    arguments = [t.data_ptr() if isinstance(t, Tensor) else t for t in others]
    _extension.call_kernel(name, weight, fold, *arguments)


def _has_kernel(weight: Tensor) -> bool:
    """Whether there is a kernel: on the CPU torch's few small products leave nothing to gain."""
    return (
        _extension.backend(weight) == "cuda"
        and weight.numel() > 0
        and _extension.has_kernel(weight)
    )


def _empty_results(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = weight.shape[0]
    offset, mean_out, var_out = (weight.new_empty(outputs) for _ in range(3))
    return weight.new_empty(weight.shape, dtype=dtype), offset, mean_out, var_out


def run(
    weight: Tensor, mean: Tensor, covariance: Tensor, beta: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`bn_fold` without checks, for operators that contain it."""
    if not _has_kernel(weight):
        with torch.autocast(weight.device.type, enabled=False):
            return reference.bn_fold(weight.contiguous(), mean, covariance, beta, eps, dtype)
    weight, mean, covariance, beta = (t.contiguous() for t in (weight, mean, covariance, beta))
    outs = _empty_results(weight, dtype)
    folded, offset, *moments_out = outs
    moments = mean, covariance
    mean_out, var_out = moments_out
    _call_kernel("bn_fold", weight, moments, (mean_out, var_out), eps, dtype, beta, folded, offset)
    return outs


def _empty_gradients(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs, inputs = weight.shape
    back = weight.new_empty(inputs, outputs, dtype=dtype)
    mix = weight.new_empty(inputs, inputs, dtype=dtype)
    return weight.new_empty(weight.shape), back, mix, weight.new_empty(inputs)


def gradients(
    product: Tensor,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    covariance: Tensor,
    mean_out: Tensor,
    var_out: Tensor,
    rows: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`bn_fold_backward` without checks and without `grad_beta`, which is `total`."""
    product, total, weight = (t.contiguous() for t in (product, total, weight))
    mean, covariance, mean_out, var_out = (
        t.contiguous() for t in (mean, covariance, mean_out, var_out)
    )
    moments, moments_out = (mean, covariance), (mean_out, var_out)
    if not _has_kernel(weight):
        with torch.autocast(weight.device.type, enabled=False):
            return reference.bn_fold_backward(
                product, total, weight, *moments, *moments_out, rows, eps, dtype
            )
    outs = _empty_gradients(weight, dtype)
    workspace = weight.new_empty(2 * len(weight))
    arguments = (product, total, rows, workspace, *outs)
    _call_kernel("bn_fold_backward", weight, moments, moments_out, eps, dtype, *arguments)
    return outs


_operator = _extension.register(
    "bn_fold(Tensor weight, Tensor mean, Tensor covariance, Tensor beta, float eps,"
    " ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    run,
    lambda weight, mean, covariance, beta, eps, dtype: _empty_results(weight, dtype),
    cpu="a few small products of torch leave nothing to gain",
)
_backward_operator = _extension.register(
    "bn_fold_backward(Tensor product, Tensor total, Tensor weight, Tensor mean, Tensor covariance,"
    " Tensor mean_out, Tensor var_out, SymInt rows, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    gradients,
    lambda product, total, weight, *others: _empty_gradients(weight, others[-1]),
)


def _check(
    op: str, weight: Tensor, dtype: torch.dtype, like: dict[str, tuple[Tensor, str]]
) -> None:
    """Check shapes, dtypes and devices. like: name -> tensor and its shape in letters o and i.

    Raises ValueError, and RuntimeError where a gradient is asked for.
    """
    if weight.dim() != 2:
        raise ValueError(f"{op}: weight: expected (outputs, inputs), got {tuple(weight.shape)}")
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: weight: expected float32 or float64, got {weight.dtype}")
    if dtype not in _extension.DTYPE_CODES:
        raise ValueError(f"{op}: dtype: expected a floating dtype with kernels, got {dtype}")
    sizes = dict(zip("oi", weight.shape, strict=True))
    for name, (tensor, letters) in {"weight": (weight, "oi"), **like}.items():
        expected = tuple(sizes[letter] for letter in letters)
        if tensor.shape != expected:
            raise ValueError(f"{op}: {name}: expected {expected}, got {tuple(tensor.shape)}")
        if tensor.dtype != weight.dtype:
            raise ValueError(f"{op}: {name} is {tensor.dtype}, weight {weight.dtype}")
        if tensor.device != weight.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, weight on {weight.device}: move them to one "
                "device"
            )
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise RuntimeError(
                f"{op}: {name} requires a gradient, which this operator does not give: call it "
                "under torch.no_grad() and get the gradients from bn_fold_backward"
            )


def bn_fold(
    weight: Tensor,
    mean: Tensor,
    covariance: Tensor,
    beta: Tensor,
    eps: float = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fold a batch norm into the 1 x 1 convolution before it, whose result then never exists.

    The convolution is linear, so the moments of its input a, from `channel_covariance`, give those
    of its result: `mean_out = weight mean` and `var_out = diag(weight covariance weight^T)`. With
    `scale = 1 / sqrt(var_out + eps)`, the batch norm's result is `a folded^T + offset`.

    Args:
        weight: (outputs, inputs), float32 or float64, as all that follow.
        mean: (inputs,); covariance: (inputs, inputs), biased, symmetric.
        beta: (outputs,), added after the scale.
        eps: added to var_out.
        dtype: of the folded weights, any floating one.

    Returns:
        folded (outputs, inputs) in `dtype`, `scale * weight`; offset (outputs,),
        `beta - folded mean`, so that rounding the weights moves no mean; mean_out and var_out
        (outputs,), biased.

    Not differentiable: for use inside the forward of an operator that has `bn_fold_backward` in its
    backward.

    Equivalent to:
        var_out = ((weight @ covariance) * weight).sum(1)  # infinite where it overflows
        scale, mean_out = (var_out + eps).rsqrt(), weight @ mean
        folded = (scale[:, None] * weight).to(dtype)
        offset = beta - folded.to(mean.dtype) @ mean

    Error: 1e-5 of the largest value of a row in float32, 1e-13 in float64, then one rounding to
    `dtype`; var_out: 1e-6 of sum_ij abs(w_i c_ij w_j). Sums run in a fixed order on CUDA.

    Memory: weight and covariance are read, folded is written; on CUDA by one kernel that reads the
    covariance once for every four outputs, from the second-level cache.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: an input requires a gradient, and gradients are on.
    """
    like = {"mean": (mean, "i"), "covariance": (covariance, "ii"), "beta": (beta, "o")}
    _check("bn_fold", weight, dtype, like)
    folded, offset, mean_out, var_out = _operator(weight, mean, covariance, beta, eps, dtype)
    return folded, offset, mean_out, var_out


def bn_fold_backward(
    product: Tensor,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    covariance: Tensor,
    mean_out: Tensor,
    var_out: Tensor,
    rows: int,
    eps: float = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a 1 x 1 convolution and the batch norm folded into it, without its result.

    With a (rows, inputs) the convolution's input and d (rows, outputs) the gradient of the batch
    norm's result, the gradient of a is `d back^T + a mix^T + constant`: the products over all rows
    are left to the caller. Mean and variance are those of a, and gradients flow through them.

    Args:
        product: (outputs, inputs), `d^T a`; total: (outputs,), the sums of d over the rows; all
            tensors in weight's dtype, float32 or float64.
        weight, mean, covariance, eps: as `bn_fold` had them; mean_out, var_out: as it gave them.
        rows: of a; 0 gives zeros for mix and constant.
        dtype: of back and mix, any floating one.

    Returns:
        grad_weight (outputs, inputs); grad_beta (outputs,), which is `total` itself; back (inputs,
        outputs) and mix (inputs, inputs) in `dtype`; constant (inputs,), of the rounded two.

    Not differentiable.

    Equivalent to:
        scale = (var_out + eps).rsqrt()
        m1 = total / rows  # the mean of d, and of d times the normalised result
        m2 = scale * ((product * weight).sum(1) / rows - mean_out * m1)
        related = weight @ covariance
        grad_weight = product - rows * (m1[:, None] * mean + (m2 * scale)[:, None] * related)
        grad_weight, back = scale[:, None] * grad_weight, (scale[:, None] * weight).mT
        mix = -weight.mT @ ((scale**2 * m2)[:, None] * weight)
        constant = -mix @ mean - back @ m1

    Error: 1e-5 of the largest value in float32 (of the largest term where they cancel), 1e-12 in
    float64, then one rounding to `dtype`. Sums run in a fixed order on CUDA.

    Memory: product, weight and covariance are read, grad_weight, back and mix are written; on CUDA
    by three kernels that read the matrices once for every four rows, from the second-level cache.

    Raises:
        ValueError: wrong shape, dtype or device.
        RuntimeError: an input requires a gradient, and gradients are on.
    """
    like = {
        "product": (product, "oi"),
        "total": (total, "o"),
        "mean": (mean, "i"),
        "covariance": (covariance, "ii"),
        "mean_out": (mean_out, "o"),
        "var_out": (var_out, "o"),
    }
    _check("bn_fold_backward", weight, dtype, like)
    grad_weight, back, mix, constant = _backward_operator(
        product, total, weight, mean, covariance, mean_out, var_out, rows, eps, dtype
    )
    return grad_weight, total, back, mix, constant

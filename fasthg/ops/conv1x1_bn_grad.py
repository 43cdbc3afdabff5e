"""Gradients of a 1x1 convolution between two batch norms: for operators that contain it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fasthg.ops import _extension, reference
from fasthg.ops.bn_act import gradient_from_sums, gradient_sums
from fasthg.ops.bn_act import infer as bn_infer
from fasthg.ops.conv1x1_act import as_rows, describe, empty_y, grad_weight_of
from fasthg.ops.conv1x1_act import run as conv1x1_act
from fasthg.ops.conv1x1_bn import Norm, describe_norm, has_kernel, readable, tiles_of

# Rows whose products are summed by themselves before the parts are added in order: their number,
# which depends on the rows alone, decides the order of summation.
_ROWS_PER_PART = 256
_MAXIMUM_PARTS = 128  # one block for nearly each multiprocessor of an H200


class NormGradient(NamedTuple):
    """The gradient of a batch norm's input z, but for the gradient of its result.

    `g = gamma / sqrt(var + eps) * (grad - sum(grad) / n - zhat * sum(grad * zhat) / n)`, where grad
    is 0 where the norm's ReLU let nothing through and zhat is z normalised; over n rows.
    """

    z: Tensor
    """(batch, channels, height, width)."""
    norm: Norm
    """By which z was normalised, with the statistics of z."""
    grad_beta: Tensor
    """(channels,), the sum of grad over the rows."""
    grad_gamma: Tensor
    """(channels,), the sum of grad * zhat."""

    @classmethod
    def of(cls, grad: Tensor, z: Tensor, norm: Norm) -> NormGradient:
        """With the sums of grad, which is shaped as z; both are read once."""
        return cls(z, norm, *gradient_sums(grad, z, *norm))

    def of_input(self, grad: Tensor) -> Tensor:
        """g, as maps in z's dtype."""
        mean, var, beta, gamma, relu, eps = self.norm
        sums = self.grad_beta, self.grad_gamma
        return gradient_from_sums(grad, self.z, mean, var, beta, gamma, sums, relu, eps)


def of_input(
    grad: Tensor, of: NormGradient, weight: Tensor, addend: Tensor | None = None
) -> Tensor:
    """`g weight + addend`: gradient of the input of a convolution whose result z was normalised.

    Args:
        grad: (batch, out, height, width), gradient of the norm's result, z's dtype.
        of: what makes g of grad, rounded to z's dtype before the product.
        weight: (out, in) of the convolution, any dtype.
        addend: (batch, in, height, width).

    Returns:
        (batch, in, height, width), z's dtype, channels last.

    Memory: where a kernel does it (`has_kernel`), grad, z and addend are read and the result is
    written once. Elsewhere g is written, and then convolved.
    """
    if has_kernel(of.z, weight.shape[1]):
        return _in_one_pass(grad, of, weight, addend, None)[0]
    return conv1x1_act(of.of_input(grad), weight.t(), None, addend, None, None, False)


def of_normalised_input(
    grad: Tensor, of: NormGradient, weight: Tensor, x: Tensor, norm: Norm
) -> tuple[Tensor, NormGradient]:
    """The same where the convolution's input is `norm(x)`: also what the gradient of x is made of.

    Args:
        grad, of, weight: as of `of_input`.
        x: (batch, in, height, width), z's dtype.
        norm: of x, with the statistics of x.

    Returns:
        `g weight`, 0 where the ReLU of `norm` let nothing through, and the gradient of x but for
        it.

    Memory: as `of_input`, with x in place of the addend.
    """
    if has_kernel(x, weight.shape[1]):
        grad_u, *sums = _in_one_pass(grad, of, weight, None, (x, norm))
        return grad_u, NormGradient(x, norm, *sums)
    grad_u = of_input(grad, of, weight)
    if norm.relu:
        u = reference.normalise(x, *norm[:4], eps=norm.eps)
        grad_u.masked_fill_(u <= 0, 0)
    return grad_u, NormGradient.of(grad_u, x, norm)


def of_weight(
    grad: Tensor, of: NormGradient, weight: Tensor, x: Tensor, norm: Norm | None
) -> Tensor:
    """`g^T a`: gradient of the weight of a convolution of `a = norm(x)`, or of x as it is.

    Args:
        grad, of, weight: as of `of_input`.
        x: (batch, in, height, width), z's dtype.
        norm: of x, with known statistics; None: a is x.

    Returns:
        (out, in), weight's dtype; sums are float32 at least and, where a kernel does it, the same
        in every run and on every GPU.

    Memory: where a kernel does it (`has_kernel`), grad, z and x are read once, and float32 products
    of each part of the rows written and read. Elsewhere g and a are written, and then multiplied.
    """
    if has_kernel(x, len(weight)):
        return _weight_in_one_pass(grad, of, weight, x, norm)
    a = x if norm is None else bn_infer(x, *norm[:4], None, norm.relu, norm.eps)
    dtype = of.z.dtype
    return grad_weight_of(as_rows(of.of_input(grad), dtype), as_rows(a, dtype), weight)


def _weight_in_one_pass(
    grad: Tensor, of: NormGradient, weight: Tensor, x: Tensor, norm: Norm | None
) -> Tensor:
    real, rows = reference.arithmetic_dtype(x.dtype), x.numel() // x.shape[1]
    parts = min(_MAXIMUM_PARTS, -(-rows // _ROWS_PER_PART))
    workspace = x.new_empty((parts, *weight.shape), dtype=real)
    wide = weight.dtype != x.dtype
    made = x.new_empty(weight.shape, dtype=real if wide else x.dtype)
    # The kernel gets bare addresses: what is read must live until the launch.
    maps = [readable(x, t) for t in (grad, of.z, x)]
    sums = [t.to(real).contiguous() for t in of[2:]]
    of_z, _values = describe_norm(of.z, of.norm)
    of_x, _values_of_x = describe_norm(x, norm)
    grad_read, z, x_read, *totals = (t.data_ptr() for t in (*maps, *sums))
    written = parts, workspace.data_ptr(), wide, made.data_ptr()
    _extension.call_kernel(
        "conv1x1_bn_weight", x, grad_read, of_z, z, *totals, of_x, x_read, *written
    )
    return made.to(weight.dtype)


def _in_one_pass(
    grad: Tensor,
    of: NormGradient,
    weight: Tensor,
    addend: Tensor | None,
    below: tuple[Tensor, Norm] | None,
) -> tuple[Tensor, ...]:
    inputs, real = weight.shape[1], reference.arithmetic_dtype(of.z.dtype)
    out = empty_y(of.z, inputs)
    added = None if addend is None else readable(of.z, addend)
    # The kernel gets bare addresses: what is read must live until the launch.
    read = readable(of.z, grad)
    conv, _tensors = describe(out, read, weight.t(), None, added, None, None, False)
    norm, _values = describe_norm(of.z, of.norm)
    z, *sums = readable(of.z, of.z), *(t.to(real).contiguous() for t in of[2:])
    x = None if below is None else readable(of.z, below[0])
    norm_below, _values_below = describe_norm(out, None if below is None else below[1])
    made = []
    if below is not None:
        made = [out.new_empty((tiles_of(out), 2, inputs), dtype=real)]
        made += [out.new_empty(inputs, dtype=real) for _ in range(2)]
    addresses = [t.data_ptr() for t in (z, *sums)]
    others = [0] * 4 if x is None else [t.data_ptr() for t in (x, *made)]
    _extension.call_kernel("conv1x1_bn_grad", z, conv, norm, *addresses, norm_below, *others)
    return out, *made[1:]

"""What `residual_block` computes, forward and backward.

The last batch norm has no ReLU behind it and stands behind a 1x1 convolution, so it is linear in
that convolution's input a: with S = mean(a), C = cov(a) and weights W, the mean of a Wᵀ is W S and
its variance the diagonal of W C Wᵀ. What the norm does then goes into the weights (`bn_fold`), and
one product makes the block's result out of a and the block's input: the convolution's own result is
never written. Backward, the sums that a batch norm needs fall out of the gradient of W. The skip
convolution has the same form, with a = x.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fasthg.ops._interim import bn_fold, bn_fold_backward, channel_covariance, conv1x1_act
from fasthg.ops.bn_act import _gradients as bn_gradients
from fasthg.ops.bn_act import _infer as bn_infer
from fasthg.ops.bn_act import _train as bn_train
from fasthg.ops.reference import arithmetic_dtype


def maps(x: Tensor, channels: int | None = None) -> Tensor:
    """Room for maps of x's size, channels last."""
    shape = (x.shape[0], channels or x.shape[1], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _last(x: Tensor, values: Tensor) -> Tensor:
    """Maps in x's dtype, channels last, with the very strides that `_maps` has."""
    values = values.to(x.dtype).contiguous(memory_format=torch.channels_last)
    strides = maps(values).stride() if 1 in values.shape else values.stride()
    return values.as_strided(values.shape, strides)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a bᵀ over all pixels, (channels of a, channels of b), at least float32."""
    real = arithmetic_dtype(a.dtype)
    if a.is_cuda and a.dtype != real:
        rows_a, rows_b = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (a, b))
        return torch.mm(rows_a.t(), rows_b, out_dtype=real)
    # On a CPU oneDNN's gradient of a convolution is quicker than a product of its matrices.
    return _of_weight(a, b, a.new_empty(a.shape[1], b.shape[1], 1, 1)).flatten(1).to(real)


def _convolution_backward(
    of_y: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weights of a convolution with stride 1 that keeps the size."""
    padding = (weight.shape[-2] // 2, weight.shape[-1] // 2)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        of_y, x, weight, None, (1, 1), padding, (1, 1), False, (0, 0), 1, (*wanted, False)
    )
    return of_x, of_weight


def _of_weight(of_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _convolution_backward(of_y, x, weight, (False, True))[1]


def _matrix(weight: Tensor) -> Tensor:
    """A 1x1 convolution's weights as (out, in), in the dtype of the algebra on them."""
    return weight.flatten(1).to(arithmetic_dtype(weight.dtype))


def train(
    x: Tensor,
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    beta3: Tensor,
    weight_skip: Tensor | None,
    beta_skip: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    # The algebra on statistics needs the full precision that autocast would take away.
    with torch.autocast(x.device.type, enabled=False):
        read = _last(x, x)
        y1 = _last(x, functional.conv2d(read, weight1.to(x.dtype)))
        a1, mean1, var1 = bn_train(y1, beta1, None, None, True, eps)
        y2 = _last(x, functional.conv2d(a1, weight2.to(x.dtype), padding=1))
        del a1
        a2, mean2, var2 = bn_train(y2, beta2, None, None, True, eps)
        of_a = channel_covariance(a2)
        folded, offset, *of_y3 = bn_fold(_matrix(weight3), *of_a, beta3, eps, x.dtype)
        if weight_skip is None or beta_skip is None:
            y = conv1x1_act(a2, folded, offset, read)
            of_skip = [mean1.new_empty(0) for _ in range(2)]
            of_x = mean1.new_empty(0), mean1.new_empty(0)
        else:
            of_x = channel_covariance(read)
            folded_skip, offset_skip, *of_skip = bn_fold(
                _matrix(weight_skip), *of_x, beta_skip, eps, x.dtype
            )
            offset = offset + offset_skip
            y = conv1x1_act(a2, folded, offset, x2=read, weight2=folded_skip)
    return y, y1, y2, mean1, var1, mean2, var2, *of_y3, *of_skip, *of_a, *of_x


def gradients(
    of_y: Tensor,
    x: Tensor,
    y1: Tensor,
    y2: Tensor,
    statistics: list[Tensor],
    moments: list[Tensor],
    weight1: Tensor,
    beta1: Tensor,
    weight2: Tensor,
    beta2: Tensor,
    weight3: Tensor,
    weight_skip: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    mean1, var1, mean2, var2, *others = statistics
    of_y3, of_skip = others[:2], others[2:]
    with torch.autocast(x.device.type, enabled=False):
        of_y, read = _last(x, of_y), _last(x, x)
        count = x.numel() // x.shape[1]
        # Not `sum(dtype=...)`, which reads half types without vectors on a CPU.
        total = of_y.to(mean1.dtype).sum((0, 2, 3))
        a2 = bn_infer(y2, mean2, var2, beta2, None, None, True, eps)
        of_weight3, of_beta3, back, mix, constant = bn_fold_backward(
            _product(of_y, a2), total, _matrix(weight3), *moments[:2], *of_y3, count, eps, x.dtype
        )
        of_a2 = conv1x1_act(of_y, back, constant, x2=a2, weight2=mix)
        del a2
        of_y2, of_beta2, _, _ = bn_gradients(
            of_a2, y2, None, mean2, var2, beta2, None, True, False, eps
        )
        del of_a2
        a1 = bn_infer(y1, mean1, var1, beta1, None, None, True, eps)
        of_a1, of_weight2 = _convolution_backward(of_y2, a1, weight2.to(x.dtype), (True, True))
        del a1, of_y2
        of_y1, of_beta1, _, _ = bn_gradients(
            _last(x, of_a1), y1, None, mean1, var1, beta1, None, True, False, eps
        )
        del of_a1
        behind, of_weight_skip = of_y, weight1.new_empty(0)
        if weight_skip is not None:
            of_weight_skip, _, back, mix, constant = bn_fold_backward(
                _product(of_y, read),
                total,
                _matrix(weight_skip),
                *moments[2:],
                *of_skip,
                count,
                eps,
                x.dtype,
            )
            behind = conv1x1_act(of_y, back, constant, x2=read, weight2=mix)
        backwards = weight1.flatten(1).t().to(x.dtype).contiguous()
        of_x = conv1x1_act(of_y1, backwards, residual=behind)
        of_weight1 = _product(of_y1, read)
        of_weight2 = of_weight2.to(mean1.dtype).contiguous()
    return (
        of_x,
        *(of_weight1, of_beta1, of_weight2, of_beta2),
        *(of_weight3, of_beta3, of_weight_skip),
    )

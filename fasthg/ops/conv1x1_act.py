"""1x1 convolutions with all that follows them before the result is written."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _arguments, _extension, _layout, reference

HALVES = (torch.float16, torch.bfloat16)
"""The dtypes that the kernels on tensor cores take."""
_KEEPS_SUMS = hasattr(torch.ops.aten.mm, "dtype")
"""Whether a product of half types can give its float32 sums unrounded; not in every torch."""


def empty_y(x: Tensor, channels: int) -> Tensor:
    """Allocate a result for maps x, (batch, channels, height, width)."""
    return _layout.empty((x.shape[0], channels, *x.shape[2:]), x.dtype, x.device)


def as_rows(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Maps as a matrix (rows, channels), without gaps; a view where they lie channels last."""
    maps = maps.to(dtype).contiguous(memory_format=torch.channels_last)
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _as_maps(rows: Tensor, like: Tensor) -> Tensor:
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _owned(maps: Tensor) -> Tensor:
    """Re-wrap the storage as a base tensor: a custom operator must not return a view, or in-place
    operations on its result raise.
    """
    owned = maps.new_empty(0)
    return owned.set_(maps.untyped_storage(), maps.storage_offset(), maps.shape, maps.stride())


def _real(x: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(reference.arithmetic_dtype(x.dtype)).contiguous()


def _readable_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as the kernel reads it: `dtype` or float32, rows or columns without gaps."""
    if weight.dtype not in (dtype, torch.float32):
        weight = weight.to(dtype)
    gaps = all(weight.stride(axis) != 1 and weight.shape[axis] != 1 for axis in (0, 1))
    return weight.contiguous() if gaps else weight


def _layout_of(weight: Tensor | None) -> tuple[int, bool, bool]:
    """`pitch`, `transposed` and `wide` of a readable weight; see Conv1x1 in csrc/portable.h."""
    if weight is None:
        return 0, False, False
    transposed = weight.stride(1) != 1 and weight.shape[1] != 1
    return weight.stride(int(transposed)), transposed, weight.dtype == torch.float32


def describe(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    weight2: Tensor | None,
    relu: bool,
) -> tuple[Any, list[Tensor | None]]:
    """What the launchers take as Conv1x1, and the tensors that it reads: bare addresses stand in
    it, so they must live until the launch.
    """
    maps = [None if t is None else as_rows(t, x.dtype) for t in (x, x2, residual)]
    weights = [None if t is None else _readable_weight(t, x.dtype) for t in (weight, weight2)]
    read = [*maps, *weights, _real(x, bias)]
    addresses = [0 if t is None else t.data_ptr() for t in read]
    pitch, transposed, wide = _layout_of(weights[0])
    pitch2, transposed2, wide2 = _layout_of(weights[1])
    names = ("x", "x2", "residual", "weight", "weight2", "bias")
    described = _extension.native.Conv1x1(
        **dict(zip(names, addresses, strict=True)),
        y=y.data_ptr(),
        pitch=pitch,
        pitch2=pitch2,
        transposed=transposed,
        transposed2=transposed2,
        wide=wide,
        wide2=wide2,
        rows=y.numel() // y.shape[1],
        in_=x.shape[1],
        in2=0 if x2 is None else x2.shape[1],
        outputs=y.shape[1],
        relu=relu,
    )
    return described, read


def _on_tensor_cores(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    y = empty_y(x, weight.shape[0])
    described, _read = describe(y, x, weight, *others)
    _extension.call_kernel("conv1x1_act", x, described)
    return y


def _onednn_has_kernel(x: Tensor) -> bool:
    """Whether oneDNN multiplies this dtype on this CPU and torch has its fused products."""
    operators = torch.ops.mkldnn
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not torch.backends.mkldnn.enabled or not hasattr(operators, "_linear_pointwise"):
        return False
    return x.dtype == torch.float32 or (
        x.dtype == torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported())
    )


def _in_onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    weight2: Tensor | None,
    relu: bool,
) -> Tensor:
    product = torch.ops.mkldnn._linear_pointwise
    rows, weight, added = as_rows(x, x.dtype), weight.to(x.dtype), None
    if x2 is not None and weight2 is not None:
        rows2, weight2 = as_rows(x2, x.dtype), weight2.to(x.dtype)
        if x.dtype == torch.float32:
            # Later: writing y twice is less than copying x and x2.
            added = rows2, weight2.t()
        else:
            # One product: a sum of two would be rounded in between.
            rows, weight = torch.cat([rows, rows2], 1), torch.cat([weight, weight2], 1)
    if residual is None:
        y = product(rows, weight, _real(x, bias), "none", [], "")
    else:
        # This one takes no bias of another dtype.
        bias = None if bias is None else bias.to(x.dtype)
        y = product.binary(rows, as_rows(residual, x.dtype), weight, bias, "add")
    if added is not None:
        y.addmm_(*added)
    # oneDNN's own ReLU makes 0 of NaN.
    return _owned(_as_maps(y.relu_() if relu else y, x))


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    weight2: Tensor | None,
    relu: bool,
) -> Tensor:
    """`conv1x1_act` without checks and gradients; weights are (out, in) in any dtype."""
    arguments = (x, weight, bias, residual, x2, weight2, relu)
    if not x.numel() or not weight.shape[0]:
        pass
    elif _extension.backend(x) == "cuda" and x.dtype in HALVES and _extension.has_kernel(x):
        return _on_tensor_cores(*arguments)
    elif _onednn_has_kernel(x):
        return _in_onednn(*arguments)
    # Autocast around the call holds in here as well, and would multiply in half types.
    with torch.autocast(x.device.type, enabled=False):
        y = reference.conv1x1_act(x, weight, bias, residual, x2=x2, weight2=weight2, relu=relu)
    return _owned(y.to(x.dtype))


def _whole_chunks(rows: Tensor) -> Tensor:
    """Rows filled up with zeros to a multiple of 16 bytes, as tensor cores take them."""
    missing = -rows.shape[1] % 8
    return F.pad(rows, (0, missing)) if missing else rows


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """`a^T b`, float32, of matrices of half types on CUDA."""
    if _KEEPS_SUMS:
        return torch.ops.aten.mm.dtype(a.t(), b, torch.float32)
    return torch.mm(a.t(), b).float()


def grad_weight_of(grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`grad_y^T x` of rows, in the weight's dtype."""
    wide = x.device.type == "cuda" and x.dtype in HALVES
    if x.device.type == "cpu" and x.dtype == torch.float16:
        grad_y, x = grad_y.float(), x.float()  # which torch multiplies far faster there
    with torch.autocast(x.device.type, enabled=False):
        if wide and weight.dtype == torch.float32:
            product = _wide_product(_whole_chunks(grad_y), _whole_chunks(x))
            return product[: grad_y.shape[1], : x.shape[1]].contiguous()
        return torch.mm(grad_y.t(), x).to(weight.dtype)


def _sum(rows: Tensor) -> Tensor:
    """The sum of rows, at least in float32."""
    if rows.device.type == "cuda" and rows.dtype in HALVES and _KEEPS_SUMS:
        # A product is several times quicker there than torch's sum over rows.
        return _wide_product(rows.new_ones(len(rows), 1), rows)[0]
    return rows.sum(0, dtype=reference.arithmetic_dtype(rows.dtype))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, x2, weight2, relu = inputs
    ctx.save_for_backward(x, weight, x2, weight2, output if relu else None)
    ctx.dtypes = [None if t is None else t.dtype for t in (bias, residual)]


@once_differentiable
def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, x2, weight2, y = ctx.saved_tensors
    bias_dtype, residual_dtype = ctx.dtypes
    needed = ctx.needs_input_grad
    rows = as_rows(grad_y, x.dtype)
    if y is not None:
        rows = torch.ops.aten.threshold_backward(rows, as_rows(y, x.dtype), 0)
    maps = _as_maps(rows, x)

    def pair_gradients(
        x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool
    ) -> list[Tensor | None]:
        return [
            _operator(maps, weight.t(), None, None, None, None, False) if needs_x else None,
            grad_weight_of(rows, as_rows(x, x.dtype), weight) if needs_weight else None,
        ]

    grad_bias = None
    if needed[2]:
        grad_bias = _sum(rows).to(bias_dtype)
    return (
        *pair_gradients(x, weight, needed[0], needed[1]),
        grad_bias,
        maps.to(residual_dtype) if needed[3] else None,
        *((None, None) if x2 is None else pair_gradients(x2, weight2, needed[4], needed[5])),
        None,
    )


_operator = _extension.register(
    "conv1x1_act(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? x2,"
    " Tensor? weight2, bool relu) -> Tensor",
    run,
    lambda x, weight, *others: empty_y(x, weight.shape[0]),
    setup_context=_setup,
    backward=_backward,
    cpu="torch's own product is the faster",
)


def _matrix(name: str, x: Tensor, weight: Tensor) -> Tensor:
    """A weight as (out, in), after checks of it and its x; raises ValueError."""
    _layout.check("conv1x1_act", name, x)
    is_conv_weight = weight.dim() == 4 and weight.shape[2:] == (1, 1)
    if not (weight.dim() == 2 or is_conv_weight) or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"conv1x1_act: weight of {name}: expected (out, {x.shape[1]}), with or without"
            f" (1, 1) at the end, got {tuple(weight.shape)}"
        )
    return weight.flatten(1) if is_conv_weight else weight


def conv1x1_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    x2: Tensor | None = None,
    weight2: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """One 1x1 convolution, or the sum of two, plus bias, residual and ReLU, in one pass.

    `y = relu?(x weight^T + x2 weight2^T + bias + residual)` for each pixel's channels.

    Args:
        x: (batch, in, height, width), any floating dtype; channels last in memory without a copy,
            anything else through one.
        weight: (out, in) or a Conv2d's (out, in, 1, 1), in x's dtype, or cast to it.
        bias: (out,), taken as float32 (float64 for float64 x).
        residual: (batch, out, height, width), added before the ReLU.
        x2, weight2: a second pair, both or neither: (batch, in2, height, width) in x's dtype, and
            (out, in2).
        relu: whether a ReLU follows. NaN stays NaN.

    Returns:
        y, (batch, out, height, width), x's dtype, channels last. Differentiable once with respect
        to every tensor, in each one's dtype.

    Equivalent to:
        y = F.conv2d(x, weight, bias) + F.conv2d(x2, weight2) + residual, then F.relu

    Error: sums are float32 (float64 for float64) and rounded to y's dtype once, at the end. On a
    CPU, bfloat16 with a residual takes the bias rounded to bfloat16. The result is the same in
    every run.

    Memory: on CUDA in half types x, x2 and residual are read and y is written once, `in + in2 +
    2 out` values a pixel: all of it the floor. (Outputs beyond 256 read x again, from the cache; on
    compute capability 8 those beyond 128 may.) Weights are read as they lie, float32 or transposed.

    Raises:
        ValueError: wrong shape, mixed devices, not floating, half of a second pair.
    """
    weight = _matrix("x", x, weight)
    if (x2 is None) != (weight2 is None):
        raise ValueError("conv1x1_act: x2 and weight2: expected both or neither")
    if x2 is not None and weight2 is not None:
        weight2 = _matrix("x2", x2, weight2)
        if x2.dtype != x.dtype:
            raise ValueError(f"conv1x1_act: x2: expected {x.dtype} as x, got {x2.dtype}")
    outputs, (batch, _, height, width) = weight.shape[0], x.shape
    expected = {
        "weight": (weight, tuple(weight.shape)),
        "bias": (bias, (outputs,)),
        "residual": (residual, (batch, outputs, height, width)),
        "x2": (x2, (batch, 0 if x2 is None else x2.shape[1], height, width)),
        "weight2": (weight2, (outputs, 0 if x2 is None else x2.shape[1])),
    }
    _arguments.check_like("conv1x1_act", x, expected)
    y: Tensor = _operator(x, weight, bias, residual, x2, weight2, relu)
    return y

"""3x3 convolutions of float32 on a CPU with a quarter of the multiplications."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _extension, _layout, reference

PANEL = 16
POINTS = 36
TILE = 4
"""See csrc/conv3x3_math.h."""
FEWEST_TILES = 32
"""Where there are fewer, transforming the weights takes longer than what is gained: with 32 to 128
channels forward and backward took 1.0 to 1.4 times as long as torch's convolution at 16 tiles, and
0.7 to 0.95 times at 64."""
MOST_PADDING = 1.25
"""Channels are padded to whole panels. To more than so many times their number, as 8 or 24 are, our
kernel took 1.1 to 2.7 times as long as torch's convolution; with 16, which fill one, 0.9 to 1.15
times where there are 64 tiles or more."""
PART = 64
MOST_PARTS = 8
"""The gradient of the weights is summed over PART tiles or more a part, in at most MOST_PARTS: each
writes POINTS values a weight, and keeps one more thread at work."""


def _tiles(maps: Tensor) -> int:
    batch, _, height, width = maps.shape
    return batch * -(-height // TILE) * -(-width // TILE)


def _padded(channels: int) -> int:
    return -(-channels // PANEL) * PANEL


def has_own_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` runs its own kernel on x; elsewhere it calls torch's convolution."""
    if not (_extension.backend(x) == "cpu" and x.dtype == torch.float32):
        return False
    if _tiles(x) < FEWEST_TILES or any(_padded(c) > MOST_PADDING * c for c in weight.shape[:2]):
        return False
    return _extension.has_kernel(x)


def _memory_shape(maps: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = maps.shape
    return batch, height, width, channels


def _workspace(x: Tensor, outputs: int, parts: int = 1) -> Tensor:
    return x.new_empty(parts, POINTS, _padded(outputs), _padded(x.shape[1]))


def _empty_maps(x: Tensor, channels: int) -> Tensor:
    return _layout.empty((x.shape[0], channels, *x.shape[2:]), x.dtype, x.device)


def _laid(made: Tensor, like: Tensor) -> Tensor:
    """`made` where its dtype and strides are those of `like`; else `like`, with its values."""
    same = made.dtype == like.dtype and made.stride() == like.stride()
    return made if same else like.copy_(made)


def _convolve(
    x: Tensor, weight: Tensor, outputs: int, first: int, strides: Any, bias: Any, relu: bool
) -> Tensor:
    """Convolve with taps that begin `first` elements into weight and lie `strides` apart."""
    # The kernel gets bare addresses: these must live until the launch.
    read, y, workspace = (
        _layout.readable(x, x.dtype),
        _empty_maps(x, outputs),
        _workspace(x, outputs),
    )
    _extension.call_kernel(
        "conv3x3",
        read,
        read.data_ptr(),
        _memory_shape(read),
        weight.data_ptr() + first * weight.element_size(),
        outputs,
        strides,
        0 if bias is None else bias.data_ptr(),
        relu,
        workspace.data_ptr(),
        y.data_ptr(),
    )
    return y


def run(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """`conv3x3` without checks and gradients; weights in any floating dtype."""
    outputs = len(weight)
    if not (x.numel() and outputs):
        y = _empty_maps(x, outputs).zero_()
        y = y if bias is None else y.add_(bias.to(x.dtype)[:, None, None])
        return y.relu_() if relu else y
    if not has_own_kernel(x, weight):
        return _laid(reference.conv3x3(x, weight, bias, relu=relu), _empty_maps(x, outputs))
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    return _convolve(x, weight, outputs, 0, weight.stride(), bias, relu)


def _torch_backward(grad_y: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> Any:
    with torch.autocast(grad_y.device.type, enabled=False):
        return torch.ops.aten.convolution_backward(
            grad_y,
            x,
            weight.to(grad_y.dtype),
            None,
            (1, 1),
            (1, 1),
            (1, 1),
            False,
            (0, 0),
            1,
            needed,
        )


def grad_x(grad_y: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x: a convolution with the weights turned round."""
    inputs = weight.shape[1]
    if not (grad_y.numel() and inputs):
        return _empty_maps(grad_y, inputs).zero_()
    if not has_own_kernel(grad_y, weight):
        like = _empty_maps(grad_y, inputs)
        return _laid(_torch_backward(grad_y, like, weight, [True, False, False])[0], like)
    weight = weight.to(grad_y.dtype)
    outer, inner, row, column = weight.stride()
    strides = (inner, outer, -row, -column)
    return _convolve(grad_y, weight, inputs, 2 * row + 2 * column, strides, None, False)


def grad_weight(grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weights, as they lie, in their dtype."""
    result = torch.empty_like(weight)
    if not (grad_y.numel() and x.numel()):
        return result.zero_()
    if not has_own_kernel(x, weight):
        return _laid(_torch_backward(grad_y, x, weight, [False, True, False])[1], result)
    read = [_layout.readable(t, x.dtype) for t in (x, grad_y)]
    out = _extension.as_dtype(result, x.dtype)
    outputs = grad_y.shape[1]
    parts = min(max(_tiles(x) // PART, 1), MOST_PARTS)
    workspace = _workspace(x, outputs, parts)
    _extension.call_kernel(
        "conv3x3_weight_backward",
        x,
        read[0].data_ptr(),
        _memory_shape(x),
        read[1].data_ptr(),
        outputs,
        parts,
        workspace.data_ptr(),
        out.data_ptr(),
        out.stride(),
    )
    return _extension.as_dtype(out, weight.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.bias_dtype = None if bias is None else bias.dtype


@once_differentiable
def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    needed = ctx.needs_input_grad
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    if y is not None:
        grad_y = torch.ops.aten.threshold_backward(grad_y, y, 0)
    grad_bias = None
    if needed[2]:
        grad_bias = grad_y.sum((0, 2, 3), dtype=reference.arithmetic_dtype(x.dtype)).to(
            ctx.bias_dtype
        )
    return (
        _input_backward(grad_y, weight) if needed[0] else None,
        _weight_backward(grad_y, x, weight) if needed[1] else None,
        grad_bias,
        None,
    )


_operator = _extension.register(
    "conv3x3(Tensor x, Tensor weight, Tensor? bias, bool relu) -> Tensor",
    run,
    lambda x, weight, bias, relu: _empty_maps(x, weight.shape[0]),
    setup_context=_setup,
    backward=_backward,
    cuda="cuDNN has the tensor cores; ours is for float32 on a CPU",
)
_input_backward = _extension.register(
    "conv3x3_input_backward(Tensor grad_y, Tensor weight) -> Tensor",
    grad_x,
    lambda grad_y, weight: _empty_maps(grad_y, weight.shape[1]),
)
_weight_backward = _extension.register(
    "conv3x3_weight_backward(Tensor grad_y, Tensor x, Tensor weight) -> Tensor",
    grad_weight,
    lambda grad_y, x, weight: torch.empty_like(weight),
)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """3x3 convolution with stride 1 and padding 1, plus bias and optional ReLU.

    Args:
        x: (batch, in, height, width), any floating dtype; channels last in memory without a copy,
            anything else through one.
        weight: (out, in, 3, 3), lying in any way, in x's dtype, or cast to it.
        bias: (out,), cast to x's dtype.
        relu: whether a ReLU follows. NaN stays NaN.

    Returns:
        y, (batch, out, height, width), x's dtype, channels last. Differentiable once with respect
        to every tensor, in each one's dtype.

    Equivalent to:
        y = F.conv2d(x, weight, bias, padding=1), then F.relu

    float32 on a CPU runs our kernel, Winograd's F(4x4, 3x3), whose 36 products a channel make 16
    results; all else runs torch's own, whatever autocast says.

    Error: in the root mean square, relative to that of the results, of 128 channels, y and the
    gradient of x: 1e-6 (torch's own: 5e-7), of the weights: 1.3e-6 (2e-6). A tile of 4x4 results
    shares it: NaN or infinity in x spreads to the whole tile. Results are the same in every run
    and with any number of threads.

    Memory: x is read 1.5 times a side and y written once, plus the transformed weights, 4 times
    their size, and 1 to MOST_PARTS times that for their gradient.

    Raises:
        ValueError: wrong shape, mixed devices, not floating.
    """
    _layout.check("conv3x3", "x", x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"conv3x3: weight: expected (out, {x.shape[1]}, 3, 3), got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv3x3: bias: expected ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"conv3x3: {name} is on {tensor.device}, x on {x.device}: move them to one device"
            )
    y: Tensor = _operator(x, weight, bias, relu)
    return y

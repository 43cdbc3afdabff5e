"""Batch norm, residual and ReLU in two passes over memory each way, instead of up to five."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasthg.ops import _extension, _layout, reference

# Each part of the rows is summed by itself, then the parts in order: their number, which depends on
# the shape alone, decides the order of summation.
_ROWS_PER_PART = 64
_MAXIMUM_PARTS = 324  # three blocks for each multiprocessor of an A100: one wave

# Up to so many rows (batch x height x width), a block of a CUDA kernel keeps its channels in shared
# memory, and one launch replaces three. Few blocks share the work then: on an H200, of
# 128 and 256 channels in bfloat16, forward and backward take 3 and 3 us at 128 rows instead of 10
# and 13, 10 and 13 at 4096 instead of 10 to 11 and 13 to 15, and 17 and 22 at 8192 instead of 12
# and 15.
_ON_CHIP_ROWS = 4096

# Above that, clusters of blocks keep slices of the rows in shared memory, where a GPU has clusters
# (compute capability 9.0 and later), again with one launch for three: blocks of a cluster, and
# vectors of 16 bytes in a slice.
_CLUSTER_BLOCKS = (16, 8)
_CLUSTER_VECTORS = (4, 2)
# The share of the multiprocessors which must have work; else three launches are taken.
_LEAST_BUSY = 0.7
# Of a block's 227 KiB of shared memory, what is left for maps; only to choose by.
_KEPT_BYTES = 208 << 10


def _channel_values(x: Tensor) -> Tensor:
    """Allocate one uninitialised real number a channel, (channels,)."""
    return x.new_empty(x.shape[1], dtype=reference.arithmetic_dtype(x.dtype))


@functools.lru_cache(maxsize=4096)
def _choose_clusters(
    dtype: torch.dtype, backward: bool, rows: int, channels: int, device: int
) -> tuple[int, int]:
    """Blocks of a cluster and vectors of its slice for maps of this size, or (0, 0).

    The results do not depend on the choice. Taken is what keeps the most multiprocessors at work,
    of equals what keeps most of the maps on chip, then what needs the fewest clusters.
    """
    vectors, scalars = divmod(channels * dtype.itemsize, 16)
    if scalars:
        return 0, 0
    code = _extension.DTYPE_CODES[dtype]
    room = {
        blocks: _extension.native.bn_act_clusters_cuda(code, backward, blocks, device)
        for blocks in _CLUSTER_BLOCKS
    }
    multiprocessors = max(blocks * clusters for blocks, clusters in room.items())
    choices = [(_LEAST_BUSY, 0.0, 0, (0, 0))]
    for blocks, clusters in room.items():
        for width in _CLUSTER_VECTORS if clusters else ():
            slices = -(-vectors // width)
            turns = -(-slices // clusters)
            # A perfect share of the work, and that of the busiest multiprocessor.
            busy = vectors / multiprocessors / (turns * width / blocks)
            needed = rows * width * 16 * (2 if backward else 1) / blocks
            choices.append((busy, min(1.0, _KEPT_BYTES / needed), -slices, (blocks, width)))
    return max(choices, key=lambda choice: choice[:3])[3]


def _call_kernel(
    name: str,
    x: Tensor,
    beta: Tensor | None,
    gamma: Tensor | None,
    mean: Tensor,
    var: Tensor,
    relu: bool,
    frozen: bool,
    eps: float,
    *others: Tensor | None,
    one_pass: bool = False,
    sums_given: bool = False,
) -> None:
    """Run a kernel over readable maps x; `others` are the launcher's further tensors or nulls.

    one_pass: statistics or sums alone, or a result from known ones.
    """
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    parts = min(_MAXIMUM_PARTS, -(-rows // _ROWS_PER_PART))
    # The kernels get bare addresses: these must live until the launch.
    beta, gamma = (
        None if t is None else _extension.as_dtype(t, mean.dtype).contiguous()
        for t in (beta, gamma)
    )
    workspace = mean.new_empty(parts * 2 * channels)
    blocks, vectors = 0, 0
    if rows > _ON_CHIP_ROWS and not (frozen or one_pass) and _extension.backend(x) == "cuda":
        backward, device = name == "bn_act_backward", x.device.index or 0
        blocks, vectors = _choose_clusters(x.dtype, backward, rows, channels, device)
    norm = _extension.native.BatchNorm(
        beta=0 if beta is None else beta.data_ptr(),
        gamma=0 if gamma is None else gamma.data_ptr(),
        mean=mean.data_ptr(),
        var=var.data_ptr(),
        workspace=workspace.data_ptr(),
        rows=rows,
        channels=channels,
        parts=parts,
        eps=eps,
        relu=relu,
        frozen=frozen,
        sums_given=sums_given,
        on_chip=rows <= _ON_CHIP_ROWS,
        cluster_blocks=blocks,
        cluster_vectors=vectors,
    )
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in others]
    _extension.call_kernel(name, x, norm, x.data_ptr(), *addresses)


def _run(
    x: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    relu: bool,
    frozen: bool,
    eps: float,
) -> Tensor:
    """The result; mean and var are read if frozen, else written."""
    if not x.numel():
        if not frozen:
            mean.zero_()
            var.zero_()
        return _layout.empty_like(x)
    if not _extension.has_kernel(x):
        if not frozen:
            for out, value in zip((mean, var), reference.moments(x), strict=True):
                out.copy_(value)
        return _layout.empty_like(x).copy_(
            reference.normalise(x, mean, var, beta, gamma, residual, relu=relu, eps=eps)
        )
    read = _layout.readable(x, x.dtype)
    added = None if residual is None else _layout.readable(residual, x.dtype)
    y = _layout.empty_like(read)
    _call_kernel("bn_act", read, beta, gamma, mean, var, relu, frozen, eps, added, y)
    return _extension.as_dtype(y, x.dtype)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the channels, as `bn_act` finds them; x is read once."""
    mean, var = _channel_values(x), _channel_values(x)
    if not x.numel():
        return mean.zero_(), var.zero_()
    if not _extension.has_kernel(x):
        return reference.moments(x)
    maps = (None, None)
    _call_kernel(
        *("bn_act", _layout.readable(x, x.dtype), None, None, mean, var, False, False, 0.0, *maps),
        one_pass=True,
    )
    return mean, var


def train(
    x: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`bn_act` without checks and gradients."""
    mean, var = _channel_values(x), _channel_values(x)
    return _run(x, beta, gamma, residual, mean, var, relu, False, eps), mean, var


def infer(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> Tensor:
    """`bn_act_inference` without checks and gradients, for operators that contain it."""
    work = reference.arithmetic_dtype(x.dtype)
    mean, var = (_extension.as_dtype(t, work).contiguous() for t in (mean, var))
    return _run(x, beta, gamma, residual, mean, var, relu, True, eps)


def gradients(
    grad_y: Tensor,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    relu: bool,
    frozen: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, beta, gamma and, if y is given, the residual (else empty).

    y: the forward's result, from which the ReLU mask is read where a residual was added.
    """
    grad_beta, grad_gamma = _channel_values(x), _channel_values(x)
    if not x.numel():
        grad_x = _layout.empty_like(x)
        return grad_x, grad_beta.zero_(), grad_gamma.zero_(), _empty_grad_residual(x, y)
    mean, var = (_extension.as_dtype(t, grad_beta.dtype).contiguous() for t in (mean, var))
    if not _extension.has_kernel(x):
        results = reference.bn_act_backward(
            grad_y, x, y, mean, var, beta, gamma, relu=relu, frozen=frozen, eps=eps
        )
        outs = (_layout.empty_like(x), grad_beta, grad_gamma, _empty_grad_residual(x, y))
        for out, value in zip(outs, results, strict=True):
            if out.numel():
                out.copy_(value)
        return outs
    read, grad_y_read = _layout.readable(x, x.dtype), _layout.readable(grad_y, x.dtype)
    result = None if y is None else _layout.readable(y, x.dtype)
    grad_x, grad_residual = _layout.empty_like(read), _empty_grad_residual(read, y)
    masked_grad_y = None if y is None else grad_residual
    maps = (result, grad_y_read, grad_x, masked_grad_y, grad_beta, grad_gamma)
    _call_kernel("bn_act_backward", read, beta, gamma, mean, var, relu, frozen, eps, *maps)
    grad_x, grad_residual = (_extension.as_dtype(t, x.dtype) for t in (grad_x, grad_residual))
    return grad_x, grad_beta, grad_gamma, grad_residual


def gradient_sums(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of beta and gamma without a residual, as `gradients` finds them, in one pass."""
    grad_beta, grad_gamma = _channel_values(x), _channel_values(x)
    if not x.numel():
        return grad_beta.zero_(), grad_gamma.zero_()
    mean, var = (_extension.as_dtype(t, grad_beta.dtype).contiguous() for t in (mean, var))
    if not _extension.has_kernel(x):
        _, *sums, _ = reference.bn_act_backward(
            grad_y, x, None, mean, var, beta, gamma, relu=relu, frozen=False, eps=eps
        )
        return sums[0], sums[1]
    read, grad_y_read = _layout.readable(x, x.dtype), _layout.readable(grad_y, x.dtype)
    maps = (None, grad_y_read, None, None, grad_beta, grad_gamma)
    numbers = (beta, gamma, mean, var, relu, False, eps)
    _call_kernel("bn_act_backward", read, *numbers, *maps, one_pass=True)
    return grad_beta, grad_gamma


def gradient_from_sums(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    sums: tuple[Tensor, Tensor],
    relu: bool,
    eps: float,
) -> Tensor:
    """Gradient of x without a residual, given those of beta and gamma (`sums`), in one pass."""
    if not x.numel():
        return _layout.empty_like(x)
    work = reference.arithmetic_dtype(x.dtype)
    mean, var, *totals = (_extension.as_dtype(t, work).contiguous() for t in (mean, var, *sums))
    if not _extension.has_kernel(x):
        by = mean, var, beta, gamma
        grad_x, *_ = reference.bn_act_backward(
            grad_y, x, None, *by, relu=relu, frozen=False, eps=eps, sums=(totals[0], totals[1])
        )
        return _layout.empty_like(x).copy_(grad_x)
    read, grad_y_read = _layout.readable(x, x.dtype), _layout.readable(grad_y, x.dtype)
    grad_x = _layout.empty_like(read)
    maps = (None, grad_y_read, grad_x, None, *totals)
    numbers = (beta, gamma, mean, var, relu, False, eps)
    _call_kernel("bn_act_backward", read, *numbers, *maps, one_pass=True, sums_given=True)
    return _extension.as_dtype(grad_x, x.dtype)


def _empty_grad_residual(x: Tensor, y: Tensor | None) -> Tensor:
    """Allocate the residual's gradient; empty where grad_y itself is that gradient."""
    return x.new_empty(0) if y is None else _layout.empty_like(x)


def _save(
    ctx: Any,
    y: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> None:
    # Without a residual the ReLU mask is computed from x again. With one it is read from y, which
    # the next layer keeps for its own backward anyway; the residual would be kept for this alone.
    masked = relu and residual is not None
    ctx.save_for_backward(x, y if masked else None, mean, var, beta, gamma)
    ctx.relu, ctx.eps = relu, eps
    ctx.residual_dtype = None if residual is None else residual.dtype


def _input_gradients(ctx: Any, grad_y: Tensor, frozen: bool) -> tuple[Tensor | None, ...]:
    """Gradients of x, beta, gamma and residual."""
    x, y, mean, var, beta, gamma = ctx.saved_tensors
    grad_x, grad_beta, grad_gamma, masked = _backward_operator(
        grad_y, x, y, mean, var, beta, gamma, ctx.relu, frozen, ctx.eps
    )
    grad_residual = grad_y if y is None else masked
    return (
        grad_x,
        _extension.as_dtype(grad_beta, beta.dtype),
        None if gamma is None else _extension.as_dtype(grad_gamma, gamma.dtype),
        None
        if ctx.residual_dtype is None
        else _extension.as_dtype(grad_residual, ctx.residual_dtype),
    )


def _setup_train(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, beta, gamma, residual, relu, eps = inputs
    y, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    _save(ctx, y, x, mean, var, beta, gamma, residual, relu, eps)


@once_differentiable
def _backward_train(
    ctx: Any, grad_y: Tensor | None, grad_mean: None, grad_var: None
) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 6
    return *_input_gradients(ctx, grad_y, False), None, None


def _setup_infer(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, var, beta, gamma, residual, relu, eps = inputs
    _save(ctx, output, x, mean, var, beta, gamma, residual, relu, eps)


@once_differentiable
def _backward_infer(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, *others = _input_gradients(ctx, grad_y, True)
    return grad_x, None, None, *others, None, None


_operator = _extension.register(
    "bn_act(Tensor x, Tensor beta, Tensor? gamma, Tensor? residual, bool relu, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    train,
    lambda x, *others: (_layout.empty_like(x), _channel_values(x), _channel_values(x)),
    setup_context=_setup_train,
    backward=_backward_train,
)
_infer_operator = _extension.register(
    "bn_act_inference(Tensor x, Tensor mean, Tensor var, Tensor beta, Tensor? gamma,"
    " Tensor? residual, bool relu, float eps) -> Tensor",
    infer,
    lambda x, *others: _layout.empty_like(x),
    setup_context=_setup_infer,
    backward=_backward_infer,
)
_backward_operator = _extension.register(
    "bn_act_backward(Tensor grad_y, Tensor x, Tensor? y, Tensor mean, Tensor var, Tensor beta,"
    " Tensor? gamma, bool relu, bool frozen, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    gradients,
    lambda grad_y, x, y, *others: (
        _layout.empty_like(x),
        _channel_values(x),
        _channel_values(x),
        _empty_grad_residual(x, y),
    ),
)


def _check(op: str, x: Tensor, channels: dict[str, Tensor | None], residual: Tensor | None) -> None:
    """Check shapes, dtype and devices; raises ValueError."""
    _layout.check(op, "x", x)
    expected = dict.fromkeys(channels, (x.shape[1],)) | {"residual": tuple(x.shape)}
    for name, tensor in {**channels, "residual": residual}.items():
        if tensor is None:
            continue
        if tensor.shape != expected[name]:
            raise ValueError(f"{op}: {name}: expected {expected[name]}, got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, x on {x.device}: move them to one device"
            )


def bn_act(
    x: Tensor,
    beta: Tensor,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm by the statistics of the batch, then optional residual and ReLU, in one operator.

    `y = relu?((x - mean) / sqrt(var + eps) * gamma + beta + residual)`. Nothing is kept for the
    backward but x and the statistics, and y where ReLU follows a residual.

    Args:
        x: (batch, channels, height, width), any floating dtype; channels last in memory without a
            copy, anything else through one.
        beta: (channels,) offset; gamma: (channels,) scale, None = 1.
        residual: as x, added before the ReLU.
        relu: whether a ReLU follows. NaN stays NaN.
        eps: added to the variance.

    Returns:
        y as x, channels last; mean and var, (channels,), float64 for float64 x, else float32: the
        batch's mean and biased variance, not differentiable (0 for an empty batch). y is
        differentiable once with respect to x, beta, gamma and residual.

    Equivalent to:
        y = relu(F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps) + residual)

    Error: one rounding of y's dtype, and 1e-5 of the deviation in float32. Sums run in a fixed
    order: the result does not depend on the number of threads and is the same in every run.

    Memory traffic, in maps: forward 3 (x read twice, y written; the floor is 2), backward 5 (x and
    grad_y read twice, grad_x written; the floor is 3). A GPU reads maps of up to 4096 rows (batch x
    height x width) once in both directions, which is the floor, if the channels fill vectors of 16
    bytes. A GPU with thread-block clusters (compute capability 9.0 and later) does so with larger
    maps, too, but for what it cannot keep on chip: on an H200 that is the excess over 26 MiB of x,
    in the backward of x and grad_y together. A residual adds 1 to the forward and, with ReLU, 3 to
    the backward (y read twice, grad_residual written), or 2 where maps are read once.

    Raises:
        ValueError: wrong shape, mixed devices, not floating.
    """
    _check("bn_act", x, {"beta": beta, "gamma": gamma}, residual)
    y, mean, var = _operator(x, beta, gamma, residual, relu, eps)
    return y, mean, var


def bn_act_inference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    beta: Tensor,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-3,
) -> Tensor:
    """Batch norm by running statistics: `bn_act` with mean and var, (channels,), as constants.

    Returns y; no gradient with respect to mean and var.

    Equivalent to:
        y = relu(F.batch_norm(x, mean, var, gamma, beta, eps=eps) + residual)

    Error: one rounding of y's dtype.
    Memory, in units of x: 2 forward (x read, y written) and 1 for a residual, the floor; backward
    as in `bn_act`.

    Raises:
        ValueError: wrong shape, mixed devices, not floating.
    """
    values = {"mean": mean, "var": var, "beta": beta, "gamma": gamma}
    _check("bn_act_inference", x, values, residual)
    y: Tensor = _infer_operator(x, mean, var, beta, gamma, residual, relu, eps)
    return y


@torch.no_grad()
def update_statistics(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int, decay: float
) -> None:
    """Update running statistics in place with those of a batch of `count` values a channel.

    `running = decay * running + (1 - decay) * batch`. All are (channels,); var is biased, and what
    is accumulated is unbiased: times count / (count - 1). A batch without values moves nothing.
    """
    if count:
        running_mean.lerp_(mean.to(running_mean.dtype), 1 - decay)
        unbiased = var * (count / max(count - 1, 1))
        running_var.lerp_(unbiased.to(running_var.dtype), 1 - decay)

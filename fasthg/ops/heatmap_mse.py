"""Squared distance between predicted heatmaps and Gaussian targets that are never stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fasthg.ops import _extension, _gaussian_targets, reference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _is_channels_last(predictions: Tensor) -> bool | None:
    """How the maps of one image lie: False = parts first, True = parts last, None = with gaps."""
    parts, height, width = predictions.shape[2:]
    for channels_last, expected in (
        (False, (height * width, width, 1)),
        (True, (1, width * parts, parts)),
    ):
        # The stride of a dimension of length 1 says nothing.
        if all(
            length <= 1 or stride == expected_stride
            for length, stride, expected_stride in zip(
                (parts, height, width), predictions.stride()[2:], expected, strict=True
            )
        ):
            return channels_last
    return None


def _empty_gradient(predictions: Tensor) -> Tensor:
    """Allocate the gradient: no gaps, parts first or last as in the predictions."""
    if not _is_channels_last(predictions):
        return torch.empty(predictions.shape, dtype=predictions.dtype, device=predictions.device)
    stacks, batch, parts, height, width = predictions.shape
    return predictions.new_empty((stacks, batch, height, width, parts)).permute(0, 1, 4, 2, 3)


def _empty_loss(predictions: Tensor) -> Tensor:
    work = reference.arithmetic_dtype(predictions.dtype)
    return predictions.new_empty(predictions.shape[:2], dtype=work)


def _call_kernel(
    name: str,
    predictions: Tensor,
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    subpixel: bool,
    *others: Tensor,
) -> None:
    """Run a kernel over predictions, which are copied first if an image has gaps in memory."""
    channels_last = _is_channels_last(predictions)
    if channels_last is None:
        predictions, channels_last = predictions.contiguous(), False
    stacks, _, _, height, width = predictions.shape
    _extension.call_kernel(
        name,
        predictions,
        _gaussian_targets.pointers(keypoints, sigmas, visibility, height, width, subpixel),
        stacks,
        predictions.data_ptr(),
        predictions.stride(0),
        predictions.stride(1),
        channels_last,
        *(tensor.data_ptr() for tensor in others),
    )


def _readable(predictions: Tensor) -> Tensor:
    """The CPU kernels read and write float32 and float64 only; CUDA's take half types as well."""
    work = reference.arithmetic_dtype(predictions.dtype)
    return predictions.to(work) if _extension.backend(predictions) == "cpu" else predictions


def _forward(
    predictions: Tensor,
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    subpixel: bool,
) -> Tensor:
    loss = _empty_loss(predictions)
    keypoints, sigmas, visibility = _gaussian_targets.normalise(
        keypoints, sigmas, visibility, loss.dtype
    )
    if not _extension.has_kernel(predictions):
        return reference.heatmap_mse(predictions, keypoints, sigmas, visibility, subpixel=subpixel)
    if not predictions.numel():
        return loss.zero_()
    read = _readable(predictions)
    _call_kernel("heatmap_mse", read, keypoints, sigmas, visibility, subpixel, loss)
    return loss


def _gradient(
    grad_loss: Tensor,
    predictions: Tensor,
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    subpixel: bool,
) -> Tensor:
    gradient = _empty_gradient(predictions)
    work = reference.arithmetic_dtype(predictions.dtype)
    keypoints, sigmas, visibility = _gaussian_targets.normalise(keypoints, sigmas, visibility, work)
    # It comes with any strides, 0 among them: `.sum()` sends one number expanded.
    grad_loss = grad_loss.to(work).contiguous()
    if not _extension.has_kernel(predictions):
        height, width = predictions.shape[3:]
        targets = reference.gaussian_heatmaps(
            keypoints, sigmas, height, width, visibility, subpixel=subpixel
        )
        return gradient.copy_((predictions.to(work) - targets) * grad_loss[:, :, None, None, None])
    if not predictions.numel():
        return gradient
    read = _readable(predictions)
    written = gradient if read.dtype == gradient.dtype else torch.empty_like(gradient, dtype=work)
    _call_kernel(
        "heatmap_mse_backward", read, keypoints, sigmas, visibility, subpixel, grad_loss, written
    )
    return gradient if written is gradient else gradient.copy_(written)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    predictions, keypoints, sigmas, visibility, ctx.subpixel = inputs
    ctx.save_for_backward(predictions, keypoints, sigmas, visibility)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _backward_operator(grad_loss, *ctx.saved_tensors, ctx.subpixel)
    return gradient, None, None, None, None


def _setup_context_twice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_loss, predictions, keypoints, sigmas, visibility, ctx.subpixel = inputs
    ctx.save_for_backward(grad_loss, predictions, keypoints, sigmas, visibility)


def _backward_twice(ctx: Any, grad_gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient is `difference * grad_loss`: a product rule, with torch's own operators."""
    grad_loss, *inputs = ctx.saved_tensors
    difference = _backward_operator(torch.ones_like(grad_loss), *inputs, ctx.subpixel)
    grad_grad_loss = (grad_gradient * difference).sum((2, 3, 4), dtype=grad_loss.dtype)
    grad_predictions = grad_gradient * grad_loss[:, :, None, None, None]
    return grad_grad_loss, grad_predictions.to(grad_gradient.dtype), None, None, None, None


_operator = _extension.register(
    "heatmap_mse(Tensor predictions, Tensor keypoints, Tensor sigmas, Tensor? visibility,"
    " bool subpixel) -> Tensor",
    _forward,
    lambda predictions, *others: _empty_loss(predictions),
    setup_context=_setup_context,
    backward=_backward,
)
_backward_operator = _extension.register(
    "heatmap_mse_backward(Tensor grad_loss, Tensor predictions, Tensor keypoints, Tensor sigmas,"
    " Tensor? visibility, bool subpixel) -> Tensor",
    _gradient,
    lambda grad_loss, predictions, *others: _empty_gradient(predictions),
    setup_context=_setup_context_twice,
    backward=_backward_twice,
)


def heatmap_mse(
    predictions: Tensor | Sequence[Tensor],
    keypoints: Tensor | ArrayLike,
    sigmas: Tensor | ArrayLike,
    visibility: Tensor | ArrayLike | None = None,
    *,
    subpixel: bool = False,
) -> Tensor:
    """Half the squared distance between predicted maps and the Gaussians of the keypoints.

    The forward sums the loss and the backward writes the gradient, each in one pass over the
    predictions and each making target values on the fly: targets exist in no memory, and nothing
    but the predictions is kept for the backward.

    Args:
        predictions: (stacks, batch, parts, height, width), any floating dtype; parts first or last
            (channels_last) in memory without a copy, anything else through one. Or a sequence of
            `stacks` tensors (batch, parts, height, width), stacked here in the layout they have.
        keypoints, sigmas, visibility, subpixel: as in `gaussian_heatmaps`, sizes taken from the
            predictions; an invisible part's target is an empty map (not masked, as in MARS).

    Returns:
        (stacks, batch), sum over parts and cells of (target - prediction)² / 2; float64 for
        float64 predictions, else float32. Differentiable with respect to predictions, twice;
        the gradient has the dtype and layout of the predictions.

    Equivalent to:
        targets = gaussian_heatmaps(keypoints, sigmas, (height, width), visibility)
        loss = (predictions - targets).square().sum((2, 3, 4)) / 2

    Error: loss 1e-6 relative, gradient one rounding of its dtype. Sums run in a fixed order: the
    result does not depend on the number of threads and is the same in every run.

    Memory, in units of the predictions: 1 forward (read), 2 backward (read again, gradient
    written); the floor where the gradient is asked for after the loss. On a CPU half types are
    copied to float32 first. Peak: the gradient.

    Raises:
        ValueError: wrong shape, mixed devices, not floating, keypoints or sigmas requiring grad.
        NotImplementedError: a tensor carries a forward-mode tangent.

    Source: MARS pose training: the sum over batch, parts, pixels and stacks is its training loss.
    """
    if not isinstance(predictions, Tensor):
        predictions = _stack(predictions)
    keypoints, sigmas, visibility = _gaussian_targets.targets(
        "heatmap_mse", keypoints, sigmas, visibility
    )
    batch, parts = keypoints.shape[:2]
    if predictions.dim() != 5 or predictions.shape[1:3] != (batch, parts):
        raise ValueError(
            f"heatmap_mse: predictions: expected (stacks, {batch}, {parts}, height, width), "
            f"got {tuple(predictions.shape)}"
        )
    if not predictions.is_floating_point():
        raise ValueError(
            f"heatmap_mse: predictions: expected a floating dtype, got {predictions.dtype}"
        )
    if predictions.device != keypoints.device:
        raise ValueError(
            f"heatmap_mse: predictions is on {predictions.device}, keypoints on "
            f"{keypoints.device}: move them to one device"
        )
    loss: Tensor = _operator(predictions, keypoints, sigmas, visibility, subpixel)
    return loss


def _stack(predictions: Sequence[Tensor]) -> Tensor:
    """Stack maps (batch, parts, height, width) of one layout without changing the layout."""
    if not predictions:
        raise ValueError("heatmap_mse: predictions: expected at least one stack, got none")
    if all(p.is_contiguous(memory_format=torch.channels_last) for p in predictions):
        return torch.stack([p.permute(0, 2, 3, 1) for p in predictions]).permute(0, 1, 4, 2, 3)
    return torch.stack(list(predictions))

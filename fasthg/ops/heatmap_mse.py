"""Squared distance between predicted heatmaps and Gaussian targets that are never stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fasthg.ops import _native, _targets, reference


def _is_channels_last(predictions: Tensor) -> bool | None:
    """How the maps of one image lie: False = parts first, True = parts last, None = with gaps."""
    parts, height, width = predictions.shape[2:]
    for channels_last, expected in (
        (False, (height * width, width, 1)),
        (True, (1, width * parts, parts)),
    ):
        # The stride of a dimension of length 1 says nothing.
        if all(
            length <= 1 or stride == wanted
            for length, stride, wanted in zip(
                (parts, height, width), predictions.stride()[2:], expected, strict=True
            )
        ):
            return channels_last
    return None


def _empty_gradient(predictions: Tensor, with_gradient: bool) -> Tensor:
    """Room for the gradient: without gaps, parts first or last as in the predictions."""
    if not with_gradient:
        return predictions.new_empty(0)
    if not _is_channels_last(predictions):
        return torch.empty(predictions.shape, dtype=predictions.dtype, device=predictions.device)
    stacks, batch, parts, height, width = predictions.shape
    return predictions.new_empty((stacks, batch, height, width, parts)).permute(0, 1, 4, 2, 3)


def _fake(
    predictions: Tensor,
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    subpixel: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    work = _targets.arithmetic_dtype(predictions.dtype)
    loss = predictions.new_empty(predictions.shape[:2], dtype=work)
    return loss, _empty_gradient(predictions, with_gradient)


def _implementation(
    predictions: Tensor,
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    subpixel: bool,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    work = _targets.arithmetic_dtype(predictions.dtype)
    keypoints, sigmas, visibility = _targets.normalise(keypoints, sigmas, visibility, work)
    loss = predictions.new_empty(predictions.shape[:2], dtype=work)
    gradient = _empty_gradient(predictions, with_gradient)
    stacks, batch, parts, height, width = predictions.shape
    if not _native.serves(predictions):
        targets = reference.gaussian_heatmaps(
            keypoints, sigmas, height, width, visibility, subpixel=subpixel
        )
        difference = predictions.to(work) - targets
        loss.copy_(difference.square().sum((2, 3, 4)) / 2)
        return loss, gradient.copy_(difference) if with_gradient else gradient
    if not predictions.numel():
        return loss.zero_(), gradient

    channels_last = _is_channels_last(predictions)
    if channels_last is None:
        predictions, channels_last = predictions.contiguous(), False
    # The CPU kernels read and write float32 and float64 only.
    half_on_cpu = predictions.device.type == "cpu" and predictions.dtype != work
    read = predictions.to(work) if half_on_cpu else predictions
    written = torch.empty_like(gradient, dtype=work) if half_on_cpu else gradient
    _native.launch(
        "heatmap_mse",
        read,
        _targets.pointers(keypoints, sigmas, visibility, height, width, subpixel),
        stacks,
        read.data_ptr(),
        read.stride(0),
        read.stride(1),
        channels_last,
        written.data_ptr() if with_gradient else 0,
        loss.data_ptr(),
    )
    return loss, gradient.copy_(written) if half_on_cpu else gradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, of_loss: Tensor | None, of_gradient: Tensor | None) -> tuple[Any, ...]:
    (gradient,) = ctx.saved_tensors
    result = None
    if of_loss is not None:
        # One rounding: a half-precision gradient is scaled in float32.
        result = (gradient * of_loss[:, :, None, None, None]).to(gradient.dtype)
    if of_gradient is not None:
        result = of_gradient if result is None else result + of_gradient
    return result, None, None, None, None, None


_operator = _native.register(
    "heatmap_mse(Tensor predictions, Tensor keypoints, Tensor sigmas, Tensor? visibility,"
    " bool subpixel, bool with_gradient) -> (Tensor, Tensor)",
    _implementation,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)


def heatmap_mse(
    predictions: Tensor | Sequence[Tensor],
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None = None,
    *,
    subpixel: bool = False,
) -> Tensor:
    """Half the squared distance between predicted maps and the Gaussians of the keypoints.

    One pass reads the predictions once, makes each target value on the fly, sums the loss and
    writes the gradient `prediction - target`; targets exist in no memory.

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

    Raises:
        ValueError: wrong shape, mixed devices, not floating, keypoints or sigmas requiring grad.

    Source: MARS pose training: the sum over batch, parts, pixels and stacks is its training loss.
    """
    if not isinstance(predictions, Tensor):
        predictions = _stack(predictions)
    _targets.check_targets("heatmap_mse", keypoints, sigmas, visibility)
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
    with_gradient = torch.is_grad_enabled() and predictions.requires_grad
    loss: Tensor = _operator(predictions, keypoints, sigmas, visibility, subpixel, with_gradient)[0]
    return loss


def _stack(predictions: Sequence[Tensor]) -> Tensor:
    """Stack maps (batch, parts, height, width) of one layout without changing the layout."""
    if not predictions:
        raise ValueError("heatmap_mse: predictions: expected at least one stack, got none")
    if all(p.is_contiguous(memory_format=torch.channels_last) for p in predictions):
        return torch.stack([p.permute(0, 2, 3, 1) for p in predictions]).permute(0, 1, 4, 2, 3)
    return torch.stack(list(predictions))

"""What the operators that draw Gaussian targets share: checks and the form the kernels take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasthg.ops import _arguments, _extension


def targets(
    op: str, keypoints: Any, sigmas: Any, visibility: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What describes the targets as tensors, checked.

    NumPy arrays, lists and numbers become tensors on the device of the keypoints; one sigma is that
    of all parts. Looks at shapes and devices of tensors only, never at values, so nothing waits for
    a GPU. Raises ValueError with what was expected and what was given.
    """
    keypoints = _arguments.as_tensor(op, "keypoints", keypoints)
    sigmas = _arguments.as_tensor(op, "sigmas", sigmas, keypoints.device)
    if visibility is not None:
        visibility = _arguments.as_tensor(op, "visibility", visibility, keypoints.device)
    if keypoints.dim() != 3 or keypoints.shape[-1] != 2:
        raise ValueError(
            f"{op}: keypoints: expected (batch, parts, 2), got {tuple(keypoints.shape)}"
        )
    batch, parts = keypoints.shape[:2]
    if not sigmas.dim():
        sigmas = sigmas.expand(parts)
    if sigmas.shape != (parts,) and sigmas.shape != (batch, parts):
        raise ValueError(
            f"{op}: sigmas: expected ({parts},) or ({batch}, {parts}), got {tuple(sigmas.shape)}"
        )
    if visibility is not None and visibility.shape != (batch, parts):
        raise ValueError(
            f"{op}: visibility: expected ({batch}, {parts}), got {tuple(visibility.shape)}"
        )
    for name, tensor in (("sigmas", sigmas), ("visibility", visibility)):
        if tensor is not None and tensor.device != keypoints.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, keypoints on {keypoints.device}: "
                "move them to one device"
            )
    if torch.is_grad_enabled() and (keypoints.requires_grad or sigmas.requires_grad):
        raise ValueError(
            f"{op}: no gradient with respect to keypoints and sigmas: pass them detached, or use "
            "fasthg.ops.reference"
        )
    return keypoints, sigmas, visibility


def normalise(
    keypoints: Tensor, sigmas: Tensor, visibility: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keypoints and sigmas contiguous in `dtype`, visibility contiguous uint8 (1 = draw)."""
    if visibility is not None:
        # A comparison, so that NaN and negative flags count as "not visible".
        visibility = (visibility > 0).contiguous().view(torch.uint8)
    keypoints, sigmas = (_extension.as_dtype(t, dtype).contiguous() for t in (keypoints, sigmas))
    return keypoints, sigmas, visibility


def pointers(
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    height: int,
    width: int,
    subpixel: bool,
) -> Any:
    """The extension's `Targets` over normalised tensors, which must outlive the launch."""
    batch, parts = keypoints.shape[:2]
    return _extension.native.Targets(
        keypoints=keypoints.data_ptr(),
        sigmas=sigmas.data_ptr(),
        visibility=0 if visibility is None else visibility.data_ptr(),
        sigma_stride=parts if sigmas.dim() == 2 else 0,
        batch=batch,
        parts=parts,
        height=height,
        width=width,
        subpixel=subpixel,
    )

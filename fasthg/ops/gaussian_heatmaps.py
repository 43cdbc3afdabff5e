"""Draw keypoints as Gaussian heatmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from fasthg.ops import _arguments, _extension, _gaussian_targets, reference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def _empty(
    keypoints: Tensor, height: int, width: int, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    return torch.empty(
        (*keypoints.shape[:2], height, width),
        dtype=dtype,
        device=keypoints.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _fake(
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    height: int,
    width: int,
    subpixel: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return _empty(keypoints, height, width, dtype, channels_last)


def _implementation(
    keypoints: Tensor,
    sigmas: Tensor,
    visibility: Tensor | None,
    height: int,
    width: int,
    subpixel: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    work = reference.arithmetic_dtype(dtype)
    keypoints, sigmas, visibility = _gaussian_targets.normalise(keypoints, sigmas, visibility, work)
    # The CPU kernels write float32 and float64 only.
    stored = work if _extension.backend(keypoints) == "cpu" else dtype
    heatmaps = _empty(keypoints, height, width, stored, channels_last)
    if not _extension.has_kernel(heatmaps):
        heatmaps.copy_(
            reference.gaussian_heatmaps(
                keypoints, sigmas, height, width, visibility, subpixel=subpixel
            )
        )
    elif heatmaps.numel():
        _extension.call_kernel(
            "gaussian_heatmaps",
            heatmaps,
            _gaussian_targets.pointers(keypoints, sigmas, visibility, height, width, subpixel),
            heatmaps.data_ptr(),
            channels_last,
        )
    return _extension.as_dtype(heatmaps, dtype)


_operator = _extension.register(
    "gaussian_heatmaps(Tensor keypoints, Tensor sigmas, Tensor? visibility, SymInt height,"
    " SymInt width, bool subpixel, ScalarType dtype, bool channels_last) -> Tensor",
    _implementation,
    _fake,
)


@overload
def gaussian_heatmaps(
    keypoints: Tensor,
    sigmas: Tensor | ArrayLike,
    size: int | tuple[int, int],
    visibility: Tensor | ArrayLike | None = None,
    *,
    subpixel: bool = False,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor: ...


@overload
def gaussian_heatmaps(
    keypoints: ArrayLike,
    sigmas: Tensor | ArrayLike,
    size: int | tuple[int, int],
    visibility: Tensor | ArrayLike | None = None,
    *,
    subpixel: bool = False,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> NDArray[Any]: ...


def gaussian_heatmaps(
    keypoints: Any,
    sigmas: Any,
    size: int | tuple[int, int],
    visibility: Any = None,
    *,
    subpixel: bool = False,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Any:
    """Draw one Gaussian a part: `exp(-((i - u)² + (j - v)²) / (2 sigma²))`, peak 1, no cut-off.

    Args:
        keypoints: (batch, parts, 2), (x, y) in heatmap cells, any floating dtype. A NaN or
            infinite coordinate gives an empty (all-zero) map.
        sigmas: one number, (parts,), or (batch, parts) for one of each instance; heatmap cells; a
            tensor, NumPy array, list or number, as visibility may be (in torch.compile tensors
            alone). A sigma that is zero, negative or NaN gives an empty map (looking at it first
            would stall a GPU).
        size: height = width, or (height, width), in cells.
        visibility: (batch, parts), any dtype: a map is drawn where it is > 0; None draws all.
        subpixel: False rounds the centre (u, v) to the nearest cell, half to even, as MARS does.
        dtype: of the result; None takes keypoints' own. float64 computes in float64, all others
            in float32, rounded once at the end.
        memory_format: of the result: torch.contiguous_format or torch.channels_last.

    Returns:
        (batch, parts, height, width), on keypoints' device; a NumPy array if keypoints is no
        tensor.

    Equivalent to:
        u, v = keypoints.round().unbind(-1)
        across = torch.exp(-((torch.arange(width) - u[..., None]) / sigmas[..., None]) ** 2 / 2)
        down = torch.exp(-((torch.arange(height) - v[..., None]) / sigmas[..., None]) ** 2 / 2)
        heatmaps = down[..., :, None] * across[..., None, :] * (visibility > 0)[..., None, None]

    Memory, in units of the maps: 1, each value written once (the inputs are negligible); the
    floor, but for half types on a CPU: float32 is written, read and rounded, a fifth of it.

    Error: at most 3e-7 absolute in float32 against float64 arithmetic.
    Not differentiable; `fasthg.ops.reference.gaussian_heatmaps` is (with subpixel=True).

    Raises:
        ValueError: wrong shape, mixed devices, keypoints or sigmas that require grad.
        NotImplementedError: keypoints or sigmas carry a forward-mode tangent.

    Source: MARS pose training (targets of the stacked hourglass), whose records round the centre.
    """
    from_numpy = not isinstance(keypoints, Tensor)
    keypoints, sigmas, visibility = _gaussian_targets.targets(
        "gaussian_heatmaps", keypoints, sigmas, visibility
    )
    height, width = _arguments.height_width("gaussian_heatmaps", size)
    dtype = keypoints.dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        raise ValueError(f"gaussian_heatmaps: dtype: expected a floating dtype, got {dtype}")
    channels_last = memory_format == torch.channels_last
    heatmaps = _operator(
        keypoints, sigmas, visibility, height, width, subpixel, dtype, channels_last
    )
    return heatmaps.numpy() if from_numpy else heatmaps

"""Find the peak of each heatmap, to a cell or below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from torch import Tensor

from fasthg.ops import _arguments, _extension, reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["argmax", "quarter", "dark", "plateau"]

# The order is that of `enum PeakMethod` in csrc/heatmap_peaks_math.h.
METHODS: tuple[str, ...] = get_args(Method)


def _fake(heatmaps: Tensor, method: str) -> tuple[Tensor, Tensor]:
    work = reference.arithmetic_dtype(heatmaps.dtype)
    batch, parts = heatmaps.shape[:2]
    return (
        heatmaps.new_empty((batch, parts, 2), dtype=work),
        heatmaps.new_empty((batch, parts), dtype=work),
    )


def _implementation(heatmaps: Tensor, method: str) -> tuple[Tensor, Tensor]:
    if not _extension.has_kernel(heatmaps):
        return reference.heatmap_peaks(heatmaps, method)
    xy, score = _fake(heatmaps, method)
    if score.numel():
        maps = heatmaps.to(xy.dtype) if _extension.backend(heatmaps) == "cpu" else heatmaps
        _extension.call_kernel(
            "heatmap_peaks",
            maps,
            maps.data_ptr(),
            maps.stride(),
            tuple(maps.shape),
            METHODS.index(method),
            xy.data_ptr(),
            score.data_ptr(),
        )
    return xy, score


_operator = _extension.register(
    "heatmap_peaks(Tensor heatmaps, str method) -> (Tensor, Tensor)", _implementation, _fake
)


@overload
def heatmap_peaks(heatmaps: Tensor, method: Method = "dark") -> tuple[Tensor, Tensor]: ...


@overload
def heatmap_peaks(
    heatmaps: NDArray[Any], method: Method = "dark"
) -> tuple[NDArray[Any], NDArray[Any]]: ...


def heatmap_peaks(heatmaps: Any, method: Method = "dark") -> Any:
    """Find the peak of each map.

    Every method starts from the cell of the largest value; of several, the first in row-major
    order. NaN cells never win.

    - argmax: the cell itself.
    - quarter: a quarter of a cell towards the larger neighbour, on each axis; no step on an axis
      where the cell lies at the border or the neighbours are equal (Newell et al., ECCV 2016).
    - dark: the map is blurred (Gaussian, sigma 1 cell, 7x7, taps outside the map left out and the
      rest renormalised), and a second-order Taylor step of its logarithm leads to the peak, held
      to 1 cell an axis; exact for an unblurred or blurred Gaussian away from the borders. Where
      that is not defined (within 2 cells of the border, a value <= 0 in the stencil, a Hessian
      that is singular or no maximum) it takes the quarter step (Zhang et al., CVPR 2020).
    - plateau: middle of the bounding box of the 4-connected cells that equal the maximum and hold
      the first of them. That is what labelling the cells that equal their 15x15 maximum filter
      gives for the highest label, as MARS evaluates.

    Args:
        heatmaps: (batch, parts, height, width), any floating dtype and strides; no copy is made,
            but of lists, and of NumPy arrays that are read-only, or have negative strides or a
            foreign byte order, or are fields of a packed record.
        method: one of the above.

    Returns:
        xy: (batch, parts, 2), (x, y) in heatmap cells, and score: (batch, parts), the map's value
        at the largest cell; float64 for float64 heatmaps, else float32. NaN for a map without any
        number. NumPy arrays if heatmaps is no tensor.

    Equivalent to (argmax):
        score, cell = heatmaps.flatten(2).max(-1)
        xy = torch.stack([cell % width, cell // width], -1)

    Error: cells exact, sub-cell steps 1e-4 cells in float32.
    Memory, in units of the heatmaps: 1, each value read once, and some cells around the peak again
    (plateau: all of them, while the region grows); the floor. Half types on a CPU: 5.

    Not differentiable: the result carries no gradient.

    Raises:
        ValueError: wrong shape, no cells, not floating, unknown method.
        NotImplementedError: heatmaps carry a forward-mode tangent.
    """
    from_numpy = not isinstance(heatmaps, Tensor)
    heatmaps = _arguments.as_tensor("heatmap_peaks", "heatmaps", heatmaps)
    if heatmaps.dim() != 4 or heatmaps.shape[2] < 1 or heatmaps.shape[3] < 1:
        raise ValueError(
            "heatmap_peaks: heatmaps: expected (batch, parts, height >= 1, width >= 1), "
            f"got {tuple(heatmaps.shape)}"
        )
    if not heatmaps.is_floating_point():
        raise ValueError(
            f"heatmap_peaks: heatmaps: expected a floating dtype, got {heatmaps.dtype}"
        )
    if method not in METHODS:
        raise ValueError(
            f"heatmap_peaks: method: expected one of {', '.join(METHODS)}, got {method!r}"
        )
    _extension.refuse_tangents("heatmap_peaks", [heatmaps])
    xy, score = _operator(heatmaps.detach(), method)
    return (xy.numpy(), score.numpy()) if from_numpy else (xy, score)

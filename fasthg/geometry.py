"""Affine maps between coordinate frames: image px, crop, network input px, heatmap cells.

Every frame has its origin at the top left *corner* of its top left pixel or cell, x to the right
and y downwards, so pixel `i` covers `[i, i + 1)` and its centre is at `i + 0.5`. In these frames
all maps are plain affine maps without a half-pixel term, which is the rule of MARS for keypoints:

    heatmap = (image - crop origin) * heatmap size / crop side

and it moves pixels as `cv2.resize` does. Only a library that counts from pixel centres (OpenCV's
`warpAffine`) needs `from_pixel_centres`. A box or crop is `x1 y1 x2 y2` with `x2`, `y2` exclusive.

An affine map is a `(..., 2, 3)` float64 array `A` with `out = A[:, :2] @ in + A[:, 2]`. All
functions work on a whole batch. NaN points stay NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def box_to_pixels(bbox: npt.ArrayLike, width: npt.ArrayLike, height: npt.ArrayLike) -> Int:
    """Normalised boxes as whole image px, each edge rounded half to even as MARS does.

    bbox: `(batch, 4)` x1 y1 x2 y2 as shares of width and height. width, height: `(batch,)` px.
    Returns `(batch, 4)` int64. A box that leaves the image is cut at its border, and one that is
    empty after rounding gets a side of 1 px, so that every instance has something to look at.
    """
    size = np.stack([np.asarray(width), np.asarray(height)] * 2, axis=-1)
    # float32, because the reference multiplies in float32 and a product near .5 rounds with it.
    scaled = np.asarray(bbox, np.float32) * size.astype(np.float32)
    box = np.clip(np.rint(scaled).astype(np.int64), 0, size.astype(np.int64))
    box[:, :2] = np.minimum(box[:, :2], size[:, :2] - 1)
    box[:, 2:] = np.maximum(box[:, 2:], box[:, :2] + 1)
    return box


def shift_edges(
    box: npt.ArrayLike,
    shift: npt.ArrayLike,
    width: npt.ArrayLike,
    height: npt.ArrayLike,
    *,
    clip: bool = True,
) -> Float:
    """Move each edge of a box outwards by `shift` image px.

    box, shift: `(batch, 4)` in the order x1 y1 x2 y2, image px, shift not negative. clip: stop at
    the image border.
    """
    shifted = np.asarray(box, np.float64) + np.asarray(shift, np.float64) * [-1, -1, 1, 1]
    if not clip:
        return shifted
    limit = np.stack([np.asarray(width), np.asarray(height)] * 2, axis=-1)
    return np.clip(shifted, 0, limit)


def loose_crop(
    box: npt.ArrayLike,
    factor: npt.ArrayLike,
    width: npt.ArrayLike,
    height: npt.ArrayLike,
    *,
    clip: bool = True,
) -> Int:
    """The crop around a box: padded alike on both sides of an axis.

    Per axis `pad = factor * length / 2`. With `clip`, as MARS draws it, it is at most the distance
    to the nearer image border, so an axis that touches a border gets none; without, the crop may
    leave the image, and is the one the box would have far from every border. Edges are rounded
    down to whole px, negative ones as well.
    box: `(batch, 4)` image px, with `clip` inside the image. factor: `(batch,)` or a scalar; 0 = no
    padding. Returns `(batch, 4)` int64 image px, at least 1 px a side.
    """
    box = np.asarray(box, np.float64)
    low, high = box[:, :2], box[:, 2:]
    pad = np.asarray(factor, np.float64).reshape(-1, 1) * (high - low) / 2
    if clip:
        size = np.stack([np.asarray(width), np.asarray(height)], axis=-1).astype(np.float64)
        pad = np.minimum(np.minimum(low, size - high), pad)
    crop = np.floor(np.concatenate([low - pad, high + pad], axis=1)).astype(np.int64)
    crop[:, 2:] = np.maximum(crop[:, 2:], crop[:, :2] + 1)
    return crop


def unrounded_crop(bbox: npt.ArrayLike, factor: float) -> npt.NDArray[np.float32]:
    """The crop around a box as MARS evaluates: `loose_crop` with `clip`, not rounded to px.

    bbox: `(batch, 4)` x1 y1 x2 y2 as shares of width and height. Returns `(batch, 4)` shares. An
    axis of a box that leaves the image moves inwards by as much on both sides, as there.
    """
    box = np.asarray(bbox, np.float32).astype(np.float64)
    low, high = box[:, :2], box[:, 2:]
    pad = np.minimum(np.minimum(low, 1 - high), factor * (high - low) / 2)
    return np.concatenate(
        [np.maximum(low - pad, 0), np.minimum(high + pad, 1)], axis=1, dtype=np.float32
    )


def image_to_input(
    crop: npt.ArrayLike, size: int, flip: npt.ArrayLike = False, angle: npt.ArrayLike = 0.0
) -> Float:
    """Image px to network input px in one affine map: crop, stretch, flip, rotation.

    crop: `(batch, 4)` image px. size: side of the square input, px. flip: `(batch,)` bool,
    mirrors left and right within the crop. angle: `(batch,)` degrees, counter-clockwise as seen
    on screen, about the crop's centre. The rotation comes last and turns the *stretched* square
    (as the reference does), so for an oblong crop it is a rotation with shear in image px.
    Keypoints and pixels go through this same map. Returns `(batch, 2, 3)`.
    """
    crop = np.asarray(crop, np.float64)
    centre = (crop[:, :2] + crop[:, 2:]) / 2
    scale = size / (crop[:, 2:] - crop[:, :2])
    scale_x = np.where(np.asarray(flip, bool), -scale[:, 0], scale[:, 0])
    turn = np.deg2rad(np.broadcast_to(np.asarray(angle, np.float64), scale_x.shape))
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.empty((len(crop), 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = cosine * scale_x, sine * scale[:, 1]
    matrix[:, 1, 0], matrix[:, 1, 1] = -sine * scale_x, cosine * scale[:, 1]
    matrix[:, :, 2] = size / 2 - np.einsum("bij,bj->bi", matrix[:, :, :2], centre)
    return matrix


def image_to_heatmap(to_input: npt.ArrayLike, input_size: int, heatmap_size: int) -> Float:
    """Image px to heatmap cells, given the `(batch, 2, 3)` map from image px to input px."""
    return np.asarray(to_input, np.float64) * (heatmap_size / input_size)


def invert(matrix: npt.ArrayLike) -> Float:
    """The inverse of each `(..., 2, 3)` affine map, in float64.

    Raises numpy.linalg.LinAlgError where a map squeezes the plane flat.
    """
    matrix = np.asarray(matrix, np.float64)
    linear = np.linalg.inv(matrix[..., :2])
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def apply(points: npt.ArrayLike, matrix: npt.ArrayLike) -> Float:
    """Points `(batch, count, 2)` through maps `(batch, 2, 3)`, or `(count, 2)` through `(2, 3)`."""
    matrix = np.asarray(matrix, np.float64)
    linear = np.swapaxes(matrix[..., :2], -1, -2)
    with np.errstate(invalid="ignore"):
        return np.asarray(points, np.float64) @ linear + matrix[..., None, :, 2]


def from_pixel_centres(matrix: npt.ArrayLike) -> Float:
    """The same map for coordinates that count from pixel centres, as `cv2.warpAffine` does."""
    matrix = np.array(matrix, np.float64)
    matrix[..., 2] += matrix[..., :2].sum(axis=-1) / 2 - 0.5
    return matrix


def source_window(
    input_to_image: npt.ArrayLike,
    size: int,
    margin: npt.ArrayLike,
    width: npt.ArrayLike,
    height: npt.ArrayLike,
) -> Int:
    """The image px that a bilinear warp reads, cut at the image border.

    input_to_image: `(batch, 2, 3)`. size: side of the input, px. margin: `(batch, 2)` px more in x
    and y, for a filter that runs before the warp. Returns `(batch, 4)` int64 x1 y1 x2 y2, never
    empty. Beyond the window lies either nothing that is read or the image border, so replicating
    the window's edge equals replicating the image's.
    """
    ends = np.array([0.5, size - 0.5])
    corners = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(1, 4, 2)
    read = apply(np.broadcast_to(corners, (len(np.asarray(input_to_image)), 4, 2)), input_to_image)
    margin = np.asarray(margin)
    # One px for the bilinear neighbour, one for a loader that computes positions in float32.
    low = np.floor(read.min(axis=1) - 0.5).astype(np.int64) - 1 - margin
    high = np.ceil(read.max(axis=1) + 0.5).astype(np.int64) + 1 + margin
    image = np.stack([np.asarray(width), np.asarray(height)], axis=-1).astype(np.int64)
    low = np.clip(low, 0, image - 1)
    high = np.clip(high, low + 1, image)
    return np.concatenate([low, high], axis=1)


def box_iou(one: npt.ArrayLike, other: npt.ArrayLike) -> Float:
    """Intersection over union of boxes `(..., 4)` x1 y1 x2 y2, any unit; leading dims broadcast.

    Returns `(...,)`, NaN where either box is NaN.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (one, other)]
    share: Float = common / (areas[0] + areas[1] - common)
    return share

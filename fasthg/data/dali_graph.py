"""DALI's graph from encoded images to augmented network input, with a switch for the device.

It holds no randomness and reads no file: `graph_inputs` turns a BatchSpec into its inputs. The
package comes as an argument, because only dali.py imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fasthg.data.augment import COLOUR_CBG, COLOUR_FAST, COLOUR_GBCG, COLOUR_NONE
from fasthg.data.augment_ops import BLUR_WINDOW, smoothing_radius
from fasthg.data.sampler import BatchSpec


def graph_inputs(encoded: list[bytes], plan: BatchSpec, decode_window: bool) -> tuple[Any, ...]:
    """A plan as the arrays that `build_graph`'s graph asks for, in its order."""
    draws, window = plan.draws, plan.window.astype(np.int32)
    matrix = plan.input_to_image.copy()
    if decode_window:
        # float32 keeps more of the fraction when it counts from the window.
        matrix[:, :, 2] -= window[:, :2]
    radius = smoothing_radius(plan.smoothing)
    inputs = (
        [np.frombuffer(data, np.uint8) for data in encoded],
        matrix.astype(np.float32),
        (plan.smoothing > 0).any(axis=1),
        # DALI takes sigma 0 for "derive it from the window"; its order of axes is y, x.
        np.maximum(plan.smoothing, 1e-3)[:, ::-1].copy(),
        (2 * radius + 1).astype(np.int32)[:, ::-1].copy(),
        draws.colour != COLOUR_NONE,
        draws.colour == COLOUR_FAST,
        draws.colour == COLOUR_GBCG,
        draws.colour == COLOUR_CBG,
        draws.brightness,
        draws.contrast,
        draws.saturation,
        draws.gamma_first,
        draws.gamma_last,
        draws.blur > 0,
        np.maximum(draws.blur, 1).astype(np.float32),
        draws.noise,
        draws.noise_offset[:, ::-1].copy(),
        draws.quality > 0,
        np.maximum(draws.quality, 1).astype(np.int32),
    )
    if not decode_window:
        return inputs
    return *inputs, np.ascontiguousarray(window[:, :2]), window[:, 2:] - window[:, :2]


def build_graph(
    dali: Any,
    source: Any,
    *,
    batch_size: int,
    size: int,
    bank: npt.NDArray[np.int16],
    device: torch.device,
    threads: int,
    prefetch: int,
    decode_window: bool,
) -> Any:
    """DALI's pipeline: `graph_inputs` in, uint8 (batch, size, size, 3) RGB out.

    dali: the package. source: called with a batch number for each batch's inputs. bank: the noise.
    The steps and their arithmetic are those of pixels.py and augment.py. Branches are taken per
    sample, so an augmentation costs only where it was drawn.
    """
    fn, types, math = dali.fn, dali.types, dali.math
    gpu = device.type == "cuda"
    place = "gpu" if gpu else "cpu"
    flag, real, whole = types.BOOL, types.FLOAT, types.INT32
    kinds = [
        types.UINT8, real, flag, real, whole,
        flag, flag, flag, flag, real, real, real, real, real,
        flag, real, flag, whole, flag, whole,
    ]  # fmt: skip
    dims = [1, 2, 0, 1, 1, *[0] * 12, 1, 0, 0]
    if decode_window:
        kinds, dims = [*kinds, whole, whole], [*dims, 1, 1]

    def picture(x: Any) -> Any:
        """Grey levels, rounded and clipped; arithmetic forgets the layout, so it is told again."""
        return fn.reshape(fn.cast(x, dtype=types.UINT8), layout="HWC")

    def curve(x: Any, exponent: Any) -> Any:
        return math.pow(math.max(x, 0.0), exponent)

    def spread(x: Any, factor: Any) -> Any:
        mean = fn.reductions.mean(x, axes=[0, 1], keep_dims=True)
        return (x - mean) * factor + mean

    @dali.pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=prefetch,
        enable_conditionals=True,
    )
    def graph() -> Any:
        (
            encoded, matrix, smooth, smooth_sigma, smooth_window,
            coloured, fast, gamma_before, contrast_before, brightness, contrast, saturation,
            gamma_first, gamma_last, blurred, blur_sigma, noisy, noise_at, lossy, quality,
            *window,
        ) = fn.external_source(
            source=source, num_outputs=len(kinds), batch=True, dtype=kinds, ndim=dims
        )  # fmt: skip
        decode = {"device": "mixed" if gpu else "cpu", "adjust_orientation": False}
        if gpu:
            # As libjpeg interpolates chroma, and with it OpenCV and DALI's CPU decoder.
            decode["jpeg_fancy_upsampling"] = True
        if gpu:
            # Arithmetic wants its operands on one device; conditions and settings stay on the CPU.
            brightness, contrast, saturation = brightness.gpu(), contrast.gpu(), saturation.gpu()
            gamma_first, gamma_last = gamma_first.gpu(), gamma_last.gpu()
        if decode_window:
            origin, extent = window
            image = fn.decoders.image_slice(
                encoded, start=origin, shape=extent, axis_names="WH", **decode
            )
        else:
            image = fn.decoders.image(encoded, **decode)
        if smooth:
            image = fn.gaussian_blur(image, sigma=smooth_sigma, window_size=smooth_window)
        image = fn.warp_affine(
            image, matrix=matrix, size=[size, size], interp_type=types.INTERP_LINEAR
        )
        if coloured:
            x = image / 255.0
            if fast:
                x = math.max(x + brightness, 0.0)
                value = fn.reductions.max(x, axes=[2], keep_dims=True)
                reach = value - fn.reductions.min(x, axes=[2], keep_dims=True)
                x = value - (value - x) * math.min(value / math.max(reach, 1e-6), saturation)
            else:
                if gamma_before:
                    x = curve(x, gamma_first)
                if contrast_before:
                    x = spread(x, contrast) + brightness
                else:
                    x = spread(x + brightness, contrast)
                x = curve(x, gamma_last)
            image = picture(x * 255.0)
        if blurred:
            image = fn.gaussian_blur(image, sigma=blur_sigma, window_size=BLUR_WINDOW)
        if noisy:
            plane = fn.slice(
                types.Constant(bank, device=place), start=noise_at, shape=[size, size], axes=[0, 1]
            )
            image = picture(image + fn.reshape(plane, shape=[size, size, 1]))
        if lossy:
            image = fn.jpeg_compression_distortion(image, quality=quality)
        return image

    return graph()


def build_probe(dali: Any, data: bytes, device: torch.device, *, window: bool = False) -> Any:
    """A graph that decodes one encoded image; its `run` raises RuntimeError if that fails.

    window: decode the middle quarter only.
    """
    gpu = device.type == "cuda"

    @dali.pipeline_def(
        batch_size=1,
        num_threads=1,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=1,
    )
    def probe() -> Any:
        encoded = dali.fn.external_source(
            source=lambda: [np.frombuffer(data, np.uint8)], dtype=dali.types.UINT8, ndim=1
        )
        decode = {"device": "mixed" if gpu else "cpu", "adjust_orientation": False}
        if window:
            middle = {"rel_start": [0.25, 0.25], "rel_shape": [0.5, 0.5], "axis_names": "WH"}
            return dali.fn.decoders.image_slice(encoded, **middle, **decode)
        return dali.fn.decoders.image(encoded, **decode)

    return probe()

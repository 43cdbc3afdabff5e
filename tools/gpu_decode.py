"""DALI's JPEG decoder on the GPU, a window of each image: whether it survives, and its pixels.

Run it in a process of its own: releases of the decoder are known that end the process here.

    python tools/gpu_decode.py [--device cuda]
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
import time
from typing import Any

import numpy as np

MISSING = 77  # exit status where a package is not installed
BATCH, BATCHES, WIDTH, HEIGHT = 16, 30, 1024, 570
# The decoders differ in how they round and interpolate colour.
CLOSE_LEVELS, CLOSE_SHARE = 4, 0.99


def pictures(count: int) -> list[bytes]:
    """JPEGs of smooth waves, each with another phase."""
    from PIL import Image

    columns, rows = np.arange(WIDTH)[None, :, None], np.arange(HEIGHT)[:, None, None]
    encoded = []
    for number in range(count):
        phase = number + np.arange(3)[None, None]
        wave = np.sin(columns / 37 + phase) + np.cos(rows / 23 - phase)
        file = io.BytesIO()
        Image.fromarray((127 + 60 * wave).astype(np.uint8)).save(file, "JPEG", quality=92)
        encoded.append(file.getvalue())
    return encoded


def decoder(dali: Any, encoded: list[bytes], place: str) -> Any:
    """A pipeline that decodes windows of changing place and size on "cpu" or "mixed"."""
    fn = dali.fn

    def source(batch: int) -> tuple[list[Any], ...]:
        random = np.random.default_rng(batch)
        start = random.integers(0, 200, (BATCH, 2)).astype(np.int32)
        extent = random.integers(64, 320, (BATCH, 2)).astype(np.int32)
        return [np.frombuffer(data, np.uint8) for data in encoded], list(start), list(extent)

    @dali.pipeline_def(batch_size=BATCH, num_threads=4, device_id=0 if place == "mixed" else None)
    def graph() -> Any:
        data, start, extent = fn.external_source(source=_counting(source), num_outputs=3)
        return fn.decoders.image_slice(
            data,
            start=start,
            shape=extent,
            axis_names="WH",
            device=place,
            jpeg_fancy_upsampling=True,
        )

    return graph()


def _counting(source: Any) -> Any:
    """Call `source` with 0, 1, 2 and so on."""
    batches = iter(range(10**9))
    return lambda: source(next(batches))


def main() -> int:
    """Decode, compare with the CPU's decoder, and time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu; default cuda")
    place = "mixed" if parser.parse_args().device == "cuda" else "cpu"
    for package in ("nvidia.dali", "PIL"):
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            print(f"{package} is not installed")
            return MISSING
    from gpu_report import figure
    from nvidia import dali

    encoded = pictures(BATCH)
    tried, right = decoder(dali, encoded, place), decoder(dali, encoded, "cpu")
    for _ in range(3):
        (got,), (wanted,) = tried.run(), right.run()
        got = got.as_cpu() if place == "mixed" else got
        for number in range(BATCH):
            difference = np.abs(
                got.at(number).astype(int) - np.asarray(wanted.at(number)).astype(int)
            )
            share = (difference <= CLOSE_LEVELS).mean()
            assert share >= CLOSE_SHARE, f"image {number}: {share:.3f} of the values agree"
    begin = time.perf_counter()
    for _ in range(BATCHES):
        tried.run()
    figure(f"windows decoded, {place}", BATCH * BATCHES / (time.perf_counter() - begin), "images/s")
    print(f"DALI {dali.__version__}: windows decoded on {place} as on the CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())

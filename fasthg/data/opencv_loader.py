"""Loader that decodes and augments images with OpenCV in DataLoader workers, on any platform.

Each worker makes whole batches from (sampler, step), so results do not depend on the number of
workers.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from fasthg.data.augment import COLOUR_FAST, COLOUR_NONE
from fasthg.data.augment_ops import (
    BLUR_WINDOW,
    colour_table,
    noise_bank,
    saturate,
    smoothing_radius,
)
from fasthg.data.bad_images import BadImages
from fasthg.data.batch import Batch, make_batch
from fasthg.data.forks import end_with_parent
from fasthg.data.records.jpeg import image_fault
from fasthg.data.sampler import BatchSampler, BatchSpec, CropTransforms, replacement_rows
from fasthg.errors import DataError, EnvironmentFault
from fasthg.geometry import from_pixel_centres

log = logging.getLogger(__name__)

# uint8; OpenCV's type hints promise no more than some array.
Image = npt.NDArray[Any]
# Annotations refer to the stored pixels, so the EXIF orientation is ignored.
_DECODE = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_PREFETCH = 2
# Restarts of the workers while waiting for one batch.
_RESTARTS = 2


def decode_image(data: bytes) -> Image | None:
    """An encoded image as BGR uint8 (height, width, 3), or None where it cannot be decoded."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE) if data else None


def crop_and_resize(image: Image, crop: npt.NDArray[np.float32], size: int) -> Image:
    """A crop as TensorFlow's `tf.image.crop_and_resize` samples it, with its arithmetic.

    The centres of the first and the last output px lie on the crop's borders, measured from the
    centre of the image's first px to that of its last. Bilinear between four px, without smoothing
    before; black where the crop leaves the image.
    image: uint8 (height, width, 3). crop: (4,) x1 y1 x2 y2 as shares of width and height. Returns
    float32 (size, size, 3), grey levels.
    """
    x1, y1, x2, y2 = crop
    left, right, u, in_width = _between_centres(x1, x2, image.shape[1], size)
    above, below, v, in_height = _between_centres(y1, y2, image.shape[0], size)

    def pixels(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Image:
        return image[np.ix_(rows, columns)].astype(np.float32)

    def across(rows: npt.NDArray[np.int64]) -> Image:
        first = pixels(rows, left)
        return first + (pixels(rows, right) - first) * u[:, None]

    top = across(above)
    sampled = top + (across(below) - top) * v[:, None, None]
    return np.where((in_height[:, None] & in_width)[..., None], sampled, np.float32(0))


def _between_centres(
    low: np.float32, high: np.float32, length: int, size: int
) -> tuple[
    npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.bool_]
]:
    """Of `size` samples along an axis: the px before and after, how far in between, if inside."""
    last = np.float32(length - 1)
    step = (high - low) * last / np.float32(size - 1)
    at = low * last + np.arange(size, dtype=np.float32) * step
    inside = (at >= 0) & (at <= last)
    at = np.where(inside, at, np.float32(0))
    before = np.floor(at)
    return before.astype(np.int64), np.ceil(at).astype(np.int64), at - before, inside


class CropRenderer:
    """Renders network input from encoded images as a BatchSpec describes it."""

    def __init__(self, size: int, noise_scale: float) -> None:
        """size: side of the network input, px. noise_scale: RANDOM_NOISE_SCALE."""
        self.size = size
        self.bank = noise_bank(size, noise_scale)

    def render(self, data: bytes, plan: BatchSpec, row: int, out: Image) -> str | None:
        """Write row `row` of the plan into `out`, RGB uint8 (size, size, 3).

        data: the encoded image. Returns why the image is unusable, or None.
        """
        image = decode_image(data)
        if image is None:
            return "cannot be decoded"
        image = self.augment(self.warp(image, plan, row), plan, row)
        # OpenCV works in BGR throughout; only JPEG cares, and the batch is RGB.
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out)
        return None

    def render_as_mars(self, data: bytes, crop: npt.NDArray[np.float32], out: Image) -> str | None:
        """Write `crop_and_resize` of a crop into `out`, RGB float32 (size, size, 3)."""
        image = decode_image(data)
        if image is None:
            return "cannot be decoded"
        out[:] = crop_and_resize(image, crop, self.size)[..., ::-1]
        return None

    def warp(self, image: Image, plan: BatchSpec | CropTransforms, row: int) -> Image:
        """Crop, stretch, flip and rotation in one bilinear resampling of the window."""
        x1, y1, x2, y2 = (int(edge) for edge in plan.window[row])
        region = image[y1:y2, x1:x2]
        sigma_x, sigma_y = (float(sigma) for sigma in plan.smoothing[row])
        if sigma_x or sigma_y:
            width, height = (2 * int(r) + 1 for r in smoothing_radius(plan.smoothing[row]))
            # OpenCV takes 0 for "derive sigma from the kernel"; a kernel of width 1 ignores it.
            region = cv2.GaussianBlur(
                region, (width, height), sigma_x or 1.0, sigmaY=sigma_y or 1.0
            )
        matrix = from_pixel_centres(plan.input_to_image[row] - [[0, 0, x1], [0, 0, y1]])
        return cv2.warpAffine(
            region,
            matrix,
            (self.size, self.size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def augment(self, image: Image, plan: BatchSpec, row: int) -> Image:
        """Colour, blur, noise and JPEG artefacts on a BGR image of the input's size."""
        draws = plan.draws
        order = int(draws.colour[row])
        if order == COLOUR_FAST:
            image = saturate(image, draws.brightness[row], draws.saturation[row])
        elif order != COLOUR_NONE:
            counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in range(3)]
            table = colour_table(
                np.stack(counts).astype(np.float64),
                order,
                draws.brightness[row],
                draws.contrast[row],
                draws.gamma_first[row],
                draws.gamma_last[row],
            )
            image = cv2.LUT(image, np.ascontiguousarray(table.T)[:, None])
        if draws.blur[row]:
            sigma = float(draws.blur[row])
            image = cv2.GaussianBlur(image, (BLUR_WINDOW, BLUR_WINDOW), sigma)
        if draws.noise[row]:
            x, y = draws.noise_offset[row]
            plane = self.bank[y : y + self.size, x : x + self.size]
            image = cv2.add(image, cv2.merge([plane] * 3), dtype=cv2.CV_8U)
        if draws.quality[row]:
            options = [cv2.IMWRITE_JPEG_QUALITY, int(draws.quality[row])]
            image = cast(Image, cv2.imdecode(cv2.imencode(".jpg", image, options)[1], _DECODE))
        return image


class _Rendered(NamedTuple):
    """A batch as a worker returns it: images in shared memory, the rest pickled."""

    images: torch.Tensor
    plan: BatchSpec
    faults: dict[int, str]
    error: DataError | None = None
    """Error of reading a file in the worker; the parent raises it without that traceback."""


class _Batches(Dataset[_Rendered]):
    """Dataset whose item `step` is the batch of that step."""

    def __init__(self, sampler: BatchSampler) -> None:
        self.sampler = sampler
        cfg = sampler.cfg
        self.renderer = CropRenderer(cfg.INPUT_SIZE, cfg.RANDOM_NOISE_SCALE)

    def __getitem__(self, step: int) -> _Rendered:
        plan = self.sampler.plan(step)
        try:
            return self._render(plan)
        except DataError as error:
            return _Rendered(torch.empty(0), plan, {}, error)

    def _render(self, plan: BatchSpec) -> _Rendered:
        index = self.sampler.index
        size = self.renderer.size
        as_mars = self.sampler.crops_as_mars
        dtype = torch.float32 if as_mars else torch.uint8
        images = torch.empty((len(plan), size, size, 3), dtype=dtype)
        crops = self.sampler.mars_crops(plan.instances) if as_mars else None
        pixels = images.numpy()
        bad = np.zeros(len(plan), bool)
        faults: dict[int, str] = {}
        for row, record in enumerate(plan.records.tolist()):
            fault = faults.get(record)
            if fault is None:
                data = index.jpeg(record)
                fault = image_fault(data, int(index.width[record]), int(index.height[record]))
                if fault is None and crops is not None:
                    fault = self.renderer.render_as_mars(data, crops[row], pixels[row])
                elif fault is None:
                    fault = self.renderer.render(data, plan, row, pixels[row])
            if fault is not None:
                faults[record], bad[row] = fault, True
        if faults:
            rows = replacement_rows(bad, self.sampler.training)
            images, plan = images[torch.from_numpy(rows)], plan.take(rows)
        return _Rendered(images, plan, faults)


class _Steps(Sampler[int]):
    """Steps of the next pass, set before each pass because workers outlive it."""

    def __init__(self) -> None:
        self.steps = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


class PortableLoader:
    """A Loader (see loader.py) that keeps its workers between passes.

    Only one pass runs at a time: starting another ends the one before.
    """

    name = "portable"

    def __init__(self, sampler: BatchSampler, workers: int) -> None:
        """workers: processes that make batches; 0 makes them in this one."""
        self.sampler = sampler
        self._faults = BadImages(sampler)
        self._steps = _Steps()
        self._pass = 0
        self._dataset = _Batches(sampler)
        self.workers = _affordable(workers, sampler)
        self._running: list[Any] = []  # the iterator that has the workers, if there are any
        # At its end a process of multiprocessing sends the workers of a loader that nobody closed
        # one SIGTERM, which does not end them, and waits. 20: before its queues are closed (10).
        Finalize(self, _end_workers, (self._running,), exitpriority=20)
        self._data: DataLoader[_Rendered] | None = self._with_new_workers()

    def _with_new_workers(self) -> DataLoader[_Rendered]:
        options: dict[str, Any] = {}
        if self.workers:
            # A fork starts at once and shares the index; elsewhere workers import everything anew.
            fork = "fork" in multiprocessing.get_all_start_methods()
            options = {
                "multiprocessing_context": "fork" if fork else "spawn",
                "persistent_workers": True,
                "prefetch_factor": _PREFETCH,
                "worker_init_fn": partial(_start_worker, os.getpid() if fork else None),
            }
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._steps,
            num_workers=self.workers,
            collate_fn=_unchanged,
            **options,
        )

    @property
    def corrupt(self) -> dict[int, str]:
        """Records met so far whose image cannot be used, with the reason."""
        return self._faults.records

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches start..stop-1; see loader.Loader."""
        limit = self.sampler.stop
        stop = stop if limit is None else min(stop, limit)
        rendered_batches: Iterator[_Rendered] | None = None
        mine, step, deaths = -1, start, 0
        while step < stop:
            try:
                if rendered_batches is None:
                    rendered_batches = self._start(step, stop)
                    mine = self._pass
                rendered = next(rendered_batches)
            except (RuntimeError, ConnectionError, EOFError) as error:
                if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                    raise
                # ConnectionError and EOFError: the socket that hands over a batch's memory closes
                # before torch notices that its worker has ended.
                deaths += 1
                self._replace_workers(deaths, error)
                rendered_batches = None
                continue
            if rendered.error is not None:
                raise rendered.error
            self._faults.report(rendered.faults)
            if len(rendered.plan):
                yield make_batch(rendered.images, rendered.plan)
            elif self.sampler.training:
                self._faults.give_up(step)
            if mine != self._pass:
                return
            step, deaths = step + 1, 0

    def _start(self, start: int, stop: int) -> Iterator[_Rendered]:
        """Begin a pass over steps start..stop-1."""
        if self._data is None:
            raise RuntimeError("this loader is closed")
        self._steps.steps = range(start, stop)
        self._pass += 1
        with _one_opencv_thread():
            iterator = iter(self._data)
        if self.workers:
            self._running[:] = [iterator]
        # torch's handler of SIGCHLD raises for a dead worker wherever the main thread is, inside a
        # training step as well. It is told to leave these workers alone; one that died is noticed
        # where its batch is waited for.
        running: Any = iterator
        if getattr(running, "_worker_pids_set", False):
            signal_handling._remove_worker_pids(id(running))
            running._worker_pids_set = False
        return iterator

    def _replace_workers(self, deaths: int, error: Exception) -> None:
        """Start new workers after one was killed; EnvironmentFault the third time in a row."""
        if deaths > _RESTARTS:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise EnvironmentFault(
                f"input workers are killed again and again ({reason}); "
                "lower NUM_INPUT_THREADS, memory may be short"
            ) from error
        log.warning("an input worker was killed; new ones go on at the same batch")
        self.close()
        self._data = self._with_new_workers()

    def close(self) -> None:
        """End the workers; the loader is not used afterwards."""
        self._data = None
        self._pass += 1
        _end_workers(self._running)


def _end_workers(running: list[Any]) -> None:
    """End the workers of a DataLoader's iterator, and empty the list that holds it."""
    while running:
        running.pop()._shutdown_workers()


def _affordable(workers: int, sampler: BatchSampler) -> int:
    """Number of workers whose finished batches fit into shared memory, at most `workers`."""
    if not workers or not os.path.isdir("/dev/shm"):
        return workers
    channel = 4 if sampler.crops_as_mars else 1  # bytes
    batch = sampler.batch_size * sampler.cfg.INPUT_SIZE**2 * 3 * channel
    free = shutil.disk_usage("/dev/shm").free
    fitting = int(free // (batch * (_PREFETCH + 1)))
    if fitting < workers:
        log.warning(
            "shared memory (/dev/shm, %d MB free) holds the batches of %d of %d input workers; "
            "enlarge it, e.g. docker run --shm-size=1g",
            free // 2**20,
            fitting,
            workers,
        )
    return min(workers, fitting)


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Set OpenCV to one thread while workers are forked, since processes are the parallelism.

    It must be set before the fork: OpenCV's thread pool does not survive one, and setting the
    number in the child waits for threads that exist in the parent only.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _start_worker(parent: int | None, _: int) -> None:
    """Set up a worker; `parent` is the id of the process that forked it, None where spawned."""
    # Ctrl-C, `timeout` and cluster schedulers signal every process; the parent alone decides when
    # workers end. It may have to insist: the second SIGTERM ends a worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    sys.excepthook = _report_fault
    for name in ("SIGUSR1", "SIGHUP"):  # not on Windows
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if parent is None:
        cv2.setNumThreads(1)
    else:
        # A worker that waits to hand over a batch would not notice the end of its parent.
        end_with_parent(parent)


def _report_fault(
    kind: type[BaseException], fault: BaseException, trace: TracebackType | None
) -> None:
    """A worker's `sys.excepthook`, which multiprocessing calls where handing over a batch fails.

    A parent that ends, as at Ctrl-C, may do so while it takes one: no fault of the worker.
    """
    if not isinstance(fault, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, fault, trace)


def _unchanged(rendered: Any) -> Any:
    return rendered

"""The reference recipe, input: what MARS does to an instance, as a Dataset and a DataLoader.

For benchmarks and tests only. The steps are those of MARS's TensorFlow graph, in the same order and
with what a careful author uses for each: decode the whole image, cut, resize, flip, colours in
floats, blur, noise drawn for the image, rotation in a second resampling, JPEG artefacts, then a
Gaussian for each part. Worker processes share the work. Keys that MARS's stock configuration leaves
off are refused where the recipe has no step for them.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex

Image = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]

# Samples; the sampler makes one epoch's order at a time.
ENDLESS = 1 << 62
GAMMA, BRIGHTNESS, CONTRAST = (0.75, 1.0), (-32 / 255, 32 / 255), (0.5, 1.1)


class MarsDataset(Dataset[tuple[Tensor, Tensor]]):
    """Item i: animal i of the index, augmented anew at each call.

    An image `(3, input, input)` float32, RGB in [-1, 1], and heatmaps `(parts, heatmap, heatmap)`
    float32 with peak 1. `rng` makes every draw; each worker of `reference_loader` has its own.

    Raises:
        ValueError: a key asks for a step that the recipe does not have.
    """

    def __init__(self, index: RecordIndex, cfg: Config) -> None:
        if cfg.PARTS.SCALE_SIGMAS_BY_AREA or cfg.COLOR_DISTORT_FAST or cfg.DO_RANDOM_BBOX_SHIFT:
            raise ValueError(
                "the reference recipe lacks SCALE_SIGMAS_BY_AREA, COLOR_DISTORT_FAST and "
                "DO_RANDOM_BBOX_SHIFT; turn them off"
            )
        self.index = index
        self.cfg = cfg
        self.rng = np.random.default_rng(cfg.RANDOM_SEED)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        image, points = self.crop(item)
        visible = (self.index.visibility[item] > 0) & np.isfinite(points).all(axis=1)
        image, points, visible = self.augment(image, points, visible)
        pixels = torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        pixels = pixels.permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)
        cells = points * (self.cfg.HEATMAP_SIZE / self.cfg.INPUT_SIZE)
        return pixels, torch.from_numpy(self.heatmaps(cells, visible))

    def crop(self, item: int) -> tuple[Image, Points]:
        """The animal's padded box, `(input, input, 3)` BGR, and its parts `(parts, 2)`, input px.

        Here and below, pixel i covers [i, i + 1).
        """
        cfg, size = self.cfg, self.cfg.INPUT_SIZE
        data = np.frombuffer(self.index.jpeg(int(self.index.record[item])), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        height, width = image.shape[:2]
        limits = np.float32([width, height] * 2)
        x1, y1, x2, y2 = np.clip(np.rint(self.index.bbox[item] * limits), 0, limits)
        factor = cfg.LOOSE_BBOX_PAD_FACTOR if cfg.LOOSE_BBOX_CROP else 0.0
        padded = cfg.LOOSE_BBOX_CROP and cfg.DO_RANDOM_PADDING
        if padded and self.rng.random() < cfg.RANDOM_PADDING_FREQ:
            factor = self.rng.uniform(cfg.RANDOM_PADDING_MIN, cfg.RANDOM_PADDING_MAX)
        pad_x = min(x1, width - x2, factor * (x2 - x1) / 2)
        pad_y = min(y1, height - y2, factor * (y2 - y1) / 2)
        x1, y1, x2, y2 = int(x1 - pad_x), int(y1 - pad_y), int(x2 + pad_x), int(y2 + pad_y)

        way = cv2.INTER_LINEAR if max(x2 - x1, y2 - y1) <= size else cv2.INTER_AREA
        image = cv2.resize(image[y1:y2, x1:x2], (size, size), interpolation=way)
        points = self.index.keypoints[item].astype(np.float64)
        return image, (points - [x1, y1]) * size / [x2 - x1, y2 - y1]

    def augment(
        self, image: Image, points: Points, visible: npt.NDArray[np.bool_]
    ) -> tuple[Image, Points, npt.NDArray[np.bool_]]:
        """Image and parts as `crop` gives them and visible `(parts,)`, changed at random."""
        cfg, rng, size = self.cfg, self.rng, self.cfg.INPUT_SIZE
        if rng.random() < cfg.DO_RANDOM_FLIP_LEFT_RIGHT:
            image = cv2.flip(image, 1)
            points[:, 0] = size - points[:, 0]
            for left, right in cfg.PARTS.LEFT_RIGHT_PAIRS:
                points[[left, right]] = points[[right, left]]
                visible[[left, right]] = visible[[right, left]]
        if rng.random() < cfg.DO_COLOR_DISTORTION:
            image = self.colours(image)
        if cfg.DO_RANDOM_BLURRING and rng.random() < cfg.RANDOM_BLUR_FREQ:
            image = cv2.GaussianBlur(image, (5, 5), int(rng.integers(1, cfg.MAX_BLUR + 1)))
        if cfg.DO_RANDOM_NOISE and rng.random() < cfg.RANDOM_NOISE_FREQ:
            noise = rng.standard_normal((size, size, 1), np.float32)
            noise *= 255 * cfg.RANDOM_NOISE_SCALE
            image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
        if cfg.DO_RANDOM_ROTATION and rng.random() < cfg.RANDOM_ROTATION_FREQ:
            angle = rng.uniform(-cfg.RANDOM_ROTATION_DELTA, cfg.RANDOM_ROTATION_DELTA)
            # OpenCV counts from the centre of the first pixel.
            turn = cv2.getRotationMatrix2D(((size - 1) / 2,) * 2, angle, 1)
            image = cv2.warpAffine(image, turn, (size, size))
            points = (points - 0.5) @ turn[:, :2].T + turn[:, 2] + 0.5
        if cfg.DO_JPEG_ARTIFACTS and rng.random() < cfg.RANDOM_JPEG_FREQ:
            low, high = cfg.RANDOM_JPEG_QUALITY_MIN, cfg.RANDOM_JPEG_QUALITY_MAX
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(low, high + 1))]
            image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        return image, points, visible

    def colours(self, image: Image) -> Image:
        """Gamma, brightness and contrast in one of MARS's four orders, white being 1."""
        x = image.astype(np.float32) / 255
        for step in ("gbcg", "bcg", "cbg", "cbg")[self.rng.integers(4)]:
            if step == "g":
                x = np.maximum(x, 0) ** np.float32(self.rng.uniform(*GAMMA))
            elif step == "b":
                x = x + np.float32(self.rng.uniform(*BRIGHTNESS))
            else:
                mean = np.float32(cv2.mean(x)[:3])
                x = (x - mean) * np.float32(self.rng.uniform(*CONTRAST)) + mean
        return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)

    def heatmaps(self, points: Points, visible: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """`exp(-((i - x)² + (j - y)²) / (2 sigma²))` for `(parts, 2)` heatmap cells, in float32.

        Returns `(parts, heatmap, heatmap)`; the map of an invisible part is empty.
        """
        centres = points if self.cfg.SUBPIXEL_TARGETS else np.rint(points)
        x, y = centres.astype(np.float32).T[..., None, None]
        cells = np.arange(self.cfg.HEATMAP_SIZE, dtype=np.float32)
        square = (cells - x) ** 2 + (cells[:, None] - y) ** 2
        sigmas = np.float32(self.cfg.PARTS.SIGMAS)[:, None, None]
        maps = np.exp(-square / (2 * sigmas**2))
        maps[~visible] = 0
        return maps


def reference_loader(
    index: RecordIndex, cfg: Config, workers: int = 4
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Endless batches of BATCH_SIZE; each animal once an epoch, which may end within a batch.

    Images `(batch, 3, input, input)` and heatmaps `(batch, parts, heatmap, heatmap)`, float32, on
    the CPU, pinned where there is a GPU. Order and draws follow from RANDOM_SEED and `workers`.
    Sets OpenCV to one thread in this process too: its pool does not survive a fork, so a worker
    that sets the number would wait for threads that it does not have.
    """
    cv2.setNumThreads(1)
    dataset = MarsDataset(index, cfg)
    generator = torch.Generator().manual_seed(cfg.RANDOM_SEED)
    return DataLoader(
        dataset,
        batch_size=cfg.BATCH_SIZE,
        sampler=RandomSampler(dataset, num_samples=ENDLESS, generator=generator),
        num_workers=workers,
        worker_init_fn=_start_worker,
        generator=generator,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def _start_worker(_: int) -> None:
    if cv2.getNumThreads() > 1:  # spawned, not forked
        cv2.setNumThreads(1)
    worker = get_worker_info()
    worker.dataset.rng = np.random.default_rng(worker.seed)

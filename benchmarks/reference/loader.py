"""The input recipe of MARS in plain NumPy and OpenCV, one instance after the other.

What its TensorFlow graph does to an instance, in the same order, with what a careful author would
use for it: decode the whole image, cut, resize, flip, colours in floats, blur, noise drawn per
image, rotation in a second resampling, JPEG artefacts, then a Gaussian map per part. Threads of one
process share the work, as NUM_INPUT_THREADS threads do there. For comparison only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.config import Config
from fasthg.data.index import RecordIndex

Image = npt.NDArray[np.uint8]


class MarsRecipe:
    """Endless random batches of an index: images (batch, input, input, 3) uint8 and heatmaps."""

    def __init__(self, index: RecordIndex, cfg: Config, threads: int) -> None:
        self.index = index
        self.cfg = cfg
        self.rng = np.random.default_rng(cfg.RANDOM_SEED)
        self.pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def batches(self, count: int) -> Iterator[tuple[Image, npt.NDArray[np.float32]]]:
        for _ in range(count):
            who = self.rng.integers(len(self.index), size=self.cfg.BATCH_SIZE)
            seeds = self.rng.integers(2**63, size=self.cfg.BATCH_SIZE)
            made = list(self.pool.map(self.instance, who, seeds))
            yield np.stack([image for image, _ in made]), np.stack([maps for _, maps in made])

    def instance(self, number: int, seed: int) -> tuple[Image, npt.NDArray[np.float32]]:
        cfg, rng = self.cfg, np.random.default_rng(seed)
        data = self.index.jpeg(int(self.index.record[number]))
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        x1, y1, x2, y2 = self.crop(number, image.shape[1], image.shape[0], rng)
        points = self.index.keypoints[number].astype(np.float64)
        points = (points - [x1, y1]) / [x2 - x1, y2 - y1]
        visible = self.index.visibility[number] > 0

        size = cfg.INPUT_SIZE
        way = cv2.INTER_LINEAR if max(x2 - x1, y2 - y1) <= size else cv2.INTER_AREA
        image = cv2.resize(image[y1:y2, x1:x2], (size, size), interpolation=way)
        if rng.random() < cfg.DO_RANDOM_FLIP_LEFT_RIGHT:
            image = np.ascontiguousarray(image[:, ::-1])
            points[:, 0] = 1 - points[:, 0]
            for left, right in cfg.PARTS.LEFT_RIGHT_PAIRS:
                points[[left, right]] = points[[right, left]]
                visible[[left, right]] = visible[[right, left]]
        if rng.random() < cfg.DO_COLOR_DISTORTION:
            image = self.colours(image, rng)
        if cfg.DO_RANDOM_BLURRING and rng.random() < cfg.RANDOM_BLUR_FREQ:
            image = cv2.GaussianBlur(image, (5, 5), int(rng.integers(1, cfg.MAX_BLUR + 1)))
        if cfg.DO_RANDOM_NOISE and rng.random() < cfg.RANDOM_NOISE_FREQ:
            noise = rng.normal(0, cfg.RANDOM_NOISE_SCALE, (size, size, 1)) * 255
            image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
        if cfg.DO_RANDOM_ROTATION and rng.random() < cfg.RANDOM_ROTATION_FREQ:
            angle = rng.uniform(-cfg.RANDOM_ROTATION_DELTA, cfg.RANDOM_ROTATION_DELTA)
            turn = cv2.getRotationMatrix2D((size / 2, size / 2), angle, 1)
            image = cv2.warpAffine(image, turn, (size, size))
            points = (points * size @ turn[:, :2].T + turn[:, 2]) / size
        if cfg.DO_JPEG_ARTIFACTS and rng.random() < cfg.RANDOM_JPEG_FREQ:
            low, high = cfg.RANDOM_JPEG_QUALITY_MIN, cfg.RANDOM_JPEG_QUALITY_MAX
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(low, high + 1))]
            image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
        return image, self.heatmaps(points, visible)

    def crop(
        self, number: int, width: int, height: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        cfg = self.cfg
        x1, y1, x2, y2 = np.rint(self.index.bbox[number] * [width, height, width, height])
        factor = cfg.LOOSE_BBOX_PAD_FACTOR
        if cfg.DO_RANDOM_PADDING and rng.random() < cfg.RANDOM_PADDING_FREQ:
            factor = rng.uniform(cfg.RANDOM_PADDING_MIN, cfg.RANDOM_PADDING_MAX)
        pad_x = min(x1, width - x2, factor * (x2 - x1) / 2)
        pad_y = min(y1, height - y2, factor * (y2 - y1) / 2)
        return int(x1 - pad_x), int(y1 - pad_y), int(x2 + pad_x), int(y2 + pad_y)

    def colours(self, image: Image, rng: np.random.Generator) -> Image:
        def gamma(x: np.ndarray) -> np.ndarray:
            return np.maximum(x, 0) ** np.float32(rng.uniform(0.75, 1))

        def brightness(x: np.ndarray) -> np.ndarray:
            return x + np.float32(rng.uniform(-32, 32) / 255)

        def contrast(x: np.ndarray) -> np.ndarray:
            mean = x.mean(axis=(0, 1))
            return (x - mean) * np.float32(rng.uniform(0.5, 1.1)) + mean

        orders = (
            (gamma, brightness, contrast, gamma),
            (brightness, contrast, gamma),
            (contrast, brightness, gamma),
            (contrast, brightness, gamma),
        )
        x = image.astype(np.float32) / 255
        for step in orders[rng.integers(4)]:
            x = step(x)
        return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)

    def heatmaps(self, points: np.ndarray, visible: np.ndarray) -> npt.NDArray[np.float32]:
        size = self.cfg.HEATMAP_SIZE
        maps = np.zeros((size, size, len(points)), np.float32)
        columns, rows = np.meshgrid(np.arange(size), np.arange(size))
        for part in np.flatnonzero(visible):
            x, y = np.rint(points[part] * size)
            square = (columns - x) ** 2 + (rows - y) ** 2
            maps[..., part] = np.exp(-square / (2 * self.cfg.PARTS.SIGMAS[part] ** 2))
        return maps

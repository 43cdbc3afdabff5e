"""RECIPE: keys that a configuration does not give, chosen from the data.

`measure` reads from the annotations what the choice depends on, `choose` makes it, and `resolved`
puts it into a configuration. Whatever the YAML file or the command line gives is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.split import open_index
from fasthg.metrics import plain_part

Floats = NDArray[np.float64]

_ROUNDS = 5
"""Of aligning poses to their mean: each makes the mean sharper."""
_LEAST_LABELS = 3
"""Of a pose whose direction is measured."""
_SIZES = ((128, 170.0), (192, 330.0))
"""INPUT_SIZE, px, for crops up to so many image px; `_LARGEST` for wider ones."""
_LARGEST = {"cpu": 192, "cuda": 256}
"""By device: the cost of a step grows with the square, and on a CPU more steps gain more than more
pixels (benchmarks/results/accuracy/levers)."""
_FEW_ANIMALS = 30
"""Below so many, the smallest of _SIZES. With 15 to 24 labelled frames of one film the mean error
on another was 31 px, and 50 px at 192 px (homecage-small-120s.json in benchmarks/results/accuracy
and in its levers)."""
_FIXED = 15.0
"""Animals that turn less, degrees, are filmed from one side by a camera that does not move."""
_UNEXPLAINED = 0.9
"""Turning explains poses where it brings them closer to their mean than this share of what it does
to points that move at random."""
_LEAST_TURN = 15.0
_ALIKE = 0.8
"""`Facts.mirrored` from which on mirrored poses count as possible ones."""
_EPOCHS, _GPU_EPOCHS = 200, 800
"""Times that each animal is seen, within _STEPS."""
_STEPS = (800, 8000)
_START, _START_SIZES = "rendered_mice", {"FEATURES": 64, "STEM_FEATURES": 16}
"""Weights of mice seen from above, and the network that they are of; see tools/start_weights.py."""
_LEAST_KINDS = 2
"""Kinds of a mouse's parts among the names (nose, ear, ...), from which on animals start from mice.
Two flies gain nothing from them: mean errors of two trainings with that start were 6.6 and 7.0 px,
of three without it 4.9 to 7.3 px (benchmarks/results/accuracy, flies_pair-small*)."""
_SIDE_SIGMA = 0.75
"""Sigma, heatmap cells, of animals that are seen from one side. On two such sets errors were 10 and
15 % below those with RECIPE_SIGMA, on two of animals that turn all ways they were not
(benchmarks/results/accuracy/levers)."""


@dataclass(frozen=True)
class Facts:
    """What of annotations the recipe depends on."""

    animals: int
    """Annotated instances."""
    side: float
    """Median of the longer side of their boxes, image px."""
    turned: float
    """How far animals turn in the image: the largest angle between a pose and the mean pose,
    degrees. 0 where turning brings poses no closer to their mean, as with a hand that reaches in
    front of a fixed camera; 180 where poses are too few or too sparse to tell."""
    mirrored: float | None
    """How well poses fit the mean pose, over how well they do with left and right exchanged and the
    image mirrored: about 1 where animals look alike both ways, far below where they always face one
    side. None where poses are too few or too sparse to tell."""


def measure(index: RecordIndex, pairs: Sequence[Sequence[int]]) -> Facts:
    """The facts of an index; pairs: LEFT_RIGHT_PAIRS."""
    width, height = index.width[index.record], index.height[index.record]
    boxes = index.bbox * np.stack([width, height, width, height], axis=1)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    poses = _centred(index.keypoints.astype(float), index.visibility)
    turned, mirrored = 180.0, None
    if len(poses) >= 2 * _LEAST_LABELS:
        mean, angles = _mean_pose(poses)
        turned = float(np.degrees(np.abs(angles).max()))
        fit, fit_unturned = _misfit(poses, mean, np.pi), _misfit(poses, np.nanmean(poses, 0), 0.0)
        labels = np.median(np.isfinite(poses).all(axis=2).sum(axis=1))
        # Position and size take three of the degrees of freedom, and a turn always fits one more.
        by_chance = np.sqrt((2 * labels - 4) / (2 * labels - 3))
        if np.median(fit) > _UNEXPLAINED * by_chance * np.median(fit_unturned):
            turned = 0.0
        swapped = poses.copy()
        for a, b in pairs:
            swapped[:, [a, b]] = poses[:, [b, a]]
        swapped[..., 0] *= -1
        turn = np.radians(turned)
        own, other = (np.median(_misfit(each, mean, turn)) for each in (poses, swapped))
        mirrored = float(own / max(other, 1e-9))
    return Facts(len(index), float(np.median(sides)), turned, mirrored)


def _centred(keypoints: Floats, visibility: NDArray[np.uint8]) -> Floats:
    """Poses with enough labels, about their centres and of unit size; NaN where unlabelled."""
    poses = np.where(visibility[..., None] > 0, keypoints, np.nan)
    labelled = np.isfinite(poses).all(axis=2).sum(axis=1)
    poses = poses[labelled >= _LEAST_LABELS]
    poses = poses - np.nanmean(poses, axis=1, keepdims=True)
    size = np.sqrt(np.nanmean((poses**2).sum(axis=2), axis=1))
    return poses[size > 0] / size[size > 0, None, None]


def _angles(poses: Floats, mean: Floats) -> Floats:
    """The turn of each pose that brings it closest to the mean, radians (Kabsch, in a plane)."""
    there = np.nan_to_num(poses) * np.isfinite(mean)
    target = np.nan_to_num(mean)
    along = (there * target).sum(axis=(1, 2))
    across = (there[..., 0] * target[:, 1] - there[..., 1] * target[:, 0]).sum(axis=1)
    return np.arctan2(across, along)


def _rotated(poses: Floats, angles: Floats) -> Floats:
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = poses[..., 0], poses[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=2)


def _mean_pose(poses: Floats) -> tuple[Floats, Floats]:
    """The mean of the poses after each was turned towards it, and the angles about their middle."""
    mean = poses[np.isfinite(poses).all(axis=2).sum(axis=1).argmax()]
    for _ in range(_ROUNDS):
        angles = _angles(poses, mean)
        turned = _rotated(poses, angles)
        count = np.isfinite(turned).all(axis=2).sum(axis=0)
        mean = np.where(count[:, None] > 0, np.nansum(turned, axis=0), np.nan)
        mean = mean / np.maximum(count, 1)[:, None]
    angles = _angles(poses, mean)
    middle = np.angle(np.exp(1j * angles).mean())
    mean = _rotated(mean[None], np.array([-middle]))[0]
    return mean, np.angle(np.exp(1j * (angles - middle)))


def _misfit(poses: Floats, mean: Floats, turn: float) -> Floats:
    """Mean distance of each pose from the mean pose after a turn of at most `turn` radians."""
    angles = np.clip(_angles(poses, mean), -turn, turn)
    distances = np.hypot(*np.moveaxis(_rotated(poses, angles) - mean, 2, 0))
    return np.nanmean(distances, axis=1)


class Choice(NamedTuple):
    """A key that the recipe sets."""

    key: str
    value: Any
    why: str


def choose(facts: Facts, config: Config, device: torch.device) -> list[Choice]:
    """What the recipe sets, of the keys that the configuration does not give.

    Later choices follow earlier ones and what is given: a given INPUT_SIZE decides HEATMAP_SIZE.
    """
    chosen: list[Choice] = []

    def value(key: str) -> Any:
        return next((c.value for c in chosen if c.key == key), getattr(config, key))

    def take(key: str, new: Any, why: str) -> None:
        section, _, inner = key.rpartition(".")
        of = getattr(config, section) if section else config
        if inner not in of.model_fields_set and all(key != c.key for c in chosen):
            chosen.append(Choice(key, new, why))

    crop = facts.side * (1 + config.LOOSE_BBOX_PAD_FACTOR * config.LOOSE_BBOX_CROP)
    largest = _LARGEST["cuda" if device.type == "cuda" else "cpu"]
    size = next((size for size, most in _SIZES if crop <= most), largest)
    why = f"crops are about {crop:.0f} px wide in the image"
    if facts.animals < _FEW_ANIMALS:
        size, why = _SIZES[0][0], f"{facts.animals} animals are few"
    if "HEATMAP_SIZE" in config.model_fields_set:
        take("INPUT_SIZE", 4 * config.HEATMAP_SIZE, "4 HEATMAP_SIZE")
    take("INPUT_SIZE", size, why)
    take("HEATMAP_SIZE", value("INPUT_SIZE") // 4, "INPUT_SIZE / 4")
    turns = facts.turned > _FIXED
    angle = 180.0 if turns else float(np.ceil(max(2 * facts.turned, _LEAST_TURN)))
    seen = "turning brings poses no closer to each other: seen from one side"
    if facts.turned > 0:
        seen = f"poses turn up to {facts.turned:.0f} degrees from their mean"
    take("RANDOM_ROTATION_DELTA", angle, seen)
    if facts.mirrored is not None:
        alike = turns or facts.mirrored > _ALIKE
        why = "animals turn all ways" if turns else "mirrored poses fit the mean pose"
        why = why if alike else "mirrored poses do not fit the mean pose"
        take("DO_RANDOM_FLIP_LEFT_RIGHT", 0.5 if alike else 0.0, why)
    if not turns:
        sigmas = [_SIDE_SIGMA] * config.PARTS.NUM_PARTS
        take("PARTS.SIGMAS", sigmas, "seen from one side")
    kinds = sorted({plain_part(name) for name in config.PARTS.NAMES or ()} - {""})
    same_sizes = all(getattr(config, key) == size for key, size in _START_SIZES.items())
    if turns and same_sizes and len(kinds) >= _LEAST_KINDS:
        why = f"animals turn all ways and have {', '.join(kinds)}: as rendered mice from above"
        take("INIT.WEIGHTS", _START, why)
    epochs = _GPU_EPOCHS if device.type == "cuda" else _EPOCHS
    steps = round(int(np.clip(facts.animals * epochs / config.BATCH_SIZE, *_STEPS)), -2)
    take("NUM_TRAIN_ITERATIONS", steps, f"{facts.animals} animals, BATCH_SIZE {config.BATCH_SIZE}")
    steps = value("NUM_TRAIN_ITERATIONS")
    take("LEARNING_RATE_WARMUP_STEPS", max(steps // 20, 1), "a twentieth of the steps")
    take("VALIDATE_EVERY_N_STEPS", max(steps // 8, 1), "eight validations")
    return chosen


def resolved(config: Config, device: torch.device) -> tuple[Config, list[str]]:
    """The configuration with what its recipe chooses, and a line for each choice.

    Raises:
        DataError: as `open_index`.
    """
    if config.RECIPE is None or config.DATA.TRAIN is None:
        return config, []
    index = open_index(config, config.DATA.TRAIN)
    choices = choose(measure(index, config.PARTS.LEFT_RIGHT_PAIRS), config, device)
    values = config.model_dump(mode="json", exclude_unset=True)
    values["PARTS"] = {"SIGMAS": config.PARTS.SIGMAS, **values.get("PARTS", {})}
    for choice in choices:
        section, _, key = choice.key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[key] = choice.value
    lines = [f"recipe   {choice.key}: {choice.value}: {choice.why}" for choice in choices]
    return Config.model_validate(values), lines

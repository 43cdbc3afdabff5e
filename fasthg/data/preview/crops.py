"""The crops of a preview, made by the sampler and the renderer that training has.

A batch of one instance is drawn again for each row, with other frequencies in its configuration.
`AugmentParams` depend on (seed, epoch, instance) alone, each augmentation's apart, so the last row
shows the first epoch of a training with that seed, and the rows above it the same choices apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.augment import (
    COLOUR_CBG,
    COLOUR_FAST,
    COLOUR_GBCG,
    COLOUR_NONE,
    AugmentParams,
    fixed_padding,
)
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import CropRenderer
from fasthg.data.records.jpeg import image_fault
from fasthg.data.sampler import BatchSampler, BatchSpec
from fasthg.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """frequency: the key that says how often it is drawn; needs: keys without which it never acts;
    told: what was drawn for the only instance of a batch, empty where nothing was."""

    name: str
    frequency: str
    needs: tuple[str, ...]
    told: Callable[[AugmentParams, Config], str]

    def off_by(self, cfg: Config) -> str | None:
        """The key that switches it off in a configuration, as `KEY: value`; None where it is on."""
        for key in (*self.needs, self.frequency):
            if not getattr(cfg, key):
                return f"{key}: {str(getattr(cfg, key)).lower()}"
        return None


def _margin(draws: AugmentParams, cfg: Config) -> str:
    pad = float(draws.pad[0])
    return "" if pad == fixed_padding(cfg) else f"margin {pad:.2f} of the side"


def _shift(draws: AugmentParams, cfg: Config) -> str:
    left, top, right, bottom = draws.shift[0].tolist()
    if not draws.shift[0].any():
        return ""
    return f"edges out by {left:.1f} {top:.1f} {right:.1f} {bottom:.1f} px"


def _flip(draws: AugmentParams, cfg: Config) -> str:
    return "mirrored" if draws.flip[0] else ""


def _rotation(draws: AugmentParams, cfg: Config) -> str:
    return f"rotation {draws.angle[0]:+.0f}°" if draws.angle[0] else ""


def _colour(draws: AugmentParams, cfg: Config) -> str:
    order = draws.colour[0]
    if order == COLOUR_NONE:
        return ""
    brightness = f"brightness {255 * draws.brightness[0]:+.0f}"
    contrast = f"contrast {draws.contrast[0]:.2f}"
    if order == COLOUR_FAST:
        return f"{brightness}, saturation {draws.saturation[0]:.2f}"
    steps = [contrast, brightness] if order == COLOUR_CBG else [brightness, contrast]
    first = [f"gamma {draws.gamma_first[0]:.2f}"] if order == COLOUR_GBCG else []
    return ", ".join([*first, *steps, f"gamma {draws.gamma_last[0]:.2f}"])


def _blur(draws: AugmentParams, cfg: Config) -> str:
    return f"blur sigma {draws.blur[0]} px" if draws.blur[0] else ""


def _noise(draws: AugmentParams, cfg: Config) -> str:
    return f"noise sd {255 * cfg.RANDOM_NOISE_SCALE:.1f} of 255" if draws.noise[0] else ""


def _jpeg(draws: AugmentParams, cfg: Config) -> str:
    return f"JPEG quality {draws.quality[0]}" if draws.quality[0] else ""


AUGMENTATIONS = (
    Augmentation(
        "padding", "RANDOM_PADDING_FREQ", ("LOOSE_BBOX_CROP", "DO_RANDOM_PADDING"), _margin
    ),
    Augmentation("box shift", "DO_RANDOM_BBOX_SHIFT", ("RANDOM_BBOX_SHIFT_EXTENT",), _shift),
    Augmentation("flip", "DO_RANDOM_FLIP_LEFT_RIGHT", (), _flip),
    Augmentation(
        "rotation",
        "RANDOM_ROTATION_FREQ",
        ("DO_RANDOM_ROTATION", "RANDOM_ROTATION_DELTA"),
        _rotation,
    ),
    Augmentation("colour", "DO_COLOR_DISTORTION", (), _colour),
    Augmentation("blur", "RANDOM_BLUR_FREQ", ("DO_RANDOM_BLURRING",), _blur),
    Augmentation("noise", "RANDOM_NOISE_FREQ", ("DO_RANDOM_NOISE", "RANDOM_NOISE_SCALE"), _noise),
    Augmentation("JPEG", "RANDOM_JPEG_FREQ", ("DO_JPEG_ARTIFACTS",), _jpeg),
)
EVERYTHING = "as training does"


@dataclass(frozen=True)
class Crop:
    """A network input and its targets, P parts.

    image: uint8 (input, input, 3) RGB; keypoints: float64 (P, 2) input px, NaN where there is no
    target; radii: float64 (P,) sigma of each target, input px; told: what was drawn, in words;
    border: float64 (4, 2) corners of the image, input px, where the crop leaves the image.
    """

    image: npt.NDArray[np.uint8]
    keypoints: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]
    told: str
    border: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Row:
    """One augmentation: its share of instances in words, and a crop for each instance."""

    name: str
    share: str
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Preview:
    """instances: what is shown, by name; before: their crops without augmentation; rows: after
    each augmentation that is on, the last after all; off: name of each other augmentation and the
    key that switches it off; replaced: unreadable images, for each of which the next was taken."""

    instances: tuple[str, ...]
    before: tuple[Crop, ...]
    rows: tuple[Row, ...]
    off: dict[str, str]
    replaced: tuple[str, ...]


def make_preview(
    index: RecordIndex, cfg: Config, *, count: int = 4, seed: int | None = None
) -> Preview:
    """The first `count` instances (fewer where there are fewer) that a training visits.

    seed: RANDOM_SEED unless given. Raises DataError where no image can be read.
    """
    seed = int(cfg.RANDOM_SEED) if seed is None else seed
    renderer = CropRenderer(cfg.INPUT_SIZE, cfg.RANDOM_NOISE_SCALE)

    def sampler(settings: Config) -> BatchSampler:
        return BatchSampler(index, settings, training=True, seed=seed, batch_size=1)

    plain = sampler(_only(cfg))
    steps: list[int] = []
    before: list[Crop] = []
    replaced: dict[str, None] = {}  # two animals may share an unreadable image
    for step in range(len(index)):
        if len(steps) == count:
            break
        try:
            before.append(_crop(plain, renderer, step, ()))
            steps.append(step)
        except DataError as error:
            replaced[str(error)] = None
    if not steps:
        raise DataError(
            f"{next(iter(replaced))}; no other image can be read either: fasthg data check"
        )

    on = [a for a in AUGMENTATIONS if a.off_by(cfg) is None]
    sources = [(a.name, sampler(_only(cfg, a)), _share(cfg, a), [a]) for a in on]
    sources.append((EVERYTHING, sampler(cfg), f"seed {seed}, first epoch", on))
    return Preview(
        instances=tuple(index.describe(int(plain.plan(step).instances[0])) for step in steps),
        before=tuple(before),
        rows=tuple(
            Row(name, share, tuple(_crop(made, renderer, step, told) for step in steps))
            for name, made, share, told in sources
        ),
        off={a.name: key for a in AUGMENTATIONS if (key := a.off_by(cfg)) is not None},
        replaced=tuple(replaced),
    )


def _only(cfg: Config, *on: Augmentation) -> Config:
    """The configuration with the given augmentations always drawn, and no other."""
    return cfg.model_copy(update={a.frequency: float(a in on) for a in AUGMENTATIONS})


def _share(cfg: Config, augmentation: Augmentation) -> str:
    return f"{getattr(cfg, augmentation.frequency):.0%} of instances"


def _crop(
    sampler: BatchSampler, renderer: CropRenderer, step: int, told: Sequence[Augmentation]
) -> Crop:
    """The only instance of batch `step`. Raises DataError where its image cannot be used."""
    cfg, index, plan = sampler.cfg, sampler.index, sampler.plan(step)
    record = int(plan.records[0])
    image = np.empty((renderer.size, renderer.size, 3), np.uint8)
    data = index.jpeg(record)
    fault = image_fault(data, int(index.width[record]), int(index.height[record]))
    fault = fault or renderer.render(data, plan, 0, image)
    if fault is not None:
        raise DataError(f"{index.describe_record(record)}: {fault}")
    cell = cfg.INPUT_SIZE / cfg.HEATMAP_SIZE
    targets = np.where(plan.visibility[0][:, None] > 0, plan.keypoints[0], np.nan)
    words = [text for a in told if (text := a.told(plan.draws, cfg))]
    return Crop(
        image=image,
        keypoints=targets.astype(np.float64) * cell,
        radii=plan.sigmas[0].astype(np.float64) * cell,
        told=", ".join(words) or ("nothing drawn" if told else ""),
        border=_border(plan, int(index.width[record]), int(index.height[record]), cfg.INPUT_SIZE),
    )


def _border(plan: BatchSpec, width: int, height: int, size: int) -> npt.NDArray[np.float64] | None:
    """Corners (4, 2) of the image, input px; None where the crop shows no px beyond the image."""
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    shown = geometry.apply(square * size, plan.input_to_image[0])
    limits = np.array([width, height])
    # Half a px, because corners of a crop on the border may be off by a rounding error.
    if (shown > -0.5).all() and (shown < limits + 0.5).all():
        return None
    return geometry.apply(square * limits, plan.image_to_input[0])

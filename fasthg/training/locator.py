"""Training of the locator: its configuration, its data, and the second training of a run.

The locator is a stacked hourglass of its own at low resolution, trained by the same loop as the
pose network, on whole frames of the same records. Its run folder is `<run>/locator`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from rich.console import Console

from fasthg.config import Config
from fasthg.data.frame_sampler import (
    FrameSampler,
    animal_spans,
    class_numbers,
    name_classes,
    whole_animals,
)
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import available_cores, make_loader
from fasthg.data.split import Split, make_split
from fasthg.inference.locator import (
    NO_LOCATOR,
    SETTINGS,
    Agreement,
    JudgedFrame,
    LocatorSettings,
    annotated,
    best_agreement,
    find_centres,
    in_image,
    locator_folder,
)
from fasthg.inference.predictor import Forward, Predictions, certainty, predict
from fasthg.model import build_model
from fasthg.model.loss import locator_loss
from fasthg.runs.checkpoint import load_weights, save_weights
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import load_model, weights_metadata
from fasthg.runtime.device import Precision, choose_precision
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from fasthg.training.step import TrainStep
from fasthg.training.trainer import Training, TrainResult, Validation
from fasthg.words import counted

INPUT_SIZES = (128, 192, 256, 320, 384, 448, 512)
LEAST_CELLS = 6.0
"""Cells that all but the smallest 10 % of the animals span in the locator's heatmaps."""
MOST_ITERATIONS = 2000
SHARE = 3
"""Steps of the pose network for one of the locator."""
WHOLE = 0.7
"""Share of the frame from which a median box says that frames are crops of one animal."""
LEAST_FRAMES = 4
SCORED = 32
"""Batches whose scores are those of sound poses."""
VALIDATED = 256
"""Frames of a validation at most."""
TOLD_APART_LOSS = 0.05
"""Quality that looking class by class may cost; more, and the classes look alike."""


def margins(index: RecordIndex) -> tuple[float, float]:
    """`LocatorSettings.margin`: of the animals with the most labelled parts."""
    known = np.isfinite(index.keypoints).all(axis=2)
    most = np.flatnonzero(known.sum(axis=1) == known.sum(axis=1).max())
    size = np.stack([index.width, index.height], axis=1)[index.record[most]]
    box = np.asarray(index.bbox, np.float64)[most]
    parts = index.keypoints[most] / size[:, None]
    extent = np.nanmax(parts, axis=1) - np.nanmin(parts, axis=1)
    across, down = np.median((box[:, 2:] - box[:, :2] - extent) / 2, axis=0)
    return max(float(across), 0.0), max(float(down), 0.0)


def why_not(index: RecordIndex) -> str | None:
    """Why records cannot serve to train a locator; None where they can."""
    box = np.asarray(index.bbox, np.float64).clip(0, 1)
    share = float(np.median((box[:, 2:] - box[:, :2]).prod(axis=1)))
    if share > WHOLE:
        return f"half of the boxes cover {share:.0%} of their frame or more: frames are crops"
    frames = int((index.jpeg_length > 0).sum())
    if frames < LEAST_FRAMES:
        return f"{frames} frames are too few"
    return None


def locator_config(config: Config, index: RecordIndex, classes: tuple[str, ...]) -> Config:
    """The locator's configuration: augmentation, device and loader are the run's."""
    spans = np.quantile(animal_spans(index)[whole_animals(index)], 0.1)
    fitting = [size for size in INPUT_SIZES if size / 4 * spans >= LEAST_CELLS]
    size = config.LOCATOR_INPUT_SIZE or (fitting or INPUT_SIZES[-1:])[0]
    steps = config.LOCATOR_ITERATIONS or max(
        1, min(config.NUM_TRAIN_ITERATIONS // SHARE, MOST_ITERATIONS)
    )
    names = ("centre", *(f"centre of {name}" for name in classes), "log width", "log height")
    values = config.model_dump()
    for key in ("INIT", "MARS_PROJECT", "POSE_MODEL", "RUN_NAME"):
        del values[key]
    values |= {
        "PARTS": {
            "NUM_PARTS": len(names),
            "NAMES": names,
            "SIGMAS": [1.0] * len(names),
            "LEFT_RIGHT_PAIRS": [],
        },
        "NUM_STACKS": 1,
        "FEATURES": config.LOCATOR_FEATURES,
        "STEM_FEATURES": max(4, config.LOCATOR_FEATURES // 2),
        "HEAD_INIT_SCALE": 0.01,
        "INPUT_SIZE": size,
        "HEATMAP_SIZE": size // 4,
        "SUBPIXEL_TARGETS": True,
        "LOOSE_BBOX_CROP": False,
        "DO_RANDOM_PADDING": False,
        "DO_RANDOM_BBOX_SHIFT": 0.0,
        "CROP_BORDER": "edge",
        "BATCH_SIZE": 8,
        "NUM_TRAIN_ITERATIONS": steps,
        "OPTIMIZER": "adamw",
        "INITIAL_LEARNING_RATE": 5e-3,
        "LEARNING_RATE_DECAY_TYPE": "cosine",
        "LEARNING_RATE_WARMUP_STEPS": max(1, steps // 20),
        "END_LEARNING_RATE": 0.0,
        "ADAM_BETA2": 0.999,
        "WEIGHT_DECAY": 1e-4,
        "LOSS_SCALING": "mean",
        "BATCHNORM_DECAY_WARMUP": True,
        "GRADIENT_CLIP_NORM": None,
        "VALIDATE_EVERY_N_STEPS": max(1, -(-steps // 4)),
        "EARLY_STOP_PATIENCE": None,
        "FLIP_TEST": False,
        "RECOMPUTE": "none",
        "OKS_SIGMAS": "narrow",
        "LOCATOR": "off",
    }
    return Config.model_validate(values)


class LocatorTraining(Training):
    """Training of a locator; see `Training`."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        train: Split,
        validation: Split,
        run: RunFolder,
        console: Console,
        group: ProcessGroup,
        settings: LocatorSettings,
    ) -> None:
        self.settings = settings
        super().__init__(config, device, train, validation, run, console, group)

    def _new_step(self, precision: Precision | None = None) -> TrainStep:
        model = build_model(self.config).to(self.device)
        loss = partial(locator_loss, classes=len(self.settings.classes))
        return TrainStep(self.config, model, self.device, self.group, precision, loss)

    def _describe(self, item: int) -> str:
        return self.train.index.describe_record(item)

    def _score(self, value: float) -> str:
        return f"{1 - value:.3f} of 1" if value <= 1 else "none"

    def describe(self) -> None:
        """Print what is trained."""
        index, config, most = self.train.index, self.config, self.settings.most
        animals = "one animal" if most == 1 else f"at most {most} animals"
        if self.settings.classes:
            animals += f" ({', '.join(self.settings.classes)})"
        self._print(
            f"locator  {int((index.jpeg_length > 0).sum())} frames of {animals}, "
            f"{config.INPUT_SIZE} px, {counted(config.NUM_TRAIN_ITERATIONS, 'step')}"
        )

    @torch.no_grad()
    def _measure(self, split: Split) -> Validation | None:
        frames, frames_by_class = self._find(split)
        if not frames:
            return None
        settings = self.settings
        judged = best_agreement(frames, settings.most)
        by_class = None
        if settings.classes:
            by_class = best_agreement(frames_by_class, settings.most)
        self.settings = replace(
            settings,
            **_judgement(judged, by_class),  # type: ignore[arg-type]
        )
        if self.settings.told_apart and by_class is not None:
            judged = by_class
        recall = judged.found / max(judged.animals, 1)
        text = (
            f"of the locator: {judged.found} of {counted(judged.animals, 'animal')} found, "
            f"{judged.false} boxes more in {counted(judged.frames, 'frame')}"
        )
        if judged.found:
            text += f", centres {judged.centre_px:.1f} px off"
        if judged.found and self.settings.told_apart:
            text += f", {judged.class_right} named right"
        return Validation(
            value=1 - judged.quality,
            row={
                "val_quality": judged.quality,
                "val_recall": recall,
                "val_false_per_frame": judged.false / max(judged.frames, 1),
                "val_centre_px": judged.centre_px,
            },
            text=text,
        )

    def _find(self, split: Split) -> tuple[list[JudgedFrame], list[JudgedFrame]]:
        """A split's first VALIDATED frames, of all ranks, by any animal's map and by classes."""
        index, config = split.index, self.config
        classes = self.settings.classes
        forward = Forward(self.step.ema_model(), config, self.step.precision.dtype)
        numbers, whole = class_numbers(index, classes), whole_animals(index)
        own = []
        batches = min(split.sampler.batches_per_epoch, -(-VALIDATED // config.BATCH_SIZE))
        for batch in split.loader.batches(0, batches):
            batch = batch.to(forward.device)
            maps = forward(batch.images)[-1]
            most = self.settings.most + 2
            both = [
                find_centres(maps, most, classes=len(classes), by_class=by_class)
                for by_class in ((False, True) if classes else (False,))
            ]
            matrices = batch.crop_to_image.double().numpy()
            for row, record in enumerate(batch.instance.tolist()):
                size = int(index.width[record]), int(index.height[record])
                animals, truth = annotated(index, record)
                found = [in_image(*cells[row], matrices[row], *size) for cells in both]
                annotation = truth, numbers[animals], whole[animals]
                own.append((record, [JudgedFrame(each, *annotation) for each in found]))
        every = [frame for frames in self.group.gathered(own) for frame in frames]
        every.sort(key=lambda frame: frame[0])
        judged = [frame[1] for frame in every]
        return [each[0] for each in judged], [each[-1] for each in judged]

    def _go_on(self) -> str:
        return f"fasthg train --locator {self.run.path.parent}"

    def _metadata(self) -> dict[str, str]:
        metadata = weights_metadata(self.config, self.done, float("inf"))
        return {**metadata, SETTINGS: self.settings.to_json()}


def _judgement(judged: Agreement, by_class: Agreement | None) -> dict[str, float | bool]:
    """Threshold and use of the classes, as `LocatorSettings` has them."""
    if by_class is None:
        return {"threshold": float(judged.threshold), "told_apart": False}
    # A box of the wrong class counts as one missed and one false.
    wrong = by_class.found - by_class.class_right
    named = by_class.quality * (1 - wrong / max(by_class.found, 1))
    apart = named >= judged.quality - TOLD_APART_LOSS
    return {"threshold": float((by_class if apart else judged).threshold), "told_apart": apart}


@contextlib.contextmanager
def open_frames(
    config: Config,
    train: RecordIndex,
    classes: tuple[str, ...],
    most: int,
    device: torch.device,
    group: ProcessGroup,
) -> Iterator[tuple[Split, Split]]:
    """Frames to train on and to validate on; without DATA.VAL those of the training."""
    processes = min(config.NUM_INPUT_THREADS, available_cores())
    patterns = config.DATA.VAL
    validation = train
    if patterns is not None:
        # Parts of the records, not of the locator.
        validation = RecordIndex.open(patterns, train.num_parts, processes=processes)
    with contextlib.ExitStack() as stack:
        splits = []
        for index, training in ((train, True), (validation, False)):
            sampler = FrameSampler(
                index,
                config,
                classes=classes,
                most=most,
                training=training,
                seed=int(config.RANDOM_SEED),
                rank=group.rank,
                ranks=group.size,
            )
            threads = config if training else config.model_copy(update={"NUM_INPUT_THREADS": 0})
            split = Split(index, sampler, make_loader(sampler, threads, device))
            stack.callback(split.close)
            splits.append(split)
        yield splits[0], splits[1]


def pose_scores(
    config: Config,
    run: RunFolder,
    device: torch.device,
    train: Split,
    validation: Split | None,
    group: ProcessGroup,
) -> tuple[float, float]:
    """`LocatorSettings.pose_scores` by a run's best weights; without DATA.VAL, of training data."""
    model, _ = load_model(run.best, config)
    precision = choose_precision(config.PRECISION, device, config.FEATURES).dtype
    with contextlib.ExitStack() as stack:
        split = validation
        if split is None:
            ranks = {"rank": group.rank, "ranks": group.size}
            split = make_split(config, train.index, device, training=False, **ranks)
            stack.callback(split.close)
        loaded = split.loader.batches(0, min(split.sampler.batches_per_epoch, SCORED))
        own = predict(model.to(device), loaded, split.index, config, precision)
    every = Predictions.merged(group.gathered(own[config.DECODE]))
    if not len(every):
        return 0.0, 1.0
    low, middle = np.quantile(certainty(every.scores), [0.01, 0.5])
    return float(low), float(middle)


def train_locator(
    config: Config,
    run: RunFolder,
    console: Console,
    device: torch.device,
    train: Split,
    validation: Split | None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> TrainResult | None:
    """Train the locator of a run, or go on with it; None where there is nothing to train.

    A locator that is done learns the scores of the pose network's best weights again: these may
    have been trained on.

    Args:
        config: the run's configuration.
        run: the run's folder, with the pose network's best weights, locked by the caller.
        train, validation: the run's splits.
    """
    index = train.index

    def say(line: str) -> None:
        if group.first:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    reason = why_not(index)
    if reason is not None:
        say(f"locator  none: {reason}")
        if group.first:
            crops = {"reason": reason, "frames_are_crops": reason.endswith("crops")}
            run.write_json(NO_LOCATOR, crops)
        return None
    classes = name_classes(index)
    own = locator_config(config, index, classes)
    most = int(np.bincount(index.record).max())
    low, middle, high = np.quantile(animal_spans(index)[whole_animals(index)], [0.01, 0.5, 0.99])
    settings = LocatorSettings(
        classes=classes,
        most=most,
        sizes=(float(low), float(middle), float(high)),
        margin=margins(index),
        pose_scores=pose_scores(config, run, device, train, validation, group),
    )
    folder = RunFolder(locator_folder(run.path))
    resumed = folder.last.exists()
    if group.first and not resumed:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(own)
        folder.truncate_log(0)
    with open_frames(own, index, classes, most, device, group) as (frames, validated):
        training = LocatorTraining(
            *(own, device, frames, validated, folder, console, group, settings)
        )
        if resumed:
            training.resume()
        if training.done < own.NUM_TRAIN_ITERATIONS:
            training.describe()
            return training.fit()
    if group.first and folder.best.exists():
        tensors, metadata = load_weights(folder.best)
        known = LocatorSettings.from_json(metadata[SETTINGS])
        renewed = replace(known, pose_scores=settings.pose_scores)
        save_weights(folder.best, tensors, {**metadata, SETTINGS: renewed.to_json()})
    say(f"locator  is trained; LOCATOR_ITERATIONS above {training.done} trains it on")
    return None

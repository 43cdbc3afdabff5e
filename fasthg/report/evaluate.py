"""Evaluation of a run: errors, PCK and OKS on a split, predictions, and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fasthg import metrics
from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import make_loader
from fasthg.data.sampler import BatchSampler
from fasthg.data.split import open_index
from fasthg.errors import ConfigError, DataError
from fasthg.files import write_text
from fasthg.inference.locator import load_locator, locator_folder
from fasthg.inference.plots import draw_instances, save_picture
from fasthg.inference.predictor import Predictions, predict
from fasthg.model import StackedHourglass
from fasthg.ops.heatmap_peaks import METHODS, Method
from fasthg.report.found import found_boxes, sentence
from fasthg.report.sigmas import origin
from fasthg.runs.run_folder import RunFolder, plain
from fasthg.runs.weights import WeightsFile, load_model
from fasthg.runtime.device import choose_device, choose_precision
from fasthg.runtime.tables import print_table
from fasthg.words import counted

Rows = NDArray[np.int64]

ERRORS = "errors.csv"
"""File of an evaluation with a row for each label."""
PICTURED = 12
"""Instances in each picture."""


def default_split(config: Config) -> str | None:
    """test where the configuration has it, else val, else none."""
    for split in ("test", "val"):
        if getattr(config.DATA, split.upper()) is not None:
            return split
    return None


def boxes_to_measure(run: RunFolder, config: Config) -> str:
    """found, where the run has a locator and crops are those of training; given otherwise."""
    located = RunFolder(locator_folder(run.path)).best.exists()
    return "found" if located and config.EVAL_CROP == "training" else "given"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one evaluation, where its files lie, and what they were computed from."""

    metrics: dict[str, Any]
    folder: Path
    predictions: Predictions
    index: RecordIndex

    def print(self, console: Console) -> None:
        """Print tables for a person, then the paths of the pictures."""
        m = self.metrics
        crops = ", crops as MARS evaluates" if m["crop"] == "mars" else ""
        console.print(
            f"\n{m['split']}: {counted(m['instances'], 'instance')}, weights of step {m['step']}, "
            f"decode {m['decode']}{crops}; errors in image px",
            highlight=False,
        )
        if m["unreadable_images"]:
            console.print(f"unreadable images left out: {m['unreadable_images']}")
        print_table(console, *_error_table(m["error_px"], m["pck"]))
        if m["error_cm"] is not None:
            console.print("\nerrors in cm")
            print_table(console, *_error_table(m["error_cm"], None))
        print_table(console, *_oks_table(m))
        if self._differs_from_coco():
            console.print(metrics.UNLIKE_COCO, highlight=False, soft_wrap=True)
        if len(m["decodes"]) > 1:
            print_table(console, *_decode_table(m))
        if m["found_boxes"] is not None:
            console.print(sentence(m["found_boxes"]), highlight=False, soft_wrap=True)
        for name in ("predictions.png", "worst.png"):
            console.print(str(self.folder / name), highlight=False, soft_wrap=True)

    def _differs_from_coco(self) -> bool:
        """Whether a frame has several animals, or an animal no label. Crowds are not recorded."""
        frames = self.index.record[self.predictions.instance]
        labelled = (self.predictions.visibility > 0).any(axis=1)
        return len(np.unique(frames)) < len(frames) or not bool(labelled.all())


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


_Table = tuple[list[str], list[list[str]]]
"""Names of the columns, and rows of cells."""


def _error_table(errors: dict[str, Any], pck: dict[str, Any] | None) -> _Table:
    keys = ("mean", "median", "p90", "p95", "rmse")
    radii = [f"≤{radius:g}px" for radius in pck["radii_px"]] if pck else []
    table = []
    rows: list[tuple[str, Any]] = [*errors["parts"].items(), ("all", errors["all"])]
    for name, spread in rows:
        cells = [*(_number(spread[k]) for k in keys), str(spread["count"])]
        if pck:
            shares = pck["all"] if name == "all" else pck["parts"][name]
            cells += ["-" if s is None else f"{s:.0%}" for s in shares]
        table.append([name, *cells])
    return ["part", *keys, "labels", *radii], table


def _oks_table(m: dict[str, Any]) -> _Table:
    keys = ("ap", "ap50", "ap75", "ar")
    rows = [[rule, *(_number(row[k], 3) for k in keys)] for rule, row in m["oks"]["area"].items()]
    sigmas = m["oks"]["sigmas"]
    what = f"sigmas {sigmas}" if sigmas.startswith("measured") else f"{sigmas} sigmas"
    return [f"OKS, {what}", "AP", "AP50", "AP75", "AR"], rows


def _decode_table(m: dict[str, Any]) -> _Table:
    keys = ("mean", "median", "rmse")
    rows = [[name, *(_number(spread[k]) for k in keys)] for name, spread in m["decodes"].items()]
    return ["decode", *keys], rows


def measure(predictions: Predictions, config: Config) -> dict[str, Any]:
    """Errors, PCK and OKS of predictions, ready for JSON.

    Errors are distances in image px (and cm with PIXELS_PER_CM) over labelled parts. OKS is given
    under two area rules: the annotation's area, as its sigmas were derived, and the padded crop's,
    as the reference divides (more lenient); of all parts of an animal, and of each part alone.
    """
    names = config.PARTS.NAMES
    distances = predictions.errors()
    summary = metrics.summary(distances, names)
    pck = metrics.pck(distances, config.PCK_RADII)
    sigmas = metrics.oks_sigmas(names, config.OKS_SIGMAS)
    areas = {"annotation's area": predictions.area, "padded crop's area": predictions.crop_area}

    def precision(parts: slice) -> dict[str, Any]:
        scores = predictions.scores[:, parts].mean(axis=1)
        by_area = metrics.precision_by_area(distances[:, parts], sigmas[parts], scores, areas)
        return {rule: asdict(row) for rule, row in by_area.items()}

    in_cm = None
    if config.PIXELS_PER_CM is not None:
        in_cm = _spreads(metrics.summary(distances / config.PIXELS_PER_CM, names))
    return {
        "instances": len(predictions),
        "loss": predictions.loss,
        "error_px": _spreads(summary),
        "error_cm": in_cm,
        "pck": {
            "radii_px": list(config.PCK_RADII),
            "parts": {name: pck[:, i] for i, name in enumerate(names)},
            "all": pck[:, -1],
        },
        "oks": {
            "sigmas": origin(config),
            "area": precision(slice(None)),
            "parts": {name: precision(slice(i, i + 1)) for i, name in enumerate(names)},
        },
    }


def _spreads(summary: metrics.Summary) -> dict[str, Any]:
    return {
        "all": asdict(summary.overall),
        "parts": {name: asdict(spread) for name, spread in summary.parts.items()},
    }


def rows_by_animal(predictions: Predictions, index: RecordIndex) -> dict[str, Rows]:
    """Rows of the predictions of each animal that the records name, by its name.

    Nothing where they name none, or one alone.
    """
    number = index.name[predictions.instance]
    found = {
        name: np.flatnonzero(number == place)
        for place, name in enumerate(index.names)
        if (number == place).any()
    }
    return found if len(found) > 1 else {}


def _by_animal(predictions: Predictions, index: RecordIndex, config: Config) -> dict[str, Any]:
    """Errors and PCK over all parts of each animal that the records name."""
    distances = predictions.errors()
    return {
        name: {
            "error_px": asdict(metrics.spread(distances[rows])),
            "pck": metrics.pck(distances[rows], config.PCK_RADII)[:, -1],
        }
        for name, rows in rows_by_animal(predictions, index).items()
    }


def worst_rows(predictions: Predictions, count: int) -> list[int]:
    """Rows with the largest mean error, the worst first; unlabelled instances are left out."""
    distances = predictions.errors()
    labelled: np.ndarray = np.any(np.isfinite(distances), axis=1)
    mean = np.full(len(distances), -np.inf)
    mean[labelled] = np.nanmean(distances[labelled], axis=1)
    order = np.argsort(-mean, kind="stable")
    return [int(row) for row in order[:count] if labelled[row]]


def evaluate_model(
    model: StackedHourglass,
    index: RecordIndex,
    config: Config,
    methods: Sequence[Method],
) -> tuple[dict[str, Predictions], int]:
    """Predictions on every instance of `index` for each decode method; the unreadable images."""
    device = choose_device(config.DEVICE)
    sampler = BatchSampler(index, config, training=False, seed=int(config.RANDOM_SEED), final=True)
    loader = make_loader(sampler, config, device)
    try:
        batches: Iterator[Batch] = loader.batches(0, sampler.batches_per_epoch)
        precision = choose_precision(config.PRECISION, device, config.FEATURES).dtype
        result = predict(model.to(device), batches, index, config, precision, methods=methods)
    finally:
        loader.close()
    if not len(result[methods[0]]):
        raise DataError("no image could be read; run: fasthg data check")
    return result, len(loader.corrupt)


def check_frame(index: RecordIndex, split: str, number: int) -> None:
    """Raise ConfigError where the files have no record of this number, from 0."""
    if not 0 <= number < index.num_records:
        raise ConfigError(
            f"--frame {number}: {split} has {counted(index.num_records, 'frame')}; give "
            f"0 to {index.num_records - 1}"
        )


def evaluate_run(
    run: RunFolder | WeightsFile,
    config: Config,
    split: str,
    data: Sequence[str] | None,
    *,
    decode: str | None = None,
    boxes: str = "given",
    out: Path | None = None,
    frame: int | None = None,
) -> Evaluation:
    """Evaluate a run's best weights and write its folder of the split, or another.

    Args:
        run: the run folder, or weights alone.
        config: its configuration, with overrides.
        split: train, val, test; or a name for `data`.
        data: TFRecord globs in place of the split's.
        decode: method of `heatmap_peaks`, or "all" to compare them; DECODE where None.
        boxes: "given" in the annotations; "found" measures those of the run's locator as well.
        out: the folder to write in place of the run's.
        frame: number of one that will be pictured, which is refused first where there is none such.

    Returns:
        The evaluation; `metrics.json`, `predictions.json`, `errors.csv`, `predictions.png` and
        `worst.png` lie in its folder.

    Raises:
        ConfigError: the split is not configured, the decode is unknown, or there is no locator or
            no such frame.
        DataError: the weights or the data cannot be read.
    """
    if boxes not in ("given", "found"):
        raise ConfigError(f"--boxes {boxes}: use given or found")
    patterns = data or getattr(config.DATA, split.upper(), None)
    if not patterns:
        raise ConfigError(f"DATA.{split.upper()}: not set; give --data GLOB or another --split")
    main = config.DECODE if decode in (None, "all") else str(decode)
    if main not in METHODS:
        raise ConfigError(f"decode {main!r}: use one of {', '.join(METHODS)}, all")
    others = METHODS if decode == "all" else ()
    methods = cast(list[Method], [main, *(m for m in others if m != main)])
    locator = None
    if boxes == "found":
        if config.EVAL_CROP == "mars":
            raise ConfigError(
                "--boxes found: found boxes are cropped as in training; leave out EVAL_CROP: mars"
            )
        locator = load_locator(run, config) if isinstance(run, RunFolder) else None
        if locator is None:
            raise ConfigError(
                f"--boxes found: {run.path} has no locator; run: fasthg train --locator RUN"
            )
    model, metadata = load_model(run.best, config)
    index = open_index(config, patterns)
    if frame is not None:
        check_frame(index, split, frame)
    every, unreadable = evaluate_model(model, index, config, methods)
    predictions = every[main]
    measured = plain(
        {
            "split": split,
            "data": [Path(f).name for f in index.files],
            "step": json.loads(metadata.get("step", "null")),
            "decode": main,
            "flip_test": config.FLIP_TEST,
            "crop": config.EVAL_CROP,
            "unreadable_images": unreadable,
            **measure(predictions, config),
            "animals": _by_animal(predictions, index, config),
            "found_boxes": found_boxes(locator, model, index, config, predictions)
            if locator is not None
            else None,
            "decodes": {m: asdict(metrics.spread(p.errors())) for m, p in every.items()},
        }
    )
    folder = out or run.eval_folder(split)
    write_text(folder / "metrics.json", json.dumps(measured, indent=2) + "\n")
    write_text(folder / "predictions.json", json.dumps(_rows(predictions, index, config)) + "\n")
    write_text(folder / ERRORS, _errors_csv(predictions, index, config))
    rows = np.linspace(0, len(predictions) - 1, min(PICTURED, len(predictions))).astype(int)
    mean = measured["error_px"]["all"]["mean"]
    title = f"{split}: {counted(len(predictions), 'instance')}, mean error {_number(mean)} px"
    picture = draw_instances(index, predictions, [int(r) for r in rows], config, title)
    save_picture(picture, folder / "predictions.png")
    worst = worst_rows(predictions, PICTURED)
    picture = draw_instances(index, predictions, worst, config, f"{split}: the largest errors")
    save_picture(picture, folder / "worst.png")
    return Evaluation(measured, folder, predictions, index)


def _errors_csv(predictions: Predictions, index: RecordIndex, config: Config) -> str:
    """A row for each label: what it is of, its error and peak, both positions; image px."""
    distances = predictions.errors()
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    names = ("image_id", "object", "animal", "part", "error_px", "score", "x", "y")
    table.writerow([*names, "label_x", "label_y", "visibility"])
    for row, part in zip(*np.nonzero(~np.isnan(distances)), strict=True):
        instance = int(predictions.instance[row])
        name = int(index.name[instance])
        numbers = (
            distances[row, part],
            predictions.scores[row, part],
            *predictions.keypoints[row, part],
            *predictions.truth[row, part],
        )
        table.writerow(
            [
                index.image_id(int(index.record[instance])),
                int(index.object_number[instance]),
                index.names[name] if name >= 0 else "",
                config.PARTS.NAMES[part],
                *(f"{number:.3f}" for number in numbers),
                int(predictions.visibility[row, part]),
            ]
        )
    return out.getvalue()


def _rows(predictions: Predictions, index: RecordIndex, config: Config) -> dict[str, Any]:
    rows = []
    for row, instance in enumerate(predictions.instance):
        record = int(index.record[instance])
        rows.append(
            {
                "image_id": index.image_id(record),
                "object": int(index.object_number[instance]),
                "keypoints": plain(np.round(predictions.keypoints[row], 3)),
                "scores": plain(predictions.scores[row].astype(float)),
                "truth": plain(predictions.truth[row]),
                "visibility": plain(predictions.visibility[row]),
            }
        )
    return {"parts": list(config.PARTS.NAMES), "unit": "image px", "instances": rows}

"""Labels that trained networks contradict: `fasthg data check --with RUN`.

A label is doubtful where it is far from every network's prediction, by the errors that the network
usually has at that part, and the networks agree with each other. A network may have learnt the
wrong label of a frame that it was trained on, so that a frame is judged by the runs that were not
trained on it, if there is one: with a run for each fold of the data, every label is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fasthg import metrics
from fasthg.config import Config
from fasthg.config.keys import Parts
from fasthg.data.check.problems import CONTRADICTED, Problem
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import ConfigError, DataError, FasthgError
from fasthg.report.evaluate import evaluate_model
from fasthg.runs.weights import load_model, trained
from fasthg.words import counted

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FAR = 5.0
"""Times the median error of a part from which a label is far from a prediction."""
AGREED = 2.0
"""Times the median error of a part up to which predictions lie about their mean."""
LEAST_PX = 3.0
"""Distance, image px, below which no label is doubted: people point no better."""
_ENOUGH = 10
"""Labels of a part from which their median error is used alone."""


@dataclass(frozen=True)
class Seen:
    """What one run's network sees in the animals of a split.

    Attributes:
        run: its name, for messages.
        points: `(instances, parts, 2)` image px; NaN where the image cannot be read.
        trained: `(instances,)` whether the run was trained on the frame.
    """

    run: str
    points: Floats
    trained: Bools


def look(
    paths: Sequence[Path], settings: Config, indices: Mapping[str, RecordIndex]
) -> tuple[dict[str, list[Seen]], list[str]]:
    """Let the best weights of some runs predict the animals of some splits, in the labels' boxes.

    Args:
        paths: run folders or weights files.
        settings: of the data; PARTS and DEVICE are read.
        indices: split -> its index.

    Returns:
        Split -> what each run sees; and notes on what the runs were trained on.

    Raises:
        ConfigError: a run has other parts.
        DataError: a path is no run, or its weights cannot be read.
        EnvironmentFault: DEVICE is not there.
    """
    seen: dict[str, list[Seen]] = {split: [] for split, index in indices.items() if len(index)}
    notes = []
    for path in paths:
        run = trained(path)
        config = run.config([f"DEVICE={settings.DEVICE}"])
        if config.PARTS.NAMES != settings.PARTS.NAMES:
            raise ConfigError(
                f"--with {path}: its parts are {', '.join(config.PARTS.NAMES)}, those of the data "
                f"{', '.join(settings.PARTS.NAMES)}; give a run that was trained on such labels"
            )
        model, _ = load_model(run.best, config)
        known = _frames_trained_on(config)
        shared = frames = 0
        for split, runs in seen.items():
            index = indices[split]
            points = np.full(index.keypoints.shape, np.nan)
            try:
                found = evaluate_model(model, index, config, [config.DECODE])[0][config.DECODE]
                points[found.instance] = found.keypoints
            except DataError as error:
                notes.append(f"{path}, {split}: {error}")
            own = np.array(
                [_frame(index, record) in (known or ()) for record in range(index.num_records)],
                bool,
            )
            shared, frames = shared + int(own.sum()), frames + len(own)
            runs.append(Seen(str(path), points, own[index.record]))
        notes += _told(path, shared, frames, known is not None)
    return seen, notes


def _frame(index: RecordIndex, record: int) -> tuple[str, int]:
    """What tells a frame wherever its record lies: its id and the bytes of its image."""
    return index.image_id(record), int(index.jpeg_length[record])


def _frames_trained_on(config: Config) -> set[tuple[str, int]] | None:
    """The frames of DATA.TRAIN; None where its files are gone."""
    if config.DATA.TRAIN is None:
        return None
    try:
        index = RecordIndex.open(config.DATA.TRAIN, config.PARTS.NUM_PARTS)
    except FasthgError:
        return None
    return {_frame(index, record) for record in range(index.num_records)}


def _told(path: Path, shared: int, frames: int, known: bool) -> list[str]:
    if not known:
        return [f"{path}: its training data are gone; it may have learnt wrong labels of these"]
    if not shared:
        return []
    return [
        f"{path}: was trained on {shared} of these {counted(frames, 'frame')}, and may have learnt "
        "their wrong labels; runs that were not trained on them, as one for each fold, find more"
    ]


def typical(indices: Mapping[str, RecordIndex], seen: Mapping[str, Sequence[Seen]]) -> Floats:
    """Median errors of each run at each part.

    Returns:
        `(runs, 2, parts)` image px: of frames that the run was not trained on, then of those that
        it was; of all where one kind has few labels. NaN where a part has no label.
    """
    medians = []
    for number in range(min((len(runs) for runs in seen.values()), default=0)):
        errors = np.concatenate([_errors(indices[s], runs[number]) for s, runs in seen.items()])
        own = np.concatenate([runs[number].trained for runs in seen.values()])
        every = _median(errors)
        of_kinds = []
        for kind in (False, True):
            some = errors[own == kind]
            enough = (~np.isnan(some)).sum(axis=0) >= _ENOUGH
            of_kinds.append(np.where(enough, _median(some), every))
        medians.append(of_kinds)
    return np.array(medians)


def _errors(index: RecordIndex, seen: Seen) -> Floats:
    """`(instances, parts)` image px; NaN where unlabelled or not seen."""
    errors = metrics.errors(seen.points, index.keypoints.astype(np.float64), index.visibility)
    # There a missing prediction is an infinite error; here it is no opinion.
    return np.where(np.isfinite(seen.points).all(axis=-1), errors, np.nan)


def _median(errors: Floats) -> Floats:
    """`(parts,)`; NaN where there is none."""
    found = np.full(errors.shape[1], np.nan)
    for part, column in enumerate(errors.T):
        known = column[~np.isnan(column)]
        if len(known):
            found[part] = np.median(known)
    return found


@dataclass(frozen=True)
class _Doubt:
    """One label, where its judges see it (image px), and by how much they usually err there."""

    part: int
    at: tuple[float, float]
    off: float
    usual: float
    judges: str
    partner: int | None
    """The part of the other side that is labelled there."""


def contradicted(
    indices: Mapping[str, RecordIndex], seen: Mapping[str, Sequence[Seen]], parts: Parts
) -> Iterator[Problem]:
    """The labels that all networks which judge their frame see in another place, the same one.

    Two labels of an animal that are exchanged are one problem.

    Args:
        indices, seen: by split, as of `look`.
        parts: names, and pairs of left and right.
    """
    usual = typical(indices, seen)
    for split, runs in seen.items():
        index = indices[split]
        for instance, doubts in _doubts(index, runs, usual, parts).items():
            by_part = {doubt.part: doubt for doubt in doubts}
            for doubt in doubts:
                other = by_part.get(-1 if doubt.partner is None else doubt.partner)
                both = other is not None and other.partner == doubt.part
                if both and other is not None and other.part < doubt.part:
                    continue  # told with its partner
                told = [doubt, other] if both and other is not None else [doubt]
                record = int(index.record[instance])
                yield Problem(
                    CONTRADICTED,
                    split,
                    index.describe(instance),
                    _detail(told, parts.NAMES),
                    record,
                    instance,
                    tuple(each.part for each in told),
                    max(each.off / max(each.usual, LEAST_PX / FAR) for each in told),
                    tuple(each.at for each in told),
                )


def _doubts(
    index: RecordIndex, runs: Sequence[Seen], usual: Floats, parts: Parts
) -> dict[int, list[_Doubt]]:
    """The doubtful labels of a split, by instance."""
    errors = np.stack([_errors(index, run) for run in runs])
    points = np.stack([run.points for run in runs])
    own = np.stack([run.trained for run in runs])
    # Those that were not trained on the frame judge it, where there are such.
    judges = np.where(own.all(axis=0), True, ~own)
    scale = np.where(own[..., None], usual[:, None, 1], usual[:, None, 0])
    far = errors > np.maximum(FAR * scale, LEAST_PX)  # NaN is not far
    found: dict[int, list[_Doubt]] = {}
    for instance, part in np.argwhere((far | ~judges[..., None]).all(axis=0)).tolist():
        judging = judges[:, instance]
        where, limit = points[judging, instance, part], scale[judging, instance, part]
        middle = where.mean(axis=0)
        if (np.linalg.norm(where - middle, axis=1) > AGREED * limit).any():
            continue
        error = float(limit.mean())
        count, known = int(judging.sum()), bool(own[judging, instance].all())
        doubt = _Doubt(
            part,
            (float(middle[0]), float(middle[1])),
            float(np.linalg.norm(middle - index.keypoints[instance, part])),
            error,
            f"{counted(count, 'network')} {'' if known else 'not '}trained on the frame",
            _exchanged(index, instance, part, middle, error, parts),
        )
        found.setdefault(instance, []).append(doubt)
    return found


def _detail(doubts: Sequence[_Doubt], names: Sequence[str]) -> str:
    """What a person reads after the name of the animal."""
    places = " and ".join(
        f"{names[each.part]} seen at {each.at[0]:.0f},{each.at[1]:.0f}, {each.off:.1f} px off its "
        f"label (median error {each.usual:.1f} px)"
        for each in doubts
    )
    text = f"{places} by {doubts[0].judges}"
    if len(doubts) > 1:
        return f"{text}: left and right exchanged?"
    if doubts[0].partner is not None:
        return f"{text}; {names[doubts[0].partner]} is labelled there: left and right exchanged?"
    return text


def _exchanged(
    index: RecordIndex, instance: int, part: int, at: Floats, error: float, parts: Parts
) -> int | None:
    """The part of the other side that is labelled at a point, image px; None if there is none."""
    for pair in parts.LEFT_RIGHT_PAIRS:
        if part in pair:
            partner = pair[0] if part == pair[1] else pair[1]
            near = np.linalg.norm(at - index.keypoints[instance, partner])  # NaN is not near
            return partner if near <= max(AGREED * error, LEAST_PX) else None
    return None

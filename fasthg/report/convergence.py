"""Whether more steps would pay, judged by the validation curve: sentences for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fasthg.report.calibration import Floats
from fasthg.report.figures import column

FEWEST = 4
"""Validations below which nothing is said of a trend."""
LITTLE, MUCH = 0.02, 0.05
"""Shares by which the least error falls over the last third of the steps: below the first more
steps pay little, from the second on they pay."""
RISE = 0.05
"""Share by which the error lies above its least in the last third where it counts as risen."""
LOWERED = 0.5
"""A learning rate below this share of the one before counts as lowered."""


def outlook(steps: Floats, errors: Floats, lowered: bool = False) -> str | None:
    """What the validation error did over the last third of the steps, and what follows from it.

    The least error until two thirds of the steps is compared with the least of all, because single
    validations scatter.

    Args:
        steps: `(validations,)` at which it was measured, rising.
        errors: `(validations,)` mean error, image px.
        lowered: whether the learning rate fell meanwhile, which makes the error fall in any run.

    Returns:
        One sentence; None without a validation.
    """
    if not len(steps):
        return None
    late = steps > steps[-1] * 2 / 3
    if len(steps) < FEWEST or late.all():
        number = "one validation" if len(steps) == 1 else f"{len(steps)} validations"
        return (
            f"Only {number}: too few to say whether more steps would pay; lower "
            "VALIDATE_EVERY_N_STEPS."
        )
    before, least = float(errors[~late].min()), float(errors.min())
    fall = 1 - least / before if before > 0 else 0.0
    over = "over the last third of the steps"
    rise = float(np.median(errors[late])) / before - 1 if before > 0 else 0.0
    if fall <= 0 and rise >= RISE:
        return (
            f"The validation error was least at step {steps[errors.argmin()]:.0f} and lay "
            f"{rise:.0%} above that {over}: more steps will not pay, more labelled frames may."
        )
    if fall < LITTLE:
        return (
            f"The validation error fell by less than {LITTLE:.0%} {over}: more steps will pay "
            "little."
        )
    if fall < MUCH:
        return f"The validation error fell by {fall:.0%} {over}: more steps may pay a little."
    if lowered:
        return (
            f"The validation error fell by {fall:.0%} {over} while the learning rate was lowered, "
            "which by itself makes it fall: a run of twice the steps tells whether more would pay."
        )
    return f"The validation error was still falling, by {fall:.0%} {over}: train longer."


def rate_then(steps: Floats, rates: Floats) -> tuple[float, float, float] | None:
    """Greatest learning rate, that at two thirds of the steps, and the last.

    steps, rates: `(rows,)`, of the log. None without a row or a rate above 0.
    """
    if not len(steps) or not rates.max() > 0:
        return None
    third = int(np.searchsorted(steps, steps[-1] * 2 / 3, side="right")) - 1
    return float(rates.max()), float(rates[max(third, 0)]), float(rates[-1])


def sentences(
    rows: Sequence[Mapping[str, Any]], early: tuple[int, str] | None, total: int
) -> Iterator[str]:
    """What a page says beside the training curves.

    Args:
        rows: of `metrics.jsonl`.
        early: step and reason of an early stop.
        total: NUM_TRAIN_ITERATIONS.
    """
    rates = rate_then(*column(rows, "learning_rate"))
    if early is not None:
        step, why = early
        yield f"Stopped early at step {step} of {total}: {why} (EARLY_STOP_PATIENCE)."
        if rates is not None and rates[2] >= LOWERED * rates[0]:
            yield (
                f"The learning rate was still {rates[2] / rates[0]:.0%} of its greatest value; a "
                "run that lowers it to its end (fewer NUM_TRAIN_ITERATIONS, cosine decay) is often "
                "better."
            )
        return
    lowered = rates is not None and rates[2] < LOWERED * rates[1]
    said = outlook(*column(rows, "val_error_mean_px"), lowered)
    if said is not None:
        yield said

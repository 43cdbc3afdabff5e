"""Whether more steps would pay: what is said of which validation curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fasthg.report.convergence import outlook, rate_then, sentences


def said(*errors: float) -> str:
    found = outlook(100.0 * np.arange(1, len(errors) + 1), np.array(errors))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((10, 5, 4, 3, 2.98, 2.97), "fell by less than 2% over the last third of the steps: more"),
        ((10, 5, 4, 3, 3.1, 3.05), "fell by less than 2%"),
        ((10, 5, 4, 3, 2.9, 2.92), "fell by 3% over the last third of the steps: more steps may"),
        ((10, 5, 4, 3, 2.8, 2.7), "still falling, by 10% over the last third of the steps: train"),
        # A single bad validation before the last third is no fall.
        ((10, 3, 4, 9, 3, 2.99), "less than 2%"),
        ((10, 5, 3, 3.5, 3.6, 3.6), "least at step 300 and lay 20% above that over the last"),
        ((0, 0, 0, 0), "less than 2%"),
    ],
)
def test_a_curve_is_judged_by_its_last_third(errors: tuple[float, ...], expected: str) -> None:
    assert expected in said(*errors)


def test_few_validations_say_nothing() -> None:
    assert outlook(np.zeros(0), np.zeros(0)) is None
    assert "Only one validation" in said(3.0)
    assert "Only 3 validations" in said(9.0, 5.0, 1.0)
    # Four, all of which are late, as in a log whose beginning is lost.
    late = outlook(np.array([900.0, 910.0, 920.0, 930.0]), np.array([4.0, 3.0, 2.0, 1.0]))
    assert late is not None and "too few" in late


def test_the_rate_at_two_thirds_is_the_one_used_there() -> None:
    steps, rates = np.array([100.0, 200.0, 300.0]), np.array([4.0, 3.0, 1.0])
    assert rate_then(steps, rates) == (4.0, 3.0, 1.0)
    assert rate_then(np.zeros(0), np.zeros(0)) is None


def log(rates: list[float]) -> list[dict[str, Any]]:
    errors = [10.0, 5.0, 4.0, 3.0, 2.8, 2.5]
    return [
        {"step": 100 * k + 100, "val_error_mean_px": error, "learning_rate": rate}
        for k, (error, rate) in enumerate(zip(errors, rates, strict=True))
    ]


def test_a_fall_while_the_rate_is_lowered_is_put_down_to_it() -> None:
    fixed = list(sentences(log([1e-3] * 6), None, 600))
    assert len(fixed) == 1 and fixed[0].endswith("train longer.")
    (falling,) = sentences(log([1e-3, 9e-4, 8e-4, 6e-4, 3e-4, 0.0]), None, 600)
    assert "fell by 17% over" in falling and "while the learning rate was lowered" in falling
    assert "train longer" not in falling


def test_an_early_stop_and_a_rate_that_was_never_lowered_are_told() -> None:
    early = (600, "3 validations in a row brought no smaller error")
    lines = list(sentences(log([1e-3, 9e-4, 8e-4, 8e-4, 7e-4, 7e-4]), early, 2000))
    assert lines[0].startswith("Stopped early at step 600 of 2000: 3 validations in a row")
    assert "still 70% of its greatest value" in lines[1]
    lowered = list(sentences(log([1e-3, 9e-4, 4e-4, 1e-4, 1e-5, 0.0]), early, 2000))
    assert len(lowered) == 1

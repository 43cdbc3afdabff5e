"""Functions of a caller that a training calls, such as an experiment tracker's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Hook = Callable[[Mapping[str, Any]], object]


class StopTraining(Exception):
    """Raised by a hook to end the training after the present step, saved, as Ctrl-C does."""


@dataclass(frozen=True)
class Hooks:
    """What is called with each row of `metrics.jsonl` after it is written; of several processes the
    first one calls.

    Another exception than `StopTraining` ends the training as an error of its own would: what was
    saved before stays, and the run can be resumed.
    """

    on_log: Hook | None = None
    """With the row of a logged step: `step`, `loss`, `learning_rate`, `images_per_s`, ..."""
    on_validate: Hook | None = None
    """With the row of a validation: `step`, `val_error_mean_px`, ..., and `best`, whether its
    weights are the best so far."""


NO_HOOKS = Hooks()

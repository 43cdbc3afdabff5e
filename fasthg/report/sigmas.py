"""Where the sigmas of OKS come from, in words."""

from __future__ import annotations

import math
from pathlib import Path

from fasthg.config import Config
from fasthg.data.convert.splits import load_splits
from fasthg.data.index.record_index import expand
from fasthg.errors import DataError


def origin(config: Config) -> str:
    """The name of a set; "measured on N workers" where `splits.json` beside the records of DATA
    says so of the same numbers; otherwise "given"."""
    sigmas = config.OKS_SIGMAS
    if isinstance(sigmas, str):
        return sigmas
    for patterns in (config.DATA.TRAIN, config.DATA.VAL, config.DATA.TEST):
        try:
            splits = load_splits(Path(expand(patterns)[0]).parent) if patterns else None
        except DataError:  # the records, or their list, are not there any more
            continue
        measured = splits.measured_sigmas() if splits else None
        if splits is None or measured is None or tuple(splits.parts) != config.PARTS.NAMES:
            continue
        if all(math.isclose(a, b) for a, b in zip(sigmas, measured[0], strict=True)):
            return f"measured on {measured[1]} workers"
    return "given"

"""Images that cannot be used: named once each, counted, never fatal unless nothing is left."""

from __future__ import annotations

import logging
from typing import NoReturn

from fasthg.data.sampler import BatchSampler
from fasthg.errors import DataError

log = logging.getLogger(__name__)


class Faults:
    """The records of a sampler's index that turned out to be unusable."""

    def __init__(self, sampler: BatchSampler) -> None:
        self._planner = sampler
        self.records: dict[int, str] = {}
        """Record -> why, in the order met."""

    def report(self, found: dict[int, str]) -> None:
        """Remember records and warn about those not met before."""
        for record, reason in found.items():
            if record not in self.records:
                self.records[record] = reason
                instead = "another of its batch is used" if self._planner.training else "left out"
                log.warning("%s: image %s; %s", self._name(record), reason, instead)

    def give_up(self, step: int) -> NoReturn:
        """Raise DataError: no image of a training batch can be used."""
        record, reason = next(reversed(self.records.items()))
        raise DataError(
            f"no image of training batch {step} can be used; {self._name(record)}: image {reason}; "
            "run `fasthg data check` and repair or remove the files it names"
        )

    def _name(self, record: int) -> str:
        return self._planner.index.describe_record(record)

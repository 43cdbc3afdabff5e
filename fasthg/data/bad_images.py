"""Record of images that cannot be used: one warning each, an error only if none is left."""

from __future__ import annotations

import logging
from typing import NoReturn

from fasthg.data.sampler import BatchSampler
from fasthg.errors import DataError

log = logging.getLogger(__name__)


class BadImages:
    """Records of a sampler's index whose image cannot be used."""

    def __init__(self, sampler: BatchSampler) -> None:
        self._sampler = sampler
        self.records: dict[int, str] = {}
        """Record -> reason, in the order of the warnings."""

    def report(self, faults: dict[int, str]) -> None:
        """Add records, with a warning for each new one."""
        for record, reason in faults.items():
            if record not in self.records:
                self.records[record] = reason
                instead = "another of its batch is used" if self._sampler.training else "left out"
                log.warning("%s: image %s; %s", self._name(record), reason, instead)

    def give_up(self, step: int) -> NoReturn:
        """Raise DataError: no image of a training batch can be used."""
        record, reason = next(reversed(self.records.items()))
        raise DataError(
            f"no image of training batch {step} can be used; {self._name(record)}: image {reason}; "
            "run `fasthg data check` and repair or remove the files it names"
        )

    def _name(self, record: int) -> str:
        return self._sampler.index.describe_record(record)

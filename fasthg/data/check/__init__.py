"""`fasthg data check`: finds faults of a data set that degrade training without an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fasthg.data.check import images, labels
from fasthg.data.check.problems import (
    BAD_BOX,
    BROKEN_RECORD,
    NOTHING,
    WRONG_COUNTS,
    Counts,
    Problem,
    Report,
)
from fasthg.data.index.builder import Fault
from fasthg.data.index.record_index import RecordIndex

__all__ = ["Problem", "Report", "check"]

_KINDS = {"record": BROKEN_RECORD, "counts": WRONG_COUNTS, "box": BAD_BOX}


def check(
    splits: Mapping[str, str | Sequence[str]],
    num_parts: int,
    *,
    names: Sequence[str] = (),
    pairs: Sequence[tuple[int, int]] = (),
) -> tuple[Report, dict[str, RecordIndex]]:
    """Check every record, image and animal of some splits.

    splits: name -> paths or globs of TFRecord files, in the order in which one is compared with
    those before it; names: the parts', for messages; pairs: indices of left and right parts
    (LEFT_RIGHT_PAIRS). Nothing in the files raises; what cannot be read is a problem. Returns also
    the splits' indices, of which the problems' `record` and `instance` are rows.
    Raises DataError for patterns without a file.
    """
    names = tuple(names) or tuple(f"part {i}" for i in range(num_parts))
    report = Report(names)
    indices, looks = {}, {}
    for split, patterns in splits.items():
        faults: list[Fault] = []
        index = indices[split] = RecordIndex.build(patterns, num_parts, faults=faults)
        missing = (index.visibility == 0).sum(axis=0)
        report.splits[split] = Counts(index.num_records, len(index), missing)
        report.problems += [
            Problem(_KINDS[f.kind], split, f.where, f.cause, f.record) for f in faults
        ]
        if not len(index) and not faults:
            files = ", ".join(index.files)
            detail = f"{index.num_records} records; check DATA or leave the split unset"
            report.problems.append(Problem(NOTHING, split, files, detail))
        looks[split], problems = images.look(index, split)
        report.problems += problems
        report.problems += labels.doubtful(index, split, names, pairs)
    report.problems += images.repeated(indices, looks)
    return report, indices

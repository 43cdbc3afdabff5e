"""Damaged and strange records, images and files against what their readers promise.

Every input is a function of --seed and its number: a finding is seen again with `--only NUMBER`.

    python tools/fuzz_records.py --inputs 1000000 --seed 0 --processes 2
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib.util
import itertools
import multiprocessing
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import oracle
from mutate import Mutator

from fasthg.data.index.builder import Fault
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records import protobuf, schema
from fasthg.data.records.jpeg import image_fault, jpeg_size
from fasthg.data.records.schema import Record, decode, encode
from fasthg.data.records.tfrecord import Damage, Frame, read_frames, salvage_frames
from fasthg.errors import DataError

SLOW_S = 1.0
HANG_S = 10
PARTS = 3


def allowed_bytes(size: int) -> int:
    """Memory that an input of `size` bytes may take."""
    return (64 << 20) + 20 * size


class Hang(BaseException):
    """An input took more than HANG_S of the processor, which other processes do not lengthen."""


@dataclasses.dataclass
class Report:
    """What came of a run of inputs.

    slowest: seconds of the processor, and the input's number; peak: bytes above the start.
    """

    inputs: int = 0
    slowest: tuple[float, int] = (0.0, -1)
    peak: int = 0
    findings: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Report) -> None:
        """Take in the report of other inputs."""
        self.inputs += other.inputs
        self.slowest = max(self.slowest, other.slowest)
        self.peak = max(self.peak, other.peak)
        self.findings += other.findings
        self.outcomes += other.outcomes


def outcome(message: str) -> str:
    """An error message without what differs from input to input."""
    return re.sub(r"image/[\w/]+|'.*'|-?\d[\d.e+]*|inf|nan", "N", message.splitlines()[0])


def same(one: Record, other: Record) -> bool:
    """Whether a record says what another does, NaN being NaN, wherever it says anything."""
    for name in one.__dataclass_fields__:
        first, second = getattr(one, name), getattr(other, name)
        if first is None or (isinstance(first, tuple) and not first):
            continue
        if isinstance(first, np.ndarray | float):
            if not np.array_equal(first, second, equal_nan=True):
                return False
        elif first != second:
            return False
    return True


def examine_record(payload: bytes) -> str:
    """What comes of a serialised record. AssertionError where a reader breaks its promise."""
    results: list[Any] = []
    refusals: list[str | None] = []
    for read in (protobuf.features, schema.scan, lambda data: decode(data, "here")):
        try:
            results.append(read(payload))
            refusals.append(None)
        except (ValueError, DataError) as error:
            assert type(error) in (ValueError, schema.CountError, DataError), repr(error)
            assert "\n" not in str(error)
            refusals.append(str(error))
    unreadable, unscanned, undecoded = refusals
    assert undecoded == f"here: {unscanned}" if unscanned else not unreadable, refusals
    if undecoded:
        assert undecoded.startswith("here: ") and "; " in undecoded, undecoded
        return f"record: {outcome(undecoded)}"
    record = results[2]
    written = encode(record)
    again = decode(written, "here")
    assert same(record, again), (record, again)
    assert encode(again) == written, again
    return "record: sound"


def examine_image(data: bytes) -> str:
    """What comes of the bytes of an image. AssertionError where a reader breaks its promise."""
    size = jpeg_size(data)
    assert size is None or (0 < size[0] < 1 << 16 and 0 < size[1] < 1 << 16), size
    fault = image_fault(data, *(size or (1, 1)))
    assert fault is None or (fault and "\n" not in fault), fault
    assert size is None or fault is None or "record says" not in fault, fault
    return f"image: {outcome(fault) if fault else 'sound'}"


def examine_file(path: Path, content: bytes) -> str:
    """What comes of a TFRecord file. AssertionError where a reader breaks its promise."""
    path.write_bytes(content)
    frames, refusal = [], None
    try:
        for frame in read_frames(path):
            frames.append(frame)
    except DataError as error:
        refusal = str(error)
        assert refusal.startswith(f"{path}: ") and "; " in refusal and "\n" not in refusal, refusal
    with contextlib.suppress(DataError):
        collections.deque(read_frames(path, verify_crc=False), maxlen=0)
    found = list(salvage_frames(path))
    _examine_salvage(content, frames, refusal, found)
    _examine_index(path, refusal, found)
    return f"file: {outcome(refusal.removeprefix(str(path))) if refusal else 'sound'}"


def _examine_salvage(
    content: bytes, frames: list[Frame], refusal: str | None, found: list[Frame | Damage]
) -> None:
    """Sound frames first, then everything once and in order."""
    assert found[: len(frames)] == frames, (frames, found)
    assert (len(found) == len(frames)) == (refusal is None), (refusal, found)
    position = 0
    for item in found:
        if isinstance(item, Damage):
            lost = re.search(r", (\d+) bytes are lost$", item.what)
            assert item.offset == position and lost, (position, item)
            position += int(lost[1])
        else:
            assert item.offset == position + 12, (position, item)
            end = item.offset + len(item.payload)
            assert content[item.offset : end] == item.payload
            position = end + 4
    assert position == len(content), (position, found)


def _examine_index(path: Path, refusal: str | None, found: list[Frame | Damage]) -> None:
    """Strict and lenient agree on sound files; a lenient one has a row for all that was found."""
    faults: list[Fault] = []
    lenient = RecordIndex.build(path, PARTS, faults=faults)
    assert lenient.num_records == len(found), (lenient, found)
    for number, item in enumerate(found):
        if isinstance(item, Frame) and lenient.jpeg_length[number]:
            start, end = schema.scan(item.payload).jpeg
            assert lenient.jpeg(number) == item.payload[start:end], number
    try:
        strict = RecordIndex.build(path, PARTS)
    except DataError as error:
        assert "\n" not in str(error) and "; " in str(error), error
        assert faults or not len(lenient), error
        assert refusal is None or faults, refusal
    else:
        assert not faults and refusal is None, (faults, refusal)
        assert strict.fingerprint() == lenient.fingerprint()
        assert np.isfinite(strict.bbox).all() and (strict.width > 0).all()


def run(
    seed: int,
    numbers: Iterable[int],
    folder: Path,
    compare: Callable[[bytes], None] | None = None,
) -> Report:
    """Examine the inputs of these numbers; files are written to `folder`."""
    report, start = Report(), _peak_bytes()
    for number in numbers:
        mutator = Mutator(seed, number)
        kind = number % 10
        make = (mutator.record if kind < 8 else mutator.image) if kind < 9 else mutator.file
        data = make()
        began = time.process_time()
        try:
            with _bounded():
                if kind < 8:
                    report.outcomes[examine_record(data)] += 1
                    if compare is not None and kind < 3:
                        compare(data)
                elif kind == 8:
                    report.outcomes[examine_image(data)] += 1
                else:
                    report.outcomes[examine_file(folder / "set", data)] += 1
        except (Exception, Hang):
            report.findings.append((number, traceback.format_exc(limit=-4)))
        seconds = time.process_time() - began
        report.inputs += 1
        report.slowest = max(report.slowest, (seconds, number))
        if seconds > SLOW_S:
            report.findings.append((number, f"took {seconds:.1f} s"))
        # The peak never falls: what one input has taken is not counted again.
        grown = _peak_bytes() - start
        if grown > report.peak and grown > allowed_bytes(len(data)):
            report.findings.append((number, f"took {grown >> 20} MiB for {len(data)} bytes"))
        report.peak = max(report.peak, grown)
    return report


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Warnings are errors within, and what takes too long raises Hang."""

    def stop(*_: object) -> None:
        raise Hang(f"longer than {HANG_S} s")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _part(arguments: tuple[int, int, int, bool]) -> Report:
    """Examine the inputs from `first` to before `end`."""
    seed, first, end, compare = arguments
    with tempfile.TemporaryDirectory() as folder:
        numbers = range(first, end)
        return run(seed, numbers, Path(folder), oracle.comparison() if compare else None)


_AsWritten = argparse.RawDescriptionHelpFormatter


def main() -> int:
    """Run and report; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of one input")
    given = parser.parse_args()
    compare = importlib.util.find_spec("google.protobuf") is not None
    edges = [given.inputs * i // given.processes for i in range(given.processes + 1)]
    if given.only is not None:
        edges = [given.only, given.only + 1]
    parts = [(given.seed, *ends, compare) for ends in itertools.pairwise(edges)]
    report, began = Report(), time.perf_counter()
    # A fresh process: its peak of memory is its own.
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for part in pool.imap_unordered(_part, parts):
            report.add(part)
    for kind, count in report.outcomes.most_common():
        print(f"{count:9d}  {kind}")
    for number, what in report.findings[:20]:
        print(f"input {number}: {what}")
    seconds, slowest = report.slowest
    print(
        f"{report.inputs} inputs in {time.perf_counter() - began:.0f} s, "
        f"{'with' if compare else 'without'} protobuf; {len(report.findings)} findings; "
        f"slowest {seconds * 1e3:.0f} ms (input {slowest}); {report.peak / (1 << 20):.0f} MiB"
    )
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())

"""Damaged and strange sources of every format against what their readers promise.

An input is a function of --seed and its number: a finding is seen again with `--only NUMBER`.

    python tools/fuzz_sources.py --inputs 100000 --seed 0 --processes 2
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from sources import FORMATS, Format

from fasthg.errors import FasthgError

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1 << 31, 1 << 63, 10**400, 0.5, -0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", "nose", "1", "ä\u0308", "../x", "/", "a" * 5000, "\0", "\n"),
    *([], {}, [None], [[]], [1, 2], {"id": 1}, [{"id": None}]),
)
CELLS = ("", "nan", "inf", "-1", "1e400", "x", '"', ",,", ";", "\t", "\r", "ä", "\0", "0x1", "١")
SLOW_S = 20.0
_AT_ONCE = 50


class Mutator:
    """Makes the changes of input `number` of the sequence that belongs to `seed`."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(seed << 48 ^ number)

    def changed(self, data: bytes, name: str) -> bytes:
        """The content of a file with one to three changes, in the terms of its format or none."""
        for _ in range(self.random.choice((1, 1, 2, 3))):
            change: Callable[[bytes], bytes] = self._bytes
            if self.random.random() < 0.7:
                if name.endswith((".json", ".manifest")):
                    change = self._json
                elif name.endswith((".csv", ".yaml")):
                    change = self._text
            data = change(data)
        return data

    def _bytes(self, data: bytes) -> bytes:
        pick = self.random
        at, few = pick.randint(0, len(data)), pick.choice((1, 1, 2, 4, 8, 16, 100, 600))
        flipped = bytes(value ^ 1 << pick.randrange(8) for value in data[at : at + 1])
        return pick.choice(
            (
                data[:at] + flipped + data[at + 1 :],
                data[:at] + flipped + data[at + 1 :],
                data[:at] + data[at + few :],
                data[:at],
                data[at:],
                data[:at] + pick.randbytes(few) + data[at + few :],
                data[:at] + bytes(few) + data[at + few :],
                data[:at] + b"\xff" * few + data[at + few :],
                data[: at + few] + data[at:],
            )
        )

    def _json(self, data: bytes) -> bytes:
        """One line of JSON with a value or key replaced, removed, repeated or moved."""
        lines = data.splitlines() or [b""]
        at = self.random.randrange(len(lines))
        try:
            content = json.loads(lines[at])
        except (ValueError, RecursionError):
            return self._bytes(data)
        lines[at] = json.dumps(self._value(content), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
        return b"\n".join(lines)

    def _value(self, value: Any) -> Any:
        pick = self.random
        if not isinstance(value, list | dict) or not value or pick.random() < 0.08:
            if isinstance(value, str) and value.startswith("{") and pick.random() < 0.9:
                return json.dumps(self._value(json.loads(value)))
            return pick.choice(VALUES)
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = pick.choice(keys)
        deeper = pick.random()
        if deeper < 0.8:
            value[key] = self._value(value[key])
        elif deeper < 0.9:
            del value[key]
        elif isinstance(value, list):
            value.append(value[key])
        else:
            value[pick.choice(keys)] = value[key]
        return value

    def _text(self, data: bytes) -> bytes:
        """A table or YAML with a cell or line replaced, removed, repeated or moved."""
        pick = self.random
        lines = data.decode("utf-8", "replace").splitlines() or [""]
        at, other = pick.randrange(len(lines)), pick.randrange(len(lines))
        change = pick.randrange(6)
        if change == 0:
            del lines[at]
        elif change == 1:
            lines.insert(other, lines[at])
        elif change == 2:
            lines[at], lines[other] = lines[other], lines[at]
        else:
            separator = "," if "," in lines[at] else " "
            cells = lines[at].split(separator)
            cells[pick.randrange(len(cells))] = pick.choice(CELLS)
            lines[at] = separator.join(cells)
        return ("\n".join(lines) + "\n").encode(pick.choice(("utf-8",) * 8 + ("utf-16",)))


def examine(form: Format, folder: Path, name: str, content: bytes) -> str:
    """What comes of a file. AssertionError where a reader breaks its promise."""
    path = folder / name
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            form.read(folder)
    except FasthgError as error:
        assert str(error).strip(), "an error without a word"
        return f"{form.name}: refused"
    return f"{form.name}: read"


def run(
    seed: int, numbers: Iterable[int], folder: Path, formats: Sequence[Format] = FORMATS
) -> tuple[list[tuple[int, str]], collections.Counter[str]]:
    """Findings by the number of their input, and how often each format was read and refused."""
    logging.disable(logging.ERROR)
    findings: list[tuple[int, str]] = []
    outcomes: collections.Counter[str] = collections.Counter()
    sound: dict[str, dict[str, bytes]] = {}
    for form in formats:
        place = folder / form.name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        form.build(place)
        sound[form.name] = {name: (place / name).read_bytes() for name in form.files}
    for number in numbers:
        mutator = Mutator(seed, number)
        form = mutator.random.choice(list(formats))
        place = folder / form.name.replace(" ", "-")
        name = mutator.random.choice(form.files)
        before = sound[form.name][name]
        begin = time.process_time()
        try:
            outcomes[examine(form, place, name, mutator.changed(before, name))] += 1
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            text = f"{form.name}, {name}: {type(error).__name__} at {where}: {str(error)[:200]}"
            findings.append((number, text))
        if time.process_time() - begin > SLOW_S:
            findings.append((number, f"{form.name}, {name}: {time.process_time() - begin:.0f} s"))
        (place / name).write_bytes(before)
    logging.disable(logging.NOTSET)
    return findings, outcomes


def _job(arguments: tuple[int, range, list[str]]) -> Any:
    seed, numbers, names = arguments
    formats = [form for form in FORMATS if form.name in names]
    with tempfile.TemporaryDirectory() as folder:
        return run(seed, numbers, Path(folder), formats)


def main() -> None:
    """Run the inputs and print what was found; exit 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    parser.add_argument("--formats", nargs="*", default=[form.name for form in FORMATS])
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.inputs)
    if given.only is not None:
        numbers = range(given.only, given.only + 1)
    jobs = [
        (given.seed, numbers[at : at + _AT_ONCE], given.formats)
        for at in range(0, len(numbers), _AT_ONCE)
    ]
    seen: collections.Counter[str] = collections.Counter()
    outcomes: collections.Counter[str] = collections.Counter()
    # A process that a library kills is seen as a pool that never ends: a timeout names its inputs.
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        pending = [(job, pool.apply_async(_job, (job,))) for job in jobs]
        for (_, chunk, _), result in pending:
            try:
                findings, counts = result.get(timeout=1800)
            except multiprocessing.TimeoutError:
                print(f"inputs {chunk.start} to {chunk.stop - 1}: no answer", flush=True)
                seen["no answer"] += 1
                continue
            outcomes += counts
            if chunk.stop % 1000 == 0:
                print(f"{chunk.stop} inputs", file=sys.stderr, flush=True)
            for number, text in findings:
                kind = text.split(": ")[0] + text.split(": ")[1]
                seen[kind] += 1
                if seen[kind] == 1:
                    print(f"input {number}: {text}", flush=True)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8d} {outcome}")
    print(f"{sum(seen.values())} findings of {len(seen)} kinds in {len(numbers)} inputs")
    sys.exit(bool(seen))


if __name__ == "__main__":
    main()

"""Strange and damaged records, images and TFRecord files: each a pure function of (seed, number).

Records are taken apart field by field, at any depth, and put together with what protobuf allows
but nobody writes, and with what it forbids; lengths of the messages around a change are corrected,
so that the reader gets as far as the change.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from samples import delimited, fields, images, records, varint

from fasthg.data.records.tfrecord import frame, masked_crc

NUMBERS = (
    *(0, 1, 2, 127, 128, 255, 32767, 32768, 65535, 65536, 1 << 28),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-45, 3e38, -3e38, float("inf"), float("nan"))
VARINTS = (
    *(varint(number) for number in NUMBERS),
    *(varint(number, padding) for number in (0, 1, 300) for padding in (1, 3, 4, 8)),
    *(b"\xff" * 9 + b"\x7f", b"\x80" * 9 + b"\x02", b"\xff" * 10, b"\xff" * 11 + b"\x01", b"\x80"),
)


class Mutator:
    """Makes input `number` of the sequence that belongs to `seed`."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(seed << 48 ^ number)

    def record(self) -> bytes:
        """A serialised record with one to four changes."""
        data = self.random.choice(records())
        for _ in range(self.random.choice((1, 1, 2, 4))):
            if self.random.random() < 0.75:
                data = self._message(data, self.random.randrange(6))
            else:
                data = self._bytes(data)
        return data

    def image(self) -> bytes:
        """An encoded image with one to three changes."""
        data = self.random.choice(images())
        for _ in range(self.random.randint(1, 3)):
            data = self._bytes(data)
        return data

    def file(self) -> bytes:
        """A TFRecord file of sound and changed records, often with changes of its own."""
        pick = self.random
        payloads = [
            self.record() if pick.random() < 0.3 else pick.choice(records())
            for _ in range(pick.randrange(7))
        ]
        frames = [frame(payload) for payload in payloads]
        if pick.random() < 0.3:
            frames.insert(pick.randint(0, len(frames)), self._strange_frame())
        data = b"".join(frames)
        for _ in range(pick.choice((0, 1, 1, 2, 3))):
            # Most bytes belong to payloads: every second change goes to a header.
            starts = [sum(map(len, frames[:i])) for i in range(len(frames))]
            near = pick.choice(starts) if starts and pick.random() < 0.5 else None
            data = self._bytes(data, near)
        return data

    def _strange_frame(self) -> bytes:
        """A sound header that says more or less than what follows it."""
        length = struct.pack("<Q", self.random.choice(NUMBERS))
        body = self.random.choice((b"", bytes(20), bytes(5000), self.random.randbytes(40)))
        return length + struct.pack("<I", masked_crc(length)) + body

    def _message(self, data: bytes, depth: int) -> bytes:
        """The message with one change to its fields, or to those of one within it."""
        found = fields(data)
        if not found:
            return self._bytes(data)
        pick = self.random
        at = pick.randrange(len(found))
        tag, length, value = found[at]
        if depth and length:
            changed = self._message(value, depth - 1)
            new = delimited(tag, changed) if pick.random() < 0.97 else self._lie(tag, changed)
        elif depth and tag[0] & 7 == 0 and pick.random() < 0.8:
            new = tag + pick.choice(VARINTS)
        else:
            return self._fields([b"".join(field) for field in found], at)
        return b"".join((*map(b"".join, found[:at]), new, *map(b"".join, found[at + 1 :])))

    def _lie(self, tag: bytes, value: bytes) -> bytes:
        """A field whose length is wrong, or right in more bytes than it needs."""
        padded = varint(len(value), self.random.choice((1, 2, 4, 6)))
        return tag + self.random.choice((padded, self.random.choice(VARINTS))) + value

    def _fields(self, found: list[bytes], at: int) -> bytes:
        pick = self.random
        change = pick.randrange(7)
        if change == 0:
            found.insert(pick.randint(0, len(found)), found[at])
        elif change == 1:
            del found[at]
        elif change == 2:
            pick.shuffle(found)
        elif change == 3:
            found[at] = self._foreign()
        elif change == 4:
            found.insert(at, self._foreign())
        elif change == 5:
            # Another number or wire type for the same bytes; or the same in more bytes.
            tag = pick.choice((pick.randrange(256), found[at][0] ^ 1 << pick.randrange(7)))
            found[at] = varint(tag, pick.choice((0, 0, 1, 4))) + found[at][1:]
        else:
            found.insert(at, self._strange())
        return b"".join(found)

    def _foreign(self) -> bytes:
        """A field of some message within some record."""
        data = self.random.choice(records())
        for _ in range(self.random.randrange(1, 5)):
            if inner := fields(data):
                field = self.random.choice(inner)
                data = field[2]
        return b"".join(field)

    def _strange(self) -> bytes:
        """A field that no writer of records makes."""
        pick = self.random
        number = pick.choice((0, 1, 1, 2, 3, 9, 16, (1 << 29) - 1, 1 << 29, 1 << 61))
        depth = pick.choice((1, 2, 40, 99, 100, 101, 2000))
        group = varint(number << 3 | 3), varint(number << 3 | 4)
        nested = pick.choice((b"", b"\x08\x01", b"\x0a\x01a"))
        for _ in range(min(depth, 101)):
            nested = delimited(pick.choice((1, 2, 3)), nested)
        text = struct.pack("<f", pick.choice(FLOATS))
        return pick.choice(
            (
                group[0] * depth + b"\x08\x01" + group[1] * depth,
                group[0] * depth,
                group[1],
                nested,
                varint(number << 3) + pick.choice(VARINTS),
                varint(number << 3 | 1) + bytes(8),
                varint(number << 3 | 5) + text,
                varint(number << 3 | 6) + b"x",
                varint(number << 3 | 7),
                delimited(number, text * pick.choice((1, 2, 50))),
                delimited(number, text[:3], pick.choice(VARINTS)),
                varint(number << 3 | 2) + pick.choice(VARINTS),
            )
        )

    def _bytes(self, data: bytes, near: int | None = None) -> bytes:
        """The bytes with one change, anywhere or within a header's length after `near`."""
        pick, size = self.random, len(data)
        at = min(size, near + pick.randrange(13)) if near is not None else pick.randint(0, size)
        few = pick.choice((1, 1, 2, 3, 4, 8, 12, 16, 100))

        def flipped(byte: bytes) -> bytes:
            return bytes(value ^ 1 << pick.randrange(8) for value in byte)

        changes: Sequence[Callable[[], bytes]] = (
            *[lambda: data[:at] + flipped(data[at : at + 1]) + data[at + 1 :]] * 2,
            lambda: data[:at] + data[at + few :],
            lambda: data[:at],
            lambda: data[at:],
            lambda: data[:at] + pick.randbytes(few) + data[at:],
            lambda: data[:at] + bytes(pick.choice((few, 3000))) + data[at:],
            lambda: data[:at] + pick.choice(VARINTS) + data[at + few :],
            lambda: data[:at] + struct.pack("<f", pick.choice(FLOATS)) + data[at + 4 :],
            lambda: data[: at + few] + data[at:],
            lambda: data[:at] + b"\n" + data[at + 1 :],
            lambda: data[:at] + self._foreign() + data[at + few :],
            lambda: data[:at] + pick.choice(records())[pick.randrange(200) :],
        )
        return pick.choice(changes)()

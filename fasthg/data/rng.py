"""Philox4x32-10, a counter-based random number generator, vectorised in NumPy.

A value depends only on its key and counter, so a random choice can be named (seed, epoch,
instance) and be the same whoever computes it, in whatever order and batch.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(key: int, counter: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Random 32-bit words. key: 64 bits. counter: `(4, ...)`, each below 2**32. Same shape out."""
    c0, c1, c2, c3 = counter
    key_low, key_high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> _SHIFT) ^ c1 ^ np.uint64(key_low),
            second & _LOW,
            (first >> _SHIFT) ^ c3 ^ np.uint64(key_high),
            first & _LOW,
        )
        key_low = (key_low + _KEY_STEPS[0]) & 0xFFFFFFFF
        key_high = (key_high + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def first_words(
    key: int, stream: int, epoch: int, item: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """The 32-bit words, `(items,)`, that `uniforms` makes its first value of, in the same order."""
    counter = np.zeros((4, item.size), np.uint64)
    counter[0], counter[1], counter[3] = item, np.uint64(epoch), np.uint64(stream)
    return philox(key, counter)[0]


def uniforms(
    key: int, stream: int, epoch: npt.ArrayLike, item: npt.ArrayLike, count: int
) -> npt.NDArray[np.float64]:
    """`(count, items)` values in the open interval (0, 1), named by (key, stream, epoch, item).

    stream: below 2**16, keeps uses apart. epoch: `(items,)` or a scalar, below 2**32.
    item: `(items,)` below 2**32.
    """
    blocks = -(-count // 4)
    item = np.asarray(item, np.uint64).reshape(-1)
    counter = np.empty((4, blocks, item.size), np.uint64)
    counter[0], counter[1] = item, np.asarray(epoch, np.uint64)
    counter[2], counter[3] = np.arange(blocks, dtype=np.uint64)[:, None], np.uint64(stream)
    words = philox(key, counter).swapaxes(0, 1).reshape(blocks * 4, -1)
    return (words[:count].astype(np.float64) + 0.5) * 2.0**-32

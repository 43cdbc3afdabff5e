"""Videos cut into blocks of time, one for each split, so that few frames of two are neighbours."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fasthg.files import natural


def in_blocks(
    videos: Mapping[str, Sequence[str]],
    known: Mapping[str, str],
    shares: Mapping[str, float],
    seed: int,
) -> dict[str, str]:
    """The split of each frame.

    videos: ids of the frames of each video, whose order by number is that of time; known: the
    splits of frames that stay; shares: of each split, summing to 1. A frame of a video with known
    ones goes to the split of the nearest in time. Another video is cut into at most one piece a
    split, in an order that is a function of the seed and of its name; the sizes of the pieces bring
    the whole nearest to the shares.
    """
    splits: dict[str, str] = {}
    counts = Counter(known[each] for ids in videos.values() for each in ids if each in known)
    for video, unordered in videos.items():
        ids = sorted(unordered, key=natural)
        fixed = [place for place, each in enumerate(ids) if each in known]
        if fixed:
            near = np.abs(np.arange(len(ids))[:, None] - fixed).argmin(axis=1).tolist()
            chosen = [known[ids[fixed[place]]] for place in near]
        else:
            total = sum(counts.values()) + len(ids)
            wanted = [share * total - counts[split] for split, share in shares.items()]
            sizes = dict(zip(shares, _whole_numbers(wanted, len(ids)), strict=True))
            draw = np.random.default_rng((seed, zlib.crc32(video.encode())))
            chosen = [split for split in draw.permutation([*shares]) for _ in range(sizes[split])]
        counts.update(s for each, s in zip(ids, chosen, strict=True) if each not in known)
        splits.update(zip(ids, map(str, chosen), strict=True))
    return splits


def changes(videos: Mapping[str, Sequence[str]], splits: Mapping[str, str]) -> int:
    """How often a frame of a video follows one of another split."""
    met = 0
    for ids in videos.values():
        placed = [splits[each] for each in sorted(ids, key=natural)]
        met += sum(one != other for one, other in itertools.pairwise(placed))
    return met


def _whole_numbers(wanted: Sequence[float], total: int) -> list[int]:
    """Whole numbers from 0 on that sum to `total`, near to those wanted."""
    sizes = [max(0, int(value)) for value in wanted]
    while sum(sizes) != total:
        missing = [value - size for value, size in zip(wanted, sizes, strict=True)]
        if sum(sizes) < total:
            sizes[missing.index(max(missing))] += 1
        else:
            most = [gap if size else np.inf for gap, size in zip(missing, sizes, strict=True)]
            sizes[most.index(min(most))] -= 1
    return sizes

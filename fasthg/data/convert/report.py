"""What a conversion tells: counts, parts, files, and what a configuration can take from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fasthg.config.sides import doubts, left_right_pairs
from fasthg.words import counted

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass
class Report:
    """Result of a conversion. frames: records by split; parts: names in the order written;
    mapping: names in the project to those written; pairs: indices of left and right parts, as the
    source says (pairs_given) or guessed from the names; unpaired: parts that look lateral and are
    in no pair, as lines; skipped: reason and count; swaps: exchanges of left and right that were
    repaired; notes: whatever else the user should read; splits: where `splits.json` is.

    skeleton: pairs of indices that pictures join; colors: of the parts, #rrggbb, or none;
    pixels_per_cm: image px, None where unknown; measured: OKS_SIGMAS by part and the number of
    workers that they are measured on, or nothing. config: the configuration that was written;
    train: the command that trains, empty where there is nothing to train on."""

    files: list[Path]
    parts: tuple[str, ...]
    frames: dict[str, int] = field(default_factory=dict)
    animals: int = 0
    unlabelled_parts: int = 0
    mapping: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    pairs_given: bool = False
    unpaired: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    swaps: int = 0
    notes: list[str] = field(default_factory=list)
    splits: Path | None = None
    skeleton: list[tuple[int, int]] = field(default_factory=list)
    colors: list[str] = field(default_factory=list)
    pixels_per_cm: float | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    config: Path | None = None
    train: str = ""

    def lines(self) -> list[str]:
        """The report for a terminal."""
        counts = ", ".join(f"{count} {split}" for split, count in self.frames.items())
        lines = [
            f"{counted(sum(self.frames.values()), 'frame')} ({counts}), "
            f"{counted(self.animals, 'animal')}, {counted(self.unlabelled_parts, 'part')} "
            "unlabelled",
            "parts: " + ", ".join(f"{i} {name}" for i, name in enumerate(self.parts)),
        ]
        renamed = [f"{old} -> {new}" for old, new in self.mapping.items() if old != new]
        if renamed:
            lines.append("names: " + ", ".join(renamed))
        if self.pairs:
            named = ", ".join(f"{self.parts[i]} and {self.parts[j]}" for i, j in self.pairs)
            origin = "as the source has them" if self.pairs_given else "by their names"
            lines.append(f"LEFT_RIGHT_PAIRS {origin}: {[[*p] for p in self.pairs]} ({named})")
        lines += [f"{doubt}: check them before images are mirrored" for doubt in self.unpaired]
        lines += [f"skipped: {count} {reason}" for reason, count in self.skipped.items() if count]
        written = [path for path in (*self.files, self.splits, self.config) if path]
        lines += self.notes + [f"wrote {path}" for path in written]
        return lines + ([f"train with: {self.train}"] if self.train else [])

    def skip(self, reason: str, number: int = 1) -> None:
        """Count an item that is left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + number

    def take_pairs(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Set left and right parts to pairs of indices that the source has; names add pairs of the
        parts that are in none."""
        self.pairs = [*pairs]
        self.pairs_given = bool(self.pairs)
        taken = {part for pair in self.pairs for part in pair}
        self.pairs += [p for p in left_right_pairs(self.parts) if taken.isdisjoint(p)]
        self.unpaired = doubts(self.parts, self.pairs)

    def take_skeleton(self, own: Sequence[str], edges: Iterable[tuple[int, int]]) -> None:
        """Set the skeleton to the edges between written parts, given as indices into the names that
        the source has, `own`; indices of no name are left out."""
        written = {name: number for number, name in enumerate(self.mapping)}
        named = [
            tuple(written.get(own[end]) if 0 <= end < len(own) else None for end in edge)
            for edge in edges
        ]
        pairs = ((a, b) for a, b in named if a is not None and b is not None and a != b)
        self.skeleton = list(dict.fromkeys(pairs))

    def take_colors(self, colors: Mapping[str, object]) -> None:
        """Set the colours, given by own name; none where a written part has no #rrggbb."""
        found = [str(colors.get(name, "")) for name in self.mapping]
        self.colors = found if all(map(_COLOUR.fullmatch, found)) else []


def new_report(mapping: dict[str, str]) -> Report:
    """A report about parts renamed by `mapping`, {own name: name written}."""
    parts = tuple(mapping.values())
    pairs = left_right_pairs(parts)
    return Report([], parts, mapping=mapping, pairs=pairs, unpaired=doubts(parts, pairs))

"""Left and right in the names of parts: pairs, and names that look lateral but are in no pair.

A mirrored image exchanges the parts of each pair. A lateral part that is in none keeps its number
while its place changes sides, so that training learns both sides as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fasthg.config.keys import Keys

Pair = tuple[int, int]

# The words of "left ear", Ear_L, EAR-LEFT, earLeft and LForepaw; any script, case of ASCII.
_LOWER = r"[^\W\d_A-Z]"
_WORD = re.compile(rf"[A-Z]+(?!{_LOWER})|[A-Z]?{_LOWER}+|\d+")
_LEFT = (
    *("left", "lft", "lt", "links", "linke", "linker", "linkes", "gauche"),
    *("izq", "izquierda", "izquierdo", "esquerda", "esquerdo", "sinistra", "sinistro"),
)
_RIGHT = (
    *("right", "rgt", "rght", "rt", "rechts", "rechte", "rechter", "rechtes", "droite", "droit"),
    *("derecha", "derecho", "direita", "direito", "destra", "destro"),
)
# Words with other meanings, too: sides in a list that has both.
_BOTH = (("izq", "der"), ("sx", "dx"), ("i", "d"))
_SIDE = {**dict.fromkeys((*_LEFT, "l"), "l"), **dict.fromkeys((*_RIGHT, "r"), "r")}
_SPELLED = re.compile(r"left|right")
# Words that contain left or right, or differ by l and r, and mean neither.
_NEITHER = frozenset({"bright", "upright", "cleft", "lump", "rump"})
# Words whose l or r is no side, although the names with the other letter may be there.
_PLAIN = frozenset({"rear", "tail"})
# Sides by one letter: LF, RH and LFP (limbs in gait analysis); FL, HR.
_GAIT = re.compile(r"[lr][fhbm][pl]?|[fhbm][lr]")


_SWAP = {"|l": "|r", "|r": "|l"}


class _Reading(NamedTuple):
    """One way to read a name as lateral: its side, l or r, and the name with "|" in its place.

    sure: the side is a word of its own or spelled out.
    """

    side: str
    rest: str
    sure: bool


def spelled(name: str) -> bool:
    """Whether a name contains the word left or right, with or without other letters around it."""
    return any(_SPELLED.search(word) for word in _words(name) if word not in _NEITHER)


def left_right_pairs(names: Sequence[str]) -> list[Pair]:
    """Indices of parts whose names differ by left and right alone, the left one first.

    The side is a word (left, l, links, gauche, izq), part of one (leftear, earRight), or the first,
    last or, after f, h, b or m, second letter of one (LH, FL, lpaw, hindpawR). Case and separators
    do not matter. Of a name with several sides, the partner has all others. A name that fits
    several others is in no pair.
    """
    return sorted(_matches(names, plain=_PLAIN))


def doubts(names: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    """Why mirrored images might exchange the wrong parts, one line each; empty if nothing is seen.

    pairs: indices of left and right parts. Named are parts that look like left and right of each
    other and are not paired, lateral ones without a partner, and pairs of names that belong to
    others.
    """
    partner = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    likely = sorted(_matches(names))
    lines, named = [], set(partner)
    for left, right in likely:
        ours, theirs = f"'{names[left]}' and '{names[right]}'", f"[{left}, {right}]"
        if left not in partner and right not in partner:
            lines.append(f"{ours} look like left and right of each other but are no pair {theirs}")
        elif partner.get(left) != right:
            wrong = ", ".join(
                f"'{names[a]}' with '{names[b]}'" for a, b in pairs if {a, b} & {left, right}
            )
            lines.append(f"{ours} look like left and right of each other, but paired is {wrong}")
        named |= {left, right}
    alone = [names[i] for i in range(len(names)) if i not in named and _lateral(i, names)]
    if alone:
        are = ", ".join(f"'{name}'" for name in alone)
        lines.append(f"{are}: left or right by name, without a partner on the other side")
    return lines


def flip_doubts(cfg: Keys) -> list[str]:
    """`doubts` of PARTS with a remedy each; empty where neither training nor FLIP_TEST mirrors."""
    if cfg.DO_RANDOM_FLIP_LEFT_RIGHT == 0.0 and not cfg.FLIP_TEST:
        return []
    remedy = "correct PARTS.LEFT_RIGHT_PAIRS, or set DO_RANDOM_FLIP_LEFT_RIGHT: false"
    if cfg.FLIP_TEST:
        remedy += " and FLIP_TEST: false"
    return [
        f"{doubt}, and images are mirrored; {remedy}"
        for doubt in doubts(cfg.PARTS.NAMES, cfg.PARTS.LEFT_RIGHT_PAIRS)
    ]


def _matches(names: Sequence[str], plain: frozenset[str] = frozenset()) -> Iterator[Pair]:
    sides = _side_words(names)
    readings = [list(_readings(name, plain, sides)) for name in names]
    taken: set[int] = set()
    # All sides of a name change at once: "left front left toe" becomes "right front right toe".
    sided = [tuple(_sided(name, sides)) for name in names]
    several = {
        words: index for index, words in enumerate(sided) if sum(map(words.count, _SWAP)) > 1
    }
    for words, index in several.items():
        other = several.get(tuple(_SWAP.get(word, word) for word in words))
        if other is not None and next(word for word in words if word in _SWAP) == "|l":
            taken |= {index, other}
            yield index, other
    # Words first: "L hand" has a partner by its first word, whatever "hand" may be.
    for sure in (True, False):
        found: set[Pair] = set()
        for left, ours in enumerate(readings):
            for right, theirs in enumerate(readings):
                if left not in taken and right not in taken and _mirror(ours, theirs, sure):
                    found.add((left, right))
        for pair in found:
            if not any(other != pair and {*other} & {*pair} for other in found):
                taken.update(pair)
                yield pair


def _side_words(names: Sequence[str]) -> dict[str, str]:
    """The words that are sides in this list, with l or r."""
    there = {word for name in names for word in _words(name)}
    sides = dict(_SIDE)
    for left, right in _BOTH:
        # a to i are no sides.
        if {left, right} <= there and (len(left) > 1 or _letters(names) <= {left, right}):
            sides |= {left: "l", right: "r"}
    return sides


def _letters(names: Sequence[str]) -> set[str]:
    return {word for name in names for word in _words(name) if len(word) == 1 and word.isalpha()}


def _sided(name: str, sides: Mapping[str, str]) -> list[str]:
    """The words of a name, "|l" and "|r" for its sides."""
    return [f"|{sides[word]}" if word in sides else word for word in _words(name)]


def _mirror(left: Sequence[_Reading], right: Sequence[_Reading], sure: bool) -> bool:
    lefts = {reading.rest for reading in left if reading.side == "l" and reading.sure >= sure}
    return any(r.rest in lefts for r in right if r.side == "r" and r.sure >= sure)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _readings(name: str, plain: frozenset[str], sides: Mapping[str, str]) -> Iterator[_Reading]:
    words = _words(name)
    for place, word in enumerate(words):
        before, after = "".join(words[:place]), "".join(words[place + 1 :])
        for side, rest, sure in _sides(word, plain, sides):
            yield _Reading(side, f"{before}{rest}{after}", sure)


def _sides(
    word: str, plain: frozenset[str], sides: Mapping[str, str]
) -> Iterator[tuple[str, str, bool]]:
    if word in _NEITHER or word in plain:
        return
    if word in sides:
        yield sides[word], "|", True
        return
    spellings = [*_SPELLED.finditer(word)]
    for match in spellings:
        yield match[0][0], f"{word[: match.start()]}|{word[match.end() :]}", True
    if spellings or len(word) < 2:
        return
    for at in {0, len(word) - 1, *([1] if word[0] in "fhbm" else [])}:
        if word[at] in "lr":
            yield word[at], f"{word[:at]}|{word[at + 1 :]}", False


def _lateral(index: int, names: Sequence[str]) -> bool:
    """Whether a name without a partner means a side nevertheless."""
    words = _words(names[index])
    numbered = {word for each in names for word, n in _following(_words(each)) if n.isdigit()}
    letters, sides = _letters(names), _side_words(names)
    both = {"l", "r"} <= letters
    # LM1 to LM4 are landmarks, FR1 to FR3 frames, unless there is a code of the other side.
    gait = {side for each in names for word in _words(each) for side in _gait(word)} == {"l", "r"}
    for word, following in _following(words):
        if (gait and _GAIT.fullmatch(word)) or (word in sides and len(word) > 1):
            return True
        if word not in ("l", "r"):
            continue
        # L1 to L6 are vertebrae, unless there is an R, too; R, G, B are colours.
        if following.isdigit():
            if {"l", "r"} <= numbered:
                return True
        elif both or (len(words) > 1 and len(letters - {"l", "r"}) < 2):
            return True
    return spelled(names[index])


def _gait(word: str) -> str:
    """The side of a code by one letter; empty for another word."""
    if not _GAIT.fullmatch(word):
        return ""
    return word[0] if word[0] in "lr" else word[1]


def _following(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(words, (*words[1:], ""), strict=True)

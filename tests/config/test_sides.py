"""Left and right in names of parts: pairs, and what is said where there is none."""

from __future__ import annotations

import pytest

from fasthg.config import Config
from fasthg.config.sides import doubts, flip_doubts, left_right_pairs, spelled


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["nose", "right ear", "left ear", "base of tail"], [(2, 1)]),
        (["leftear", "rightear"], [(0, 1)]),
        (["earL", "earR", "hip_r", "hip_l"], [(0, 1), (3, 2)]),
        (["L-Ear", "R-Ear", "EyeLeft", "EyeRight"], [(0, 1), (2, 3)]),
        (["top_left_corner", "top_right_corner", "bottom_left_corner"], [(0, 1)]),
        (["rear", "lear", "l", "tail", "tair"], []),
        (["left left ear", "right right ear", "bright", "upright"], [(0, 1)]),
        (
            [f"{a}_front_{b}_toe" for a in ("left", "right") for b in ("left", "right")],
            [(0, 3), (1, 2)],
        ),
        (["lump", "rump", "spitze_der_nase", "spitze_izquierda_nase"], []),
        (["linkes_ohr", "rechtes_ohr", "ear_dx", "ear_sx"], [(0, 1), (3, 2)]),
        (["orelha_esquerda", "orelha_direita", "pata_i", "pata_d"], [(0, 1), (2, 3)]),
        ([f"point_{letter}" for letter in "abcdefghi"], []),
        ([], []),
        (["LF", "RF", "LH", "RH", "nose"], [(0, 1), (2, 3)]),
        (["fl", "fr", "hr", "hl"], [(0, 1), (3, 2)]),
        (["RFP", "LFP", "RHP", "LHP"], [(1, 0), (3, 2)]),
        (["L1", "R1", "L2", "R2", "1L", "1R"], [(0, 1), (2, 3), (4, 5)]),
        (["LForepaw", "RForepaw", "hindpawL", "hindpawR"], [(0, 1), (2, 3)]),
        (["lpaw", "rpaw", "FLpaw", "FRpaw"], [(0, 1), (2, 3)]),
        (["left ear", "earRight", "Ohr_links", "Ohr_rechts"], [(2, 3)]),
        (["oreja_izq", "oreja_der", "paw.lt", "paw.rt"], [(0, 1), (2, 3)]),
        (["fore paw l", "forepaw_r"], [(0, 1)]),
        (["L1", "L2", "leg", "ear", "shoulder", "lip", "flank"], []),
        (["LFL", "RFL", "LFR", "RFR"], []),  # the first letter or the last
    ],
)
def test_left_right_pairs(names: list[str], pairs: list[tuple[int, int]]) -> None:
    assert left_right_pairs(names) == pairs


LOOK = "look like left and right of each other"
ALONE = "left or right by name, without a partner on the other side"


@pytest.mark.parametrize(
    ("names", "pairs", "lines"),
    [
        (["LH", "RH", "nose"], [(0, 1)], []),
        (["LH", "RH", "nose"], [], [f"'LH' and 'RH' {LOOK} but are no pair [0, 1]"]),
        (["nose", "LH", "RF"], [], [f"'LH', 'RF': {ALONE}"]),
        (["Lear", "Rear"], [], [f"'Lear' and 'Rear' {LOOK} but are no pair [0, 1]"]),
        (["ear_L", "ear"], [], [f"'ear_L': {ALONE}"]),
        (
            ["nose", "ear_l", "ear_r"],
            [(1, 0)],
            [f"'ear_l' and 'ear_r' {LOOK}, but paired is 'ear_l' with 'nose'"],
        ),
        (["L1", "R2"], [], [f"'L1', 'R2': {ALONE}"]),
        (["L1", "L2", "rump", "tail", "bright spot"], [], []),  # vertebrae
        (["LM1", "LM2", "LM3", "LM4", "LFP", "ML"], [], []),
        (["MR", "fr1", "fr2", "fr3", "nose"], [], []),
        (["bl1", "bl2"], [], []),
        (["R", "G", "B"], [], []),
        (["led_r", "led_g", "led_b"], [], []),
        (["lump", "rump", "spitze_der_nase", "pata_d", "offset_dx"], [], []),
        (["pata_izq", "mano_der"], [], [f"'pata_izq', 'mano_der': {ALONE}"]),
        (["rechtes_ohr"], [], [f"'rechtes_ohr': {ALONE}"]),
        (
            ["left_front_left_toe", "right_front_right_toe"],
            [],
            [f"'left_front_left_toe' and 'right_front_right_toe' {LOOK} but are no pair [0, 1]"],
        ),
    ],
)
def test_doubts(names: list[str], pairs: list[tuple[int, int]], lines: list[str]) -> None:
    assert doubts(names, pairs) == lines


def test_doubts_matter_while_images_are_mirrored() -> None:
    parts = {"NUM_PARTS": 2, "NAMES": ["LH", "RH"], "SIGMAS": [2, 2], "LEFT_RIGHT_PAIRS": []}
    (line,) = flip_doubts(Config(PARTS=parts))
    assert line.endswith(
        "but are no pair [0, 1], and images are mirrored; correct PARTS.LEFT_RIGHT_PAIRS, or set "
        "DO_RANDOM_FLIP_LEFT_RIGHT: false"
    )
    assert flip_doubts(Config(PARTS=parts, DO_RANDOM_FLIP_LEFT_RIGHT=0)) == []
    assert flip_doubts(Config(PARTS=parts, DO_RANDOM_FLIP_LEFT_RIGHT=0, FLIP_TEST=True))


def test_words_that_only_contain_left_or_right() -> None:
    assert [spelled(name) for name in ("leftear", "pawRight", "bright spot", "cleft", "LH")] == [
        *(True, True, False, False, False)
    ]

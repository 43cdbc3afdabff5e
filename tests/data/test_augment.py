from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest

from fasthg.config import Config
from fasthg.data.augment import (
    COLOUR_BCG,
    COLOUR_CBG,
    COLOUR_FAST,
    COLOUR_GBCG,
    COLOUR_NONE,
    AugmentParams,
    draw,
    no_augmentation,
)
from fasthg.data.augment_ops import colour_table, noise_bank, saturate
from fasthg.data.records.jpeg import image_fault
from fasthg.data.rng import philox, uniforms

MANY = np.arange(20_000)
Make = Callable[..., Config]


def same(first: AugmentParams, second: AugmentParams) -> bool:
    pairs = ((getattr(first, f.name), getattr(second, f.name)) for f in fields(AugmentParams))
    return all(np.array_equal(a, b) for a, b in pairs)


def share_is(drawn: np.ndarray, frequency: float) -> bool:
    """Whether a share lies within five standard deviations of its frequency."""
    return abs(drawn.mean() - frequency) <= 5 * np.sqrt(frequency * (1 - frequency) / drawn.size)


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, [0, 0, 0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (2**64 - 1, [2**32 - 1] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            0x299F31D0A4093822,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(
    key: int, counter: list[int], words: list[int]
) -> None:
    assert philox(key, np.array(counter, np.uint64)).tolist() == words


def test_uniform_values_are_uniform_and_uncorrelated() -> None:
    u = uniforms(7, 0, 3, MANY, 6)
    assert u.min() > 0
    assert u.max() < 1
    assert np.abs(u.mean(axis=1) - 0.5).max() < 5 / np.sqrt(12 * MANY.size)
    correlation = np.corrcoef(u) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(MANY.size)


def test_a_draw_depends_on_seed_epoch_and_instance_only(configure: Make) -> None:
    cfg = Config()
    whole = draw(cfg, 5, 2, np.arange(50))
    rows = np.array([31, 4, 4, 49])
    assert same(draw(cfg, 5, 2, rows), whole.take(rows))
    mixed = draw(cfg, 5, np.array([2, 9]), np.array([8, 8]))
    assert same(mixed.take(np.array([0])), whole.take(np.array([8])))
    assert mixed.angle[0] != mixed.angle[1]
    assert not same(draw(cfg, 6, 2, rows), whole.take(rows))


def test_switching_one_augmentation_leaves_the_others_alone() -> None:
    full, without = draw(Config(), 1, 0, MANY), draw(Config(DO_RANDOM_NOISE=False), 1, 0, MANY)
    changed = {f.name for f in fields(AugmentParams)}
    changed = {n for n in changed if not np.array_equal(getattr(full, n), getattr(without, n))}
    assert changed == {"noise", "noise_offset"}


def test_everything_off_draws_nothing(configure: Make) -> None:
    cfg = configure()
    assert same(draw(cfg, 1, 0, np.arange(100)), no_augmentation(cfg, 100))
    assert (no_augmentation(cfg, 3).pad == np.float32(0.65)).all()
    assert (no_augmentation(configure(LOOSE_BBOX_CROP=False), 3).pad == 0).all()


def test_frequencies_are_what_the_configuration_says(configure: Make) -> None:
    cfg = configure(
        DO_RANDOM_PADDING=True,
        RANDOM_PADDING_FREQ=0.8,
        DO_RANDOM_BBOX_SHIFT=0.3,
        DO_RANDOM_FLIP_LEFT_RIGHT=0.4,
        DO_RANDOM_ROTATION=True,
        RANDOM_ROTATION_FREQ=0.7,
        DO_COLOR_DISTORTION=0.6,
        DO_RANDOM_BLURRING=True,
        RANDOM_BLUR_FREQ=0.15,
        DO_RANDOM_NOISE=True,
        RANDOM_NOISE_FREQ=0.25,
        DO_JPEG_ARTIFACTS=True,
        RANDOM_JPEG_FREQ=0.35,
    )
    d = draw(cfg, 11, 0, MANY)
    assert share_is(d.pad != np.float32(0.65), 0.8)
    assert share_is((d.shift != 0).any(axis=1), 0.3)
    assert share_is(d.flip, 0.4)
    assert share_is(d.angle != 0, 0.7)
    assert share_is(d.colour != COLOUR_NONE, 0.6)
    assert share_is(d.colour == COLOUR_GBCG, 0.6 / 4)
    assert share_is(d.colour == COLOUR_BCG, 0.6 / 4)
    assert share_is(d.colour == COLOUR_CBG, 0.6 / 2)
    assert share_is(d.blur > 0, 0.15)
    assert share_is(d.noise, 0.25)
    assert share_is(d.quality > 0, 0.35)


def test_ranges_are_filled_and_never_left(configure: Make) -> None:
    cfg = configure(
        DO_RANDOM_PADDING=True,
        RANDOM_PADDING_MIN=0.1,
        RANDOM_PADDING_MAX=0.65,
        DO_RANDOM_BBOX_SHIFT=1.0,
        RANDOM_BBOX_SHIFT_EXTENT=6.0,
        DO_RANDOM_ROTATION=True,
        RANDOM_ROTATION_DELTA=30.0,
        DO_COLOR_DISTORTION=1.0,
        DO_RANDOM_BLURRING=True,
        RANDOM_BLUR_FREQ=1.0,
        MAX_BLUR=3,
        DO_RANDOM_NOISE=True,
        RANDOM_NOISE_FREQ=1.0,
        DO_JPEG_ARTIFACTS=True,
        RANDOM_JPEG_FREQ=1.0,
        RANDOM_JPEG_QUALITY_MIN=25,
        RANDOM_JPEG_QUALITY_MAX=100,
    )
    d = draw(cfg, 11, 0, MANY)

    def spans(values: np.ndarray, low: float, high: float) -> bool:
        slack = (high - low) / 500
        inside = values.min() >= low and values.max() <= high
        return inside and values.min() < low + slack and values.max() > high - slack

    assert spans(d.pad, 0.1, 0.65)
    assert spans(d.shift, 0, 6)
    assert spans(d.angle, -30, 30)
    assert spans(d.brightness * 255, -32, 32)
    assert spans(d.contrast, 0.5, 1.1)
    assert spans(d.gamma_last, 0.75, 1)
    assert spans(d.gamma_first[d.colour == COLOUR_GBCG], 0.75, 1)
    assert (d.gamma_first[d.colour != COLOUR_GBCG] == 1).all()
    assert set(d.blur) == {1, 2, 3}
    assert spans(d.noise_offset, 0, 256)
    assert set(d.quality) == set(range(25, 101))


def test_fast_colour_is_brightness_and_saturation(configure: Make) -> None:
    d = draw(configure(DO_COLOR_DISTORTION=1.0, COLOR_DISTORT_FAST=True), 0, 0, MANY)
    assert (d.colour == COLOUR_FAST).all()
    assert d.saturation.min() >= 0.5
    assert d.saturation.max() <= 1.5
    assert (d.contrast == 1).all()
    assert (d.gamma_last == 1).all()


@pytest.mark.parametrize("order", [COLOUR_GBCG, COLOUR_BCG, COLOUR_CBG])
def test_the_colour_table_equals_the_chain_on_pixels(order: int) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 50, 3)) * [1.0, 0.5, 0.9]
    image = image.astype(np.uint8)
    b, c, g1, g2 = -0.11, 1.08, 0.8 if order == COLOUR_GBCG else 1.0, 0.9
    counts = np.stack([np.bincount(image[..., k].ravel(), minlength=256) for k in range(3)])
    table = colour_table(counts.astype(float), order, b, c, g1, g2)
    got = np.stack([table[k][image[..., k]] for k in range(3)], axis=-1)

    x = image / 255
    steps: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "first": lambda x: x**g1,
        "brightness": lambda x: x + b,
        "contrast": lambda x: (x - x.mean(axis=(0, 1))) * c + x.mean(axis=(0, 1)),
        "last": lambda x: np.maximum(x, 0) ** g2,
    }
    names = {
        COLOUR_GBCG: ["first", "brightness", "contrast", "last"],
        COLOUR_BCG: ["brightness", "contrast", "last"],
        COLOUR_CBG: ["contrast", "brightness", "last"],
    }
    for name in names[order]:
        x = steps[name](x)
    expected = np.clip(np.floor(x * 255 + 0.5), 0, 255)
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 1e-3


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    image = np.random.default_rng(2).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    got = saturate(image, 0.05, factor).reshape(-1, 3)
    for pixel, result in zip(image.reshape(-1, 3), got, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255 + 0.05))
        expected = np.array(colorsys.hsv_to_rgb(h, min(1, s * factor), v))
        assert np.abs(np.clip(expected * 255, 0, 255) - result).max() <= 0.5 + 1e-3


def test_the_noise_bank_is_normal_and_always_the_same() -> None:
    bank = noise_bank(64, 0.05)
    assert bank.shape == (128, 128)
    assert abs(bank.mean()) < 0.5
    assert bank.std() == pytest.approx(0.05 * 255, rel=0.03)
    assert np.array_equal(bank, noise_bank(64, 0.05))
    assert (noise_bank(64, 0.0) == 0).all()


def jpeg(width: int, height: int) -> bytes:
    frame = b"\xff\xc0\x00\x11\x08" + bytes([0, height, 0, width]) + b"\x03" + bytes(9)
    return b"\xff\xd8\xff\xe0\x00\x04\x00\x00" + frame + bytes(2000) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (jpeg(40, 30), None),
        (jpeg(40, 30) + bytes(100), None),
        (b"", "is empty"),
        (bytes(100), "is neither JPEG nor PNG"),
        (jpeg(40, 30)[:-2], "is a truncated JPEG (no end marker)"),
        (jpeg(30, 40), "is 30x40 px but its record says 40x30"),
        (b"\xff\xd8\xff\xd9", "has no readable header"),
        (b"\x89PNG\r\n", "is a truncated PNG"),
    ],
)
def test_faults_are_named(data: bytes, fault: str | None) -> None:
    assert image_fault(data, 40, 30) == fault

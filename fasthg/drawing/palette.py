"""One colour for each part, the same in every picture."""

from __future__ import annotations

import colorsys

from PIL import ImageColor

from fasthg.config import Parts
from fasthg.errors import ConfigError

Rgb = tuple[int, int, int]

# Okabe and Ito's palette, which colour-blind readers tell apart, those first that stand out from
# both dark fur and bedding.
PALETTE: tuple[Rgb, ...] = (
    *((230, 159, 0), (86, 180, 233), (240, 228, 66), (0, 158, 115)),
    *((204, 121, 167), (213, 94, 0), (0, 114, 178)),
)
# Paul Tol's bright scheme, for animals: other colours than those of parts, and safe as those are.
_ANIMALS: tuple[Rgb, ...] = (
    *((238, 102, 119), (102, 204, 238), (204, 187, 68), (170, 51, 119)),
    *((68, 119, 170), (34, 136, 51)),
)
# What matplotlib has beside the names of CSS, as configurations of MARS are written for it.
_LETTERS = {"r": "red", "g": "green", "b": "blue", "c": "cyan", "m": "magenta", "y": "yellow"}
_LETTERS |= {"k": "black", "w": "white"}


def part_colours(parts: Parts) -> list[Rgb]:
    """Red, green and blue, 0 to 255, of each part.

    PARTS.COLORS where it has enough of them; otherwise the palette, and for more parts than it has
    evenly spaced hues.

    Raises:
        ConfigError: an entry of PARTS.COLORS is no colour.
    """
    given = [_rgb(name) for name in parts.COLORS]
    return (
        given[: parts.NUM_PARTS] if len(given) >= parts.NUM_PARTS else own_colours(parts.NUM_PARTS)
    )


def own_colours(count: int) -> list[Rgb]:
    """Red, green and blue, 0 to 255, of each of several parts without PARTS.COLORS."""
    if len(PALETTE) >= count:
        return list(PALETTE[:count])
    colours = []
    for number in range(count):
        # Neighbours differ in lightness, too: hues of twenty parts are hard to tell apart.
        lightness = (0.62, 0.42)[number % 2]
        rgb = colorsys.hls_to_rgb(number / count, lightness, 0.85)
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return colours


def animal_colours(count: int) -> list[Rgb]:
    """Red, green and blue, 0 to 255, of each of several animals; six differ."""
    return [_ANIMALS[number % len(_ANIMALS)] for number in range(count)]


def _rgb(name: str) -> Rgb:
    plain = name.strip().lower().removeprefix("tab:")
    try:
        return ImageColor.getrgb(_LETTERS.get(plain, plain))[:3]
    except ValueError:
        raise ConfigError(f"PARTS.COLORS: {name!r} is no colour; use names or #rrggbb") from None

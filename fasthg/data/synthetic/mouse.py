"""Draws one mouse from above, for synthetic images: a bent spine, a contour, fur and extremities.

`Posture` -> `shape` -> `Mouse`, and `paint` draws it with a `Look`. Both are drawn at random for
single frames (`pose`, `random_look`); for films they change smoothly from frame to frame.

Lengths are fractions of the body length (nose to base of tail) unless they are called px.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

PART_NAMES = (
    "nose",
    "right ear",
    "left ear",
    "top of neck",
    "right rear knee",
    "left rear knee",
    "base of tail",
)

Array = npt.NDArray[np.float32]

# Half the body's width along the spine, nose (0) to base of tail (1).
_WIDTH_AT = (0.0, 0.04, 0.10, 0.20, 0.30, 0.42, 0.58, 0.72, 0.84, 0.94, 1.0)
_WIDTH = (0.012, 0.030, 0.058, 0.083, 0.090, 0.120, 0.158, 0.178, 0.160, 0.095, 0.036)
# Where a part lies: position along the spine, distance to the right of it.
_PARTS = (
    (0.0, 0.0),
    (0.215, 0.088),
    (0.215, -0.088),
    (0.30, 0.0),
    (0.68, 0.150),
    (0.68, -0.150),
    (1.0, 0.0),
)
_STEPS = 80


@dataclass(frozen=True)
class Mouse:
    """A pose. spine, tail: (points, 2) image px, from the nose and from the base of the tail;
    right: (points, 2) unit vectors to the animal's right along the spine; keypoints: (7, 2) px."""

    name: str
    length: float
    plumpness: float
    centre: npt.NDArray[np.float64]
    spine: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]
    tail: npt.NDArray[np.float64]
    keypoints: npt.NDArray[np.float64]

    def at(self, along: float, aside: float) -> npt.NDArray[np.float64]:
        """Image px of a point given along the spine and to the right of it."""
        place = along * (_STEPS - 1)
        low = min(int(place), _STEPS - 2)
        part = place - low
        spine = self.spine[low] * (1 - part) + self.spine[low + 1] * part
        return np.asarray(spine + self.right[low] * aside * self.length)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur; sigma in px."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


@dataclass(frozen=True)
class Posture:
    """How a body is held; angles in rad, clockwise in the image.

    heading: direction of the body, 0 along x. bend: how much the base of the tail is turned against
    the nose. turn: of the head alone. stretch, plumpness: factors of length and of width.
    tail_bend, tail_wave: turns along the tail, steady and as a sine of tail_frequency.
    tail_length: share of the body length.
    """

    heading: float
    bend: float
    turn: float
    stretch: float
    plumpness: float
    tail_bend: float
    tail_wave: float
    tail_frequency: float
    tail_length: float


def random_posture(rng: np.random.Generator) -> Posture:
    """A posture independent of all others."""
    stretch = rng.uniform(0.82, 1.08)
    plumpness = rng.uniform(0.92, 1.1) / np.sqrt(stretch)
    bend, turn = rng.normal(0, 0.45), rng.normal(0, 0.30)
    heading = rng.uniform(0, 2 * np.pi)
    tail_bend, tail_wave, tail_frequency = rng.normal(0, 0.5), rng.normal(0, 0.7), rng.uniform(2, 5)
    tail_length = rng.uniform(0.65, 0.95)
    return Posture(
        *(heading, bend, turn, stretch, float(plumpness)),
        *(tail_bend, tail_wave, tail_frequency, tail_length),
    )


def pose(
    rng: np.random.Generator, name: str, centre: npt.NDArray[np.float64], length: float
) -> Mouse:
    """A mouse in a random posture; see `shape`."""
    return shape(name, random_posture(rng), centre, length)


def shape(name: str, posture: Posture, centre: npt.NDArray[np.float64], length: float) -> Mouse:
    """The mouse of a posture.

    name: of its coat, black or white. centre: (2,) image px of the middle of the spine.
    length: px of a body that is not stretched.
    """
    length = length * posture.stretch
    along = np.linspace(0, 1, _STEPS)
    head = np.clip(1 - along / 0.4, 0, 1) ** 2
    angle = posture.heading + posture.bend * (along - 0.6) + posture.turn * head
    # The spine runs from the nose backwards, against the direction in which the animal looks.
    ahead = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    spine = np.cumsum(-ahead, axis=0) * (length / (_STEPS - 1))
    spine += centre - spine[_STEPS // 2]
    # Image y points down: an animal that looks up the image (0, -1) has its right at (1, 0).
    right = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)

    steps = np.linspace(0, 1, 40)
    wave = np.sin(steps * posture.tail_frequency)
    swing = posture.tail_bend * steps + posture.tail_wave * wave
    course = angle[-1] + np.pi + swing
    tail = np.cumsum(np.stack([np.cos(course), np.sin(course)], axis=1), axis=0)
    tail = spine[-1] + tail * (posture.tail_length * length / len(steps))
    middle = spine[_STEPS // 2]
    plumpness = posture.plumpness
    mouse = Mouse(name, length, plumpness, middle, spine, right, tail, spine[:0])
    points = [mouse.at(s, a * (plumpness if s > 0.5 else 1)) for s, a in _PARTS]
    return replace(mouse, keypoints=np.stack(points))


Hair = Callable[[Mouse, npt.NDArray[np.int64], tuple[int, int]], Array]
"""(mouse, (2,) origin of a window in image px, its (height, width)) -> (height, width) relief."""


@dataclass(frozen=True)
class Look:
    """fur: brightness of the coat, 0..255; fore, hind: shifts of left and right paw along the
    spine; hair: relief of the coat."""

    fur: float
    fore: tuple[float, float]
    hind: tuple[float, float]
    hair: Hair


def random_fur(rng: np.random.Generator, name: str) -> float:
    """Brightness of a black or white coat, 0..255."""
    return rng.uniform(26, 46) if name == "black" else rng.uniform(196, 228)


def random_look(rng: np.random.Generator, name: str) -> Look:
    """A look independent of all others; `rng` gives the hairs as well, when they are painted."""

    def hair(mouse: Mouse, origin: npt.NDArray[np.int64], size: tuple[int, int]) -> Array:
        return _combed(rng.standard_normal(size, np.float32), _direction(mouse, 0.5))

    fur = random_fur(rng, name)
    return Look(fur, (rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)), (0.0, 0.0), hair)


def fixed_hair(rng: np.random.Generator, length: float) -> Hair:
    """Hairs that move and turn with the animal's middle; length: of its body, px."""
    side = int(1.7 * length) + 8
    hairs = _combed(rng.standard_normal((side, side), np.float32), 0.0)

    def hair(mouse: Mouse, origin: npt.NDArray[np.int64], size: tuple[int, int]) -> Array:
        angle = np.radians(_direction(mouse, 0.5))
        cosine, sine = np.cos(angle), np.sin(angle)
        back = np.array([[cosine, sine], [-sine, cosine]])
        shift = side / 2 + back @ (origin - mouse.centre)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        relief = cv2.warpAffine(hairs, np.column_stack([back, shift]), size[::-1], flags=flags)
        return np.asarray(relief, np.float32)

    return hair


def _combed(noise: Array, degrees: float) -> Array:
    """Noise averaged along a direction."""
    angle = np.radians(degrees)
    kernel = np.zeros((7, 7), np.float32)
    dx, dy = round(2 * float(np.cos(angle))), round(2 * float(np.sin(angle)))
    cv2.line(kernel, (3 - dx, 3 - dy), (3 + dx, 3 + dy), 1.0)
    return np.asarray(cv2.filter2D(noise, -1, kernel / kernel.sum()), np.float32)


@dataclass(frozen=True)
class _Coat:
    ear: tuple[float, float, float]
    inner_ear: tuple[float, float, float]
    skin: tuple[float, float, float]
    tail: tuple[float, float, float]
    eye: tuple[float, float, float]


_BLACK = _Coat((58, 58, 66), (74, 74, 90), (96, 100, 128), (62, 62, 72), (6, 6, 6))
_WHITE = _Coat((176, 178, 214), (142, 146, 196), (150, 156, 208), (146, 152, 190), (48, 40, 130))


class _Patch:
    """The part of the canvas around a mouse, and drawing in image px with sub-pixel precision."""

    def __init__(self, canvas: Array, mouse: Mouse) -> None:
        reach = 0.25 * mouse.length
        points = np.concatenate([mouse.spine, mouse.tail])
        low = np.floor(points.min(axis=0) - reach).astype(int).clip(0)
        high = np.ceil(points.max(axis=0) + reach).astype(int).clip(low + 1)
        self.view = canvas[low[1] : high[1], low[0] : high[0]]
        self.window = (slice(low[1], high[1]), slice(low[0], high[0]))
        self.origin = low
        self.length = mouse.length

    def fixed(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        return np.round((points - self.origin) * 16).astype(np.int32)

    def polygon(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        mask = np.zeros(self.view.shape[:2], np.uint8)
        cv2.fillPoly(mask, [self.fixed(points)], 255, cv2.LINE_AA, 4)
        return mask

    def ellipse(
        self,
        centre: npt.NDArray[np.float64],
        axes: tuple[float, float],
        degrees: float,
        colour: tuple[float, float, float],
        opacity: float = 1.0,
    ) -> None:
        mask = np.zeros(self.view.shape[:2], np.uint8)
        x, y = (int(v) for v in self.fixed(centre))
        half = [max(8, round(16 * axis * self.length)) for axis in axes]
        cv2.ellipse(mask, (x, y), (half[0], half[1]), degrees, 0, 360, 255, -1, cv2.LINE_AA, 4)
        self.blend(mask, np.array(colour, np.float32), opacity)

    def blend(self, mask: npt.NDArray[np.uint8], colour: Array, opacity: float = 1.0) -> None:
        """Lay `colour`, (3,) or like the patch, over the patch where `mask` says so, in place."""
        x, y, width, height = cv2.boundingRect(mask)
        rows, columns = slice(y, y + height), slice(x, x + width)
        alpha = mask[rows, columns, None].astype(np.float32) * np.float32(opacity / 255)
        view = self.view[rows, columns]
        view += (np.asarray(colour if colour.ndim == 1 else colour[rows, columns]) - view) * alpha


def _contour(mouse: Mouse, grow: float = 1.0) -> npt.NDArray[np.float64]:
    along = np.linspace(0, 1, _STEPS)
    half = np.interp(along, _WIDTH_AT, _WIDTH)
    half = np.convolve(np.pad(half, 4, mode="edge"), np.full(9, 1 / 9), "valid")
    half *= np.where(along > 0.35, mouse.plumpness, 1.0) * grow * mouse.length
    aside = mouse.right * half[:, None]
    return np.concatenate([mouse.spine + aside, (mouse.spine - aside)[::-1]])


def _direction(mouse: Mouse, along: float) -> float:
    """Degrees, clockwise in the image, of the animal's own axis at a point of the spine."""
    right = mouse.right[round(along * (_STEPS - 1))]
    return float(np.degrees(np.arctan2(-right[0], right[1])))


def paint(canvas: Array, mouse: Mouse, look: Look) -> npt.NDArray[np.uint8]:
    """Draw `mouse` on `canvas`, (height, width, 3) float32 BGR, in place, as far as it lies on it.

    Pixel centres have whole coordinates. Returns the body's mask, (height, width) uint8 of 0..255.
    """
    coat = _BLACK if mouse.name == "black" else _WHITE
    patch = _Patch(canvas, mouse)
    whole = np.zeros(canvas.shape[:2], np.uint8)
    if not patch.view.size:
        return whole
    body = patch.polygon(_contour(mouse))

    shadow = blur(patch.polygon(_contour(mouse, 1.12)).astype(np.float32), 0.035 * mouse.length)
    patch.view *= 1 - 0.45 / 255 * shadow[..., None]
    for index in range(len(mouse.tail) - 1):
        width = max(1, round(mouse.length * (0.034 - 0.024 * index / len(mouse.tail))))
        start, end = (tuple(map(int, p)) for p in patch.fixed(mouse.tail[index : index + 2]))
        shade = 1 + 0.12 * np.sin(index * 2.4)
        colour = [shade * channel for channel in coat.tail]
        cv2.line(patch.view, start, end, colour, width, cv2.LINE_AA, 4)
    for side, fore_shift, hind_shift in zip((-1, 1), look.fore, look.hind, strict=True):
        hind = mouse.at(0.80 + hind_shift, side * 0.185 * mouse.plumpness)
        patch.ellipse(hind, (0.062, 0.022), _direction(mouse, 0.8) + 12 * side, coat.skin)
        fore = mouse.at(0.37 + fore_shift, side * 0.112)
        patch.ellipse(fore, (0.030, 0.018), _direction(mouse, 0.35), coat.skin)

    patch.blend(body, _fur(patch, mouse, body, look))
    _face(patch, mouse, coat)
    whole[patch.window] = body
    return whole


def _fur(patch: _Patch, mouse: Mouse, body: npt.NDArray[np.uint8], look: Look) -> Array:
    """Shaded coat, (height, width, 3) of the patch: light by the height of the back, and hairs."""
    inner = cv2.distanceTransform((body > 127).astype(np.uint8), cv2.DIST_L2, 3)
    height = np.sqrt(np.clip(inner / (0.16 * mouse.length), 0, 1))
    for along, aside, size in ((0.70, 0.11, 0.075), (0.70, -0.11, 0.075), (0.17, 0.0, 0.07)):
        x, y = mouse.at(along, aside * mouse.plumpness) - patch.origin
        rows, columns = np.ogrid[: body.shape[0], : body.shape[1]]
        square = ((columns - x) ** 2 + (rows - y) ** 2) / (size * mouse.length) ** 2
        height += 0.22 * np.exp(-square.astype(np.float32))
    height = blur(height.astype(np.float32), 0.018 * mouse.length)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3)
    light = 0.62 + 0.42 * height - 0.25 * (slope_x * 0.6 + slope_y * 0.8)
    hair = look.hair(mouse, patch.origin, (body.shape[0], body.shape[1]))
    fur = look.fur
    # Black fur shines where the light falls on it; white fur is near the sensor's limit already.
    grain = 5.0 + 0.03 * fur
    shade = fur * light + grain * hair + (14 * np.clip(light - 0.85, 0, 1) if fur < 100 else 0)
    warm = np.array([0.97, 0.99, 1.0], np.float32)
    return np.asarray(shade[..., None] * warm, np.float32)


def _face(patch: _Patch, mouse: Mouse, coat: _Coat) -> None:
    facing = _direction(mouse, 0.15)
    patch.ellipse(mouse.at(0.012, 0.0), (0.024, 0.018), facing, coat.skin, 0.9)
    for side in (-1, 1):
        ear = mouse.at(0.215, side * 0.088)
        patch.ellipse(ear, (0.040, 0.056), facing + 20 * side, coat.ear)
        inner = mouse.at(0.200, side * 0.090)
        patch.ellipse(inner, (0.022, 0.036), facing + 20 * side, coat.inner_ear, 0.85)
        patch.ellipse(mouse.at(0.115, side * 0.050), (0.014, 0.011), facing, coat.eye)

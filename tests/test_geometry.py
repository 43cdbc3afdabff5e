from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasthg import geometry

WIDTH, HEIGHT = 640, 480


@st.composite
def views(draw: st.DrawFn) -> tuple[np.ndarray, bool, float]:
    """A crop within the image, a flip and an angle."""
    x1, y1 = draw(st.integers(0, WIDTH - 2)), draw(st.integers(0, HEIGHT - 2))
    x2, y2 = draw(st.integers(x1 + 1, WIDTH)), draw(st.integers(y1 + 1, HEIGHT))
    return np.array([[x1, y1, x2, y2]]), draw(st.booleans()), draw(st.floats(-180, 180))


def test_a_box_is_rounded_half_to_even_and_cut_at_the_image() -> None:
    bbox = [[0.5 / 4, 1.5 / 4, 2.5 / 4, 3.5 / 4], [-0.2, 0.1, 1.3, 0.9], [0.5, 0.5, 0.5, 0.5]]
    box = geometry.box_to_pixels(bbox, [4, 100, 100], [4, 100, 100])
    assert box.tolist() == [[0, 2, 2, 4], [0, 10, 100, 90], [50, 50, 51, 51]]


def test_a_box_at_the_far_border_keeps_a_side_of_one_px() -> None:
    box = geometry.box_to_pixels([[1.0, 1.0, 1.0, 1.0]], [10], [20])
    assert box.tolist() == [[9, 19, 10, 20]]


@pytest.mark.parametrize(
    ("box", "factor", "crop"),
    [
        ((100, 100, 200, 180), 0.65, (67, 74, 232, 206)),
        ((0, 100, 100, 180), 0.65, (0, 74, 100, 206)),
        ((10, 100, 110, 180), 0.65, (0, 74, 120, 206)),
        ((100, 100, 200, 480), 0.65, (67, 100, 232, 480)),
        ((100, 100, 200, 180), 0.0, (100, 100, 200, 180)),
    ],
)
def test_loose_crop_pads_both_sides_alike(
    box: tuple[int, ...], factor: float, crop: tuple[int, ...]
) -> None:
    got = geometry.loose_crop([box], [factor], [WIDTH], [HEIGHT])
    assert tuple(got[0]) == crop


@pytest.mark.parametrize(
    ("box", "factor", "crop"),
    [
        ((0, 100, 100, 180), 0.65, (-33, 74, 132, 206)),
        ((540, 100, 640, 180), 0.65, (507, 74, 672, 206)),
        ((100, 0, 200, 80), 0.5, (75, -20, 225, 100)),
        ((100, 400, 200, 480), 0.5, (75, 380, 225, 500)),
        ((0, 0, 15, 9), 0.5, (-4, -3, 18, 11)),
        ((630.5, 470.25, 640, 480), 2.0, (621, 460, 649, 489)),
        ((-3.5, -0.5, 20, 20), 0.0, (-4, -1, 20, 20)),
        ((0, 0, 640, 480), 2.0, (-640, -480, 1280, 960)),
        ((639, 479, 640, 480), 0.0, (639, 479, 640, 480)),
    ],
)
def test_a_crop_that_leaves_the_image_is_padded_alike_and_rounded_down(
    box: tuple[float, ...], factor: float, crop: tuple[int, ...]
) -> None:
    got = geometry.loose_crop([box], [factor], [WIDTH], [HEIGHT], clip=False)
    assert tuple(got[0]) == crop


@settings(max_examples=100, deadline=None)
@given(view=views(), factor=st.integers(0, 96), beyond=st.integers(1920, 5000))
def test_a_crop_that_leaves_the_image_is_that_of_a_larger_image(
    view: tuple[np.ndarray, bool, float], factor: int, beyond: int
) -> None:
    """A margin of up to three times the side; `beyond` px more than it on all sides."""
    box, larger = view[0], ([WIDTH + 2 * beyond], [HEIGHT + 2 * beyond])
    inside = geometry.loose_crop(box + beyond, [factor / 32], *larger)
    got = geometry.loose_crop(box, [factor / 32], [WIDTH], [HEIGHT], clip=False)
    assert (got + beyond).tolist() == inside.tolist()


def test_edges_move_outwards_and_stop_at_the_border() -> None:
    moved = geometry.shift_edges([[5, 50, 90, 99]], [[10, 4, 3.5, 8]], [100], [100])
    assert moved.tolist() == [[0, 46, 93.5, 100]]
    beyond = geometry.shift_edges([[5, 50, 90, 99]], [[10, 4, 3.5, 8]], [100], [100], clip=False)
    assert beyond.tolist() == [[-5, 46, 93.5, 107]]


def test_the_plain_map_is_the_formula_of_mars() -> None:
    crop = np.array([[30, 40, 130, 90]])
    to_heatmap = geometry.image_to_heatmap(geometry.image_to_input(crop, 256), 256, 64)
    points = np.array([[[30.0, 40.0], [130.0, 90.0], [55.5, 61.25]]])
    expected = (points - [30, 40]) * 64 / [100, 50]
    np.testing.assert_allclose(geometry.apply(points, to_heatmap), expected, atol=1e-12)


def test_a_flip_mirrors_about_the_crop() -> None:
    matrix = geometry.image_to_input([[30, 40, 130, 90]], 256, flip=[True])
    got = geometry.apply([[[30.0, 40.0], [130.0, 90.0]]], matrix)
    np.testing.assert_allclose(got, [[[256, 0], [0, 256]]], atol=1e-12)


def test_a_rotation_turns_counter_clockwise_after_the_stretch() -> None:
    matrix = geometry.image_to_input([[0, 0, 200, 50]], 256, angle=[90.0])
    right_middle, centre = [200.0, 25.0], [100.0, 25.0]
    got = geometry.apply([[right_middle, centre]], matrix)
    np.testing.assert_allclose(got, [[[128, 0], [128, 128]]], atol=1e-10)


def test_the_flip_comes_before_the_rotation() -> None:
    matrix = geometry.image_to_input([[0, 0, 100, 100]], 256, flip=[True], angle=[90.0])
    got = geometry.apply([[[0.0, 50.0]]], matrix)
    np.testing.assert_allclose(got, [[[128, 0]]], atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(view=views(), size=st.sampled_from([64, 128, 256]))
def test_decoding_undoes_encoding(view: tuple[np.ndarray, bool, float], size: int) -> None:
    crop, flip, angle = view
    encode = geometry.image_to_heatmap(
        geometry.image_to_input(crop, size, [flip], [angle]), size, size // 4
    )
    points = np.array([[[0.0, 0.0], [17.25, 300.5], [639.0, 479.0]]])
    back = geometry.apply(geometry.apply(points, encode), geometry.invert(encode))
    np.testing.assert_allclose(back, points, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(view=views())
def test_corners_stay_on_the_square_without_rotation(view: tuple[np.ndarray, bool, float]) -> None:
    crop, flip, _ = view
    x1, y1, x2, y2 = crop[0]
    got = geometry.apply([[[x1, y1], [x2, y2]]], geometry.image_to_input(crop, 256, [flip]))
    expected = [[[256, 0], [0, 256]]] if flip else [[[0, 0], [256, 256]]]
    np.testing.assert_allclose(got, expected, atol=1e-8)


def test_nan_points_stay_nan_and_harm_no_other() -> None:
    matrix = geometry.image_to_input([[0, 0, 100, 100]], 256, angle=[30.0])
    got = geometry.apply([[[np.nan, 5.0], [50.0, 50.0]]], matrix)
    assert np.isnan(got[0, 0]).all()
    np.testing.assert_allclose(got[0, 1], [128, 128])


def test_pixels_move_as_resize_moves_them() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    crop = np.array([[10, 20, 60, 75]])
    matrix = geometry.invert(geometry.image_to_input(crop, 256))[0]
    warped = cv2.warpAffine(
        image,
        geometry.from_pixel_centres(matrix),
        (256, 256),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    resized = cv2.resize(image[20:75, 10:60], (256, 256), interpolation=cv2.INTER_LINEAR)
    inner = (slice(3, -3), slice(3, -3))
    assert np.abs(warped[inner].astype(int) - resized[inner]).max() <= 1


@settings(max_examples=100, deadline=None)
@given(view=views(), margin=st.integers(0, 5))
def test_the_window_holds_every_pixel_the_warp_reads(
    view: tuple[np.ndarray, bool, float], margin: int
) -> None:
    crop, flip, angle = view
    to_image = geometry.invert(geometry.image_to_input(crop, 16, [flip], [angle]))
    margins = np.array([[margin, margin]])
    window = geometry.source_window(to_image, 16, margins, [WIDTH], [HEIGHT])[0]
    centres = np.stack(np.meshgrid(np.arange(16) + 0.5, np.arange(16) + 0.5), -1).reshape(1, -1, 2)
    read = geometry.apply(centres, to_image)[0] - 0.5
    low, high = np.floor(read).min(axis=0) - margin, np.floor(read).max(axis=0) + 1 + margin
    size = np.array([WIDTH, HEIGHT])
    assert (window[:2] <= np.clip(low, 0, size - 1)).all()
    assert (window[2:] > np.clip(high, 0, size - 1)).all()
    assert (window[:2] >= 0).all()
    assert (window[2:] <= size).all()
    assert (window[2:] > window[:2]).all()

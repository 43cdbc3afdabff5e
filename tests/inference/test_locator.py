"""Centres from maps, boxes around poses, and the count of what was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fasthg.geometry import box_iou
from fasthg.inference.locator import (
    Found,
    JudgedFrame,
    LocatorSettings,
    agreement,
    best_agreement,
    boxes_of_poses,
    find_centres,
    match_boxes,
    without_ghosts,
)
from fasthg.model.loss import SIZE_UNIT, locator_loss
from fasthg.ops import gaussian_heatmaps

CELLS = 24


def maps_of(centres: list[tuple[float, float]], sizes: list[tuple[float, float]], classes: int):
    """Perfect maps of one frame; animal `i` is of class `i`."""
    points = torch.tensor([centres])
    gaussians = gaussian_heatmaps(points, torch.full((len(centres),), 1.2), CELLS, subpixel=True)
    maps = torch.zeros(1, 1 + classes + 2, CELLS, CELLS)
    maps[:, 0], owner = gaussians.max(dim=1)
    maps[:, 1 : 1 + classes] = gaussians[:, :classes]
    maps[:, -2:] = torch.log(torch.tensor(sizes) / SIZE_UNIT)[owner].permute(0, 3, 1, 2)
    return maps


@pytest.mark.parametrize("by_class", [False, True])
def test_centres_are_found_with_their_sizes(by_class: bool) -> None:
    centres, sizes = [(5.3, 6.8), (17.6, 12.2)], [(6.0, 4.0), (5.0, 9.0)]
    ((boxes, scores, classes),) = find_centres(
        maps_of(centres, sizes, 2), 4, classes=2, by_class=by_class
    )
    order = np.argsort(boxes[:, 0])
    found = (boxes[order, :2] + boxes[order, 2:]) / 2
    np.testing.assert_allclose(found, centres, atol=0.02)
    np.testing.assert_allclose(boxes[order, 2:] - boxes[order, :2], sizes, rtol=1e-4)
    assert classes[order].tolist() == ([0, 1] if by_class else [-1, -1])
    assert (scores > 0.8).all()


def test_the_best_ones_count_and_one_animal_has_one_centre() -> None:
    maps = torch.zeros(1, 3, CELLS, CELLS)
    maps[0, 1:] = np.log(20 / SIZE_UNIT)
    for x, y, score in ((4, 4, 0.9), (5, 6, 0.5), (18, 18, 0.7), (4, 18, 0.3), (12, 2, 0.01)):
        maps[0, 0, y, x] = score
    ((boxes, scores, _),) = find_centres(maps, 5, classes=0, by_class=False)
    # The second lies on the first, the last is below every threshold.
    np.testing.assert_allclose(scores, [0.9, 0.7, 0.3])
    assert len(find_centres(maps, 1, classes=0, by_class=False)[0][0]) == 1
    assert not len(find_centres(torch.zeros(1, 3, 8, 8), 3, classes=0, by_class=False)[0][0])


def test_another_class_at_the_same_place_is_a_ghost_only_if_much_lower() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]])
    found = Found(boxes, np.array([0.9, 0.4, 0.2]), np.array([0, 1, 1]))
    assert without_ghosts(found).scores.tolist() == [0.9, 0.2]
    both = Found(boxes, np.array([0.9, 0.5, 0.2]), np.array([0, 1, 1]))
    assert len(without_ghosts(both)) == 3


def test_the_loss_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    slots, classes, cells = 3, 2, 12
    keypoints = torch.rand(2, 2 * slots, 2) * 8 + 2
    visibility = torch.full((2, 2 * slots), 2, dtype=torch.uint8)
    keypoints[1, 1], visibility[1, 1] = float("nan"), 0
    keypoints[1, 4] = float("nan")
    sigmas = torch.full((2, 2 * slots), 1.3)
    predictions = torch.randn(1, 2, 1 + classes + 2, cells, cells, requires_grad=True)
    loss = locator_loss(predictions, keypoints, visibility, sigmas, classes=classes)
    for row in range(2):
        wanted = 0.0
        for y in range(cells):
            for x in range(cells):
                near = [
                    0.0
                    if not visibility[row, s]
                    else float(
                        torch.exp(
                            -((x - keypoints[row, s, 0]) ** 2 + (y - keypoints[row, s, 1]) ** 2)
                            / (2 * 1.3**2)
                        )
                    )
                    for s in range(slots)
                ]
                targets = [max(near), *near[:classes]]
                mine = predictions[0, row, :, y, x].tolist()
                wanted += sum((p - t) ** 2 for p, t in zip(mine, targets, strict=False)) / 2
                if max(near) > 0.3:
                    size = keypoints[row, slots + int(np.argmax(near))]
                    for p, side in zip(mine[-2:], size.tolist(), strict=True):
                        error = abs(p - np.log(max(side, 1) / SIZE_UNIT))
                        huber = error**2 / 2 if error < 0.5 else 0.5 * (error - 0.25)
                        wanted += max(near) * huber
        assert float(loss[0, row]) == pytest.approx(wanted / 2, rel=1e-4)
    loss.sum().backward()
    assert torch.isfinite(predictions.grad).all()


def test_cells_where_a_partly_labelled_animal_may_be_do_not_count() -> None:
    cells = 16
    keypoints = torch.tensor([[[4.0, 4], [11, 11], [3, 3], [3, 3]]])
    sigmas = torch.ones(1, 4)
    visibility = torch.tensor([[2, 1, 2, 1]], dtype=torch.uint8)
    predictions = torch.rand(1, 1, 3, cells, cells, requires_grad=True)
    locator_loss(predictions, keypoints, visibility, sigmas, classes=0).sum().backward()
    y, x = np.mgrid[:cells, :cells]
    near = np.exp(-((x - 11) ** 2 + (y - 11) ** 2) / 2) > 0.1
    np.testing.assert_array_equal(predictions.grad[0, 0, 0].numpy() == 0, near)
    assert predictions.grad[0, 0, 1:, 4, 4].abs().min() > 0


def test_a_box_goes_around_a_sure_pose_and_never_shrinks_to_the_head() -> None:
    settings = LocatorSettings(margin=(0.05, 0.1))
    box = np.array([[40.0, 40, 100, 80]])
    pose = np.array([[[48.0, 50], [60, 55], [70, 62], [92, 70]]])
    sure = np.full((1, 4), 0.9)
    around = boxes_of_poses(box, pose, sure, settings, (200, 100))
    np.testing.assert_allclose(around, [[38, 40, 102, 80]])
    two_sure = np.array([[0.9, 0.9, 0.1, 0.1]])
    np.testing.assert_array_equal(boxes_of_poses(box, pose, two_sure, settings, (200, 100)), box)
    head = pose.copy()
    head[:, 2:] = head[:, :2] + 2
    tight = LocatorSettings(margin=(0.0, 0.0))
    np.testing.assert_array_equal(boxes_of_poses(box, head, sure, tight, (200, 100)), box)


def frames():
    truth = np.array([[0.0, 0, 10, 10], [20, 20, 40, 30]])
    near = Found(
        np.array([[1.0, 0, 11, 10], [60, 60, 70, 70]]), np.array([0.9, 0.4]), np.zeros(2, int)
    )
    nothing = np.zeros((0, 4))
    none, both = np.zeros(0, int), np.ones(2, bool)
    return [
        JudgedFrame(near, truth, np.array([0, 1]), both),
        JudgedFrame(near.take(np.array([1])), nothing, none, none.astype(bool)),
        JudgedFrame(Found.nothing(), truth[1:], np.array([1]), both[:1]),
    ]


def test_the_count_of_what_was_found() -> None:
    low, high = (agreement(frames(), threshold, 2) for threshold in (0.3, 0.5))
    assert (low.animals, low.found, low.false, low.frames) == (3, 1, 2, 3)
    assert (high.found, high.false, high.class_right) == (1, 0, 1)
    assert high.centre_px == pytest.approx(1.0)
    assert high.overlap == pytest.approx(9 / 11)
    assert high.quality == pytest.approx((9 / 11) / 2)
    # The middle of the thresholds at which the false boxes are gone.
    assert best_agreement(frames(), 2).threshold == pytest.approx(0.65)


def test_a_partly_labelled_animal_is_neither_missed_nor_a_box_on_it_false() -> None:
    truth = np.array([[0.0, 0, 10, 10]])
    partly, whole = np.zeros(1, bool), np.ones(1, bool)
    for box in ([0.0, 0, 10, 10], [8, 8, 30, 30]):
        found = Found(np.array([box]), np.array([0.9]), np.array([-1]))
        result = agreement([JudgedFrame(found, truth, np.array([-1]), partly)], 0.3, 1)
        assert (result.animals, result.found, result.false) == (0, 0, 0)
        result = agreement([JudgedFrame(found, truth, np.array([-1]), whole)], 0.3, 1)
        assert (result.animals, result.found + result.false) == (1, 1)
    away = Found(np.array([[20.0, 20, 30, 30]]), np.array([0.9]), np.array([-1]))
    assert agreement([JudgedFrame(away, truth, np.array([-1]), partly)], 0.3, 1).false == 1


def test_matches_are_the_best_of_all_not_the_first() -> None:
    found = np.array([[0.0, 0, 10, 10], [0, 2, 10, 12]])
    truth = np.array([[0.0, 1, 10, 11], [0, -3, 10, 7]])
    assert [(a, b) for a, b, _ in match_boxes(found, truth)] == [(0, 1), (1, 0)]
    assert match_boxes(found, truth + 50) == []


def test_iou_of_boxes() -> None:
    one = np.array([0.0, 0, 4, 4])
    assert box_iou(one, [2, 0, 6, 4]) == pytest.approx(1 / 3)
    assert box_iou(one, [4, 4, 5, 5]) == 0
    assert np.isnan(box_iou(one, [np.nan] * 4))


def test_settings_survive_the_weights_file() -> None:
    settings = LocatorSettings(classes=("a", "b"), told_apart=True, most=2, threshold=0.4)
    assert LocatorSettings.from_json(settings.to_json()) == settings
    with pytest.raises(TypeError):
        LocatorSettings.from_json(
            '{"classes": [], "sizes": [], "margin": [], "pose_scores": [], "x": 1}'
        )

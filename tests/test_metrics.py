"""Metrics against values computed by hand, and OKS against pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fasthg import metrics
from fasthg.errors import ConfigError

COCO_SIGMAS = (
    np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
)
NAN = np.nan


def test_errors_by_hand() -> None:
    true = [[[0, 0], [10, 10], [5, 5], [NAN, 5]], [[1, 1], [2, 2], [3, 3], [4, 4]]]
    predicted = [[[3, 4], [10, 10], [9, 9], [1, 1]], [[1, 2], [NAN, 2], [3, 3], [NAN, NAN]]]
    found = metrics.errors(predicted, true, [[2, 1, 0, 2], [2, 2, 2, 0]])
    np.testing.assert_array_equal(found, [[5, 0, NAN, NAN], [1, np.inf, 0, NAN]])


def test_spread_by_hand() -> None:
    found = metrics.spread([3.0, NAN, 1.0, 2.0, np.inf, 10.0, 4.0])
    assert found.mean == 4.0
    assert found.median == 3.0
    assert found.p90 == pytest.approx(4 + 0.6 * 6)
    assert found.p95 == pytest.approx(4 + 0.8 * 6)
    assert found.rmse == pytest.approx(np.sqrt((9 + 1 + 4 + 100 + 16) / 5))
    assert (found.count, found.missing) == (5, 1)


def test_summary_by_part_with_an_unlabelled_part() -> None:
    found = metrics.summary([[1.0, NAN], [3.0, NAN]], ["nose", "tail"])
    assert list(found.parts) == ["nose", "tail"]
    assert found.parts["nose"].mean == found.overall.mean == 2.0
    assert found.parts["tail"].count == 0
    assert np.isnan(found.parts["tail"].median)


def test_summary_of_nothing() -> None:
    found = metrics.summary(np.empty((0, 2)), ["a", "b"])
    assert found.overall.count == 0
    assert np.isnan(found.overall.rmse)


def test_pck_by_hand() -> None:
    distances = [[1.0, 5.0, NAN], [2.0, np.inf, NAN], [2.1, 4.0, NAN]]
    found = metrics.pck(distances, [2, 5])
    expected = [[2 / 3, 0, NAN, 2 / 6], [1, 2 / 3, NAN, 5 / 6]]
    np.testing.assert_allclose(found, expected)


def test_oks_by_hand() -> None:
    # d^2 = 8 sigma^2 area makes the exponent -1.
    area, sigma = np.array([100.0, 400.0]), 0.05
    one = np.sqrt(8 * sigma**2 * area)
    found = metrics.oks([[one[0], 0, NAN], [one[1], np.inf, NAN]], [sigma] * 3, area)
    np.testing.assert_allclose(found, [(np.exp(-1) + 1) / 2, np.exp(-1) / 2])


def test_oks_without_labels_or_area_is_nan() -> None:
    found = metrics.oks([[NAN, NAN], [0, 0], [0, 0], [0, 0]], [0.1, 0.1], [100, 0, NAN, 100])
    np.testing.assert_array_equal(found, [NAN, NAN, NAN, 1])


def test_average_precision_by_hand() -> None:
    # Best score wrong: precision 0, 1/2, 2/3 and recall 0, 1/3, 2/3 at every threshold.
    found = metrics.average_precision([0.0, 1.0, 1.0], [0.9, 0.5, 0.1])
    assert found.ap == pytest.approx(2 / 3 * 67 / 101)
    assert found.ar == pytest.approx(2 / 3)
    # Wrong one last: precision 1 up to recall 2/3.
    assert metrics.average_precision([0.0, 1.0, 1.0], [0.0, 0.5, 0.1]).ap == pytest.approx(67 / 101)


def test_average_precision_thresholds() -> None:
    found = metrics.average_precision([0.75], [1.0])
    assert found.ap50 == 1.0
    assert found.ap75 == 1.0
    assert found.ap == pytest.approx(0.6)
    assert metrics.average_precision([0.74], [1.0]).ap75 == 0.0


def test_average_precision_leaves_unlabelled_instances_out() -> None:
    found = metrics.average_precision([1.0, NAN], [0.1, 0.9])
    assert (found.ap, found.ar, found.count) == (1.0, 1.0, 1)
    nothing = metrics.average_precision([NAN], [0.9])
    assert np.isnan(nothing.ap)
    assert nothing.count == 0


def test_instances_without_score_come_last() -> None:
    assert metrics.average_precision([0.0, 1.0], [NAN, 0.1]).ap == pytest.approx(51 / 101)


def test_larger_area_is_more_lenient() -> None:
    distances, scores = np.full((4, 2), 6.0), np.arange(4.0)
    areas = {"annotation": np.full(4, 900.0), "padded crop": np.full(4, 900.0 * 1.65**2)}
    found = metrics.precision_by_area(distances, [0.1, 0.1], scores, areas)
    assert found["padded crop"].ap > found["annotation"].ap > 0


def coco_inputs(seed: int, instances: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.uniform(0, 200, (instances, 17, 2))
    noise = generator.normal(0, 1, labels.shape) * generator.uniform(0.5, 12, (instances, 1, 1))
    visibility = generator.integers(0, 3, (instances, 17))
    visibility[:, 0] = 2
    return {
        "labels": labels,
        "predictions": labels + noise,
        "visibility": visibility,
        "area": generator.uniform(2000, 20000, instances),
        "scores": generator.permutation(instances) / instances,
    }


def coco_evaluation(
    data: dict[str, np.ndarray], per_image: int = 1, crowds: Sequence[int] = ()
) -> Any:
    """pycocotools' evaluation; crowds: instances that are marked as such."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    instances = range(len(data["area"]))

    def flat(points: np.ndarray, index: int) -> list[float]:
        return np.column_stack([points[index], data["visibility"][index]]).ravel().tolist()

    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": index + 1} for index in instances[::per_image]],
        "categories": [{"id": 1, "name": "mouse"}],
        "annotations": [
            {
                "id": index + 1,
                "image_id": index // per_image * per_image + 1,
                "category_id": 1,
                "iscrowd": int(index in crowds),
                "area": float(data["area"][index]),
                "bbox": [0, 0, 200, 200],
                "num_keypoints": int((data["visibility"][index] > 0).sum()),
                "keypoints": flat(data["labels"], index),
            }
            for index in instances
        ],
    }
    results = [
        {
            "image_id": index // per_image * per_image + 1,
            "category_id": 1,
            "score": float(data["scores"][index]),
            "keypoints": flat(data["predictions"], index),
        }
        for index in instances
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        run = evaluation.COCOeval(truth, truth.loadRes(results), "keypoints")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


@pytest.mark.parametrize("instances", [1, 40])
def test_oks_and_precision_agree_with_pycocotools(instances: int) -> None:
    data = coco_inputs(seed=instances, instances=instances)
    run = coco_evaluation(data)
    distances = metrics.errors(data["predictions"], data["labels"], data["visibility"])
    similarity = metrics.oks(distances, COCO_SIGMAS, data["area"])
    expected = [float(run.ious[index + 1, 1][0, 0]) for index in range(instances)]
    np.testing.assert_allclose(similarity, expected, rtol=1e-9)
    found = metrics.average_precision(similarity, data["scores"])
    # stats: AP, AP50, AP75, AP medium, AP large, AR, ...
    np.testing.assert_allclose([found.ap, found.ap50, found.ap75], run.stats[:3], atol=1e-9)
    assert found.ar == pytest.approx(run.stats[5])
    assert instances == 1 or 0.1 < found.ap < 0.9


def test_where_precision_differs_from_coco() -> None:
    """Each difference that UNLIKE_COCO names, on twelve animals that are found exactly."""
    data = coco_inputs(seed=1, instances=12)
    data["predictions"] = data["labels"].copy()

    def ours(keep: Any = slice(None)) -> float:
        distances = metrics.errors(data["predictions"], data["labels"], data["visibility"])
        similarity = metrics.oks(distances, COCO_SIGMAS, data["area"])
        return metrics.average_precision(similarity[keep], data["scores"][keep]).ap

    def of_coco(per_image: int = 1, crowds: Sequence[int] = ()) -> float:
        return float(coco_evaluation(data, per_image, crowds).stats[0])

    # Predictions of the two animals of a frame exchanged: COCO exchanges them again.
    assert ours() == of_coco(2) == 1
    data["predictions"][[0, 1]] = data["predictions"][[1, 0]]
    assert ours() < of_coco(2) == 1
    data["predictions"] = data["labels"].copy()
    # A crowd that is found, and another animal that is not: COCO counts without the crowd.
    data["predictions"][5] += 1000
    data["scores"][5] = 1.5
    others = [index for index in range(12) if index != 3]
    assert of_coco(crowds=[3]) == pytest.approx(ours(others)) and ours() > ours(others) + 1e-3
    data["predictions"][5] -= 1000
    # Without a label: COCO takes its prediction for a false positive if it is far away.
    data["visibility"][3] = 0
    data["scores"][3] = 2.0
    assert of_coco() == ours() == 1
    data["predictions"][3] += 1000
    assert of_coco() < ours() == 1


def test_mouse_sigmas_of_the_stock_parts() -> None:
    names = [
        "nose",
        "right ear",
        "left ear",
        "top of neck",
        "right rear knee",
        "left rear knee",
        "base of tail",
    ]
    top = metrics.oks_sigmas(names, "mouse_top")
    np.testing.assert_array_equal(top, [0.039, 0.045, 0.045, 0.042, 0.067, 0.067, 0.044])
    front = metrics.oks_sigmas(names, "mouse_front")
    np.testing.assert_array_equal(front, [0.087, 0.087, 0.087, 0.093, 0.125, 0.125, 0.086])


def test_mouse_sigmas_by_other_spellings() -> None:
    names = ["snout", "leftear", "Ear_Right", "l_ear", "tailbase", "side body (left)", "tail_end"]
    found = metrics.oks_sigmas(names, "mouse_top")
    np.testing.assert_array_equal(found, [0.039, 0.045, 0.045, 0.045, 0.044, 0.067, 0.084])
    assert metrics.oks_sigmas(["left front paw"], "mouse_front") == [0.125]


def test_fixed_and_given_sigmas() -> None:
    np.testing.assert_array_equal(metrics.oks_sigmas(["a", "b"], "ultrawide"), [0.15, 0.15])
    np.testing.assert_array_equal(metrics.oks_sigmas(["a", "b"], (0.1, 0.2)), [0.1, 0.2])


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["nose", "wing"], "mouse_top", "no sigma for 'wing'; use narrow"),
        (["left paw"], "mouse_top", "no sigma for 'left paw'"),
        (["nose"], "tight", "unknown set 'tight'; use one of mouse_top"),
        (["nose"], (0.1, 0.2), "2 numbers for 1 parts"),
    ],
)
def test_sigmas_that_do_not_fit(names: list[str], kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metrics.oks_sigmas(names, kind)

"""Agreement of made-up crowds whose noise, swaps and outliers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fasthg.config import Config
from fasthg.data.agreement import Crowd, measure, read_crowd, repair
from fasthg.data.agreement.crowd import areas, without
from fasthg.data.agreement.measure import against_others, median_variance
from fasthg.errors import DataError
from fasthg.report.agreement.tables import tables

PARTS = ("nose", "left ear", "right ear", "tail")
# Image px, on an image of 1000 x 800; noise of a few px hardly moves the box.
TRUTH = np.array([[500, 200], [420, 300], [580, 300], [500, 600]], float)
NOISE = np.array([3.0, 4.0, 5.0, 6.0])


def crowd(
    labels: np.ndarray, pairs: tuple[tuple[int, int], ...] = ((1, 2),), **given: Any
) -> Crowd:
    """labels: (animals, workers, parts, 2)."""
    animals, workers = labels.shape[:2]
    fields: dict[str, Any] = {
        "source": "labels.manifest",
        "parts": PARTS[: labels.shape[2]],
        "pairs": pairs,
        "workers": tuple(f"worker {i + 1}" for i in range(workers)),
        "frames": tuple(f"frame{i}.jpg, black" for i in range(animals)),
        "animals": ("black",) * animals,
        "labels": labels,
        "who": np.where(np.isfinite(labels).any(axis=(2, 3)), np.arange(workers), -1),
        "size": np.full((animals, 2), (1000.0, 800.0)),
    }
    return Crowd(**{**fields, **given})


def noisy(
    animals: int, workers: int, seed: int = 0, factors: dict[int, float] | None = None
) -> np.ndarray:
    """Labels with normal noise of NOISE px a coordinate, times the factor of a worker."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(animals, workers, 4, 2)) * NOISE[:, None]
    for worker, factor in (factors or {}).items():
        noise[:, worker] *= factor
    return TRUTH + noise


@pytest.mark.parametrize("workers", [2, 3, 4, 5, 8])
def test_sigmas_are_recovered_whatever_the_number_of_workers(workers: int) -> None:
    made = crowd(noisy(1500, workers))
    found = measure(made)
    # d² about the truth is 2 noise² on average, two coordinates.
    expected = NOISE * np.sqrt(2 * np.mean(1 / areas(made)))
    np.testing.assert_allclose(found.sigmas, expected, rtol=0.05)
    np.testing.assert_allclose(found.robust, expected, rtol=0.07)


def test_gross_mistakes_show_in_sigma_but_not_in_the_robust_one() -> None:
    labels = noisy(600, 5)
    clean = measure(crowd(labels))
    labels[::40, 2, 0] += 300
    found = measure(crowd(labels))
    assert found.sigmas[0] > 3 * clean.sigmas[0]
    np.testing.assert_allclose(found.robust, clean.robust, rtol=0.03)
    np.testing.assert_allclose(found.sigmas[1:], clean.sigmas[1:], rtol=0.01)


@pytest.mark.parametrize("count", range(1, 8))
def test_variance_of_a_median(count: int) -> None:
    rng = np.random.default_rng(count)
    drawn = np.median(rng.normal(size=(400_000, count)), axis=1)
    assert median_variance(count) == pytest.approx(drawn.var(), rel=0.01)


def test_variances_of_medians_that_are_known() -> None:
    # From tables of variances and covariances of normal order statistics.
    for count, variance in ((1, 1.0), (2, 0.5), (3, 0.44867), (4, 0.29820), (5, 0.28683)):
        assert median_variance(count) == pytest.approx(variance, abs=2e-5)
    # The limit is pi / 2 over the count.
    assert median_variance(301) == pytest.approx(np.pi / 2 / 301, rel=0.01)


def test_areas_are_those_of_converted_records() -> None:
    labels = np.repeat(TRUTH[None, None], 3, axis=1).repeat(3, axis=0)
    labels[1, :, 1:] = np.nan
    size = np.array([[1000.0, 800], [1000, 800], [np.nan, np.nan]])
    found = areas(crowd(labels, size=size))
    # 420..580 of 1000 and 200..600 of 800, grown by 0.04 of each side.
    assert found[0] == pytest.approx((160 + 80) * (400 + 64), rel=1e-6)
    assert np.isnan(found[1:]).all(), "one part has no box; neither has an image that is not there"


def test_distances_and_bands_of_three_workers() -> None:
    labels = np.array([[0.0, 0], [3, 0], [10, 0]]).reshape(1, 3, 1, 2)
    distance, others = against_others(labels)
    assert distance.ravel().tolist() == [6.5, 2.0, 8.5]
    assert others.ravel().tolist() == [2, 2, 2]
    found = measure(crowd(labels, pairs=()))
    for k, radius in enumerate(found.radii):
        assert found.bands[:, k, 0].tolist() == [radius >= 8.5, radius >= 6.5, radius >= 2]


def test_bands_are_ordered_and_rise() -> None:
    labels = noisy(80, 6, factors={1: 2.0})
    labels[np.random.default_rng(1).random(labels.shape[:3]) < 0.3] = np.nan
    found = measure(crowd(labels))
    low, middle, high = found.bands
    assert (low <= middle).all() and (middle <= high).all() and (low < high).any()
    assert (np.diff(found.bands, axis=1) >= 0).all()
    assert found.bands.shape == (3, len(found.radii), len(PARTS) + 1)
    assert found.bands[0, -1].min() > 0.8, "the last radius holds nearly all labels"


@pytest.mark.parametrize("seed", range(6))
def test_an_outlier_is_named_and_nobody_else(seed: int) -> None:
    assert measure(crowd(noisy(40, 6, seed))).outliers == ()
    found = measure(crowd(noisy(40, 6, seed, {3: 4.0})))
    assert found.outliers == ("worker 4",)


def test_outliers_are_left_out_of_the_sigmas() -> None:
    made = crowd(noisy(400, 5, factors={0: 6.0}))
    found = measure(made)
    assert found.outliers == ("worker 1",)
    np.testing.assert_allclose(found.sigmas, measure(without(made, [0])).sigmas, rtol=1e-2)


def test_few_labels_are_no_ground_to_judge_a_worker() -> None:
    labels = noisy(40, 6, factors={3: 8.0})
    labels[4:, 3] = np.nan
    found = measure(crowd(labels))
    assert found.workers[3].labels == 16 and found.workers[3].median > 20
    assert found.outliers == ()


def test_swaps_are_repaired_and_counted() -> None:
    labels = noisy(30, 5)
    right = crowd(labels)
    swapped = labels.copy()
    swapped[:4, 1, 1:3] = labels[:4, 1, [2, 1]]
    swapped[2:3, 4, 1:3] = labels[2:3, 4, [2, 1]]
    swapped[20, 0] = np.nan
    found = measure(crowd(swapped))
    assert [worker.swaps for worker in found.workers] == [0, 4, 0, 0, 1]
    assert [worker.voted for worker in found.workers] == [29, 30, 30, 30, 30]
    assert [(r.frame, r.worker, r.left, r.right) for r in found.repairs] == [
        ("frame0.jpg, black", "worker 2", "left ear", "right ear"),
        ("frame1.jpg, black", "worker 2", "left ear", "right ear"),
        ("frame2.jpg, black", "worker 2", "left ear", "right ear"),
        ("frame2.jpg, black", "worker 5", "left ear", "right ear"),
        ("frame3.jpg, black", "worker 2", "left ear", "right ear"),
    ]
    repaired = repair(crowd(swapped))[0].labels
    np.testing.assert_array_equal(repaired[:20], right.labels[:20])


def test_what_nobody_else_labelled_is_left_out_and_counted() -> None:
    labels = noisy(10, 3)
    labels[2, 1:, 0] = np.nan
    labels[3, :, 1] = np.nan
    labels[4, 0, 3, 0] = np.nan
    found = measure(crowd(labels))
    assert found.single.tolist() == [1, 0, 0, 0]
    counts = [found.error.parts[part].count for part in PARTS]
    assert counts == [27, 27, 30, 29]
    assert found.error.overall.missing == 0


@pytest.mark.parametrize("shape", [(5, 1), (0, 0), (0, 3)])
def test_one_worker_or_no_frame_is_one_line(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"labels\.manifest: no part was .* several") as caught:
        measure(crowd(noisy(*shape)))
    assert "\n" not in str(caught.value)


def test_centimetres() -> None:
    found = measure(crowd(noisy(20, 3)), pixels_per_cm=20)
    assert found.error_cm is not None
    assert found.error_cm.overall.median == pytest.approx(found.error.overall.median / 20)


def test_no_line_for_the_config_without_a_sigma_for_each_part() -> None:
    labels = noisy(20, 3)
    labels[:, 1:, 3] = np.nan
    assert measure(crowd(labels)).config_line() is None
    nowhere = np.full((20, 2), np.nan)
    found = measure(crowd(noisy(20, 3), size=nowhere))
    assert found.config_line() is None and found.sized == 0
    (sigmas,) = (table for table in tables(found) if table.title == "OKS sigmas")
    assert any("20 of 20 animals are left out" in note for note in sigmas.notes)


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    """Writes a MARS project of one animal; labels (frames, workers, parts, 2), NaN left out."""

    def make(labels: np.ndarray) -> Path:
        images = tmp_path / "annotation_data" / "raw_images"
        images.mkdir(parents=True)
        (tmp_path / "project_config.yaml").write_text(
            "animal_names: []\nspecies: mouse\nkeypoints: [nose, left ear, right ear, tail]\n"
            "check_pairs: [[left ear, right ear]]\npose: {top: []}\n"
        )
        lines = []
        for number, frame in enumerate(labels):
            Image.new("L", (1000, 800)).save(images / f"frame{number}.png")
            answers = [
                {
                    "keypoints": [
                        {"label": part, "x": x, "y": y}
                        for part, (x, y) in zip(PARTS, points.tolist(), strict=True)
                        if np.isfinite(x)
                    ]
                }
                for points in frame
            ]
            answers = [answer for answer in answers if answer["keypoints"]]
            lines.append(
                json.dumps(
                    {"source-ref": f"s3://b/frame{number}.png", "j": {"annotations": answers}}
                )
            )
        (tmp_path / "annotation_data" / "a.manifest").write_text("\n".join(lines))
        return tmp_path

    return make


def test_a_project_is_read_with_uneven_numbers_of_workers(project: Callable[..., Path]) -> None:
    labels = noisy(4, 3)
    labels[1, 2] = np.nan
    folder = project(labels)
    (folder / "annotation_data/raw_images/frame3.png").write_text("no image")
    found = read_crowd(folder)
    np.testing.assert_allclose(found.labels, labels)
    assert found.who.tolist() == [[0, 1, 2], [0, 1, -1], [0, 1, 2], [0, 1, 2]]
    assert found.frames[1] == "s3://b/frame1.png, mouse"
    assert found.pairs == ((1, 2),) and found.workers[2] == "worker 3"
    np.testing.assert_array_equal(found.size, [[1000, 800]] * 3 + [[np.nan, np.nan]])


def test_workers_are_known_by_name(project: Callable[..., Path]) -> None:
    """Whoever answers a frame first is not the same person in every frame."""
    labels = noisy(40, 4, factors={2: 6.0})
    folder = project(labels)
    manifest = folder / "annotation_data" / "a.manifest"
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, entry in enumerate(entries):
        answers = entry["j"]["annotations"]
        for worker, answer in enumerate(answers):
            answer["workerId"] = f"person {worker}"
        entry["j"]["annotations"] = answers[number % 4 :] + answers[: number % 4]
    manifest.write_text("\n".join(map(json.dumps, entries)))
    found = measure(read_crowd(folder))
    assert found.outliers == ("person 2",)
    assert sorted(worker.name for worker in found.workers) == [f"person {i}" for i in range(4)]


@pytest.fixture
def fasthg(fasthg: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return lambda *arguments: fasthg("data", "agreement", *arguments)


def test_the_verb(
    fasthg: Callable[..., tuple[int, str, str]], project: Callable[..., Path], tmp_path: Path
) -> None:
    labels = noisy(30, 4, factors={2: 5.0})
    labels[0, 1, 1:3] = labels[0, 1, [2, 1]]
    folder = project(labels)
    page = tmp_path / "page.html"
    code, out, err = fasthg(folder, "--html", page, "--pixels-per-cm", 25)
    assert (code, err) == (0, "")
    (line,) = (text for text in out.splitlines() if text.startswith("OKS_SIGMAS: "))
    sigmas = yaml.safe_load(line)["OKS_SIGMAS"]
    config = Config(
        PARTS={
            "NUM_PARTS": 4,
            "NAMES": list(PARTS),
            "SIGMAS": [2.0] * 4,
            "LEFT_RIGHT_PAIRS": [[1, 2]],
        },
        OKS_SIGMAS=sigmas,
    )
    assert tuple(sigmas) == config.OKS_SIGMAS
    assert "outliers: worker 3 (" in out and "Left and right exchanged: 1" in out
    assert ", cm" in out

    text = page.read_text()
    assert text.count("<svg") == 5 and text.count("<polygon") == 5
    assert f"<pre><code>{line}</code></pre>" in text and "radius, image px" in text

    code, out, _ = fasthg(folder, "--json")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0 and report["error_cm"] is None
    assert [worker["outlier"] for worker in report["workers"]] == [False, False, True, False]
    assert report["oks"]["config"] == line
    assert len(report["pck"]["bands"]["all"]["median"]) == len(report["pck"]["radii_px"])
    assert report["repairs"][0]["worker"] == "worker 2"


def test_one_worker_in_the_verb(
    fasthg: Callable[..., tuple[int, str, str]], project: Callable[..., Path]
) -> None:
    code, out, err = fasthg(project(noisy(3, 1)), "--json")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and "a.manifest: no part was labelled by two workers" in err

"""report.html: what it says, what it draws where, and that it is one file with nothing to fetch."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_run import run, tiny

from fasthg import geometry, metrics, report
from fasthg.cli import main
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError
from fasthg.inference import plots
from fasthg.report import calibration, chart, figures, frame, gallery
from fasthg.report.chart import Axis, Chart
from fasthg.report.evaluate import Evaluation, evaluate_run
from fasthg.report.frame import draw_heatmaps
from fasthg.report.human import people
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import WeightsFile

NAN = np.nan


class Page(HTMLParser):
    """Checks that elements are closed, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=3, frames={"train": 6, "val": 2, "test": 3}, size=(192, 160))
    return folder


@pytest.fixture(scope="module")
def trained(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(tiny(mice, tmp_path_factory.mktemp("runs"))).run


@pytest.fixture(scope="module")
def evaluation(trained: RunFolder) -> Evaluation:
    return evaluate_run(trained, trained.config(["PIXELS_PER_CM=20"]), "test", None)


@pytest.fixture(scope="module")
def page(trained: RunFolder, evaluation: Evaluation) -> str:
    path = report.write(trained, trained.config(["PIXELS_PER_CM=20"]), evaluation)
    assert path == trained.path / "report.html"
    return path.read_text()


def test_the_page_is_one_file(page: str, trained: RunFolder) -> None:
    found = Page(page)
    assert found.links.pop(0) == "eval/test/errors.csv"
    assert len(found.links) == 6, "a picture for each frame, drawn at random and by its error"
    assert all(link.startswith("data:image/jpeg;base64,") for link in found.links)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert not re.search(
        r"url\(|@import|https?://", re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    )
    assert len(page) < 1 << 20
    assert not list(trained.path.glob(".report*"))


def test_the_page_says_what_was_measured(page: str, evaluation: Evaluation) -> None:
    text, m = Page(page).text, evaluation.metrics
    for heading in (
        *("Training", "Error by part", "Labels within a radius (PCK)", "The largest errors"),
        "Frames drawn at random",
        *("Object keypoint similarity (OKS)", "Is a low confidence a warning?"),
        *("Exchanged sides", "Unreadable images", "Circumstances"),
    ):
        assert f"<h2>{heading}</h2>" in page
    assert f"{m['error_px']['all']['mean']:.2f} px" in text
    assert f"{m['error_cm']['all']['mean']:.3f} cm" in text
    assert "95% interval" in text and "2000 resamples of 3 frames" in text and "seed 0" in text
    low, high = calibration.bootstrap_mean(
        evaluation.predictions.errors(), evaluation.index.record[evaluation.predictions.instance]
    )
    assert f"<td>{low[0]:.2f} to {high[0]:.2f}</td>" in page
    assert f"<td>{low[-1] / 20:.3f} to {high[-1] / 20:.3f}</td>" in page
    assert "Sigmas (narrow): nose 0.025" in text
    assert "no MARS_PROJECT" in text
    assert "left ear / right ear" in text
    assert "NUM_TRAIN_ITERATIONS: 6" in text and "torch_threads" in text
    assert text.count("animal is") == 0
    for part in evaluation.metrics["error_px"]["parts"]:
        assert page.count(f">{part}</text>") == 4, "of the errors, its PCK, and that of each mouse"


def test_unreadable_images_are_counted(trained: RunFolder, evaluation: Evaluation) -> None:
    assert "data check" not in Page((trained.path / report.NAME).read_text()).text
    faulty = replace(evaluation, metrics={**evaluation.metrics, "unreadable_images": 17})
    text = report.write(trained, trained.config(), faulty).read_text()
    assert '<td>test</td><td class="number">17</td>' in text
    assert "data check names such images" in text


def test_a_part_without_labels_and_missing_files(
    trained: RunFolder, evaluation: Evaluation, tmp_path: Path
) -> None:
    visibility = evaluation.predictions.visibility.copy()
    visibility[:, 0] = 0
    bare = RunFolder(tmp_path / "<bare>")
    unlabelled = replace(evaluation.predictions, visibility=visibility)
    page = report.write(bare, trained.config(), replace(evaluation, predictions=unlabelled))
    found = Page(page.read_text())
    assert "Nothing was logged." in found.text and "trainingunknown" in found.text
    assert "<bare>: report" in found.text
    nothing = replace(unlabelled, visibility=np.zeros_like(visibility))
    found = Page(
        report.write(bare, trained.config(), replace(evaluation, predictions=nothing)).read_text()
    )
    assert "No label to compare with." in found.text
    assert not [link for link in found.links if link.startswith("data:")]


def test_worst_frames_are_shown_once_and_in_order(
    trained: RunFolder, evaluation: Evaluation
) -> None:
    predictions = evaluation.predictions
    truth = np.nan_to_num(predictions.truth, nan=50.0)
    off = np.arange(len(predictions), dtype=float)[:, None, None] * [3.0, 4.0]
    made = replace(
        predictions,
        keypoints=truth + off,
        truth=truth,
        visibility=np.full_like(predictions.visibility, 2),
    )
    shown = gallery.worst_frames(replace(evaluation, predictions=made), trained.config(), 2)
    errors = [float(caption.split(" px")[0]) for _, caption in shown]
    # Six animals, two a frame, each 5 px farther off than the one before.
    assert errors == [25.0, 15.0]
    assert "worst nose, 25.0 px" in shown[0][1]


def test_marks_lie_where_labels_and_predictions_are(
    trained: RunFolder, evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "decode", lambda data: np.full((160, 192, 3), 127, np.uint8))
    predictions, index = evaluation.predictions, evaluation.index
    box = index.bbox[predictions.instance[0]] * [192, 160, 192, 160]
    centre, half = (
        (box[:2] + box[2:]) / 2,
        (0.5 + plots.MARGIN) * np.ptp(box.reshape(2, 2), axis=0).max(),
    )
    points = np.full_like(predictions.truth, NAN)
    points[0, 0] = centre + half * np.array([0.5, -0.25])
    made = replace(
        predictions,
        truth=points,
        keypoints=np.where(np.isfinite(points), points + half * np.array([-1.0, 0]), NAN),
        visibility=np.full_like(predictions.visibility, 2),
    )
    ((jpeg, _),) = gallery.worst_frames(replace(evaluation, predictions=made), trained.config(), 5)
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    side = len(picture)
    y, x = np.nonzero(np.abs(picture - 127).max(axis=2) > 60)
    ring, cross = (x > 0.62 * side), (x < 0.38 * side)
    # 340 px are twice `half`: the label at 3/4 and 3/8, the prediction at 1/4 and 3/8.
    for marks in (ring, cross):
        assert (y[marks].min() + y[marks].max()) / 2 == pytest.approx(0.375 * side, abs=2)
    assert x[ring].max() == pytest.approx(0.75 * side + 7, abs=2)
    assert x[cross].min() == pytest.approx(0.25 * side - 6.5, abs=2.5)


def project(folder: Path, workers: int, animals: dict[str, float] | None = None) -> Path:
    """animals: how far workers are off, px, by the animal's name."""
    animals = animals or {"": 2}
    names = [name for name in animals if name]
    images = folder / "annotation_data" / "raw_images"
    images.mkdir(parents=True)
    (folder / "project_config.yaml").write_text(
        f"animal_names: {names}\nspecies: mouse\nkeypoints: [nose, tail]\npose: {{top: []}}\n"
    )
    rng = np.random.default_rng(0)
    lines = []
    for number in range(6):
        Image.new("L", (300, 200)).save(images / f"{number}.png")
        answers = [
            {
                "keypoints": [
                    {"label": f"{name} {part}".strip(), "x": 50 + x, "y": 60 + y}
                    for name, off in animals.items()
                    for part, (x, y) in zip(
                        ("nose", "tail"), rng.normal(0, off, (2, 2)), strict=True
                    )
                ]
            }
            for _ in range(workers)
        ]
        lines.append(
            json.dumps({"source-ref": f"s3://b/{number}.png", "j": {"annotations": answers}})
        )
    (folder / "annotation_data" / "a.manifest").write_text("\n".join(lines))
    return folder


def test_the_band_of_people(tmp_path: Path) -> None:
    human, note = people(str(project(tmp_path, 4)), ("nose", "tail"))
    assert human is not None and "4 workers" in note and "6 animals" in note
    nose, every = human.band("nose"), human.band(None)
    assert nose is not None and every is not None
    assert nose.shape == (3, len(human.radii)) and (nose[0] <= nose[2]).all()
    np.testing.assert_array_equal(nose, human.bands[:, :, 0])
    drawn = figures.pck(("nose", "tail"), np.ones((3, 2)), 10.0, human)
    assert [chart.svg().count("<polygon") for chart in drawn] == [1, 1, 1]
    assert "people" in drawn[0].svg() and "network" in drawn[0].svg()


def test_a_band_of_each_animal(tmp_path: Path) -> None:
    both, _ = people(str(project(tmp_path, 4, {"black": 1, "white": 6})), ("nose", "tail"))
    assert both is not None and list(both.animals) == ["black", "white"]
    black, white = both.animals.values()
    assert 2 * black.median < white.median and black.median < both.median < white.median
    assert black.band("nose") is not None and white.band(None) is not None


def test_a_band_of_other_parts_is_not_that_of_all(tmp_path: Path) -> None:
    human, _ = people(str(project(tmp_path, 3)), ("nose", "left ear"))
    assert human is not None
    assert human.band(None) is None and human.band("left ear") is None
    drawn = figures.pck(("nose", "left ear"), np.ones((3, 2)), 10.0, human)
    assert [chart.svg().count("<polygon") for chart in drawn] == [0, 1, 0]


def test_no_band_without_several_workers(tmp_path: Path) -> None:
    for place in (project(tmp_path, 1), tmp_path / "nowhere"):
        human, note = people(str(place), ("nose",))
        assert human is None
        assert note.startswith("No band of human annotators: ") and str(tmp_path) in note


def test_axes_have_round_ticks() -> None:
    axis = Axis.around([3.0, NAN, 17.2, np.inf], "error, px", log=False)
    assert (axis.low, axis.high) == (0, 20)
    assert [text for _, text in axis.ticks()] == ["0", "5", "10", "15", "20"]
    percent = Axis(0.0, 1.0, "", percent=True)
    assert [text for _, text in percent.ticks()] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    rate = Axis.around([0.005], "", log=False)
    assert [text for _, text in rate.ticks()] == ["0", "0.001", "0.002", "0.003", "0.004", "0.005"]
    tiny_rate = Axis.around([2e-5], "", log=False)
    assert [text for _, text in tiny_rate.ticks()] == ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]
    assert Axis.around([], "", log=False).high == 1


def test_wide_ranges_are_logarithmic() -> None:
    axis = Axis.around([0.001, 10.0, 0.0, NAN], "loss")
    assert axis.log
    np.testing.assert_allclose(axis.share([0.001, 0.1, 10.0, 0.0, NAN]), [0, 0.5, 1, 0, NAN])
    assert [text for _, text in axis.ticks()] == ["0.001", "0.01", "0.1", "1", "10"]
    assert not Axis.around([1.0, 20.0], "loss").log


def numbers(text: str) -> list[list[float]]:
    return [[float(v) for v in point.split(",")] for point in text.split()]


def test_lines_are_drawn_to_scale_and_break_at_nan() -> None:
    made = Chart("t", Axis(0.0, 10.0, "x"), Axis(0.0, 1.0, "y"), size=(100, 50))
    made.line([0, 5, 6, 8, 10], [0.0, 1.0, NAN, 0.5, 0.5], "red", "<name>")
    first, second = re.findall(r'polyline points="([^"]*)"', made.svg())
    left, top = chart._LEFT, chart._TOP + chart._LEGEND
    assert numbers(first) == [[left, top + 50], [left + 50, top]]
    assert numbers(second) == [[left + 80, top + 25], [left + 100, top + 25]]
    assert "&lt;name&gt;" in made.svg()


def test_a_band_and_bars_are_drawn_to_scale() -> None:
    made = Chart("t", Axis(0.0, 4.0, "x"), Axis(0.0, 2.0, "y"), size=(80, 40))
    made.band([0, 4], [0.0, 1.0], [1.0, 2.0], "red", "band")
    made.bars([0, 1, 4], [2.0, NAN], "red", ["two", "none"])
    left, top = chart._LEFT, chart._TOP + chart._LEGEND
    (outline,) = re.findall(r'polygon points="([^"]*)"', made.svg())
    assert numbers(outline) == [
        [left, top + 40], [left + 80, top + 20], [left + 80, top], [left, top + 20]
    ]  # fmt: skip
    (bar,) = re.findall(r"<rect x=[^>]*><title>[^<]*", made.svg())
    assert f'x="{left + 0.5}" y="{top}.0" width="19.0" height="40.0"' in bar and "two" in bar


def test_intervals_stand_in_rows_from_the_top() -> None:
    drawn = figures.errors(["nose", "tail"], np.array([2.0, NAN, 3.0]), np.array(
        [[1.0, NAN, 2.0], [3.0, NAN, 4.0]]), "px", 0.95).svg()  # fmt: skip
    circles = [
        (float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    ]
    assert len(circles) == 2, "no dot without labels"
    assert circles[0][1] < circles[1][1] and circles[0][0] < circles[1][0]
    assert "all parts: 3.00 px, 95% interval 2.00 to 4.00" in drawn


def test_single_parts_and_animals(evaluation: Evaluation) -> None:
    p, m, index = evaluation.predictions, evaluation.metrics, evaluation.index
    distances = p.errors()
    for row, part in ((0, "nose"), (6, "base of tail")):
        similarity = metrics.oks(distances[:, [row]], [0.025], p.area)
        wanted = metrics.average_precision(similarity, p.scores[:, row])
        assert m["oks"]["parts"][part]["annotation's area"]["ap"] == pytest.approx(wanted.ap)
    assert list(m["animals"]) == ["black", "white"]
    for number, animal in enumerate(m["animals"].values()):
        own = distances[index.object_number[p.instance] == number]
        assert animal["error_px"]["mean"] == pytest.approx(np.nanmean(own))
        assert animal["pck"] == pytest.approx(metrics.pck(own, [2, 5, 10, 20])[:, -1])


def test_one_frame_and_its_heatmaps(
    trained: RunFolder, evaluation: Evaluation, tmp_path: Path
) -> None:
    config, here = trained.config(), replace(evaluation, folder=tmp_path)
    paths = report.picture_frame(trained, config, here, 2)
    assert [path.name for path in paths] == [
        "frame_0000002.png",
        "frame_0000002_animal0_heatmaps.png",
        "frame_0000002_animal1_heatmaps.png",
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 500
    with pytest.raises(ConfigError, match="--frame 3: test has 3 frames; give 0 to 2"):
        report.picture_frame(trained, config, here, 3)
    none = replace(here, predictions=replace(here.predictions, instance=np.zeros(6, np.int64)))
    with pytest.raises(DataError, match=r"'test000001'\) has no animal that was evaluated"):
        report.picture_frame(trained, config, none, 1)


def test_a_frame_that_is_not_there_is_refused_before_the_evaluation(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    out = tmp_path / "out"
    for number in ("3", "-1"):
        arguments = ["fasthg", "eval", str(trained.path), "-o", str(out), "--frame", number]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit):
            main()
        assert f"--frame {number}: test has 3 frames; give 0 to 2" in capsys.readouterr().err
        assert not out.exists()


def test_heatmaps_lie_where_they_were_predicted(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    heatmaps = np.zeros((2, 7, 16, 16), np.float32)
    heatmaps[1, 3, 12, 4] = 1
    labels = np.full((7, 2), NAN)
    labels[3] = 4, 9
    image = np.full((64, 64, 3), 200, np.uint8)
    told: list[str] = []
    shown: list[np.ndarray] = []

    def sheet(cells, columns, head):
        assert (columns, len(cells)) == (7, 14)
        shown.extend(picture for picture, _ in cells)
        told.extend(text for _, text in cells)
        return cells[0][0]

    monkeypatch.setattr(frame, "sheet", sheet)
    draw_heatmaps(image, heatmaps, labels, trained.config(), "title")
    names = trained.config().PARTS.NAMES
    assert told[7 + 3] == f"{names[3]}: 1.00, 3.0 cells off"
    assert told[0] == f"{names[0]}: 0.00, no label"
    # Cells of 16 px; the peak is at the corner of cell 4, 12, and no mark hides it.
    picture = shown[7 + 3].astype(int)
    assert picture.shape == (256, 256, 3)
    red = picture[..., 0] - picture[..., 1]
    y, x = np.unravel_index(int(red.argmax()), red.shape)
    assert (x + 0.5, y + 0.5) == (pytest.approx(64, abs=1), pytest.approx(192, abs=1))
    cyan = (picture[..., 2] > 200) & (picture[..., 0] < 120)
    y, x = np.nonzero(cyan)
    assert (x.mean() + 0.5, y.mean() + 0.5) == (
        pytest.approx(64, abs=0.6),
        pytest.approx(144, abs=0.6),
    )
    assert (shown[0][24:] == 200).all()


def test_crops_as_mars_evaluates(
    trained: RunFolder, mice: Path, tmp_path: Path, evaluation: Evaluation
) -> None:
    keys = ["EVAL_CROP=mars", "DECODE=plateau", "FLIP_TEST=true"]
    weights = WeightsFile(tmp_path / "w.safetensors")
    weights.path.write_bytes(trained.best.read_bytes())
    measured = evaluate_run(weights, trained.config(keys), "data", [str(mice / "test_dataset-*")])
    assert (measured.metrics["crop"], evaluation.metrics["crop"]) == ("mars", "training")
    index = measured.index
    crops = geometry.unrounded_crop(index.bbox, np.float32(0.65)) * ([192, 160] * 2)
    areas = (crops[:, 2:] - crops[:, :2]).prod(axis=1)
    np.testing.assert_allclose(measured.predictions.crop_area, areas, rtol=1e-5)
    assert (measured.predictions.crop_area != evaluation.predictions.crop_area).any()


def test_training_curves() -> None:
    rows = [{"step": s, "loss": 100.0 / s, "learning_rate": 1e-3} for s in range(1, 2001)]
    rows += [
        {"step": s, "val_loss": 1.0, "val_error_mean_px": e, "val_error_median_px": None}
        for s, e in ((500, None), (1000, 9.0), (1500, 4.0), (2000, 6.0))
    ]
    loss, error, rate = (c.svg() for c in figures.training(rows))
    assert "<polygon" in loss and "validation" in loss
    assert 400 <= len(numbers(re.findall(r'polyline points="([^"]*)"', loss)[0])) <= 401
    (best,) = re.findall(r'd="M([\d.]+) \d+v\d+" stroke="var\(--grey\)"', error)
    assert float(best) == pytest.approx(chart._LEFT + 0.75 * 330, abs=0.1)
    assert "learning rate" in rate
    assert figures.training([]) == []


def test_thinned_rows_keep_mean_and_extremes() -> None:
    step, mean, low, high = figures.thinned(np.arange(1.0, 7), np.array([1.0, 3, 2, 8, 5, 0]), 2)
    assert [v.tolist() for v in (step, mean, low, high)] == [
        [2, 5], [2, 13 / 3], [1, 0], [3, 8]
    ]  # fmt: skip


@pytest.mark.slow
def test_the_verbs(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fasthg(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["fasthg", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        return out

    config = RunFolder.create(tiny(mice, tmp_path), None, "x").resolved
    place = tmp_path / "made" / report.NAME
    out = fasthg("train", config, "RUN_NAME=made", "NUM_TRAIN_ITERATIONS=2")
    assert str(place) in out.replace("\n", "")
    assert "animals in 3 frames (test)" in place.read_text()
    place.unlink()
    fasthg("eval", place.parent, "--split", "val")
    assert not place.exists()
    out = fasthg("eval", place.parent, "--split", "val", "--report", "--json")
    assert json.loads(out)["split"] == "val"
    assert "animals in 2 frames (val)" in place.read_text()
    (jpeg, *_) = re.findall(r"data:image/jpeg;base64,([^\"]+)", place.read_text())
    assert base64.b64decode(jpeg).startswith(b"\xff\xd8")


def test_the_project_is_found_from_any_folder(
    mice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project(tmp_path / "people", 3).parent)
    config = tiny(mice, tmp_path, DATA={}, MARS_PROJECT="people", POSE_MODEL="top")
    folder = RunFolder.create(config, None, "x")
    monkeypatch.chdir("/")
    found = folder.config()
    (pattern,) = found.DATA.TEST or ()
    assert pattern == f"{tmp_path}/people/pose/top_tfrecords_pose/test_dataset-*"
    human, _ = people(found.MARS_PROJECT, ("nose", "tail"))
    assert human is not None


def test_a_log_that_a_full_disk_cut_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.logged() == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.1}\n{"step": 2}\n{"step": 3, "l')
    assert folder.logged() == [{"step": 1, "loss": 0.1}, {"step": 2}]
    folder.truncate_log(1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.1}\n'


def test_every_label_has_a_row_in_the_csv(evaluation: Evaluation) -> None:
    with (evaluation.folder / "errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    distances, index = evaluation.predictions.errors(), evaluation.index
    assert len(rows) == np.isfinite(distances).sum()
    np.testing.assert_allclose(
        [float(row["error_px"]) for row in rows], distances[np.isfinite(distances)], atol=6e-4
    )
    moved = [[float(row[key]) - float(row[f"label_{key}"]) for key in ("x", "y")] for row in rows]
    np.testing.assert_allclose(
        np.hypot(*np.transpose(moved)), [float(row["error_px"]) for row in rows], atol=2e-3
    )
    assert {row["animal"] for row in rows} == {"black", "white"}
    assert {row["image_id"] for row in rows} == {index.image_id(r) for r in range(3)}


def test_frames_at_random_are_the_same_in_every_report(
    trained: RunFolder, evaluation: Evaluation
) -> None:
    config = trained.config()
    first, again = (gallery.random_frames(evaluation, config, 2, seed=4) for _ in range(2))
    assert first == again and len({caption for _, caption in first}) == 2
    orders = {
        tuple(caption for _, caption in gallery.random_frames(evaluation, config, 3, seed))
        for seed in range(6)
    }
    assert len(orders) > 1


def test_an_ap_by_sigmas_that_nobody_measured_is_no_headline(
    trained: RunFolder, evaluation: Evaluation, tmp_path: Path
) -> None:
    for sigmas, shown in (("narrow", False), ("given", True), ("mouse_top", True)):
        oks = {**evaluation.metrics["oks"], "sigmas": sigmas}
        made = replace(evaluation, metrics={**evaluation.metrics, "oks": oks})
        page = report.write(trained, trained.config(), made, tmp_path).read_text()
        assert ("<span>AP, annotation&#x27;s area</span>" in page) == shown


@pytest.mark.slow
def test_the_page_of_one_run_is_written_anew(
    fasthg, trained: RunFolder, page: str, tmp_path: Path
) -> None:
    out = tmp_path / "anew.html"
    assert fasthg("report", trained.path, "PIXELS_PER_CM=20", "-o", out) == (0, f"{out}\n", "")
    place = "eval/test/errors.csv"
    near = os.path.relpath(trained.path, tmp_path) + f"/{place}"
    assert out.read_text().replace(near, place) == page

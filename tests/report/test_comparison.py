"""Runs on one page: seeds as a band, paired differences, and what cannot be compared."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import tiny

from fasthg.errors import ConfigError, DataError
from fasthg.report.comparison import groups, read_runs, write
from fasthg.report.comparison.measured import Group, paired
from fasthg.runs.run_folder import RunFolder

PARTS = ("nose", "neck", "tail")
FRAMES = 8


def made(
    folder: Path, errors: Any, *, shift: float = 0.0, split: str = "test", **keys: Any
) -> Path:
    """A run of two animals a frame whose predictions lie `errors` (16, 3) px right of the labels.

    shift: px by which all labels lie elsewhere; keys: of the configuration.
    """
    parts = {"NUM_PARTS": 3, "NAMES": list(PARTS), "SIGMAS": [1.0] * 3, "LEFT_RIGHT_PAIRS": []}
    config = tiny(folder.parent, folder.parent, PARTS=parts, RUN_NAME=folder.name, **keys)
    run = RunFolder(folder)
    run.write_config(config)
    for step, error in ((3, 9.0), (6, 4.0)):
        run.log({"step": step, "val_error_mean_px": error + int(config.RANDOM_SEED)})
    truth = np.random.default_rng(0).uniform(20, 80, (2 * FRAMES, 3, 2)) + shift
    offsets = np.broadcast_to(np.asarray(errors, float), (2 * FRAMES, 3))
    rows = [
        {
            "image_id": f"film/img{row // 2}",
            "object": row % 2,
            "keypoints": (truth[row] + np.stack([offsets[row], offsets[row] * 0], 1)).tolist(),
            "scores": [1.0] * 3,
            "truth": truth[row].tolist(),
            "visibility": [2] * 3,
        }
        for row in range(2 * FRAMES)
    ]
    run.write_json(f"eval/{split}/predictions.json", {"parts": list(PARTS), "instances": rows})
    overall = {"mean": offsets.mean(), "median": float(np.median(offsets))}
    run.write_json(f"eval/{split}/metrics.json", {"error_px": {"all": overall}})
    return folder


def group_of(*paths: Path) -> Group:
    (found,) = groups(read_runs(paths)[1])
    return found


class Page(HTMLParser):
    """Checks that elements are closed; keeps tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_seeds_are_one_group_and_another_key_is_another(tmp_path: Path) -> None:
    a = made(tmp_path / "a", 2.0, RANDOM_SEED=0)
    b = made(tmp_path / "b", 5.0, RANDOM_SEED=1, BATCH_SIZE=8)
    c = made(tmp_path / "c", [3.0, 3.0, 6.0], RANDOM_SEED=2)
    split, runs = read_runs([a, b, c])
    found = groups(runs)
    assert split == "test"
    assert [group.name for group in found] == ["a (2 seeds)", "b"]
    assert found[0].errors(None) == pytest.approx((3.0, 2.0, 4.0))
    assert found[0].errors("tail") == pytest.approx((4.0, 2.0, 6.0))
    np.testing.assert_allclose(found[0].interval[:, -1], [2.0, 4.0])
    by_label = found[0].by_label()
    np.testing.assert_allclose(by_label, np.broadcast_to([2.5, 2.5, 4.0], (16, 3)), atol=1e-9)


def test_a_paired_difference_is_that_of_the_same_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    hard = rng.uniform(1, 20, (2 * FRAMES, 3))  # of the frames, in both runs
    base = group_of(made(tmp_path / "a", hard))
    better = group_of(made(tmp_path / "b", hard - [0.5, 0.5, 0.0], BATCH_SIZE=8))
    found = paired(better, base)
    assert found is not None and found.labels == 48
    np.testing.assert_allclose(found.mean, [-0.5, -0.5, 0.0, -1 / 3], atol=1e-6)
    np.testing.assert_allclose(found.ends, [found.mean] * 2, atol=1e-6)
    # Unpaired, the intervals of the two means overlap by far.
    assert base.interval[0, -1] < better.errors(None)[0] < base.interval[1, -1]


def test_labels_without_a_prediction_are_left_out_of_pairs(tmp_path: Path) -> None:
    errors = np.full((2 * FRAMES, 3), 3.0)
    base = group_of(made(tmp_path / "a", 1.0))
    errors[0, 0] = np.nan
    path = made(tmp_path / "b", errors, BATCH_SIZE=8)
    found = paired(group_of(path), base)
    assert found is not None and found.labels == 47
    assert found.mean[0] == pytest.approx(2.0)


@pytest.mark.parametrize("other", ["labels", "frames", "parts"])
def test_other_test_data_are_not_compared(tmp_path: Path, other: str) -> None:
    a, b = made(tmp_path / "a", 1.0), made(tmp_path / "b", 2.0, shift=(other == "labels") * 0.5)
    path = b / "eval" / "test" / "predictions.json"
    text = path.read_text()
    if other == "frames":
        text = text.replace("film/img3", "film/img30")
    if other == "parts":
        text = text.replace('"tail"', '"tailbase"')
    path.write_text(text)
    one, two = (group_of(each) for each in (a, b))
    assert paired(two, one) is None
    write([a, b], tmp_path / "c.html")
    text = Page((tmp_path / "c.html").read_text()).text
    assert "The test data differ: those of b are not those of a." in text, "and no seeds of one run"
    assert "The test data of b and a differ; nothing can be paired." in text
    assert "Mean over the same labels" not in text


def test_frames_of_one_id_are_told_apart(tmp_path: Path) -> None:
    """Records of other writers may have no ids."""
    path = made(tmp_path / "a", 1.0)
    predictions = path / "eval" / "test" / "predictions.json"
    document = json.loads(predictions.read_text())
    for row in document["instances"]:
        row["image_id"] = ""
    predictions.write_text(json.dumps(document))
    (run,) = read_runs([path])[1]
    assert len(set(run.frames)) == FRAMES and run.frames[0] == run.frames[1]


def test_the_page_is_one_file_and_says_what_differs(tmp_path: Path) -> None:
    paths = [
        made(tmp_path / "a", 2.0, RANDOM_SEED=0),
        made(tmp_path / "b", 3.0, RANDOM_SEED=1),
        made(tmp_path / "<c>", 1.5, BATCH_SIZE=8),
    ]
    write(paths, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    found = Page(page)
    assert not {"script", "link", "iframe", "img"} & set(found.tags)
    assert "a (2 seeds) and <c>: comparison" in found.text
    # The group's mean and median validation, and its PCK; one run draws none.
    assert page.count("<polygon") == 2
    for row in ("<td>BATCH_SIZE</td><td>4</td><td>4</td><td>8</td>", "<td>RANDOM_SEED</td>"):
        assert row in page
    assert "<td>all parts</td>" in page and "-1.00 to -1.00" in found.text
    assert "<td>better</td>" in page and found.text.count("Trained") == 3
    assert "data differ" not in found.text


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    a = made(tmp_path / "a", 1.0)
    with pytest.raises(ConfigError, match="given twice"):
        read_runs([a, tmp_path / "a"])
    with pytest.raises(DataError, match="not a run folder"):
        read_runs([a, tmp_path])
    b = made(tmp_path / "b", 1.0, split="val")
    with pytest.raises(DataError, match=r"b: no predictions\.json in eval/test; run: fasthg eval"):
        read_runs([a, b])
    made(tmp_path / "a2", 1.0, split="val")
    assert read_runs([b, tmp_path / "a2"])[0] == "val"
    (a / "eval" / "test" / "predictions.json").write_text('{"parts": ["nose"], "instances": [{}]}')
    with pytest.raises(DataError, match=r"predictions\.json: is damaged; run: fasthg eval"):
        read_runs([a])


def test_the_command(fasthg, tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", 1.0), made(tmp_path / "b", 2.0, BATCH_SIZE=8)
    out = tmp_path / "x.html"
    assert fasthg("report", a, b, "-o", out) == (0, f"{out}\n", "")
    assert out.read_text().startswith("<!doctype html>")
    code, _, err = fasthg("report", a, b, "BATCH_SIZE=2")
    assert code == 2 and "overrides go with one RUN" in err
    code, _, err = fasthg("report", a, b, "-o", tmp_path)
    assert code == 2 and "is a folder" in err
    code, _, err = fasthg("report", "BATCH_SIZE=2")
    assert code == 2 and "no RUN given" in err

"""benchmarks/accuracy: splits, intervals, the page; and a whole run on rendered mice."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from benchmarks.accuracy import decoders, intervals, page, sets
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.intervals import measured, ratio, spread_over_seeds
from benchmarks.accuracy.run import _command
from benchmarks.accuracy.sets import SETS


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 300)


FRAMES = [f"film{number // 20}/img{number:03d}" for number in range(60)]


def test_five_folds_test_every_frame_once():
    splits = [SETS["openfield"].split(FRAMES, fold) for fold in range(5)]
    tested = [name for split in splits for name, role in split.items() if role == "test"]
    assert sorted(tested) == FRAMES
    for split in splits:
        assert set(split) == set(FRAMES)
        assert sum(role == "val" for role in split.values()) == 6


def test_a_film_is_in_one_split_and_each_film_tests_once():
    splits = [SETS["homecage"].split(FRAMES, fold) for fold in range(3)]
    for split in splits:
        roles = {name.split("/")[0]: role for name, role in split.items()}
        assert sorted(roles.values()) == ["test", "train", "val"]
        assert all(role == roles[name.split("/")[0]] for name, role in split.items())
    assert len({min(n for n, r in s.items() if r == "test") for s in splits}) == 3


def runs(scale=1.0, seeds=(1, 2), frames=40):
    rng = np.random.default_rng(7)
    errors = rng.exponential(3.0, (frames, 4)) * scale
    names = [f"f{number}" for number in range(frames)]
    return [
        {
            "fold": 0,
            "seed": seed,
            "frames": names,
            "errors": [[None, *row[1:]] for row in (errors + 0.1 * seed).tolist()],
            "steps": 10,
            "parts": ["a_top", "b_top", "a_bot", "b_bot"],
            "sides": {"judged": 30, "exchanged": 3},
            "cpu_seconds": 12.0,
            "animal_px": 150.0,
        }
        for seed in seeds
    ]


def test_intervals_hold_the_figure_and_shrink_with_more_frames():
    few, many = (measured(runs(frames=count), [5])["mean"] for count in (20, 320))
    for found in (few, many):
        assert found.low < found.value < found.high
    width = [found.high - found.low for found in (few, many)]
    assert width[0] / width[1] == pytest.approx(4, rel=0.5)  # root of 16


def test_unlabelled_parts_count_nowhere():
    (run,) = runs(seeds=(1,))
    errors = [error for row in run["errors"] for error in row[1:]]
    assert measured([run])["mean"].value == pytest.approx(np.mean(errors))


def test_a_frame_s_animals_are_drawn_together():
    (run,) = runs(seeds=(1,))
    pairs = {**run, "frames": [name for name in run["frames"][::2] for _ in range(2)]}
    alone, together = measured([run])["mean"], measured([pairs])["mean"]
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low != pytest.approx(alone.high - alone.low, rel=1e-3)


def test_a_paired_ratio_is_sharper_than_its_parts():
    found = ratio(runs(0.8, seeds=(1,)), runs(seeds=(1,)))
    assert found.value == pytest.approx(0.8, abs=0.02)
    assert found.high - found.low < 0.03
    with pytest.raises(ValueError, match="other frames"):
        ratio(runs(frames=39), runs())


def test_a_ratio_of_trainings_that_differ_is_as_unsure_as_they_are():
    """Two recipes alike, each with a good and a bad training."""
    alike = [[*runs(1.0, seeds=(1,)), *runs(scale, seeds=(2,))] for scale in (1.5, 1.6)]
    found = ratio(*alike)
    assert found.low < 0.75 and found.high > 1.3


def test_spread_over_seeds():
    assert spread_over_seeds(runs()) == pytest.approx(0.1 / np.sqrt(2))
    assert spread_over_seeds(runs(seeds=(1,))) is None


def test_page_shows_both_recipes_and_levers():
    def result(recipe, scale, **more):
        own = {"set": "openfield", "recipe": recipe, "runs": runs(scale), "command": "c"}
        return own | {"processor": "a processor", "budget_cpu_seconds": 720} | more

    results = [result("first", 1.0), result("small", 0.5)]
    results.append(result("small", 0.2, budget_cpu_seconds=1200))  # no equal of `first`
    levers = [
        result("base", 1.0, lever="base", series="a"),
        result("x", 0.9, lever="wider sigma", series="a", runs=runs(0.9, seeds=(2, 3))),
        result("x", 0.7, of="small", git={"commit": 40 * "a"}, overrides={"INIT.WEIGHTS": None}),
    ]
    text = page.page(results, levers)
    assert "geometric mean of the ratios is **0.5" in text
    assert "Not measured with both recipes yet: mirror_mouse, homecage" in text
    alone = ratio(runs(0.9, seeds=(2,)), runs(seeds=(2,))).value
    assert f"| `wider sigma` | {alone:.2f} | 1.00 | {alone:.2f} (" in text, "seed 2 is in both"
    assert "| openfield | `small` at aaaaaaa | INIT.WEIGHTS: null | 2." in text
    assert "| openfield | first |" in text and "a processor" in text


def test_page_shows_every_fold_and_compares_costs_on_the_same_frames():
    def result(budget, folds):
        own = {"set": "openfield", "recipe": "small", "command": "c", "processor": "p"}
        found = [run | {"fold": fold} for fold, scale in folds for run in runs(scale)]
        return own | {"budget_cpu_seconds": budget, "runs": found}

    text = page.page([result(120, [(0, 3.0)]), result(600, [(k, k + 1.0) for k in range(5)])], [])
    table, costs = (
        text.split(f"## {title}\n")[1]
        for title in ("Every frame tested once", "Error against processor seconds")
    )
    means = [
        np.mean([e for r in runs(k) for row in r["errors"] for e in row if e is not None])
        for k in (1, 2, 3, 4, 5)
    ]
    for fold, mean in enumerate(means, 1):
        assert f"| small | {fold} | 40 | {mean:.2f} (" in table
    assert f"| small | all | 200 | {np.mean(means):.2f} (" in table
    assert f"| {means[2]:.2f} (" in costs and f"| {means[0]:.2f} (" in costs


def test_page_shows_each_view_of_a_picture_and_exchanged_sides():
    own = {"set": "mirror_mouse", "command": "c", "processor": "p", "budget_cpu_seconds": 720}
    results = [own | {"recipe": recipe, "runs": runs()} for recipe in ("first", "small")]
    text = page.page(results, [])
    (row,) = [line for line in text.splitlines() if line.startswith("| mirror_mouse | small | ")]
    side, below = ([r[k : k + 2] for run in runs() for r in run["errors"]] for k in (0, 2))
    for errors in (side, below):
        labelled = [error for row in errors for error in row if error is not None]
        assert f"| {np.mean(labelled):.2f} (" in row
    assert "| 10.0% of 60 |" in row


def test_page_shows_decoders_by_the_sigma_of_training():
    usual = decoders.USUAL
    rows = [
        {"run": "a", "sigma": 1.5, "mean_px": {usual: 2.0, "argmax": 4.0}},
        {"run": "b", "sigma": 1.5, "mean_px": {usual: 2.0, "argmax": 1.0}},
        {"run": "c", "sigma": 3.0, "mean_px": {usual: 2.0, "argmax": 3.0}},
    ]
    text = page.page([], [], rows)
    assert "| 1.5 | 2 | 1.000 | 1.000 |" in text and "| 3 | 1 | 1.000 | 1.500 |" in text


def test_counts_are_positive(tmp_path, capsys):
    for option in ("--folds", "--seeds", "--steps", "--jobs"):
        with pytest.raises(SystemExit):
            main(["run", "--set", "openfield", option, "0", "--data", str(tmp_path)])
        assert option in capsys.readouterr().err


def test_the_command_in_a_result_has_no_path_of_a_machine():
    given = "run --set openfield --data /a/b --out=/c --work d --steps 5 'PARTS.SIGMAS=[1,1]'"
    expected = "run --set openfield --steps 5 'PARTS.SIGMAS=[1,1]'"
    assert _command(shlex.split(given)) == f"python -m benchmarks.accuracy {expected}"


@pytest.mark.slow
def test_a_whole_run_on_rendered_mice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sets, "RENDERED", {"train": 4, "val": 2, "test": 3})
    tiny = ["INPUT_SIZE=64", "FEATURES=8", "STEM_FEATURES=8", "PARTS.SIGMAS=[1,1,1,1,1,1,1]"]
    tiny += ["PRECISION=fp32"]  # which is not measured, and so is the same for both evaluations
    work, out = tmp_path / "work", tmp_path / "out"
    main(
        [
            *("run", "--set", "rendered", "--recipe", "small", "--steps", "3", "--seeds", "1"),
            *("--data", str(tmp_path), "--work", str(work), "--out", str(out), *tiny),
        ]
    )
    (path,) = out.glob("*.json")
    result = json.loads(path.read_text())
    (run,) = result["runs"]
    assert run["steps"] == 3 and run["cpu_seconds"] > 0
    assert run["sides"]["judged"] > 0
    assert len(run["frames"]) == len(run["errors"]) == 6 and len(set(run["frames"])) == 3
    assert "rendered-small-3steps: mean" in capsys.readouterr().out

    monkeypatch.setattr(decoders, "FILE", tmp_path / "decoders.json")
    (folder,) = (path.parent for path in work.glob("runs/*/*/config.resolved.yaml"))
    (row,) = json.loads(decoders.compare([folder], tmp_path / "decoders.json").read_text())
    errors = [error for row in run["errors"] for error in row if error is not None]
    assert row["mean_px"][decoders.USUAL] == pytest.approx(np.mean(errors), abs=2e-3)
    assert row["sigma"] == 1 and set(row["mean_px"]) == set(decoders.decoders())

"""Labels that networks contradict: which are named, by whose judgement, and the verb from end to
end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import run, tiny

from fasthg.config import Config
from fasthg.data.check.problems import CONTRADICTED, Problem
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.inference.predictor import Predictions
from fasthg.report import label_errors
from fasthg.report.label_errors import Floats, Seen, contradicted, typical

PARTS = Config().PARTS
NOSE, RIGHT_EAR, LEFT_EAR = 0, 1, 2


@pytest.fixture(scope="module")
def mice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mice")
    write_dataset(folder, seed=5, frames={"train": 12, "val": 2}, size=(192, 160))
    return folder


@pytest.fixture(scope="module")
def index(mice: Path) -> RecordIndex:
    return RecordIndex.open(str(mice / "train_dataset-*"), 7)


def network(index: RecordIndex, seed: int, error: float = 1.0, trained: Any = False) -> Seen:
    """One whose predictions are an error of some px off the true places, in any direction."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, index.keypoints.shape[:2])
    points = index.keypoints + error * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return Seen(f"run{seed}", points, np.broadcast_to(np.array(trained), (len(index),)))


def moved(index: RecordIndex, instance: int, part: int, by: tuple[float, float]) -> RecordIndex:
    """The index with one label moved, image px."""
    labels = index.keypoints.copy()
    labels[instance, part] += by
    return replace(index, keypoints=labels)


def problems(index: RecordIndex, *seen: Seen) -> list[Problem]:
    return list(contradicted({"train": index}, {"train": seen}, PARTS))


def labelled(index: RecordIndex, part: int) -> int:
    """An animal with a label of this part."""
    return int(np.flatnonzero(index.visibility[:, part] > 0)[0])


def test_sound_labels_are_not_doubted(index: RecordIndex) -> None:
    assert problems(index, network(index, 1), network(index, 2)) == []


@pytest.mark.parametrize("runs", [1, 3])
def test_a_moved_label_is_named_with_its_place(index: RecordIndex, runs: int) -> None:
    animal = labelled(index, NOSE)
    true = index.keypoints[animal, NOSE]
    wrong = moved(index, animal, NOSE, (12, -9))
    (found,) = problems(wrong, *(network(index, seed) for seed in range(runs)))
    assert (found.kind, found.instance, found.parts) == (CONTRADICTED, animal, (NOSE,))
    assert np.linalg.norm(np.array(found.seen[0]) - true) <= 1.01
    off = float(found.detail.split("label")[0].split()[-4])
    assert off == pytest.approx(15, abs=1.01)
    judges = "1 network" if runs == 1 else "3 networks"
    assert f"(median error 1.0 px) by {judges} not trained on the frame" in found.detail


def test_the_error_that_a_network_usually_has_is_the_scale(index: RecordIndex) -> None:
    wrong = moved(index, labelled(index, NOSE), NOSE, (12, -9))
    assert problems(wrong, network(index, 1, error=4.0)) == []
    # Every run has to contradict the label: one that could not tell is enough for silence.
    assert problems(wrong, network(index, 1), network(index, 2, error=4.0)) == []
    # Below LEAST_PX nobody points better, however exact the network is.
    near = moved(index, labelled(index, NOSE), NOSE, (2, 0))
    assert problems(near, network(index, 1, error=0.1)) == []


def test_networks_that_disagree_with_each_other_prove_nothing(index: RecordIndex) -> None:
    animal = labelled(index, NOSE)
    one, two = network(index, 1), network(index, 2)
    for seen, shift in ((one, 12), (two, -12)):
        seen.points[animal, NOSE] = index.keypoints[animal, NOSE] + [shift, 0]
    assert problems(index, one, two) == []
    assert len(problems(index, one)) == 1


def test_runs_that_did_not_train_on_the_frame_judge_it(index: RecordIndex) -> None:
    animal = labelled(index, NOSE)
    wrong = moved(index, animal, NOSE, (12, -9))
    frame = index.record == index.record[animal]
    learnt = network(index, 1, trained=frame)
    learnt.points[animal, NOSE] = wrong.keypoints[animal, NOSE]
    (found,) = problems(wrong, learnt, network(index, 2, trained=~frame))
    assert "by 1 network not trained on the frame" in found.detail
    # Where all of them were, all judge, and one has learnt the label.
    assert problems(wrong, learnt, network(index, 2, trained=True)) == []
    (found,) = problems(wrong, network(index, 2, trained=True))
    assert "by 1 network trained on the frame" in found.detail


def test_errors_of_frames_that_were_learnt_are_apart(index: RecordIndex) -> None:
    own = np.arange(len(index)) < len(index) // 2
    near, far = network(index, 1, error=0.5), network(index, 1, error=4.0)
    seen = Seen("run", np.where(own[:, None, None], near.points, far.points), own)
    usual = typical({"train": index}, {"train": [seen]})
    assert usual.shape == (1, 2, 7)
    assert usual[0, 0] == pytest.approx(np.full(7, 4.0), abs=1e-3)
    assert usual[0, 1] == pytest.approx(np.full(7, 0.5), abs=1e-3)
    # Three animals are too few for a median of their own.
    few = replace(seen, trained=np.arange(len(index)) < 3)
    usual = typical({"train": index}, {"train": [few]})
    assert usual[0, 1].min() > 0.6


def test_exchanged_sides_are_one_problem(index: RecordIndex) -> None:
    both = (index.visibility[:, [LEFT_EAR, RIGHT_EAR]] > 0).all(axis=1)
    apart = np.linalg.norm(index.keypoints[:, LEFT_EAR] - index.keypoints[:, RIGHT_EAR], axis=-1)
    animal = int(np.flatnonzero(both & (apart > 4))[0])
    labels = index.keypoints.copy()
    labels[animal, [LEFT_EAR, RIGHT_EAR]] = labels[animal, [RIGHT_EAR, LEFT_EAR]]
    wrong = replace(index, keypoints=labels)
    exact = network(index, 1, error=0.3)
    (found,) = problems(wrong, exact)
    assert found.parts == (RIGHT_EAR, LEFT_EAR) and len(found.seen) == 2
    assert found.detail.endswith(": left and right exchanged?")
    # Where the other ear is seen at its label, that one alone is told, with the suspicion.
    exact.points[animal, LEFT_EAR] = labels[animal, LEFT_EAR]
    (found,) = problems(wrong, exact)
    assert found.parts == (RIGHT_EAR,)
    assert found.detail.endswith("; left ear is labelled there: left and right exchanged?")


def test_what_is_not_labelled_or_not_seen_is_not_doubted(index: RecordIndex) -> None:
    animal = labelled(index, NOSE)
    wrong = moved(index, animal, NOSE, (30, 0))
    blind = network(index, 1)
    blind.points[animal] = np.nan
    assert problems(wrong, blind) == []
    hidden = wrong.visibility.copy()
    hidden[animal, NOSE] = 0
    assert problems(replace(wrong, visibility=hidden), network(index, 2)) == []


def test_the_worst_come_first(index: RecordIndex) -> None:
    first, second = np.flatnonzero(index.visibility[:, NOSE] > 0)[:2].tolist()
    wrong = moved(moved(index, first, NOSE, (10, 0)), second, NOSE, (25, 0))
    found = sorted(problems(wrong, network(index, 1)), key=lambda each: -each.weight)
    assert [each.instance for each in found] == [second, first]


@pytest.fixture(scope="module")
def trained(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {"TRAIN": str(mice / "train_dataset-*")}
    config = tiny(mice, tmp_path_factory.mktemp("runs"), DATA=data, NUM_TRAIN_ITERATIONS=1)
    return run(config).run.path


def test_the_verb_names_what_a_run_contradicts(
    mice: Path,
    index: RecordIndex,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fasthg: Callable[..., tuple[int, str, str]],
) -> None:
    animal = labelled(index, NOSE)

    def seen(model: Any, of: RecordIndex, *_: Any) -> tuple[dict[str, Predictions], int]:
        points: Floats = of.keypoints.astype(np.float64)
        points[animal if len(of) == len(index) else 0, NOSE] += (9, 12)
        rows, none = np.arange(len(points)), np.zeros(0)
        scores, flags = np.ones(points.shape[:2], np.float32), of.visibility
        return {"dark": Predictions(rows, points, scores, points, flags, none, none, 0.0)}, 0

    monkeypatch.setattr(label_errors, "evaluate_model", seen)
    config = tmp_path / "config.yaml"
    folder = str(mice)
    config.write_text(
        f"DATA: {{TRAIN: {folder}/train_dataset-*, VAL: {folder}/val_dataset-*}}\nDEVICE: cpu\n"
    )
    page = tmp_path / "page.html"
    # As the shell expands runs/*.
    words = (config, "--with", trained, trained, "--html", page)
    status, out, _ = fasthg("data", "check", *words)
    assert status == 1
    assert "label that networks contradict: 2" in out
    name = index.describe(animal)
    assert f"train: {name}: nose seen at" in out.replace("\n", " ")
    assert "15.0 px off its label" in out and "by 2 networks trained on the frame" in out
    assert f"{trained}: was trained on 12 of these 14 frames" in out
    assert "label that networks contradict" in page.read_text()
    _, out, _ = fasthg("data", "check", *words[:3], "--json")
    report = json.loads(out)
    (found,) = (
        p for p in report["problems"] if p["split"] == "train" and p["kind"] == CONTRADICTED
    )
    assert found["instance"] == animal
    assert found["seen"][0] == pytest.approx(index.keypoints[animal, NOSE] + [9, 12], abs=1e-3)


def test_a_run_predicts_every_animal(mice: Path, index: RecordIndex, trained: Path) -> None:
    settings = tiny(mice, trained.parent, DEVICE="cpu")
    val = RecordIndex.open(str(mice / "val_dataset-*"), 7)
    seen, notes = label_errors.look([trained], settings, {"train": index, "val": val})
    assert seen["train"][0].points.shape == (len(index), 7, 2)
    assert np.isfinite(seen["train"][0].points).all() and np.isfinite(seen["val"][0].points).all()
    assert seen["train"][0].trained.all() and not seen["val"][0].trained.any()
    assert len(notes) == 1 and "12 of these 14 frames" in notes[0]


def test_a_run_of_other_parts_is_refused(
    mice: Path, trained: Path, tmp_path: Path, fasthg: Callable[..., tuple[int, str, str]]
) -> None:
    names = [*PARTS.NAMES[:-1], "tail tip"]
    config = tmp_path / "config.yaml"
    config.write_text(f"DATA: {{TRAIN: {mice}/val_dataset-*}}\nPARTS: {{NAMES: {names}}}\n")
    status, _, err = fasthg("data", "check", config, "--with", trained)
    assert status == 2
    assert f"--with {trained}: its parts are nose, " in err and "tail tip" in err
    status, _, err = fasthg("data", "check", config, "--with", tmp_path)
    assert status == 1 and "not a run folder" in err
    status, _, err = fasthg("data", "check", config, trained)
    assert status == 2 and str(trained) in err

"""docs/first-model.md works: its files are written, its commands run in order, its Python as well.

The data are made up and small, and so is the network: keys of its configuration are replaced here.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from moving_dots import write_video

from fasthg.cli import main
from fasthg.data.synthetic.dataset import PART_NAMES, render

# The fewest of which one is for validation.
FRAMES = 20
SIZE = (320, 240)
# Those of the synthetic mouse that the parts of the tutorial are.
PARTS = {
    "snout": "nose",
    "leftear": "left ear",
    "rightear": "right ear",
    "tailbase": "base of tail",
}
# In place of the tutorial's values.
TINY = {
    "NUM_STACKS": "1",
    "FEATURES": "8",
    "STEM_FEATURES": "4",
    "BATCH_SIZE": "4",
    "NUM_TRAIN_ITERATIONS": "4",
    "VALIDATE_EVERY_N_STEPS": "2",
    "LOG_EVERY_N_STEPS": "2",
    "LEARNING_RATE_WARMUP_STEPS": "1",
    "NUM_INPUT_THREADS": "0",
    "INPUT_SIZE": "64",
    "HEATMAP_SIZE": "16",
}
CONFIG = Path("mouse/config.yaml")
FILES = (
    "mouse/splits.json",
    "check.html",
    "preview.png",
    "runs/mouse/report.html",
    "runs/mouse/eval/test/metrics.json",
    "runs/mouse/eval/val/metrics.json",
    "tracked/film.pose.csv",
    "tracked/film.overlay.mp4",
    "boxed/film.pose.csv",
    "boxed/film.overlay.mp4",
    "mice.json",
    "labelled/video1.pose.csv",
    "results/film.pose.csv",
    "results/film.dlc.h5",
    "results/film.analysis.h5",
    "results/film.coco.json",
    "from_coco/splits.json",
    "from_mars/splits.json",
)
BLOCK = re.compile(
    r"(?:^`(?P<file>[\w.]+)`:\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block; `file` where the line above names one."""

    file: str | None
    kind: str
    text: str


def blocks(repository: Path) -> list[Block]:
    text = (repository / "docs" / "first-model.md").read_text(encoding="utf-8")
    return [Block(**match.groupdict()) for match in BLOCK.finditer(text)]


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def small(text: str) -> str:
    """The configuration that the tutorial's first command writes, made tiny."""
    for key, value in TINY.items():
        text, found = re.subn(rf"^{key}: \S+", f"{key}: {value}", text, flags=re.MULTILINE)
        assert found <= 1, f"the configuration has {key} {found} times"
        if not found:  # the recipe would choose it
            text += f"{key}: {value}\n"
    return f"{text}PRECISION: fp32\n"


def dlc_project(folder: Path) -> None:
    """A DeepLabCut project whose frames are those of one video, in the four parts."""
    labels = folder / "labeled-data" / "video1"
    labels.mkdir(parents=True)
    names = "\n".join(f"- {name}" for name in PARTS)
    (folder / "config.yaml").write_text(
        f"scorer: me\nmultianimalproject: false\nbodyparts:\n{names}\n"
    )
    rows = [
        ["scorer", *["me"] * 2 * len(PARTS)],
        ["bodyparts", *(name for name in PARTS for _ in "xy")],
        ["coords", *["x", "y"] * len(PARTS)],
    ]
    which = [PART_NAMES.index(name) for name in PARTS.values()]
    for number in range(FRAMES):
        frame = render(1, "tutorial", number, SIZE)
        cv2.imwrite(str(labels / f"img{number:03}.png"), frame.image)
        points = frame.keypoints[0, which].ravel()
        rows.append([f"labeled-data/video1/img{number:03}.png", *map(str, points)])
    with (labels / "CollectedData_me.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def mars_project(folder: Path) -> None:
    """A MARS project of one animal, with the answers of two workers."""
    images = folder / "annotation_data" / "raw_images"
    images.mkdir(parents=True)
    (folder / "project_config.yaml").write_text(
        "project_name: test\nspecies: mouse\nanimal_names: [black]\nkeypoints: [nose, tail]\n"
        "check_pairs: []\npixels_per_cm: 10\npose:\n  top: [black]\n"
    )
    points = [
        {"label": f"black mouse {part}", "x": x, "y": y}
        for part, x, y in (("nose", 30, 40), ("tail", 90, 60))
    ]
    size = {"width": 128, "height": 96}
    answer = {"annotatedResult": {"keypoints": points, "inputImageProperties": size}}
    lines = []
    for number in range(4):
        cv2.imwrite(str(images / f"frame{number}.jpg"), np.full((96, 128, 3), 60 * number, "u1"))
        answers = [
            {"workerId": worker, "annotationData": {"content": json.dumps(answer)}}
            for worker in ("a", "b")
        ]
        entry = {"source-ref": f"frame{number}.jpg", "label-metadata": {"job-name": "label"}}
        lines.append(json.dumps({**entry, "label": {"annotationsFromAllWorkers": answers}}))
    (folder / "annotation_data" / "output.manifest").write_text("\n".join(lines) + "\n")


def without_counts(text: str) -> list[str]:
    return re.sub(r"\b\d+(?= (?:frames|train|val|test|animals))", "#", text).splitlines()


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One command, fasthg's in this process: each would load torch for seconds."""
    if words[0] != "fasthg":
        subprocess.run(words, check=True)
        return
    monkeypatch.setattr(sys, "argv", words)
    said, code = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as stop:
        code = stop.code
    assert not code, f"{shlex.join(words)} exits with {code}: {said.getvalue()}"


@pytest.mark.slow
def test_every_command_of_the_tutorial_works(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("av", "h5py", "pandas", "tables"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    dlc_project(tmp_path / "my_project")
    mars_project(tmp_path / "mars_project")
    pictures = (render(1, "film", number, SIZE).image for number in range(4))
    write_video(tmp_path / "film.mp4", pictures)
    printed = written = ""
    for block in blocks(repository):
        if block.file is not None:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "yaml":
            # Lines of it, whose comments may be elsewhere.
            lines = written.splitlines()
            assert [
                x for x in block.text.splitlines() if not any(y.startswith(x) for y in lines)
            ] == []
        elif block.kind == "sh":
            for words in commands(block.text):
                run(words, monkeypatch)
            if not written:
                written = CONFIG.read_text(encoding="utf-8")
                CONFIG.write_text(small(written), encoding="utf-8")
            printed = capsys.readouterr().out
        elif block.kind == "python":
            exec(compile(block.text, "docs/first-model.md", "exec"), {})
        else:
            assert block.kind == "text", f"a block of {block.kind!r} is neither run nor a file"
            assert set(without_counts(block.text)) <= set(without_counts(printed))
    assert [name for name in FILES if not Path(name).exists()] == []
    with Path("boxed/film.pose.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = {(row["frame"], row["animal"]) for row in rows if row["x"]}
    # What is seen elsewhere is the locator's, which four steps have taught nothing.
    assert seen >= {("0", "resident"), ("0", "intruder"), ("1", "resident")}
    assert len(list(Path("labelled/video1.overlay").glob("*.png"))) == FRAMES


def test_commands_within_its_sentences_exist(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = BLOCK.sub("", (repository / "docs" / "first-model.md").read_text(encoding="utf-8"))
    found = re.findall(r"`(fasthg [^`]+)`", text)
    assert len(found) >= 4
    for command in found:
        # Options are looked up, nothing is done.
        run([*shlex.split(command), "--help"], monkeypatch)

"""The wheel in empty environments, away from the checkout: README's first commands.

An environment has the wheel, and links to those packages of this one that an extra brings; nothing
is downloaded. The extension is left out, as where there is no compiler, so plain torch runs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

packaging = pytest.importorskip("packaging.requirements")

SMALL = ["FEATURES=8", "STEM_FEATURES=4", "INPUT_SIZE=64", "HEATMAP_SIZE=16", "BATCH_SIZE=4"]
SMALL += ["NUM_TRAIN_ITERATIONS=2", "NUM_INPUT_THREADS=0", "LOCATOR_FEATURES=8", "PRECISION=fp32"]

OPERATORS = """
import numpy as np, sys
from fasthg.ops import gaussian_heatmaps, heatmap_peaks, paths
maps = gaussian_heatmaps(np.array([[[12.3, 40.0]]]), np.array([2.0]), (64, 48), subpixel=True)
points, scores = heatmap_peaks(maps, "dark")
assert abs(points - [12.3, 40.0]).max() < 0.05, points
assert {path.path for path in paths()} == {"torch", "torch reference"}
assert "site-packages" in sys.modules["fasthg"].__file__
"""


def built(tree: Path, out: Path) -> Path:
    """The wheel of a copy of the sources, without the extension."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "-w", str(out), str(tree)]
    environment = {**os.environ, "FASTHG_EXTENSION": "off"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("fasthg-*.whl"))


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("fasthg", "configs", "csrc"):
        unbuilt = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(repository / name, folder / "tree" / name, ignore=unbuilt)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(repository / name, folder / "tree" / name)
    return built(folder / "tree", folder)


def needed(requirements: list[str], extras: set[str]) -> Iterator[str]:
    """Names of the distributions that requirements bring, with those that these need in turn."""
    seen = set()
    waiting = [(text, extras) for text in requirements]
    while waiting:
        text, wanted = waiting.pop()
        requirement = packaging.Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
            continue
        if requirement.name == "fasthg":
            waiting += [(inner, set(requirement.extras)) for inner in requirements]
            continue
        if requirement.name in seen:
            continue
        seen.add(requirement.name)
        yield requirement.name
        inner = importlib.metadata.requires(requirement.name) or []
        waiting += [(text, set(requirement.extras)) for text in inner]


class Environment:
    """An environment with the wheel, and with the packages of an extra."""

    def __init__(self, folder: Path, wheel: Path, extra: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.scripts = folder / "bin"
        command = [sys.executable, "-m", "pip", "--python", self.scripts / "python", "install"]
        command += ["-q", "--no-deps", "--no-index", wheel]
        subprocess.run(command, check=True, timeout=120)
        site = next(folder.glob("lib/python*/site-packages"))
        (metadata,) = site.glob("fasthg-*.dist-info")
        requirements = importlib.metadata.PathDistribution(metadata).requires or []
        for name in needed(requirements, {extra}):
            distribution = importlib.metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or []}:
                if top not in ("..", "__pycache__") and not (site / top).exists():
                    (site / top).symlink_to(str(distribution.locate_file(top)))

    def run(self, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in a folder."""
        left_out = ("PYTHONPATH", "PYTHONHOME", "FASTHG_NATIVE_DISABLE")
        variables = {key: value for key, value in os.environ.items() if key not in left_out}
        command = [str(self.scripts / str(words[0])), *map(str, words[1:])]
        return subprocess.run(
            command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300
        )

    def succeeds(self, *words: object, cwd: Path) -> str:
        """What it prints."""
        done = self.run(*words, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.mark.slow
def test_wheel_without_extras_is_the_operators(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")  # FASTHG_EXTENSION=off: for every platform
    base = Environment(tmp_path / "base", wheel, "")
    base.succeeds("python", "-c", OPERATORS, cwd=tmp_path)
    for verb, extra in (("train", "train"), ("predict", "predict")):
        done = base.run("fasthg", verb, "small", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
        assert f"pip install 'fasthg[{extra}]'" in done.stderr


@pytest.mark.slow
def test_wheel_runs_the_readme_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    train = Environment(tmp_path / "train", wheel, "train")
    work = tmp_path / "work"
    work.mkdir()
    train.succeeds("fasthg", "config", "new", "small", "-o", "mouse.yaml", cwd=work)
    assert "SUBPIXEL_TARGETS" in (work / "mouse.yaml").read_text()
    frames = ["--train", 6, "--val", 2, "--test", 2, "--width", 192, "--height", 160]
    train.succeeds("fasthg", "data", "synth", "data", *frames, cwd=work)
    data = [f"DATA.{s.upper()}=data/{s}_dataset-*" for s in ("train", "val", "test")]
    out = train.succeeds("fasthg", "train", "small", *data, *SMALL, "RUN_NAME=a", cwd=work)
    assert out.count("no TensorBoard events") == 1  # of the extra [report]
    assert (work / "runs/a/report.html").stat().st_size > 1000
    facts = json.loads((work / "runs/a/env.json").read_text())
    assert "no compiled kernels" in facts["verdict"]
    assert facts["packages"]["tensorboard"] is None
    assert facts["git"] is None

    # Images and films need no package of records.
    predict = Environment(tmp_path / "predict", wheel, "predict")
    done = predict.run("python", "-c", "import google_crc32c", cwd=work)
    assert "ModuleNotFoundError" in done.stderr
    image = np.random.default_rng(0).integers(0, 255, (160, 192, 3), np.uint8)
    cv2.imwrite(str(work / "frame.png"), image)
    found = ["--boxes", "whole", "-o", "poses"]
    predict.succeeds("fasthg", "predict", "runs/a", "frame.png", *found, cwd=work)
    (table,) = (work / "poses").glob("*.pose.csv")
    assert len(table.read_text().splitlines()) == 1 + 7  # parts

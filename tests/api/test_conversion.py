"""`fasthg.convert` does what `fasthg init` does."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import fasthg
from fasthg.api.conversion import folder_of
from fasthg.api.settings import settings_of
from fasthg.cli import app
from fasthg.data.convert import to_coco
from fasthg.errors import ConfigError


def test_records_and_configuration_are_those_of_init(config, tmp_path: Path) -> None:
    to_coco.export(config, tmp_path / "mice.json")
    report = fasthg.convert(tmp_path / "mice.json", tmp_path / "python", split=(0.5, 0.25, 0.25))
    options = ["--split", "0.5/0.25/0.25"]
    command = ["init", str(tmp_path / "mice.json"), str(tmp_path / "command"), *options]
    assert CliRunner().invoke(app, command).exit_code == 0
    files = sorted(path.name for path in (tmp_path / "python").iterdir())
    assert "config.yaml" in files and sum(report.frames.values()) == 10
    assert files == sorted(path.name for path in (tmp_path / "command").iterdir())
    for name in files:
        if name.startswith("train_dataset"):
            made = [(tmp_path / way / name).read_bytes() for way in ("python", "command")]
            assert made[0] == made[1]
    assert report.parts == settings_of(tmp_path / "python").config.PARTS.NAMES


def test_default_folder_is_named_after_the_project(tmp_path: Path) -> None:
    project = tmp_path / "mice one"
    project.mkdir()
    (project / "config.yaml").touch()
    (project / "labels.v1.slp").touch()
    for source, name in ((project, "mice one"), (project / "config.yaml", "mice one")):
        assert folder_of(source, None) == Path(f"{name}-fasthg")
    assert folder_of(project / "labels.v1.slp", None) == Path("labels-fasthg")


def test_text_of_the_command_line_is_taken(config, tmp_path: Path) -> None:
    to_coco.export(config, tmp_path / "mice.json")
    made = fasthg.convert(
        tmp_path / "mice.json", tmp_path / "out", split="0.5/0.25/0.25", parts="nose=snout,left ear"
    )
    assert made.parts == ("snout", "left ear")


def test_option_of_another_format_is_refused(config, tmp_path: Path) -> None:
    to_coco.export(config, tmp_path / "mice.json")
    with pytest.raises(ConfigError, match="--pose-model: has no meaning for COCO keypoints"):
        fasthg.convert(tmp_path / "mice.json", tmp_path / "out", pose_model="top")

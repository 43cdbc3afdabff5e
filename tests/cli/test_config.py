"""`fasthg config`: presets, keys in narrow terminals and in pipes; `-h` and `--version`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fasthg import __version__
from fasthg.config import describe, load_config


def test_new_writes_a_preset_and_overwrites_nothing(fasthg, tmp_path: Path) -> None:
    path = tmp_path / "mouse.yaml"
    code, out, _ = fasthg("config", "new", "small", "-o", path)
    assert (code, f"fasthg train {path}" in out) == (0, True)
    assert load_config(path).FEATURES == 64
    assert fasthg("config", "new", "small") == (0, path.read_text(), "")
    path.write_text("BATCH_SIZE: 3\n")
    code, _, err = fasthg("config", "new", "small", "-o", path)
    assert (code, "is there already" in err) == (2, True)
    assert load_config(path).BATCH_SIZE == 3
    assert fasthg("config", "new", "mars", "-o", path, "--force")[0] == 0
    assert load_config(path).BATCH_SIZE == 8
    code, _, err = fasthg("config", "new", "smal")
    assert (code, err) == (2, "error: smal: no preset; use one of demo, mars, small\n")


def test_a_preset_and_a_folder_are_configurations(fasthg, tmp_path: Path) -> None:
    assert fasthg("config", "check", "mars")[1].endswith("mars: ok\n")
    (tmp_path / "config.yaml").write_text("BATCH_SIZE: 3\n")
    assert "BATCH_SIZE: 3" in fasthg("config", "show", tmp_path, "--resolved")[1]
    # Without DATA: the preset was read.
    code, _, err = fasthg("data", "check", "small")
    assert (code, "DATA names no split" in err) == (2, True)


def test_in_a_pipe_each_key_is_one_whole_line(fasthg) -> None:
    lines = fasthg("config", "show")[1].splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == [row.key for row in describe()]
    found = fasthg("config", "show", "--grep", "non_target_left")[1].splitlines()[1:]
    assert [line.split("\t")[0] for line in found] == [
        "BACKGROUND_HEATMAPS.ADD_NON_TARGET_LEFT_RIGHT_PAIRS"
    ]
    assert len(json.loads(fasthg("config", "show", "--grep", "sigma", "--json")[1])) > 1
    assert fasthg("config", "show", "--grep", "xyz")[0] == 2


@pytest.mark.parametrize("width", [40, 60, 120])
def test_in_a_terminal_no_name_is_cut(fasthg, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(width=width, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr("fasthg.cli.config.console", lambda: terminal)
    code, out, _ = fasthg("config", "show", "small")
    assert (code, "…" in out) == (0, False)
    assert all(row.key in out for row in describe())


@pytest.mark.parametrize(
    "verb", [[], ["train"], ["data"], ["data", "convert", "dlc"], ["config", "new"]]
)
def test_h_is_help(fasthg, verb: list[str]) -> None:
    code, out, _ = fasthg(*verb, "-h")
    assert (code, "Usage:" in out) == (0, True)


def test_version(fasthg, repository: Path) -> None:
    assert fasthg("--version") == (0, f"fasthg {__version__}\n", "")
    assert f'\nversion = "{__version__}"\n' in (repository / "pyproject.toml").read_text()
    assert f"\nversion: {__version__}\n" in (repository / "CITATION.cff").read_text()

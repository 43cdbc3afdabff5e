"""`$HERE`: data beside a configuration are found from anywhere, and after both moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasthg.config import load_config
from fasthg.config.here import text_elsewhere
from fasthg.data.index.record_index import expand
from fasthg.runs.run_folder import RunFolder

TEXT = """# $HERE is this folder
DATA:
  TRAIN: "$HERE/train_*"
  VAL: ["${HERE}/val_*", "$HEREAFTER/x", other]
INIT: {WEIGHTS: $HERE/best.safetensors}
"""


@pytest.mark.parametrize("name", ["records", "all [of] them", 'with "quotes" and: a colon # hash'])
def test_folder_of_the_file_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HERE", "/elsewhere")
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.yaml").write_text(TEXT)
    (folder / "train_1").touch()
    monkeypatch.chdir(tmp_path)
    cfg = load_config(Path(name) / "config.yaml")
    assert cfg.DATA.TRAIN is not None and cfg.DATA.VAL is not None
    assert expand(cfg.DATA.TRAIN) == [str(folder / "train_1")]
    assert cfg.DATA.VAL[1:] == ("$HEREAFTER/x", "other")
    assert str(folder / "best.safetensors") == cfg.INIT.WEIGHTS

    folder.rename(tmp_path / "moved")
    moved = load_config("moved/config.yaml", ["DATA.VAL=$HERE/train_1"])
    assert (f"{tmp_path}/moved/train_1",) == moved.DATA.VAL


def test_copy_in_a_run_means_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "mouse's records"
    folder.mkdir()
    source = folder / "config.yaml"
    source.write_text('DATA:\n  TRAIN: "$HERE/train_*"  # beside\n# $HERE stays in comments\n')
    cfg = load_config(source, [f"RUNS_DIR={tmp_path / 'runs'}"])
    run = RunFolder.create(cfg, source, "x")
    assert load_config(run.path / "config.yaml").DATA == cfg.DATA == run.config().DATA
    assert "# $HERE stays" in (run.path / "config.yaml").read_text()


def test_a_file_without_it_is_copied_to_the_byte() -> None:
    assert text_elsewhere("A: 1\r\n\tB: '$HEREX'\n", Path("x")) == "A: 1\r\n\tB: '$HEREX'\n"

"""The configuration beside converted records: what it takes over, and that edits are never lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sources

from fasthg.config import Config, find_config, load_config, read_document
from fasthg.config.here import text_elsewhere
from fasthg.config.sides import flip_doubts
from fasthg.data.convert import coco, dlc, mars
from fasthg.data.convert.coco import Source
from fasthg.data.index.record_index import RecordIndex

PARTS = {"nose": "snout", "left ear": "left ear", "right ear": "right ear"}


def make(folder: Path, **category: Any) -> Source:
    """A COCO file of three frames, and its images."""
    sources._build_coco(folder)
    content = sources.coco_content()
    content["categories"][0] |= category
    (folder / "labels.json").write_text(json.dumps(content))
    return Source(folder / "labels.json")


def read(report: Any) -> Config:
    return load_config(report.config)


def test_recipe_of_the_preset_with_data_and_parts_of_the_source(tmp_path: Path) -> None:
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    source = make(tmp_path, skeleton=[[1, 2], [3, 1], [9, 1]], keypoint_colors=colours)
    report = coco.convert([source], tmp_path / "out", parts=PARTS, split_by="frame")
    assert report.lines()[-1] == f"train with: fasthg train {tmp_path / 'out'}"
    cfg = load_config(find_config(tmp_path / "out"))
    assert cfg.DATA.TRAIN is not None and cfg.DATA.VAL is None
    text = report.config.read_text()
    assert text.count("$HERE") == 3 and text_elsewhere(text, tmp_path).count("$HERE") == 1
    assert RecordIndex.build(cfg.DATA.TRAIN, 3).num_records == 2
    assert cfg.PARTS.NAMES == ("snout", "left ear", "right ear")
    assert cfg.PARTS.LEFT_RIGHT_PAIRS == ((1, 2),)
    assert cfg.PARTS.SKELETON == ((0, 1), (2, 0))
    assert tuple(colours) == cfg.PARTS.COLORS
    assert cfg.RECIPE == "small" and "SIGMAS" not in cfg.PARTS.model_fields_set

    preset = read_document(find_config("small")).values
    written = read_document(tmp_path / "out" / "config.yaml").values
    assert {k: v for k, v in written.items() if k not in ("DATA", "PARTS")} == {
        k: v for k, v in preset.items() if k != "PARTS"
    }


def test_parts_left_out_take_their_edges_and_colours_along(tmp_path: Path) -> None:
    source = make(
        tmp_path, skeleton=[[1, 2], [2, 3]], keypoint_colors=["#ff0000", "red", "#0000ff"]
    )
    kept = {"right ear": "right ear", "left ear": "left ear"}
    cfg = read(coco.convert([source], tmp_path / "out", parts=kept))
    assert cfg.PARTS.SKELETON == ((1, 0),)
    assert cfg.PARTS.COLORS == ()  # "red" may be a name of another palette


def test_names_without_a_partner_switch_flips_off_and_say_why(tmp_path: Path) -> None:
    source = make(tmp_path, keypoints=["nose", "paw1LH", "paw4RH"])
    report = coco.convert([source], tmp_path / "out")
    cfg = read(report)
    assert report.unpaired and cfg.DO_RANDOM_FLIP_LEFT_RIGHT == 0 and not flip_doubts(cfg)
    assert "paw1LH" in report.config.read_text().split("DO_RANDOM_FLIP_LEFT_RIGHT")[0][-400:]
    assert cfg.DO_RANDOM_ROTATION


def test_deeplabcut_skeleton_is_chains_of_names(tmp_path: Path) -> None:
    sources._build_dlc(tmp_path)
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("skeleton:\n- [left ear, nose, right ear]\n- [nose, gone]\n")
    cfg = read(dlc.convert(tmp_path, tmp_path / "out"))
    assert cfg.PARTS.SKELETON == ((1, 0), (0, 2))


def test_edited_file_is_kept_and_the_new_one_lies_beside(tmp_path: Path) -> None:
    out, source = tmp_path / "out", make(tmp_path)
    coco.convert([source], out)
    own = out / "config.yaml"
    written = own.read_text()
    own.write_text(written.replace("BATCH_SIZE: 16", "BATCH_SIZE: 4"))
    same = coco.convert([source], out)
    assert load_config(own).BATCH_SIZE == 4 and not (out / "config.new.yaml").exists()
    assert any("edited since fasthg wrote it, and kept" in note for note in same.notes)

    changed = coco.convert([source], out, parts={"nose": "snout", "left ear": "left ear"})
    assert load_config(own).BATCH_SIZE == 4
    assert load_config(out / "config.new.yaml").PARTS.NAMES == ("snout", "left ear")
    note = next(note for note in changed.notes if "config.new.yaml" in note)
    assert "PARTS.NAMES (without nose, right ear and with snout)" in note and "BATCH_SIZE" in note
    assert changed.train.endswith("config.new.yaml")

    own.write_text(written)
    again = coco.convert([source], out, parts={"nose": "snout"} | {"left ear": "left ear"})
    assert again.config == own and load_config(own).PARTS.NUM_PARTS == 2


@pytest.mark.parametrize("text", ["Task: mouse\nbodyparts: [a]\n", "\t: no YAML", ""])
def test_file_of_another_program_is_kept(tmp_path: Path, text: str) -> None:
    source = make(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(text)
    report = coco.convert([source], tmp_path / "out")
    assert (tmp_path / "out" / "config.yaml").read_text() == text
    assert load_config(tmp_path / "out" / "config.new.yaml").PARTS.NUM_PARTS == 3
    assert report.train.endswith("config.new.yaml")


def test_edited_new_file_is_kept_too(tmp_path: Path) -> None:
    out, source = tmp_path / "out", make(tmp_path)
    out.mkdir()
    (out / "config.yaml").write_text("BATCH_SIZE: 2\n")
    coco.convert([source], out)
    (out / "config.new.yaml").write_text("BATCH_SIZE: 3\n")
    assert coco.convert([source], out).config == out / "config.new2.yaml"
    assert (out / "config.new.yaml").read_text() == "BATCH_SIZE: 3\n"


def test_a_second_source_keeps_what_the_first_told(tmp_path: Path) -> None:
    first = make(tmp_path / "a", skeleton=[[1, 2]])
    sources._build_dlc(tmp_path / "b")
    shutil.move(tmp_path / "b" / "labeled-data" / "v", tmp_path / "b" / "labeled-data" / "w")
    coco.convert([first], tmp_path / "out")
    cfg = read(dlc.convert(tmp_path / "b", tmp_path / "out"))
    assert cfg.PARTS.SKELETON == ((0, 1),)


def crowd(folder: Path, **settings: Any) -> Path:
    """A MARS project whose three workers are some px apart."""
    sources._build_mars_csv(folder)
    table = folder / "annotation_data" / "labels.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    for line in rows:
        points = line[1:7]
        for worker in (1, 2):
            if line[0].endswith(".jpg"):
                points = [str(float(v) + worker * (1 + i % 2)) for i, v in enumerate(line[1:7])]
            line += points
    rows[0] = ["scorer", *(name for name in "abc" for _ in range(6))]
    table.write_text("".join(",".join(line) + "\n" for line in rows))
    path = folder / "project_config.yaml"
    path.write_text(path.read_text() + "".join(f"{k}: {v}\n" for k, v in settings.items()))
    return folder


def test_mars_project_gives_scale_pairs_and_measured_sigmas(tmp_path: Path) -> None:
    from fasthg.data.agreement import measure, read_crowd

    project = crowd(tmp_path / "p", pixels_per_cm=37.5, check_pairs="[[nose, left ear]]")
    report = mars.convert(project, tmp_path / "out")
    cfg = read(report)
    assert cfg.PIXELS_PER_CM == 37.5
    assert cfg.PARTS.LEFT_RIGHT_PAIRS == ((0, 1),)
    measured = measure(read_crowd(project)).sigmas
    assert pytest.approx(measured, abs=1e-4) == cfg.OKS_SIGMAS and min(measured) > 0
    assert "measured on 3 workers" in report.config.read_text()


def test_mars_projects_own_place_gets_no_configuration(tmp_path: Path) -> None:
    project = crowd(tmp_path / "p")
    report = mars.convert(project)
    assert report.config is None and not [*project.rglob("config.yaml")]
    assert report.lines()[-1] == f"train with: fasthg train MARS_PROJECT={project}"

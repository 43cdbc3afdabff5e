"""Every format is read back by the library of the tool that it is for."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fasthg.data.convert.tables import read_table
from fasthg.inference.video.formats import FORMATS
from fasthg.inference.video.row_store import Rows

PARTS = ("nose", "left ear", "right ear")


@pytest.fixture
def rows() -> Rows:
    """Six frames of two animals; nothing in frame 2, and the second animal not before frame 1."""
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(5, 95, (6, 2, 3, 2))
    scores = rng.uniform(0.2, 0.9, (6, 2, 3)).astype(np.float32)
    boxes = np.tile([10.0, 20.0, 60.0, 80.0], (6, 2, 1))
    sizes = np.tile(np.int32([100, 100]), (6, 1))
    sizes[2] = 0
    for values in (keypoints, scores, boxes):
        values[2], values[0, 1] = np.nan, np.nan
    return Rows(
        *(Path("walk.mp4"), (), ("black", "white"), PARTS, np.arange(6) / 25),
        keypoints=keypoints,
        scores=scores,
        boxes=boxes,
        sizes=sizes,
        image_ids={},
    )


def one(rows: Rows) -> Rows:
    """The first animal alone."""
    cut = {name: getattr(rows, name)[:, :1] for name in ("keypoints", "scores", "boxes")}
    return Rows(**{**vars(rows), **cut, "animals": rows.animals[:1]})


def written(rows: Rows, name: str, folder: Path) -> Path:
    path = folder / f"walk{FORMATS[name].suffix}"
    FORMATS[name].write(rows, path)
    return path


def test_csv_in_pandas(rows: Rows, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(written(rows, "csv", tmp_path))
    assert len(table) == 6 * 2 * 3
    xy = table[["x", "y"]].to_numpy().reshape(6, 2, 3, 2)
    np.testing.assert_allclose(xy, rows.keypoints, atol=6e-4)
    line = table[(table.frame == 4) & (table.animal == "white") & (table.part == "left ear")]
    np.testing.assert_allclose(line["score"], rows.scores[4, 1, 1], atol=6e-6)
    np.testing.assert_allclose(line["time_s"], 4 / 25)


def test_mars_json(rows: Rows, tmp_path: Path) -> None:
    text = written(rows, "mars", tmp_path).read_text()
    assert "NaN" not in text
    content = json.loads(text)
    points = np.array(content["keypoints"])
    assert points.shape == (6, 2, 2, 3)
    np.testing.assert_allclose(points[3, 1, 0], rows.keypoints[3, 1, :, 0], atol=6e-4)
    # Gaps repeat what was before, or what comes first; their scores say so.
    np.testing.assert_array_equal(points[2], points[1])
    np.testing.assert_array_equal(points[0, 1], points[1, 1])
    assert content["bscores"] == [[1, 0], [1, 1], [0, 0], [1, 1], [1, 1], [1, 1]]
    assert not np.any(content["scores"][2])
    np.testing.assert_allclose(content["bbox"][0][0], [0.1, 0.2, 0.6, 0.8])


def test_mars_json_of_an_animal_that_is_never_there(rows: Rows, tmp_path: Path) -> None:
    rows.keypoints[:, 1] = np.nan
    content = json.loads(written(rows, "mars", tmp_path).read_text())
    assert not np.any(np.array(content["keypoints"])[:, 1])


def test_coco_results_in_pycocotools(rows: Rows, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    path = written(rows, "coco", tmp_path)
    truth = {
        "info": {},
        "images": [{"id": n, "width": 100, "height": 100} for n in range(6)],
        "categories": [{"id": 1, "name": "mouse", "keypoints": list(PARTS)}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.COCO(str(tmp_path / "truth.json")).loadRes(str(path))
    assert [len(found.getAnnIds(imgIds=[n])) for n in range(6)] == [1, 2, 0, 2, 2, 2]
    (first,) = found.loadAnns(found.getAnnIds(imgIds=[0]))
    values = np.array(first["keypoints"]).reshape(3, 3)
    np.testing.assert_allclose(values[:, :2], rows.keypoints[0, 0], atol=6e-4)
    np.testing.assert_allclose(first["score"], rows.scores[0, 0].mean(), rtol=1e-6)


def test_deeplabcut_table_in_pandas(rows: Rows, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    path = written(rows, "dlc_h5", tmp_path)
    table = pandas.read_hdf(path, "df_with_missing")
    assert table.columns.names == ["scorer", "individuals", "bodyparts", "coords"]
    xy = table["fasthg"]["white"]["left ear"][["x", "y", "likelihood"]].to_numpy()
    expected = np.column_stack([rows.keypoints[:, 1, 1], rows.scores[:, 1, 1]])
    np.testing.assert_allclose(xy, expected, rtol=1e-6)
    single = pandas.read_hdf(written(one(rows), "dlc_h5", tmp_path), "df_with_missing")
    assert single.columns.names == ["scorer", "bodyparts", "coords"]
    # The reader of DeepLabCut's labels takes it as well.
    read = read_table(path)
    column = next(c for c in read.columns if c.part == "left ear")
    np.testing.assert_allclose(read.rows[0].points[column], rows.keypoints[0, 0, 1], rtol=1e-6)


def test_sleap_analysis_in_sleap_io(rows: Rows, tmp_path: Path) -> None:
    sleap_io = pytest.importorskip("sleap_io")
    h5py = pytest.importorskip("h5py")
    path = written(rows, "sleap_h5", tmp_path)
    with h5py.File(path) as file:
        assert file["tracks"].shape == (2, 2, 3, 6)
        assert file["track_occupancy"].shape == (6, 2)
    labels = sleap_io.load_file(str(path))
    assert [node.name for node in labels.skeleton.nodes] == list(PARTS)
    assert [track.name for track in labels.tracks] == ["black", "white"]
    frames = {frame.frame_idx: frame for frame in labels}
    assert sorted(frames) == [0, 1, 3, 4, 5]
    for instance in frames[4].instances:
        animal = rows.animals.index(instance.track.name)
        np.testing.assert_allclose(instance.numpy(), rows.keypoints[4, animal], rtol=1e-6)


def test_netcdf_names_its_axes(rows: Rows, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(written(rows, "netcdf", tmp_path)) as file:
        position = file["position"]
        dims = [dimension[0].name[1:] for dimension in position.dims]
        assert dims == ["time", "space", "keypoints", "individuals"]
        np.testing.assert_array_equal(position[:, 1, 2, 0], rows.keypoints[:, 0, 2, 1])
        np.testing.assert_array_equal(file["confidence"][:, 2, 1], rows.scores[:, 1, 2])
        assert file.attrs["fps"] == pytest.approx(25)
        assert [n.decode() for n in file["individuals"]] == ["black", "white"]


def test_netcdf_in_xarray_and_movement(rows: Rows, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(written(rows, "netcdf", tmp_path)) as found:
        assert found.position.dims == ("time", "space", "keypoints", "individuals")
        one = found.sel(individuals="white", keypoints="left ear", space="y")
        np.testing.assert_array_equal(one.position, rows.keypoints[:, 1, 1, 1])
        pytest.importorskip("movement.kinematics").compute_velocity(found.position)


def test_parts_that_a_filter_left_out(rows: Rows, tmp_path: Path) -> None:
    rows.keypoints[4, 0, 1] = np.nan
    entries = json.loads(written(rows, "coco", tmp_path).read_text())
    (entry,) = (e for e in entries if e["image_id"] == 4 and e["keypoints"][3:6] == [0, 0, 0])
    np.testing.assert_allclose(entry["keypoints"][:2], rows.keypoints[4, 0, 0], atol=1e-3)
    mars = json.loads(written(rows, "mars", tmp_path).read_text())
    x = np.array(mars["keypoints"])[4, 0, 0]
    np.testing.assert_allclose(x, rows.keypoints[[4, 3, 4], 0, [0, 1, 2], 0], atol=1e-3)
    assert mars["scores"][4][0][1] == 0 < mars["scores"][4][0][0]
    h5py = pytest.importorskip("h5py")
    with h5py.File(written(rows, "sleap_h5", tmp_path)) as file:
        assert file["track_occupancy"][4].tolist() == [1, 1]


def test_rows_of_a_part_of_a_film(rows: Rows, tmp_path: Path) -> None:
    """Frames 3 to 8: by their numbers in tables, at their places in arrays, at their times."""
    part = Rows(**{**vars(rows), "first": 3, "times": rows.times + 3 / 25})
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(written(part, "csv", tmp_path))
    assert sorted(set(table["frame"])) == list(range(3, 9))
    entries = json.loads(written(part, "coco", tmp_path).read_text())
    assert {entry["image_id"] for entry in entries} == {3, 4, 6, 7, 8}
    mars = json.loads(written(part, "mars", tmp_path).read_text())
    found = np.array(mars["keypoints"])[4, 0]
    np.testing.assert_allclose(found, rows.keypoints[1, 0].T, atol=1e-3)
    assert np.array(mars["scores"])[:3].max() == 0
    h5py = pytest.importorskip("h5py")
    with h5py.File(written(part, "sleap_h5", tmp_path)) as file:
        assert file["track_occupancy"][:, 0].tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 1]
        np.testing.assert_allclose(file["tracks"][0, :, :, 4].T, rows.keypoints[1, 0])
    with h5py.File(written(part, "netcdf", tmp_path)) as file:
        np.testing.assert_allclose(file["time"][:], np.arange(3, 9) / 25)
        assert file.attrs["first_frame"] == 3
    pytest.importorskip("tables")
    frames = pandas.read_hdf(written(part, "dlc_h5", tmp_path))
    assert list(frames.index) == list(range(9))
    assert frames.iloc[:3].isna().all(axis=None) and not frames.iloc[4].isna().any()

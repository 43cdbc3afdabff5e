"""COCO annotations in the forms they come in, and whatever may be missing or wrong in them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fasthg.data.boxes import box_around
from fasthg.data.convert import coco, common
from fasthg.data.convert.coco import Source
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import ConfigError, DataError

ALL_TRAIN = (1.0, 0.0, 0.0)
NAMES = ["nose", "left ear", "tail"]
POINTS = [10, 20, 2, 15, 22, 1, 60, 40, 2]
Content = dict[str, Any]


def content(images: int = 4) -> Content:
    return {
        "images": [
            {"id": n, "file_name": f"v{n // 2}/img{n}.png", "width": 100, "height": 80}
            for n in range(images)
        ],
        "annotations": [
            {
                "id": 10 + n,
                "image_id": n,
                "category_id": 1,
                "keypoints": [float(value) for value in POINTS],
                "bbox": [5, 10, 60, 40],
                "area": 1200,
                "iscrowd": 0,
            }
            for n in range(images)
        ],
        "categories": [{"id": 1, "name": "mouse", "keypoints": NAMES}],
    }


def make(folder: Path, given: Content, name: str = "labels.json", images: str = "") -> Path:
    for image in content()["images"]:
        path = folder / images / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((80, 100, 3), 6 * image["id"], np.uint8))
    (folder / name).write_text(json.dumps(given))
    return folder / name


def index_of(report: coco.Report, parts: int = 3) -> RecordIndex:
    return RecordIndex.build([str(path) for path in report.files], parts)


def ids(report: coco.Report) -> set[str]:
    index = index_of(report)
    return {index.image_id(record) for record in range(index.num_records)}


@pytest.mark.parametrize("images", ["", "images", "../images", ".."])
def test_where_images_are_looked_for(tmp_path: Path, images: str) -> None:
    (tmp_path / "annotations").mkdir()
    path = make(tmp_path / "annotations", content(), images=images)
    report = coco.convert([Source(path)], tmp_path / "out", fractions=ALL_TRAIN)
    assert ids(report) == {"v0/img0", "v0/img1", "v1/img2", "v1/img3"}


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("/", "\\"),
        lambda name: "images/" + name,
        lambda name: ".\\images\\" + name.replace("/", "\\"),
        lambda name: "C:\\lab\\new project\\" + name.replace("/", "\\"),
        lambda name: "/home/lab/new project/" + name,
        lambda name: "\\\\server\\lab\\" + name.replace("/", "\\"),
    ],
)
def test_paths_of_any_system(tmp_path: Path, rename: Callable[[str], str]) -> None:
    given = content()
    for image in given["images"]:
        image["file_name"] = rename(image["file_name"])
    plain = coco.convert([Source(make(tmp_path / "p", content()))], tmp_path / "a")
    other = coco.convert([Source(make(tmp_path / "q", given))], tmp_path / "b")
    assert [p.read_bytes() for p in other.files] == [p.read_bytes() for p in plain.files]


def test_an_absolute_path_that_is_there_is_taken(tmp_path: Path) -> None:
    make(tmp_path / "far" / "away", content())
    path = tmp_path / "near" / "deep" / "labels.json"
    path.parent.mkdir(parents=True)
    given = content()
    for image in given["images"]:
        image["file_name"] = str(tmp_path / "far" / "away" / image["file_name"])
    path.write_text(json.dumps(given))
    report = coco.convert([Source(path)], tmp_path / "out")
    assert ids(report) == {"v0/img0", "v0/img1", "v1/img2", "v1/img3"}
    with pytest.raises(DataError, match=r"4 of 4 labelled images are missing .*--images"):
        coco.convert([Source(path)], tmp_path / "o", images=tmp_path / "no")


def test_one_file_for_two_images_is_no_match(tmp_path: Path) -> None:
    given = content()
    path = make(tmp_path, given)
    for number, folder in enumerate(("v8", "v7")):
        given["images"][number]["file_name"] = f"{folder}/img0.png"
    path.write_text(json.dumps(given))
    put(tmp_path / "img0.png")
    with pytest.raises(
        DataError, match=r"v8/img0.png and v7/img0.png are both found as .*--images"
    ):
        coco.convert([Source(path)], tmp_path / "out")


def test_boxes_and_areas_are_made_where_missing(tmp_path: Path) -> None:
    given = content()
    first, second, third, fourth = given["annotations"]
    del first["bbox"], first["area"]
    second["bbox"], second["area"] = [5, 10, 0, 40], None
    third["bbox"] = [1, 2, 3]
    fourth["keypoints"][5::3] = [0, 0]  # one part is enough where there is a box
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "o", fractions=ALL_TRAIN)
    assert "3 animals have no usable bbox: boxes around their parts" in report.notes
    index = index_of(report)
    number = {index.image_id(int(index.record[i])): i for i in range(4)}
    made = box_around(np.array([[0.1, 0.25], [0.15, 0.275], [0.6, 0.5]]))
    for name in ("v0/img0", "v0/img1", "v1/img2"):
        np.testing.assert_allclose(index.bbox[number[name]], made, atol=1e-6)
    box_px = (made[2] - made[0]) * 100 * (made[3] - made[1]) * 80
    areas = [index.area[number[name]] for name in ("v0/img0", "v0/img1", "v1/img2", "v1/img3")]
    np.testing.assert_allclose(areas, [box_px, box_px, 1200, 1200], rtol=1e-5)
    np.testing.assert_allclose(index.bbox[number["v1/img3"]], [0.05, 0.125, 0.65, 0.625])
    assert index.visibility[number["v1/img3"]].tolist() == [2, 0, 0]


def test_what_is_left_out(tmp_path: Path) -> None:
    given = content()
    given["categories"] += [{"id": 2, "name": "cage"}, {"id": 3, "name": "rat", "keypoints": NAMES}]
    more = {"image_id": 0, "bbox": [0, 0, 50, 50], "area": 9}
    given["annotations"] += [
        {**more, "id": 1, "category_id": 2},
        {**more, "id": 2, "category_id": 1},
        {**more, "id": 3, "category_id": 1, "keypoints": POINTS, "iscrowd": 1},
        {**more, "id": 4, "category_id": 1, "keypoints": POINTS, "image_id": 99},
        {**more, "id": 5, "category_id": 1, "keypoints": [0] * 9},
    ]
    given["annotations"] = [a for a in given["annotations"] if a["image_id"] != 3]
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "o", fractions=ALL_TRAIN)
    assert (report.frames["train"], report.animals) == (3, 3)
    assert {reason: count for reason, count in report.skipped.items() if count} == {
        "annotations of other categories": 1,
        "annotations without keypoints": 1,
        "annotations of crowds (iscrowd)": 1,
        "annotations of images that the file does not list": 1,
        "frames without a labelled animal": 1,
    }


def test_several_categories(tmp_path: Path) -> None:
    given = content()
    given["categories"].append({"id": 2, "name": "rat", "keypoints": NAMES})
    given["annotations"][0]["category_id"] = 2
    sources = [Source(make(tmp_path, given))]
    with pytest.raises(DataError, match=r"several categories .*\(mouse, rat\); choose: --category"):
        coco.convert(sources, tmp_path / "o")
    assert coco.convert(sources, tmp_path / "a", categories=["rat"]).animals == 1
    assert coco.convert(sources, tmp_path / "b", categories=["rat", "mouse"]).animals == 4
    with pytest.raises(DataError, match="no category dog with keypoints; there are mouse, rat"):
        coco.convert(sources, tmp_path / "o", categories=["dog"])
    given["categories"][1]["keypoints"] = NAMES[::-1]
    sources = [Source(make(tmp_path, given))]
    with pytest.raises(DataError, match="the categories differ in their keypoints"):
        coco.convert(sources, tmp_path / "o", categories=["rat", "mouse"])


def test_a_file_for_each_split(tmp_path: Path) -> None:
    train, val = content(), content()
    for part, kept in ((train, (0, 1, 2)), (val, (3,))):
        part["images"] = [image for image in part["images"] if image["id"] in kept]
        part["annotations"] = [a for a in part["annotations"] if a["image_id"] in kept]
    # The same parts in another order.
    val["categories"][0]["keypoints"] = NAMES[::-1]
    for annotation in val["annotations"]:
        annotation["keypoints"] = POINTS[6:] + POINTS[3:6] + POINTS[:3]
    paths = [make(tmp_path, train, "a.json"), make(tmp_path, val, "b.json")]
    sources = [Source.parse(f"train={paths[0]}"), Source.parse(f"val={paths[1]}")]
    assert sources == [Source(paths[0], "train"), Source(paths[1], "val")]
    assert Source.parse("dev=x.json") == Source(Path("dev=x.json"))
    report = coco.convert(sources, tmp_path / "out")
    assert report.frames == {"train": 3, "val": 1, "test": 0}
    assert ids(report) == {*(f"train/v{n // 2}/img{n}" for n in range(3)), "val/v1/img3"}
    np.testing.assert_allclose(
        index_of(report).keypoints, [[[10, 20], [15, 22], [60, 40]]] * 4, atol=1e-4
    )
    with pytest.raises(ConfigError, match="several files: say which is what"):
        coco.convert([Source(path) for path in paths], tmp_path / "o")
    divided = coco.convert([Source(path) for path in paths], tmp_path / "o", split_by="video")
    assert sum(divided.frames.values()) == 4
    val["categories"][0]["keypoints"] = ["a", "b", "c"]
    make(tmp_path, val, "b.json")
    with pytest.raises(DataError, match=r"b.json: keypoints a, b, c, but those of .*a.json are"):
        coco.convert(sources, tmp_path / "p")


def test_splits_of_images(tmp_path: Path) -> None:
    given = content()
    for number, image in enumerate(given["images"]):
        image["split"] = "test" if number else "val"
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "a")
    assert report.frames == {"train": 0, "val": 1, "test": 3}
    given["images"][0]["split"] = "restval"
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "b", fractions=ALL_TRAIN)
    assert report.frames == {"train": 4, "val": 0, "test": 0}


def test_by_video_and_again(tmp_path: Path) -> None:
    given = content()
    path = make(tmp_path, given)
    few = copy.deepcopy(given)
    few["images"] = [image for image in few["images"] if image["id"] in (0, 2)]
    path.write_text(json.dumps(few))
    first = coco.convert([Source(path)], tmp_path / "out", split_by="video", shard_size=1)
    assert first.frames == {"train": 1, "val": 1, "test": 0}
    path.write_text(json.dumps(given))
    (tmp_path / "out" / "test_dataset-00000-of-00001").write_bytes(b"of somebody else")
    again = coco.convert([Source(path)], tmp_path / "out", shard_size=1)
    assert again.frames == {"train": 2, "val": 2, "test": 0}
    assert any("not of this conversion" in note for note in again.notes)
    # Shards of the first conversion, whose number is part of their names, are gone.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.yaml",
        "splits.json",
        "test_dataset-00000-of-00001",
        *(f"train_dataset-0000{n}-of-00002" for n in range(2)),
        *(f"val_dataset-0000{n}-of-00002" for n in range(2)),
    ]
    contents = [path.read_bytes() for path in again.files]
    same = coco.convert([Source(path)], tmp_path / "out", shard_size=1)
    assert [path.read_bytes() for path in same.files] == contents


def test_missing_images(tmp_path: Path) -> None:
    path = make(tmp_path, content())
    (tmp_path / "v0" / "img1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 labelled images are missing \(v0/img1.png\)"):
        coco.convert([Source(path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = coco.convert([Source(path)], tmp_path / "out", skip_missing=True)
    assert report.skipped["frames without an image"] == 1 and report.animals == 3


def test_another_size(tmp_path: Path) -> None:
    path = make(tmp_path, content())
    cv2.imwrite(str(tmp_path / "v0" / "img1.png"), np.zeros((40, 50, 3), np.uint8))
    message = r"img1.png: is 50x40 px, but its labels are for 100x80; put the image there"
    with pytest.raises(DataError, match=message):
        coco.convert([Source(path)], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "no key 'images'; give COCO"),
        (lambda c: c["images"][0].pop("file_name"), "no key 'file_name'; give COCO"),
        (lambda c: c["annotations"][1].pop("category_id"), "no key 'category_id'; give COCO"),
        (
            lambda c: c["categories"][0].pop("keypoints"),
            "category mouse does not name its 3 keypoints; name them all, .* --parts",
        ),
        (lambda c: c["images"][2].update(id=1), r"image id 1 is there twice \(v0/img1.png and v1/"),
        (
            lambda c: c["annotations"][2].update(id=11),
            r"annotation id 11 is there twice \(image 1 and image 2\); give each annotation an id",
        ),
        (
            lambda c: (
                c["images"][3].update(file_name="v1/img2.png"),
                c["annotations"][3].update(keypoints=[9, *POINTS[1:]]),
            ),
            "labels.json: image 2 and .*labels.json: image 3: both label .*img2.png, and differ",
        ),
        (
            lambda c: c["categories"][0].update(keypoints=["nose", "nose", "tail"]),
            "labels.json: several body parts are named nose; rename them",
        ),
        (lambda c: c.update(annotations=[3]), "labels.json: .*; give COCO"),
        (
            lambda c: c["annotations"][1]["keypoints"].pop(),
            "annotation 11 of v0/img1.png: keypoints are not 3 numbers for each of 3 parts",
        ),
        (
            lambda c: c["annotations"][1].update(keypoints=["x"] * 9),
            "annotation 11 of v0/img1.png: keypoints are not 3 numbers",
        ),
        (lambda c: c.update(annotations=[]), "no labelled frame to write"),
    ],
)
def test_bad_files(tmp_path: Path, change: Callable[[Content], object], message: str) -> None:
    given = content()
    change(given)
    with pytest.raises(DataError, match=message):
        coco.convert([Source(make(tmp_path, given))], tmp_path / "out")


@pytest.mark.parametrize("key", ["image_id", "category_id"])
@pytest.mark.parametrize("kind", [str, float])
def test_ids_as_text(tmp_path: Path, key: str, kind: type) -> None:
    given = content()
    for annotation in given["annotations"]:
        annotation[key] = kind(annotation[key])
    path = make(tmp_path, given)
    if kind is float:
        assert coco.convert([Source(path)], tmp_path / "out").animals == 4
        return
    with pytest.raises(DataError, match=rf"annotations have {key} '\d' as text, .* id \d as a num"):
        coco.convert([Source(path)], tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"shapes": [], "imagePath": "a.png"}', "a file of LabelMe or AnyLabeling, not COCO"),
        ('[{"image_id": 1, "category_id": 1, "keypoints": []}]', "results of a model, or"),
        ('[{"annotations": [], "data": {}}]', "an export of Label Studio, not COCO"),
        ('[{"image": "a", "ann_label": []}]', "labels of MARS"),
        ("[[1]]", "no object with images, annotations, categories; export"),
        ('{"images": {}, "annotations": []}', "images is no list; give COCO"),
        ("[" * 100_000, "nested too deep; give COCO"),
    ],
)
def test_json_of_other_tools(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DataError, match=f"labels.json: {message}"):
        coco.convert([Source(tmp_path / "labels.json")], tmp_path / "out")


def test_no_json(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    with pytest.raises(DataError, match=r"labels.json: No such file .*; give a COCO JSON file"):
        coco.convert([Source(path)], tmp_path / "out")
    for text in ("{", "[]", "3"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"labels.json: .*; "):
            coco.convert([Source(path)], tmp_path / "out")


def test_nan_is_unlabelled(tmp_path: Path) -> None:
    given = content()
    given["annotations"][0]["keypoints"][3:5] = [float("nan"), None]
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "o", fractions=ALL_TRAIN)
    assert report.unlabelled_parts == 1
    index = index_of(report)
    row = next(i for i in range(4) if index.image_id(int(index.record[i])) == "v0/img0")
    assert np.isnan(index.keypoints[row, 1]).all() and index.visibility[row].tolist() == [2, 0, 2]


def test_repeated_entries_count_once(tmp_path: Path) -> None:
    given = content()
    for entries in (given["images"], given["annotations"]):
        entries.append(dict(entries[0]))
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "o", fractions=ALL_TRAIN)
    assert (report.frames["train"], report.animals) == (4, 4)


def test_annotations_whose_id_is_null(tmp_path: Path) -> None:
    given = content()
    for annotation in given["annotations"]:
        annotation["id"] = None
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "o", fractions=ALL_TRAIN)
    assert report.animals == 4


@pytest.mark.parametrize("v", [0, 2])
def test_keypoints_of_a_category_that_names_none(tmp_path: Path, v: int) -> None:
    """Boxes of another category, with keypoints that some tools fill in."""
    given = content()
    given["categories"].insert(0, {"id": 2, "name": "cage"})
    box = {"id": 1, "image_id": 0, "category_id": 2, "bbox": [0, 0, 50, 50], "area": 9}
    given["annotations"].append({**box, "keypoints": [0, 0, v] * 9})
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "o", fractions=ALL_TRAIN)
    assert report.animals == 4 and report.skipped["annotations of other categories"] == 1


def test_one_image_in_two_splits(tmp_path: Path) -> None:
    path = make(tmp_path, content())
    sources = [Source(path, "train"), Source(path, "val")]
    with pytest.raises(DataError, match=r"json: image 0: both label .*img0.png, one for train"):
        coco.convert(sources, tmp_path / "o")
    given = content()
    given["annotations"][0]["keypoints"][0] = 11.0
    sources[1] = Source(make(tmp_path, given, "b.json"), "val")
    with pytest.raises(DataError, match=r"image 0: both label .*img0.png, and differ; keep one"):
        coco.convert(sources, tmp_path / "o")


def test_scores_in_the_place_of_v(tmp_path: Path) -> None:
    given = content()
    flags = [[1.0, 0.97, 0.0], [2.0, 1.5, 0.02], [2.0, 1.0, 0.0], [3.0, 1.0, -1.0]]
    for annotation, v in zip(given["annotations"], flags, strict=True):
        annotation["keypoints"][2::3] = v
    report = coco.convert([Source(make(tmp_path, given))], tmp_path / "o", fractions=ALL_TRAIN)
    index = index_of(report)
    found = {index.image_id(int(index.record[i])): index.visibility[i].tolist() for i in range(4)}
    assert found == {
        "v0/img0": [2, 2, 0],
        "v0/img1": [2, 2, 2],
        "v1/img2": [2, 1, 0],
        "v1/img3": [2, 2, 0],
    }
    assert [note.partition(":")[0] for note in report.notes if " v " in note] == [
        "3 animals have v that are not 0, 1 or 2, as scores of a model"
    ]


def test_names_of_keypoints_from_the_caller(tmp_path: Path) -> None:
    given = content()
    del given["categories"][0]["keypoints"]
    path = make(tmp_path, given)
    parts = {"nose": "snout", "ear": "ear", "tail": "tail"}
    report = coco.convert([Source(path)], tmp_path / "o", parts=parts, fractions=ALL_TRAIN)
    assert report.parts == ("snout", "ear", "tail")
    np.testing.assert_allclose(index_of(report).keypoints[0], np.reshape(POINTS, (3, 3))[:, :2])
    del parts["ear"]
    with pytest.raises(DataError, match="category mouse does not name its 3 keypoints"):
        coco.convert([Source(path)], tmp_path / "p", parts=parts)


@pytest.mark.parametrize(
    ("folder", "images"),
    [("{}2017", None), ("{}2017", ""), ("images/{}2017", None), ("{}2017/images", ""), ("{}", "")],
)
def test_images_in_a_folder_for_each_split(tmp_path: Path, folder: str, images: str | None) -> None:
    """Names without folders, the same in each: a file's own folder decides."""
    sources = []
    for number, split in enumerate(("train", "val")):
        given = content(2)
        for n, image in enumerate(given["images"]):
            image["file_name"] = f"{n:06d}.png"
            path = tmp_path / folder.format(split) / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((80, 100, 3), 100 * number + 50 * n, np.uint8))
        path = tmp_path / "annotations" / f"person_keypoints_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(given))
        sources.append(Source(path, split))
    root = None if images is None else tmp_path / images
    index = index_of(coco.convert(sources, tmp_path / "out", images=root))
    grey = {
        index.image_id(record): int(
            cv2.imdecode(np.frombuffer(index.jpeg(record), np.uint8), cv2.IMREAD_COLOR).mean()
        )
        for record in range(index.num_records)
    }
    assert grey == {"train/000000": 0, "train/000001": 50, "val/000000": 100, "val/000001": 150}


def put(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((80, 100, 3), grey, np.uint8))


def greys(report: coco.Report) -> list[int]:
    index = index_of(report)
    data = (np.frombuffer(index.jpeg(record), np.uint8) for record in range(index.num_records))
    return sorted(int(cv2.imdecode(each, cv2.IMREAD_COLOR).mean()) for each in data)


@pytest.mark.parametrize("name", ["annotations", "v0_masks"])
def test_masks_in_a_folder_that_is_called_as_the_file(tmp_path: Path, name: str) -> None:
    given = content(2)
    for n, image in enumerate(given["images"]):
        image["file_name"] = f"{n}.png"
        put(tmp_path / "images" / f"{n}.png", 50 + n)
        put(tmp_path / name.rpartition("_")[2] / f"{n}.png", 255)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(given))
    if name == "annotations":
        assert greys(coco.convert([Source(path)], tmp_path / "o")) == [50, 51]
        return
    # Such a folder may also be that of a subset: nothing tells.
    with pytest.raises(
        DataError, match=r"0\.png is there twice, as .*masks/0\.png and .*images/0\."
    ):
        coco.convert([Source(path)], tmp_path / "o")
    report = coco.convert([Source(path)], tmp_path / "o", images=tmp_path / "images")
    assert greys(report) == [50, 51]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("train2017", "train2017"),
        ("person_keypoints_train2017", "train2017"),
        ("Train", "images/Train"),
        ("labels", "images/Train"),
        ("labels", "train/images"),
    ],
)
def test_the_folder_of_a_subset(tmp_path: Path, name: str, folder: str) -> None:
    given = content(1)
    given["images"][0]["file_name"] = "0.png"
    put(tmp_path / folder / "0.png", 50)
    path = tmp_path / "annotations" / f"{name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(given))
    assert greys(coco.convert([Source(path, "train")], tmp_path / "a")) == [50]
    # A copy outside does no harm, another image does.
    put(tmp_path / "images" / "0.png", 50)
    assert greys(coco.convert([Source(path, "train")], tmp_path / "b")) == [50]
    put(tmp_path / "images" / "0.png", 60)
    with pytest.raises(DataError, match=rf"0\.png is there twice, as .*{folder}/0\.png and "):
        coco.convert([Source(path, "train")], tmp_path / "c")


def split_files(folder: Path) -> list[Source]:
    """Two files whose images have the same names."""
    sources = []
    for split in ("train", "val"):
        (folder / split).mkdir()
        sources.append(Source(make(folder / split, content(2)), split))
    return sources


def test_ids_do_not_depend_on_what_is_converted_together(tmp_path: Path) -> None:
    sources = split_files(tmp_path)
    both = {f"{split}/v0/img{n}" for split in ("train", "val") for n in range(2)}
    assert ids(coco.convert(sources, tmp_path / "a")) == both
    for source in sources:
        again = coco.convert([source], tmp_path / "a")
        assert ids(again) == both and not any("removed" in note for note in again.notes)
        assert any(" 0 new frames" in note for note in again.notes)
        report = coco.convert([source], tmp_path / "b")
    assert ids(report) == both


@pytest.mark.parametrize("older", [False, True])
def test_ids_without_their_split_stay(tmp_path: Path, older: bool) -> None:
    """As an older version wrote them."""
    sources = split_files(tmp_path)
    out = tmp_path / "out"
    coco.convert(sources[:1], out)
    plain = [f"v0/img{n}" for n in range(2)]
    stored = json.loads((out / "splits.json").read_text().replace("train/v0", "v0"))
    if older:
        stored |= {"files": [*stored["files"]], "sources": {}, "parts": []}
    (out / "splits.json").write_text(json.dumps(stored))
    assert ids(coco.convert(sources[:1], out)) == {*plain}
    assert ids(coco.convert(sources[1:], out)) == {*plain, *(f"val/{each}" for each in plain)}


def test_divided_files_have_no_split_in_their_ids(tmp_path: Path) -> None:
    """A video's frames in both would otherwise count as two videos."""
    path = make(tmp_path, content())
    sources = [Source(path, "train"), Source(path, "val")]
    report = coco.convert(sources, tmp_path / "out", split_by="video")
    assert ids(report) == {"v0/img0", "v0/img1", "v1/img2", "v1/img3"}


def test_a_second_source_keeps_the_records_of_the_first(tmp_path: Path) -> None:
    """One of each image, whatever is converted again, and `splits.json` says so."""
    sources = []
    for name, numbers in (("a", (0, 1)), ("b", (2, 3))):
        given = content()
        for key, entry in (("images", "id"), ("annotations", "image_id")):
            given[key] = [each for each in given[key] if each[entry] in numbers]
        sources.append(Source(make(tmp_path, given, f"{name}.json")))
    out = tmp_path / "out"
    both = {"v0/img0", "v0/img1", "v1/img2", "v1/img3"}
    first = coco.convert([sources[0]], out, fractions=ALL_TRAIN, shard_size=1)
    payloads = {path.read_bytes() for path in first.files}
    second = coco.convert([sources[1]], out, shard_size=1)
    assert second.frames["train"] + second.frames["val"] + second.frames["test"] == 2
    assert "kept: 2 records of ../a.json" in second.notes and ids(second) == both
    assert payloads < {path.read_bytes() for path in second.files}
    assert ids(coco.convert([sources[0]], out)) == both
    stored = json.loads((out / "splits.json").read_text())
    assert {name: {*listed} for name, listed in stored["sources"].items()} == {
        "../a.json": {"v0/img0", "v0/img1"},
        "../b.json": {"v1/img2", "v1/img3"},
    }
    for name, listed in stored["files"].items():
        index = RecordIndex.build([str(out / name)], 3)
        assert [index.image_id(record) for record in range(index.num_records)] == listed
        assert {stored["frames"][each] for each in listed} == {name.partition("_")[0]}
    assert {path.name for path in out.iterdir()} == {"config.yaml", "splits.json", *stored["files"]}

    with pytest.raises(DataError, match=r"of ../a.json with the parts nose, left ear, tail, these"):
        coco.convert([sources[1]], out, parts={"tail": "tail", "nose": "nose"})
    moved = make(tmp_path, json.loads(sources[1].path.read_text()), "c.json")
    with pytest.raises(DataError, match=r"v1/img2 is there already, of ../b.json; .*--replace"):
        coco.convert([Source(moved)], out)
    replaced = coco.convert([Source(moved)], out, replace=True)
    assert ids(replaced) == {"v1/img2", "v1/img3"}
    assert "removed: 2 records of ../a.json" in replaced.notes


def test_frames_that_a_source_has_no_more_go_and_are_named(tmp_path: Path) -> None:
    given = content()
    path = make(tmp_path, given)
    coco.convert([Source(path)], tmp_path / "out", fractions=ALL_TRAIN)
    given["annotations"] = given["annotations"][:3]
    path.write_text(json.dumps(given))
    report = coco.convert([Source(path)], tmp_path / "out")
    assert ids(report) == {"v0/img0", "v0/img1", "v1/img2"}
    gone = "removed: 1 record of frames that ../labels.json does not label any more"
    assert gone in report.notes
    (tmp_path / "v0" / "img1.png").unlink()
    report = coco.convert([Source(path)], tmp_path / "out", skip_missing=True)
    assert f"{gone}, or whose images are missing" in report.notes


def test_records_that_no_conversion_wrote_stay(tmp_path: Path) -> None:
    path = make(tmp_path, content())
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "train_dataset-00000-of-00001"
    other.write_bytes(b"of somebody else")
    with pytest.raises(DataError, match=r"00000-of-00001: is there, but no conversion .*--replace"):
        coco.convert([Source(path)], tmp_path / "out", fractions=ALL_TRAIN)
    assert [other.read_bytes()] == [p.read_bytes() for p in (tmp_path / "out").iterdir()]
    report = coco.convert([Source(path)], tmp_path / "out", fractions=ALL_TRAIN, replace=True)
    assert len(ids(report)) == 4
    report.files[0].write_bytes(b"")
    (tmp_path / "b.json").write_text(path.read_text())
    with pytest.raises(DataError, match=r"its 0 records are not the 4 that .*splits.json lists"):
        coco.convert([Source(tmp_path / "b.json")], tmp_path / "out")


def test_replace_leaves_no_other_records(tmp_path: Path) -> None:
    """After a new draw, a frame would otherwise be in two splits."""
    path = make(tmp_path, content())
    out = tmp_path / "out"
    coco.convert([Source(path)], out, shard_size=1, split_by="video")
    (out / "splits.json").unlink()
    (out / "train_dataset-notes.txt").write_text("kept")
    report = coco.convert([Source(path)], out, replace=True, fractions=ALL_TRAIN)
    names = {"config.yaml", "splits.json", "train_dataset-00000-of-00001"}
    names.add("train_dataset-notes.txt")
    assert {each.name for each in out.iterdir()} == names and len(ids(report)) == 4
    assert sum(note.startswith("removed: ") for note in report.notes) == 4


@pytest.mark.parametrize("replace", [False, True])
def test_files_that_an_older_version_listed(tmp_path: Path, replace: bool) -> None:
    """It listed files without their records, and converted one source to a folder."""
    path = make(tmp_path, content())
    out = tmp_path / "out"
    coco.convert([Source(path)], out, shard_size=4, fractions=ALL_TRAIN)
    stored = json.loads((out / "splits.json").read_text())
    stored["files"] = [*stored["files"]]
    del stored["sources"], stored["parts"]
    (out / "splits.json").write_text(json.dumps(stored))
    if not replace:
        other = content()
        for image in other["images"]:
            image["file_name"] = f"other/{image['file_name']}"
        source = Source(make(tmp_path, other, "other.json"))
        with pytest.raises(DataError, match="is there, but no conversion"):
            coco.convert([source], out, shard_size=9)
    report = coco.convert([Source(path)], out, shard_size=2, replace=replace)
    assert {each.name for each in out.iterdir()} == {
        "config.yaml",
        "splits.json",
        *(f"train_dataset-0000{n}-of-00002" for n in range(2)),
    }
    assert "replaced: 1 files that an older version wrote" in report.notes
    assert {*coco.convert([Source(path)], out, shard_size=2).files} == {*report.files}


def test_two_conversions_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, content())
    write = common.write_frames

    def slow(*given: Any) -> int:
        monkeypatch.setattr(common, "write_frames", write)
        coco.convert([Source(make(tmp_path, content(2), "b.json"))], tmp_path / "out")
        return write(*given)

    monkeypatch.setattr(common, "write_frames", slow)
    with pytest.raises(DataError, match="another conversion wrote there meanwhile; convert again"):
        coco.convert([Source(path)], tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert {*stored["sources"]} == {"../b.json"}

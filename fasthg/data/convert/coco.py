"""COCO keypoint annotations: one JSON file, or one for each split.

Read are `images` (`id`, `file_name`, `width`, `height`, and `split` where every image has one of
train, val, test), `categories` (`id`, `name`, `keypoints`, `skeleton`, `keypoint_colors`) and
`annotations` (`image_id`, `category_id`, `keypoints` as x y v by part, `bbox` as x y width height,
`area`, `iscrowd`), in image px and px². v is kept: 0 unlabelled, 1 occluded, 2 visible. Where an
annotation has any other v, they are scores of a model: all parts above 0 are labelled, and visible.
A given box or area is kept, a missing one is made as for other formats. Crowds and annotations
without keypoints are left out, and so are annotations with a `score` in a file whose `info` has
`machine_labels`: nobody has corrected what a model wrote, see `fasthg suggest`. A category may lack
names of keypoints where the caller gives them.

An image is looked for in the folder given; otherwise where an absolute `file_name` says, then
next to the JSON file and one folder up. In each of these, the folder of the file's own subset comes
first (`train2017` of `person_keypoints_train2017.json`), then that of its split (`train`), the
folder itself and `images`, which may be divided the same way; next to the JSON file DeepLabCut's
`labeled-data`, too. There, as many trailing components of the name are used as exist. Two different
files of one name, in a subset's folder and outside of them, are an error. The image's id is
`file_name` less its suffix and a first folder named `images` or `*_images`; of an absolute one, the
last folder and the name. Before the ids of a file that is said to be a split (train=FILE) is the
split's name: `train/000001`.
"""

from __future__ import annotations

import filecmp
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from fasthg.data.convert.common import (
    Labelled,
    WriteOptions,
    given_boxes,
    keep_labelled,
    write_splits,
)
from fasthg.data.convert.images import (
    find_all,
    find_among,
    is_absolute,
    locate,
    missing_images,
    relative_parts,
    trailing,
)
from fasthg.data.convert.kept import source_name
from fasthg.data.convert.names import choose_parts
from fasthg.data.convert.report import Report, new_report
from fasthg.data.convert.splits import SPLITS, load_splits
from fasthg.data.convert.text import read_text
from fasthg.errors import ConfigError, DataError

_ROOT = re.compile(r"(.*_)?images")
_AGAIN = "export the annotations again"
_EXPORT = "export the labels as COCO keypoints"
# What a file and its folder of images may both be called; a folder of masks or drawings may be
# called as any file.
_SUBSET = re.compile(r"(train|training|val|valid|validation|dev|test|testing)[\W_]*\d*")
_SPLIT_OF = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
# A key of the first object in the files of other tools.
_OTHER_TOOLS = {
    "shapes": "a file of LabelMe or AnyLabeling",
    "_via_settings": "a project of the VGG Image Annotator",
    "source-ref": "a manifest of SageMaker Ground Truth",
    "ann_label": "labels of MARS (fasthg data convert mars reads them)",
    "keypoints": "results of a model, or annotations without their images",
    "data": "an export of Label Studio",
}
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A file of annotations and the split that it holds, None for one to be divided."""

    path: Path
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Parse `train=FILE`, `val=FILE`, `test=FILE` or `FILE`."""
        split, equals, path = text.partition("=")
        return cls(Path(path), split) if equals and split in SPLITS else cls(Path(text))


def split_of(path: Path) -> str | None:
    """The split that a file's name says: train of `person_keypoints_train2017.json`."""
    words = [word for word in re.split(r"[\W_\d]+", path.stem.lower()) if word]
    said = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return said.pop() if len(said) == 1 else None


@dataclass(frozen=True)
class _Set:
    """The content of a file. names: of the keypoints; category: the entry that names them; animals:
    annotations by image id; splits: of each image, None for one to be divided; split: of the
    file."""

    path: Path
    split: str | None
    images: list[Entry]
    names: list[str]
    category: Entry
    animals: dict[Any, list[Entry]]
    splits: list[str | None]


def convert(
    sources: Sequence[Source],
    out: Path,
    *,
    images: Path | None = None,
    categories: Sequence[str] = (),
    parts: Mapping[str, str] | None = None,
    skip_missing: bool = False,
    predictions: bool = False,
    boxes: str | None = None,
    **options: Unpack[WriteOptions],
) -> Report:
    """Write the annotated images of COCO files to `out` as TFRecords of MARS' format.

    images: the folder of the images. predictions: also write machine labels that nobody corrected,
    see above. categories: names of those to write; needed where several
    have keypoints. parts: also names the keypoints, all and in their order, of a category that
    does not. The rest as in `dlc.convert`; a video is an image's folder, or what its name
    says before its last number. Raises DataError, naming file, entry and remedy, for what cannot
    be used; ConfigError for several files none of which is said to be a split.
    """
    if len(sources) > 1 and not options.get("split_by") and not all(s.split for s in sources):
        raise ConfigError("several files: say which is what (train=FILE val=FILE), or --split-by")
    report: Report | None = None
    frames: list[Labelled] = []
    missing: list[str] = []
    skipped: Counter[str] = Counter()
    total = 0
    names: list[str] = []
    scored = 0
    for index, source in enumerate(sources):
        content = _read(source, categories, skipped, parts, predictions)
        names.append(source_name(source.path, Path(out), ", ".join(sorted(categories))))
        if report is None:
            own = content.names
            report = new_report(choose_parts(own, parts, source.path))
            report.take_skeleton(own, _edges(content.category))
            report.take_colors(_colors(content))
        elif sorted(content.names) != sorted(own):
            raise DataError(
                f"{source.path}: keypoints {', '.join(content.names)}, but those of "
                f"{sources[0].path} are {', '.join(own)}; convert them apart"
            )
        total += len(content.images)
        files = _find(content, images)
        for number, (path, image_id) in enumerate(zip(files, _ids(content), strict=True)):
            if path is None:
                missing.append(str(content.images[number]["file_name"]))
            else:
                frame, scores = _labelled(content, number, path, image_id, [*report.mapping])
                frames.append(replace(frame, source=index))
                scored += scores
    if report is None:
        raise ConfigError("no file of annotations given")
    if missing and not skip_missing:
        raise missing_images(missing, total, images or sources[0].path, "--images")
    skipped["frames without an image"] = len(missing)
    report.skipped.update(skipped)
    divided = options.get("split_by") is not None
    frames = _told_apart(frames, sources, names, Path(out), divided=divided)
    kept = keep_labelled(frames, report, boxes)
    unboxed = sum(int(np.isnan(given_boxes(frame)[:, 0]).sum()) for frame in kept)
    if unboxed and boxes is None:
        report.notes.append(f"{unboxed} animals have no usable bbox: boxes around their parts")
    if scored:
        report.notes.append(
            f"{scored} animals have v that are not 0, 1 or 2, as scores of a model: parts with "
            f"v > 0 count as labelled"
        )
    return write_splits(kept, Path(out), report, sources=names, **options)


def _told_apart(
    frames: Sequence[Labelled],
    sources: Sequence[Source],
    names: Sequence[str],
    out: Path,
    *,
    divided: bool,
) -> list[Labelled]:
    """The frames, with the name of the split before the ids of a source that is said to be one.

    So the ids do not depend on what is converted together. They stay without the split where
    records of the source in `out` are without it, and where several sources are `divided` anew,
    unless images of one name meet there. names: of the sources, as in `splits.json`.
    """
    before = load_splits(out)
    files: dict[str, PurePath] = {}
    clash = not all(files.setdefault(f.image_id, f.image) == f.image for f in frames)
    told = []
    for index, (source, name) in enumerate(zip(sources, names, strict=True)):
        own = [frame for frame in frames if frame.source == index]
        if source.split is None:
            told += own
            continue
        start = f"{source.split}/"
        there = before.sources.get(name) if before else None
        if before and not before.sources:  # of a version that did not note the sources
            there = [f.image_id for f in own if f.image_id in before.frames]
        starts = all(each.startswith(start) for each in there) if there else clash or not divided
        for frame in own:
            if starts and not frame.image_id.startswith(start):
                frame = replace(frame, image_id=start + frame.image_id)
            told.append(frame)
    return told


def _read(
    source: Source,
    categories: Sequence[str],
    skipped: Counter[str],
    parts: Mapping[str, str] | None,
    predictions: bool,
) -> _Set:
    path = source.path
    try:
        data = _content(path)
        images, annotations = ([*data[key]] for key in ("images", "annotations"))
        images, annotations = _once(path, "image", images), _once(path, "annotation", annotations)
        kinds = [category["id"] for category in data["categories"]]
        _check_ids(path, "category_id", "categories", kinds, annotations)
        chosen, names, category = _category(
            path, data["categories"], annotations, categories, parts
        )
        animals: dict[Any, list[Entry]] = {image["id"]: [] for image in images}
        info = data.get("info")
        by_machine = isinstance(info, dict) and info.get("machine_labels") and not predictions
        uncorrected = 0
        for annotation in annotations:
            reason = _unusable(annotation, chosen, animals)
            if reason:
                skipped[reason] += 1
            elif by_machine and "score" in annotation:
                uncorrected += 1
            else:
                animals[annotation["image_id"]].append(annotation)
        if uncorrected:
            skipped["machine labels that nobody corrected (with a score)"] += uncorrected
            if not any(animals.values()):
                raise DataError(
                    f"{path}: holds machine labels and no person's; correct them in a labelling "
                    "tool, or take them as they are with --predictions"
                )
        _check_ids(path, "image_id", "images", [*animals], annotations)
        used = [image for image in images if animals[image["id"]] and image["file_name"]]
        skipped["frames without a labelled animal"] += len(images) - len(used)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a COCO JSON file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}; not a JSON file, {_AGAIN}") from None
    except KeyError as error:
        raise DataError(f"{path}: no key {error}; give COCO keypoint annotations") from None
    except (TypeError, AttributeError) as error:
        raise DataError(f"{path}: {error}; give COCO keypoint annotations") from None
    splits = [source.split or image.get("split") for image in used]
    if not all(split in SPLITS for split in splits):
        splits = [source.split] * len(used)
    return _Set(path, source.split, used, names, category, animals, splits)


def _once(path: Path, kind: str, entries: Sequence[Entry]) -> list[Entry]:
    """The entries less repetitions. Raises DataError for an id that several others share."""
    found: dict[Any, Entry] = {}
    for number, entry in enumerate(entries):
        # Images are found by their ids. Annotations may lack one, or have null.
        key = entry["id"] if kind == "image" else entry.get("id")
        key = f"without {number}" if key is None and kind != "image" else key
        other = found.setdefault(key, entry)
        if other != entry:
            ways = [
                each.get("file_name", f"image {each.get('image_id')}") for each in (other, entry)
            ]
            raise DataError(
                f"{path}: {kind} id {key} is there twice ({' and '.join(map(str, ways))}); give "
                f"each {kind} an id of its own"
            )
    return [*found.values()]


def _content(path: Path) -> dict[str, Any]:
    """The object of a COCO file. Raises DataError, naming what else it is where that shows."""
    try:
        data = json.loads(read_text(path))
    except RecursionError:
        raise DataError(f"{path}: nested too deep; give COCO keypoint annotations") from None
    if isinstance(data, dict) and "images" in data:
        for key in ("images", "annotations", "categories"):
            if not isinstance(data.get(key, []), list):
                raise DataError(f"{path}: {key} is no list; give COCO keypoint annotations")
        return data
    first = data[0] if isinstance(data, list) and data else data
    keys = {*first} if isinstance(first, dict) else set()
    for own, tool in _OTHER_TOOLS.items():
        if own in keys:
            raise DataError(f"{path}: {tool}, not COCO keypoint annotations; {_EXPORT}")
    if not isinstance(data, dict):
        raise DataError(f"{path}: no object with images, annotations, categories; {_EXPORT}")
    return data


def _check_ids(
    path: Path, key: str, section: str, ids: Sequence[Any], annotations: Sequence[Entry]
) -> None:
    """Raise DataError where no annotation's id is known because one is text, the other a number."""
    own = [annotation[key] for annotation in annotations if key in annotation]
    known = {*map(str, ids)}
    if own and not {*own} & {*ids} and any(str(each) in known for each in own):
        first = next(each for each in own if str(each) in known)
        other = next(each for each in ids if str(each) == str(first))
        raise DataError(
            f"{path}: annotations have {key} {first!r} as {_kind(first)}, {section} have id "
            f"{other!r} as {_kind(other)}; write both as numbers"
        )


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "a number"


def _category(
    path: Path,
    categories: Sequence[Entry],
    annotations: Sequence[Entry],
    selected: Sequence[str],
    parts: Mapping[str, str] | None,
) -> tuple[set[Any], list[str], Entry]:
    """The ids of the categories to convert, their keypoints, and the first of them."""
    used = {
        annotation["category_id"]: len(annotation["keypoints"]) // 3
        for annotation in annotations
        if _any_seen(annotation.get("keypoints"))
    }
    posed = [each for each in categories if each.get("keypoints") or each["id"] in used]
    there = ", ".join(str(category["name"]) for category in posed)
    if not posed:
        raise DataError(f"{path}: no category has keypoints; export keypoint annotations")
    unknown = [name for name in selected if name not in [category["name"] for category in posed]]
    if unknown:
        raise DataError(
            f"{path}: no category {', '.join(unknown)} with keypoints; there are {there}"
        )
    chosen = [c for c in posed if (c["name"] in selected if selected else c["id"] in used)]
    if not selected:
        # Some tools write keypoints for boxes, too.
        chosen = [c for c in chosen if c.get("keypoints")] or chosen
    if len(chosen) > 1 and not selected:
        raise DataError(f"{path}: several categories have keypoints ({there}); choose: --category")
    names = []
    for category in chosen or posed:
        own = category.get("keypoints") or [*(parts or ())]
        if not category.get("keypoints") and len(own) != used[category["id"]]:
            raise DataError(
                f"{path}: category {category['name']} does not name its {used[category['id']]} "
                f"keypoints; name them all, in their order, with --parts"
            )
        names.append([str(name) for name in own])
    if any(other != names[0] for other in names):
        raise DataError(f"{path}: the categories differ in their keypoints; convert them apart")
    return {category["id"] for category in chosen}, names[0], (chosen or posed)[0]


def _edges(category: Entry) -> list[tuple[int, int]]:
    """A category's `skeleton`, whose indices count from 1; what is no pair is left out."""
    edges = category.get("skeleton")
    pairs = (edge for edge in (edges if isinstance(edges, list) else ()) if isinstance(edge, list))
    return [
        (edge[0] - 1, edge[1] - 1)
        for edge in pairs
        if len(edge) == 2 and all(isinstance(end, int) for end in edge)
    ]


def _colors(content: _Set) -> dict[str, object]:
    """`keypoint_colors` of a category, as COCO Annotator writes them, by keypoint."""
    colors = content.category.get("keypoint_colors")
    return dict(zip(content.names, colors, strict=False)) if isinstance(colors, list) else {}


def _any_seen(keypoints: Any) -> bool:
    """Whether some v of an annotation's keypoints is above 0; what is no number counts."""
    for v in (keypoints or ())[2::3]:
        try:
            if float(v) > 0:
                return True
        except (TypeError, ValueError, OverflowError):
            if v is not None:
                return True
    return False


def _unusable(annotation: Entry, categories: set[Any], images: Mapping[Any, Any]) -> str | None:
    if annotation["category_id"] not in categories:
        return "annotations of other categories"
    if annotation.get("iscrowd") not in (None, 0, "0"):
        return "annotations of crowds (iscrowd)"
    if not annotation.get("keypoints"):
        return "annotations without keypoints"
    if annotation["image_id"] not in images:
        return "annotations of images that the file does not list"
    return None


def _find(content: _Set, images: Path | None) -> list[Path | None]:
    """The file of each image, None where there is none."""
    own, above = content.path.parent, content.path.parent.parent
    roots = [own, own / "images", own / "labeled-data", above, above / "images"]
    if images is not None:
        roots = [images, images / "images"]
    subsets = [folder for root in roots for folder in _subsets(root, content)]
    folders = [folder for root in roots for folder in (*_subsets(root, content), root)]
    taken: dict[Path, str] = {}
    files = []
    for image in content.images:
        name = str(image["file_name"])
        file = find_among(folders, name) if images is not None else locate(name, None, folders)
        if file is not None and (other := _elsewhere(file, name, folders, subsets)):
            raise DataError(
                f"{content.path}: {name} is there twice, as {file} and {other}, which differ; "
                f"give the folder of the images: --images"
            )
        if file is not None and taken.setdefault(file, name) != name:
            raise DataError(
                f"{content.path}: images {taken[file]} and {name} are both found as {file}; "
                f"give the folder of the images: --images"
            )
        files.append(file)
    return files


def _elsewhere(
    file: Path, name: str, folders: Sequence[Path], subsets: Sequence[Path]
) -> Path | None:
    """Another file that `name` fits as well, outside of the subsets' folders that hold `file`."""

    def inside(path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in subsets)

    if not inside(file):
        return None
    others = (other for other in find_all(folders, name) if not inside(other))
    return next((other for other in others if not filecmp.cmp(file, other, shallow=False)), None)


def _subsets(root: Path, content: _Set) -> list[Path]:
    """The folders in `root` that are called as the end of the file's name, or as its split.

    One called as the whole name counts if that is the name of a split.
    """
    stem = content.path.stem.lower()
    found = []
    try:
        folders = sorted(root.iterdir())
    except OSError:  # not there, or not to be listed
        return []
    for folder in folders:
        name = folder.name.lower()
        ends = re.search(rf"(^|[\W_]){re.escape(name)}$", stem)
        if ends and (name != stem or _SUBSET.fullmatch(name)) and folder.is_dir():
            found.append((-len(name), folder))
        elif name == content.split and folder.is_dir():
            found.append((0, folder))
    chosen = [folder for _, folder in sorted(found)]
    return [each for folder in chosen for each in (folder, folder / "images")]


def _ids(content: _Set) -> list[str]:
    """Ids of the images, which do not change when the project moves."""
    names = [str(image["file_name"]) for image in content.images]
    short = trailing(filter(is_absolute, names), 2)
    ids = []
    for name in names:
        parts = short.get(name) or tuple(p for p in relative_parts(name) if p != "..")
        if len(parts) > 1 and _ROOT.fullmatch(parts[0]):
            parts = parts[1:]
        ids.append(PurePosixPath(*parts).with_suffix("").as_posix())
    return ids


def _labelled(
    content: _Set, number: int, path: Path, image_id: str, parts: Sequence[str]
) -> tuple[Labelled, int]:
    """A frame, and how many of its animals have scores in the place of v."""
    image = content.images[number]
    animals = content.animals[image["id"]]
    order = [content.names.index(name) for name in parts]
    points = []
    for annotation in animals:
        where = f"{content.path}: annotation {annotation.get('id')} of {image['file_name']}"
        try:
            points.append(np.array(annotation["keypoints"], float).reshape(len(content.names), 3))
        except (ValueError, TypeError, OverflowError):
            raise DataError(
                f"{where}: keypoints are not 3 numbers for each of {len(content.names)} parts; "
                f"{_AGAIN}"
            ) from None
    xyv = np.stack(points)[:, order]
    v = np.nan_to_num(xyv[..., 2])
    scores = np.asarray(~np.isin(v, (0, 1, 2)).all(axis=1))
    seen = np.where(scores[:, None], 2 * (v > 0), v).astype(np.uint8)
    keypoints = np.where(seen[..., None] > 0, xyv[..., :2], np.nan)
    frame = Labelled(
        image=path,
        image_id=image_id,
        keypoints=keypoints,
        split=content.splits[number],
        boxes=np.stack([_box(annotation.get("bbox")) for annotation in animals]),
        area=np.array([_number(annotation.get("area")) for annotation in animals]),
        visibility=seen,
        size=_size(image),
        shown=None,
        where=f"{content.path}: image {image['id']}",
    )
    return frame, int(scores.sum())


def _size(image: Entry) -> tuple[int, int] | None:
    """Width and height, px; None where they are not two numbers."""
    try:
        width, height = (int(image[key]) for key in ("width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width and height else None


def _box(value: Any) -> npt.NDArray[np.float64]:
    """x y width height as x1 y1 x2 y2, NaN where it is not four numbers."""
    try:
        x, y, width, height = map(float, value)
    except (TypeError, ValueError, OverflowError):
        return np.full(4, np.nan)
    return np.array([x, y, x + width, y + height])


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else np.nan
    except OverflowError:
        return np.nan

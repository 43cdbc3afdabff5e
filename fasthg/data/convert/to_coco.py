"""TFRecords as COCO keypoint annotations.

One JSON file for all splits: `images[].split` says which one an image is in, and
`fasthg.data.convert.coco` keeps it. Images lie in `<name>_images` next to it, in the bytes of the
records. Keypoints, boxes (x y width height) and areas are image px and px², rounded to 1e-4.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fasthg.config import Config
from fasthg.data.convert.export import DECIMALS, FileNames, records
from fasthg.data.convert.report import Report, new_report
from fasthg.data.records.exif import upright
from fasthg.data.records.schema import Record, area_px
from fasthg.errors import DataError
from fasthg.files import write_bytes

_INFO = {"description": "written by fasthg"}
_OURS = b'{"info": ' + json.dumps(_INFO).encode()


def export(
    config: Config,
    out: Path,
    *,
    splits: Sequence[str] = (),
    images: bool = True,
    category: str = "animal",
) -> Report:
    """Write the records that DATA names, or those of `splits`, to the JSON file `out`.

    images: write their images, too; `file_name` is the same without. category: the animals' name.
    The JSON file appears last and complete. Raises DataError where `out` is another program's file,
    and as `export.records`.
    """
    out = Path(out)
    if out.exists() and not out.read_bytes().startswith(_OURS):
        raise DataError(f"{out}: is there, and not written by fasthg; give another name")
    names = [str(name) for name in config.PARTS.NAMES]
    report = new_report({name: name for name in names})
    folder = f"{out.stem}_images"
    paths = FileNames()
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for split, record in records(config, splits):
        path = (folder, *paths.new(record, split))
        if images:
            write_bytes(out.parent.joinpath(*path), upright(record.encoded))
        counts[split] += 1
        number = len(entries) + 1
        size = {"width": record.width, "height": record.height}
        entries.append({"id": number, "file_name": "/".join(path), **size, "split": split})
        for annotation in _annotations(record):
            common = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotations.append({**common, **annotation, "iscrowd": 0})
            report.unlabelled_parts += len(names) - annotation["num_keypoints"]
    report.frames, report.animals = dict(counts), len(annotations)
    kind: dict[str, Any] = {
        "id": 1,
        "name": category,
        "supercategory": "",
        "keypoints": names,
        "skeleton": [],
    }
    kind["skeleton"] = [[a + 1, b + 1] for a, b in config.PARTS.SKELETON]
    content = {
        "info": _INFO,
        "licenses": [],
        "images": entries,
        "annotations": annotations,
        "categories": [kind],
    }
    write_bytes(out, json.dumps(content, ensure_ascii=False).encode())
    report.files.append(out)
    report.notes.append(f"{len(entries) if images else 'no'} images in {out.parent / folder}")
    return report


def _annotations(record: Record) -> list[dict[str, Any]]:
    size = np.array([record.width, record.height], np.float64)
    flags = record.visibility
    assert flags is not None, "decoded records have it"
    xy = np.where(flags[..., None] > 0, record.keypoints * size, 0)
    keypoints = np.concatenate([xy, flags[..., None]], axis=-1).round(DECIMALS)
    low, high = record.bbox[:, :2] * size, record.bbox[:, 2:] * size
    boxes = np.concatenate([low, high - low], axis=-1).round(DECIMALS)
    image_px = np.full(len(boxes), size.prod(), np.float32)
    area = np.full(len(boxes), np.nan, np.float32) if record.area is None else record.area
    areas = area_px(area, record.bbox, image_px).astype(np.float64).round(DECIMALS)
    return [
        {
            "keypoints": points.ravel().tolist(),
            "num_keypoints": int((visible > 0).sum()),
            "bbox": box.tolist(),
            "area": float(px),
        }
        for points, visible, box, px in zip(keypoints, flags, boxes, areas, strict=True)
    ]

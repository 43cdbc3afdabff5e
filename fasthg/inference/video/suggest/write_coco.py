"""Suggestions as COCO keypoints, of the same pictures as DeepLabCut's.

`v` is 2 for a part that is written and 0, with x and y 0, for others. `score` is the mean score of
an annotation. With `machine_labels` in `info` it marks an annotation that nobody has corrected:
`convert coco` leaves those out. Tools that export what a person has seen write neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fasthg.inference.video.suggest.content import Content

NAME = "suggestions.json"
_DECIMALS = 3


def write(content: Content, folder: Path, _final: Path) -> list[str]:
    """Write `suggestions.json` in `folder`; returns its name."""
    parts = content.parts
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, each in enumerate(content.labels, 1):
        images.append(
            {
                "id": number,
                # From labeled-data on, as DeepLabCut's folders: so ids of records are the same.
                "file_name": f"{each.folder}/{each.image}",
                "width": each.size[0],
                "height": each.size[1],
                "frame": each.frame,
                "why": each.why,
            }
        )
        for animal, name in enumerate(content.animals):
            points = each.keypoints[animal]
            seen = np.isfinite(points).all(axis=1)
            if not seen.any():
                continue
            x1, y1, x2, y2 = each.boxes[animal].round(_DECIMALS).tolist()
            xyv = np.concatenate([np.nan_to_num(points), 2 * seen[:, None]], axis=1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "keypoints": xyv.round(_DECIMALS).ravel().tolist(),
                    "num_keypoints": int(seen.sum()),
                    "bbox": [x1, y1, round(x2 - x1, _DECIMALS), round(y2 - y1, _DECIMALS)],
                    "area": round((x2 - x1) * (y2 - y1), _DECIMALS),
                    "iscrowd": 0,
                    "score": round(float(each.scores[animal].mean()), 5),
                    "attributes": {"animal": name},
                }
            )
    kind = {
        "id": 1,
        "name": "animal",
        "supercategory": "",
        "keypoints": [str(name) for name in parts.NAMES],
        "skeleton": [[a + 1, b + 1] for a, b in parts.SKELETON],
    }
    document = {
        "info": {"description": "frames to label, by fasthg suggest", "machine_labels": True},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [kind],
    }
    (folder / NAME).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return [NAME]

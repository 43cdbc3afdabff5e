"""Makes the inputs of test_convert_golden.py with each format's own tool: `python make_golden.py`.

Needs sleap-io, pandas, tables and pycocotools. What the tests expect of them is written there as
literal numbers, so running this again changes nothing that they look at.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import sleap_io as sio
from pycocotools.coco import COCO

# Relative, because SLEAP's files keep the paths of their making.
HERE = Path()
NAN = np.nan


def frame(number: int) -> np.ndarray:
    """(48, 64, 3) uint8 RGB: reddish, brighter in green by the frame, a blue square."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:] = (200, 40 + 10 * number, 10)
    image[10:20, 5:15] = (0, 0, 255)
    return image


def write_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), frame(number)[..., ::-1])


def make_sleap() -> None:
    """Labels whose video is named by an absolute Windows path, and a package of them."""
    movie = HERE / "sleap" / "vids" / "cam1.mp4"
    movie.parent.mkdir(parents=True, exist_ok=True)
    sio.save_video(np.stack([frame(number) for number in range(6)]), movie, fps=10)
    video = sio.load_video(str(movie))
    skeleton = sio.Skeleton(nodes=["nose", "earL", "earR"], edges=[("nose", "earL")])
    black, white = sio.Track("black"), sio.Track("white")

    def user(points: list[list[float]], track: sio.Track) -> sio.Instance:
        return sio.Instance.from_numpy(np.array(points), skeleton=skeleton, track=track)

    def predicted(points: list[list[float]]) -> sio.PredictedInstance:
        return sio.PredictedInstance.from_numpy(np.array(points), skeleton=skeleton, score=0.9)

    one = user([[10.5, 20], [15, 22], [NAN, NAN]], black)
    two = user([[40, 30], [44.25, 33], [41, 36]], white)
    three = user([[12, 21], [16, 23], [14, 26]], black)
    three["earR"]["visible"] = False
    labels = sio.Labels(
        [
            sio.LabeledFrame(video=video, frame_idx=1, instances=[one, two]),
            sio.LabeledFrame(
                video=video,
                frame_idx=4,
                instances=[three, predicted([[50.0, 40], [55, 44], [52, 46]])],
            ),
            sio.LabeledFrame(
                video=video, frame_idx=5, instances=[predicted([[1.0, 2], [3, 4], [5, 6]])]
            ),
        ]
    )
    labels.save(str(HERE / "sleap" / "labels.pkg.slp"), embed="user")
    video.replace_filename("C:\\Users\\lab\\vids\\cam1.mp4", open=False)
    labels.save(str(HERE / "sleap" / "labels.slp"), embed=False)


def make_dlc() -> None:
    """A multi-animal project, its tables as DeepLabCut writes them with pandas."""
    project = HERE / "dlc"
    folder = project / "labeled-data" / "day1_cam1"
    columns = pd.MultiIndex.from_product(
        [["lab"], ["mus1", "mus2"], ["nose", "tail"], ["x", "y"]],
        names=["scorer", "individuals", "bodyparts", "coords"],
    )
    rows = pd.MultiIndex.from_tuples(
        [("labeled-data", "day1_cam1", f"img{number:03d}.png") for number in (0, 7)]
    )
    values = [[10.5, 20, 30, 25.25, 40, 30, 55, 44], [11, 21, 31, 26, NAN, NAN, NAN, NAN]]
    table = pd.DataFrame(values, index=rows, columns=columns)
    for number in (0, 7):
        write_image(folder / f"img{number:03d}.png", number)
    table.to_csv(folder / "CollectedData_lab.csv")
    table.to_hdf(folder / "CollectedData_lab.h5", key="df_with_missing", mode="w")
    (project / "config.yaml").write_text(
        "Task: golden\nscorer: lab\nmultianimalproject: true\nbodyparts: MULTI!\n"
        "individuals:\n- mus1\n- mus2\nuniquebodyparts: []\nmultianimalbodyparts:\n- nose\n- tail\n"
    )


def make_coco() -> None:
    """Annotations that pycocotools reads; one image is named by an absolute Windows path."""
    folder = HERE / "coco"
    names = ["nose", "left_ear", "right_ear"]
    images = [
        {"id": 3, "file_name": "day1/a.png", "width": 64, "height": 48},
        {"id": 5, "file_name": "D:\\lab\\images\\day2\\b.png", "width": 64, "height": 48},
    ]
    write_image(folder / "images" / "day1" / "a.png", 1)
    write_image(folder / "images" / "day2" / "b.png", 2)

    def animal(number: int, image: int, points: list[float], **more: object) -> dict[str, object]:
        labelled = sum(flag > 0 for flag in points[2::3])
        common = {"id": number, "image_id": image, "category_id": 2, "iscrowd": 0}
        return {**common, "keypoints": points, "num_keypoints": labelled, **more}

    annotations = [
        animal(
            *(1, 3, [10.5, 20, 2, 15, 22, 1, 0, 0, 0]), bbox=[4.0, 12.0, 20.0, 24.0], area=300.5
        ),
        animal(2, 3, [40, 30, 2, 44.25, 33, 2, 41, 36, 2], bbox=[36, 26, 16, 16], area=128),
        animal(3, 5, [12, 21, 2, 16, 23, 2, 14, 26, 1], bbox=[8, 18, 12, 12], area=0),
        {**animal(4, 5, [0] * 9, bbox=[0, 0, 64, 48], area=3072), "iscrowd": 1},
    ]
    categories = [
        {"id": 1, "name": "box", "supercategory": ""},
        {"id": 2, "name": "mouse", "supercategory": "", "keypoints": names, "skeleton": [[1, 2]]},
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content, indent=1) + "\n")
    assert len(COCO(str(folder / "annotations.json")).anns) == 4


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent)
    make_sleap()
    make_dlc()
    make_coco()

"""Small sound inputs of every format that is read, and how each is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (64, 48)
PARTS = ("nose", "left ear", "right ear")
POINTS = np.array([[10, 20], [15, 22], [30, 35]], float)
FRAMES = 3


@dataclass(frozen=True)
class Format:
    """A kind of input. build: makes it in an empty folder; read: takes it in as a user's command
    does; files: those whose damage is tried, relative to the folder; needs: a package."""

    name: str
    build: Callable[[Path], None]
    read: Callable[[Path], None]
    files: tuple[str, ...]
    needs: str | None = None


def _image(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((SIZE[1], SIZE[0], 3), 40 * number + 20, np.uint8))


def _out(folder: Path) -> Path:
    shutil.rmtree(folder / "out", ignore_errors=True)
    return folder / "out"


def coco_content() -> dict[str, Any]:
    """Three images of one animal each."""
    numbers = range(FRAMES)
    keypoints = [value for x, y in POINTS for value in (x, y, 2)]
    return {
        "images": [
            {"id": n, "file_name": f"v/img{n}.png", "width": SIZE[0], "height": SIZE[1]}
            for n in numbers
        ],
        "annotations": [
            {"id": 9 + n, "image_id": n, "category_id": 1, "keypoints": keypoints, "area": 600}
            | {"bbox": [5, 10, 30, 30], "iscrowd": 0, "num_keypoints": 3}
            for n in numbers
        ],
        "categories": [{"id": 1, "name": "mouse", "keypoints": [*PARTS], "skeleton": [[1, 2]]}],
    }


def _build_coco(folder: Path) -> None:
    for number in range(FRAMES):
        _image(folder / f"v/img{number}.png", number)
    (folder / "labels.json").write_text(json.dumps(coco_content()))


def _read_coco(folder: Path) -> None:
    from fasthg.data.convert import coco

    coco.convert([coco.Source(folder / "labels.json")], _out(folder))


def _build_splits(folder: Path) -> None:
    _build_coco(folder)
    _read_coco(folder)
    shutil.move(folder / "out" / "splits.json", folder / "splits.json")


def _read_splits(folder: Path) -> None:
    from fasthg.data.convert import coco

    out = _out(folder)
    out.mkdir()
    if (folder / "splits.json").is_file():
        shutil.copy(folder / "splits.json", out)
    coco.convert([coco.Source(folder / "labels.json")], out)


_DLC = "labeled-data/v/CollectedData_me"


def _build_dlc(folder: Path) -> None:
    for number in range(FRAMES):
        _image(folder / f"labeled-data/v/img{number}.png", number)
    (folder / "config.yaml").write_text(
        "scorer: me\nmultianimalproject: false\nbodyparts:\n- nose\n- left ear\n- right ear\n"
    )
    names = [name for part in PARTS for name in (part, part)]
    lines = [["scorer", *["me"] * 6], ["bodyparts", *names], ["coords", *["x", "y"] * 3]]
    lines += [[f"labeled-data/v/img{n}.png", *map(str, POINTS.ravel())] for n in range(FRAMES)]
    (folder / f"{_DLC}.csv").write_text("".join(",".join(line) + "\n" for line in lines))


def _build_h5(folder: Path) -> None:
    import pandas

    _build_dlc(folder)
    (folder / f"{_DLC}.csv").unlink()
    columns = pandas.MultiIndex.from_product(
        [["me"], [*PARTS], ["x", "y"]], names=["scorer", "bodyparts", "coords"]
    )
    rows = [f"labeled-data/v/img{number}.png" for number in range(FRAMES)]
    values = np.tile(POINTS.ravel(), (FRAMES, 1))
    pandas.DataFrame(values, rows, columns).to_hdf(folder / f"{_DLC}.h5", key="df_with_missing")


def _read_dlc(folder: Path) -> None:
    from fasthg.data.convert import dlc

    dlc.convert(folder, _out(folder))


def _build_slp(folder: Path) -> None:
    import sleap_io

    for number in range(FRAMES):
        _image(folder / f"v/img{number}.png", number)
    video = sleap_io.Video.from_filename([f"v/img{number}.png" for number in range(FRAMES)])
    skeleton = sleap_io.Skeleton(nodes=[*PARTS])
    animal = sleap_io.Instance.from_numpy(POINTS, skeleton=skeleton)
    frames = [
        sleap_io.LabeledFrame(video=video, frame_idx=n, instances=[animal]) for n in range(FRAMES)
    ]
    sleap_io.Labels(frames).save(str(folder / "labels.slp"), embed=False)


def _read_slp(folder: Path) -> None:
    from fasthg.data.convert import slp

    slp.convert(folder / "labels.slp", _out(folder))


def _manifest_line(number: int) -> str:
    keypoints = [
        {"label": f"black mouse {part}", "x": x, "y": y}
        for part, (x, y) in zip(PARTS, POINTS.tolist(), strict=True)
    ]
    size = {"width": SIZE[0], "height": SIZE[1]}
    content = {"annotatedResult": {"keypoints": keypoints, "inputImageProperties": size}}
    answer = {"workerId": "w", "annotationData": {"content": json.dumps(content)}}
    entry = {
        "source-ref": f"s3://bucket/frame{number}.jpg",
        "annotatedResult-metadata": {"type": "groundtruth/custom", "job-name": "job"},
        "annotatedResult": {"annotationsFromAllWorkers": [answer, answer]},
    }
    return json.dumps(entry) + "\n"


def _build_mars(folder: Path) -> None:
    data = folder / "annotation_data"
    for number in range(FRAMES):
        _image(data / f"raw_images/frame{number}.jpg", number)
    (folder / "project_config.yaml").write_text(
        "species: mouse\nanimal_names: [black]\nkeypoints: [nose, left ear, right ear]\n"
        "check_pairs: [[left ear, right ear]]\npose: {top: [black]}\n"
    )
    (data / "labels.manifest").write_text("".join(map(_manifest_line, range(FRAMES))))


def _build_mars_csv(folder: Path) -> None:
    _build_mars(folder)
    (folder / "annotation_data" / "labels.manifest").unlink()
    names = [name for part in PARTS for name in (part, part)]
    lines = [["scorer", *["w"] * 6], ["bodyparts", *names], ["coords", *["x", "y"] * 3]]
    lines += [[f"frame{n}.jpg", *map(str, POINTS.ravel())] for n in range(FRAMES)]
    text = "".join(",".join(line) + "\n" for line in lines)
    (folder / "annotation_data" / "labels.csv").write_text(text)


def _read_mars(folder: Path) -> None:
    from fasthg.data.agreement import read_crowd
    from fasthg.data.convert import mars

    mars.convert(folder, _out(folder))
    read_crowd(folder)


def _build_yolo(folder: Path) -> None:
    shape = {"kpt_shape": [3, 3], "flip_idx": [0, 2, 1], "kpt_names": {0: [*PARTS]}}
    values = " ".join(f"{x / SIZE[0]:.4f} {y / SIZE[1]:.4f} 2" for x, y in POINTS)
    for number in range(FRAMES):
        _image(folder / f"images/v/img{number}.png", number)
        labels = folder / f"labels/v/img{number}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(f"0 0.3 0.5 0.5 0.6 {values}\n")
    content = {"path": ".", "train": "images/v", "names": {0: "mouse"}, **shape}
    (folder / "data.yaml").write_text(json.dumps(content))  # JSON is YAML


def _read_yolo(folder: Path) -> None:
    from fasthg.data.convert import yolo

    yolo.convert(folder / "data.yaml", _out(folder))


def _build_records(folder: Path) -> None:
    _build_coco(folder)
    _read_coco(folder)
    shutil.move(next((folder / "out").glob("train_*")), folder / "train_dataset-00000-of-00001")


def _read_records(folder: Path) -> None:
    from fasthg.data.check import check
    from fasthg.data.index.record_index import RecordIndex
    from fasthg.inference.video.sources import find_sources

    path = folder / "train_dataset-00000-of-00001"
    # The check raises for nothing within a file, which the other readers may refuse.
    check({"train": str(path)}, len(PARTS))
    RecordIndex.build(path, len(PARTS))
    for _ in find_sources([path])[0].frames():
        pass


def _build_config(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        "BATCH_SIZE: 4\nPARTS:\n  NUM_PARTS: 3\n  NAMES: [nose, left ear, right ear]\n"
        "  SIGMAS: [1.0, 1.0, 1.0]\n  LEFT_RIGHT_PAIRS: [[1, 2]]\nOKS_SIGMAS: narrow\n"
    )


def _read_config(folder: Path) -> None:
    from fasthg.config import load_config

    load_config(folder / "run.yaml")


def _film(codec: str, name: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        import av

        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, Fraction(30))
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            for number in range(6):
                image = np.full((SIZE[1], SIZE[0], 3), 30 * number, np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)

    return build


def _read_film(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from fasthg.inference.video.sources import find_sources

        for source in find_sources([folder / name]):
            for _ in source.frames():
                pass

    return read


def _build_images(folder: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.bmp"):
        _image(folder / name)


def _read_images(folder: Path) -> None:
    from fasthg.inference.video.sources import find_sources

    for path in sorted(path for path in folder.iterdir() if path.stem == "a"):
        for frame in find_sources([path])[0].frames():
            assert frame.image is None or frame.image.ndim == 3


def _build_boxes(folder: Path) -> None:
    _image(folder / "v/img0.png")
    (folder / "boxes.csv").write_text("frame,x1,y1,x2,y2,animal\n0,1,2,30,40,a\n0,5,5,20,20,b\n")
    (folder / "mars.json").write_text(json.dumps({"bbox": [[[0.1, 0.1, 0.5, 0.6]]]}))
    content = coco_content()
    (folder / "coco.json").write_text(json.dumps(content))


def _read_boxes(folder: Path) -> None:
    from fasthg.inference.video.boxes import read_boxes
    from fasthg.inference.video.sources import find_sources

    source = find_sources([folder / "v"])[0]
    for name in ("boxes.csv", "mars.json", "coco.json"):
        read_boxes(folder / name, source).shares(0, *SIZE)


def _build_weights(folder: Path) -> None:
    import torch

    from fasthg.runs.checkpoint import save_state, save_weights

    save_weights(folder / "best.safetensors", {"a": torch.ones(3)}, {"key": "value"})
    save_state(folder / "state-1.pt", {"step": 1, "values": torch.ones(3)})


def _read_weights(folder: Path) -> None:
    from fasthg.runs.checkpoint import load_state, load_weights

    load_weights(folder / "best.safetensors")
    load_state(folder / "state-1.pt")


FORMATS = (
    Format("coco", _build_coco, _read_coco, ("labels.json", "v/img1.png")),
    Format("splits", _build_splits, _read_splits, ("splits.json",)),
    Format("dlc", _build_dlc, _read_dlc, ("config.yaml", f"{_DLC}.csv")),
    Format("dlc h5", _build_h5, _read_dlc, (f"{_DLC}.h5",), "tables"),
    Format("slp", _build_slp, _read_slp, ("labels.slp", "v/img0.png"), "sleap_io"),
    Format(
        "manifest",
        _build_mars,
        _read_mars,
        (
            "project_config.yaml",
            "annotation_data/labels.manifest",
            "annotation_data/raw_images/frame0.jpg",
        ),
    ),
    Format("mars csv", _build_mars_csv, _read_mars, ("annotation_data/labels.csv",)),
    Format("yolo", _build_yolo, _read_yolo, ("data.yaml", "labels/v/img1.txt")),
    Format("records", _build_records, _read_records, ("train_dataset-00000-of-00001",)),
    Format("configuration", _build_config, _read_config, ("run.yaml",)),
    Format("mp4", _film("mpeg4", "film.mp4"), _read_film("film.mp4"), ("film.mp4",), "av"),
    Format("avi", _film("mpeg4", "film.avi"), _read_film("film.avi"), ("film.avi",), "av"),
    Format("images", _build_images, _read_images, ("a.png", "a.jpg", "a.tif", "a.webp", "a.bmp")),
    Format("boxes", _build_boxes, _read_boxes, ("boxes.csv", "mars.json", "coco.json")),
    Format("weights", _build_weights, _read_weights, ("best.safetensors", "state-1.pt")),
)

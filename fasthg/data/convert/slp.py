"""SLEAP labels, `.slp` and `.pkg.slp`, read by the library sleap-io.

Written are the instances that a user labelled; points marked as not visible count as unlabelled.
The skeleton's edges become SKELETON of the configuration. Images come from the package where they
are embedded, otherwise from the videos or image files that the labels name; those that are not
there any more are searched next to the labels, by as many trailing components of their path as
exist. Frames of videos become JPEGs of quality 95. Whether EXIF turned an image file is decided by
the size that the labels give, or has to be said.

All instances written must have the same nodes, in any order; other skeletons may be in the file.

A frame's id is its video's name and its number there, or folder and name of its image file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Unpack

import numpy as np

from fasthg.data.convert.common import (
    Labelled,
    WriteOptions,
    keep_labelled,
    write_splits,
)
from fasthg.data.convert.images import Jpeg, encode_jpeg, locate, missing_images, trailing
from fasthg.data.convert.kept import source_name
from fasthg.data.convert.names import choose_parts
from fasthg.data.convert.report import Report, new_report
from fasthg.errors import DataError, missing_package

_AGAIN = "save the labels from SLEAP again"


def convert(
    path: Path,
    out: Path,
    *,
    videos: Path | None = None,
    predictions: bool = False,
    parts: Mapping[str, str] | None = None,
    skip_missing: bool = False,
    boxes: str | None = None,
    **options: Unpack[WriteOptions],
) -> Report:
    """Write the labels and images of a SLEAP file to `out` as TFRecords of MARS' format.

    videos: the folder of the videos and images, instead of the search described above. predictions:
    also write instances that a model predicted and no user corrected. The rest as in `dlc.convert`;
    a video is one of the file's. Raises DataError, naming file and remedy, for what cannot be used;
    EnvironmentFault where sleap-io is missing.
    """
    path = Path(path)
    labels = _load(path)
    if not any(_instances(frame, predictions) for frame in labels.labeled_frames) and any(
        frame.unused_predictions for frame in labels.labeled_frames
    ):
        raise DataError(
            f"{path}: holds a model's predictions and no user's labels; "
            "convert them with --predictions"
        )
    names = _part_names(path, labels, predictions)
    report = new_report(choose_parts(names, parts, path))
    report.take_skeleton(names, _edges(labels, names))
    reader = _Reader(path, videos)
    ids = _Ids(labels.videos)
    frames: list[Labelled] = []
    missing: list[str] = []
    for number, frame in enumerate(labels.labeled_frames):
        instances = _instances(frame, predictions)
        if not instances:
            report.skip("frames without a user's labels")
            continue
        source = reader.source(frame.video, frame.frame_idx)
        if source is None:
            missing.append(ids.origin(frame.video, frame.frame_idx))
            continue
        image_id = ids.name(frame.video, frame.frame_idx)
        own = isinstance(source, Path)
        frames.append(
            Labelled(
                image=source if isinstance(source, Path) else PurePosixPath(f"{image_id}.jpg"),
                image_id=image_id,
                keypoints=np.stack([_points(each, list(report.mapping)) for each in instances]),
                names=_tracks(instances),
                # SLEAP reads image files as EXIF turns them, sleap-io as they are stored.
                shown=None,
                likely_size=_size(frame.video),
                where=f"{path}: labelled frame {number}",
                read=None if own else partial(_encode, frame.video, frame.frame_idx, image_id),
            )
        )
    if missing and not skip_missing:
        total = len(missing) + len(frames)
        raise missing_images(missing, total, videos or path.parent, "--videos")
    if missing:
        report.skip("frames without an image", len(missing))
    name = source_name(path, Path(out))
    return write_splits(
        keep_labelled(frames, report, boxes), Path(out), report, sources=[name], **options
    )


def _load(path: Path) -> Any:
    try:
        import sleap_io
    except ImportError as error:
        raise missing_package(f"{path}: reading SLEAP labels", str(error.name), "sleap") from None
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a .slp or .pkg.slp file")
    try:
        return sleap_io.load_slp(str(path), open_videos=False)
    except Exception as error:  # what a damaged file makes h5py and sleap-io raise has no end
        raise DataError(f"{path}: not labels of SLEAP ({error}); {_AGAIN}") from None


def _instances(frame: Any, predictions: bool) -> list[Any]:
    return [*frame.user_instances, *(frame.unused_predictions if predictions else ())]


def _part_names(path: Path, labels: Any, predictions: bool) -> list[str]:
    """The nodes of the instances to write, in the order of the first skeleton that has them."""
    used = {
        frozenset(instance.skeleton.node_names)
        for frame in labels.labeled_frames
        for instance in _instances(frame, predictions)
    }
    skeletons = [[*skeleton.node_names] for skeleton in labels.skeletons]
    chosen = [names for names in skeletons if not used or frozenset(names) in used]
    if len({frozenset(names) for names in chosen}) != 1:
        there = "; ".join(map(", ".join, chosen)) or "none"
        raise DataError(f"{path}: needs one skeleton, but has: {there}; keep one in SLEAP")
    return chosen[0]


def _edges(labels: Any, names: Sequence[str]) -> list[tuple[int, int]]:
    """The edges of the skeleton that has these nodes, as indices into `names`."""
    places = {name: number for number, name in enumerate(names)}
    skeleton = next(s for s in labels.skeletons if {*s.node_names} == {*names})
    own = [*skeleton.node_names]
    return [(places[own[a]], places[own[b]]) for a, b in skeleton.edge_inds]


def _points(instance: Any, parts: Sequence[str]) -> Any:
    order = [instance.skeleton.node_names.index(name) for name in parts]
    return np.asarray(instance.numpy(), np.float64)[order]


def _tracks(instances: Sequence[Any]) -> tuple[str, ...]:
    """Names of the tracks, none unless every instance has one."""
    names = [instance.track.name for instance in instances if instance.track is not None]
    return tuple(map(str, names)) if len(names) == len(instances) else ()


def _size(video: Any) -> tuple[int, int] | None:
    """(width, height) px that the labels' file gives for all images of a video, if it does."""
    shape = video.backend_metadata.get("shape")
    return (int(shape[2]), int(shape[1])) if shape is not None and len(shape) == 4 else None


class _Ids:
    """Names for frames, by the files that they were taken from at first."""

    def __init__(self, videos: Sequence[Any]) -> None:
        self._origins: dict[int, str | list[str]] = {}
        for video in videos:
            first = video
            while first.source_video is not None:
                first = first.source_video
            self._origins[id(video)] = first.filename
        names = self._origins.values()
        self._movies = trailing((name for name in names if isinstance(name, str)), 1)
        images = (name for each in names if not isinstance(each, str) for name in each)
        self._images = trailing(images, 2)

    def origin(self, video: Any, number: int) -> str:
        """Name of the frame in messages."""
        name = self._origins[id(video)]
        return f"frame {number} of {name}" if isinstance(name, str) else name[number]

    def name(self, video: Any, number: int) -> str:
        name = self._origins[id(video)]
        if isinstance(name, str):
            movie = PurePosixPath(*self._movies[name]).with_suffix("")
            return (movie / f"{number:06d}").as_posix()
        return PurePosixPath(*self._images[name[number]]).with_suffix("").as_posix()


class _Reader:
    """Finds the image of a frame and opens its video."""

    def __init__(self, labels: Path, images: Path | None) -> None:
        self._labels, self._images = labels, images
        self._folders = [labels.parent, Path()]
        self._there: dict[int, bool] = {}

    def source(self, video: Any, number: int) -> Path | Any | None:
        """An image file, the open video, or None where neither is there."""
        if not isinstance(video.filename, str):
            if not 0 <= number < len(video.filename):
                raise DataError(
                    f"{self._labels}: frame {number} of a video of {len(video.filename)} images; "
                    f"{_AGAIN}"
                )
            return locate(video.filename[number], self._images, self._folders)
        if id(video) not in self._there:
            self._there[id(video)] = self._open(video)
        return video if self._there[id(video)] and video.backend.has_frame(number) else None

    def _open(self, video: Any) -> bool:
        if Path(video.filename) != self._labels:
            file = locate(video.filename, self._images, self._folders)
            if file is None:
                return False
            video.replace_filename(file, open=False)
        try:
            video.open()
            len(video.backend)  # A broken video shows when its first frame is read.
        except (OSError, ValueError, LookupError, ImportError, TypeError) as error:
            raise DataError(
                f"{video.filename}: not a video that sleap-io can read ({error}); replace it or "
                f"convert it with ffmpeg"
            ) from None
        return True


def _encode(video: Any, number: int, image_id: str) -> Jpeg:
    try:
        image = np.asarray(video[number])
    except (OSError, ValueError, LookupError) as error:
        raise DataError(
            f"{video.filename}: {image_id} cannot be read ({error}); check the video"
        ) from None
    if image.dtype != np.uint8:
        raise DataError(f"{video.filename}: pixels are {image.dtype}; convert the video to 8 bits")
    # One channel of grey, or RGB.
    return encode_jpeg(
        np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))[..., ::-1])
    )

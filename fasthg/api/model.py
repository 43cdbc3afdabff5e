"""A trained network that predicts, is measured and is exported."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from fasthg.api.poses import FramePoses, PoseList, PoseStream
from fasthg.api.settings import as_overrides
from fasthg.config import Config
from fasthg.data.opencv_loader import Image
from fasthg.errors import ConfigError
from fasthg.inference.networks import open_networks
from fasthg.inference.video.boxes import Boxes
from fasthg.inference.video.frame import Frame, FrameRange
from fasthg.inference.video.keypoints import Poses, Predictor
from fasthg.inference.video.pipeline import Clock, ahead
from fasthg.inference.video.plan import Plan
from fasthg.inference.video.video_file import VideoSource
from fasthg.interop import export as exporting
from fasthg.interop.mars_project import relocation_overrides
from fasthg.report import evaluate as evaluation
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import trained

Pixels = npt.NDArray[np.uint8]
Whole = Literal["whole"]
_FRAMES_AHEAD, _POSES_AHEAD = 8, 4


def load(run: str | Path, /, **overrides: Any) -> Model:
    """A trained network: of a run, with its locator, or of a weights file, which has none.

    Args:
        run: a run folder, of which the best weights, or a .safetensors file.
        overrides: keys of its configuration, such as `DEVICE="cpu"`, `DECODE="argmax"`,
            `BATCH_SIZE=32`.

    Raises:
        DataError: there is no such run, or its weights are damaged.
        ConfigError: an override is wrong.
        EnvironmentFault: DEVICE is not there.

    Example:
        >>> model = fasthg.load("runs/demo")  # doctest: +SKIP
        >>> model.predict(image).keypoints.shape  # doctest: +SKIP
        (1, 7, 2)
    """
    return Model(Path(run), as_overrides(overrides))


class Model:
    """A trained network. Use `load`."""

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        """See `load`; overrides: `KEY=VALUE`."""
        self._trained = trained(path)
        run = self._trained if isinstance(self._trained, RunFolder) else None
        moves = relocation_overrides(run) if run else []
        self.path = path
        self.config: Config = self._trained.config([*moves, *overrides])
        self._networks = open_networks(self._trained, self.config)

    def __repr__(self) -> str:
        return f"<fasthg.Model {self.path}: {', '.join(self.parts)}>"

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, in the order of every array."""
        return tuple(self.config.PARTS.NAMES)

    @overload
    def predict(
        self,
        images: Pixels,
        boxes: npt.ArrayLike | Whole | None = None,
        *,
        animals: int | None = None,
    ) -> FramePoses: ...
    @overload
    def predict(
        self,
        images: Sequence[Pixels],
        boxes: Sequence[npt.ArrayLike | None] | Whole | None = None,
        *,
        animals: int | None = None,
    ) -> PoseList: ...
    def predict(self, images: Any, boxes: Any = None, *, animals: int | None = None) -> Any:
        """Keypoints of one image or several, which need not belong together.

        Args:
            images: uint8 `(height, width, 3)` RGB or `(height, width)` grey, as NumPy array or
                torch tensor; or a sequence of such, or `(images, height, width, 3)`.
            boxes: of one image `(animals, 4)` or `(4,)` x1 y1 x2 y2, image px, x2 and y2 exclusive;
                of several a sequence of these, None where they are to be found. "whole": every
                image is the box of one animal. None: the run's locator finds the animals.
            animals: how many are found at most; default: as many as training frames hold.

        Returns:
            `FramePoses` of one image, a `PoseList` of several.

        Raises:
            ConfigError: an image or the boxes have another shape or type, or nothing says where the
                animals are.
            DataError: a box is empty or lies outside its image.
        """
        _check_count(animals)
        one = not isinstance(images, list | tuple) and np.ndim(images) in (2, 3)
        if one:
            if not isinstance(boxes, str) and boxes is not None:
                boxes = [boxes]
            images = [images]
        pictures = [_picture(image, number) for number, image in enumerate(images)]
        source = _Images(pictures)
        whole = isinstance(boxes, str)
        if whole and boxes != "whole":
            raise ConfigError(f"boxes: {boxes!r} is none; give an array (animals, 4) or 'whole'")
        given = None if boxes is None or whole else _given(boxes, len(pictures))
        if not pictures:
            return PoseList()
        # Where every image has its boxes, nothing is looked for besides.
        complete = given is not None and len(given.where or {}) == len(pictures)
        if complete and given is not None and not given.animals:
            found = PoseList(_nothing(number, self.parts) for number in range(len(pictures)))
            return found[0] if one else found
        plan = Plan.of(
            *(source, len(self.parts), None if complete else self._networks.locator),
            boxes=given,
            whole=whole or (self._networks.frames_are_crops and given is None),
            most=animals,
        )
        found = PoseList(self._poses(plan, source.frames()))
        return found[0] if one else found

    def predict_video(
        self,
        path: str | Path,
        *,
        boxes: Mapping[int, npt.ArrayLike] | Whole | None = None,
        animals: int | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> PoseStream:
        """Keypoints of a film, frame by frame, each animal followed and in its own row.

        Args:
            path: a video file.
            boxes: "whole"; or a frame's number -> boxes `(animals, 4)` x1 y1 x2 y2, px, of some
                frames or all, which count instead of what is found. None: the run's locator finds
                the animals.
            animals: how many there are at most; default: as many as training frames hold.
            start, stop: the frames from `start`, from 0, up to but without `stop`.

        Returns:
            An iterator that decodes and predicts while it is read.

        Raises:
            DataError: the file is no video.
            EnvironmentFault: PyAV is missing.
            ConfigError: nothing says where the animals are.

        Example:
            >>> with model.predict_video("film.mp4") as poses:  # doctest: +SKIP
            ...     for pose in poses:
            ...         print(pose.time, pose.keypoints[0, 0])
        """
        _check_count(animals)
        whole = isinstance(boxes, str)
        if whole and boxes != "whole":
            raise ConfigError(f"boxes: {boxes!r} is none; give frames' boxes or 'whole'")
        if start < 0 or (stop is not None and stop <= start):
            raise ConfigError(f"start {start}, stop {stop}: hold no frame; give 0 <= start < stop")
        source, span = VideoSource(Path(path)), FrameRange(start, stop)
        given = _by_frame(boxes) if isinstance(boxes, Mapping) else None
        plan = Plan.of(
            *(source, len(self.parts), self._networks.locator),
            boxes=given,
            whole=whole or (self._networks.frames_are_crops and given is None),
            most=animals,
            span=span,
        )
        return PoseStream(self._poses(plan, span.read(source)))

    def evaluate(
        self,
        records: str | Path | Sequence[str] | None = None,
        *,
        split: str | None = None,
        decode: str | None = None,
        boxes: Literal["given", "found"] = "given",
        out: str | Path | None = None,
    ) -> dict[str, Any]:
        """Measure the network on annotated records; writes metrics, predictions and pictures.

        Args:
            records: TFRecord globs; default: the run's test split, or else its validation split.
            split: "train", "val" or "test" of the run; with `records` a name for them.
            decode: method of `heatmap_peaks`; "all" compares them.
            boxes: "found": also with the boxes that the locator finds.
            out: the folder to write; default: `eval/<split>` in the run.

        Returns:
            What `metrics.json` holds: `error_px`, `pck`, `oks`, ...

        Raises:
            ConfigError: there is no such split, or no locator.
            DataError: the records cannot be read.
        """
        if records is not None:
            records = [str(records)] if isinstance(records, str | Path) else list(records)
        chosen = split or ("data" if records else evaluation.default_split(self.config))
        if chosen is None:
            raise ConfigError(f"{self.path}: its DATA names no split; give records")
        measured = evaluation.evaluate_run(
            *(self._trained, self.config, chosen, records),
            decode=decode,
            boxes=boxes,
            out=None if out is None else Path(out),
        )
        return measured.metrics

    def export(
        self,
        to: str,
        path: str | Path | None = None,
        *,
        precision: str = "fp32",
        peaks: bool = False,
    ) -> Path:
        """Write the network for another runtime.

        Args:
            to: "onnx", "pt2" (torch.export) or "mars-pb".
            path: the file; default: named and placed as the run.
            precision: "fp32", "fp16" or "bf16".
            peaks: the file also gives keypoints in input px, and scores.

        Returns:
            The file.

        Raises:
            ConfigError: an unknown format, or a combination that it lacks.
            EnvironmentFault: a package is missing.
        """
        network = exporting.open_trained(self._trained, self.config)
        target = None if path is None else Path(path)
        done = exporting.export(network, to, target=target, precision=precision, peaks=peaks)
        return done.path

    def _poses(self, plan: Plan, frames: Iterable[Frame]) -> Generator[FramePoses]:
        predictor = Predictor(self._networks.pose, self.config, Clock())
        # The tracker looks at frames one after the other, while the next ones are decoded.
        batches = ahead(plan.poses(predictor, ahead(frames, _FRAMES_AHEAD)), _POSES_AHEAD)
        with closing(batches):
            for batch in batches:
                yield from _each(batch, plan.animals, self.parts)


def _each(batch: Poses, animals: tuple[str, ...], parts: tuple[str, ...]) -> Generator[FramePoses]:
    for row in range(len(batch)):
        yield FramePoses(
            *(batch.first + row, float(batch.times[row]), animals, parts),
            keypoints=batch.keypoints[row],
            scores=batch.scores[row],
            boxes=batch.boxes[row],
        )


class _Images:
    """Images in memory as a source of frames."""

    path = stem = Path("images")
    size = None

    def __init__(self, images: Sequence[Image]) -> None:
        """images: BGR uint8 (height, width, 3)."""
        self.images = images
        self.names = tuple(str(number) for number in range(len(images)))
        self.count = len(images)

    def identity(self) -> str:
        return ""

    def frames(self, start: int = 0) -> Generator[Frame]:
        for number in range(start, len(self.images)):
            yield Frame(number, float("nan"), self.images[number], self.names[number])


def _picture(image: Any, number: int) -> Image:
    """An image of a caller as BGR uint8 (height, width, 3)."""
    if hasattr(image, "detach"):  # a torch tensor, also on a GPU
        image = image.detach().cpu()
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ConfigError(
            f"image {number}: {pixels.dtype}; give uint8 from 0 to 255, as files hold them"
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ConfigError(
            f"image {number}: shape {pixels.shape}; give (height, width, 3) RGB or (height, width)"
        )
    return np.ascontiguousarray(pixels[..., ::-1])


def _check_count(animals: int | None) -> None:
    if animals is not None and animals < 1:
        raise ConfigError(f"animals: {animals}; give 1 or more")


def _nothing(number: int, parts: tuple[str, ...]) -> FramePoses:
    """Poses of an image in which no animal is."""
    return FramePoses(
        *(number, float("nan"), (), parts),
        keypoints=np.zeros((0, len(parts), 2)),
        scores=np.zeros((0, len(parts)), np.float32),
        boxes=np.zeros((0, 4)),
    )


def _given(boxes: Any, images: int) -> Boxes:
    """Boxes of a caller, of images in memory."""
    if not isinstance(boxes, Sequence | np.ndarray):
        raise ConfigError(f"boxes: {boxes!r} is none; give one item for each image, or 'whole'")
    if len(boxes) != images:
        raise ConfigError(f"boxes: {len(boxes)} for {images} images; give one item for each image")
    return _by_frame({number: own for number, own in enumerate(boxes) if own is not None})


def _by_frame(boxes: Mapping[int, Any]) -> Boxes:
    """A caller's boxes by the number of image or frame."""
    arrays: dict[int, npt.NDArray[np.float64]] = {}
    for number, own in boxes.items():
        try:
            array = np.asarray(own, np.float64)
        except (TypeError, ValueError):
            raise ConfigError(
                f"boxes of image {number}: no numbers; give (animals, 4) x1 y1 x2 y2"
            ) from None
        if not array.size:
            array = array.reshape(0, 4)
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != 4 or np.isinf(array).any():
            raise ConfigError(
                f"boxes of image {number}: shape {array.shape}; give (animals, 4) x1 y1 x2 y2, "
                "finite, or NaN for an animal that is not there"
            )
        arrays[int(number)] = array
    most = max((len(array) for array in arrays.values()), default=0)
    filled = {
        number: np.concatenate([array, np.full((most - len(array), 4), np.nan)])
        for number, array in arrays.items()
    }
    names = tuple(f"animal{number + 1}" for number in range(most))
    return Boxes(names, filled, path=Path("boxes"))

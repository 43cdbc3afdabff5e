"""The report of `fasthg data check` as one HTML file: the worst problems, cropped around
their animals, and what is labelled where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import cv2
import numpy as np
import numpy.typing as npt

from fasthg import geometry, html
from fasthg.data.check.problems import FOUND_BY, KINDS, Problem, Report
from fasthg.data.convert.images import decode
from fasthg.data.index.record_index import RecordIndex
from fasthg.drawing.crops import square_crop
from fasthg.drawing.lettering import draw_text, text_width
from fasthg.drawing.marks import (
    CROSS,
    DISC,
    WHITE,
    Mark,
    Pixels,
    bgr,
    draw_box,
    draw_line,
    draw_marks,
)
from fasthg.drawing.palette import Rgb, own_colours
from fasthg.errors import DataError

PICTURED = 12
"""Number of problems of a kind that are shown with an image."""
_SIDE, _WIDTH = 400, 480  # px: of a crop, of a whole frame
_MARGIN = 0.12  # of the animal's longer side, about it
_CLOSE = 0.5  # of the animal's longer side: shown about a label that networks contradict
_CELLS = 48  # along the longer side of a heat map
_STYLE = """<style>
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; margin: .6rem 0; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  margin-right: .4em; outline: 1px solid #777; }
.wide { overflow-x: auto; margin: 1rem 0; white-space: nowrap; }
.maps img { border: 1px solid var(--line); border-radius: 0; }
</style>"""


def write(report: Report, indices: Mapping[str, RecordIndex], colours: Sequence[Rgb] = ()) -> str:
    """The page's text.

    indices: of the splits, as from `check`. colours: red, green and blue of each part; without
    them those of `palette.own_colours`.
    """
    colours = colours or own_colours(len(report.names))
    return html.page("Data check", _body(report, indices, colours))


def _body(
    report: Report, indices: Mapping[str, RecordIndex], colours: Sequence[Rgb]
) -> Iterator[str]:
    yield _STYLE
    yield _wide(html.table(["", *report.splits], report.table()))
    yield from map(html.note, report.notes)
    if not report.problems:
        yield html.note("No problem found.")
    else:
        entries = (
            f'<span><i style="background:rgb{rgb}"></i>{escape(name)}</span>'
            for name, rgb in zip(report.names, colours, strict=True)
        )
        yield f'<div class="legend">{"".join(entries)}</div>'
    for kind in KINDS:
        problems = report.of(kind)
        if not problems:
            continue
        yield html.heading(f"{kind}: {len(problems)}")
        yield html.note(FOUND_BY[kind])
        images, without = [], []
        for problem in problems[:PICTURED]:
            image = _picture(problem, indices[problem.split], report.names, colours)
            if image is None:
                without.append([problem.split, problem.where, problem.detail])
            else:
                images.append((image, f"{problem.split}: {problem}"))
        if images:
            yield html.pictures(images)
        if without:
            yield _wide(html.table(["split", "where", "what"], without))
        if len(problems) > PICTURED:
            yield html.note(f"and {len(problems) - PICTURED} more; --json lists all")
    yield from _labels(report, indices)


def _labels(report: Report, indices: Mapping[str, RecordIndex]) -> Iterator[str]:
    """Labels by part, sizes of boxes, and where labels are in the image."""
    with_animals = {split: index for split, index in indices.items() if len(index)}
    if not with_animals:
        return
    yield html.heading("Labels by part")
    head, counts = [""], []
    for split, index in with_animals.items():
        for value, what in ((2, "visible"), (1, "occluded")):
            count = (index.visibility == value).sum(axis=0)
            # Few data sets tell what is occluded.
            if value == 2 or count.any():
                head.append(f"{split}: {what}")
                counts.append(count)
    rows = [
        [name, *(int(count[part]) for count in counts)] for part, name in enumerate(report.names)
    ]
    yield _wide(html.table(head, rows))
    yield html.heading("Sizes of boxes")
    yield html.note("Longer side of an animal's box, image px.")
    rows = []
    for split, index in with_animals.items():
        size = _image_sizes(index)
        longer = ((index.bbox[:, 2:] - index.bbox[:, :2]) * size).max(axis=1)
        quantiles = np.percentile(longer, (0, 25, 50, 75, 100))
        rows.append([split, len(index), *(html.Fixed(float(q), 0) for q in quantiles)])
    yield _wide(html.table(["", "animals", "min", "25 %", "median", "75 %", "max"], rows))
    yield html.heading("Positions of labels")
    yield html.note(
        "All parts, as shares of the image's width and height; the stronger, the more labels. "
        "Where there are none, the network sees no animal in training."
    )
    maps = [
        (_heat_map(index), f"{split}: {int((index.visibility > 0).sum())} labels")
        for split, index in with_animals.items()
    ]
    yield f'<div class="maps">{html.pictures(maps, "png")}</div>'


def _wide(table: str) -> str:
    return f'<div class="wide">{table}</div>'


def _image_sizes(index: RecordIndex) -> npt.NDArray[np.int64]:
    """(instances, 2) width and height of each animal's image, px."""
    return np.stack([index.width, index.height], axis=1)[index.record].astype(np.int64)


def _heat_map(index: RecordIndex) -> bytes:
    """How many labels are where in the image, as PNG whose opacity is the number's root."""
    size = _image_sizes(index)
    shares = (index.keypoints / size[:, None]).reshape(-1, 2)
    shares = shares[np.isfinite(shares.sum(axis=1))]
    across = np.median(size, axis=0)
    cells = np.maximum(np.rint(_CELLS * across / across.max()), 1).astype(int)
    counts = np.histogram2d(
        shares[:, 1], shares[:, 0], bins=(cells[1], cells[0]), range=((0, 1), (0, 1))
    )[0]
    opacity = np.sqrt(counts / max(counts.max(), 1))
    picture = np.empty((*counts.shape, 4), np.uint8)
    picture[..., :3] = (190, 125, 10)  # BGR of a blue that is seen on light pages and on dark ones
    picture[..., 3] = np.rint(255 * opacity)
    picture = picture.repeat(10, axis=0).repeat(10, axis=1)
    return bytes(cv2.imencode(".png", picture)[1].tobytes())


def _picture(
    problem: Problem, index: RecordIndex, names: Sequence[str], colours: Sequence[Rgb]
) -> bytes | None:
    """The animal or the frame with its labels as JPEG; None where there is no image to draw on."""
    if problem.record is None or not index.jpeg_length[problem.record]:
        return None
    try:
        image = decode(index.jpeg(problem.record))
    except DataError:
        return None
    if image is None:
        return None
    size = np.array([index.width[problem.record], index.height[problem.record]] * 2)
    if problem.instance is not None:
        animals = np.array([problem.instance])
        box = index.bbox[problem.instance] * size
        points = index.keypoints[problem.instance]
        view = _view(box, points, size)
        if problem.seen:
            view = _close(points[list(problem.parts)], problem.seen, view)
        image, to_view = square_crop(image, view, _MARGIN, _SIDE)
    else:
        animals = np.flatnonzero(index.record == problem.record)
        scale = _WIDTH / image.shape[1]
        image = np.ascontiguousarray(cv2.resize(image, None, fx=scale, fy=scale))
        to_view = np.array([[scale, 0, 0], [0, scale, 0]])
    for animal in animals.tolist():
        corners = geometry.apply((index.bbox[animal] * size).reshape(2, 2), to_view)
        draw_box(image, corners.ravel().tolist(), WHITE)
        _seen(image, index.keypoints[animal], problem, to_view, colours)
        _parts(image, geometry.apply(index.keypoints[animal], to_view), problem, names, colours)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())


def _view(
    box: npt.NDArray[np.floating], points: npt.NDArray[np.floating], size: npt.NDArray[np.int64]
) -> list[float]:
    """What shows a box and its parts, x1 y1 x2 y2, px; not more than an image around the image."""
    known = points[np.isfinite(points.sum(axis=1))]
    corners = np.concatenate([box.reshape(2, 2), known]).clip(-size[:2], 2 * size[:2])
    return [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]


def _close(
    labels: npt.NDArray[np.floating], seen: Sequence[tuple[float, float]], view: list[float]
) -> list[float]:
    """What shows labels (parts, 2) and where networks see them, x1 y1 x2 y2, px: at least half of
    the animal's view about their middle, because what is near tells which of the two is right."""
    points = np.concatenate([labels, np.array(seen)])
    low, high = points.min(axis=0), points.max(axis=0)
    half = max((high - low).max(), _CLOSE * max(view[2] - view[0], view[3] - view[1])) / 2
    middle = (low + high) / 2
    return [*(middle - half).tolist(), *(middle + half).tolist()]


def _seen(
    image: Pixels,
    labels: npt.NDArray[np.floating],
    problem: Problem,
    to_view: npt.NDArray[np.float64],
    colours: Sequence[Rgb],
) -> None:
    """Draw a cross where networks see a part, joined to its label; labels (parts, 2), image px."""
    for part, point in zip(problem.parts, problem.seen, strict=False):
        ends = geometry.apply(np.array([labels[part], point]), to_view)
        draw_line(image, ends, bgr(colours[part]))
        x, y = ends[1].tolist()
        draw_marks(image, [Mark(CROSS, x, y, bgr(colours[part]), 5.0)])


def _parts(
    image: Pixels,
    points: npt.NDArray[np.float64],
    problem: Problem,
    names: Sequence[str],
    colours: Sequence[Rgb],
) -> None:
    """Draw parts at points (parts, 2), px; those that the problem is of are larger and named."""
    draw_marks(
        image,
        [
            Mark(DISC, float(x), float(y), bgr(rgb), 5.0 if part in problem.parts else 3.2)
            for part, ((x, y), rgb) in enumerate(zip(points, colours, strict=True))
        ],
    )
    for part in problem.parts:
        x, y = points[part]
        if not np.isfinite(x + y):
            continue
        left = x + 10
        if left + text_width(names[part], 14) > image.shape[1]:
            left = x - 10 - text_width(names[part], 14)
        draw_text(image, (float(left), float(y) - 9), names[part], 14)

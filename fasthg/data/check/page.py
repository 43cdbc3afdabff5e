"""The report of `fasthg data check` as one HTML file, with images of the worst problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from fasthg import html
from fasthg.data.check.problems import KINDS, Problem, Report
from fasthg.data.convert.images import decode
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import DataError

PICTURED = 12
"""Number of problems of a kind that are shown with an image."""
_WIDTH = 480  # px
_FAR = 10_000  # px; OpenCV cannot draw everywhere
# BGR of Okabe and Ito's palette: blue for what is meant, sky blue for the box, orange for the rest.
_MEANT, _OTHER, _BOX = (178, 114, 0), (0, 159, 230), (233, 180, 86)


def write(
    report: Report,
    indices: Mapping[str, RecordIndex],
    pairs: Sequence[tuple[int, int]] = (),
) -> str:
    """The page's text."""
    return html.page("Data check", _body(report, indices, pairs))


def _body(
    report: Report, indices: Mapping[str, RecordIndex], pairs: Sequence[tuple[int, int]]
) -> Iterator[str]:
    yield html.table(["", *report.splits], report.table())
    yield from map(html.note, report.notes)
    if not report.problems:
        yield html.note("No problem found.")
        return
    right = {part for _, part in pairs}
    for kind in KINDS:
        problems = report.of(kind)
        if not problems:
            continue
        yield html.heading(f"{kind}: {len(problems)}")
        images, without = [], []
        for problem in problems[:PICTURED]:
            image = _picture(problem, indices[problem.split], right)
            if image is None:
                without.append([problem.split, problem.where, problem.detail])
            else:
                images.append((image, f"{problem.split}: {problem}"))
        if images:
            yield html.pictures(images)
        if without:
            yield html.table(["split", "where", "what"], without)
        if len(problems) > PICTURED:
            yield html.note(f"and {len(problems) - PICTURED} more; --json lists all")


def _picture(problem: Problem, index: RecordIndex, right: set[int]) -> bytes | None:
    """The frame with its labels as JPEG; None where there is no image to draw on."""
    if problem.record is None or not index.jpeg_length[problem.record]:
        return None
    try:
        image = decode(index.jpeg(problem.record))
    except DataError:
        return None
    if image is None:
        return None
    scale = _WIDTH / image.shape[1]
    image = np.ascontiguousarray(cv2.resize(image, None, fx=scale, fy=scale))
    animals = np.flatnonzero(index.record == problem.record)
    if problem.instance is not None:
        animals = np.array([problem.instance])
    size = np.array([index.width[problem.record], index.height[problem.record]] * 2)
    for animal in animals.tolist():
        edges = (index.bbox[animal] * size * scale).clip(-_FAR, _FAR)
        x1, y1, x2, y2 = edges.round().astype(int).tolist()
        cv2.rectangle(image, (x1, y1), (x2, y2), _BOX, 1, cv2.LINE_AA)
        for part, (x, y) in enumerate((index.keypoints[animal] * scale).clip(-_FAR, _FAR)):
            if not np.isfinite(x + y):
                continue
            meant = part in problem.parts
            colour = _MEANT if meant or not problem.parts else _OTHER
            where = (round(float(x)), round(float(y)))
            # Of a pair the right part is a ring.
            cv2.circle(image, where, 5, (255, 255, 255), 3, cv2.LINE_AA)
            cv2.circle(image, where, 5, colour, 2 if part in right else -1, cv2.LINE_AA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()

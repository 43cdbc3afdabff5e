"""The folder of suggestions: pictures, and the poses as machine labels for labelling tools.

    config.yaml                                        a DeepLabCut project of its own
    labeled-data/<film>/img0042.png                    the frames, numbered from 0 as in the film
    labeled-data/<film>/machinelabels-iter0.h5         DeepLabCut and napari
    suggestions.json                                   COCO keypoints, of the same pictures
    suggestions.slp                                    SLEAP, of the films themselves

A part whose score is too low is left out: unlabelled parts do no harm in training, wrong ones do.
A labeller puts it where it belongs; what is forgotten stays unlabelled. Machine labels are marked
as such in all three, and converters do not take them for a person's.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from fasthg.config import Parts
from fasthg.errors import ConfigError, DataError
from fasthg.files import written_together
from fasthg.inference.video.suggest import write_coco, write_dlc, write_slp
from fasthg.inference.video.suggest.content import PICTURES, Content, Labels
from fasthg.inference.video.suggest.second_look import wanted
from fasthg.inference.video.suggest.suggest import Suggestions


def check_folder(folder: Path) -> None:
    """Raise ConfigError where a folder holds anything: it may be somebody's work."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already; give a new folder with -o")


def write_folder(
    result: Suggestions, parts: Parts, folder: Path, *, confidence: float, scorer: str
) -> tuple[list[Path], list[str]]:
    """Write suggestions for all labelling tools whose packages are there.

    Args:
        folder: new or empty; it appears as a whole.
        confidence: least score of a part that is written.

    Returns:
        Files, and notes on formats that are left out.

    Raises:
        ConfigError: the folder is not empty.
        DataError: a film has changed since.
        FasthgError: it cannot be written.
    """
    check_folder(folder)
    files, notes = [], []
    with written_together(folder) as temporary:
        content = _content(result, parts, temporary, confidence, scorer)
        writers: list[tuple[str, tuple[str, ...], str, Callable[[Content, Path, Path], list[str]]]]
        writers = [
            ("DeepLabCut", ("pandas", "tables"), "dlc", write_dlc.write),
            ("COCO", (), "", write_coco.write),
            ("SLEAP", ("sleap_io",), "sleap", write_slp.write),
        ]
        for name, modules, extra, write in writers:
            missing = [module for module in modules if not _importable(module)]
            if missing:
                notes.append(
                    f"nothing for {name}: that needs {' and '.join(missing)}; "
                    f"run: pip install 'fasthg[{extra}]', and suggest again"
                )
                continue
            files += [folder / each for each in write(content, temporary, folder)]
    return files, notes


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _content(
    result: Suggestions, parts: Parts, folder: Path, confidence: float, scorer: str
) -> Content:
    """Write the pictures, and gather what the formats say of them."""
    labels: list[Labels] = []
    films: dict[str, int] = {}
    for number, (film, rows) in enumerate(zip(result.films, result.rows, strict=True)):
        own = [each for each in result.frames if each.film == number]
        if not own:
            continue
        films[str(film.path)] = len(rows)
        pictures = folder / PICTURES / film.stem.name
        pictures.mkdir(parents=True)
        images = wanted(film, [each.frame for each in own])
        # As wide as DeepLabCut makes it, so that frames that it adds are called alike.
        width = max(1, math.ceil(math.log10(max(len(rows), 2))))
        for each in own:
            image = images.get(each.frame)
            if image is None:
                raise DataError(f"{film.path}: frame {each.frame} is gone; suggest again")
            name = f"img{each.frame:0{width}d}.png"
            done, data = cv2.imencode(".png", image)
            if not done:
                raise DataError(f"{film.path}: frame {each.frame} cannot be written as PNG")
            (pictures / name).write_bytes(data.tobytes())
            scores = rows.scores[each.frame].astype(np.float64)
            sure = (scores >= confidence)[..., None]
            labels.append(
                Labels(
                    film=film.path,
                    folder=film.stem.name,
                    image=name,
                    frame=each.frame,
                    size=(image.shape[1], image.shape[0]),
                    keypoints=np.where(sure, rows.keypoints[each.frame], np.nan),
                    scores=scores,
                    boxes=rows.boxes[each.frame],
                    why=each.why,
                )
            )
    return Content(labels, result.rows[0].animals, parts, scorer, films)


def table(result: Suggestions) -> Sequence[tuple[str, str, str, str]]:
    """(film, frame, time, why) of each frame, for a person."""
    return [
        (
            result.films[each.film].path.name,
            str(each.frame),
            "" if np.isnan(each.time) else f"{each.time:.2f} s",
            each.why,
        )
        for each in result.frames
    ]

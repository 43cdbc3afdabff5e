"""Films from their frames to the frames to label next."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg.config import Config
from fasthg.errors import ConfigError, DataError
from fasthg.inference.locator import Locator
from fasthg.inference.video.keypoints import Network, Predictor
from fasthg.inference.video.pipeline import Clock
from fasthg.inference.video.predict_source import Options, predict_source
from fasthg.inference.video.row_store import Rows
from fasthg.inference.video.suggest.choose import (
    EVEN,
    Film,
    candidates,
    even,
    pick,
)
from fasthg.inference.video.suggest.doubts import (
    JUMP,
    MISSING,
    SCORE,
    SHAPE,
    UNSTABLE,
    Doubts,
    doubts,
    surprise,
)
from fasthg.inference.video.suggest.labelled import Labelled, labelled_frames
from fasthg.inference.video.suggest.second_look import Seen, look_again
from fasthg.inference.video.video_file import VideoSource

Array = npt.NDArray[np.float64]
Place = tuple[int, int]
"""Film and frame."""
ROUNDS = 4
"""How often candidates are sought, where pictures turn out to be labelled."""
_SAYS = {
    SCORE: "low score: {}",
    MISSING: "missing: {}",
    JUMP: "jump: {}",
    SHAPE: "unusual length: {}",
    UNSTABLE: "unstable: {}",
    "": "even step",
}


@dataclass(frozen=True)
class Suggestion:
    """A frame to label next."""

    film: int
    frame: int
    """From 0."""
    time: float
    """Seconds."""
    reason: str
    """One of `doubts.REASONS`; empty where it was chosen at an even step."""
    about: str
    """The part, bone or animal that the reason is about."""
    doubt: float
    """Sum of the measures' surprises, see `doubts`."""

    @property
    def why(self) -> str:
        """The reason for a person."""
        return _SAYS[self.reason].format(self.about)


@dataclass
class Suggestions:
    """Frames to label, in the order of the films and of time."""

    films: list[VideoSource]
    rows: list[Rows]
    """Poses of all frames of each film."""
    frames: list[Suggestion]
    notes: list[str] = field(default_factory=list)


def suggest(
    films: Sequence[VideoSource],
    count: int,
    network: Network,
    config: Config,
    options: Options,
    locator: Locator | None,
    *,
    seed: int = 0,
    progress: Callable[[VideoSource, str, int, int | None], None] = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Suggestions | None:
    """Choose the frames of films whose labels would teach a network most.

    All frames are predicted. `choose.CANDIDATES` times as many frames as asked for are looked at
    once more, see `second_look`; from these most are chosen, the others at even steps.

    Args:
        count: how many frames, from 1.
        options: boxes, animals and confidence as in `predict`.
        seed: decides where the even steps begin.
        progress: called with the film, what is done, how many frames so far, and of how many.
        stop: asked after every batch.

    Returns:
        The frames; None where `stop` ended it.

    Raises:
        ConfigError: two films of one name.
        DataError: a film cannot be read or has no frame left to label.
    """
    names = [film.stem.name for film in films]
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(
                f"{times} films are called {name}; suggest frames of one after the other, with "
                "different -o"
            )
    rows = []
    for film in films:
        found = _predicted(film, network, config, options, locator, progress, stop)
        if found is None:
            return None
        rows.append(found)
    known = labelled_frames(config, names, {film.size for film in films})
    rows = [replace(each, animals=_called(each.animals, known.names)) for each in rows]
    measures = doubts(rows)
    told = [
        _film(own, each, known.numbers.get(name, set()))
        for own, each, name in zip(rows, measures, names, strict=True)
    ]
    look = Predictor(network, config, Clock()).look

    def again(number: int, frames: Sequence[int]) -> dict[int, Seen]:
        film = films[number]
        tell = partial(progress, film, "candidates")
        return look_again(
            *(film, rows[number], frames, look, config.PARTS, known.has),
            progress=lambda done: tell(done, len(frames)),
        )

    seen: dict[Place, Seen] = {}
    steady, asked = _search(told, count, seed, seen, again, stop)
    if stop():
        return None
    if not asked and not steady:
        given = ", ".join(str(film.path) for film in films)
        raise DataError(f"{given}: no frame is left to label; give another film")
    chosen = _chosen(told, measures, asked, steady, seen, count, rows[0])
    frames = [
        Suggestion(f, n, float(rows[f].times[n]), *why, doubt) for (f, n), why, doubt in chosen
    ]
    result = Suggestions(list(films), rows, sorted(frames, key=lambda s: (s.film, s.frame)))
    result.notes = _notes(result, known, count)
    return result


def _search(
    films: Sequence[Film],
    count: int,
    seed: int,
    seen: dict[Place, Seen],
    again: Callable[[int, Sequence[int]], dict[int, Seen]],
    stop: Callable[[], bool],
) -> tuple[list[Place], list[Place]]:
    """Frames at even steps, and candidates; `seen` is filled with what `again` sees in them.

    What turns out to be labelled is closed in `films`, and others are sought in its place.
    """
    steady: list[Place] = []
    asked: list[Place] = []
    for _ in range(ROUNDS):
        steady = even(films, round(EVEN * count), seed)
        asked = candidates(films, count, steady)
        new = [each for each in (*steady, *asked) if each not in seen]
        for number, film in enumerate(films):
            looked = again(number, [frame for f, frame in new if f == number])
            seen |= {(number, frame): each for frame, each in looked.items()}
            film.open[[frame for frame, each in looked.items() if each.labelled]] = False
            if stop():
                return [], []
        if not any(each in seen and seen[each].labelled for each in new):
            break

    def usable(places: Sequence[Place]) -> list[Place]:
        return [each for each in places if each in seen and not seen[each].labelled]

    return usable(steady), [each for each in usable(asked) if each not in steady]


def _called(animals: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """What animals are called: as in the records, where those name as many.

    Which is which may be a guess, but a labeller can choose among these names alone, and other ones
    would make more kinds of animals of them.
    """
    return names if len(names) == len(animals) and len(names) > 1 else animals


def _predicted(
    film: VideoSource,
    network: Network,
    config: Config,
    options: Options,
    locator: Locator | None,
    progress: Callable[[VideoSource, str, int, int | None], None],
    stop: Callable[[], bool],
) -> Rows | None:
    """Poses of all frames; None where it was stopped."""
    with tempfile.TemporaryDirectory(prefix="fasthg-suggest-") as folder:
        result = predict_source(
            film,
            network,
            config,
            replace(options, formats=(), folder=Path(folder), overlay=False, resume=False),
            locator,
            weights="",
            clock=Clock(),
            progress=lambda done, _: progress(film, "predict", done, film.count),
            stop=stop,
        )
    return None if result.stopped else result.poses


def _film(rows: Rows, measures: Doubts, labelled: set[int]) -> Film:
    times = np.where(np.isfinite(rows.times), rows.times, np.arange(len(rows)))
    free = rows.sizes[:, 0] > 0
    free[[number for number in labelled if number < len(rows)]] = False
    return Film(np.maximum.accumulate(times), measures.total(), free)


def _chosen(
    films: Sequence[Film],
    measures: Sequence[Doubts],
    asked: Sequence[Place],
    steady: Sequence[Place],
    seen: dict[Place, Seen],
    count: int,
    rows: Rows,
) -> list[tuple[Place, tuple[str, str], float]]:
    """Frames with their reasons and doubts: all `steady` ones, and the best of those `asked`."""
    both = [*steady, *asked]
    moved = np.stack([seen[each].moved for each in both])
    unstable = surprise(np.nan_to_num(moved).max(axis=1))
    looks = _looks([seen[each] for each in both])
    total = np.array([films[f].doubt[n] for f, n in both]) + unstable
    first = len(steady)
    places = pick(
        np.array([f for f, _ in asked], np.int64),
        total[first:],
        looks[first:],
        count - first,
        taken=looks[:first],
        already=Counter(f for f, _ in steady),
    )
    result = [(each, ("", ""), float(total[i])) for i, each in enumerate(steady)]
    for place in places:
        film, frame = asked[place]
        why = measures[film].reason(frame)
        value = measures[film].measures[why[0]][frame] if why[0] else 0.0
        if unstable[first + place] > value:
            animal, part = seen[film, frame].place
            several = f" of {rows.animals[animal]}" if len(rows.animals) > 1 else ""
            why = (UNSTABLE, f"{rows.parts[part]}{several}")
        result.append((asked[place], why, float(total[first + place])))
    return result


def _looks(seen: Sequence[Seen]) -> Array:
    """(n, features) what pictures are compared by: the frame and the animals, of equal weight."""
    parts = []
    for name in ("frame_look", "crop_look"):
        features = np.stack([getattr(each, name) for each in seen])
        spread = float(np.sqrt(((features - features.mean(axis=0)) ** 2).sum(axis=1).mean()))
        parts.append(features / (spread or 1.0))
    return np.concatenate(parts, axis=1)


def _notes(result: Suggestions, known: Labelled, count: int) -> list[str]:
    notes = []
    if known.note:
        notes.append(known.note)
    own = sum(len(each) for each in known.numbers.values())
    if own:
        notes.append(f"{own} labelled frames of these films are left out")
    if len(result.rows[0].animals) > 1:
        names = ", ".join(result.rows[0].animals)
        notes.append(f"animals are called {names}; check which is which before you save")
    if len(result.frames) < count:
        notes.append(
            f"{len(result.frames)} frames instead of {count}: the others are labelled, or much "
            "nearer to these than frames of such a film need to be"
        )
    return notes


def as_json(result: Suggestions) -> list[dict[str, Any]]:
    """The frames for a machine."""
    return [
        {
            "film": str(result.films[each.film].path),
            "frame": each.frame,
            "time_s": None if np.isnan(each.time) else round(each.time, 6),
            "reason": each.reason or "even",
            "about": each.about,
            "doubt": round(each.doubt, 3),
        }
        for each in result.frames
    ]

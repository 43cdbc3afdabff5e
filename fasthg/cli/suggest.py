"""`fasthg suggest`: the frames of films to label next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasthg.cli.common import AsJson, configure, console, print_json
from fasthg.errors import ConfigError
from fasthg.runtime.output import lasting_output

if TYPE_CHECKING:
    from rich.console import Console

    from fasthg.inference.video.suggest.suggest import Suggestions
    from fasthg.inference.video.video_file import VideoSource


@lasting_output()
def suggest(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run folder, or .safetensors file with --boxes.")
    ],
    inputs: Annotated[
        list[str], typer.Argument(metavar="FILM... [KEY=VALUE]...", help="Films; overrides.")
    ],
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, help="How many frames, of all films together.")
    ] = 50,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="A new folder.")
    ] = Path("suggestions"),
    boxes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="As in predict: a file of boxes, or: whole."),
    ] = None,
    animals: Annotated[
        int | None,
        typer.Option(min=1, help="How many animals at most; default: as in training frames."),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(min=0.0, help="Least score of a part that is written; 0 writes all parts."),
    ] = 0.3,
    scorer: Annotated[
        str, typer.Option(help="Who labels, for DeepLabCut: CollectedData_NAME.")
    ] = "human",
    seed: Annotated[int, typer.Option(min=0, help="Where the even steps begin.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Choose the frames of films to label next, and write them for labelling tools.

    Chosen are frames with low scores, missing animals, jumps, unusual shapes, and poses that move
    with the crop; unlike one another, and none that is labelled already. A fifth is at even steps.
    """
    from fasthg.inference.networks import open_networks
    from fasthg.inference.video.predict_source import WHOLE, Options
    from fasthg.inference.video.sources import find_sources
    from fasthg.inference.video.suggest.folder import check_folder, write_folder
    from fasthg.inference.video.suggest.suggest import as_json as plain
    from fasthg.inference.video.suggest.suggest import suggest as choose
    from fasthg.inference.video.video_file import VideoSource
    from fasthg.runs.weights import trained
    from fasthg.runtime.signals import Signals

    overrides = [text for text in inputs if "=" in text and not Path(text).exists()]
    paths = [Path(text) for text in inputs if text not in overrides]
    if not paths:
        raise ConfigError("no film; give films to choose frames from")
    if not scorer.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"--scorer {scorer!r}: use letters, digits, - and _")
    folder = trained(Path(run))
    check_folder(out)
    films = []
    for source in find_sources(paths):
        if not isinstance(source, VideoSource):
            raise ConfigError(f"{source.path}: is no film; give films to choose frames from")
        films.append(source)
    if boxes not in (None, WHOLE) and len(films) > 1:
        raise ConfigError(f"--boxes {boxes}: is for one film; suggest one after the other")
    config = folder.config(overrides)
    configure(config)
    networks = open_networks(folder, config, locate=boxes != WHOLE)
    options = Options(
        boxes=boxes,
        animals=animals,
        frames_are_crops=networks.frames_are_crops,
        confidence=confidence,
    )
    screen = console()
    with Signals() as signals, _Bar(screen, quiet=as_json) as bar:
        found = choose(
            films,
            count,
            networks.pose,
            config,
            options,
            networks.locator,
            seed=seed,
            progress=bar.show,
            stop=lambda: signals.stop is not None,
        )
    if found is None:
        raise typer.Exit(128 + int(signals.stop or 0))
    files, notes = write_folder(found, config.PARTS, out, confidence=confidence, scorer=scorer)
    notes = [*found.notes, *notes]
    if as_json:
        print_json({"frames": plain(found), "files": [str(file) for file in files], "notes": notes})
        return
    _print(screen, found)
    for line in [*notes, *map(str, files)]:
        screen.print(line, markup=False, highlight=False, soft_wrap=True)


def _print(screen: Console, found: Suggestions) -> None:
    from fasthg.inference.video.suggest.folder import table
    from fasthg.runtime.tables import print_table

    lines = table(found)
    widest = max(map(len, ["frame", *(line[1] for line in lines)]))
    rows = [[film, frame.rjust(widest), *others] for film, frame, *others in lines]
    head = ["film", "frame", "time", "why"]
    if len({film for film, *_ in rows}) < 2:
        head, rows = head[1:], [row[1:] for row in rows]
    print_table(screen, head, rows, text_last=True)


class _Bar:
    """How far each film is, where somebody looks on."""

    def __init__(self, screen: Console, *, quiet: bool) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=screen,
            transient=True,
            disable=quiet or not screen.is_terminal,
        )
        self._tasks: dict[str, int] = {}

    def show(self, film: VideoSource, doing: str, done: int, total: int | None) -> None:
        """As `suggest`'s progress."""
        name = f"{film.path.name}: {doing}"
        if name not in self._tasks:
            self._tasks[name] = int(self._bar.add_task(name, total=total))
        self._bar.update(self._tasks[name], completed=done)  # type: ignore[arg-type]

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

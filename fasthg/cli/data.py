"""`fasthg data`: make, convert, check and look at data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasthg.cli import agreement, check, convert, preview
from fasthg.errors import ConfigError

if TYPE_CHECKING:
    from fasthg.data.synthetic.film import Film

app = typer.Typer(help="Make, convert, check and look at data sets.", no_args_is_help=True)
app.add_typer(convert.app, name="convert")
app.command("check")(check.check)
app.command("preview")(preview.preview)
app.command("agreement")(agreement.agreement)

# Parameter of `synth`: its option.
_RECORDS_ONLY = {
    "train_frames": "--train",
    "val_frames": "--val",
    "test_frames": "--test",
    "contact": "--contact",
}
_FILM_ONLY = {
    "animals": "--animals",
    "leaves": "--leaves/--stays",
    "fps": "--fps",
}


@app.command("synth")
def synth(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.")],
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
    train_frames: Annotated[int, typer.Option("--train", min=0, help="Training frames.")] = 400,
    val_frames: Annotated[int, typer.Option("--val", min=0, help="Validation frames.")] = 40,
    test_frames: Annotated[int, typer.Option("--test", min=0, help="Test frames.")] = 60,
    width: Annotated[int, typer.Option(min=128, help="Frame width, px.")] = 512,
    height: Annotated[int, typer.Option(min=128, help="Frame height, px.")] = 384,
    film: Annotated[
        int | None,
        typer.Option(
            metavar="FRAMES",
            help="In place of records: film.mp4, and film.truth.csv with identities, boxes, parts.",
        ),
    ] = None,
    animals: Annotated[int, typer.Option(help="Animals in the film, 1 to 4.")] = 2,
    same_colour: Annotated[
        bool, typer.Option("--same-colour", help="All animals are black: nothing tells them apart.")
    ] = False,
    contact: Annotated[
        bool,
        typer.Option("--contact", help="One mouse may lie on the other in records, as in films."),
    ] = False,
    leaves: Annotated[
        bool | None,
        typer.Option(
            "--leaves/--stays",
            help="Whether one leaves the film's image and comes back; default: from 30 s on.",
        ),
    ] = None,
    fps: Annotated[int, typer.Option(help="Frames a second of the film.")] = 30,
) -> None:
    """Render a data set in MARS's format: two mice with 7 parts in a cage. Or a film of them."""
    if film is not None:
        _refuse(context, _RECORDS_ONLY, "not with --film, which renders no records; leave it out")
        from fasthg.data.synthetic.film import Film

        size = (width, height)
        _render_film(out, Film(film, seed, size, fps, animals, same_colour, leaves))
        return
    _refuse(context, _FILM_ONLY, "for films only; give --film FRAMES")
    from fasthg.data.synthetic import dataset

    frames = {"train": train_frames, "val": val_frames, "test": test_frames}
    frames = {split: count for split, count in frames.items() if count}
    kinds = dataset.ALIKE if same_colour else dataset.ANIMALS
    nearest = dataset.CONTACT if contact else dataset.APART
    for path in dataset.write_dataset(
        out, seed=seed, frames=frames, size=(width, height), kinds=kinds, nearest=nearest
    ):
        print(path)


def _refuse(context: typer.Context, options: dict[str, str], why: str) -> None:
    """Raise ConfigError where one of the options was given."""
    for parameter, option in options.items():
        source = context.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{option}: {why}")


def _render_film(out: Path, film: Film) -> None:
    from fasthg.data.synthetic.film import write_film
    from fasthg.data.synthetic.truth import CROSSING, crossings, read_truth
    from fasthg.inference.video.video_writer import write_video

    video, table = write_film(out, film, write_video)
    truth = read_truth(table, film.frames)
    count = len(crossings(truth.boxes))
    print(video)
    print(table)
    print(f"{film.frames} frames, {count} crossings (IoU of two boxes above {CROSSING:g})")

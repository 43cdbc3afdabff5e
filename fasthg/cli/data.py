"""`fasthg data`: make, convert, check and look at data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli import agreement, check, convert, preview

app = typer.Typer(help="Make, convert, check and look at data sets.", no_args_is_help=True)
app.add_typer(convert.app, name="convert")
app.command("check")(check.check)
app.command("preview")(preview.preview)
app.command("agreement")(agreement.agreement)


@app.command("synth")
def synth(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.")],
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
    train_frames: Annotated[int, typer.Option("--train", min=0, help="Training frames.")] = 400,
    val_frames: Annotated[int, typer.Option("--val", min=0, help="Validation frames.")] = 40,
    test_frames: Annotated[int, typer.Option("--test", min=0, help="Test frames.")] = 60,
    width: Annotated[int, typer.Option(min=128, help="Frame width, px.")] = 512,
    height: Annotated[int, typer.Option(min=128, help="Frame height, px.")] = 384,
) -> None:
    """Render a data set in MARS's format: two mice with 7 parts in a cage."""
    from fasthg.data.synthetic.dataset import write_dataset

    frames = {"train": train_frames, "val": val_frames, "test": test_frames}
    frames = {split: count for split, count in frames.items() if count}
    for path in write_dataset(out, seed=seed, frames=frames, size=(width, height)):
        print(path)

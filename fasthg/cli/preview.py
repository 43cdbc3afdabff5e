"""`fasthg data preview`: what training sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import ConfigPath, Overrides, read_config
from fasthg.errors import ConfigError


def preview(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="A .png or .html file.")
    ] = Path("preview.png"),
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Animals shown.")] = 4,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Another choice than RANDOM_SEED's.")
    ] = None,
) -> None:
    """Draw crops with their targets, before and after each augmentation that is on."""
    from fasthg.data.index.record_index import RecordIndex
    from fasthg.data.preview import make_preview
    from fasthg.data.preview.sheet import as_page, as_png
    from fasthg.files import write_atomically
    from fasthg.runtime.device import choose_device
    from fasthg.training.recipe import resolved

    kind = out.suffix.lower()
    if kind not in (".png", ".html"):
        raise ConfigError(f"-o {out}: neither .png nor .html; give a name that ends in one of them")
    settings = read_config(config, overrides)
    settings, choices = resolved(settings, choose_device(settings.DEVICE))
    for line in choices:
        print(line)
    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split {split}: no such split; use train, val or test")
    patterns = getattr(settings.DATA, split.upper())
    if patterns is None:
        raise ConfigError(f"{config}: DATA.{split.upper()} is not set; set it or choose a --split")
    index = RecordIndex.build(patterns, settings.PARTS.NUM_PARTS)
    made = make_preview(index, settings, count=count, seed=seed)
    title = f"{config.name}, {split}: {len(made.before)} of {len(index)} animals"
    if kind == ".png":
        data = as_png(made, settings.PARTS, title)
    else:
        data = as_page(made, settings.PARTS, title).encode()

    def put(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(out, put)
    for line in made.replaced:
        print(f"replaced by the next: {line}")
    for name, key in made.off.items():
        print(f"off: {name} ({key})")
    print(f"wrote {out}")

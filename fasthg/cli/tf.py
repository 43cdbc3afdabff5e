"""`fasthg import-tf`: weights from a checkpoint that MARS's TensorFlow trainer wrote."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from fasthg.cli.common import AsJson, Overrides, console, print_json
from fasthg.errors import ConfigError


def import_tf(
    checkpoint: Annotated[
        Path, typer.Argument(help="Its prefix (model.ckpt-700000), its folder or one of its files.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The .safetensors file to write.")
    ],
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="config_train.yaml of its training; without, MARS's stock values. NUM_STACKS, "
            "FEATURES and STEM_FEATURES may be left out.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw/--ema", help="The raw values; default: the moving averages.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Print every variable, its name here and its shape.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read a TensorFlow checkpoint of MARS's pose network; TensorFlow is not needed.

    The file is like the best weights of a run: predict, eval and INIT.WEIGHTS take it.
    """
    from fasthg.config import find_config
    from fasthg.interop.tf_import import read_checkpoint
    from fasthg.runs.run_folder import WEIGHTS_SUFFIX

    if out.suffix != WEIGHTS_SUFFIX:
        raise ConfigError(
            f"-o {out}: other verbs know weights by their name; end it in {WEIGHTS_SUFFIX}"
        )
    source = find_config(config) if config is not None else None
    imported = read_checkpoint(checkpoint, source, list(overrides or []), ema=not raw)
    imported.save(out)
    keys, values = imported.config, "raw values" if raw else "moving averages"
    if as_json:
        rows = [{"variable": m.variable, "name": m.name, "shape": m.shape} for m in imported.mapped]
        facts = {
            "checkpoint": imported.prefix,
            "values": values,
            "step": imported.step,
            "file": out,
        }
        network = {k: getattr(keys, k) for k in ("NUM_STACKS", "FEATURES", "STEM_FEATURES")}
        parts = {"parts": keys.PARTS.NAMES}
        print_json({**facts, **network, **parts, "variables": rows, "not_used": imported.unused})
        return
    lines = [
        f"checkpoint  {imported.prefix}: step {imported.step}, {values}",
        f"network     NUM_STACKS {keys.NUM_STACKS}, FEATURES {keys.FEATURES}, "
        f"STEM_FEATURES {keys.STEM_FEATURES}",
        f"parts       {', '.join(keys.PARTS.NAMES)}",
    ]
    if table:
        lines += [f"{m.variable}  {m.name}  {'x'.join(map(str, m.shape))}" for m in imported.mapped]
    else:
        blocks = Counter(m.block for m in imported.mapped)
        lines += [f"{block:<11} {count} variables" for block, count in blocks.items()]
    unused = (kind if n == 1 else f"{n} {kind}" for kind, n in imported.unused.items())
    lines += [f"not used    {', '.join(unused) or 'nothing'}", f"{out}"]
    for line in lines:
        console().print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

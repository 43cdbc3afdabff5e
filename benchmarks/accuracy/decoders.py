"""Ways to decode heatmaps, compared on the maps of trained networks: `decode` of the command line.

DARK blurs a map before its Taylor step. Its blur here is varied, with the decoder's other parts as
they are, and `quarter` and `argmax` stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.run import RESULTS
from fasthg import geometry, metrics
from fasthg.data.loader import make_loader
from fasthg.data.sampler import BatchSampler
from fasthg.data.split import open_index
from fasthg.files import write_text
from fasthg.inference.predictor import Forward
from fasthg.ops import reference
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import load_model
from fasthg.runtime.device import choose_precision

FILE = RESULTS / "decoders.json"
USUAL = "dark, blur 1"
BLURS = (0.5, 1.0, 1.5, 2.0, 3.0)
Decoder = Callable[[Tensor], Tensor]


def decoders() -> dict[str, Decoder]:
    """Name -> heatmaps `(batch, parts, height, width)` to x, y `(batch, parts, 2)` in cells."""

    def dark(blur: float) -> Decoder:
        return lambda maps: reference.heatmap_peaks(maps, "dark", blur)[0]

    found = {f"dark, blur {blur:g}": dark(blur) for blur in BLURS}
    for method in ("quarter", "argmax"):
        found[method] = lambda maps, method=method: reference.heatmap_peaks(maps, method)[0]
    return found


def errors(run: RunFolder) -> dict[str, Any]:
    """Mean error of each decoder on a run's test split, image px."""
    config = run.config()
    model, _ = load_model(run.best, config)
    index = open_index(config, config.DATA.TEST)
    sampler = BatchSampler(index, config, training=False, seed=config.RANDOM_SEED, final=True)
    device = torch.device("cpu")
    loader = make_loader(sampler, config, device)
    # That of the evaluation, whose maps these are.
    precision = choose_precision(config.PRECISION, device, config.FEATURES).dtype
    forward = Forward(model, config, precision)
    found: dict[str, list[Any]] = {name: [] for name in decoders()}
    try:
        for batch in loader.batches(0, sampler.batches_per_epoch):
            maps = forward(batch.images)[-1].float()
            instance = batch.instance.numpy()
            truth, visibility = index.keypoints[instance], index.visibility[instance]
            for name, decode in decoders().items():
                cells = decode(maps).double().numpy()
                xy = geometry.apply(cells, batch.crop_to_image.double().numpy())
                found[name].append(metrics.errors(xy, truth, visibility))
    finally:
        loader.close()
    means = {name: round(float(np.nanmean(np.concatenate(e))), 4) for name, e in found.items()}
    return {"sigma": float(np.mean(config.PARTS.SIGMAS)), "mean_px": means}


def compare(folders: Sequence[Path], out: Path = FILE) -> Path:
    """Write the errors of all decoders on these runs, which `run` left in its work folder."""
    rows = []
    for folder in folders:
        row = {"run": folder.parent.name, **errors(RunFolder(folder))}
        print(row["run"], *(f"{name}: {mean:.3f}" for name, mean in row["mean_px"].items()))
        rows.append(row)
    write_text(out, json.dumps(rows, indent=1) + "\n")
    return out

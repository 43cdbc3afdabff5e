"""Suggestions as a DeepLabCut project.

`machinelabels-iter0.h5` is what `deeplabcut.extract_outlier_frames` writes: a table under the key
`df_with_missing`, whose rows are (labeled-data, film, image) and whose columns are (scorer,
individuals of several animals, bodyparts, coords) with x, y and likelihood. napari-deeplabcut opens
the folder, and saves what was corrected as `CollectedData_<scorer>.h5`, with the scorer of
config.yaml. That file is the labeller's and is not written here: `convert dlc` reads it alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import yaml

from fasthg.data.convert.to_dlc import project_settings
from fasthg.inference.video.suggest.content import PICTURES, Content

MACHINE_LABELS = "machinelabels-iter0.h5"
_SCORER = "fasthg"


def write(content: Content, folder: Path, final: Path) -> list[str]:
    """Write the tables and `config.yaml` in `folder`, which will be `final`; returns the names."""
    import pandas

    names = [str(name) for name in content.parts.NAMES]
    several = len(content.animals) > 1
    levels = ["scorer", *(["individuals"] if several else []), "bodyparts", "coords"]
    columns = pandas.MultiIndex.from_tuples(
        [
            (_SCORER, *([animal] if several else []), part, coord)
            for animal in content.animals
            for part in names
            for coord in ("x", "y", "likelihood")
        ],
        names=levels,
    )
    written = []
    sizes = {}
    for film in dict.fromkeys(each.folder for each in content.labels):
        own = [each for each in content.labels if each.folder == film]
        sizes[film] = own[0].size
        rows = [np.concatenate([e.keypoints, e.scores[..., None]], axis=-1).ravel() for e in own]
        index = [(PICTURES, each.folder, each.image) for each in own]
        table = pandas.DataFrame(
            np.stack(rows), columns=columns, index=pandas.MultiIndex.from_tuples(index)
        )
        name = f"{PICTURES}/{film}/{MACHINE_LABELS}"
        table.to_hdf(folder / name, key="df_with_missing", mode="w")
        written.append(name)
    animals = list(content.animals) if several else []
    settings = project_settings(final, names, animals, content.scorer, sizes)
    crops = list(settings["video_sets"].values())
    # As named, not as linked: the stems of these are the names of the folders.
    films = [os.path.abspath(film) for film in content.films]
    settings["video_sets"] = dict(zip(films, crops, strict=True))
    settings["skeleton"] = [[names[a], names[b]] for a, b in content.parts.SKELETON]
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return [*written, "config.yaml"]

"""Rows as HDF5: DeepLabCut's table and SLEAP's analysis file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fasthg.predict.store import Rows

SCORER = "fasthg"


def write_dlc(rows: Rows, path: Path) -> None:
    """DeepLabCut's table of an analysed video, key `df_with_missing`.

    Columns are scorer, (individuals, for several animals,) bodyparts, coords with x, y, likelihood;
    a row is a frame, or an image's name.
    """
    import pandas

    several = len(rows.animals) > 1
    levels = ["scorer", *(["individuals"] if several else []), "bodyparts", "coords"]
    labels = [
        (SCORER, *([animal] if several else []), part, coord)
        for animal in rows.animals
        for part in rows.parts
        for coord in ("x", "y", "likelihood")
    ]
    values = np.concatenate([rows.keypoints, rows.scores[..., None]], axis=-1)
    table = pandas.DataFrame(
        values.reshape(len(rows), -1),
        columns=pandas.MultiIndex.from_tuples(labels, names=levels),
        index=list(rows.names) if rows.names else range(len(rows)),
    )
    table.to_hdf(path, key="df_with_missing", mode="w", format="table")


def write_sleap(rows: Rows, path: Path) -> None:
    """SLEAP's analysis file, in the order of axes that its MATLAB-minded writer has:
    `tracks` (animals, 2, parts, frames), `point_scores` (animals, parts, frames),
    `track_occupancy` (frames, animals), `instance_scores`, `tracking_scores` (animals, frames).
    """
    import h5py

    there = np.isfinite(rows.keypoints).all(axis=(2, 3))
    means = np.where(there, np.nan_to_num(rows.scores).mean(axis=2), np.nan)
    with h5py.File(path, "w") as file:
        file["tracks"] = rows.keypoints.transpose(1, 3, 2, 0)
        file["point_scores"] = rows.scores.astype(np.float64).transpose(1, 2, 0)
        file["track_occupancy"] = there.astype(np.uint8)
        file["instance_scores"] = means.T
        file["tracking_scores"] = np.full(means.T.shape, np.nan)
        file["track_names"] = [name.encode() for name in rows.animals]
        file["node_names"] = [name.encode() for name in rows.parts]
        file["edge_names"] = np.zeros((0, 2), "S1")
        file["edge_inds"] = np.zeros((0, 2), np.int64)
        file["video_path"] = os.fspath(rows.source)
        file["video_ind"] = 0
        file["labels_path"] = ""
        file["provenance"] = "{}"

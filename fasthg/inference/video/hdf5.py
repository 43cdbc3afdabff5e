"""Rows as HDF5: DeepLabCut's table, SLEAP's analysis file, and the netCDF of movement."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fasthg.inference.video.row_store import Rows

SCORER = "fasthg"


def write_dlc(rows: Rows, path: Path) -> None:
    """DeepLabCut's table of an analysed video, key `df_with_missing`.

    Columns are scorer, (individuals, for several animals,) bodyparts, coords with x, y, likelihood;
    a row is a frame, or an image's name. Frames before the first that was asked for have empty
    rows, since tools take the place for the number.
    """
    import pandas

    rows = rows if rows.names else rows.from_zero()
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
    Frames before the first that was asked for are empty.
    """
    import h5py

    rows = rows.from_zero()
    there: npt.NDArray[np.bool_] = np.any(np.isfinite(rows.keypoints).all(axis=3), axis=2)
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


def write_netcdf(rows: Rows, path: Path) -> None:
    """A netCDF-4 file that xarray opens as a poses dataset of the package movement.

    `position` (time, space, keypoints, individuals) px and `confidence` (time, keypoints,
    individuals); `time` in seconds for a video, else the frame's number. It holds the frames that
    were asked for alone, at their times; the attribute `first_frame` is the number of the first.
    """
    import h5py

    timed = bool(np.isfinite(rows.times).all())
    axes = {
        "time": rows.times if timed else rows.first + np.arange(len(rows), dtype=np.float64),
        "space": ["x", "y"],
        "keypoints": list(rows.parts),
        "individuals": list(rows.animals),
    }
    values: dict[str, tuple[npt.NDArray[np.floating], list[str]]] = {
        "position": (rows.keypoints.transpose(0, 3, 2, 1), list(axes)),
        "confidence": (rows.scores.swapaxes(1, 2), [name for name in axes if name != "space"]),
    }
    # A netCDF-4 file is HDF5 whose axes are named by scales.
    with h5py.File(path, "w", track_order=True) as file:
        for name, labels in axes.items():
            kind = np.float64 if name == "time" else h5py.string_dtype()
            file.create_dataset(name, data=labels, dtype=kind).make_scale(name)
        for name, (array, dims) in values.items():
            data = file.create_dataset(name, data=array.astype(np.float64))
            for axis, dim in enumerate(dims):
                data.dims[axis].attach_scale(file[dim])
        steps = np.diff(rows.times)
        if timed and len(steps) and np.ptp(steps) < 1e-3 * steps.mean():
            file.attrs["fps"] = float(1 / steps.mean())
        file.attrs["time_unit"] = "seconds" if timed else "frames"
        file.attrs["source_software"], file.attrs["ds_type"] = SCORER, "poses"
        file.attrs["first_frame"] = rows.first
        file.attrs["source_file"] = os.fspath(rows.source)

"""Large data sets: what an index, its plans and a loader's start cost, and what ranks share.

    python benchmarks/scale.py                                    # 1,000,000 records, some minutes
    python benchmarks/scale.py --records 30000 --shards 30 --image-bytes 60000

Writes records of tiny valid JPEGs with two animals each into --folder (removed again unless --keep)
and prints a table; --json keeps the figures. Each measurement has a process of its own, so memory
is what it alone adds: the resident set's peak above its size before, in MB of 10^6 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import make_loader
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.data.sampler import BatchSampler

PARTS, SIDE = 7, 64
_TEMPLATES = 1000
_MARK = b"000000000"
_LARGEST_SEGMENT = 0xFFFF


def tiny_jpeg(size):
    """A JPEG of SIDE px a side, with comments that fill it to about `size` bytes."""
    image = np.random.default_rng(0).integers(90, 110, (SIDE // 8, SIDE // 8), np.uint8)
    image = cv2.resize(image, (SIDE, SIDE))
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()
    comments, remaining = b"", size - len(data)
    while remaining > 4:
        length = min(remaining, _LARGEST_SEGMENT) - 2
        comments += b"\xff\xfe" + length.to_bytes(2, "big") + b"c" * (length - 2)
        remaining -= length + 2
    return data[:2] + comments + data[2:]


def write_records(folder, records, shards, image_bytes):
    """Files of as many records each as possible; ids differ, annotations repeat after a while."""
    rng, image = np.random.default_rng(1), tiny_jpeg(image_bytes)
    payloads = []
    for _ in range(min(records, _TEMPLATES)):
        keypoints = rng.uniform(0.1, 0.9, (2, PARTS, 2)).astype(np.float32)
        bbox = np.concatenate([keypoints.min(1) - 0.05, keypoints.max(1) + 0.05], axis=1)
        given = {"image_id": _MARK.decode(), "filename": "frame.jpg", "path": "scale"}
        record = Record(image, SIDE, SIDE, **given, bbox=bbox, keypoints=keypoints)
        payloads.append(encode(record))
    edges = np.linspace(0, records, shards + 1).astype(int).tolist()
    Path(folder).mkdir()
    for shard, (start, stop) in enumerate(pairwise(edges)):
        made = (
            payloads[number % len(payloads)].replace(_MARK, b"%09d" % number)
            for number in range(start, stop)
        )
        write_frames(Path(folder) / f"train_dataset-{shard:05d}-of-{shards:05d}", made)
    os.sync()
    return str(Path(folder) / "train_dataset-*")


def forget(folder):
    """Ask the kernel to drop the files of a folder from its cache."""
    for path in Path(folder).iterdir():
        with open(path, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(folder):
    """Seconds to read the files of a folder."""
    start = time.perf_counter()
    for path in sorted(Path(folder).iterdir()):
        with open(path, "rb", buffering=0) as stream:
            while stream.read(1 << 20):
                pass
    return time.perf_counter() - start


def memory(key):
    """A figure of this process's memory, MB: VmRSS, VmHWM (peak of the former), Pss."""
    file = "smaps_rollup" if key == "Pss" else "status"
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) / 1000


def cpu_seconds():
    """Of this process and its ended children."""
    return sum(os.times()[:4])


class Meter:
    """Seconds, those of processors (with ended children's), and peak of memory of a block."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.before, self.start = memory("VmRSS"), time.perf_counter()
        self.start_cpu = cpu_seconds()
        return self

    def __exit__(self, *_):
        self.seconds, self.cpu = time.perf_counter() - self.start, cpu_seconds() - self.start_cpu
        self.peak = max(0.0, memory("VmHWM") - self.before)


def apart(function, *arguments):
    """The result of a call in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def index_costs(pattern):
    """Building an index, and what it is to keep, hand over and name it."""
    with Meter() as build:
        index = RecordIndex.build(pattern, PARTS)
    with Meter() as digest:
        index.fingerprint()
    with Meter() as pickled:
        size = len(pickle.dumps(index))
    return {
        "seconds": build.seconds,
        "processor s": build.cpu,
        "processor us a record": 1e6 * build.cpu / index.num_records,
        "peak MB": build.peak,
        "held MB": index.nbytes / 1e6,
        "bytes an instance": index.nbytes / len(index),
        "fingerprint s": digest.seconds,
        "pickled MB": size / 1e6,
        "pickling s": pickled.seconds,
    }


def open_costs(pattern, processes):
    """Opening as a training does: kept from the time before, if large."""
    with Meter() as opened:
        RecordIndex.open(pattern, PARTS, processes=processes)
    return {"seconds": opened.seconds, "processor s": opened.cpu, "peak MB": opened.peak}


def plan_costs(pattern, batch):
    """The first plan of an epoch, which orders it, and one within."""
    index = RecordIndex.open(pattern, PARTS)
    found = {}
    epoch = -(-len(index) // batch)
    for name, step in (("step 0", 0), ("mid epoch 0", epoch // 2), ("epoch 50", 50 * epoch + 7)):
        sampler = BatchSampler(index, Config(BATCH_SIZE=batch), training=True, seed=0)
        with Meter() as first:
            sampler.plan(step)
        times = []
        for ahead in range(1, 11):
            start = time.perf_counter()
            sampler.plan(step + ahead)
            times.append(time.perf_counter() - start)
        found[name] = {
            "first ms": 1e3 * first.seconds,
            "next ms": 1e3 * float(np.median(times)),
            "peak MB": first.peak,
        }
    return found


def loader_costs(pattern, batch, workers):
    """From an index to the first batch, with forked workers, at the start and far on."""
    index = RecordIndex.open(pattern, PARTS)
    config = Config(BATCH_SIZE=batch, NUM_INPUT_THREADS=workers)
    found = {}
    for name, epoch in (("step 0", 0), ("epoch 50", 50)):
        sampler = BatchSampler(index, config, training=True, seed=0)
        start = time.perf_counter()
        loader = make_loader(sampler, config, torch.device("cpu"), "portable")
        try:
            next(loader.batches(epoch * sampler.batches_per_epoch, 10**9))
            found[f"{name}, first batch s"] = time.perf_counter() - start
        finally:
            loader.close()
    return found


def _rank(pattern, ready, results):
    import_only = memory("Pss")
    ready.wait()
    start = time.perf_counter()
    index = RecordIndex.open(pattern, PARTS)
    seconds = time.perf_counter() - start
    index.fingerprint()  # touches all of it
    ready.wait()
    results.put((seconds, memory("Pss") - import_only))
    ready.wait()


def rank_costs(pattern, ranks, start="spawn"):
    """Several processes that open the same records at once: the slowest, and their sum of memory.

    Memory counts a page that n processes map as 1/n of it in each.
    """
    context = get_context(start)
    ready, results = context.Barrier(ranks), context.Queue()
    processes = [
        context.Process(target=_rank, args=(pattern, ready, results)) for _ in range(ranks)
    ]
    for process in processes:
        process.start()
    figures = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "ranks": ranks,
        "seconds": max(seconds for seconds, _ in figures),
        "MB together": sum(added for _, added in figures),
    }


def measure(folder, records, shards, image_bytes, batch, workers, ranks, call=apart, start="spawn"):
    """All figures of a data set that is written into `folder`."""
    data, cores = folder / "records", len(os.sched_getaffinity(0))
    begin = time.perf_counter()
    pattern = write_records(data, records, shards, image_bytes)
    written = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in data.iterdir())
    found = {
        "records": records,
        "shards": shards,
        "bytes a record": size / records,
        "cores": cores,
        "writing s": written,
    }
    forget(data)
    found["reading alone, disk s"] = read_through(data)
    found["reading alone, memory s"] = read_through(data)
    found["build"] = call(index_costs, pattern)
    found["open, first time"] = call(open_costs, pattern, cores)
    found["open again"] = call(open_costs, pattern, cores)
    found["plan"] = call(plan_costs, pattern, batch)
    found["loader"] = call(loader_costs, pattern, batch, workers)
    found["at once"] = rank_costs(pattern, ranks, start)
    return found


def table(found, prefix=""):
    """One line a figure."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield from table(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix + name:48} {value:>14,.{0 if value >= 100 else 3}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--image-bytes", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where records lie meanwhile")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    os.environ["FASTHG_CACHE"] = str(folder / "cache")
    try:
        found = measure(
            *(folder, given.records, given.shards, given.image_bytes),
            *(given.batch, given.workers, given.ranks),
        )
    finally:
        if not given.keep:
            shutil.rmtree(folder)
    print("\n".join(table(found)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import forked
import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

from fasthg.config import Config
from fasthg.data import opencv_loader
from fasthg.data.batch import Batch
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import Loader, loader_choice, make_loader
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError

Make = Callable[..., Config]
Open = Callable[..., Loader]
Pixels = Callable[[Loader, int, int], np.ndarray]


def test_workers_make_no_difference(
    mice: RecordIndex, open_loader: Open, pixels_of: Pixels
) -> None:
    sampler = BatchSampler(mice, Config(BATCH_SIZE=5), training=True, seed=4)
    alone = pixels_of(open_loader("portable", sampler), 0, 6)
    for workers in (1, 2):
        assert np.array_equal(
            pixels_of(open_loader("portable", sampler, threads=workers), 0, 6), alone
        )


def test_workers_outlive_a_pass_and_any_range_can_follow(
    mice: RecordIndex, open_loader: Open, pixels_of: Pixels
) -> None:
    sampler = BatchSampler(mice, Config(BATCH_SIZE=4), training=True, seed=4)
    loader = open_loader("portable", sampler, threads=2)
    whole = pixels_of(loader, 0, 6).reshape(6, 4, 256, 256, 3)
    assert np.array_equal(pixels_of(loader, 3, 6), whole[3:].reshape(-1, 256, 256, 3))
    abandoned = loader.batches(0, 6)
    next(abandoned)
    assert np.array_equal(pixels_of(loader, 1, 3), whole[1:3].reshape(-1, 256, 256, 3))
    assert next(abandoned, None) is None


def test_opencv_threads_before_the_fork_do_no_harm(
    mice: RecordIndex, open_loader: Open, pixels_of: Pixels
) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        # Large enough for OpenCV to start its threads.
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)
        sampler = BatchSampler(mice, Config(BATCH_SIZE=4), training=True, seed=4)
        assert pixels_of(open_loader("portable", sampler, threads=1), 0, 2).any()
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_a_batch_is_its_plan_and_images(mice: RecordIndex, open_loader: Open) -> None:
    sampler = BatchSampler(mice, Config(BATCH_SIZE=5), training=True, seed=4)
    (batch,) = open_loader("portable", sampler).batches(2, 3)
    plan = sampler.plan(2)
    assert batch.images.shape == (5, 256, 256, 3)
    assert batch.images.dtype == torch.uint8
    for name in ("keypoints", "visibility", "sigmas", "crop_to_image", "area", "crop_area"):
        assert np.array_equal(getattr(batch, name).numpy(), getattr(plan, name)), name
    assert batch.instance.tolist() == plan.instances.tolist()
    assert len(batch) == 5
    assert isinstance(batch.to("cpu"), Batch)
    assert batch.to("cpu").images.data_ptr() == batch.images.data_ptr()


def test_colours_are_rgb(index_of: Callable, configure: Make, open_loader: Open) -> None:
    from fasthg.data.records.schema import Record

    image = np.zeros((80, 90, 3), np.uint8)
    image[..., 2] = 200
    record = Record(
        encoded=cv2.imencode(".png", image)[1].tobytes(),
        width=90,
        height=80,
        bbox=np.float32([[0.2, 0.2, 0.8, 0.8]]),
        keypoints=np.full((1, 1, 2), 0.5, np.float32),
    )
    sampler = BatchSampler(index_of([record]), configure(parts=1), training=False, seed=0)
    (batch,) = open_loader("portable", sampler).batches(0, 1)
    assert (batch.images == torch.tensor([200, 0, 0], dtype=torch.uint8)).all()


def test_closing_ends_the_workers(mice: RecordIndex) -> None:
    loader = opencv_loader.PortableLoader(BatchSampler(mice, Config(), training=True, seed=0), 2)
    running = loader.batches(0, 100)
    next(running)
    workers = list(loader._data._iterator._workers)  # type: ignore[union-attr]
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.batches(0, 1))


def test_workers_shrink_to_the_shared_memory(
    mice: RecordIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch = 8 * 256 * 256 * 3
    usage = type("usage", (), {"free": batch * 3 * 2 + 5})
    monkeypatch.setattr(opencv_loader.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(opencv_loader.os.path, "isdir", lambda _: True)
    sampler = BatchSampler(mice, Config(BATCH_SIZE=8), training=True, seed=0)
    assert opencv_loader.PortableLoader(sampler, 6).workers == 2
    assert "shm-size" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_file_is_one_line(
    tmp_path: Path, configure: Make, open_loader: Open, workers: int
) -> None:
    (path,) = write_dataset(tmp_path, seed=1, frames={"train": 2}, size=(200, 160))
    index = RecordIndex.build(path, 7)
    path.unlink()
    sampler = BatchSampler(index, configure(), training=True, seed=0)
    with pytest.raises(DataError, match="train_dataset-00000-of-00001 record") as caught:
        next(open_loader("portable", sampler, threads=workers).batches(0, 1))
    assert "\n" not in str(caught.value)


def test_the_choice_of_a_loader(mice: RecordIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    from fasthg.data import loader as module

    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert loader_choice(Config(), cpu)[0] == "portable"
    assert loader_choice(Config(LOADER="dali"), cpu) == ("dali", "LOADER is dali")
    monkeypatch.setattr(module, "_dali_installed", lambda: True)
    assert loader_choice(Config(), gpu)[0] == "dali"
    monkeypatch.setattr(module, "_dali_installed", lambda: False)
    assert loader_choice(Config(), gpu)[0] == "portable"
    assert "fasthg[dali]" in loader_choice(Config(), gpu)[1]

    sampler = BatchSampler(mice, Config(), training=True, seed=0)
    made = make_loader(sampler, Config(NUM_INPUT_THREADS=64), cpu)
    assert isinstance(made, opencv_loader.PortableLoader)
    assert made.workers <= module.available_cores()
    made.close()
    with pytest.raises(ConfigError, match="'tf' is not a loader"):
        make_loader(sampler, Config(), cpu, "tf")


@pytest.mark.slow
def test_a_worker_that_dies_between_passes_is_replaced(
    mice: RecordIndex, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = BatchSampler(mice, Config(), training=True, seed=0)
    loader = opencv_loader.PortableLoader(sampler, 1)
    try:
        wanted = [batch.images for batch in loader.batches(0, 2)]
        (worker,) = loader._data._iterator._workers  # type: ignore[union-attr]
        worker.kill()
        worker.join()
        got = [batch.images for batch in loader.batches(0, 2)]
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert "an input worker was killed" in caplog.text
    finally:
        loader.close()


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_replaced(
    mice: RecordIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader = opencv_loader.PortableLoader(
        BatchSampler(mice, Config(), training=True, seed=0), workers=1
    )
    try:
        wanted = [batch.images for batch in loader.batches(0, 2)]
        start, errors = loader._start, [ConnectionResetError(104, "reset"), EOFError()]

        def torn(rendered: Iterator[Any]) -> Iterator[Any]:
            if errors:
                raise errors.pop()
            yield from rendered

        monkeypatch.setattr(loader, "_start", lambda *steps: torn(start(*steps)))
        got = [batch.images for batch in loader.batches(0, 2)]
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert not errors and caplog.text.count("an input worker was killed") == 2
    finally:
        loader.close()


def test_an_error_in_a_worker_is_no_kill(
    mice: RecordIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str | None:
        raise RuntimeError("planted")

    monkeypatch.setattr(opencv_loader.CropRenderer, "render", fail)
    loader = opencv_loader.PortableLoader(BatchSampler(mice, Config(), training=True, seed=0), 1)
    try:
        with pytest.raises(RuntimeError, match="planted"):
            next(loader.batches(0, 2))
        assert "killed" not in caplog.text
    finally:
        loader.close()


INTERRUPTED = """
import sys, time
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.sampler import BatchSampler
from fasthg.data.opencv_loader import PortableLoader

cfg = Config(BATCH_SIZE=int(sys.argv[2]), INPUT_SIZE=64, HEATMAP_SIZE=16)
sampler = BatchSampler(RecordIndex.build(sys.argv[1], 7), cfg, training=True, seed=0)
loader = PortableLoader(sampler, 2)
try:
    for step, _ in enumerate(loader.batches(0, 10**6)):
        if step == 1:
            time.sleep(float(sys.argv[3]))
            pids = [str(worker.pid) for worker in loader._data._iterator._workers]
            print(*pids, flush=True)
except KeyboardInterrupt:
    loader.close()
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_leaves_no_worker_and_no_traceback(mice: RecordIndex, repository: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, mice.files[0], "8", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=repository,
        start_new_session=True,
    )
    try:
        assert run.stdout is not None
        workers = [int(pid) for pid in run.stdout.readline().split()]
        assert len(workers) == 2
        os.killpg(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=30)
    finally:
        run.kill()
    assert run.returncode == 130
    assert errors == ""
    _all_gone(workers)


LEFT_OPEN = """
import sys
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import PortableLoader
from fasthg.data.sampler import BatchSampler

cfg = Config(BATCH_SIZE=4, INPUT_SIZE=64, HEATMAP_SIZE=16)
sampler = BatchSampler(RecordIndex.build([sys.argv[1]], 7), cfg, training=True, seed=0)
sys.kept = loader = PortableLoader(sampler, 2)  # which nothing collects
next(loader.batches(0, 10**6))
print(*(worker.pid for worker in loader._data._iterator._workers))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked there")
def test_a_process_that_leaves_a_loader_open_ends(mice: RecordIndex) -> None:
    """One of multiprocessing, which waits for its children and runs no `atexit`."""
    run = forked.python(LEFT_OPEN, mice.files[0])
    status, out, errors = run.ended(60)
    assert (status, errors) == (0, "")
    workers = [int(pid) for pid in out.split()]
    assert len(workers) == 2
    _all_gone(workers)


def _all_gone(workers: list[int]) -> None:
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers learn of it from Linux")
def test_a_loader_that_is_killed_takes_its_workers_along(
    mice: RecordIndex, repository: Path
) -> None:
    """With batches lying ready that fill the pipe, so that the workers wait to hand them over."""
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, mice.files[0], "160", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=repository,
    )
    try:
        assert run.stdout is not None
        workers = [int(pid) for pid in run.stdout.readline().split()]
        assert len(workers) == 2
    finally:
        run.kill()
        run.wait()
    _all_gone(workers)


def test_workers_outlive_the_thread_that_started_them(
    mice: RecordIndex, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = Config(BATCH_SIZE=4, INPUT_SIZE=64, HEATMAP_SIZE=16)
    loader = opencv_loader.PortableLoader(BatchSampler(mice, cfg, training=True, seed=0), 1)
    try:
        running = loader.batches(0, 8)
        thread = threading.Thread(target=next, args=(running,))
        thread.start()
        thread.join()
        (worker,) = loader._data._iterator._workers  # type: ignore[union-attr]
        # A signal of the kernel would arrive here, long before the pass ends.
        worker.join(0.3)
        assert worker.is_alive()
        assert len(list(running)) == 7
        assert loader._data._iterator._workers == [worker]  # type: ignore[union-attr]
        assert "killed" not in caplog.text
    finally:
        loader.close()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGCHLD is a POSIX signal")
def test_a_users_handler_of_sigchld_stays_and_a_dead_worker_raises_nothing_elsewhere(
    mice: RecordIndex, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: calls.append(number))
    # torch installs its handler, which calls the one before, once in a process.
    signal_handling._SIGCHLD_handler_set = False
    cfg = Config(BATCH_SIZE=4, INPUT_SIZE=64, HEATMAP_SIZE=16)
    loader = opencv_loader.PortableLoader(BatchSampler(mice, cfg, training=True, seed=0), 1)
    try:
        running = loader.batches(0, 8)
        next(running)
        (worker,) = loader._data._iterator._workers  # type: ignore[union-attr]
        worker.kill()
        # As inside a training step: torch's own handler would raise RuntimeError here.
        deadline = time.monotonic() + 30
        while not calls and time.monotonic() < deadline:
            time.sleep(0.01)
        assert calls
        assert len(list(running)) == 7
        assert "an input worker was killed" in caplog.text
    finally:
        loader.close()
        signal.signal(signal.SIGCHLD, before)


_LEFT_ALONE = """
import os, socket, time
from multiprocessing import resource_sharer
from fasthg.data.opencv_loader import _start_worker

_start_worker(os.getppid(), 0)
resource_sharer.DupFd(0)  # what hands over a batch's memory; its thread waits for the parent
parent = socket.socket(socket.AF_UNIX)
parent.connect(resource_sharer._resource_sharer._address)
parent.close()
time.sleep(0.5)
raise ValueError("a fault of its own")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sockets of the file system")
def test_a_worker_says_nothing_of_a_parent_that_ends_while_it_takes_a_batch():
    done = subprocess.run([sys.executable, "-c", _LEFT_ALONE], capture_output=True, text=True)
    assert "ValueError: a fault of its own" in done.stderr
    assert "resource_sharer" not in done.stderr

"""Training as a user has it: loader and step together, two mice in frames of 1024x570."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache

import networks
import pytest
from race import race
from reference.loader import reference_loader

from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import available_cores, make_loader
from fasthg.data.prefetch import Prefetcher
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.model import build_model
from fasthg.train.step import TrainStep

WORKERS = 4  # of the recipe, as NUM_INPUT_THREADS of MARS


class Ours:
    """fasthg's loader and step; counts the seconds that a step waited for its batch."""

    def __init__(self, cfg, index, device):
        self.loader = make_loader(BatchSampler(index, cfg, training=True, seed=0), cfg, device)
        self.batches = Prefetcher(self.loader.batches(0, 10**9), device)
        self.step = TrainStep(cfg, build_model(cfg).to(device), device)
        self.count, self.waited = 0, 0.0

    def __call__(self):
        batch = next(self.batches)
        self.waited += self.batches.waited if self.count else 0.0  # the workers' start
        self.step(batch, self.count)
        self.count += 1


def figures(run, seconds, **chosen):
    found = networks.step_figures(run, seconds, **chosen)
    if isinstance(run, Ours):
        share = run.waited / max(run.count - 1, 1) / seconds
        found["waiting for data"] = float(f"{share:.2g}")
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@race(
    *(*networks.RIVALS, "fasthg"),
    rounds=lambda device: 3 if device.type == "cpu" else 5,
    # On a GPU so many that the batches which lie ready, 8 of the recipe, do not count.
    calls=lambda device: 1 if device.type == "cpu" else 60,
    cool=False,
    apart=True,
    figures=figures,
    stacks=[2, 8],
    batch=[8, 32, 64],
)
def bench_end_to_end(device, stacks, batch):
    networks.leave_out(device, batch)
    with tempfile.TemporaryDirectory() as folder:
        files = write_dataset(folder, seed=0, frames={"train": 48}, size=(1024, 570))
        index = RecordIndex.build(files, 7)
        cfg = networks.config(stacks, batch, NUM_INPUT_THREADS=available_cores())
        # One for all rivals of a process: their workers would stand in each other's way.
        given = cache(lambda: iter(reference_loader(index, cfg, WORKERS)))
        found = networks.rivals(cfg, device, lambda one: lambda: one.step(*next(given())))
        with contextlib.ExitStack() as stack:

            def ours():
                made = Ours(cfg, index, device)
                stack.callback(made.loader.close)
                return made

            found["fasthg"] = lambda: networks.weighed(ours)
            yield found

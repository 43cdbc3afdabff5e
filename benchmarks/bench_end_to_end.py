"""Training as a user has it: loader and step together, two mice in frames of 1024x570."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache

import networks
import pytest
from compare import compare
from reference.loader import reference_loader

from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import available_cores, make_loader
from fasthg.data.prefetch import Prefetcher
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.model import build_model
from fasthg.training.step import TrainStep

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


def end_to_end_figures(run, seconds, **values):
    figures = networks.step_figures(run, seconds, **values)
    if isinstance(run, Ours):
        share = run.waited / max(run.count - 1, 1) / seconds
        figures["waiting for data"] = float(f"{share:.2g}")
    return figures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@compare(
    *(*networks.RIVALS, "fasthg"),
    rounds=(3, 5),
    # On a GPU so many that the 8 batches that the recipe has ready do not count.
    calls=(1, 60),
    cold=False,
    own_process=True,
    figures=end_to_end_figures,
    stacks=[2, 8],
    batch=[8, 32, 64],
)
def bench_end_to_end(device, stacks, batch):
    networks.skip_large(device, batch)
    with tempfile.TemporaryDirectory() as folder:
        files = write_dataset(folder, seed=0, frames={"train": 48}, size=(1024, 570))
        index = RecordIndex.build(files, 7)
        cfg = networks.config(stacks, batch, NUM_INPUT_THREADS=available_cores())
        batches = cache(lambda: iter(reference_loader(index, cfg, WORKERS)))
        providers = networks.rivals(cfg, device, lambda one: lambda: one.step(*next(batches())))
        with contextlib.ExitStack() as stack:

            def ours():
                made = Ours(cfg, index, device)
                stack.callback(made.loader.close)
                return made

            yield providers | {"fasthg": ours}

"""Loading alone: stock augmentation, two mice in frames of 1024x570; a call makes a batch of 32.

The reference recipe also renders its targets, because there they are part of loading; in fasthg
the loss does that.
"""

from __future__ import annotations

import importlib.util
import tempfile

import pytest
from compare import compare
from reference.loader import reference_loader

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.loader import available_cores, loader_choice, make_loader
from fasthg.data.sampler import BatchSampler
from fasthg.data.synthetic.dataset import write_dataset

BATCH, WORKERS, CORES = 32, 4, available_cores()
# Workers finish at much the same time: a round takes whole cycles of all of them.
CALLS = 2 * max(WORKERS, CORES)


class Anew:
    """Takes batches of a pass that begins anew for each round.

    So the loader of another provider makes nothing ahead meanwhile.
    """

    def __init__(self, batches, *arguments):
        self.start = lambda: batches(*arguments)

    def before(self):
        self.batches = self.start()
        for _ in range(CALLS // 2):
            next(self.batches)

    def __call__(self):
        return next(self.batches)

    def after(self):
        self.batches.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@compare(
    *("reference", "reference, equal cores", "portable", "dali", "fasthg"),
    rounds=(5, 5),
    calls=(CALLS, CALLS),
    figures=lambda run, seconds: {"instances/s": round(BATCH / seconds), "cores": CORES},
)
def bench_loader(device):
    with tempfile.TemporaryDirectory() as folder:
        files = write_dataset(folder, seed=0, frames={"train": 48}, size=(1024, 570))
        index = RecordIndex.build(files, 7)
        cfg = Config(BATCH_SIZE=BATCH, NUM_INPUT_THREADS=CORES)

        def reference(workers):
            yield from reference_loader(index, cfg, workers)

        def ours(kind):
            loader = make_loader(BatchSampler(index, cfg, training=True, seed=0), cfg, device, kind)
            try:
                yield from loader.batches(0, 10**9)
            finally:
                loader.close()

        chosen = loader_choice(cfg, device)[0]
        providers = {"portable": Anew(ours, "portable"), "dali": Anew(ours, "dali")}
        if importlib.util.find_spec("nvidia.dali") is None:
            providers["dali"] = "DALI is not installed"
        providers |= {"fasthg": providers[chosen], chosen: "the loader that fasthg takes here"}
        providers["reference"] = Anew(reference, WORKERS)
        providers["reference, equal cores"] = Anew(reference, CORES)
        if CORES == WORKERS:
            providers["reference"] = f"{CORES} cores: the same as with equal cores"
        yield providers

"""Loading alone: stock augmentation, two mice in frames of 1024x570, the cores at hand.

Rates count instances that arrive as finished batches of 32, in a steady state. The recipe of MARS
also renders its targets, because there they are part of loading; here the loss does that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fasthg.config import Config
from fasthg.data.index import RecordIndex
from fasthg.data.loader import available_cores, make_loader
from fasthg.data.plan import Planner
from fasthg.data.synthetic import write_dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reference.loader import MarsRecipe  # noqa: E402

BATCH, BATCHES, ROUNDS = 32, 6, 5
# On a CPU: how many times faster the portable loader is at least.
FLOORS = {"MARS recipe": 1.2, "dali": 1.3}
PROVIDERS = ("MARS recipe", "portable", "dali")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> RecordIndex:
    folder = tmp_path_factory.mktemp("frames")
    files = write_dataset(folder, seed=0, frames={"train": 48}, size=(1024, 570))
    return RecordIndex.build(files, 7)


@pytest.fixture(scope="module")
def providers(index: RecordIndex) -> Iterator[dict[str, Callable[[], object]]]:
    """Each makes the next BATCHES batches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = Config(BATCH_SIZE=BATCH, NUM_INPUT_THREADS=available_cores())
    planner = Planner(index, cfg, training=True, seed=0)
    recipe = MarsRecipe(index, cfg, available_cores())
    run: dict[str, Callable[[], object]] = {"MARS recipe": lambda: list(recipe.batches(BATCHES))}
    loaders = []
    for kind in ("portable", "dali"):
        if kind == "dali":
            pytest.importorskip("nvidia.dali", reason="DALI is not installed")
        loaders.append(make_loader(planner, cfg, device, kind))
        run[kind] = _advance(loaders[-1])
    yield run
    recipe.close()
    for loader in loaders:
        loader.close()


def _advance(loader) -> Callable[[], object]:
    """Continues one long pass, so that what is made ahead is not thrown away in between."""
    running = loader.batches(0, 10**9)
    return lambda: [next(running) for _ in range(BATCHES)]


@pytest.mark.parametrize("provider", PROVIDERS)
def bench_loader(benchmark, providers, provider):
    run = providers[provider]
    run()
    benchmark.pedantic(run, rounds=ROUNDS)
    if benchmark.stats is not None:
        median = benchmark.stats.stats.median
        benchmark.extra_info["instances/s"] = round(BATCH * BATCHES / median, 1)
        benchmark.extra_info["cores"] = available_cores()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the floors are those of a CPU")
def bench_loader_ratio(bench, providers):
    medians = bench.medians(providers, rounds=ROUNDS)
    print({name: f"{BATCH * BATCHES / seconds:.0f}/s" for name, seconds in medians.items()})
    ratios = {name: medians[name] / medians["portable"] for name in FLOORS}
    slow = {name: (ratios[name], FLOORS[name]) for name in FLOORS if ratios[name] < FLOORS[name]}
    assert not slow, f"times faster than each provider, and the floor: {slow}"

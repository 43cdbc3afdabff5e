"""Loading alone: stock augmentation, two mice in frames of 1024x570, the cores at hand.

Rates count instances that arrive as finished batches of 32, in a steady state. The recipe of MARS
also renders its targets, because there they are part of loading; here the loss does that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from reference.loader import MarsRecipe

from fasthg.config import Config
from fasthg.data.index import RecordIndex
from fasthg.data.loader import available_cores, make_loader
from fasthg.data.plan import Planner
from fasthg.data.synthetic import write_dataset

BATCH, BATCHES, ROUNDS = 32, 10, 5
# Taken before the clock starts: the batches that lie ready from an idle time do not count.
READY = 6
# On a CPU: how many times faster the portable loader is at least.
FLOORS = {"MARS recipe": 1.2, "dali": 1.1}
PROVIDERS = ("MARS recipe", "portable", "dali")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> RecordIndex:
    folder = tmp_path_factory.mktemp("frames")
    files = write_dataset(folder, seed=0, frames={"train": 48}, size=(1024, 570))
    return RecordIndex.build(files, 7)


@pytest.fixture(scope="module")
def providers(index: RecordIndex) -> Iterator[dict[str, Callable[[int], object]]]:
    """Each makes as many batches as it is told."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = Config(BATCH_SIZE=BATCH, NUM_INPUT_THREADS=available_cores())
    planner = Planner(index, cfg, training=True, seed=0)
    recipe = MarsRecipe(index, cfg, available_cores())
    run: dict[str, Callable[[int], object]] = {
        "MARS recipe": lambda count: list(recipe.batches(count))
    }
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


def _advance(loader) -> Callable[[int], object]:
    """Continues one long pass, so that what is made ahead is not thrown away in between."""
    running = loader.batches(0, 10**9)
    return lambda count: [next(running) for _ in range(count)]


@pytest.mark.parametrize("provider", PROVIDERS)
def bench_loader(benchmark, providers, provider):
    run = providers[provider]
    benchmark.pedantic(lambda: run(BATCHES), setup=lambda: run(READY) and None, rounds=ROUNDS)
    if benchmark.stats is not None:
        benchmark.extra_info["instances/s"] = round(BATCH * BATCHES / benchmark.stats.stats.median)
        benchmark.extra_info["cores"] = available_cores()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the floors are those of a CPU")
def bench_loader_ratio(providers):
    rates: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(ROUNDS):
        for name, run in providers.items():
            run(READY)
            start = time.perf_counter()
            run(BATCHES)
            rates[name].append(BATCH * BATCHES / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{name}: {min(values):.0f} / {statistics.median(values):.0f} / {max(values):.0f} /s")
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {name: median["portable"] / median[name] for name in FLOORS}
    slow = {name: (ratios[name], FLOORS[name]) for name in FLOORS if ratios[name] < FLOORS[name]}
    assert not slow, f"times faster than each provider, and the floor: {slow}"

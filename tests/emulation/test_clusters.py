"""Clusters of blocks by csrc/cluster.cuh under the emulation, and the faults that it must see."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

import pytest
import torch
from emulated_extension import ORDERS

pytestmark = pytest.mark.slow  # a minute to compile

SOURCE = Path(__file__).with_name("cluster_exchange.cu")
# Those of the two kernels that are right; each says what it is for.
BARRIERS = [
    number
    for number, line in enumerate(SOURCE.read_text(encoding="utf-8").splitlines(), 1)
    if re.match(r"\s*cluster_(?:sync|wait)\(\);  // ", line)
]
# The kernels of cluster_exchange.cu.
PUSH, PULL, LATE, UNPAIRED = range(4)
THREADS = 64


@contextlib.contextmanager
def device(switches, capability=9, largest_cluster=16, most_shared=227 << 10):
    """Another device than an H200 in a `with` block."""
    switches.emulation_device(capability, largest_cluster, most_shared)
    try:
        yield
    finally:
        switches.emulation_device(9, 16, 227 << 10)


def exchange(switches, way, blocks, size, order="natural"):
    """The result of each block, (blocks, THREADS), and what should be it; or what was refused."""
    function = switches.cluster_exchange
    function.restype = ctypes.c_char_p
    x = torch.arange(blocks * THREADS, dtype=torch.float32).view(blocks, THREADS)
    y = torch.full_like(x, torch.nan)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y)]
    switches.emulation_order(ORDERS.index(order))
    refusal = function(way, *pointers, blocks, THREADS, size)
    if refusal:
        return refusal.decode()
    clusters = x.view(-1, size, THREADS)
    return y, clusters.roll(1 if way == PUSH else -1, dims=1).view_as(x)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("blocks", "size"), [(1, 1), (6, 2), (16, 16)])
@pytest.mark.parametrize("way", [PUSH, PULL])
def test_blocks_of_a_cluster_exchange_values(switches, way, blocks, size, order):
    y, expected = exchange(switches, way, blocks, size, order)
    assert torch.equal(y, expected)
    assert switches.emulation_cluster() == size


def test_the_barriers_are_found():
    assert len(BARRIERS) == 4


@pytest.mark.parametrize("line", BARRIERS)
def test_a_barrier_left_out_shows(switches, line):
    switches.emulation_leave_out(SOURCE.name.encode(), line, False)
    try:
        wrong = []
        for way in (PUSH, PULL):
            for order in ORDERS:
                result = exchange(switches, way, 6, 3, order)
                wrong.append(isinstance(result, str) or not torch.equal(*result))
        assert any(wrong)
    finally:
        switches.emulation_leave_out(b"", 0, False)


def test_a_write_to_a_block_that_has_returned_shows(switches):
    refusals = [exchange(switches, LATE, 4, 4, order) for order in ORDERS]
    assert "emulation: a write to the shared memory of a block that has returned" in refusals


def test_a_wait_without_an_arrival_shows(switches):
    assert "one arrival before each wait" in exchange(switches, UNPAIRED, 2, 2)


def test_what_a_device_refuses(switches):
    count = switches.cluster_count
    assert [count(size) for size in (8, 16)] == [16, 8]
    assert "do not fill the last cluster" in exchange(switches, PUSH, 5, 2)
    with device(switches, largest_cluster=8):
        assert [count(size) for size in (8, 16)] == [16, 0]
        assert "refuses a cluster" in exchange(switches, PUSH, 16, 16)
    with device(switches, capability=8):
        assert count(8) == 0

from __future__ import annotations

import pytest
import torch
from op_testing import check_registration
from pairwise import covering

from fasthg.ops import moving_statistics, reference, update_statistics

ERRORS = {torch.float64: 1e-15, torch.float32: 3e-7}
COUNTS = [0, 1, 3, 64, 1021, 5000]


@pytest.fixture
def buffers(device):
    """running, batch, correction and weight."""

    def make(count, dtype=torch.float32, seed=0, weight=0.3):
        random = torch.Generator().manual_seed(seed)
        made = torch.randn(3, count, generator=random, dtype=torch.float64).to(device, dtype)
        return *(row.clone() for row in made), torch.tensor(weight, dtype=dtype, device=device)

    return make


@pytest.mark.parametrize(
    ("dtype", "count", "weight"), covering(list(ERRORS), COUNTS, [0.0, 0.0003, 0.9, 1.0])
)
def test_against_torch(buffers, dtype, count, weight):
    error = ERRORS[dtype]
    running, batch, correction, share = buffers(count, dtype, weight=weight)
    exact = running.to(torch.float64, copy=True)
    read = [t.clone() for t in (batch, correction, share)]
    moving_statistics(running, batch, correction, share)
    expected = exact + share.double() * (batch.double() * correction.double() - exact)
    torch.testing.assert_close(running.double(), expected, rtol=2 * error, atol=4 * error)
    if not weight:
        assert torch.equal(running, exact.to(dtype))
    for after, before in zip((batch, correction, share), read, strict=True):
        assert torch.equal(after, before)


def test_equals_the_layers_one_by_one(buffers, device):
    """The layout of flat.py: a mean, a variance, and gaps that stay 0."""
    count, decay = 18, 0.9
    running, batch, _, _ = buffers(256)
    layers = [running[at : at + 37] for at in (0, 64, 128, 192)]
    batch_stats = [batch[at : at + 37].abs_() for at in (0, 64, 128, 192)]
    gaps = torch.ones(256, dtype=torch.bool, device=device)
    for at in (0, 64, 128, 192):
        gaps[at : at + 37] = False
    running[gaps] = batch[gaps] = 0.0
    expected = [t.clone() for t in layers]
    for mean in (0, 2):
        pair = expected[mean : mean + 2]
        update_statistics(*pair, batch_stats[mean], batch_stats[mean + 1], count, decay)
    correction = torch.ones(256, device=device)
    correction[64:128] = correction[192:] = count / (count - 1)
    moving_statistics(running, batch, correction, torch.tensor([1 - decay], device=device))
    for actual, right in zip(layers, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=3e-7, atol=3e-7)
    assert not running[gaps].any()


def test_nan_stays_where_it_is(buffers):
    running, batch, correction, weight = buffers(100)
    batch[7] = torch.nan
    moving_statistics(running, batch, correction, weight)
    assert running.isnan().nonzero().tolist() == [[7]]


def test_buffers_that_begin_anywhere(buffers):
    """A buffer may be a slice of a larger one, as the statistics after the weights are."""
    *whole, weight = buffers(1028)
    sliced = [t.clone()[1:] for t in whole]
    dense = [t[1:].clone() for t in whole]
    moving_statistics(*sliced, weight)
    moving_statistics(*dense, weight)
    torch.testing.assert_close(sliced[0], dense[0], rtol=3e-7, atol=3e-7)


def test_threads_and_runs_do_not_change_a_bit(buffers, on_threads):
    running, batch, correction, weight = buffers(400_003)

    def run():
        result = running.clone()
        moving_statistics(result, batch, correction, weight)
        return result

    first, *others = on_threads(run)
    assert all(torch.equal(first, other) for other in others)


def test_opcheck(buffers):
    torch.library.opcheck(torch.ops.fasthg.moving_statistics, buffers(70))


@pytest.mark.parametrize("dtype", ERRORS)
def test_registration_and_the_reference(buffers, monkeypatch, dtype):
    running, *read = buffers(70, dtype)
    check_registration(torch.ops.fasthg.moving_statistics, (running.clone(), *read))
    native, plain, fallback = (running.clone() for _ in range(3))
    moving_statistics(native, *read)
    reference.moving_statistics(plain, *read)
    monkeypatch.setattr("fasthg.ops._extension.has_kernel", lambda tensor: False)
    moving_statistics(fallback, *read)
    torch.testing.assert_close(native, plain)
    assert torch.equal(fallback, plain)


@pytest.mark.slow
def test_compiles_without_a_graph_break(buffers):
    running, *read = buffers(70)
    other = running.clone()

    def step(running, batch, correction, weight):
        moving_statistics(running, batch * 2, correction, weight)
        return running.sum()

    total = torch.compile(step, fullgraph=True, backend="inductor")(running, *read)
    torch.testing.assert_close(total, step(other, *read))
    torch.testing.assert_close(running, other)


def test_a_backward_through_old_statistics_is_refused(buffers):
    running, *read = buffers(5)
    x = torch.ones(5, device=running.device, requires_grad=True)
    product = (x * running).sum()
    moving_statistics(running, *read)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.ones(5).half(), r"running: expected float32 or float64, got torch\.float16"),
        (0, torch.ones(10)[::2], r"running: expected \(5,\) without gaps, got \(5,\) with strides"),
        (1, torch.ones(4), r"batch: expected \(5,\) without gaps, got \(4,\)"),
        (1, torch.ones(1).expand(5), r"batch: expected \(5,\) without gaps"),
        (2, torch.ones(5).double(), r"correction: expected torch\.float32, got torch\.float64"),
        (3, torch.ones(2), "weight: expected one value, got"),
        (3, torch.ones((), device="meta"), "weight is on meta, running on cpu: move them to one"),
    ],
)
def test_what_is_refused(position, value, message):
    arguments = [torch.ones(5), torch.ones(5), torch.ones(5), torch.ones(())]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        moving_statistics(*arguments)

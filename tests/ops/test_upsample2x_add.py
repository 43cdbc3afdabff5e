from __future__ import annotations

import pytest
import torch
from op_testing import LAYOUTS, channels_last, check_registration, dense, some_channels
from pairwise import covering
from torch.nn import functional

from fasthg.ops import reference, upsample2x_add

# dtype and the relative error of one rounding
TOLERANCES = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# those of low: vectors of channels, and where one would not divide them
SHAPES = [(2, 8, 4, 5), (3, 5, 7, 3), (1, 1, 1, 1), (2, 67, 1, 2), (1, 256, 3, 3), (2, 16, 40, 44)]
EMPTY = [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)]


def make(shape, dtype, device="cpu", layout=channels_last):
    """low, high and the gradient of y."""
    random = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    large = (batch, channels, 2 * height, 2 * width)
    low, high, grad_y = (
        layout(torch.randn(size, generator=random, dtype=torch.float64).to(dtype)).to(device)
        for size in (shape, large, large)
    )
    return low.requires_grad_(), high.requires_grad_(), grad_y


def plain(low, high):
    return high + functional.interpolate(low, scale_factor=2, mode="nearest")


@pytest.mark.parametrize(
    ("dtype", "shape", "layout", "threads"), covering(list(TOLERANCES), SHAPES, LAYOUTS, [1, 2])
)
def test_against_torch(device, set_threads, dtype, shape, layout, threads):
    set_threads(threads)
    error = TOLERANCES[dtype]
    low, high, grad_y = make(shape, dtype, device, layout)
    y = upsample2x_add(low, high)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    exact = [t.detach().double().requires_grad_() for t in (low, high)]
    expected = plain(*exact)
    torch.testing.assert_close(y.double(), expected, rtol=error, atol=1e-7 * error)
    grad_low, grad_high = torch.autograd.grad(y, (low, high), grad_y)
    right, _ = torch.autograd.grad(expected, exact, grad_y.double())
    # Three roundings of sums as large as 16 or, in half types, one of the result.
    torch.testing.assert_close(grad_low.double(), right, rtol=error, atol=16 * min(error, 2.0**-24))
    assert grad_low.dtype == dtype and torch.equal(grad_high, grad_y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_at_most_twice_as_far_as_torch(device, dtype):
    low, high, grad_y = make((2, 16, 16, 16), dtype, device)
    exact = [t.detach().double().requires_grad_() for t in (low, high)]
    results = []
    for function, inputs, grad_output in (
        (upsample2x_add, (low, high), grad_y),
        (plain, (low, high), grad_y),
        (plain, exact, grad_y.double()),
    ):
        y = function(*inputs)
        results.append((y, *torch.autograd.grad(y, inputs, grad_output)))
    for ours, theirs, expected in zip(*results, strict=True):
        distances = [float((t.double() - expected).detach().abs().max()) for t in (ours, theirs)]
        assert distances[0] <= 2 * distances[1]


def test_sums_in_bfloat16_round_ties_to_even(device):
    """1 + 2^-8 lies midway between two neighbours of bfloat16, and so does 1 + 3 * 2^-8."""
    high = torch.tensor([1, 1 + 2.0**-7], dtype=torch.bfloat16, device=device)
    high = channels_last(high.repeat(9)[None, :, None, None].expand(1, 18, 2, 2))
    low = torch.full((1, 18, 1, 1), 2.0**-8, dtype=torch.bfloat16, device=device)
    y = upsample2x_add(low, high)
    assert y[0, :, 1, 1].tolist() == [1.0, 1 + 2.0**-6] * 9


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing_to_add(device, shape):
    low, high, grad_y = make(shape, torch.float32, device)
    y = upsample2x_add(low, high)
    assert y.shape == high.shape
    assert [g.shape for g in torch.autograd.grad(y, (low, high), grad_y)] == [low.shape, high.shape]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_incoming_gradient(device, layout):
    low, high, grad_y = make((2, 6, 4, 5), torch.float32, device, layout)
    for grad_output in (
        torch.tensor(2.0, device=device).expand(high.shape),  # stride 0, as .sum() sends
        torch.rand(6, device=device)[:, None, None].expand(high.shape),
        dense(grad_y),
        some_channels(grad_y),
    ):
        gradients = torch.autograd.grad(upsample2x_add(low, high), (low, high), grad_output)
        expected = torch.autograd.grad(plain(low, high), (low, high), grad_output)
        torch.testing.assert_close(gradients, expected)


def test_only_what_is_asked_for_is_computed():
    low, high, grad_y = make((2, 8, 4, 4), torch.float32)
    y = upsample2x_add(low.detach(), high)
    assert torch.equal(*torch.autograd.grad(y, high, grad_y), grad_y)
    y = upsample2x_add(low, high.detach())
    (grad_low,) = torch.autograd.grad(y, low, grad_y)
    torch.testing.assert_close(grad_low, reference.upsample2x_add_backward(grad_y))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fallback_equals_the_kernels(monkeypatch, dtype, layout):
    low, high, grad_y = make((3, 6, 5, 7), dtype, layout=layout)

    def run():
        y = upsample2x_add(low, high)
        return y, *torch.autograd.grad(y, (low, high), grad_y)

    native = run()
    monkeypatch.setattr("fasthg.ops._extension.has_kernel", lambda tensor: False)
    for actual, expected in zip(run(), native, strict=True):
        torch.testing.assert_close(actual, expected)
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_runs_do_not_change_a_bit(on_threads, dtype):
    low, high, grad_y = make((9, 24, 37, 21), dtype)

    def run():
        y = upsample2x_add(low, high)
        return y, *torch.autograd.grad(y, (low, high), grad_y)

    first, *others = on_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_nan_and_infinity_pass(device):
    low, high, _ = make((1, 2, 2, 2), torch.float32, device)
    with torch.no_grad():
        low[0, 0, 0, 0], high[0, 1, 3, 3] = torch.nan, torch.inf
    y = upsample2x_add(low, high)
    assert y[0, 0, :2, :2].isnan().all() and int(y.isnan().sum()) == 4
    assert y[0, 1, 3, 3] == torch.inf


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck_and_registration(device, layout):
    low, high, grad_y = make((2, 3, 2, 3), torch.float64, device, layout)
    assert torch.autograd.gradcheck(upsample2x_add, (low, high))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        low, high, grad_y = make((2, 3, 2, 3), dtype, device, layout)
        check_registration(torch.ops.fasthg.upsample2x_add, (low, high))
        check_registration(torch.ops.fasthg.upsample2x_add_backward, (grad_y,))


def test_opcheck(device):
    low, high, grad_y = make((2, 3, 2, 3), torch.float32, device)
    torch.library.opcheck(torch.ops.fasthg.upsample2x_add, (low, high))
    torch.library.opcheck(torch.ops.fasthg.upsample2x_add_backward, (grad_y,))


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        pytest.param("inductor", channels_last, marks=pytest.mark.slow),
        ("aot_eager", dense),
    ],
)
def test_compiles_without_a_graph_break(device, layout, backend):
    low, high, _ = make((2, 4, 3, 4), torch.float32, device, layout)

    def total(low, high):
        return upsample2x_add(low * 2, high).square().sum()

    def results(function):
        loss = function(low, high)
        return loss, *torch.autograd.grad(loss, (low, high))

    compiled = torch.compile(total, fullgraph=True, backend=backend)
    torch.testing.assert_close(results(compiled), results(total))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 8), r"low: expected \(batch, channels, height"),
        (torch.zeros(1, 1, 2, 2).int(), torch.zeros(1, 1, 4, 4), r"floating dtype, got torch\.int"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 5), r"expected \(1, 1, 4, 4\), got \(1, 1"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4).half(), r"low's torch\.float32, got"),
        (
            torch.zeros(1, 1, 2, 2),
            torch.zeros(1, 1, 4, 4, device="meta"),
            "move them to one device",
        ),
    ],
)
def test_what_is_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        upsample2x_add(low, high)

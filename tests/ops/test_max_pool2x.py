from __future__ import annotations

import itertools

import pytest
import torch
from op_testing import LAYOUTS, channels_last, check_registration, dense, some_channels
from pairwise import covering
from torch.nn import functional

from fasthg.ops import has_kernel, max_pool2x, max_pool2x_fork

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# vectors of channels, and where one would not divide them; odd sides
SHAPES = [
    (2, 16, 8, 10),
    (3, 5, 7, 11),
    (2, 67, 3, 2),
    (1, 256, 5, 5),
    (1, 1, 2, 2),
    (2, 16, 80, 88),
]
WITHOUT_RESULTS = [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 1, 4), (2, 3, 0, 4), (2, 3, 1, 1)]


def make(shape, dtype, device="cpu", layout=channels_last):
    """x, of few enough values for many ties, and the gradient of y."""
    random = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    x[::2] = (x[::2] * 2).round()
    grad_y = torch.randn(batch, channels, height // 2, width // 2, generator=random)
    x = layout(x.to(dtype)).to(device).requires_grad_()
    return x, channels_last(grad_y.to(device, dtype))


def plain(x):
    """torch's result and its index as ours: 2 * row + column.

    On the CPU: of float64 and an odd number of channels, channels last, torch's kernel for a GPU
    reads a misaligned address.
    """
    device, x = x.device, x.cpu()
    y, cell = functional.max_pool2d(x, 2, 2, return_indices=True)
    width = x.shape[-1]
    index = (cell // width % 2 * 2 + cell % width % 2).to(torch.uint8)
    return y.to(device), index.to(device)


@pytest.mark.parametrize(
    ("dtype", "shape", "layout", "threads"), covering(DTYPES, SHAPES, LAYOUTS, [1, 2])
)
def test_against_torch(device, set_threads, dtype, shape, layout, threads):
    """Nothing is rounded: every bit is torch's own."""
    set_threads(threads)
    x, grad_y = make(shape, dtype, device, layout)
    y, index = max_pool2x(x)
    expected, expected_index = plain(x)
    assert y.dtype == dtype and index.dtype == torch.uint8 and not index.requires_grad
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, index))
    assert torch.equal(y, expected) and torch.equal(index, expected_index)
    grad, expected_grad = (torch.autograd.grad(t, x, grad_y)[0] for t in (y, expected))
    assert grad.dtype == dtype and torch.equal(grad, expected_grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_of_special_values(device, dtype):
    values = (-torch.inf, -1.0, -0.0, 0.0, 1e-7, torch.inf, torch.nan, -torch.nan)
    cases = torch.tensor(list(itertools.product(values, repeat=4)), dtype=torch.float64)
    for channels in (1, 16):  # one by one, and in vectors
        x = cases.to(dtype).view(-1, channels, 2, 2).to(device)
        (y, index), (expected, expected_index) = max_pool2x(x), plain(x)
        assert torch.equal(index, expected_index)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(y.signbit() & ~y.isnan(), expected.signbit() & ~y.isnan())


@pytest.mark.parametrize(
    ("dtype", "shape", "layout", "native"), covering(DTYPES, SHAPES, LAYOUTS, [True, False])
)
def test_fork_adds_the_gradients_of_both_readers(monkeypatch, device, dtype, shape, layout, native):
    """Every bit is that of autograd's own sum of the two gradients."""
    if not native:
        monkeypatch.setattr("fasthg.ops._extension.has_kernel", lambda tensor: False)
    x, grad_y = make(shape, dtype, device, layout)
    grad_skip = -x.detach().cos()
    grad_skip[..., ::3] = -0.0
    skip, y = max_pool2x_fork(x)
    assert skip.data_ptr() == x.data_ptr() and torch.equal(y, plain(x)[0])
    (actual,) = torch.autograd.grad((skip, y), x, (grad_skip, grad_y))
    (of_y,) = torch.autograd.grad(max_pool2x(x)[0], x, grad_y)
    expected = grad_skip + of_y
    assert actual.dtype == dtype and torch.equal(actual, expected)
    assert torch.equal(actual.signbit(), expected.signbit())


def test_a_fork_does_the_same_work_under_a_profiler():
    """Otherwise a profile would show additions that no step has."""
    x, grad_y = make((2, 16, 8, 10), torch.float32)
    if not has_kernel(x):
        pytest.skip("plain torch adds the gradients itself")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(max_pool2x_fork(x), x, (x.detach(), grad_y))
    names = {event.name for event in profile.events()}
    assert "fasthg::max_pool2x_backward" in names and not {"aten::add", "aten::add_"} & names


@pytest.mark.parametrize("shape", WITHOUT_RESULTS)
def test_fork_with_nothing_to_pool(device, shape):
    x, grad_y = make(shape, torch.float32, device)
    skip, y = max_pool2x_fork(x)
    (actual,) = torch.autograd.grad((skip, y), x, (torch.ones_like(x), grad_y))
    assert torch.equal(actual, torch.ones_like(x))


def test_fork_with_one_reader(device):
    x, grad_y = make((2, 5, 6, 4), torch.float32, device)
    skip, y = max_pool2x_fork(x)
    assert torch.equal(torch.autograd.grad(skip, x, x.detach(), retain_graph=True)[0], x)
    (actual,) = torch.autograd.grad(y, x, grad_y)
    assert torch.equal(actual, torch.autograd.grad(max_pool2x(x)[0], x, grad_y)[0])
    with torch.no_grad():
        assert max_pool2x_fork(x)[0] is x
    assert not max_pool2x_fork(x.detach())[1].requires_grad


def test_fork_under_a_compiler(device):
    x, _ = make((2, 4, 8, 6), torch.float32, device)

    def total(x):
        skip, y = max_pool2x_fork(x * 2)
        return skip.cos().sum() + y.square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(x), x)[0] for f in (total, compiled)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", WITHOUT_RESULTS)
def test_nothing_to_pool(device, shape):
    x, grad_y = make(shape, torch.float32, device)
    y, index = max_pool2x(x)
    assert y.shape == index.shape == grad_y.shape and not y.numel()
    (gradient,) = torch.autograd.grad(y, x, grad_y)
    assert gradient.shape == shape and not gradient.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_incoming_gradient(device, layout):
    x, grad_y = make((2, 6, 7, 8), torch.float32, device, layout)
    for grad_output in (
        torch.tensor(2.0, device=device).expand(grad_y.shape),  # stride 0, as .sum() sends
        torch.rand(6, device=device)[:, None, None].expand(grad_y.shape),
        dense(grad_y),
        some_channels(grad_y),
    ):
        (actual,) = torch.autograd.grad(max_pool2x(x)[0], x, grad_output)
        (expected,) = torch.autograd.grad(functional.max_pool2d(x, 2, 2), x, grad_output)
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("dtype", "layout", "shape"),
    covering([torch.float32, torch.bfloat16], LAYOUTS, [(3, 6, 5, 7), (2, 3, 1, 4)]),
)
def test_the_fallback_equals_the_kernels(monkeypatch, dtype, layout, shape):
    x, grad_y = make(shape, dtype, layout=layout)

    def run():
        y, index = max_pool2x(x)
        return y, index, *torch.autograd.grad(y, x, grad_y)

    native = run()
    monkeypatch.setattr("fasthg.ops._extension.has_kernel", lambda tensor: False)
    for actual, expected in zip(run(), native, strict=True):
        assert torch.equal(actual, expected) and actual.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_runs_do_not_change_a_bit(on_threads, dtype):
    x, grad_y = make((9, 24, 75, 43), dtype)

    def run():
        y, index = max_pool2x(x)
        return y, index, *torch.autograd.grad(y, x, grad_y)

    first, *others = on_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_one_byte_a_result_is_kept_for_the_backward():
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    x, grad_y = make((2, 4, 8, 8), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        max_pool2x(x)
    assert sum(t.numel() * t.element_size() for t in kept) == grad_y.numel()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck_and_registration(device, layout):
    x, _ = make((2, 3, 5, 4), torch.float64, device, layout)
    # Far from ties, which have no derivative.
    distinct = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0)).double()
    x = layout(distinct.view(x.shape)).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: max_pool2x(x)[0], x)
    for dtype in DTYPES:
        x, grad_y = make((2, 3, 5, 4), dtype, device, layout)
        check_registration(torch.ops.fasthg.max_pool2x, (x,))
        index = max_pool2x(x)[1]
        check_registration(torch.ops.fasthg.max_pool2x_backward, (grad_y, index, None, 5, 4))
        check_registration(torch.ops.fasthg.max_pool2x_backward, (grad_y, index, x.detach(), 5, 4))


def test_opcheck(device):
    x, grad_y = make((2, 3, 5, 4), torch.float32, device)
    torch.library.opcheck(torch.ops.fasthg.max_pool2x, (x,))
    index = max_pool2x(x)[1]
    torch.library.opcheck(torch.ops.fasthg.max_pool2x_backward, (grad_y, index, x.detach(), 5, 4))


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        pytest.param("inductor", channels_last, marks=pytest.mark.slow),
        ("aot_eager", dense),
    ],
)
def test_compiles_without_a_graph_break(device, layout, backend):
    x, _ = make((2, 4, 7, 6), torch.float32, device, layout)

    def total(x):
        y, index = max_pool2x(x * 2)
        return y.square().sum() + index.sum()

    def results(function):
        loss = function(x)
        return loss, *torch.autograd.grad(loss, x)

    compiled = torch.compile(total, fullgraph=True, backend=backend)
    torch.testing.assert_close(results(compiled), results(total))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4, 4), r"x: expected \(batch, channels, height, width\), got \(3, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4).int(), r"expected a floating dtype, got torch\.int32"),
    ],
)
def test_what_is_refused(x, message):
    for operator in (max_pool2x, max_pool2x_fork):
        with pytest.raises(ValueError, match=message):
            operator(x)

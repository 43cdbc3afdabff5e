from __future__ import annotations

import sys

import pytest
import torch
from op_testing import LAYOUTS, channels_last, check_registration, dense, relative_error
from pairwise import covering
from torch.nn import functional

from fasthg.ops import conv3x3, has_kernel, reference

MODULE = sys.modules[conv3x3.__module__]
# dtype: relative error; float32 on a CPU is our kernel.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 3e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
# batch, in, out, height, width: tiles are 4 x 4, panels 16 channels, chunks 48 tiles
SHAPES = [
    (2, 32, 16, 8, 12),
    (3, 13, 7, 5, 3),
    (1, 1, 1, 1, 1),
    (2, 17, 33, 31, 6),
    (1, 16, 48, 29, 37),
    (2, 3, 16, 1, 23),
    (0, 8, 8, 4, 4),
    (2, 0, 3, 4, 4),
    (2, 3, 0, 4, 4),
    (2, 3, 4, 0, 4),
]


@pytest.fixture
def every_size(monkeypatch):
    """Our kernel for maps as well that torch convolves faster."""
    monkeypatch.setattr(MODULE, "FEWEST_TILES", 0)
    monkeypatch.setattr(MODULE, "MOST_PADDING", float("inf"))


def make(shape, dtype, device="cpu", layout=channels_last, weights=None):
    """x, weight, bias, and a gradient of y."""
    batch, inputs, outputs, height, width = shape
    random = torch.Generator().manual_seed(0)

    def tensor(*shape, dtype=dtype):
        values = torch.randn(shape, generator=random, dtype=torch.float64)
        return values.to(dtype).to(device)

    x, grad_y = (layout(tensor(batch, c, height, width)) for c in (inputs, outputs))
    weight = layout(tensor(outputs, inputs, 3, 3, dtype=weights or dtype))
    weight = weight / max(3 * inputs**0.5, 1)
    bias = tensor(outputs, dtype=weights or dtype)
    return [t.requires_grad_() for t in (x, weight, bias)], grad_y


def doubled(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


def plain(x, weight, bias=None, *, relu=False):
    if not x.numel() or not len(weight):  # which torch refuses in part
        y = x.new_zeros(len(x), len(weight), *x.shape[2:]) + x.sum() + weight.sum()
        y = y if bias is None else y + bias[:, None, None]
    else:
        y = functional.conv2d(x, weight, bias, padding=1)
    return functional.relu(y) if relu else y


@pytest.mark.parametrize(("dtype", "shape", "layout"), covering(list(TOLERANCES), SHAPES, LAYOUTS))
def test_against_torch(device, every_size, dtype, shape, layout):
    error = TOLERANCES[dtype]
    if device.type == "cpu" and dtype == torch.float16 and not x86_halves():
        pytest.skip("torch convolves no float16 on this CPU")
    tensors, grad_y = make(shape, dtype, device, layout)
    y, exact = conv3x3(*tensors), plain(*(doubles := doubled(tensors)))
    assert y.dtype == dtype and relative_error(y, exact) < error
    assert y.stride() == torch.empty(y.shape, memory_format=torch.channels_last).stride()
    actual = torch.autograd.grad(y, tensors, grad_y)
    expected = torch.autograd.grad(exact, doubles, grad_y.double())
    for ours, right, tensor in zip(actual, expected, tensors, strict=True):
        assert ours.dtype == tensor.dtype and relative_error(ours, right) < error


def x86_halves():
    try:
        plain(torch.zeros(1, 1, 3, 3).half(), torch.zeros(1, 1, 3, 3).half())
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_magnitude(every_size, scale):
    (x, weight, _), _ = make((1, 16, 16, 9, 9), torch.float32)
    y, exact = conv3x3(x * scale, weight) / scale, plain(x.double(), weight.double())
    assert relative_error(y, exact) < 3e-6


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("shape", [(4, 128, 128, 32, 32), (8, 32, 32, 64, 64)])
def test_errors_are_as_promised(shape):
    """Bounds hold on every processor; torch's own error depends on the algorithm it takes there."""
    tensors, grad_y = make(shape, torch.float32)
    tensors, doubles = tensors[:2], doubled(tensors[:2])
    exact = plain(*doubles)
    expected = [exact, *torch.autograd.grad(exact, doubles, grad_y.double())]
    y = conv3x3(*tensors)
    results = [y, *torch.autograd.grad(y, tensors, grad_y)]
    for result, right in zip(results, expected, strict=True):
        assert relative_error(result, right) < 1.5e-6


def test_float32_has_our_kernel_from_some_size_on(monkeypatch):
    called = []
    call_kernel = MODULE._extension.call_kernel
    monkeypatch.setattr(
        MODULE._extension,
        "call_kernel",
        lambda *arguments: called.append(arguments[0]) or call_kernel(*arguments),
    )
    ours, few_tiles, padded = (16, 32), (16, 4), (24, 32)  # channels and side
    cases = [(torch.float32, case) for case in (ours, few_tiles, padded)]
    for dtype, (channels, side) in [*cases, (torch.float64, ours)]:
        (x, weight, _), grad_y = make((1, channels, channels, side, side), dtype)
        torch.autograd.grad(conv3x3(x, weight), (x, weight), grad_y)
    expected = ["conv3x3", "conv3x3", "conv3x3_weight_backward"]
    assert called == (expected if has_kernel(torch.zeros(1)) else [])


def test_float32_weights_of_half_maps(device, every_size):
    tensors, grad_y = make((2, 24, 16, 9, 7), torch.bfloat16, device, weights=torch.float32)
    y = conv3x3(*tensors)
    doubles = doubled(tensors)
    actual = torch.autograd.grad(y, tensors, grad_y)
    expected = torch.autograd.grad(plain(*doubles), doubles, grad_y.double())
    for ours, right, tensor in zip(actual, expected, tensors, strict=True):
        assert ours.dtype == tensor.dtype and relative_error(ours, right) < 2.0**-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_around_the_call_changes_nothing(device, every_size, dtype):
    tensors, grad_y = make((2, 16, 16, 9, 7), dtype, device)
    results = []
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            y = conv3x3(*tensors, relu=True)
            results.append([y, *torch.autograd.grad(y, tensors, grad_y)])
    assert all(torch.equal(ours, other) for ours, other in zip(*results, strict=True))


def test_any_incoming_gradient_and_weight(device, every_size):
    tensors, _ = make((2, 20, 18, 8, 9), torch.float32, device)
    shape = (2, 18, 8, 9)
    for grad_output in (
        torch.tensor(2.0).expand(shape),  # stride 0, as .sum() sends
        torch.rand(18)[:, None, None].expand(shape),
        torch.randn(2, 9, 8, 18).permute(0, 3, 2, 1),
    ):
        grad_output = grad_output.to(device)
        doubles = doubled(tensors)
        actual = torch.autograd.grad(conv3x3(*tensors, relu=True), tensors, grad_output)
        expected = torch.autograd.grad(plain(*doubles, relu=True), doubles, grad_output.double())
        for ours, right in zip(actual, expected, strict=True):
            assert relative_error(ours, right) < 3e-6
    x, weight, bias = (t.detach() for t in tensors)
    for lying in (dense(weight), weight.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)):
        assert torch.equal(conv3x3(x, lying, bias), conv3x3(x, weight, bias))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_bias_and_relu(device, every_size, biased, relu):
    (x, weight, bias), grad_y = make((2, 16, 20, 9, 9), torch.float32, device)
    tensors = [x, weight, bias] if biased else [x, weight]
    doubles = doubled(tensors)
    y, exact = conv3x3(*tensors, relu=relu), plain(*doubles, relu=relu)
    assert relative_error(y, exact) < 3e-6 and bool((y >= 0).all()) == relu
    expected = torch.autograd.grad(exact, doubles, grad_y.double())
    for ours, right in zip(torch.autograd.grad(y, tensors, grad_y), expected, strict=True):
        assert relative_error(ours, right) < 1e-5  # where rounding crosses 0


def test_nan_passes_and_stays_in_its_tiles(every_size):
    (x, weight, _), _ = make((1, 16, 16, 16, 16), torch.float32)
    x = x.detach()
    x[0, 3, 9, 9] = torch.nan
    y = conv3x3(x, weight, relu=True)
    assert y[0, :, 8:11, 8:11].isnan().all() and not y[0, :, :8].isnan().any()


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("shape", [(4, 64, 32, 32, 32), (1, 16, 16, 13, 9)])
def test_threads_and_runs_do_not_change_a_bit(device, every_size, on_threads, shape):
    tensors, grad_y = make(shape, torch.float32, device)

    def run():
        y = conv3x3(*tensors)
        return y, *torch.autograd.grad(y, tensors[:2], grad_y)

    first, *others = on_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_without_the_extension_torch_is_used(monkeypatch, every_size):
    tensors, grad_y = make((2, 16, 16, 9, 7), torch.float32)
    results = []
    for _ in range(2):
        y = conv3x3(*tensors, relu=True)
        results.append([y, *torch.autograd.grad(y, tensors, grad_y)])
        monkeypatch.setattr(MODULE._extension, "has_kernel", lambda x: False)
    for ours, other in zip(*results, strict=True):
        assert relative_error(ours, other) < 1e-5


def operator_arguments(tensors, grad_y, relu):
    """Of the three operators."""
    x, weight, _ = (t.detach() for t in tensors)
    operators = torch.ops.fasthg
    yield operators.conv3x3, (*tensors, relu)
    yield operators.conv3x3_input_backward, (grad_y, weight)
    yield operators.conv3x3_weight_backward, (grad_y, x, weight)


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck_and_registration(device, every_size, relu):
    tensors, _ = make((2, 3, 4, 3, 5), torch.float64, device)
    assert torch.autograd.gradcheck(lambda *inputs: conv3x3(*inputs, relu=relu), tensors)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for shape in ((2, 3, 4, 3, 5), (2, 1, 1, 3, 1)):
            for operator, arguments in operator_arguments(*make(shape, dtype, device), relu):
                check_registration(operator, arguments)


def test_opcheck(device, every_size):
    tensors, grad_y = make((2, 3, 4, 3, 5), torch.float32, device)
    for operator, arguments in operator_arguments(tensors, grad_y, True):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        pytest.param("inductor", channels_last, marks=pytest.mark.slow),
        ("aot_eager", dense),
    ],
)
def test_compiles_without_a_graph_break(device, every_size, layout, backend):
    tensors, _ = make((2, 16, 16, 8, 8), torch.float32, device, layout)

    def total(*inputs):
        y = conv3x3(*inputs, relu=True)
        return (y * y * 0.5).sum()

    def results(function):
        loss = function(*tensors)
        return loss, *torch.autograd.grad(loss, tensors)

    compiled = torch.compile(total, fullgraph=True, backend=backend)
    torch.testing.assert_close(results(compiled), results(total))


X, WEIGHT = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3, 3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x: expected \(batch, channels, height, width\), got \(2"),
        ({"x": X.long()}, r"x: expected a floating dtype, got torch\.int64"),
        ({"weight": torch.zeros(6, 4, 3, 3)}, r"weight: expected \(out, 3, 3, 3\), got \(6, 4"),
        ({"weight": torch.zeros(6, 3, 1, 1)}, r"weight: expected \(out, 3, 3, 3\), got \(6, 3"),
        ({"bias": torch.zeros(3)}, r"bias: expected \(6,\), got \(3,\)"),
        ({"bias": torch.zeros(6, device="meta")}, "bias is on meta, x on cpu: move them to one"),
        ({"weight": WEIGHT.to("meta")}, "weight is on meta, x on cpu: move them to one device"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        conv3x3(**{"x": X, "weight": WEIGHT, **changes})


def test_the_reference_is_torchs_own():
    tensors, _ = make((2, 16, 16, 9, 7), torch.float32)
    assert torch.equal(reference.conv3x3(*tensors, relu=True), plain(*tensors, relu=True))

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from op_testing import LAYOUTS, channels_last, check_registration, dense, relative_error
from pairwise import covering
from torch.nn import functional

from fasthg.ops import conv1x1_act, reference

# dtype: one rounding of a value near 1 and a little for the sums
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2.0**-11 + 2e-6,
    torch.bfloat16: 2.0**-8 + 2e-6,
}
# batch, in, in2, out, height, width
SHAPES = [
    (2, 64, 32, 128, 8, 8),
    (3, 13, 5, 7, 5, 3),
    (1, 1, 1, 1, 1, 1),
    (2, 256, 7, 40, 3, 5),
    (0, 8, 8, 8, 2, 2),
    (2, 0, 3, 4, 3, 1),
    (2, 3, 0, 0, 3, 3),
]
# with bias, with residual, with a second pair, relu
CASES = list(itertools.product([False, True], repeat=4))
NAMES = ("x", "weight", "bias", "residual", "x2", "weight2")


def make(shape, dtype, device="cpu", case=(True, True, True), layout=channels_last, weights=None):
    """The tensors of a call by name, None where the case leaves them out, and a gradient of y."""
    batch, inputs, inputs2, outputs, height, width = shape
    random = torch.Generator().manual_seed(0)
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor(*shape, dtype=dtype):
        values = torch.randn(shape, generator=random, dtype=torch.float64)
        if len(shape) == 2:
            values /= max(shape[1], 1) ** 0.5
        values = values.to(dtype)
        return (layout(values) if len(shape) == 4 else values).to(device).requires_grad_()

    bias, residual, second = case[:3]
    tensors = {
        "x": tensor(batch, inputs, height, width),
        "weight": tensor(outputs, inputs, dtype=weights or dtype),
        "bias": tensor(outputs, dtype=real) if bias else None,
        "residual": tensor(batch, outputs, height, width) if residual else None,
        "x2": tensor(batch, inputs2, height, width) if second else None,
        "weight2": tensor(outputs, inputs2, dtype=weights or dtype) if second else None,
    }
    return tensors, tensor(batch, outputs, height, width).detach()


def present(tensors):
    """The tensors that the case does not leave out."""
    return [t for t in tensors.values() if t is not None]


def call(function, tensors, relu):
    first = [tensors[name] for name in NAMES[:4]]
    return function(*first, x2=tensors["x2"], weight2=tensors["weight2"], relu=relu)


def plain(x, weight, bias=None, residual=None, *, x2=None, weight2=None, relu=False):
    """The same in torch's own convolutions, rounded in between as they round."""

    def convolved(x, weight, bias=None):
        return functional.conv2d(x, weight.to(x.dtype)[:, :, None, None], bias)

    y = convolved(x, weight, None if bias is None else bias.to(x.dtype))
    y = y if x2 is None else y + convolved(x2, weight2)
    y = y if residual is None else y + residual
    return functional.relu(y) if relu else y


def doubled(tensors, dtype):
    """In float64, with the weights as the arithmetic takes them."""
    return {
        name: None
        if t is None
        else (t.detach().to(dtype) if "weight" in name else t.detach()).double().requires_grad_()
        for name, t in tensors.items()
    }


@pytest.mark.parametrize(
    ("dtype", "shape", "bias", "residual", "second", "relu"),
    covering(list(TOLERANCES), SHAPES, *[[True, False]] * 4),
)
def test_against_torch(device, dtype, shape, bias, residual, second, relu):
    error, case = TOLERANCES[dtype], (bias, residual, second)
    tensors, grad_y = make(shape, dtype, device, case)
    doubles = doubled(tensors, dtype)
    y, exact = call(conv1x1_act, tensors, relu), call(reference.conv1x1_act, doubles, relu)
    assert y.dtype == dtype and y.shape == exact.shape
    assert not y.numel() or y.is_contiguous(memory_format=torch.channels_last)
    allowed = error * exact.abs() + 4e-6 * (error > 1e-12)
    if dtype == torch.bfloat16 and tensors["residual"] is not None and tensors["bias"] is not None:
        allowed = allowed + error * tensors["bias"].abs()[:, None, None]  # it is rounded on a CPU
    assert ((y.double() - exact).abs() <= allowed).all()
    gradients = torch.autograd.grad(y, present(tensors), grad_y)
    # The mask is that of y: values next to 0 may fall on either side.
    grad_linear = grad_y.double() * (y > 0) if relu else grad_y.double()
    linear = call(reference.conv1x1_act, doubles, False)
    expected = torch.autograd.grad(linear, present(doubles), grad_linear)
    for source, actual, right in zip(present(tensors), gradients, expected, strict=True):
        assert actual.dtype == source.dtype and actual.shape == source.shape
        assert relative_error(actual, right) < 2 * error


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),  # torch convolves no float16 on every CPU
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),
    ],
    indirect=["device"],
)
def test_half_types_err_no_more_than_torch(device, dtype, case):
    tensors, _ = make((2, 64, 32, 128, 16, 16), dtype, device, case)
    exact = call(plain, doubled(tensors, dtype), case[3])
    ours, theirs = (relative_error(call(f, tensors, case[3]), exact) for f in (conv1x1_act, plain))
    assert ours <= 1.1 * theirs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_weights_of_half_maps(device, dtype):
    shape = (2, 24, 8, 16, 5, 7)
    tensors, grad_y = make(shape, dtype, device, weights=torch.float32)
    exact = doubled(tensors, dtype)
    y = call(conv1x1_act, tensors, False)
    assert y.dtype == dtype and relative_error(y, call(plain, exact, False)) < 2.0**-8
    names = ("weight", "weight2", "bias")
    actual = torch.autograd.grad(y, [tensors[name] for name in names], grad_y)
    expected = torch.autograd.grad(
        call(plain, exact, False), [exact[name] for name in names], grad_y.double()
    )
    for name, ours, right in zip(names, actual, expected, strict=True):
        assert ours.dtype == torch.float32
        # torch multiplies half types into float32 on CUDA alone
        assert relative_error(ours, right) < (
            2.0**-8 if name != "bias" and device.type == "cpu" else 1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_onednn_the_result_is_the_same(monkeypatch, dtype):
    tensors, grad_y = make((2, 24, 8, 16, 5, 7), dtype)
    results = []
    for _ in range(2):
        y = call(conv1x1_act, tensors, True)
        results.append([y, *torch.autograd.grad(y, present(tensors), grad_y)])
        module = sys.modules[conv1x1_act.__module__]
        monkeypatch.setattr(module, "_onednn_has_kernel", lambda x: False)
    error = 1e-5 if dtype == torch.float32 else 2.0**-7  # the bias is rounded in one of them
    for ours, other in zip(*results, strict=True):
        assert relative_error(ours, other.double()) < error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_around_the_call_changes_nothing(device, dtype):
    tensors, grad_y = make((2, 24, 8, 16, 5, 7), dtype, device)
    results = []
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            y = call(conv1x1_act, tensors, True)
            results.append([y, *torch.autograd.grad(y, present(tensors), grad_y)])
    assert all(torch.equal(ours, other) for ours, other in zip(*results, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_any_incoming_gradient(device, layout):
    tensors, _ = make((2, 6, 4, 10, 8, 9), torch.float32, device, layout=layout)
    doubles = doubled(tensors, torch.float32)
    shape = (2, 10, 8, 9)
    for grad_output in (
        torch.tensor(2.0).expand(shape),  # stride 0, as .sum() sends
        torch.rand(10)[:, None, None].expand(shape),
        torch.randn(shape),
        torch.randn(2, 9, 8, 10).permute(0, 3, 2, 1),
    ):
        grad_output = grad_output.to(device)
        y, exact = call(conv1x1_act, tensors, True), call(plain, doubles, True)
        torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-5)
        gradients = torch.autograd.grad(y, present(tensors), grad_output)
        expected = torch.autograd.grad(exact, present(doubles), grad_output.double())
        for actual, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(actual.double(), right, rtol=1e-4, atol=1e-4)


def test_the_weight_of_a_convolution_and_any_lying_weight(device):
    tensors, _ = make((2, 6, 4, 10, 8, 9), torch.float32, device, (True, False, False))
    x, weight, bias = present(tensors)
    y = conv1x1_act(x, weight, bias)
    is_conv_weight = weight.detach()[:, :, None, None].requires_grad_()
    transposed = weight.detach().t().contiguous().t()
    assert torch.equal(conv1x1_act(x, is_conv_weight, bias), y)
    assert torch.equal(conv1x1_act(x, channels_last(is_conv_weight), bias), y)
    assert torch.equal(conv1x1_act(x, transposed, bias), y)
    gradients = [
        torch.autograd.grad(conv1x1_act(x, w, bias).sum(), w)[0] for w in (is_conv_weight, weight)
    ]
    assert torch.equal(gradients[0][:, :, 0, 0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_passes_the_relu(device, dtype):
    tensors, grad_y = make((2, 16, 8, 8, 3, 3), dtype, device)
    with torch.no_grad():
        tensors["residual"][1, 2, 0, 1] = torch.nan
    y = call(conv1x1_act, tensors, True)
    assert torch.equal(y.isnan(), tensors["residual"].isnan())
    (grad_residual,) = torch.autograd.grad(y, tensors["residual"], grad_y)
    assert grad_residual[1, 2, 0, 1] == grad_y[1, 2, 0, 1]
    with torch.no_grad():
        tensors["x"][1, 2, 0, 1] = torch.nan
    y = conv1x1_act(tensors["x"], tensors["weight"], relu=True)
    assert y[1, :, 0, 1].isnan().all() and y.isnan().sum() == y.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal_whatever_the_threads(device, set_threads, dtype):
    tensors, grad_y = make((4, 64, 32, 128, 16, 16), dtype, device)
    runs = []
    for threads in (1, 2, 2):
        set_threads(threads)
        runs.append(call(conv1x1_act, tensors, True))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[1], runs[2])
    twice = [torch.autograd.grad(runs[i], present(tensors), grad_y) for i in (1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_gradcheck_and_registration(device, case):
    relu = case[3]
    tensors, _ = make((2, 3, 2, 4, 3, 2), torch.float64, device, case)
    names = [name for name in NAMES if tensors[name] is not None]

    def function(*values):
        return call(conv1x1_act, {**tensors, **dict(zip(names, values, strict=True))}, relu)

    assert torch.autograd.gradcheck(function, present(tensors))
    for dtype in (torch.float64, torch.bfloat16):
        inputs, _ = make((2, 3, 2, 4, 3, 1), dtype, device, case)
        check_registration(torch.ops.fasthg.conv1x1_act, (*inputs.values(), relu))


def test_opcheck(device):
    inputs, _ = make((2, 3, 2, 4, 3, 2), torch.float32, device)
    torch.library.opcheck(torch.ops.fasthg.conv1x1_act, (*inputs.values(), True))


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        pytest.param("inductor", channels_last, marks=pytest.mark.slow),
        ("aot_eager", dense),
    ],
)
def test_compiles_without_a_graph_break(device, layout, backend):
    tensors, _ = make((2, 4, 3, 6, 8, 8), torch.float32, device, layout=layout)

    def total(*values):
        y = call(conv1x1_act, dict(zip(NAMES, values, strict=True)), True)
        return (y * y * 0.5).sum()

    def results(function):
        loss = function(*tensors.values())
        return loss, *torch.autograd.grad(loss, present(tensors))

    compiled = torch.compile(total, fullgraph=True, backend=backend)
    torch.testing.assert_close(results(compiled), results(total))


X, WEIGHT = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x: expected \(batch, channels, height, width\), got \(2"),
        ({"x": X.long()}, r"x: expected a floating dtype, got torch\.int64"),
        ({"weight": torch.zeros(6, 4)}, r"weight of x: expected \(out, 3\).* got \(6, 4\)"),
        ({"weight": torch.zeros(6, 3, 3, 3)}, r"weight of x: .* got \(6, 3, 3, 3\)"),
        ({"bias": torch.zeros(3)}, r"bias: expected \(6,\), got \(3,\)"),
        ({"residual": X}, r"residual: expected \(2, 6, 4, 5\), got \(2, 3, 4, 5\)"),
        ({"x2": X}, "x2 and weight2: expected both or neither"),
        ({"weight2": WEIGHT}, "x2 and weight2: expected both or neither"),
        ({"x2": X[:1], "weight2": WEIGHT}, r"x2: expected \(2, 3, 4, 5\), got \(1, 3, 4, 5\)"),
        ({"x2": X, "weight2": WEIGHT[:4]}, r"weight2: expected \(6, 3\), got \(4, 3\)"),
        ({"x2": X, "weight2": WEIGHT.mT}, r"weight of x2: expected \(out, 3\).* got \(3, 6\)"),
        ({"x2": X.double(), "weight2": WEIGHT}, r"x2: expected torch\.float32 as x, got torch\.f"),
        ({"bias": torch.zeros(6, device="meta")}, "bias is on meta, x on cpu: move them to one"),
        ({"weight": WEIGHT.to("meta")}, "weight is on meta, x on cpu: move them to one device"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        conv1x1_act(**{"x": X, "weight": WEIGHT, **changes})

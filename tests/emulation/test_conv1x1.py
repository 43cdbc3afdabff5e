"""`conv1x1_act` on emulated CUDA kernels, against plain torch in float64.

Cases are covering pairs: each dtype meets each shape, each flag and each order of the threads.
"""

from __future__ import annotations

import pytest
import torch
from emulated_cases import FLAG, HALVES, as_maps, cases, conv1x1, unaligned
from emulated_extension import ORDERS
from pairwise import covering

from fasthg import ops
from fasthg.ops import _extension, reference

pytestmark = pytest.mark.slow  # a minute to compile

BFLOAT16 = 2.0**-8 + 1e-6  # one rounding


def rows_of(*shapes, dtype, seed=5):
    """Random matrices whose products are of order 1."""
    random = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=random) / max(shape[1], 1) ** 0.5).to(dtype)
        for shape in shapes
    ]


def check(emulated, order, error, x, weight, bias=None, residual=None, second=(None, None), relu=0):
    """Against two convolutions and what follows them, in float64; returns the result."""
    x2, weight2 = second
    with emulated(order):
        y = ops.conv1x1_act(x, weight, bias, residual, x2=x2, weight2=weight2, relu=bool(relu))
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == x.dtype
    weight, weight2 = (t if t is None else t.to(x.dtype) for t in (weight, weight2))
    x, weight, bias, residual, x2, weight2 = (
        t if t is None else t.double() for t in (x, weight, bias, residual, x2, weight2)
    )
    exact = reference.conv1x1_act(x, weight, bias, residual, x2=x2, weight2=weight2, relu=relu)
    torch.testing.assert_close(y.double(), exact, rtol=error, atol=1e-6)
    return y


# rows, in, in of the second pair, out
SHAPES = [
    (64, 64, 0, 64),  # one block
    (77, 104, 24, 88),  # edges
    (65, 35, 7, 13),  # no vectors
    (1, 1, 0, 1),
    (70, 96, 7, 136),  # vectors in the first pair alone
    (9, 131, 66, 8),  # several steps without vectors
]


@cases(["shape", "relu"], HALVES, SHAPES, FLAG)
def test_conv1x1_act(emulated, order, dtype, error, shape, relu):
    rows, inputs, inputs2, outputs = shape
    shapes = ((rows, inputs), (outputs, inputs), (rows, inputs2), (outputs, inputs2))
    x, weight, x2, weight2 = rows_of(*shapes, dtype=dtype)
    second = (as_maps(x2), weight2) if inputs2 else (None, None)
    bias = residual = None
    if relu:
        bias = torch.linspace(-1, 1, outputs)
        residual = as_maps(rows_of((rows, outputs), dtype=dtype, seed=6)[0])
    check(emulated, order, error, as_maps(x), weight, bias, residual, second, relu)


# What makes the launcher take its tiles: multiprocessors, and kibibytes that a block may have.
TILES = {
    "128 x 256": (1, 227),
    "128 x 128": (1, 100),
    "128 x 64": (1, 88),
    "64 x 64, one a block": (132, 227),
    "64 x 64": (1, 64),
}


@pytest.mark.parametrize("order", ORDERS)
def test_all_tiles_give_the_same_result(emulated, switches, gpu, order):
    """Blocks that walk over several tiles of rows, too, and end within one."""
    rows, outputs = 300, 136
    x, weight, residual = rows_of((rows, 40), (outputs, 40), (rows, outputs), dtype=torch.bfloat16)
    x2, weight2 = rows_of((rows, 7), (outputs, 7), dtype=torch.bfloat16, seed=6)
    inputs = as_maps(x), weight, torch.linspace(-1, 1, outputs), as_maps(residual)
    results, blocks = [], []
    for name, (multiprocessors, kibibytes) in TILES.items():
        # Greedy orders differ in barriers alone, which are the same in all tiles.
        if order == "natural" or name.startswith("128 x 256"):
            gpu(multiprocessors, kibibytes)
            results.append(check(emulated, order, BFLOAT16, *inputs, (as_maps(x2), weight2), True))
            blocks.append(switches.emulation_blocks())
    assert blocks == [2, 2, 3, 15, 3][: len(blocks)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(("order", "outputs"), covering(ORDERS, [64, 13]))
def test_weights_that_do_not_fit_come_in_steps(emulated, gpu, order, outputs):
    x, weight, residual = rows_of((70, 392), (outputs, 392), (70, outputs), dtype=torch.bfloat16)
    x2, weight2 = rows_of((70, 70), (outputs, 70), dtype=torch.float16, seed=6)
    inputs = as_maps(x), weight, None, as_maps(residual)
    second = as_maps(x2.to(x.dtype)), weight2.to(x.dtype)
    gpu(1, 227)
    fit = check(emulated, order, BFLOAT16, *inputs, second)
    gpu(1, 100 if outputs == 13 else 84)
    assert torch.equal(check(emulated, order, BFLOAT16, *inputs, second), fit)


@pytest.fixture
def calls(emulation, monkeypatch):
    """The members of Conv1x1 of each call."""
    made, build = [], emulation.Conv1x1

    def described(**members):
        made.append(members)
        return build(**members)

    monkeypatch.setattr(emulation, "Conv1x1", described)
    return made


# With vectors of weights, with an edge of them, and without.
@cases(
    ["shape", "transposed", "wide", "gaps"],
    HALVES,
    [(136, 40), (7, 72), (24, 7), (40, 13)],
    *[FLAG] * 3,
)
def test_weights_are_read_as_they_lie(
    emulated, calls, order, dtype, error, shape, transposed, wide, gaps
):
    outputs, inputs = shape
    x, weight = rows_of((35, inputs), shape, dtype=dtype)
    weight = rows_of(shape, dtype=torch.float32, seed=7)[0] if wide else weight
    lies = weight.t() if transposed else weight
    lies = torch.cat([lies, lies.new_full((len(lies), 8), torch.nan)], 1) if gaps else lies
    lies = lies.contiguous()[:, : outputs if transposed else inputs]
    lies = lies.t() if transposed else lies
    with emulated(order):
        y = ops.conv1x1_act(as_maps(x), lies)
    assert (calls[0]["weight"], calls[0]["transposed"]) == (lies.data_ptr(), transposed)
    expected = x.double() @ weight.to(dtype).double().t()
    torch.testing.assert_close(y[0, :, :, 0].t().double(), expected, rtol=error, atol=1e-6)


def test_the_backward_copies_no_weight(emulated, calls):
    x, weight = rows_of((35, 16), (24, 16), dtype=torch.bfloat16)
    x, weight = as_maps(x).requires_grad_(), weight.float().requires_grad_()
    with emulated("natural"):
        y = ops.conv1x1_act(x, weight)
        (grad_x,) = torch.autograd.grad(y, x, y)
    read = [(call["weight"], call["wide"], call["transposed"]) for call in calls]
    assert read == [(weight.data_ptr(), True, False), (weight.data_ptr(), True, True)]
    rows = y[0, :, :, 0].t().double()
    expected = rows @ weight.to(y.dtype).double()
    torch.testing.assert_close(grad_x[0, :, :, 0].t().double(), expected, rtol=BFLOAT16, atol=1e-6)


# Rows of 7 values: several tiles a block, the last of which ends within a vector.
@cases(["inputs", "outputs", "relu"], HALVES, [7, 72], [7, 13], FLAG)
def test_rows_that_are_no_vectors(emulated, gpu, order, dtype, error, inputs, outputs, relu):
    x, weight, residual = rows_of((389, inputs), (outputs, inputs), (389, outputs), dtype=dtype)
    x[130, 3] = torch.nan  # of which the rows beside it, in the same vectors, get nothing
    gpu(1)
    with emulated(order):
        y = ops.conv1x1_act(as_maps(x), weight, None, as_maps(residual), relu=relu)
    y = y[0, :, :, 0].t().double()
    expected = x.double() @ weight.double().t() + residual.double()
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(y, expected, rtol=error, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("order", "shifted", "inputs"), covering(ORDERS, ["x", "weight", "residual"], [48, 131])
)
def test_unaligned_rows(emulated, order, shifted, inputs):
    tensors = rows_of((70, inputs), (40, inputs), (70, 40), dtype=torch.bfloat16)
    values = dict(zip(("x", "weight", "residual"), tensors, strict=True))
    values[shifted] = unaligned(values[shifted])
    maps = as_maps(values["x"]), values["weight"], None, as_maps(values["residual"])
    check(emulated, order, BFLOAT16, *maps, relu=True)


@pytest.mark.parametrize(("order", "outputs"), covering(ORDERS, [40, 7]))
def test_into_unaligned_rows(emulation, switches, order, outputs):
    """The wrapper's own result is always aligned, so this one calls the launcher."""
    x, weight = rows_of((70, 48), (outputs, 48), dtype=torch.bfloat16)
    y = torch.full((70 * outputs + 2,), torch.nan, dtype=x.dtype)
    addresses = {"x": x.data_ptr(), "weight": weight.data_ptr(), "y": y[1:].data_ptr()}
    sizes = {"rows": 70, "in_": 48, "outputs": outputs, "pitch": 48}
    conv = conv1x1(emulation, **addresses, **sizes, relu=True)
    switches.emulation_order(ORDERS.index(order))
    emulation.conv1x1_act_cuda(_extension.DTYPE_CODES[x.dtype], conv, 0, 0)
    expected = (x.double() @ weight.double().t()).relu()
    assert y[0].isnan() and y[-1].isnan()
    torch.testing.assert_close(
        y[1:-1].view(70, outputs).double(), expected, rtol=BFLOAT16, atol=1e-6
    )


@pytest.mark.parametrize(("order", "relu"), covering(ORDERS, FLAG))
def test_other_layouts(emulated, order, relu):
    weight, weight2 = rows_of((24, 16), (24, 5), dtype=torch.float32)
    x, x2, residual = (
        torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])).to(torch.bfloat16)
        for shape in ((1, 32, 5, 7), (1, 5, 5, 7), (1, 24, 1, 1))
    )
    # A slice, channels first, stride 0; weights in every second row and column, and in float64.
    weight = torch.stack([weight, weight], 2).flatten(1)[:, None].repeat(1, 2, 1).flatten(0, 1)
    inputs = (x[:, ::2], weight[::2, ::2], torch.linspace(-1, 1, 24))
    inputs += (residual.expand(1, 24, 5, 7), (x2, weight2.double()))
    check(emulated, order, BFLOAT16, *inputs, relu)


def test_nan_passes_and_float32_is_refused(emulated, emulation):
    x, weight, residual = rows_of((9, 16), (8, 16), (9, 8), dtype=torch.float16)
    residual[4, 3] = torch.nan
    with emulated("natural"):
        y = ops.conv1x1_act(as_maps(x), weight, None, as_maps(residual), relu=True)
    assert torch.equal(y.isnan(), as_maps(residual).isnan())
    with pytest.raises(RuntimeError, match="takes float16 and bfloat16"):
        emulation.conv1x1_act_cuda(0, conv1x1(emulation), 0, 0)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from op_testing import check_registration
from pairwise import covering

from fasthg.ops import reference, rmsprop_ema

ERRORS = {torch.float64: 1e-14, torch.float32: 1e-6}
# weights, statistics after them, the first so many have L2
SIZES = [(0, 0, 0), (1, 0, 1), (0, 3, 0), (64, 64, 64), (1021, 13, 700), (5000, 1, 0)]
KEYS = {"decay": 0.9, "eps": 1.0, "weight_decay": 0.05}


@pytest.fixture
def buffers(device):
    """Buffers of a step with everything in it, as keywords of rmsprop_ema."""

    def make(weights, statistics=0, decayed=None, dtype=torch.float32, seed=0):
        random = torch.Generator().manual_seed(seed)

        def normal(count):
            return torch.randn(count, generator=random, dtype=torch.float64).to(device, dtype)

        return {
            "values": normal(weights + statistics),
            "gradient": normal(weights),
            "squares": normal(weights).square(),
            "momenta": normal(weights),
            "averages": normal(weights + statistics),
            "rate": torch.tensor(0.1, dtype=dtype, device=device),
            "average_weight": torch.tensor([0.3], dtype=dtype, device=device),
            "found_inf": torch.zeros((), device=device),
            "decayed": decayed,
            "momentum": 0.7,
            **KEYS,
        }

    return make


def copied(buffers, dtype=None):
    """The same in memory of its own, real numbers as `dtype`."""

    def copy(name, value):
        if not isinstance(value, torch.Tensor):
            return value
        fixed = dtype is None or name == "found_inf"
        return value.clone() if fixed else value.to(dtype, copy=True)

    return {name: copy(name, value) for name, value in buffers.items()}


def exactly(b):
    """The step in the words of the docstring, out of place."""
    count = len(b["gradient"])
    weights, g = b["values"][:count], b["gradient"].clone()
    decayed = count if b["decayed"] is None else b["decayed"]
    g[:decayed] += b["weight_decay"] * weights[:decayed]
    squares = b["decay"] * b["squares"] + (1 - b["decay"]) * g**2
    momenta = b["momentum"] * b["momenta"] if b["momenta"] is not None else 0
    momenta = momenta + b["rate"] * g / (squares + b["eps"]).sqrt()
    values = torch.cat([weights - momenta, b["values"][count:]])
    return {"values": values, "squares": squares, "momenta": momenta}


def averaged(b):
    return b["averages"] + b["average_weight"] * (b["values"] - b["averages"])


@pytest.mark.parametrize(
    ("dtype", "size", "without"),
    covering(list(ERRORS), SIZES, ["", "momenta", "averages", "found_inf"]),
)
def test_against_torch(buffers, dtype, size, without):
    error = ERRORS[dtype]
    b = buffers(*size, dtype)
    if without:
        b[without] = None
    if without == "momenta":
        b["momentum"] = 0.0
    if without == "averages":
        b["average_weight"] = None
    before = copied(b, torch.float64)
    rmsprop_ema(**b)
    expected = exactly(before)
    if without != "averages":
        expected["averages"] = averaged(before)
    for name, value in expected.items():
        if b[name] is not None:
            torch.testing.assert_close(b[name].double(), value, rtol=error, atol=error)


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_equals_tensorflow(test_data: Path, device, momentum: float) -> None:
    trace = np.load(test_data / "mars/model/rmsprop_ema_bn_exact.npz")
    values = torch.from_numpy(trace["w0"].copy()).to(device)
    squares, averages = torch.ones_like(values), values.clone()
    momenta = torch.zeros_like(values) if momentum else None
    rate = torch.tensor(2.5e-4, device=device)
    for step, gradient in enumerate(trace["grads"]):
        rmsprop_ema(
            *(values, torch.from_numpy(gradient).to(device), squares, rate),
            decay=0.9,
            eps=1.0,
            momentum=momentum,
            momenta=momenta,
            averages=averages,
            average_weight=torch.tensor(1 - min(0.9999, (1 + step) / (10 + step)), device=device),
        )
        expected = {k: trace[f"momentum{momentum}__{k}"][step] for k in ("w", "rms", "mom", "ema")}
        np.testing.assert_allclose(values.cpu(), expected["w"], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(squares.cpu(), expected["rms"], rtol=1e-6)
        np.testing.assert_allclose(averages.cpu(), expected["ema"], rtol=1e-6, atol=1e-7)
        if momenta is not None:
            np.testing.assert_allclose(momenta.cpu(), expected["mom"], rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [1.0, 2.0, torch.nan])
def test_an_overflow_moves_the_averages_only(buffers, bad):
    b = buffers(100, 10, 60)
    b["gradient"].fill_(torch.inf)
    b["found_inf"].fill_(bad)
    before = copied(b)
    rmsprop_ema(**b)
    for name in ("values", "squares", "momenta"):
        assert torch.equal(b[name], before[name]), name
    torch.testing.assert_close(b["averages"], averaged(before))


def test_nan_stays_where_it_is(buffers):
    b = buffers(100)
    b["gradient"][7] = torch.nan
    rmsprop_ema(**b)
    for name in ("values", "squares", "momenta"):
        assert b[name].isnan().nonzero().tolist() == [[7]], name


def test_buffers_that_begin_anywhere(buffers):
    """A buffer may be a slice of a larger one, whose beginning is not aligned."""
    b = buffers(1024, 64)
    whole = copied(b)
    names = ("values", "gradient", "squares", "momenta", "averages")
    sliced = {n: torch.cat([b[n][:1], b[n], b[n][:1]])[1:-1] for n in names}
    rmsprop_ema(**b)
    rmsprop_ema(**{**whole, **sliced})
    for name in names:
        torch.testing.assert_close(sliced[name], b[name], rtol=1e-6, atol=1e-6)


def test_threads_and_runs_do_not_change_a_bit(buffers, on_threads):
    start = buffers(300_007, 1000, 200_003)

    def run():
        result = copied(start)
        rmsprop_ema(**result)
        return result

    first, *others = on_threads(run)
    for other in others:
        for name in ("values", "squares", "momenta", "averages"):
            assert torch.equal(first[name], other[name]), name


def in_order(b):
    names = ("values", "gradient", "squares", "momenta", "averages", "rate")
    names += ("average_weight", "found_inf", "decayed", "weight_decay", "decay", "momentum", "eps")
    return [b[name] for name in names]


def test_opcheck(buffers):
    torch.library.opcheck(torch.ops.fasthg.rmsprop_ema, in_order(buffers(70, 7, 30)))


@pytest.mark.parametrize("dtype", ERRORS)
def test_registration_and_the_reference(buffers, dtype):
    b = buffers(70, 7, 30, dtype)
    check_registration(torch.ops.fasthg.rmsprop_ema, in_order(b))
    least = {**b, "momenta": None, "averages": None, "average_weight": None}
    check_registration(torch.ops.fasthg.rmsprop_ema, in_order({**least, "found_inf": None}))
    other = copied(b)
    rmsprop_ema(**b)
    reference.rmsprop_ema(*in_order(other))
    for name in ("values", "squares", "momenta", "averages"):
        torch.testing.assert_close(b[name], other[name])


@pytest.mark.slow
def test_compiles_without_a_graph_break(buffers):
    b = buffers(70, 7, 30)
    other = copied(b)

    def step(b):
        b["gradient"].mul_(0.5)
        rmsprop_ema(**b)
        return b["values"].sum()

    total = torch.compile(step, fullgraph=True, backend="inductor")(b)
    torch.testing.assert_close(total, step(other))
    for name in ("values", "squares", "momenta", "averages"):
        torch.testing.assert_close(b[name], other[name])


def test_a_backward_through_changed_weights_is_refused(buffers):
    b = buffers(5)
    x = torch.ones(5, device=b["values"].device, requires_grad=True)
    product = (x * b["values"]).sum()
    rmsprop_ema(**b)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"squares": torch.ones(4)}, r"squares: expected \(5,\) without gaps, got \(4,\)"),
        ({"momenta": torch.ones(10)[::2]}, r"momenta: expected \(5,\) without gaps"),
        ({"averages": torch.ones(5)}, r"averages: expected \(7,\)"),
        ({"rate": torch.ones(2)}, "rate: expected one value"),
        ({"rate": torch.ones((), dtype=torch.float64)}, "rate: expected torch.float32"),
        ({"found_inf": torch.ones((), device="meta")}, "found_inf is on meta, values on cpu"),
        ({"decayed": 6}, "expected decayed <= weights <= values, got 6, 5, 7"),
        ({"values": torch.ones(7).half()}, "values: expected float32 or float64"),
        ({"momenta": None}, "momentum without momenta"),
        ({"average_weight": None}, "averages and average_weight: expected both or none"),
    ],
)
@pytest.mark.parametrize("device", ["cpu"])
def test_what_is_refused(buffers, changes, message):
    with pytest.raises(ValueError, match=message):
        rmsprop_ema(**{**buffers(5, 2, 3), **changes})

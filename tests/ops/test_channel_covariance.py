from __future__ import annotations

import pytest
import torch
from op_testing import LAYOUTS, channels_last, check_registration, dense
from pairwise import covering

from fasthg.ops import _extension, channel_covariance, reference

# dtype: error of a covariance relative to the deviations of both channels
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.float16: 1e-5,
    torch.bfloat16: 1e-5,
}
SHAPES = [
    (2, 5, 7, 3),
    (4, 64, 16, 16),
    (3, 131, 5, 5),
    (7, 1, 3, 2),
    (2, 8, 1, 1),
    (2, 256, 13, 11),
    (3, 128, 43, 41),
]


def make(shape, dtype, device="cpu", layout=channels_last, *, offset=0.5, seed=0):
    """Maps whose channels have something to do with each other."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    x = x + 0.5 * x.roll(1, 1) + offset
    return layout(x.to(dtype).to(device)).requires_grad_()


def plain(x):
    """The same in torch's own operators, in x's dtype."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return rows.mean(0), torch.cov(rows.mT, correction=0).view(x.shape[1], x.shape[1])


def errors(actual, exact):
    """The largest errors of mean and covariance relative to the deviations, and of the mean."""
    mean, covariance = (t.detach() for t in exact)
    deviation = covariance.diagonal().sqrt()
    difference = (actual[1].detach().double() - covariance).abs()
    # A channel of two equal values has none, and must have none in `actual`.
    relative = difference / (deviation[:, None] * deviation).clamp(min=1e-30)
    return float(relative.max()), float((actual[0].detach().double() - mean).abs().max())


@pytest.mark.parametrize(
    ("dtype", "shape", "layout", "threads"), covering(list(TOLERANCES), SHAPES, LAYOUTS, [1, 2])
)
def test_against_torch(device, set_threads, dtype, shape, layout, threads):
    set_threads(threads)
    error = TOLERANCES[dtype]
    x = make(shape, dtype, device, layout)
    mean, covariance = channel_covariance(x)
    doubles = x.detach().double().requires_grad_()
    exact = plain(doubles)
    assert mean.dtype == covariance.dtype == reference.arithmetic_dtype(dtype)
    assert covariance.is_contiguous() and torch.equal(covariance, covariance.mT)
    covariance_error, mean_error = errors((mean, covariance), exact)
    assert covariance_error < error and mean_error < error
    # One gradient comes with stride 0, the other is not symmetric.
    grad_outputs = (
        torch.full((), 0.3, dtype=mean.dtype, device=device).expand(mean.shape),
        torch.rand(covariance.shape, dtype=mean.dtype, device=device),
    )
    (gradient,) = torch.autograd.grad((mean, covariance), x, grad_outputs)
    (expected,) = torch.autograd.grad(exact, doubles, [t.double() for t in grad_outputs])
    assert gradient.dtype == dtype and gradient.shape == x.shape
    rounding = max(torch.finfo(dtype).eps, 1e-14)
    assert float((gradient.double() - expected).norm()) <= 10 * rounding * float(expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mean_of_many_deviations(device, dtype):
    x = make((4, 24, 16, 16), dtype, device, offset=30.0)
    actual, exact = channel_covariance(x), plain(x.detach().double())
    ratio = exact[0] / exact[1].diagonal().sqrt()
    covariance_error, mean_error = errors(actual, exact)
    centred = device.type == "cpu" or dtype == torch.float32
    assert covariance_error < 1e-5 * (1 if centred else 1 + float(ratio.square().max()))
    assert mean_error < 1e-5


def test_the_gradient_of_a_mean_of_many_deviations(device):
    x = make((4, 24, 16, 16), torch.float32, device, offset=1e4)
    doubles = x.detach().double().requires_grad_()
    grad_outputs = torch.rand(24, device=device), torch.rand(24, 24, device=device)
    (gradient,) = torch.autograd.grad(channel_covariance(x), x, grad_outputs)
    wide = [t.double() for t in grad_outputs]
    # Without the mean's part, which is larger here and exact.
    (expected,) = torch.autograd.grad(plain(doubles), doubles, wide)
    constant = wide[0][:, None, None] / (x.numel() / 24)
    error = (gradient.double() - expected).norm() / (expected - constant).norm()
    assert float(error) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_closer_than_a_product_of_half_type(device, dtype):
    """A covariance rounded to bfloat16 may be off by 4e-3; this is not the error we make."""
    x = make((8, 64, 32, 32), dtype, device)
    assert errors(channel_covariance(x), plain(x.detach().double()))[0] < 2.0**-9 / 100


def test_the_reference_equals_the_kernels(monkeypatch, device):
    x = make((3, 21, 9, 7), torch.float32, device)
    actual = channel_covariance(x)
    torch.testing.assert_close(actual, reference.channel_covariance(x), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(_extension, "has_kernel", lambda tensor: False)
    torch.testing.assert_close(actual, channel_covariance(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)])
def test_nothing_gives_zeros(device, dtype, shape):
    x = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
    mean, covariance = channel_covariance(x)
    assert mean.shape == shape[1:2] and covariance.shape == (shape[1], shape[1])
    assert not mean.any() and not covariance.any()
    (gradient,) = torch.autograd.grad(covariance.sum() + mean.sum(), x)
    assert gradient.shape == x.shape


def test_one_row_and_constant_channels_have_no_covariance(device):
    for x in (torch.full((1, 5, 1, 1), 3.3), torch.full((2, 5, 9, 9), 3.3)):
        mean, covariance = channel_covariance(x.to(device))
        torch.testing.assert_close(mean, torch.full((5,), 3.3, device=device))
        assert (covariance.diagonal() >= 0).all() and float(covariance.abs().max()) < 1e-6


def test_nan_stays_with_its_channel(device):
    x = make((2, 40, 4, 4), torch.bfloat16, device).detach()
    x[0, 1, 2, 2] = torch.nan
    mean, covariance = channel_covariance(x)
    expected = torch.zeros(40, dtype=torch.bool, device=device)
    expected[1] = True
    assert torch.equal(mean.isnan(), expected)
    assert torch.equal(covariance.isnan(), expected[:, None] | expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_runs_do_not_change_a_bit(on_threads, dtype):
    x = make((9, 72, 37, 41), dtype)

    def run():
        mean, covariance = channel_covariance(x)
        return mean, covariance, *torch.autograd.grad(mean.sum() + covariance.sum(), x)

    first, *others = on_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.gpu
def test_runs_on_cuda_do_not_change_a_bit():
    x = make((9, 72, 37, 41), torch.bfloat16, "cuda").detach()
    for a, b in zip(channel_covariance(x), channel_covariance(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(device, layout):
    x = make((2, 3, 3, 4), torch.float64, device, layout)
    assert torch.autograd.gradcheck(channel_covariance, x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(device, layout, dtype):
    x = make((2, 4, 5, 6), dtype, device, layout)
    check_registration(torch.ops.fasthg.channel_covariance, (x,))


def test_opcheck(device):
    x = make((2, 4, 5, 6), torch.float32, device)
    torch.library.opcheck(torch.ops.fasthg.channel_covariance, (x,))


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        pytest.param("inductor", channels_last, marks=pytest.mark.slow),
        ("aot_eager", dense),
    ],
)
def test_compiles_without_a_graph_break(device, layout, backend):
    x = make((2, 4, 6, 8), torch.float32, device, layout)

    def total(x):
        mean, covariance = channel_covariance(x * 2)
        return mean.square().sum() + (covariance * covariance.roll(1, 0)).sum()

    compiled = torch.compile(total, fullgraph=True, backend=backend)
    actual, expected = ((f(x), *torch.autograd.grad(f(x), x)) for f in (compiled, total))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 4), r"x: expected \(batch, channels, height, width\), got \(2, 3, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), r"floating dtype, got torch\.int64"),
    ],
)
def test_what_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        channel_covariance(x)


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
def test_autocast_around_the_call_changes_nothing(device, native, monkeypatch):
    if not native:
        monkeypatch.setattr(_extension, "has_kernel", lambda _: False)
    x = make((2, 6, 9, 7), torch.float32, device)
    results = []
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            moments = channel_covariance(x)
            grad_outputs = [torch.ones_like(t) for t in moments]
            results.append([*moments, *torch.autograd.grad(moments, x, grad_outputs)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))

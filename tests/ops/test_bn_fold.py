from __future__ import annotations

import pytest
import torch
from op_testing import check_registration, relative_error
from pairwise import covering
from torch.nn import functional

from fasthg.ops import bn_fold, bn_fold_backward, channel_covariance, reference

ERRORS = {torch.float64: 1e-12, torch.float32: 1e-5}
FOLDED = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(256, 128), (7, 13), (1, 1), (130, 300)]  # outputs, inputs
EPS = 1e-3


def make(shape, dtype, device="cpu", *, images=2, offset=0.3, seed=0):
    """The convolution's input, its weight, beta and the gradient of the batch norm's result."""
    outputs, inputs = shape
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(images, inputs, 13, 17, generator=random, dtype=torch.float64) + offset
    weight = torch.randn(shape, generator=random, dtype=torch.float64) / inputs**0.5
    beta = torch.randn(outputs, generator=random, dtype=torch.float64)
    d = torch.randn(images, outputs, 13, 17, generator=random, dtype=torch.float64)
    return [t.to(dtype).to(device) for t in (a.relu(), weight, beta, d)]


def rows_of(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def whole(a, weight, beta):
    """Convolution and batch norm as torch has them."""
    y = functional.conv2d(a, weight[:, :, None, None])
    one = torch.ones_like(beta).detach()  # without it, torch has no gradient of beta on a GPU
    return functional.batch_norm(y, None, None, one, beta, True, eps=EPS)


def folded_whole(a, weight, beta, d, dtype):
    """The same by the operators: result, gradients of a, weight and beta, and statistics."""
    moments = channel_covariance(a)
    folded, offset, *moments_out = bn_fold(weight, *moments, beta, EPS, dtype)
    rows, grad_output = rows_of(a), rows_of(d)
    y = rows @ folded.to(rows.dtype).mT + offset
    product, total = grad_output.mT @ rows, grad_output.sum(0)
    grad_weight, grad_beta, back, mix, constant = bn_fold_backward(
        product, total, weight, *moments, *moments_out, len(rows), EPS, dtype
    )
    grad_a = grad_output @ back.to(rows.dtype).mT + rows @ mix.to(rows.dtype) + constant
    return y, grad_a, grad_weight, grad_beta, *moments_out


def arguments(shape, dtype, device):
    """Of both operators, from the same data."""
    a, weight, beta, d = make(shape, dtype, device)
    moments = channel_covariance(a)
    moments_out = reference.bn_fold(weight, *moments, beta, EPS, dtype)[2:]
    product, total = rows_of(d).mT @ rows_of(a), rows_of(d).sum(0)
    forward = (weight, *moments, beta, EPS)
    rows = a.numel() // a.shape[1]
    return forward, (product, total, weight, *moments, *moments_out, rows, EPS)


@pytest.mark.parametrize(("dtype", "shape", "offset"), covering(list(ERRORS), SHAPES, [0.3, 10.0]))
def test_against_autograd(device, dtype, shape, offset):
    error = ERRORS[dtype]
    a, weight, beta, d = make(shape, dtype, device, offset=offset)
    y, grad_a, grad_weight, grad_beta, mean, var = folded_whole(a, weight, beta, d, dtype)
    inputs = [t.double().requires_grad_() for t in (a, weight, beta)]
    expected = whole(*inputs)
    exact_a, exact_weight, exact_beta = torch.autograd.grad(expected, inputs, d.double())
    with torch.no_grad():
        plain = functional.conv2d(a.double(), weight.double()[:, :, None, None])
    # What comes off again may be nearly all, and rounding errors are those of what there was.
    deviation = plain.std((0, 2, 3)).clamp(min=EPS**0.5)
    lost = 1 + float((rows_of(plain).mean(0) / deviation).abs().max())
    product = rows_of(d.double()).mT @ rows_of(a.double()) / deviation[:, None]
    back = rows_of(d.double()) @ (weight.double() / deviation[:, None])
    assert relative_error(y, rows_of(expected)) < error * lost
    assert relative_error(grad_a, rows_of(exact_a), back) < error * lost
    assert relative_error(grad_weight, exact_weight, product) < error * lost
    assert relative_error(grad_beta, exact_beta) < error
    assert relative_error(mean, rows_of(plain).mean(0)) < error
    assert relative_error(var, rows_of(plain).var(0, correction=0)) < error * lost


@pytest.mark.parametrize(("real", "shape", "dtype"), covering(list(ERRORS), SHAPES, FOLDED))
def test_against_the_reference(device, real, shape, dtype):
    error = ERRORS[real]
    forward, backward = arguments(shape, real, device)
    actual = bn_fold(*forward, dtype)
    grad_weight, grad_beta, *others = bn_fold_backward(*backward, dtype)
    assert grad_beta is backward[1]
    gradients = [grad_weight, *others]
    # From the same rounded numbers; only the last rounding may differ.
    exact = [t.double() if isinstance(t, torch.Tensor) else t for t in forward]
    expected = reference.bn_fold(*exact, torch.float64)
    exact = [t.double() if isinstance(t, torch.Tensor) else t for t in backward]
    grads = reference.bn_fold_backward(*exact, torch.float64)
    # Offset and constant belong to the rounded matrices.
    _, total, _, mean, *_, rows, _ = exact
    back, mix, _ = (t.double() for t in others)
    offset = forward[3].double() - actual[0].double() @ mean
    constant = -(mix @ mean) - back @ (total / rows)
    expected, grads = [expected[0], offset, *expected[2:]], [*grads[:3], constant]
    dtypes = [dtype, real, real, real, real, dtype, dtype, real]
    sizes = [*expected, exact[0], *grads[1:3], back.abs() @ (total.abs() / rows)]
    for result, right, kind, size in zip(
        [*actual, *gradients], [*expected, *grads], dtypes, sizes, strict=True
    ):
        assert result.dtype == kind and result.is_contiguous() and result.shape == right.shape
        narrow = torch.finfo(kind).eps
        assert relative_error(result, right, size) < 10 * error + narrow
    mix = others[1].double()
    assert relative_error(mix, mix.mT) < 10 * error + torch.finfo(dtype).eps


@pytest.mark.parametrize(("real", "error"), ERRORS.items())
def test_strided_arguments(device, real, error):
    forward, backward = arguments((6, 10), real, device)

    def gaps(t):
        return t.repeat_interleave(2, -1)[..., ::2] if isinstance(t, torch.Tensor) else t

    def turned(t):
        return t.mT.contiguous().mT if isinstance(t, torch.Tensor) and t.dim() == 2 else t

    for strided in (gaps, turned):
        for op, inputs in ((bn_fold, forward), (bn_fold_backward, backward)):
            expected = op(*inputs, real)
            for actual, right in zip(op(*map(strided, inputs), real), expected, strict=True):
                assert actual.shape == right.shape
                torch.testing.assert_close(actual, right, rtol=error, atol=10 * error)
    total = torch.full((), 0.5, dtype=real, device=device).expand(6)  # stride 0
    product, _, *others = backward
    expected = bn_fold_backward(product, total.contiguous(), *others, real)
    actual = bn_fold_backward(product, total, *others, real)
    torch.testing.assert_close(actual, expected, rtol=error, atol=10 * error)


def test_rounded_matrices_cost_little(device):
    """With folded weights in bfloat16, result and gradients are off by one rounding of it."""
    a, weight, beta, d = make((64, 32), torch.float32, device)
    exact = folded_whole(*(t.double() for t in (a, weight, beta, d)), torch.float64)
    rounded = folded_whole(a, weight, beta, d, torch.bfloat16)
    for name, actual, expected in zip(("y", "grad_a", "grad_weight"), rounded, exact, strict=False):
        assert relative_error(actual, expected) < (2.0**-8 if name != "grad_weight" else 1e-5), name


@pytest.mark.parametrize(("outputs", "inputs"), [(0, 5), (5, 0), (0, 0)])
def test_nothing(device, outputs, inputs):
    weight = torch.zeros(outputs, inputs, device=device)
    mean, covariance = torch.zeros(inputs, device=device), weight.new_zeros(inputs, inputs)
    beta = torch.ones(outputs, device=device)
    folded, offset, mean_out, var_out = bn_fold(weight, mean, covariance, beta)
    assert folded.shape == weight.shape and torch.equal(offset, beta)
    assert not mean_out.any() and not var_out.any()
    gradients = bn_fold_backward(weight, beta, weight, mean, covariance, mean_out, var_out, 0)
    shapes = [(outputs, inputs), (outputs,), (inputs, outputs), (inputs, inputs), (inputs,)]
    assert [t.shape for t in gradients] == shapes


def test_no_rows_give_zeros(device):
    weight = torch.ones(3, 5, device=device)
    nothing = [weight.new_zeros(size) for size in ((3, 5), 3, 5, (5, 5), 3)]
    product, total, mean, covariance, beta = nothing
    _, offset, *moments_out = bn_fold(weight, mean, covariance, beta)
    assert not any(t.any() for t in (offset, *moments_out))
    grad_weight, grad_beta, back, mix, constant = bn_fold_backward(
        product, total, weight, mean, covariance, *moments_out, 0
    )
    assert not any(t.any() for t in (grad_weight, grad_beta, mix, constant))
    torch.testing.assert_close(back, torch.full((5, 3), EPS**-0.5, device=device))


def test_a_variance_is_never_negative_and_nan_passes(device):
    weight, mean = torch.eye(2, device=device), torch.zeros(2, device=device)
    covariance = torch.tensor([[-1e-3, 0], [0, torch.nan]], device=device)
    folded, _, _, var = bn_fold(weight, mean, covariance, mean)
    assert var[0].isnan() or float(var[0]) == 0
    assert var[1].isnan() and folded[1].isnan().all()
    covariance[1, 1] = 1.0
    assert bn_fold(weight, mean, covariance, mean)[3].tolist() == [0, 1]


def test_two_runs_are_equal(device):
    forward, backward = arguments((40, 130), torch.float32, device)
    for op, inputs in ((bn_fold, forward), (bn_fold_backward, backward)):
        results = [op(*inputs, torch.bfloat16) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
def test_capture_in_a_graph():
    a, weight, beta, d = make((40, 24), torch.bfloat16, "cuda")
    weight, beta = weight.float(), beta.float()
    product, total = weight * 2, beta * 3

    def everything():
        moments = channel_covariance(a)
        forward = bn_fold(weight, *moments, beta, EPS, torch.bfloat16)
        inputs = (product, total, weight, *moments, *forward[2:], a.numel() // 24, EPS)
        return *moments, *forward, *bn_fold_backward(*inputs, torch.bfloat16)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        everything()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything()
    a.mul_(0.5)
    graph.replay()
    for actual, expected in zip(captured, everything(), strict=True):
        assert torch.equal(actual, expected)


def test_opcheck(device):
    forward, backward = arguments((6, 10), torch.float32, device)
    torch.library.opcheck(torch.ops.fasthg.bn_fold, (*forward, torch.float32))
    torch.library.opcheck(torch.ops.fasthg.bn_fold_backward, (*backward, torch.float32))


@pytest.mark.parametrize("dtype", FOLDED)
def test_registration(device, dtype):
    forward, backward = arguments((6, 10), torch.float32, device)
    check_registration(torch.ops.fasthg.bn_fold, (*forward, dtype))
    check_registration(torch.ops.fasthg.bn_fold_backward, (*backward, dtype))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    a, weight, beta, d = make((6, 10), torch.float32, device)

    @torch.no_grad()
    def everything(a, weight, beta, d):
        return folded_whole(a * 2, weight, beta, d, torch.float32)

    compiled = torch.compile(everything, fullgraph=True, backend="inductor")
    actual, expected = (f(a, weight, beta, d) for f in (compiled, everything))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_gradient_is_refused_but_not_without_gradients():
    forward, backward = arguments((2, 3), torch.float32, "cpu")
    weight = forward[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="bn_fold: weight requires a gradient, which this"):
        bn_fold(weight, *forward[1:])
    with torch.no_grad():
        bn_fold(weight, *forward[1:])
    with pytest.raises(RuntimeError, match="bn_fold_backward: product requires a gradient"):
        bn_fold_backward(backward[0].clone().requires_grad_(), *backward[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(2, 3, 1, 1)}, r"weight: expected \(outputs, inputs\), got \(2, 3"),
        ({"weight": torch.zeros(2, 3).half()}, r"expected float32 or float64, got torch\.float16"),
        ({"mean": torch.zeros(2)}, r"mean: expected \(3,\), got \(2,\)"),
        ({"covariance": torch.zeros(3)}, r"covariance: expected \(3, 3\), got \(3,\)"),
        ({"beta": torch.zeros(2).double()}, r"beta is torch\.float64, weight torch\.float32"),
        ({"beta": torch.zeros(2, device="meta")}, "beta is on meta, weight on cpu: move them to"),
        ({"dtype": torch.int32}, r"dtype: expected a floating dtype with kernels, got torch\.int"),
    ],
)
def test_what_is_refused(changes, message):
    arguments = {
        "weight": torch.zeros(2, 3),
        "mean": torch.zeros(3),
        "covariance": torch.zeros(3, 3),
        "beta": torch.zeros(2),
    }
    with pytest.raises(ValueError, match=message):
        bn_fold(**(arguments | changes))


def test_autocast_around_the_call_changes_nothing(device):
    a, weight, beta, d = make((24, 16), torch.float32, device)
    results = []
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            moments = channel_covariance(a)
            folded, offset, *moments_out = bn_fold(weight, *moments, beta, EPS)
            with torch.autocast(device.type, enabled=False):
                sums = rows_of(d).mT @ rows_of(a), rows_of(d).sum(0)
            count = len(rows_of(a))
            back = bn_fold_backward(*sums, weight, *moments, *moments_out, count, EPS)
        results.append([*moments, folded, offset, *moments_out, *back])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_the_weights_moves_no_mean(device, dtype):
    a, weight, beta, d = make((24, 16), torch.float32, device, offset=5.0)
    moments = channel_covariance(a)
    folded, offset, *moments_out = bn_fold(weight, *moments, beta, EPS, dtype)
    rows, grad_output = rows_of(a), rows_of(d)
    y = rows.double() @ folded.double().mT + offset.double()
    torch.testing.assert_close(y.mean(0), beta.double(), rtol=0, atol=1e-5)
    sums = grad_output.mT @ rows, grad_output.sum(0)
    _, _, back, mix, constant = bn_fold_backward(
        *sums, weight, *moments, *moments_out, len(rows), EPS, dtype
    )
    grad_a = grad_output.double() @ back.double().mT + rows.double() @ mix.double().mT
    grad_a = grad_a + constant.double()
    # The gradient of a batch norm's input has mean 0 in every channel, and so has that of `a`.
    torch.testing.assert_close(grad_a.mean(0), torch.zeros_like(grad_a[0]), rtol=0, atol=1e-5)

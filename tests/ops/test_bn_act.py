from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from op_testing import LAYOUTS, channels_last, check_registration, dense, relative_error
from pairwise import covering
from torch.nn import functional

from fasthg.ops import bn_act, bn_act_inference, reference, update_statistics

# dtype: error of a value near 1, of a sum relative to its terms' size
TOLERANCES = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (2e-6, 1e-5),
    torch.float16: (2.0**-10, 1e-5),
    torch.bfloat16: (2.0**-8, 1e-5),
}
# The largest takes a second thread where it is to be had.
SHAPES = [
    (2, 5, 7, 3),
    (4, 64, 24, 24),
    (3, 131, 5, 5),
    (7, 1, 3, 2),
    (2, 8, 1, 1),
    (1, 520, 11, 13),
]
# relu, with gamma, with residual
CASES = list(itertools.product([False, True], repeat=3))


def make(shape, dtype, device="cpu", layout=channels_last, *, offset=0.0, seed=0):
    """x, beta, gamma, residual and the gradient of y."""
    random = torch.Generator().manual_seed(seed)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, residual, grad_y = (
        layout((torch.randn(shape, generator=random, dtype=torch.float64) + mean).to(dtype))
        .to(device)
        .requires_grad_()
        for mean in (offset, 0, 0)
    )
    beta, gamma = torch.rand(2, shape[1], generator=random, dtype=torch.float64).to(real) + 0.1
    beta, gamma = (t.to(device).requires_grad_() for t in (beta - 0.5, gamma))
    return x, beta, gamma, residual, grad_y.detach()


def plain(x, beta, gamma, residual, relu, statistics=None):
    """The same in torch's own operators and float64, and the doubles to ask for gradients of."""
    inputs = [
        t if t is None else t.detach().double().requires_grad_() for t in (x, beta, gamma, residual)
    ]
    x, beta, gamma, residual = inputs
    means = (None, None) if statistics is None else [t.double() for t in statistics]
    # Without a scale, torch finds no gradient of beta on a GPU.
    scale = torch.ones_like(beta).detach() if gamma is None else gamma
    y = functional.batch_norm(x, *means, scale, beta, statistics is None, eps=1e-3)
    y = y if residual is None else y + residual
    return (functional.relu(y) if relu else y), [t for t in inputs if t is not None]


def chosen(case, beta, gamma, residual):
    relu, with_gamma, with_residual = case
    return relu, beta, gamma if with_gamma else None, residual if with_residual else None


@pytest.mark.parametrize(
    ("dtype", "shape", "case", "threads"), covering(list(TOLERANCES), SHAPES, CASES, [1, 2])
)
def test_against_torch(device, set_threads, dtype, shape, case, threads):
    set_threads(threads)
    error, sum_error = TOLERANCES[dtype]
    x, beta, gamma, residual, grad_y = make(shape, dtype, device)
    relu, beta, gamma, residual = chosen(case, beta, gamma, residual)
    y, mean, var = bn_act(x, beta, gamma, residual, relu=relu)
    exact, doubles = plain(x, beta, gamma, residual, relu)
    inputs = [t for t in (x, beta, gamma, residual) if t is not None]
    gradients = torch.autograd.grad(y, inputs, grad_y)
    if relu and residual is not None:  # values next to 0 may fall on either side
        exact = torch.where(y.double() > 0, exact.clamp(min=1e-30), exact * 0)
    expected = torch.autograd.grad(exact, doubles, grad_y.double())
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert not mean.requires_grad and not var.requires_grad
    torch.testing.assert_close(y.double(), exact, rtol=error, atol=4 * error)
    wide = x.detach().double()
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        var.double(), wide.var((0, 2, 3), correction=0), rtol=sum_error, atol=1e-12
    )
    # grad_x is a difference and rounds as its terms do, which nearly cancel where a channel has two
    # values.
    factor = (wide.var((0, 2, 3), correction=0) + 1e-3).rsqrt()
    factor = factor if gamma is None else factor * gamma.detach().double()
    terms = grad_y.double() * factor[:, None, None]
    for source, actual, right in zip(inputs, gradients, expected, strict=True):
        assert actual.dtype == source.dtype
        bound = 2 * error if source.dim() == 4 else 10 * sum_error
        assert relative_error(actual, right, terms if source is x else None) < bound


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_inference_against_torch(device, dtype, case):
    error, sum_error = TOLERANCES[dtype]
    x, beta, gamma, residual, grad_y = make((3, 24, 5, 7), dtype, device)
    relu, beta, gamma, residual = chosen(case, beta, gamma, residual)
    statistics = (beta.detach() + 0.3, beta.detach().square() + 0.1)
    y = bn_act_inference(x, *statistics, beta, gamma, residual, relu=relu)
    exact, doubles = plain(x, beta, gamma, residual, relu, statistics)
    inputs = [t for t in (x, beta, gamma, residual) if t is not None]
    torch.testing.assert_close(y.double(), exact, rtol=error, atol=8 * error)
    gradients = torch.autograd.grad(y, inputs, grad_y)
    for actual, right in zip(
        gradients, torch.autograd.grad(exact, doubles, grad_y.double()), strict=True
    ):
        assert relative_error(actual, right) < max(2 * error, sum_error)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_at_most_twice_as_far_as_torch(device, dtype, case):
    x, beta, gamma, residual, grad_y = make((4, 24, 9, 11), dtype, device)
    relu, beta, gamma, residual = chosen(case, beta, gamma, residual)
    inputs = [t for t in (x, beta, gamma, residual) if t is not None]
    exact, doubles = plain(x, beta, gamma, residual, relu)
    expected = (exact.detach(), *torch.autograd.grad(exact, doubles, grad_y.double()))
    scale = torch.ones_like(beta).detach() if gamma is None else gamma
    theirs = functional.batch_norm(x, None, None, scale, beta, True, eps=1e-3)
    theirs = theirs if residual is None else theirs + residual
    theirs = functional.relu(theirs) if relu else theirs
    ours = bn_act(x, beta, gamma, residual, relu=relu)[0]
    results = [(y.detach(), *torch.autograd.grad(y, inputs, grad_y)) for y in (ours, theirs)]
    for mine, other, right in zip(*results, expected, strict=True):
        # Sums are exact to float32 in both, so that either may be the nearer one by chance.
        assert relative_error(mine, right) <= 2 * max(relative_error(other, right), 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_fallback_equals_the_kernels(monkeypatch, case):
    x, beta, gamma, residual, grad_y = make((3, 6, 5, 7), torch.float32)
    relu, beta, gamma, residual = chosen(case, beta, gamma, residual)
    inputs = [t for t in (x, beta, gamma, residual) if t is not None]

    def run():
        y, mean, var = bn_act(x, beta, gamma, residual, relu=relu)
        other = bn_act_inference(x, mean, var, beta, gamma, residual, relu=relu)
        return (
            y,
            mean,
            var,
            other,
            *(gradient for t in (y, other) for gradient in torch.autograd.grad(t, inputs, grad_y)),
        )

    native = run()
    monkeypatch.setattr("fasthg.ops._extension.has_kernel", lambda tensor: False)
    torch.testing.assert_close(run(), native, rtol=1e-5, atol=1e-5)
    y, *_ = reference.bn_act(x, beta, gamma, residual, relu=relu)
    torch.testing.assert_close(y, native[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernels", [True, False])
def test_the_backward_in_two_halves(monkeypatch, device, dtype, relu, kernels):
    """The sums alone, then the gradient from them: what the whole backward returns."""
    module, random = importlib.import_module("fasthg.ops.bn_act"), torch.Generator().manual_seed(0)
    if not kernels:
        monkeypatch.setattr("fasthg.ops._extension.has_kernel", lambda tensor: False)
    x, grad_y = (torch.randn(2, 24, 9, 7, generator=random).to(device, dtype) for _ in range(2))
    mean, var, beta, gamma = torch.rand(4, 24, generator=random, dtype=torch.float64).to(device)
    whole = module.gradients(grad_y, x, None, mean, var, beta, gamma, relu, False, 1e-3)
    sums = module.gradient_sums(grad_y, x, mean, var, beta, gamma, relu, 1e-3)
    grad_x = module.gradient_from_sums(grad_y, x, mean, var, beta, gamma, whole[1:3], relu, 1e-3)
    assert grad_x.dtype == x.dtype and sums[0].dtype == whole[1].dtype
    for actual, expected in zip((grad_x, *sums), whole, strict=False):
        bound = 1e-12 if dtype == torch.float64 else 1e-6
        assert relative_error(actual, expected) < bound


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_any_incoming_gradient(device, layout):
    x, beta, gamma, residual, _ = make((2, 6, 8, 9), torch.float32, device, layout)
    for grad_output in (
        torch.tensor(2.0).expand(x.shape),  # stride 0, as .sum() sends
        torch.rand(6)[:, None, None].expand(x.shape),
        torch.randn(x.shape),
        torch.randn(2, 9, 8, 6).permute(0, 3, 2, 1),
    ):
        grad_output = grad_output.to(device)
        y, *_ = bn_act(x, beta, gamma, residual, relu=True)
        exact, doubles = plain(x, beta, gamma, residual, True)
        torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-5)
        gradients = torch.autograd.grad(y, (x, beta, gamma, residual), grad_output)
        expected = torch.autograd.grad(exact, doubles, grad_output.double())
        for actual, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(actual.double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_of_a_hundred_deviations_costs_no_digits(device, dtype):
    x, beta, gamma, residual, grad_y = make((4, 32, 32, 32), dtype, device, offset=100.0)
    y, mean, var = bn_act(x, beta)
    exact, (double, _) = plain(x, beta, None, None, False)
    wide = x.detach().double()
    torch.testing.assert_close(var.double(), wide.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)
    # The mean itself is stored in x's precision.
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-5)
    (actual,) = torch.autograd.grad(y, x, grad_y)
    (expected,) = torch.autograd.grad(exact, double, grad_y.double())
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_normalise(device, shape):
    x, beta, gamma, residual, grad_y = make(shape, torch.float32, device)
    y, mean, var = bn_act(x, beta, gamma, residual, relu=True)
    assert y.shape == shape and not mean.any() and not var.any()
    gradients = torch.autograd.grad(y, (x, beta, gamma, residual), grad_y)
    assert not any(gradient.any() for gradient in gradients)
    assert bn_act_inference(x, mean, var, beta).shape == shape


def test_one_pixel_gives_the_offset(device):
    x, beta, gamma, _, grad_y = make((1, 5, 1, 1), torch.float32, device)
    y, mean, var = bn_act(x, beta, gamma)
    torch.testing.assert_close(y[0, :, 0, 0], beta)
    torch.testing.assert_close(mean, x[0, :, 0, 0])
    assert not var.any()
    # Over the root of eps, 0.03, a rounding error is enlarged.
    assert float(torch.autograd.grad(y, x, grad_y)[0].abs().max()) < 1e-5


def test_nan_stays_in_its_channel_and_passes_relu(device):
    x, beta, *_ = make((2, 3, 4, 4), torch.float32, device)
    with torch.no_grad():
        x[0, 1, 2, 2] = torch.nan
    y, mean, var = bn_act(x, beta, relu=True)
    for values in (y.isnan().all((0, 2, 3)), y.isnan().any((0, 2, 3)), mean.isnan(), var.isnan()):
        assert values.tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_runs_do_not_change_a_bit(on_threads, dtype):
    x, beta, gamma, residual, grad_y = make((9, 24, 37, 41), dtype)

    def run():
        outputs = bn_act(x, beta, gamma, residual, relu=True)
        inputs = (x, beta, gamma, residual)
        return (*outputs, *torch.autograd.grad(outputs[0], inputs, grad_y))

    first, *others = on_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.gpu  # without one there is no choice between them
@pytest.mark.parametrize("shape", [(8, 64, 4, 4), (3, 24, 48, 48), (8, 16, 48, 48)])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_one_kernel_launch_equals_three(monkeypatch, dtype, shape):
    """One each way, one for the forward alone, and three each way."""
    module = importlib.import_module("fasthg.ops.bn_act")
    monkeypatch.setattr(module, "_choose_clusters", lambda *_: (0, 0))
    error, sum_error = TOLERANCES[dtype]
    device = torch.device("cuda")
    *inputs, grad_y = make(shape, dtype, device)
    results = []
    for rows in (1 << 30, 1 << 30, 0):
        monkeypatch.setattr(module, "_ON_CHIP_ROWS", rows)
        outputs = bn_act(*inputs)
        results.append((*outputs, *torch.autograd.grad(outputs[0], inputs, grad_y)))
    for once, again, thrice in zip(*results, strict=True):
        assert torch.equal(once, again)
        assert relative_error(once, thrice) < (2 * error if once.dim() == 4 else 10 * sum_error)


# All rows kept on chip, a part of them by a cluster of one block, and a part of a slice. With a
# ReLU, values next to 0 may fall on the other side in three launches, but not in other clusters.
@pytest.mark.gpu
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(2, 128, 48, 48), (3, 16, 64, 64), (5, 24, 37, 41)])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_clusters_equal_three_launches(monkeypatch, dtype, shape, relu):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("no clusters on this GPU")
    error, sum_error = TOLERANCES[dtype]
    *inputs, grad_y = make(shape, dtype, torch.device("cuda"))
    module = importlib.import_module("fasthg.ops.bn_act")
    results = []
    for chosen in ((0, 0), (1, 2), (2, 4), (8, 2), (8, 4), (8, 4)):
        monkeypatch.setattr(module, "_choose_clusters", lambda *_, chosen=chosen: chosen)
        outputs = bn_act(*inputs, relu=relu)
        results.append((*outputs, *torch.autograd.grad(outputs[0], inputs, grad_y)))
    three, first, *others = results
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for one, right in zip(first, three, strict=True):
        bound = 2 * error if one.dim() == 4 else 10 * sum_error
        assert relu or relative_error(one, right) < bound


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(device, case):
    x, beta, gamma, residual, _ = make((2, 3, 3, 4), torch.float64, device)
    relu, beta, gamma, residual = chosen(case, beta, gamma, residual)
    statistics = (beta.detach() + 0.3, beta.detach().square() + 0.1)

    def train(*inputs):
        return bn_act(*inputs, relu=relu)[0]

    def infer(x, *others):
        return bn_act_inference(x, *statistics, *others, relu=relu)

    for function in (train, infer):
        assert torch.autograd.gradcheck(function, (x, beta, gamma, residual))


def operator_arguments(x, beta, gamma, residual, grad_y, relu):
    """Of the three operators."""
    statistics = (beta.detach() + 0.3, beta.detach().square() + 0.1)
    ops = torch.ops.fasthg
    yield ops.bn_act, (x, beta, gamma, residual, relu, 1e-3)
    yield ops.bn_act_inference, (x, *statistics, beta, gamma, residual, relu, 1e-3)
    for y in (None, x.relu()) if relu else (None,):
        inputs = (grad_y, x, y, *statistics, beta, gamma, relu, False, 1e-3)
        inputs = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in inputs)
        yield ops.bn_act_backward, inputs


def test_opcheck(device):
    x, beta, gamma, residual, grad_y = make((2, 4, 5, 6), torch.float32, device)
    for operator, arguments in operator_arguments(x, beta, gamma, residual, grad_y, True):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(device, layout, dtype):
    x, beta, gamma, residual, grad_y = make((2, 4, 5, 6), dtype, device, layout)
    for relu, *optional in ((True, None, None), (False, gamma, residual), (True, None, residual)):
        for operator, arguments in operator_arguments(x, beta, *optional, grad_y, relu):
            check_registration(operator, arguments)


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        pytest.param("inductor", channels_last, marks=pytest.mark.slow),
        ("aot_eager", dense),
    ],
)
def test_compiles_without_a_graph_break(device, layout, backend):
    x, beta, gamma, residual, _ = make((2, 4, 6, 8), torch.float32, device, layout)
    running = torch.zeros(4, device=device), torch.ones(4, device=device)

    def total(x, beta, gamma, residual, running_mean, running_var):
        y, mean, var = bn_act(x * 2, beta, gamma, residual, relu=True)
        update_statistics(running_mean, running_var, mean, var, x.numel() // x.shape[1], 0.9)
        z = bn_act_inference(y, running_mean, running_var, beta)
        return (y * 0.5 + z * z).sum()

    def results(function):
        statistics = [t.clone() for t in running]
        loss = function(x, beta, gamma, residual, *statistics)
        return loss, *statistics, *torch.autograd.grad(loss, (x, beta, gamma, residual))

    compiled = torch.compile(total, fullgraph=True, backend=backend)
    torch.testing.assert_close(results(compiled), results(total))


def test_running_statistics_move_as_those_of_torch(device):
    x, beta, *_ = make((4, 6, 5, 5), torch.float32, device)
    ours = [torch.rand(6, device=device) for _ in range(2)]
    expected = [t.clone() for t in ours]
    functional.batch_norm(x, *expected, None, beta, True, 0.1)
    _, mean, var = bn_act(x, beta)
    update_statistics(*ours, mean, var, 100, 0.9)
    torch.testing.assert_close(ours, expected)


def test_batches_of_one_and_none_leave_numbers(device):
    running = [torch.zeros(2, device=device), torch.ones(2, device=device)]
    one, none = torch.full((2,), 3.0, device=device), torch.zeros(2, device=device)
    update_statistics(*running, one, none, 1, 0.5)
    assert [t.tolist() for t in running] == [[1.5, 1.5], [0.5, 0.5]]
    update_statistics(*running, none, none, 0, 0.5)
    assert [t.tolist() for t in running] == [[1.5, 1.5], [0.5, 0.5]]


def test_only_x_and_statistics_are_kept_for_the_backward():
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    x, beta, _, residual, _ = make((2, 4, 8, 8), torch.float32)
    for added, relu, maps in ((None, True, 1), (residual, False, 1), (residual, True, 2)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            bn_act(x, beta, None, added, relu=relu)
        assert sum(tensor.dim() == 4 for tensor in kept) == maps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x: expected \(batch, channels, height, width\), got \(2"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, r"floating dtype, got torch\.int64"),
        ({"beta": torch.zeros(4)}, r"beta: expected \(3,\), got \(4,\)"),
        ({"gamma": torch.zeros(3, 1)}, r"gamma: expected \(3,\), got \(3, 1\)"),
        ({"residual": torch.zeros(2, 3, 4, 1)}, r"residual: expected \(2, 3, 4, 4\), got"),
        ({"beta": torch.zeros(3, device="meta")}, "beta is on meta, x on cpu: move them to one"),
    ],
)
def test_what_is_refused(changes, message):
    arguments = {"x": torch.zeros(2, 3, 4, 4), "beta": torch.zeros(3), **changes}
    with pytest.raises(ValueError, match=message):
        bn_act(**arguments)
    with pytest.raises(ValueError, match=message):
        bn_act_inference(mean=torch.zeros(3), var=torch.ones(3), **arguments)

from __future__ import annotations

import pytest
import torch
from op_testing import check_registration
from torch import Tensor
from torch.nn import functional

from fasthg.ops import reference, residual_block, residual_block_inference

NAMES = ("weight1", "beta1", "weight2", "beta2", "weight3", "beta3", "weight_skip", "beta_skip")
# (batch, in, height, width), half, out; in = out has no skip convolution
BLOCKS = [
    ((2, 16, 8, 8), 8, 16),
    ((3, 6, 7, 5), 3, 10),
    ((1, 5, 1, 2), 2, 5),
    ((2, 1, 3, 3), 1, 1),
]
TOLERANCES = [(torch.float32, 2e-5), (torch.float64, 1e-12)]


def make(
    shape: tuple[int, ...],
    half: int,
    out: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    offset: float = 0.0,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Input, weights and the gradient of y, drawn in float64 and rounded to dtype."""
    random = torch.Generator().manual_seed(sum(shape) + half)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=random, dtype=torch.float64)

    x, grad_y = draw(*shape) + offset, draw(shape[0], out, *shape[2:])
    x, grad_y = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, grad_y))
    sizes = [(half, shape[1], 1, 1), (half,), (half, half, 3, 3), (half,), (out, half, 1, 1)]
    sizes += [(out,)] + ([(out, shape[1], 1, 1), (out,)] if out != shape[1] else [])
    weights = [draw(*s) / max(1, s[0]) ** 0.5 for s in sizes]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return x.to(device), [w.to(device, real) for w in weights], grad_y.to(device)


def results(function, x: Tensor, weights: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    """y, statistics, and the gradients of x and of all weights."""
    inputs = [t.detach().clone().requires_grad_() for t in (x, *weights)]
    y, statistics = function(*inputs)
    gradients = torch.autograd.grad(y, inputs, grad_y)
    return [y.detach(), *(s.detach() for s in statistics if s.numel()), *gradients]


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the largest value or, where all nearly cancel, to a tenth."""
    error = (actual.double() - expected.double()).abs().max()
    return (error / expected.double().abs().max().clamp(min=0.1)).item()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize(("dtype", "error"), TOLERANCES)
def test_against_torch(device, dtype, error, block):
    inputs = make(*block, dtype, device)
    x, weights, grad_y = inputs
    exact = results(reference.residual_block, x.double(), [w.double() for w in weights], grad_y)
    for actual, expected in zip(results(residual_block, *inputs), exact, strict=True):
        assert actual.dtype == dtype and actual.shape == expected.shape
        assert largest_error(actual, expected) < error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out", [32, 48])
def test_half_types_err_no_more_than_twice_what_torch_does(device, dtype, out):
    inputs = make((4, 32, 16, 16), 16, out, dtype, device)
    x, weights, grad_y = inputs
    exact = results(reference.residual_block, x.double(), [w.double() for w in weights], grad_y)

    def plain(x: Tensor, *w: Tensor) -> tuple[Tensor, list[Tensor]]:
        def norm(inner: Tensor, beta: Tensor) -> Tensor:
            one = torch.ones_like(beta).detach()  # without it, no gradient of beta on a GPU
            return functional.batch_norm(inner, None, None, one, beta, training=True, eps=1e-3)

        halves = [t.to(dtype) if t.dim() == 4 else t for t in w]
        inner = functional.relu(norm(functional.conv2d(x, halves[0]), halves[1]))
        inner = functional.relu(norm(functional.conv2d(inner, halves[2], padding=1), halves[3]))
        y = norm(functional.conv2d(inner, halves[4]), halves[5])
        return y + (norm(functional.conv2d(x, halves[6]), halves[7]) if len(w) > 6 else x), []

    def distance(actual: Tensor, expected: Tensor) -> float:
        return ((actual.double() - expected).norm() / expected.norm()).item()

    ours, theirs = results(residual_block, *inputs), results(plain, *inputs)
    statistics = len(ours) - len(theirs)
    compared = [ours[0], *ours[1 + statistics :]]
    expected = [exact[0], *exact[1 + statistics :]]
    for actual, other, right in zip(compared, theirs, expected, strict=True):
        assert distance(actual, right) < 2 * distance(other, right) + 1e-6
    for actual, right in zip(ours[1 : 1 + statistics], exact[1 : 1 + statistics], strict=True):
        assert largest_error(actual, right) < 0.02


@pytest.mark.parametrize("block", [((2, 4, 3, 2), 2, 6), BLOCKS[2]], ids=str)
def test_gradcheck(block):
    x, weights, _ = make(*block, torch.float64)
    inputs = [t.requires_grad_() for t in (x, *weights)]
    assert torch.autograd.gradcheck(lambda *tensors: residual_block(*tensors)[0], inputs)


def operator_arguments(x, weights, grad_y):
    """Of both operators."""
    weights = weights + [None] * (8 - len(weights))
    inputs = [None if t is None else t.requires_grad_() for t in (x, *weights)]
    yield torch.ops.fasthg.residual_block.default, (*inputs, 1e-3)
    y, y1, y2, *values = torch.ops.fasthg.residual_block(*inputs, 1e-3)
    w1, b1, w2, b2, w3, _, skip, _ = (None if w is None else w.detach() for w in weights)
    saved = x.detach(), y1.detach(), y2.detach(), values[:8], values[8:]
    arguments = grad_y, *saved, w1, b1, w2, b2, w3, skip, 1e-3
    yield torch.ops.fasthg.residual_block_backward.default, arguments


def test_opcheck(device):
    for operator, arguments in operator_arguments(*make(*BLOCKS[1], torch.float32, device)):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(device, dtype, block):
    for operator, arguments in operator_arguments(*make(*block, dtype, device)):
        check_registration(operator, arguments)


@pytest.mark.parametrize(
    ("backend", "block"),
    [
        pytest.param("inductor", BLOCKS[1], marks=pytest.mark.slow),  # with a skip convolution
        ("aot_eager", BLOCKS[0]),
    ],
    ids=["inductor", "aot_eager"],
)
def test_compiles_without_a_graph_break(device, block, backend):
    inputs = make(*block, torch.float32, device)
    eager = results(residual_block, *inputs)
    compiled = torch.compile(residual_block, fullgraph=True, backend=backend)
    for actual, expected in zip(results(compiled, *inputs), eager, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_any_layout_and_any_incoming_gradient(device):
    x, weights, grad_y = make((2, 6, 7, 5), 3, 10, torch.float64, device)
    expected = results(residual_block, x, weights, grad_y)
    sliced = torch.stack([x, x.flip(0)], 1)[:, 0]
    for laid in (x.contiguous(), sliced):
        for gradient in (grad_y.contiguous(), torch.stack([grad_y] * 2, -1)[..., 0]):
            for actual, right in zip(
                results(residual_block, laid, weights, gradient), expected, strict=True
            ):
                torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-12)
    expanded = torch.ones((), dtype=x.dtype, device=device).expand(grad_y.shape)
    expected = results(residual_block, x, weights, expanded.contiguous())
    for actual, right in zip(results(residual_block, x, weights, expanded), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_equal(monkeypatch, device, set_threads, dtype, threads):
    """With one number of threads: torch's matrix products depend on it."""
    set_threads(threads)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    inputs = make((4, 32, 16, 16), 16, 48, dtype, device)
    first, second = (results(residual_block, *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("out", [6, 10])
@pytest.mark.parametrize("sizes", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_without_pixels(device, out, sizes):
    batch, *sides = sizes
    x, weights, grad_y = make((batch, 6, *sides), 3, out, torch.float32, device)
    y, *values = results(residual_block, x, weights, grad_y)
    assert y.shape == (batch, out, *sides)
    assert all(torch.equal(t, torch.zeros_like(t)) for t in values)


def test_a_mean_far_from_zero_in_the_skip_costs_few_digits(device):
    inputs = make((4, 8, 8, 8), 8, 12, torch.float32, device, offset=100.0)
    x, weights, grad_y = inputs
    exact = results(reference.residual_block, x.double(), [w.double() for w in weights], grad_y)
    for actual, expected in zip(results(residual_block, *inputs), exact, strict=True):
        assert largest_error(actual, expected) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_skip_whose_variance_overflows_gives_its_offset(device, dtype):
    """As batch norm of infinite variance does; NaN in the data stays NaN."""
    x, weights, grad_y = make((2, 6, 8, 8), 3, 10, dtype, device)
    x *= 1e30
    y, *values = results(residual_block, x, weights, grad_y)
    expected = results(reference.residual_block, x.float(), weights, grad_y)
    assert largest_error(y, expected[0]) < (1e-5 if dtype == torch.float32 else 2e-2)
    assert values[7].isposinf().all()
    assert all(gradient.isfinite().all() for gradient in values[8:])
    assert not values[8 + 7].any()  # of the skip convolution
    x[0, 0, 0, 0] = torch.nan
    assert residual_block(x, *weights)[0].isnan().all()


def test_only_the_input_and_two_narrow_maps_are_kept():
    shape, half = (2, 32, 16, 16), 16
    x, weights, _ = make(shape, half, 32, torch.bfloat16)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    inputs = [t.requires_grad_() for t in (x, *weights)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        residual_block(*inputs)
    maps = [t for t in kept.values() if t.dim() == 4 and t.shape[2:] == (16, 16)]
    assert sorted(t.shape[1] for t in maps) == [half, half, 32]
    assert any(t.data_ptr() == x.data_ptr() for t in maps)


@pytest.mark.parametrize("out", [6, 10])
def test_inference_with_folded_norms(device, out):
    x, weights, _ = make((2, 6, 7, 5), 3, out, torch.float64, device)
    w1, b1, w2, b2, w3, b3, *skip = weights
    y = residual_block_inference(x, w1, b1, w2, b2, w3, b3, *skip[:1])
    inner = functional.conv2d(x, w1, b1).relu()
    inner = functional.conv2d(inner, w2, b2, padding=1).relu()
    expected = functional.conv2d(inner, w3, b3)
    expected = expected + (functional.conv2d(x, skip[0]) if skip else x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(2, 6, 4), "x: expected floating"),
        ("x", torch.zeros(2, 6, 4, 4, dtype=torch.int32), "x: expected floating"),
        ("weight2", torch.zeros(3, 3, 1, 1), "weight2: expected (3, 3, 3, 3), got (3, 3, 1, 1)"),
        ("beta1", torch.zeros(6), "beta1: expected (3,)"),
        ("weight1", torch.zeros(3, 6, 1, 1, device="meta"), "weight1 is on meta"),
        ("beta_skip", torch.zeros(6), "give both or neither"),
        ("beta3", torch.zeros(6, 1), "beta3: expected (6,)"),
        ("x", torch.zeros(2, 5, 4, 4), "weight1: expected (3, 5, 1, 1)"),
    ],
)
def test_what_is_refused(name, value, message):
    x, weights, _ = make((2, 6, 4, 4), 3, 6, torch.float32)
    arguments = {"x": x, **dict(zip(NAMES, weights, strict=False)), name: value}
    with pytest.raises(ValueError, match="residual_block") as error:
        residual_block(**arguments)
    assert message in str(error.value)


def test_more_channels_out_than_in_need_a_skip_convolution():
    x, weights, _ = make((2, 6, 4, 4), 3, 10, torch.float32)
    with pytest.raises(ValueError, match="6 channels become 10: give weight_skip"):
        residual_block(x, *weights[:6])


@pytest.mark.parametrize("out", [6, 10])
def test_autocast_around_the_call_changes_nothing(device, out):
    inputs = make((2, 6, 7, 5), 3, out, torch.float32, device)
    plain = results(residual_block, *inputs)
    with torch.autocast(device.type, torch.bfloat16):
        around = results(residual_block, *inputs)
    assert all(torch.equal(one, other) for one, other in zip(plain, around, strict=True))
    x, (w1, b1, w2, b2, w3, b3, *skip), _ = inputs
    arguments = (x, w1, b1, w2, b2, w3, b3, *skip[:1])
    plain = residual_block_inference(*arguments)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(residual_block_inference(*arguments), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out", [6, 10])
def test_results_may_be_changed_in_place(device, dtype, out):
    x, weights, _ = make((2, 6, 7, 5), 3, out, dtype, device)
    x.requires_grad_()
    y, _ = residual_block(x, *weights)
    y.mul_(2).sum().backward()
    once = torch.autograd.grad(residual_block(x, *weights)[0].sum(), x)[0]
    torch.testing.assert_close(x.grad, 2 * once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_move_no_channel(device, dtype):
    x, weights, grad_y = make((4, 32, 16, 16), 16, 48, dtype, device, offset=10.0)
    y, _ = residual_block(x, *weights)
    exact, _ = reference.residual_block(x.double(), *(w.double() for w in weights))
    error = (y.double() - exact).mean((0, 2, 3)).abs().max().item()
    # What remains is the rounding of y, of which the mean is taken over 1024 pixels.
    assert error < torch.finfo(dtype).eps / 4

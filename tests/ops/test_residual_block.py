"""The residual with norms in its 1x1 convolutions, against torch's own operators."""

from __future__ import annotations

import pytest
import torch
from op_testing import LAYOUTS, channels_last, check_registration, dense, relative_error
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasthg.ops import _extension, reference
from fasthg.ops.bn_act import bn_act
from fasthg.ops.residual_block import has_kernels, residual_block, residual_block_inference

ERRORS = {torch.float64: 1e-11, torch.float32: 1e-4}


def case(channels, dtype, device, size=(2, 7, 9), weights=None):
    """x, three pairs of weights and offsets, and the gradient of y."""
    half, random = channels // 2, torch.Generator().manual_seed(channels)
    batch, height, width = size
    maps = (batch, channels, height, width)
    shapes = ((half, channels, 1, 1), (half,), (half, half, 3, 3), (half,))
    shapes += ((channels, half, 1, 1), (channels,))
    x, grad_y = (torch.randn(maps, generator=random).to(device, dtype) for _ in range(2))
    made = (torch.randn(s, generator=random) / max(s[0], 1) ** 0.5 for s in shapes)
    return channels_last(x), [w.to(device, weights or dtype) for w in made], channels_last(grad_y)


def by_reference(*inputs):
    return reference.residual_block(*inputs)[0]


def by_bn_act(x, weight1, beta1, weight2, beta2, weight3, beta3):
    """As the layers do where no operator has the whole residual."""
    inner = bn_act(functional.conv2d(x, weight1), beta1, relu=True)[0]
    inner = bn_act(functional.conv2d(inner, weight2, padding=1), beta2, relu=True)[0]
    return bn_act(functional.conv2d(inner, weight3), beta3, residual=x)[0]


def gradients(function, x, weights, grad_y):
    """y and the gradients of x and the weights, of copies."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *weights)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(y.dtype))]


def block(*inputs):
    return residual_block(*inputs)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [2, 10, 16])
@pytest.mark.parametrize("dtype", list(ERRORS))
def test_against_torch(device, dtype, channels, layout):
    x, weights, grad_y = case(channels, dtype, device)
    x, grad_y = layout(x), layout(grad_y)
    exact = [t.double() for t in (x, *weights)]
    expected = gradients(by_reference, exact[0], exact[1:], grad_y.double())
    actual = gradients(block, x, weights, grad_y)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    for one, right in zip(actual, expected, strict=True):
        assert one.dtype == dtype and one.shape == right.shape
        assert relative_error(one, right) < ERRORS[dtype]
    with torch.no_grad():
        statistics = residual_block(x, *weights)[1], reference.residual_block(*exact)[1]
    for one, right in zip(*statistics, strict=True):
        assert relative_error(one, right) < ERRORS[dtype]


@pytest.mark.parametrize("weights", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_no_farther_than_bn_act_after_convolutions(device, dtype, weights):
    """Within 1.3 times their error: every map is rounded as there, but for sums on the way."""
    x, values, grad_y = case(32, dtype, device, (2, 14, 25), weights)
    exact = [t.to(dtype).double() if t.dim() == 4 else t.double() for t in (x, *values)]
    expected = gradients(by_reference, exact[0], exact[1:], grad_y.double())
    rounded = [t.to(dtype) if t.dim() == 4 else t for t in values]
    usual = gradients(by_bn_act, x, rounded, grad_y)
    actual = gradients(block, x, values, grad_y)
    for one, other, right, leaf in zip(actual, usual, expected, (x, x, *values), strict=True):
        assert one.dtype == leaf.dtype
        assert relative_error(one, right) < 1.3 * relative_error(other, right) + 1e-3


@pytest.mark.parametrize("kernels", [True, False])
def test_gradcheck(monkeypatch, device, kernels):
    if not kernels:
        monkeypatch.setattr(_extension, "has_kernel", lambda tensor: False)
    x, weights, _ = case(4, torch.float64, device, (1, 3, 4))
    leaves = [t.requires_grad_() for t in (x, *weights)]
    assert torch.autograd.gradcheck(block, leaves, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("frozen", range(7))
def test_a_frozen_tensor_changes_no_other_gradient(device, frozen):
    x, weights, grad_y = case(8, torch.float32, device)
    leaves = [t.requires_grad_(i != frozen) for i, t in enumerate((x, *weights))]
    expected = gradients(block, x, weights, grad_y)[1:]
    block(*leaves).backward(grad_y)
    for i, (leaf, right) in enumerate(zip(leaves, expected, strict=True)):
        assert leaf.grad is None if i == frozen else torch.equal(leaf.grad, right)


class Read(TorchDispatchMode):
    """Gathers the storages of what torch reads, but for what it makes meanwhile."""

    def __init__(self):
        super().__init__()
        self.storages, self.made = set(), {}

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        self.storages |= storages(tree_leaves((arguments, keywords))) - self.made.keys()
        # Kept, so that no other tensor takes their place in memory.
        self.made |= {s: results for s in storages(tree_leaves(results)) - self.storages}
        return results


def storages(values):
    return {t.untyped_storage().data_ptr() for t in values if isinstance(t, torch.Tensor)}


def test_weights_are_differentiated_aside(device, monkeypatch):
    """Each in one call that names all that it reads: on another stream it lives until then."""
    monkeypatch.setattr(_extension, "has_kernel", lambda tensor: False)  # torch alone is watched
    x, weights, grad_y = case(8, torch.float32, device)
    shapes = []

    def aside(read, compute):
        with Read() as watched:
            made = compute()
        assert watched.storages <= storages([*read, *leaves])
        assert storages(read) - storages(leaves) <= watched.storages, "nothing lives for nothing"
        shapes.append(tuple(made.shape))
        return made

    leaves = [t.requires_grad_() for t in (x, *weights)]
    y, _ = residual_block(*leaves, aside=aside)
    made = torch.autograd.grad(y, leaves, grad_y)
    assert shapes == [(8, 4), (4, 4, 3, 3), (4, 8)]
    in_turn = gradients(block, leaves[0], leaves[1:], grad_y)[1:]
    assert all(torch.equal(one, right) for one, right in zip(made, in_turn, strict=True))


def test_an_expanded_gradient_and_a_second_run(device):
    x, weights, grad_y = case(8, torch.bfloat16, device)
    ones = torch.ones((), dtype=x.dtype, device=device).expand(grad_y.shape)
    runs = [gradients(block, x, weights, one) for one in (ones, ones.contiguous(), ones)]
    for one, *others in zip(*runs, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_what_is_kept_for_the_backward(device):
    """x, the results of three convolutions and a1: 3.5 times x, where bn_act keeps 4."""
    x, weights, _ = case(8, torch.float32, device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        residual_block(x.requires_grad_(), *weights)
    assert sum(n for n in kept if n >= x.numel() // 2) == 3.5 * x.numel()


def test_an_empty_batch_and_an_unused_result(device):
    x, weights, _ = case(8, torch.float32, device, (0, 4, 4))
    leaves = [t.requires_grad_() for t in (x, *weights)]
    y, statistics = residual_block(*leaves)
    assert y.shape == x.shape and not any(t.any() for t in statistics)
    y.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in leaves)
    assert not any(t.requires_grad for t in statistics)


def test_kernels_are_of_half_types_on_a_gpu():
    assert not has_kernels(torch.zeros(1, 16, 2, 2), 8)
    assert not has_kernels(torch.zeros(1, 16, 2, 2, dtype=torch.bfloat16), 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_and_changes_in_place(device, dtype):
    """Autocast around a call changes no bit; a result that is changed is not needed any more."""
    x, weights, grad_y = case(8, dtype, device)
    plain = gradients(block, x, weights, grad_y)
    with torch.autocast(device.type, torch.bfloat16):
        around = gradients(block, x, weights, grad_y)
    doubled = gradients(lambda *t: block(*t).mul_(2), x, weights, grad_y / 2)
    for one, other, third in zip(plain, around, doubled, strict=True):
        assert torch.equal(one, other)
        assert third is doubled[0] or torch.equal(one, third)


def transposed(weight):
    return weight.transpose(0, 1).contiguous().transpose(0, 1)


def operators(x, weights, grad_y):
    """Both, with their arguments."""
    inputs = [t.requires_grad_() for t in (x, *weights)]
    yield torch.ops.fasthg.residual_block.default, (*inputs, 1e-3)
    _, *kept = torch.ops.fasthg.residual_block(*inputs, 1e-3)
    saved = [t.detach() for t in (grad_y, *inputs, *kept)]
    yield torch.ops.fasthg.residual_block_backward.default, (*saved, 1e-3)


def test_opcheck(device):
    for operator, arguments in operators(*case(8, torch.float32, device)):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(2, 7, 9), (1, 1, 1), (0, 3, 4), (2, 0, 4)])
@pytest.mark.parametrize("lay", [dense, channels_last, transposed])
def test_registration(device, dtype, size, lay):
    """With weights that lie in any way."""
    x, weights, grad_y = case(6, dtype, device, size, torch.float32)
    weights = [lay(w) if w.dim() == 4 else w for w in weights]
    for operator, arguments in operators(x, weights, grad_y):
        check_registration(operator, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break(device, backend):
    inputs = case(8, torch.float32, device)
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for one, other in zip(gradients(block, *inputs), gradients(compiled, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("out", [6, 10])
def test_inference_with_folded_norms(device, out):
    random = torch.Generator().manual_seed(out)
    shapes = ((3, 6, 1, 1), (3,), (3, 3, 3, 3), (3,), (out, 3, 1, 1), (out,))
    shapes += ((out, 6, 1, 1),) if out != 6 else ()
    x, *weights = (
        torch.randn(shape, generator=random, dtype=torch.float64).to(device)
        for shape in ((2, 6, 7, 5), *shapes)
    )
    w1, b1, w2, b2, w3, b3, *skip = weights
    y = residual_block_inference(x, *weights)
    inner = functional.conv2d(x, w1, b1).relu()
    inner = functional.conv2d(inner, w2, b2, padding=1).relu()
    expected = functional.conv2d(inner, w3, b3) + (functional.conv2d(x, *skip) if skip else x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(residual_block_inference(x, *weights), y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: torch.zeros(2, 8, 3)}, "x: expected floating"),
        ({0: torch.zeros(1, 8, 3, 3, dtype=torch.int32)}, "x: expected floating"),
        ({1: torch.zeros(4, 7, 1, 1)}, r"weight1: expected \(4, 8, 1, 1\)"),
        ({3: torch.zeros(4, 4, 1, 1)}, r"weight2: expected \(4, 4, 3, 3\)"),
        ({6: torch.zeros(4)}, r"beta3: expected \(8,\)"),
        ({4: torch.zeros(4, device="meta")}, "beta2 is on meta, x on cpu"),
    ],
)
def test_what_is_refused(changes, message):
    x, weights, _ = case(8, torch.float32, "cpu")
    inputs = [changes.get(i, t) for i, t in enumerate((x, *weights))]
    with pytest.raises(ValueError, match=message):
        residual_block(*inputs)

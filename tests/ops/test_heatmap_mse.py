from __future__ import annotations

import itertools

import pytest
import torch
from op_testing import check_registration
from pairwise import covering

from fasthg.ops import gaussian_heatmaps, heatmap_mse, reference

# dtype of the predictions: relative error of the loss, absolute one of the gradient (of size 1)
TOLERANCES = {
    torch.float64: (1e-13, 1e-14),
    torch.float32: (1e-6, 1e-6),
    torch.float16: (1e-6, 2.0**-10),
    torch.bfloat16: (1e-6, 2.0**-7),
}
# stacks, batch, parts, height, width
SHAPES = [
    (1, 1, 1, 1, 1),
    (0, 2, 3, 4, 4),
    (2, 0, 3, 4, 4),
    (2, 2, 0, 4, 4),
    (2, 2, 3, 0, 4),
    (3, 2, 7, 16, 16),
    (2, 3, 5, 13, 17),
]


def dense(predictions):
    return predictions


def channels_last(predictions):
    return predictions.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def some_images(predictions):
    """Every second image of a larger channels_last batch: gaps between images only."""
    return channels_last(predictions.repeat_interleave(2, 1))[:, ::2]


def some_parts(predictions):
    """Every second part of a larger tensor: gaps inside an image."""
    return predictions.repeat_interleave(2, 2)[:, :, ::2]


def transposed(predictions):
    return predictions.transpose(3, 4).contiguous().transpose(3, 4)


LAYOUTS = [dense, channels_last, some_images, some_parts, transposed]


@pytest.fixture
def case(scene, device):
    def make(shape, dtype=torch.float32, layout=dense):
        described = scene(*shape[1:], device)
        random = torch.Generator().manual_seed(1)
        predictions = layout(torch.randn(shape, generator=random).to(device, dtype))
        return predictions.requires_grad_(), described

    return make


@pytest.mark.parametrize(("dtype", "shape", "layout"), covering(list(TOLERANCES), SHAPES, LAYOUTS))
def test_against_drawing_the_targets(case, dtype, shape, layout):
    loss_error, gradient_error = TOLERANCES[dtype]
    predictions, described = case(shape, dtype, layout)
    keypoints, sigmas, visibility = described
    for subpixel in (False, True):
        loss = heatmap_mse(predictions, *described, subpixel=subpixel)
        assert loss.shape == shape[:2]
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        weights = torch.linspace(0.5, 2, loss.numel(), device=loss.device).view(loss.shape)
        (gradient,) = torch.autograd.grad((loss * weights).sum(), predictions)

        exact = predictions.detach().double().requires_grad_()
        expected = reference.heatmap_mse(
            exact, keypoints.double(), sigmas.double(), visibility, subpixel=subpixel
        )
        (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), exact)
        torch.testing.assert_close(loss.double(), expected, rtol=loss_error, atol=0)
        torch.testing.assert_close(
            gradient.double(), expected_gradient, rtol=2 * gradient_error, atol=gradient_error
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_lies_as_the_predictions_do(case, layout):
    predictions, described = case((2, 3, 5, 8, 9), layout=layout)
    keypoints, sigmas, visibility = described
    (gradient,) = torch.autograd.grad(heatmap_mse(predictions, *described).sum(), predictions)
    expected = predictions.detach() - gaussian_heatmaps(keypoints, sigmas, (8, 9), visibility)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)
    if layout in (dense, channels_last):
        assert gradient.stride() == predictions.stride()
    if layout is some_images:
        assert gradient[0].is_contiguous(memory_format=torch.channels_last)


def test_incoming_gradients_of_any_layout(case):
    predictions, described = case((3, 2, 4, 5, 6))
    difference = torch.autograd.grad(heatmap_mse(predictions, *described).sum(), predictions)[0]
    for grad_output in (
        torch.tensor(2.0).expand(3, 2),  # stride 0, as .sum() sends
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(12.0).view(3, 4)[:, ::2],
    ):
        grad_output = grad_output.to(predictions.device)
        loss = heatmap_mse(predictions, *described)
        (actual,) = torch.autograd.grad(loss, predictions, grad_output)
        torch.testing.assert_close(actual, difference * grad_output[:, :, None, None, None])


def test_gradcheck_twice(case):
    predictions, described = case((2, 2, 2, 3, 4), torch.float64, channels_last)
    keypoints, sigmas, visibility = described

    def loss(values):
        return heatmap_mse(values, keypoints.double(), sigmas.double(), visibility)

    assert torch.autograd.gradcheck(loss, predictions)
    assert torch.autograd.gradgradcheck(loss, predictions)


def test_nothing_is_kept_where_no_gradient_is_wanted(case):
    predictions, described = case((2, 2, 3, 8, 8))
    with torch.no_grad():
        loss = heatmap_mse(predictions, *described)
    assert not loss.requires_grad
    assert torch.equal(loss, heatmap_mse(predictions, *described).detach())


def peak_bytes(run):
    """The most that torch's allocator has handed out at a time for what `run` does."""
    run()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held)


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("layout", [dense, channels_last])
def test_a_third_of_the_memory_at_most(scene, layout):
    described = scene(4, 7, 64, 64)
    predictions = layout(torch.randn(8, 4, 7, 64, 64)).requires_grad_()
    size = predictions.numel() * predictions.element_size()

    def draw_then_mse():
        targets = reference.gaussian_heatmaps(*described[:2], 64, 64, described[2])
        loss = (predictions - targets).square().sum((2, 3, 4)) / 2
        return torch.autograd.grad(loss.sum(), predictions)

    def fused():
        return torch.autograd.grad(heatmap_mse(predictions, *described).sum(), predictions)

    ours, theirs = peak_bytes(fused), peak_bytes(draw_then_mse)
    assert size <= ours <= 1.01 * size, "more than the gradient itself"
    assert 3 * ours <= theirs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_at_most_twice_as_far_as_torch(scene, device, dtype):
    keypoints, sigmas, visibility = scene(3, 5, 16, 16, device)
    random = torch.Generator().manual_seed(2)
    predictions = torch.randn(2, 3, 5, 16, 16, generator=random).to(device, dtype).requires_grad_()
    exact = predictions.detach().double().requires_grad_()

    def plain(values):
        instances = keypoints.double(), sigmas.double(), 16, 16, visibility
        targets = reference.gaussian_heatmaps(*instances).to(values.dtype)
        return (values - targets).square().sum((2, 3, 4)) / 2

    results = []
    for values, loss in (
        (predictions, heatmap_mse(predictions, keypoints, sigmas, visibility)),
        (predictions, plain(predictions)),
        (exact, plain(exact)),
    ):
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), values)))
    for ours, theirs, expected in zip(*results, strict=True):
        distances = [float((t.double() - expected).norm()) for t in (ours, theirs)]
        assert distances[0] <= 2 * distances[1]


@pytest.mark.parametrize("layout", [dense, channels_last])
def test_a_sequence_of_stacks(case, layout):
    predictions, described = case((3, 2, 4, 8, 8), layout=layout)
    stacks = [stack.detach().requires_grad_() for stack in predictions]
    loss = heatmap_mse(stacks, *described)
    assert torch.equal(loss, heatmap_mse(predictions, *described))
    loss.sum().backward()
    (gradient,) = torch.autograd.grad(heatmap_mse(predictions, *described).sum(), predictions)
    for stack, expected in zip(stacks, gradient, strict=True):
        assert torch.equal(stack.grad, expected) and stack.grad.stride() == stack.stride()


@pytest.mark.parametrize("batch", [2, 19])  # fewer images than threads, and more
@pytest.mark.parametrize("layout", [dense, channels_last])
def test_threads_and_runs_do_not_change_a_bit(scene, on_threads, layout, batch):
    described = scene(batch, 7, 32, 32)
    predictions = layout(torch.randn(40, batch, 7, 32, 32)).requires_grad_()

    def run():
        loss = heatmap_mse(predictions, *described)
        return loss, *torch.autograd.grad(loss.sum(), predictions)

    first, *others = on_threads(run)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def operator_arguments(predictions, keypoints, sigmas, visibility):
    """Of both operators."""
    arguments = (predictions, keypoints, sigmas, visibility, True)
    yield torch.ops.fasthg.heatmap_mse, arguments
    grad_loss = torch.ones(2, 2, device=predictions.device)
    yield torch.ops.fasthg.heatmap_mse_backward, (grad_loss, *arguments)


def test_opcheck(case):
    predictions, described = case((2, 2, 3, 5, 6), layout=channels_last)
    for operator, arguments in operator_arguments(predictions, *described):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_registration(case, layout):
    for dtype in (torch.float32, torch.bfloat16):
        predictions, (keypoints, sigmas, visibility) = case((2, 2, 3, 5, 6), dtype, layout)
        for flags in (None, visibility):
            for operator, arguments in operator_arguments(predictions, keypoints, sigmas, flags):
                check_registration(operator, arguments)


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        pytest.param("inductor", channels_last, marks=pytest.mark.slow),
        ("aot_eager", dense),
    ],
)
def test_compiles_without_a_graph_break(case, layout, backend):
    predictions, described = case((2, 2, 3, 8, 9), layout=layout)

    def total(values, keypoints, sigmas, visibility):
        return (heatmap_mse(values * 2, keypoints, sigmas, visibility) * 0.5).sum()

    expected = torch.autograd.grad(total(predictions, *described), predictions)[0]
    loss = torch.compile(total, fullgraph=True, backend=backend)(predictions, *described)
    (actual,) = torch.autograd.grad(loss, predictions)
    torch.testing.assert_close(loss, total(predictions, *described))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"expected \(stacks, 2, 3, height, width\), got \(2, 3, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4, 4), r"got \(1, 2, 4, 4, 4\)"),
        (torch.zeros(1, 2, 3, 4, 4, dtype=torch.int64), "floating dtype, got torch.int64"),
        (torch.zeros(1, 2, 3, 4, 4, device="meta"), "move them to one device"),
        ([], "at least one stack"),
    ],
)
def test_what_is_refused(predictions, message):
    with pytest.raises(ValueError, match=message):
        heatmap_mse(predictions, torch.zeros(2, 3, 2), torch.ones(3))

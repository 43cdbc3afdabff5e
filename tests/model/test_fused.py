"""The fused network against the one of torch's own modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasthg import ops
from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.model import build_model
from fasthg.model.hourglass import Stack
from fasthg.model.layers import BatchNorm, ConvBN, Hourglass, Residual, set_fused
from fasthg.ops import gaussian_heatmaps
from fasthg.training.step import TrainStep

SIZE, CELLS, PARTS = 128, 32, 7
SMALL = {"NUM_STACKS": 2, "FEATURES": 16, "STEM_FEATURES": 8, "INPUT_SIZE": SIZE}
STEPS = 50


def batch(seed: int, count: int = 4) -> Batch:
    """Coloured spots at the keypoints, each part in its own colour, on noise."""
    random = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(count, PARTS, 2, generator=random) * 24 + 4
    scale = SIZE // CELLS
    spots = gaussian_heatmaps(keypoints * scale, torch.full((PARTS,), 5.0), (SIZE, SIZE))
    colours = torch.rand(PARTS, 3, generator=torch.Generator().manual_seed(99)) * 200
    images = torch.einsum("nphw,pc->nhwc", spots, colours)
    images += torch.rand(images.shape, generator=random) * 40
    return Batch(
        images=images.clamp(0, 255).to(torch.uint8),
        keypoints=keypoints,
        visibility=torch.full((count, PARTS), 2, dtype=torch.uint8),
        sigmas=torch.full((count, PARTS), 1.5),
        crop_to_image=torch.zeros(count, 2, 3),
        area=torch.ones(count),
        crop_area=torch.ones(count),
        instance=torch.arange(count),
    )


def losses(precision: str, fused: str) -> Tensor:
    """Of each of the steps, with a rate at which rounding does not grow to another path."""
    keys = {"HEAD_INIT_SCALE": 0.01, "LOSS_SCALING": "mean", "INITIAL_LEARNING_RATE": 3e-4}
    config = Config(**SMALL, HEATMAP_SIZE=CELLS, **keys, PRECISION=precision, FUSED=fused)
    step = TrainStep(config, build_model(config), torch.device("cpu"))
    batches = [batch(seed) for seed in range(10)]
    return torch.stack([step(batches[i % 10], i).loss.sum() for i in range(STEPS)])


@pytest.mark.slow
def test_fifty_steps_give_the_same_losses() -> None:
    plain, fused = losses("fp32", "off"), losses("fp32", "on")
    assert plain[-1] < 0.9 * plain[0]
    torch.testing.assert_close(fused, plain, rtol=0.01, atol=0)
    # Two ways to round to bfloat16 may lie as far apart as each lies from float32.
    half, fused_half = losses("bf16", "off"), losses("bf16", "on")
    off = ((half - plain) / plain).abs().max()
    assert ((fused_half - plain) / plain).abs().max() < max(2 * off, 0.005)
    torch.testing.assert_close(fused_half, half, rtol=0.01, atol=0)


def test_both_ways_have_the_same_state() -> None:
    states = []
    for fused in ("on", "off"):
        model = build_model(Config(**SMALL, HEATMAP_SIZE=CELLS, FUSED=fused))
        states.append({name: t.shape for name, t in model.state_dict().items()})
    assert list(states[0].items()) == list(states[1].items())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels_in", [8, 12])
def test_a_residual_is_the_same_either_way(channels_in: int, training: bool) -> None:
    torch.manual_seed(0)
    block = Residual(channels_in, 12).double().train(training)
    x = torch.randn(3, channels_in, 8, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for fused in ("on", "off"):
        for module in block.modules():
            if isinstance(module, BatchNorm):
                module.fused = fused
                module.running_mean.fill_(0.1)
                module.running_var.fill_(0.9)
        y = block(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *block.parameters()))
        results.append((y, *gradients, *(b.clone() for b in block.buffers())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_an_hourglass_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = Hourglass(2, 8).double()
    for module in block.modules():
        if isinstance(module, BatchNorm):
            module.fused = "off"
    x = torch.randn(2, 8, 8, 12, dtype=torch.float64, requires_grad=True)
    results, calls = [], []
    for name in ("max_pool2x_fork", "upsample2x_add"):
        operator = getattr(ops, name)
        monkeypatch.setattr(
            f"fasthg.model.layers.{name}",
            lambda *tensors, operator=operator: calls.append(operator) or operator(*tensors),
        )
    for fused in ("on", "off"):
        for module in block.modules():
            if isinstance(module, Hourglass):
                module.fused = fused
        y = block(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *block.parameters()))
        results.append((y, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    assert len(calls) == 4


def test_auto_follows_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(BatchNorm, "_fused", lambda *_: runs.append("fused"))
    layer, x = BatchNorm(3), torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    for available in (True, False):
        monkeypatch.setattr("fasthg.model.fused.has_kernel", lambda _, known=available: known)
        layer(x)
    monkeypatch.setattr("fasthg.model.fused.has_kernel", lambda _: True)
    layer(x.float())
    assert runs == ["fused"]


@pytest.mark.slow
def test_a_residual_of_our_operators_compiles_without_a_graph_break() -> None:
    block = Residual(4, 8).double()
    set_fused(block, "on")
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))


def test_half_precision_follows_autocast() -> None:
    layer = ConvBN(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8))
    assert y.dtype == torch.bfloat16 and layer.bn.running_mean.dtype == torch.float32


def test_a_residual_of_our_operators_follows_autocast() -> None:
    block = Residual(4, 8)
    set_fused(block, "on")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(torch.randn(2, 4, 8, 8))
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert block.conv2.conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_convolutions_of_a_stack_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, error: float, last: bool
) -> None:
    stack = Stack(16, 7, last)
    for name, parameter in stack.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    features, x = (torch.randn(2, 16, 8, 8).to(dtype).requires_grad_() for _ in range(2))
    monkeypatch.setattr(stack.hourglass, "forward", lambda x: x)
    monkeypatch.setattr(stack.residual, "forward", lambda x: x)
    monkeypatch.setattr(stack.features, "forward", lambda _: features)
    results = []
    for fused in ("off", "on"):
        stack.fused = fused
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = stack(x)
        convolutions = [p for n, p in stack.named_parameters() if "heatmap" in n or "remap" in n]
        inputs = [features, x, *convolutions]
        loss = sum((t.float() * (i + 1)).square().sum() for i, t in enumerate(outputs))
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        results.append([*outputs, *(g for g in gradients if g is not None)])
    for plain, fused_one in zip(*results, strict=True):
        relative_error = (fused_one.float() - plain.float()).norm() / plain.float().norm()
        assert relative_error < error


@pytest.mark.skipif(not ops.has_kernel(torch.zeros(1)), reason="auto needs the compiled kernels")
def test_auto_takes_torchs_kernels_for_small_maps_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []
    for name in ("conv3x3", "max_pool2x_fork", "upsample2x_add"):
        operator = getattr(ops, name)
        monkeypatch.setattr(
            f"fasthg.model.layers.{name}",
            lambda *given, name=name, operator=operator: called.append(name) or operator(*given),
        )
    block = Hourglass(1, 64)
    for side, fused, expected in ((4, "auto", 0), (4, "on", 3), (80, "auto", 3), (80, "off", 0)):
        for module in block.modules():
            if isinstance(module, Hourglass | BatchNorm):
                module.fused = fused
        called.clear()
        with torch.no_grad():
            block.eval()(torch.zeros(1, 64, side, side))
        assert len(set(called)) == expected, (side, fused, called)

"""The fused network against the one of torch's own modules."""

from __future__ import annotations

import pytest
import torch

from fasthg import ops
from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.model import build_model
from fasthg.model.layers import BatchNorm, ConvBN, Hourglass, Residual
from fasthg.step import TrainStep

SMALL = {"NUM_STACKS": 2, "FEATURES": 16, "STEM_FEATURES": 8, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16}


def batch(seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (4, 64, 64, 3), generator=random, dtype=torch.uint8),
        keypoints=torch.rand(4, 7, 2, generator=random) * 16,
        visibility=torch.full((4, 7), 2, dtype=torch.uint8),
        sigmas=torch.full((4, 7), 1.5),
        crop_to_image=torch.zeros(4, 2, 3),
        area=torch.ones(4),
        crop_area=torch.ones(4),
        instance=torch.arange(4),
    )


def test_twenty_steps_give_the_same_losses() -> None:
    losses, states = [], []
    for fused in ("on", "off"):
        # Steps small enough for two ways of rounding not to part within twenty.
        keys = {"PRECISION": "fp32", "HEAD_INIT_SCALE": 0.01, "LOSS_SCALING": "mean"}
        config = Config(**SMALL, **keys, FUSED=fused)
        step = TrainStep(config, build_model(config), torch.device("cpu"))
        losses.append(torch.stack([step(batch(i % 3), i).loss.sum() for i in range(20)]))
        states.append(step.model.state_dict())
    torch.testing.assert_close(losses[0], losses[1], rtol=0.01, atol=0)
    assert losses[0][-1] < losses[0][0]
    assert list(states[0]) == list(states[1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels_in", [8, 12])
def test_a_residual_is_the_same_either_way(channels_in: int, training: bool) -> None:
    torch.manual_seed(0)
    block = Residual(channels_in, 12).double().train(training)
    x = torch.randn(3, channels_in, 8, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for fused in ("on", "off"):
        for module in block.modules():
            if isinstance(module, BatchNorm):
                module.fused = fused
                module.running_mean.fill_(0.1)
                module.running_var.fill_(0.9)
        y = block(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *block.parameters()))
        found.append((y, *gradients, *(b.clone() for b in block.buffers())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_an_hourglass_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = Hourglass(2, 8).double()
    for module in block.modules():
        if isinstance(module, BatchNorm):
            module.fused = "off"
    x = torch.randn(2, 8, 8, 12, dtype=torch.float64, requires_grad=True)
    found, calls = [], []
    for name in ("max_pool2x", "upsample2x_add"):
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
        found.append((y, *gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    assert len(calls) == 4


def test_auto_follows_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(BatchNorm, "_fused", lambda *_: runs.append("fused"))
    layer, x = BatchNorm(3), torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    for served in (True, False):
        monkeypatch.setattr("fasthg.model.fused.serves", lambda _, served=served: served)
        layer(x)
    monkeypatch.setattr("fasthg.model.fused.serves", lambda _: True)
    layer(x.float())
    assert runs == ["fused"]


def test_a_fused_block_compiles_without_a_graph_break() -> None:
    block = Residual(4, 8).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    wanted = block(x)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), wanted)


def test_half_precision_follows_autocast() -> None:
    layer = ConvBN(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8))
    assert y.dtype == torch.bfloat16 and layer.bn.running_mean.dtype == torch.float32

"""Optimiser, moving average and learning rate against the reference and closed forms."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fasthg.config import Config
from fasthg.model.layers import BatchNorm
from fasthg.optim import EMA, RMSPropTF, build_optimizer, learning_rate, warmed_decay

LR = 2.5e-4


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_rmsprop_and_ema_equal_tensorflow(test_data: Path, momentum: float) -> None:
    trace = np.load(test_data / "mars/model/rmsprop_ema_bn_exact.npz")
    # The reference averages the weights a step starts from: the shadows lag one step.
    module = nn.Module()
    module.w = nn.Parameter(torch.from_numpy(trace["w0"].copy()))
    optimizer = RMSPropTF(module.parameters(), LR, 0.9, float(momentum), 1.0)
    ema = EMA(module, 0.9999)
    for step, grad in enumerate(trace["grads"]):
        module.w.grad = torch.from_numpy(grad.copy())
        ema.update(step)
        optimizer.step()
        state = optimizer.state[module.w]
        expected = {k: trace[f"momentum{momentum}__{k}"][step] for k in ("w", "rms", "mom", "ema")}
        np.testing.assert_allclose(module.w.detach().numpy(), expected["w"], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(state["ms"].numpy(), expected["rms"], rtol=1e-6)
        np.testing.assert_allclose(ema.shadow["w"].numpy(), expected["ema"], rtol=1e-6, atol=1e-7)
        if momentum:
            np.testing.assert_allclose(state["mom"].numpy(), expected["mom"], rtol=2e-6, atol=1e-9)


def test_batch_norm_equals_slim(test_data: Path) -> None:
    trace = np.load(test_data / "mars/model/rmsprop_ema_bn_exact.npz")
    bn = BatchNorm(3, decay=0.9)
    y = bn(torch.from_numpy(trace["bn_x"]).permute(0, 3, 1, 2))
    np.testing.assert_allclose(y.detach().permute(0, 2, 3, 1).numpy(), trace["bn_y"], atol=2e-6)
    np.testing.assert_allclose(bn.running_mean.numpy(), trace["bn_moving_mean"], rtol=1e-5)
    np.testing.assert_allclose(bn.running_var.numpy(), trace["bn_moving_variance"], rtol=1e-6)


def test_ema_covers_moving_statistics() -> None:
    bn = BatchNorm(2)
    ema = EMA(bn, 0.9999)
    bn.running_mean.fill_(1.0)
    ema.update(0)
    torch.testing.assert_close(ema.shadow["running_mean"], torch.full((2,), 0.9))


@pytest.mark.parametrize(
    "name", ["rmsprop", "adam", "adamw", "sgd", "momentum", "adagrad", "adadelta"]
)
def test_every_optimiser_descends(name: str) -> None:
    config = Config(OPTIMIZER=name, INITIAL_LEARNING_RATE=0.05, WEIGHT_DECAY=0.0)
    w = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build_optimizer(config, [w], [])
    for _ in range(20):
        optimizer.zero_grad()
        (w**2).sum().backward()
        optimizer.step()
    assert float((w**2).sum()) < 13.0


def test_l2_adds_to_the_gradient_of_decayed_parameters_only() -> None:
    config = Config(OPTIMIZER="sgd", INITIAL_LEARNING_RATE=1.0, WEIGHT_DECAY=0.5)
    decayed, plain = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = build_optimizer(config, [decayed], [plain])
    for p in (decayed, plain):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert decayed.item() == 0.5
    assert plain.item() == 1.0


def config(**keys: object) -> Config:
    base: dict[str, object] = {
        "INITIAL_LEARNING_RATE": 0.1,
        "END_LEARNING_RATE": 0.01,
        "NUM_TRAIN_ITERATIONS": 100,
        "NUM_TRAIN_EXAMPLES": 80,
        "BATCH_SIZE": 8,
        "NUM_EPOCHS_PER_DELAY": 2,
        "LEARNING_RATE_DECAY_FACTOR": 0.5,
        "LEARNING_RATE_STAIRCASE": False,
    }
    return Config(**{**base, **keys})


def test_fixed_is_fixed() -> None:
    c = config(LEARNING_RATE_DECAY_TYPE="fixed")
    assert {learning_rate(c, s) for s in (0, 7, 99, 10_000)} == {0.1}


def test_exponential_halves_every_two_epochs() -> None:
    c = config(LEARNING_RATE_DECAY_TYPE="exponential")
    assert learning_rate(c, 0) == pytest.approx(0.1)
    assert learning_rate(c, 10) == pytest.approx(0.1 * 0.5**0.5)
    assert learning_rate(c, 20) == pytest.approx(0.05)
    stairs = config(LEARNING_RATE_DECAY_TYPE="exponential", LEARNING_RATE_STAIRCASE=True)
    assert [learning_rate(stairs, s) for s in (0, 19, 20, 39, 40)] == pytest.approx(
        [0.1, 0.1, 0.05, 0.05, 0.025]
    )


def test_polynomial_ends_at_the_end_rate() -> None:
    c = config(LEARNING_RATE_DECAY_TYPE="polynomial")
    assert learning_rate(c, 0) == pytest.approx(0.1)
    assert learning_rate(c, 50) == pytest.approx(0.055)
    assert learning_rate(c, 100) == learning_rate(c, 500) == pytest.approx(0.01)
    square = config(LEARNING_RATE_DECAY_TYPE="polynomial", LEARNING_RATE_DECAY_POWER=2.0)
    assert learning_rate(square, 50) == pytest.approx(0.01 + 0.09 * 0.25)


@pytest.mark.parametrize("staircase", [False, True])
def test_warm_up_then_cosine(staircase: bool) -> None:
    c = config(
        LEARNING_RATE_DECAY_TYPE="cosine",
        LEARNING_RATE_WARMUP_STEPS=20,
        LEARNING_RATE_STAIRCASE=staircase,
    )
    rates = [learning_rate(c, s) for s in range(101)]
    assert rates[:20] == pytest.approx([0.1 * (s + 1) / 21 for s in range(20)])
    assert rates[20] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


def test_warmed_decay() -> None:
    assert warmed_decay(0.9999, 0) == 0.1
    assert warmed_decay(0.9999, 10**7) == 0.9999

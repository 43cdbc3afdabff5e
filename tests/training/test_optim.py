"""Optimisers, their state, and learning rates against closed forms; batch norm, the reference."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from fasthg.config import Config
from fasthg.model.layers import BatchNorm
from fasthg.training.flat_params import FlatParameters
from fasthg.training.optim import RMSProp, build_optimizer, learning_rate, warmed_decay


def test_batch_norm_equals_slim(test_data: Path) -> None:
    trace = np.load(test_data / "mars/model/rmsprop_ema_bn_exact.npz")
    bn = BatchNorm(3, decay=0.9)
    y = bn(torch.from_numpy(trace["bn_x"]).permute(0, 3, 1, 2))
    np.testing.assert_allclose(y.detach().permute(0, 2, 3, 1).numpy(), trace["bn_y"], atol=2e-6)
    np.testing.assert_allclose(bn.running_mean.numpy(), trace["bn_moving_mean"], rtol=1e-5)
    np.testing.assert_allclose(bn.running_var.numpy(), trace["bn_moving_variance"], rtol=1e-6)


class Point(nn.Module):
    """Two weights, with L2 or without, and a moving statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -2.0]))
        self.offset = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.ones(1))

    def flat(self) -> FlatParameters[Point]:
        return FlatParameters(self, [self.w], [self.offset])


def optimizer_of(flat: FlatParameters[Point], **keys: object) -> tuple[Optimizer, Point]:
    averaged, averages = flat.copy()
    return build_optimizer(Config(**keys), flat, averages, torch.tensor(0.1)), averaged


NAMES = ["rmsprop", "adam", "adamw", "sgd", "momentum", "adagrad", "adadelta"]


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_descends(name: str) -> None:
    point = Point()
    flat = point.flat()
    keys = {"INITIAL_LEARNING_RATE": 0.05, "WEIGHT_DECAY": 0.0}
    optimizer, _ = optimizer_of(flat, OPTIMIZER=name, **keys)
    for _ in range(20):
        flat.gradient.zero_()
        (point.w**2).sum().backward()
        optimizer.step()
    assert float((point.w.detach() ** 2).sum()) < 13.0
    assert point.offset.item() == point.mean.item() == 1.0


@pytest.mark.parametrize("name", ["rmsprop", "sgd"])
def test_l2_adds_to_the_gradient_of_decayed_parameters_only(name: str) -> None:
    point = Point()
    keys = {"RMSPROP_DECAY": 0.0, "RMSPROP_EPSILON": 0.25}
    optimizer, _ = optimizer_of(
        point.flat(), OPTIMIZER=name, INITIAL_LEARNING_RATE=1.0, WEIGHT_DECAY=0.5, **keys
    )
    optimizer.step()
    gradient = torch.tensor([1.5, -1.0])
    root = (gradient**2 + 0.25).sqrt() if name == "rmsprop" else 1.0
    torch.testing.assert_close(point.w.detach(), torch.tensor([3.0, -2.0]) - gradient / root)
    assert point.offset.item() == 1.0


def test_rmsprop_averages_what_the_step_starts_from() -> None:
    point = Point()
    flat = point.flat()
    optimizer, averaged = optimizer_of(flat)
    flat.gradient.fill_(1.0)
    with torch.no_grad():
        point.w.add_(1.0)
        point.mean.add_(1.0)
    optimizer.step()
    torch.testing.assert_close(averaged.w.detach(), torch.tensor([3.1, -1.9]))
    torch.testing.assert_close(averaged.mean, torch.tensor([1.1]))
    assert point.w[0] < 4.0


def test_rmsprop_keeps_its_settings_and_buffers_when_it_loads() -> None:
    flat = Point().flat()
    optimizer, _ = optimizer_of(flat, RMSPROP_MOMENTUM=0.5)
    flat.gradient.fill_(1.0)
    optimizer.step()
    saved = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    assert set(saved) == {"squares", "momenta"}

    other, _ = optimizer_of(Point().flat(), RMSPROP_MOMENTUM=0.9)
    assert isinstance(other, RMSProp) and other.momenta is not None
    addresses = other.squares.data_ptr(), other.momenta.data_ptr()
    other.load_state_dict(saved)
    assert all(torch.equal(saved[k], v) for k, v in other.state_dict().items())
    assert (other.squares.data_ptr(), other.momenta.data_ptr()) == addresses
    assert other.param_groups[0]["momentum"] == 0.9
    other.load_state_dict({"squares": saved["squares"]})
    assert not other.momenta.any()
    with pytest.raises(ValueError, match=r"squares are \(3,\), this network needs \(128,\)"):
        other.load_state_dict({"squares": torch.ones(3)})


def test_rmsprop_skips_an_overflow_without_looking() -> None:
    """As `torch.amp.GradScaler` uses it: the number of infinite gradients stays on the device."""
    point = Point()
    flat = point.flat()
    optimizer, averaged = optimizer_of(flat)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient, moved in ((torch.inf, False), (1.0, True)):
        before = flat.weights.clone()
        with torch.no_grad():
            averaged.w.zero_()
        flat.gradient.zero_()
        scaler.scale(point.w.sum() * gradient).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (not torch.equal(flat.weights, before)) is moved
        assert averaged.w[0] == before[0] * 0.1
    assert scaler.get_scale() == 2.0


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


def test_decay_steps_are_whole_as_in_tensorflow() -> None:
    """10 examples in batches of 4 are 2.5 steps an epoch, of which TensorFlow's trainer takes 2."""
    keys = {"NUM_TRAIN_EXAMPLES": 10, "BATCH_SIZE": 4, "NUM_EPOCHS_PER_DELAY": 1}
    c = config(LEARNING_RATE_DECAY_TYPE="exponential", LEARNING_RATE_STAIRCASE=True, **keys)
    assert [learning_rate(c, step) for step in (1, 2, 3, 4)] == pytest.approx(
        [0.1, 0.05, 0.05, 0.025]
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


@pytest.mark.parametrize("kind", ["exponential", "polynomial", "cosine"])
def test_every_decay_counts_from_the_end_of_the_warm_up(kind: str) -> None:
    """The rate rises to INITIAL_LEARNING_RATE without a jump, then decays as without a warm-up."""
    warmup = 30
    warm = config(LEARNING_RATE_DECAY_TYPE=kind, LEARNING_RATE_WARMUP_STEPS=warmup)
    plain = config(LEARNING_RATE_DECAY_TYPE=kind, NUM_TRAIN_ITERATIONS=100 - warmup)
    assert learning_rate(warm, warmup) == pytest.approx(0.1)
    assert [learning_rate(warm, warmup + s) for s in range(70)] == pytest.approx(
        [learning_rate(plain, s) for s in range(70)]
    )
    rates = [learning_rate(warm, s) for s in range(100)]
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) < 0.1 / warmup + 0.002


def test_exponential_decay_rounds_its_steps_down_as_tensorflow_does() -> None:
    """Two epochs of 85 examples in batches of 8 are 21.25 steps, which count as 21."""
    c = config(LEARNING_RATE_DECAY_TYPE="exponential", NUM_TRAIN_EXAMPLES=85)
    assert learning_rate(c, 21) == pytest.approx(0.05, rel=1e-12)

"""Moving statistics applied at once, against batch norms that move by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from random_batch import batch
from torch import Tensor, nn

from fasthg.config import Config
from fasthg.model import (
    RunningStats,
    StackedHourglass,
    build_model,
    decayed_parameters,
    normalise,
)
from fasthg.model.layers import BatchNorm, BatchStats, Residual, share_collector
from fasthg.model.running_stats import moving_statistics
from fasthg.training.flat_params import FlatParameters
from fasthg.training.step import TrainStep

SMALL = {"NUM_STACKS": 1, "FEATURES": 16, "STEM_FEATURES": 8, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16}
KEYS = {**SMALL, "PRECISION": "fp32", "FUSED": "on", "HEAD_INIT_SCALE": 0.01}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def set_decay(net: StackedHourglass, decay: float) -> None:
    for layer in net.modules():
        if isinstance(layer, BatchNorm):
            layer.decay = decay


def network(decay: float = 0.9) -> StackedHourglass:
    """Widths 8 and 4, so that there are gaps between the statistics."""
    torch.manual_seed(0)
    small = StackedHourglass(stacks=2, parts=3, features=8, stem_features=4, fused="on")
    set_decay(small, decay)
    return small.to(memory_format=torch.channels_last)


def collected(net: StackedHourglass) -> list[BatchStats]:
    with net.collector.collect() as stats:
        net(IMAGES)
    return stats


@pytest.fixture
def flattened() -> tuple[StackedHourglass, RunningStats]:
    net = network()
    flat = FlatParameters(net, *decayed_parameters(net))
    statistics = RunningStats(net, flat.statistics)
    statistics.set_decay(0.9)
    return net, statistics


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of the operator."""
    counted: list[int] = []

    def run(running: Tensor, *others: Tensor) -> None:
        counted.append(len(running))
        moving_statistics(running, *others)

    monkeypatch.setattr("fasthg.model.running_stats.moving_statistics", run)
    return counted


def equal(net: nn.Module, other: nn.Module) -> None:
    for (name, actual), expected in zip(net.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


def test_equals_layers_that_move_by_themselves(flattened, kernel_calls: list[int]) -> None:
    (net, statistics), plain = flattened, network()
    for decay in (0.9, 0.9, 0.1):
        statistics.set_decay(decay)
        set_decay(plain, decay)
        plain(IMAGES)
        statistics.apply(collected(net))
        equal(net, plain)
    assert kernel_calls == [len(statistics.running)] * 3
    taken = sum(b.numel() for b in net.buffers())
    assert taken < len(statistics.running)
    assert int((statistics.running != 0).sum()) <= taken


def test_another_size_of_batch_has_its_own_correction(flattened) -> None:
    (net, statistics), plain = flattened, network()
    for images in (IMAGES, IMAGES[:1], IMAGES):
        plain(images)
        with net.collector.collect() as stats:
            net(images)
        statistics.apply(stats)
        equal(net, plain)


def evaluated(net: StackedHourglass) -> None:
    net.stem.eval()


def decays_differ(net: StackedHourglass) -> None:
    net.stem.conv.bn.decay = 0.5


@pytest.mark.parametrize("change", [evaluated, decays_differ])
def test_what_does_not_go_at_once_goes_layer_by_layer(
    flattened, kernel_calls: list[int], change: Callable[[StackedHourglass], None]
) -> None:
    (net, statistics), plain = flattened, network()
    for model in (net, plain):
        change(model)
    plain(IMAGES)
    statistics.apply(collected(net))
    equal(net, plain)
    assert not kernel_calls


def test_two_forwards_move_twice(flattened, kernel_calls: list[int]) -> None:
    (net, statistics), plain = flattened, network()
    plain(IMAGES)
    plain(IMAGES * 2)
    with net.collector.collect() as stats:
        net(IMAGES)
        net(IMAGES * 2)
    statistics.apply(stats)
    equal(net, plain)
    assert not kernel_calls


def test_an_empty_batch_moves_nothing(flattened) -> None:
    net, statistics = flattened
    with net.collector.collect() as stats:
        for layer in statistics.layers:
            layer.report_stats(torch.zeros(len(layer.bias)), torch.zeros(len(layer.bias)), 0)
    statistics.apply(stats)
    equal(net, network())


def test_what_is_not_applied_moves_nothing(flattened) -> None:
    net, _ = flattened
    collected(net)
    with pytest.raises(RuntimeError), net.collector.collect():
        net(IMAGES[:, :2])
    equal(net, network())
    net(IMAGES)  # nobody collects any more: the layers move by themselves
    plain = network()
    plain(IMAGES)
    equal(net, plain)


def test_a_collection_within_another_keeps_its_own() -> None:
    layer = BatchNorm(3, fused="on")
    x = torch.randn(2, 3, 4, 4)
    with layer.collector.collect() as outer:
        layer(x)
        with layer.collector.collect() as inner:
            layer(x)
            layer(x)
        layer(x)
    assert (len(outer), len(inner)) == (2, 2)
    assert not layer.running_mean.any()


def test_torchs_own_kernels_are_collected_too(kernel_calls: list[int]) -> None:
    net, plain = network(), network()
    for model in (net, plain):
        model.set_fused("off")
    flat = FlatParameters(net, *decayed_parameters(net))
    statistics = RunningStats(net, flat.statistics)
    statistics.set_decay(0.9)
    before = copy.deepcopy(net)
    stats = collected(net)
    equal(net, before)
    statistics.apply(stats)
    plain(IMAGES)
    equal(net, plain)
    assert len(kernel_calls) == 1


def test_what_is_made_again_in_the_backward_moves_once() -> None:
    net, plain = network(), network()
    for fused in ("on", "off"):
        net.set_fused(fused)
        plain.set_fused(fused)
        net.recompute = "stack"
        with net.collector.collect() as stats:
            loss = net(IMAGES).square().sum()
        loss.backward()
        for layer, mean, var, count in stats:
            layer.update_running_stats(mean, var, count)
        plain(IMAGES)
        equal(net, plain)


def test_alone_a_network_that_makes_maps_again_moves_once() -> None:
    net, plain = network(), network()
    net.recompute = "stack"
    net(IMAGES).square().sum().backward()
    plain(IMAGES)
    equal(net, plain)


@pytest.mark.slow
def test_a_block_that_collects_compiles_without_a_graph_break() -> None:
    block = Residual(4, 8)
    for module in block.modules():
        if isinstance(module, BatchNorm):
            module.fused = "on"
    collector, other = share_collector(block), copy.deepcopy(block)
    x = torch.randn(2, 4, 8, 8)
    with collector.collect() as stats:
        torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    for layer, mean, var, count in stats:
        layer.update_running_stats(mean, var, count)
    other(x)
    assert len(stats) == 4
    equal(block, other)


@pytest.mark.slow
def test_a_step_moves_them_before_the_averages_take_them(kernel_calls: list[int]) -> None:
    """The averages take the weights that a step starts from, and the statistics it stats."""
    config = Config(**KEYS)
    step = TrainStep(config, build_model(config), torch.device("cpu"))
    plain = build_model(config).train()
    step(batch(0), 0)
    before = build_model(config)
    plain(normalise(batch(0).images))
    for name, expected in plain.named_buffers():
        torch.testing.assert_close(step.model.state_dict()[name], expected, rtol=1e-4, atol=1e-5)
        old = before.state_dict()[name]
        averaged = step.ema_model().state_dict()[name]
        torch.testing.assert_close(averaged, old + 0.9 * (expected - old), rtol=1e-4, atol=1e-5)
    assert kernel_calls == [len(step.flat.statistics)]


def test_a_step_that_fails_leaves_nothing_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(**KEYS)
    step, other = (TrainStep(config, build_model(config), torch.device("cpu")) for _ in range(2))
    last = step.model.stacks[-1].features
    monkeypatch.setattr(last, "forward", lambda _: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        step(batch(1), 0)
    equal(step.model, build_model(config))
    monkeypatch.undo()
    for either in (step, other):
        either(batch(0), 0)
    equal(step.model, other.model)


def test_decay_warms_up(kernel_calls: list[int]) -> None:
    config = Config(**KEYS, BATCHNORM_DECAY_WARMUP=True)
    step = TrainStep(config, build_model(config), torch.device("cpu"))
    step(batch(0), 0)
    plain = build_model(config).train()
    set_decay(plain, 0.1)
    plain(normalise(batch(0).images))
    for name, expected in plain.named_buffers():
        torch.testing.assert_close(step.model.state_dict()[name], expected, rtol=1e-4, atol=1e-5)
    assert len(kernel_calls) == 1


def test_what_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match="views of `running`"):
        RunningStats(net, torch.zeros(10_000))
    net.register_buffer("other", torch.zeros(3))
    with pytest.raises(ValueError, match="only buffers are those of its batch norms"):
        RunningStats(net, torch.zeros(10_000))

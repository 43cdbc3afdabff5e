"""Running statistics of the stock network's 356 batch norms, 8 stacks, moved by one batch's."""

from __future__ import annotations

import torch
from race import race

from fasthg.model import RunningStats, StackedHourglass, decayed_parameters
from fasthg.model.layers import BatchNorm, BatchStats
from fasthg.train.flat_params import FlatParameters

STATISTICS = 121_728
# Gathered (read and written), then running, batch and correction read and running written.
BYTES = 4 * 6 * STATISTICS
COUNT, DECAY = 8 * 64 * 64, 0.9997


def network(device):
    return StackedHourglass(bn_decay=DECAY).to(device, memory_format=torch.channels_last)


def found_in(net):
    """What one forward finds in each layer."""
    layers = [module for module in net.modules() if isinstance(module, BatchNorm)]
    return [
        BatchStats(layer, torch.randn_like(layer.bias), torch.rand_like(layer.bias), COUNT)
        for layer in layers
    ]


@torch.no_grad()
def layer_by_layer(device):
    found = found_in(network(device))

    def step():
        for layer, mean, var, count in found:
            layer.update_running_stats(mean, var, count)

    return step


@torch.no_grad()
def foreach(device):
    found = found_in(network(device))
    running = [t for one in found for t in (one.layer.running_mean, one.layer.running_var)]

    @torch.no_grad()
    def step():
        unbiased = torch._foreach_mul([one.var for one in found], COUNT / (COUNT - 1))
        batch = [t for one, var in zip(found, unbiased, strict=True) for t in (one.mean, var)]
        torch._foreach_lerp_(running, batch, 1 - DECAY)

    return step


def at_once(device):
    net = network(device)
    flat = FlatParameters(net, *decayed_parameters(net))
    statistics, found = RunningStats(net, flat.statistics), found_in(net)
    statistics.set_decay(DECAY)
    return lambda: statistics.apply(found)


@race("layer by layer", "torch foreach", "fasthg", moved=BYTES)
def bench_moving_statistics(device):
    return {
        "layer by layer": layer_by_layer(device),
        "torch foreach": foreach(device),
        "fasthg": at_once(device),
    }

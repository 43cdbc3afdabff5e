"""Running statistics of the stock network's 356 batch norms, 8 stacks, updated from one batch's."""

from __future__ import annotations

import torch
from compare import compare

from fasthg.model import RunningStats, StackedHourglass, decayed_parameters
from fasthg.model.layers import BatchNorm, BatchStats
from fasthg.training.flat_params import FlatParameters

STATISTICS = 121_728
# Gathered (read and written), then running, batch and correction read and running written.
BYTES = 4 * 6 * STATISTICS
COUNT, DECAY = 8 * 64 * 64, 0.9997


def network(device):
    return StackedHourglass(bn_decay=DECAY).to(device, memory_format=torch.channels_last)


def batch_stats(net):
    """What one forward reports for each layer."""
    layers = [module for module in net.modules() if isinstance(module, BatchNorm)]
    return [
        BatchStats(layer, torch.randn_like(layer.bias), torch.rand_like(layer.bias), COUNT)
        for layer in layers
    ]


@torch.no_grad()
def layer_by_layer(device):
    stats = batch_stats(network(device))

    def step():
        for layer, mean, var, count in stats:
            layer.update_running_stats(mean, var, count)

    return step


@torch.no_grad()
def foreach(device):
    stats = batch_stats(network(device))
    running = [t for one in stats for t in (one.layer.running_mean, one.layer.running_var)]

    @torch.no_grad()
    def step():
        unbiased = torch._foreach_mul([one.var for one in stats], COUNT / (COUNT - 1))
        batch = [t for one, var in zip(stats, unbiased, strict=True) for t in (one.mean, var)]
        torch._foreach_lerp_(running, batch, 1 - DECAY)

    return step


def at_once(device):
    net = network(device)
    flat = FlatParameters(net, *decayed_parameters(net))
    running, stats = RunningStats(net, flat.statistics), batch_stats(net)
    running.set_decay(DECAY)
    return lambda: running.apply(stats)


@compare("layer by layer", "torch foreach", "fasthg", bytes_moved=BYTES)
def bench_moving_statistics(device):
    return {
        "layer by layer": layer_by_layer(device),
        "torch foreach": foreach(device),
        "fasthg": at_once(device),
    }

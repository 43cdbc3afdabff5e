"""RMSProp with L2 and moving averages: the 25 million weights of the stock network, 8 stacks."""

from __future__ import annotations

import torch
from compare import compare

from fasthg.model import StackedHourglass, decayed_parameters
from fasthg.ops import rmsprop_ema
from fasthg.training.flat_params import FlatParameters

WEIGHTS, STATISTICS = 25_278_904, 121_728
# Weights, mean squares and averages are read and written, gradients read; and the statistics' part.
BYTES = 4 * (7 * WEIGHTS + 3 * STATISTICS)
DECAY, EPS, WEIGHT_DECAY, RATE, AVERAGE_WEIGHT = 0.9, 1.0, 4e-5, 1e-4, 1e-4


def foreach(device):
    """Parameter by parameter, as torch's own optimisers do, in many passes over memory."""
    network = StackedHourglass().to(device, memory_format=torch.channels_last)
    decayed, plain = decayed_parameters(network)
    groups = [([p.detach() for p in group], l2) for group, l2 in ((decayed, True), (plain, False))]
    gradients = [[torch.randn_like(p) for p in group] for group, _ in groups]
    squares = [[torch.ones_like(p) for p in group] for group, _ in groups]
    values = [v.detach() for v in network.state_dict().values()]
    averages = [v.clone() for v in values]

    def step():
        torch._foreach_lerp_(averages, values, AVERAGE_WEIGHT)
        for (weights, l2), raw, square in zip(groups, gradients, squares, strict=True):
            g = torch._foreach_add(raw, weights, alpha=WEIGHT_DECAY) if l2 else raw
            torch._foreach_mul_(square, DECAY)
            torch._foreach_addcmul_(square, g, g, value=1 - DECAY)
            root = torch._foreach_add(square, EPS)
            torch._foreach_sqrt_(root)
            torch._foreach_addcdiv_(weights, g, root, value=-RATE)

    return step


def fused(device):
    network = StackedHourglass().to(device, memory_format=torch.channels_last)
    flat = FlatParameters(network, *decayed_parameters(network))
    flat.gradient.normal_()
    squares, averages = torch.ones_like(flat.weights), flat.values.clone()
    rate = torch.tensor(RATE, device=device)
    weight = torch.tensor(AVERAGE_WEIGHT, device=device)
    return lambda: rmsprop_ema(
        *(flat.values, flat.gradient, squares, rate),
        decay=DECAY,
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        decayed=flat.num_decayed,
        averages=averages,
        average_weight=weight,
    )


@compare("torch foreach", "fasthg", bytes_moved=BYTES)
def bench_rmsprop_ema(device):
    return {"torch foreach": foreach(device), "fasthg": fused(device)}

"""The emulation must see a missing barrier, or its green tests say nothing about races.

Every `__syncthreads()`, every barrier of a cluster and every wait for asynchronous copies of csrc
is left out in turn.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest
import torch
from emulated_extension import ORDERS

from fasthg.ops import (
    bn_act,
    conv1x1_act,
    conv1x1_bn,
    conv1x1_bn_grad,
    gaussian_heatmaps,
    heatmap_mse,
    heatmap_peaks,
)

pytestmark = pytest.mark.slow  # a minute to compile

CSRC = Path(__file__).resolve().parents[2] / "csrc"
BARRIER = re.compile(
    r"^[^/]*\b(?:__syncthreads\(\);|cluster_(?:sync|wait)\(\);|wait_for_copies<[^>]*>\(\);)"
)
# A barrier whose comment says so is there for clarity.
HARMLESS = "would do no harm"


def barriers():
    """File and line of every barrier in csrc."""
    for path in sorted([*CSRC.glob("*.cu"), *CSRC.glob("*.cuh")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if BARRIER.match(line) and HARMLESS not in line:
                yield path.name, number


def maps():
    return torch.rand(2, 7, 16, 16, generator=torch.Generator().manual_seed(1))


def draw(scene):
    keypoints, sigmas, visibility = scene(2, 7, 16, 16, torch.float32)
    layout = torch.channels_last
    return [gaussian_heatmaps(keypoints, sigmas, 16, visibility, memory_format=layout)]


def compare(scene):
    predictions = maps()[None].requires_grad_()
    loss = heatmap_mse(predictions, *scene(2, 7, 16, 16, torch.float32), subpixel=True)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), predictions)]


def normalise(on_chip, clusters, channels, scene):
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["fasthg.ops.bn_act"]
        patch.setattr(module, "_ON_CHIP_ROWS", 1 << 30 if on_chip else 0)
        patch.setattr(module, "_choose_clusters", lambda *_: clusters)
        patch.setattr(module, "_ROWS_PER_PART", 21)
        rows = maps().view(1, -1, 1, channels)
        x, grad_y = (t.permute(0, 3, 1, 2) for t in (rows, rows.flip(1)))
        leaves = [x.requires_grad_(), torch.zeros(channels).requires_grad_()]
        leaves += [torch.ones(channels).requires_grad_()]
        y, *stats = bn_act(*leaves)
        return [y.detach(), *stats, *torch.autograd.grad(y, leaves, grad_y)]


def multiply(scene):
    rows = maps().view(-1, 128)[:, :104].to(torch.bfloat16).contiguous()  # four steps of inputs
    return [conv1x1_act(rows.view(1, -1, 1, 104).permute(0, 3, 1, 2), rows)]


def multiply_in_steps(scene):
    """More weights than fit into shared memory; sums of few ones, so that they are exact."""
    ones = maps().view(-1).repeat(15)[: 35 * 1536].view(35, 1536) > 0.9
    rows = ones.to(torch.bfloat16)  # of a second line of warps, too: they load no weights
    return [conv1x1_act(rows.t()[None, :, :, None], rows[:8])]


def multiply_to_heatmaps(scene):
    rows = maps().view(-1, 64)[:, :56].to(torch.bfloat16).contiguous()
    return [conv1x1_act(rows.t()[None, :, :, None], rows[:7])]


def multiply_after_norm(scene):
    rows = (maps().view(-1, 56) > 0.5).to(torch.bfloat16)
    zeros, ones = torch.zeros(56), torch.ones(56)
    norm = conv1x1_bn.Norm(zeros, ones, (torch.arange(56) % 2).float(), ones, True, 0.0)
    return list(conv1x1_bn.run(rows.t()[None, :, :, None], rows[:8], norm))


def multiply_between_norms(scene):
    """Of values that make every sum exact."""
    rows = (maps().view(-1, 56) > 0.5).to(torch.bfloat16)
    zeros, ones = torch.zeros(56), torch.ones(56)
    norm = conv1x1_bn.Norm(zeros, ones, (torch.arange(56) % 2).float(), ones, True, 0.0)
    sums = torch.arange(56) % 2 * 32.0, ones * 16
    maps_of = [t[None, :, :, None] for t in (rows.t(), rows.flip(0).t())]
    of = conv1x1_bn_grad.NormGradient(maps_of[1], norm, *sums)
    x = maps_of[1][:, :8]
    below = conv1x1_bn.Norm(zeros[:8], ones[:8], norm.beta[:8] - 0.5, None, True, 0.0)
    weight = conv1x1_bn_grad.of_weight(maps_of[0], of, rows[:56, :8].float(), x, below)
    out, made = conv1x1_bn_grad.of_normalised_input(maps_of[0], of, rows[:56, :8], x, below)
    return [out, made.grad_beta, made.grad_gamma, weight]


def late_peak(scene):
    heatmaps = maps()
    heatmaps[..., -1, -1] = 2.0  # a peak that the first warp does not find by itself
    return list(heatmap_peaks(heatmaps, "plateau"))


def dark(scene):
    return list(heatmap_peaks(maps(), "dark"))


def plateau(scene):
    return list(heatmap_peaks((maps() > 0.3).float(), "plateau"))


# What shows the damage of a barrier left out in a file.
SHOWN_BY = {
    "gaussian_heatmaps_cuda.cu": [draw],
    "heatmap_mse_cuda.cu": [compare],
    "cuda_utils.cuh": [compare],
    "bn_act_cuda.cu": [functools.partial(normalise, False, (0, 0), 16)],
    "bn_act_on_chip_cuda.cu": [functools.partial(normalise, True, (0, 0), 16)],
    # Pieces of several warps' rows, and several rounds: the barrier between these must show, too.
    "bn_act_cluster_cuda.cu": [functools.partial(normalise, False, (2, 4), 4)],
    "conv1x1_act_cuda.cu": [multiply_to_heatmaps],
    "conv1x1_bn_cuda.cu": [multiply_after_norm],
    "conv1x1_bn_grad_cuda.cu": [multiply_between_norms],
    "conv1x1_bn_weight_cuda.cu": [multiply_between_norms],
    "conv1x1_norms.cuh": [multiply_after_norm],
    "conv1x1_product.cuh": [multiply, multiply_in_steps],
    "heatmap_peaks_cuda.cu": [late_peak, dark, plateau],
}
RUNS = [run for runs in SHOWN_BY.values() for run in runs]


@pytest.fixture(scope="module")
def right(scene, emulated):
    """Whether an operator's results under an order are those of the CPU; False for a refusal."""

    @functools.cache
    def expected(run):
        return run(scene)

    def is_right(run, order):
        try:
            with emulated(order):
                results = run(scene)
        except RuntimeError:
            return False
        return all(
            torch.allclose(a, b.to(a.dtype), rtol=1e-5, atol=1e-5, equal_nan=True)
            for a, b in zip(results, expected(run), strict=True)
        )

    return is_right


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_no_damage_without_cause(right, order):
    assert all(right(run, order) for run in RUNS)


@pytest.mark.parametrize(("file", "line"), list(barriers()))
def test_a_barrier_left_out_shows(right, switches, file, line):
    copies = "wait_for_copies" in (CSRC / file).read_text(encoding="utf-8").splitlines()[line - 1]
    switches.emulation_leave_out(file.encode(), 0 if copies else line, copies)
    try:
        assert not all(right(run, order) for run in SHOWN_BY[file] for order in ORDERS)
    finally:
        switches.emulation_leave_out(b"", 0, False)

"""The emulation must see a missing barrier, or its green tests say nothing about races."""

from __future__ import annotations

import pytest
import torch

from fasthg.ops import reference

# file, barrier to delete (with its reason, which makes it unique), what shows the damage
BARRIERS = [
    ("gaussian_heatmaps_cuda.cu", "__syncthreads();  // the tables are complete", "draw"),
    ("heatmap_mse_cuda.cu", "__syncthreads();  // the loss reads", "compare"),
    ("heatmap_mse_cuda.cu", "__syncthreads();  // the gradient reads", "compare"),
    ("cuda_utils.cuh", "__syncthreads();  // every warp's value must lie in scratch", "compare"),
    ("bn_act_cuda.cu", "__syncthreads();  // every line's sums", "normalise"),
    ("bn_act_cuda.cu", "__syncthreads();  // the first warp reads", "normalise"),
    ("bn_act_on_chip_cuda.cu", "__syncthreads();  // the first warp adds up", "on chip"),
    ("bn_act_on_chip_cuda.cu", "__syncthreads();  // every thread reads the statistics", "on chip"),
    ("bn_act_on_chip_cuda.cu", "__syncthreads();  // every thread reads the totals", "on chip"),
    ("bn_fold_cuda.cu", "__syncthreads();  // the chunk before", "fold"),
    ("bn_fold_cuda.cu", "__syncthreads();  // all terms of the chunk", "fold"),
    ("bn_fold_cuda.cu", "__syncthreads();  // a product is added up", "fold"),
    ("bn_fold_cuda.cu", "__syncthreads();  // the warps of a row", "fold"),
    ("channel_covariance_cuda.cu", "__syncthreads();  // the products read", "relate"),
    ("channel_covariance_cuda.cu", "__syncthreads();  // every line's sums", "relate"),
    ("channel_covariance_cuda.cu", "__syncthreads();  // the first warps read", "relate"),
    ("conv1x1_act_cuda.cu", "wait_for_copies<kStages - 2>();  // what", "multiply"),
    ("conv1x1_act_cuda.cu", "__syncthreads();  // everyone's copies have", "multiply"),
    ("conv1x1_act_cuda.cu", "__syncthreads();  // nobody reads tiles any more", "multiply"),
    ("conv1x1_act_cuda.cu", "__syncthreads();  // a row of the result", "multiply"),
    ("heatmap_peaks_cuda.cu", "__syncthreads();                        // everyone", "late"),
    ("heatmap_peaks_cuda.cu", "__syncthreads();  // thread 0 reads what 13 threads wrote", "dark"),
    ("heatmap_peaks_cuda.cu", "__syncthreads();  // what was marked before", "plateau"),
]


def results(kernels, described, what):
    """The tensors that one operator gives for a fixed input."""
    maps = torch.rand(2, 7, 16, 16, generator=torch.Generator().manual_seed(1))
    if what == "draw":
        return [kernels.gaussian_heatmaps(described, (16, 16), torch.float32, True)]
    if what == "compare":
        return list(kernels.heatmap_mse(described, (16, 16), maps.view(1, 2, -1), True))
    if what in ("normalise", "on chip"):
        rows = maps.view(-1, 16)
        values = (torch.zeros(16), torch.ones(16))
        how = {"parts": 11, "on_chip": what == "on chip"}
        return kernels.bn_act(rows, None, rows.flip(0), *values, relu=False, **how)
    if what == "fold":
        rows = maps.double().view(-1, 7).repeat(1, 40)
        weight, a = rows[:6], rows[6:206]
        moments = a.mean(0), torch.cov(a.mT, correction=0)
        given = (moments, a[0, :6], weight * 2, a[1, :6], len(a))
        if kernels.side == "cuda":
            forward, backward = kernels.bn_fold(weight, *given, torch.float64)
            return [*forward, *backward]
        moments, beta, product, total, rows = given
        forward = reference.bn_fold(weight, *moments, beta, 1e-3, torch.float64)
        results = (product, total, weight, *moments, *forward[2:], rows, 1e-3, torch.float64)
        return [*forward, *reference.bn_fold_backward(*results)]
    if what == "relate":
        rows = maps.view(-1, 16).half()
        rows = rows.float() if kernels.side == "cpu" else rows
        return list(kernels.channel_covariance(rows, 11))
    if what == "multiply":
        x = maps.view(-1, 128)[:, :104].to(torch.bfloat16)  # rows of 104 inputs: four steps
        if kernels.side == "cpu":  # which leaves this one to torch
            return [(x.double() @ x.double().t()).to(x.dtype)]
        return [kernels.conv1x1_act(x.contiguous(), x.contiguous(), None, None, relu=False)]
    if what == "plateau":
        maps = (maps > 0.3).float()
    if what == "late":
        maps[..., -1, -1] = 2.0  # a peak that the first warp does not find by itself
    return list(kernels.heatmap_peaks(maps, {"dark": 2}.get(what, 3)))


@pytest.mark.parametrize(("file", "barrier", "what"), BARRIERS)
def test_a_deleted_barrier_shows(scene, build, cpu, cuda, emulated, tmp_path, file, barrier, what):
    described = scene(2, 7, 16, 16, torch.float32)
    wanted = results(cpu, described, what)
    sources = {"draw": "gaussian_heatmaps", "compare": "heatmap_mse"}
    sources |= dict.fromkeys(("normalise", "on chip"), "bn_act*")
    sources |= {"fold": "bn_fold", "relate": "channel_covariance", "multiply": "conv1x1_act"}
    source = sources.get(what, "heatmap_peaks")
    damaged = emulated(build(tmp_path, [f"{source}_cuda.cu"], (file, barrier, "//")))

    def right(kernels, order):
        kernels.library.emulation_order(order)
        try:
            got = results(kernels, described, what)
        except RuntimeError:
            return False
        return all(
            torch.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
            for a, b in zip(got, wanted, strict=True)
        )

    assert all(right(cuda, order) for order in range(3))
    assert not all(right(damaged, order) for order in range(3))

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from op_testing import channels_last, check_registration, dense
from pairwise import covering

from fasthg.ops import gaussian_heatmaps, heatmap_peaks, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
METHODS = ["argmax", "quarter", "dark", "plateau"]
SHAPES = [(0, 2, 4, 4), (2, 0, 4, 4), (1, 1, 1, 1), (2, 3, 1, 7), (3, 5, 13, 17), (2, 7, 32, 32)]


def sliced(maps):
    return maps.repeat_interleave(2, 1).repeat_interleave(3, 3)[:, ::2, :, ::3]


def transposed(maps):
    return maps.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS = [dense, channels_last, sliced, transposed]


def blobs(scene, shape, dtype, device):
    """Noisy sub-pixel Gaussians, with the odd keypoints of `scene`; some maps are only noise."""
    keypoints, sigmas, visibility = scene(*shape, device)
    maps = gaussian_heatmaps(keypoints, sigmas, shape[2:], visibility, subpixel=True)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(2)).to(device)
    return (maps + 0.05 * noise - 0.01).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "shape", "method", "layout"), covering(DTYPES, SHAPES, METHODS, LAYOUTS)
)
def test_against_the_reference(scene, device, dtype, shape, method, layout):
    maps = layout(blobs(scene, shape, dtype, device))
    xy, score = heatmap_peaks(maps, method)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    assert xy.dtype == score.dtype == real
    assert xy.shape == (*shape[:2], 2) and score.shape == shape[:2]
    # bfloat16 holds these numbers exactly in float64: what differs is the arithmetic alone.
    expected_xy, expected_score = reference.heatmap_peaks(maps.double(), method)
    error = 1e-12 if dtype == torch.float64 else 1e-4 if method == "dark" else 0
    torch.testing.assert_close(xy.double(), expected_xy, rtol=0, atol=error)
    assert torch.equal(score.double(), expected_score)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_of_equal_cells_wins_and_nan_never(device, method):
    maps = torch.zeros(1, 3, 5, 6, device=device)
    maps[0, 0, 1, 4] = maps[0, 0, 3, 1] = 2
    maps[0, 1] = -torch.inf
    maps[0, 1, 0, 0] = maps[0, 1, 2, 2] = torch.nan
    maps[0, 2] = torch.nan
    xy, score = heatmap_peaks(maps, method)
    assert xy[0, 0].tolist() == [4, 1] and score[0, 0] == 2
    assert score[0, 1] == -torch.inf and torch.isfinite(xy[0, 1]).all()
    assert method == "plateau" or xy[0, 1].tolist() == [1, 0]
    assert torch.isnan(xy[0, 2]).all() and torch.isnan(score[0, 2])


def test_quarter_steps_towards_the_larger_neighbour(device):
    maps = torch.zeros(1, 4, 5, 5, device=device)
    maps[0, :3, 2, 2] = 1
    maps[0, 0, 2, 3] = 0.5  # right
    maps[0, 1, 1, 2] = 0.5  # up
    maps[0, 2, 2, 1] = torch.nan  # no comparison with a NaN
    maps[0, 3, 0, 4], maps[0, 3, 0, 3] = 1, 0.5  # a corner stays
    xy, _ = heatmap_peaks(maps, "quarter")
    assert xy[0].tolist() == [[2.25, 2], [2, 1.75], [2, 2], [4, 0]]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_dark_steps_along_blunt_ridges_alone(device, dtype, error):
    """Kernel and reference draw the line at the same determinant.

    A Gaussian of deviations 1 across and `length` along a diagonal, blurred by a deviation of 1:
    of its logarithm, the determinant is 4 r / (1 + r)^2 times dxx dyy, r = 2 / (1 + length^2).
    The bound is 1e-3 of dxx dyy.
    """
    lengths = torch.tensor([12.0, 20, 28, 40, 50, 60, 75, 100, 150], dtype=torch.float64)
    y, x = torch.meshgrid(*[torch.arange(64.0, dtype=torch.float64)] * 2, indexing="ij")
    along, across = (x - 31.3 + y - 30.4) / 2**0.5, (x - 31.3 - y + 30.4) / 2**0.5
    maps = torch.exp(-((along / lengths[:, None, None]) ** 2 + across**2) / 2)[None]
    ratio = 2 / (1 + lengths**2)
    determinants = 4 * ratio / (1 + ratio) ** 2
    assert ((determinants > 1.1e-3) & (determinants < 9e-3)).sum() == 4
    maps = maps.to(device, dtype)
    xy = heatmap_peaks(maps, "dark")[0]
    expected = reference.heatmap_peaks(maps.double(), "dark")[0]
    torch.testing.assert_close(xy.double(), expected, rtol=0, atol=error)
    steps = (xy != heatmap_peaks(maps, "quarter")[0]).any(-1)[0]
    assert steps.tolist() == (determinants > 1e-3).tolist()


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0, 3.0, 10.0])
def test_dark_finds_the_centre_of_a_gaussian(device, sigma):
    random = torch.Generator().manual_seed(3)
    centres = (torch.rand(8, 5, 2, generator=random, dtype=torch.float64) * 52 + 6).to(device)
    sigmas = torch.full((5,), sigma, device=device)
    maps = gaussian_heatmaps(centres, sigmas, 64, subpixel=True, dtype=torch.float32)
    xy, _ = heatmap_peaks(maps, "dark")
    torch.testing.assert_close(xy.double(), centres, rtol=0, atol=3e-3)
    plain = (heatmap_peaks(maps, "argmax")[0] - centres).abs().mean()
    quarter = (heatmap_peaks(maps, "quarter")[0] - centres).abs().mean()
    assert (xy - centres).abs().mean() < quarter / 20 < plain / 20


def test_dark_near_the_border_is_no_worse_than_a_cell(device):
    edge = torch.linspace(0, 5, 41, dtype=torch.float64, device=device)
    centres = torch.stack([edge, edge.flip(0)], -1)[:, None]
    maps = gaussian_heatmaps(centres, torch.tensor([2.0], device=device), 32, subpixel=True)
    xy, _ = heatmap_peaks(maps, "dark")
    assert (xy - centres).abs().max() <= 0.5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda maps: maps * -1,  # no logarithm
        lambda maps: torch.ones_like(maps),  # no curvature
        lambda maps: maps.amax(2, keepdim=True).expand_as(maps),  # a ridge: singular
        lambda maps: torch.where(maps == maps.amax(), maps, 0),  # zeros beyond the blur
    ],
)
def test_dark_falls_back_to_the_quarter_step(device, spoil):
    keypoints = torch.tensor([[[8.3, 7.6]]], device=device)
    maps = gaussian_heatmaps(keypoints, torch.ones(1, device=device), 17, subpixel=True)
    maps = spoil(maps).contiguous()
    dark, quarter = heatmap_peaks(maps, "dark")[0], heatmap_peaks(maps, "quarter")[0]
    assert torch.equal(dark, quarter)


def test_plateau_is_the_middle_of_the_connected_maximum(device):
    maps = torch.zeros(1, 4, 9, 9, device=device)
    maps[0, 0, 2:5, 3:7] = 1
    maps[0, 1, 1, 1:6] = maps[0, 1, 1:6, 5] = maps[0, 1, 5, 2:6] = 1  # a hook, grown backwards
    maps[0, 2, 4, 4] = maps[0, 2, 5, 5] = 1  # touching corners are apart
    maps[0, 3] = 0.5  # everything
    xy, score = heatmap_peaks(maps, "plateau")
    assert xy[0].tolist() == [[4.5, 3], [3, 3], [4, 4], [4, 4]]
    assert score[0].tolist() == [1, 1, 1, 0.5]


def test_plateau_is_what_a_maximum_filter_gives(device):
    """The 15x15 maximum filter of MARS, spelled out: cells equal to it, labelled, highest label."""
    random = torch.Generator().manual_seed(4)
    maps = torch.randint(0, 5, (3, 2, 20, 21), generator=random).float()
    xy, _ = heatmap_peaks(maps.to(device), "plateau")
    for b in range(3):
        for p in range(2):
            array = maps[b, p].numpy()
            padded = np.pad(array, 7, constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (15, 15))
            equal = array == windows.max((2, 3))
            start = divmod(int(array.argmax()), 21)
            region, todo = {start}, [start]
            while todo:
                y, x = todo.pop()
                for cell in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if (
                        0 <= cell[0] < 20
                        and 0 <= cell[1] < 21
                        and equal[cell]
                        and cell not in region
                    ):
                        region.add(cell)
                        todo.append(cell)
            ys, xs = zip(*region, strict=True)
            middle = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2]
            assert xy[b, p].tolist() == middle


def test_numpy_in_numpy_out(scene):
    maps = blobs(scene, (2, 3, 8, 8), torch.float32, "cpu")
    xy, score = heatmap_peaks(maps.numpy())
    assert isinstance(xy, np.ndarray) and isinstance(score, np.ndarray)
    np.testing.assert_array_equal(xy, heatmap_peaks(maps)[0].numpy())
    np.testing.assert_array_equal(score, heatmap_peaks(maps)[1].numpy())


@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_change_a_bit(scene, on_threads, method):
    maps = blobs(scene, (16, 7, 64, 64), torch.float32, "cpu")
    first, *others = on_threads(
        lambda: torch.cat([t.flatten() for t in heatmap_peaks(maps, method)])
    )
    assert all(torch.equal(first, other) for other in others)


def test_the_result_carries_no_gradient(scene):
    maps = blobs(scene, (1, 2, 8, 8), torch.float32, "cpu").requires_grad_()
    assert not any(t.requires_grad for t in heatmap_peaks(maps))


def test_opcheck(scene, device):
    maps = channels_last(blobs(scene, (2, 3, 8, 9), torch.float32, device))
    torch.library.opcheck(torch.ops.fasthg.heatmap_peaks, (maps, "dark"))


@pytest.mark.parametrize("method", METHODS)
def test_registration_and_compile(scene, device, method):
    maps = channels_last(blobs(scene, (2, 3, 8, 9), torch.float32, device))
    check_registration(torch.ops.fasthg.heatmap_peaks, (maps, method))
    compiled = torch.compile(
        lambda maps: heatmap_peaks(maps * 1, method), fullgraph=True, backend="aot_eager"
    )
    for actual, expected in zip(compiled(maps), heatmap_peaks(maps, method), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("maps", "method", "message"),
    [
        (torch.zeros(2, 4, 4), "dark", r"got \(2, 4, 4\)"),
        (torch.zeros(2, 3, 0, 4), "dark", r"height >= 1.*got \(2, 3, 0, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "dark", "floating dtype, got torch.uint8"),
        (torch.zeros(2, 3, 4, 4), "mean", "expected one of argmax, .*, got 'mean'"),
    ],
)
def test_what_is_refused(maps, method, message):
    with pytest.raises(ValueError, match=message):
        heatmap_peaks(maps, method)


def test_a_faint_map_decodes_like_a_strong_one(device):
    keypoints = torch.tensor([[[8.3, 7.6]]], device=device)
    maps = gaussian_heatmaps(keypoints, torch.full((1,), 2.0, device=device), 17, subpixel=True)
    strong, score = heatmap_peaks(maps)
    faint, faint_score = heatmap_peaks(maps * 1e-3)
    torch.testing.assert_close(faint, strong, rtol=0, atol=1e-5)
    assert math.isclose(faint_score.item(), score.item() * 1e-3, rel_tol=1e-6)

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from op_testing import check_registration
from pairwise import covering

from fasthg.ops import gaussian_heatmaps, reference

# dtype of the result: absolute error allowed against float64 arithmetic (values are 0..1)
TOLERANCES = {
    torch.float64: 1e-14,
    torch.float32: 3e-7,
    torch.float16: 2.5e-4 + 3e-7,
    torch.bfloat16: 2e-3 + 3e-7,
}
SHAPES = [(0, 3, 5, 5), (2, 0, 5, 5), (1, 1, 1, 1), (2, 7, 16, 16), (3, 5, 13, 17), (2, 3, 64, 31)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def slow_loop(keypoints, sigmas, visibility, height, width, subpixel):
    """The formula of MARS, spelled out in NumPy, one part of one instance at a time."""
    batch, parts = keypoints.shape[:2]
    maps = np.zeros((batch, parts, height, width))
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    for b in range(batch):
        for p in range(parts):
            x, y = keypoints[b, p].astype(np.float64)
            if not (np.isfinite(x) and np.isfinite(y) and visibility[b, p]):
                continue
            if not subpixel:
                x, y = np.round(x), np.round(y)
            square = (columns - x) ** 2 + (rows - y) ** 2
            maps[b, p] = np.exp(-square / (2 * np.float64(sigmas[b, p]) ** 2))
    return maps


@pytest.mark.parametrize(
    ("dtype", "shape", "memory_format", "subpixel"),
    covering(list(TOLERANCES), SHAPES, FORMATS, [False, True]),
)
def test_against_the_loop(scene, device, dtype, shape, memory_format, subpixel):
    keypoints, sigmas, visibility = scene(*shape, device)
    actual = gaussian_heatmaps(
        keypoints,
        sigmas,
        shape[2:],
        visibility,
        subpixel=subpixel,
        dtype=dtype,
        memory_format=memory_format,
    )
    assert actual.dtype == dtype and actual.shape == shape and actual.device == keypoints.device
    assert actual.is_contiguous(memory_format=memory_format)
    arrays = (t.cpu().numpy() for t in (keypoints, sigmas, visibility))
    expected = slow_loop(*arrays, *shape[2:], subpixel)
    drawn = actual.double().cpu().numpy()
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_at_most_twice_as_far_as_torch(scene, device, dtype):
    described = scene(3, 5, 16, 16, device)
    keypoints, sigmas, visibility = described
    exact = reference.gaussian_heatmaps(keypoints.double(), sigmas.double(), 16, 16, visibility)
    plain = reference.gaussian_heatmaps(keypoints, sigmas, 16, 16, visibility).to(dtype)
    ours = gaussian_heatmaps(keypoints, sigmas, 16, visibility, dtype=dtype)
    distances = [float((t.double() - exact).norm()) for t in (ours, plain)]
    assert distances[0] <= 2 * distances[1]


def test_keypoints_may_lie_anyhow_in_memory(scene, device):
    keypoints, sigmas, visibility = scene(6, 5, 16, 16, device)
    expected = gaussian_heatmaps(keypoints[::2], sigmas[::2], 16, visibility[::2] > 0)
    strided = keypoints.permute(2, 1, 0).contiguous().permute(2, 1, 0)[::2]
    assert not strided.is_contiguous()
    actual = gaussian_heatmaps(strided, sigmas[::2], 16, visibility[::2].float())
    assert torch.equal(actual, expected)


def test_one_row_of_sigmas_serves_all(scene, device):
    keypoints, sigmas, _ = scene(4, 3, 9, 11, device, sigma_per_instance=False)
    shared = gaussian_heatmaps(keypoints, sigmas, (9, 11))
    assert torch.equal(shared, gaussian_heatmaps(keypoints, sigmas.expand(4, 3), (9, 11)))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_sigma_that_is_not_positive_draws_nothing(device, sigma):
    keypoints = torch.full((1, 1, 2), 3.0, device=device)
    assert not gaussian_heatmaps(keypoints, torch.tensor([sigma], device=device), 8).any()


@pytest.mark.parametrize("sigma", [1e-40, 1e-6, 1e6, float("inf")])
@pytest.mark.parametrize("x", [3.0, 1e30, -3e38])
def test_no_sigma_or_distance_makes_nan(device, sigma, x):
    keypoints = torch.tensor([[[x, 3.0]]], device=device)
    maps = gaussian_heatmaps(keypoints, torch.tensor([sigma], device=device), 8)
    assert torch.isfinite(maps).all()
    assert maps.amax() == (1 if x == 3.0 or sigma == float("inf") else 0)


def test_centres_round_half_to_even(device):
    keypoints = torch.tensor([[[0.5, 1.5], [2.5, 3.5]]], device=device)
    maps = gaussian_heatmaps(keypoints, torch.ones(2, device=device), 8)
    assert maps[0, 0, 2, 0] == 1 and maps[0, 1, 4, 2] == 1


def test_numpy_in_numpy_out(scene):
    keypoints, sigmas, visibility = scene(2, 3, 8, 8)
    actual = gaussian_heatmaps(keypoints.numpy(), sigmas.numpy(), 8, visibility.numpy())
    assert isinstance(actual, np.ndarray)
    expected = gaussian_heatmaps(keypoints, sigmas, 8, visibility).numpy()
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_threads_and_runs_do_not_change_a_bit(scene, on_threads, memory_format):
    keypoints, sigmas, visibility = scene(37, 7, 64, 64)

    def run():
        return gaussian_heatmaps(keypoints, sigmas, 64, visibility, memory_format=memory_format)

    first, *others = on_threads(run)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_waits_for_its_threads(set_threads):
    """It has no pool: its caller sleeps until the last of its threads notifies it."""
    set_threads(4)
    keypoints = np.random.default_rng(0).random((32, 7, 2), np.float32) * 64
    sigmas = np.ones(7, np.float32)
    expected = gaussian_heatmaps(keypoints, sigmas, 64)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            results = (gaussian_heatmaps(keypoints, sigmas, 64) for _ in range(200))
            status = int(not all(np.array_equal(result, expected) for result in results))
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    ended, status = 0, 0
    while not ended and time.monotonic() < end:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended, "the forked process still waits after a minute"
    assert status == 0


def test_opcheck(scene, device):
    arguments = (*scene(2, 3, 8, 9, device), 8, 9, False, torch.float32, True)
    torch.library.opcheck(torch.ops.fasthg.gaussian_heatmaps, arguments)


@pytest.mark.parametrize("channels_last", [False, True])
def test_registration(scene, device, channels_last):
    keypoints, sigmas, visibility = scene(2, 3, 8, 9, device)
    for dtype in (torch.float32, torch.bfloat16):
        for flags in (None, visibility):
            arguments = (keypoints, sigmas, flags, 8, 9, False, dtype, channels_last)
            check_registration(torch.ops.fasthg.gaussian_heatmaps, arguments)


def test_compiles_without_a_graph_break(scene, device):
    keypoints, sigmas, visibility = scene(2, 3, 8, 9, device)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def draw(keypoints):
        maps = gaussian_heatmaps(
            keypoints * 1, sigmas, (8, 9), visibility, memory_format=torch.channels_last
        )
        return maps * 2

    expected = gaussian_heatmaps(keypoints, sigmas, (8, 9), visibility) * 2
    assert torch.equal(draw(keypoints), expected)


def test_the_reference_has_the_gradient():
    keypoints = torch.tensor([[[2.3, 4.1], [1.0, torch.nan]]], dtype=torch.float64)
    sigmas = torch.tensor([1.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda k, s: reference.gaussian_heatmaps(k, s, 6, 7, subpixel=True),
        (keypoints.nan_to_num(0.5).requires_grad_(), sigmas),
    )
    keypoints.requires_grad_()
    reference.gaussian_heatmaps(keypoints, sigmas, 6, 7, subpixel=True).sum().backward()
    assert torch.isfinite(keypoints.grad).all() and keypoints.grad[0, 0].abs().min() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": torch.zeros(2, 3)}, r"expected \(batch, parts, 2\), got \(2, 3\)"),
        ({"sigmas": torch.ones(2)}, r"sigmas: expected \(3,\) or \(2, 3\), got \(2,\)"),
        ({"visibility": torch.ones(3)}, r"visibility: expected \(2, 3\), got \(3,\)"),
        ({"sigmas": torch.ones(3, device="meta")}, "move them to one device"),
        ({"keypoints": torch.zeros(2, 3, 2, requires_grad=True)}, "pass them detached"),
        ({"size": (4, -1)}, r"size: expected >= 0, got \(4, -1\)"),
        ({"dtype": torch.int32}, "expected a floating dtype, got torch.int32"),
    ],
)
def test_what_is_refused(change, message):
    arguments = {"keypoints": torch.zeros(2, 3, 2), "sigmas": torch.ones(3), "size": 4, **change}
    with pytest.raises(ValueError, match=message):
        gaussian_heatmaps(**arguments)


@pytest.mark.parametrize("loose", [0, 1])
@pytest.mark.parametrize("case", ["left", "top", "tall", "two2v", "three"])
def test_maps_that_mars_drew(test_data, case, loose):
    """MARS's own heatmaps, with fixed sigmas and with sigmas scaled by the animal's area."""
    golden = np.load(test_data / "mars" / "preprocessing_golden.npz")
    name = f"{case}__loose{loose}"
    keypoints = golden[f"{name}__part_locs"].reshape(-1, 4, 2).astype(np.float32) * 64
    visibility = golden[f"{case}__vis"]
    height, width = golden[f"{case}__image"].shape[:2]
    boxes = np.round(golden[f"{case}__bboxes"] * [width, height, width, height])
    for key in ("scale0_px", "scale1_px", "scale1_small"):
        sigmas = np.broadcast_to(golden["sigmas"], visibility.shape)
        if key != "scale0_px":
            longer = longer_crop_side(boxes, width, height, 0.65 if loose else 0.0)
            areas = golden[f"{case}__areas_{key.removeprefix('scale1_')}"]
            sigmas = sigmas * (256 / longer * 64 / 256 * np.sqrt(areas) * 2)[:, None]
        drawn = gaussian_heatmaps(keypoints, sigmas.astype(np.float32), 64, visibility)
        expected = golden[f"{name}__{key}__heatmaps"].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)


def longer_crop_side(boxes, width, height, factor):
    """Longer side in image px of boxes (n, 4) x1 y1 x2 y2, each axis grown evenly within limits."""
    sides = []
    for low, high, limit in ((boxes[:, 0], boxes[:, 2], width), (boxes[:, 1], boxes[:, 3], height)):
        pad = np.minimum(np.minimum(low, limit - high), factor * (high - low) / 2)
        sides.append(np.trunc(high + pad) - np.trunc(low - pad))
    return np.maximum(*sides)

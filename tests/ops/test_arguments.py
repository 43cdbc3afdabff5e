"""What every operator takes and refuses alike: kinds of arguments, forward mode, empty maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from fasthg import ops

POINTS = torch.tensor([[[1.0, 2.0], [3.0, 1.0]], [[0.0, 3.0], [2.0, 2.0]]])
PREDICTIONS = torch.linspace(0, 1, 80).view(1, 2, 2, 4, 5)


@pytest.mark.parametrize(
    "sigmas",
    [
        *(1.5, [1.5, 1.5], (1.5, 1.5), np.float32(1.5), np.full(2, 1.5), [[1.5, 1.5]] * 2),
        *(torch.tensor(1.5), np.full(2, 1.5, ">f8"), np.full(4, 1.5)[::-2]),
    ],
    ids=repr,
)
def test_sigmas_of_any_kind(sigmas):
    expected = ops.gaussian_heatmaps(POINTS, torch.full((2,), 1.5), (4, 5))
    assert torch.equal(ops.gaussian_heatmaps(POINTS, sigmas, (4, 5)), expected)
    drawn = ops.gaussian_heatmaps(POINTS.numpy(), sigmas, (4, 5), [[1, 0], [1, 1]])
    assert isinstance(drawn, np.ndarray) and not drawn[0, 1].any()
    np.testing.assert_array_equal(drawn[1], expected[1])
    loss = ops.heatmap_mse(PREDICTIONS, POINTS, sigmas)
    assert torch.equal(loss, ops.heatmap_mse(PREDICTIONS, POINTS, torch.full((2,), 1.5)))


@pytest.mark.parametrize(
    "size", [np.int64(4), [4, 4], (np.uint8(4), 4), np.array([4, 4]), np.array(4)]
)
def test_sizes_of_any_integer_type(size):
    assert ops.gaussian_heatmaps(POINTS, 1.0, size).shape == (2, 2, 4, 4)


@pytest.mark.parametrize("size", [4.0, "4", (4,), (4, 4, 4), None, (4, 4.5), np.array(4.0)])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="size: expected an integer or"):
        ops.gaussian_heatmaps(POINTS, 1.0, size)


@pytest.mark.parametrize("sigmas", ["wide", [1.0, [2.0]], [1j, 1j], None])
def test_what_is_no_number_is_refused(sigmas):
    with pytest.raises(ValueError, match="gaussian_heatmaps: sigmas: expected numbers, got"):
        ops.gaussian_heatmaps(POINTS, sigmas, 4)
    with pytest.raises(ValueError, match=r"bn_act: x: expected a torch\.Tensor, got a ndarray"):
        ops.bn_act(np.zeros((1, 2, 3, 3)), torch.zeros(2))


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here")
def test_a_dtype_that_torch_lacks_is_refused():
    with pytest.raises(
        ValueError, match=r"gaussian_heatmaps: sigmas: torch has no \w+; give float64"
    ):
        ops.gaussian_heatmaps(POINTS, np.longdouble(1.5), 4)


def test_arrays_that_torch_cannot_read():
    maps = np.random.default_rng(0).random((2, 3, 6, 7), np.float32)
    expected = ops.heatmap_peaks(maps[..., ::-1].copy())
    backwards = maps[..., ::-1]
    read_only = backwards.copy()
    read_only.flags.writeable = False
    packed = np.zeros(2, np.dtype([("odd", "u1"), ("maps", "f4", (3, 6, 7))]))
    packed["maps"] = backwards
    for kind in (backwards, maps.astype(">f4")[..., ::-1], read_only, packed["maps"]):
        for actual, right in zip(ops.heatmap_peaks(kind), expected, strict=True):
            np.testing.assert_array_equal(actual, right)


def block(x, *others):
    """A residual without a skip convolution."""
    half = x.shape[1] // 2
    return ops.residual_block(
        x,
        *(torch.ones(half, x.shape[1], 1, 1), torch.zeros(half)),
        *(torch.ones(half, half, 3, 3), torch.zeros(half)),
        *(torch.ones(x.shape[1], half, 1, 1), torch.zeros(x.shape[1])),
    )


MAPS = {
    "bn_act": lambda x: ops.bn_act(x, torch.zeros(4)),
    "bn_act_inference": lambda x: ops.bn_act_inference(x, *torch.ones(3, 4)),
    "conv1x1_act": lambda x: ops.conv1x1_act(x, torch.ones(4, 4)),
    "conv3x3": lambda x: ops.conv3x3(x, torch.ones(4, 4, 3, 3)),
    "gaussian_heatmaps": lambda x: ops.gaussian_heatmaps(x[..., :2, 0], 1.0, 4),
    "heatmap_mse": lambda x: ops.heatmap_mse(x[None], torch.ones(2, 4, 2), 1.0),
    "heatmap_peaks": ops.heatmap_peaks,
    "max_pool2x": ops.max_pool2x,
    "residual_block": block,
    "upsample2x_add": lambda x: ops.upsample2x_add(x, torch.ones(2, 4, 12, 16)),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_forward_mode_is_refused(name, requires_grad):
    """torch gives zeros for any operator registered in Python."""
    x = torch.ones(2, 4, 6, 8, requires_grad=requires_grad and name != "gaussian_heatmaps")
    refused = pytest.raises(NotImplementedError, match=f"{name}: no forward-mode derivatives")
    with forward_ad.dual_level():
        MAPS[name](x.detach())  # without a tangent nothing is refused
        with refused:
            MAPS[name](forward_ad.make_dual(x, torch.ones_like(x)))
    with refused:
        torch.func.jvp(MAPS[name], (x.detach(),), (torch.ones_like(x),))


@pytest.mark.parametrize("name", ["bn_act", "conv1x1_act", "conv3x3", "residual_block"])
@pytest.mark.parametrize("shape", [(0, 4, 6, 8), (2, 4, 0, 8), (2, 4, 6, 0)])
def test_an_empty_side_is_no_error(name, shape):
    x = torch.ones(shape, requires_grad=True)
    results = MAPS[name](x)
    y = results[0] if isinstance(results, tuple) else results
    assert y.shape == shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape

"""The layers' own arithmetic, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fasthg.model import StackedHourglass
from fasthg.model.layers import ConvBN, conv_on_blocks


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (1, 3, 2, 2), (1, 4, 6, 10), (1, 1, 8, 4)])
def test_a_convolution_on_blocks_equals_one_of_stride_2(shape):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, shape[1], 7, 7, generator=random, dtype=torch.float64)
    weight.requires_grad_()
    expected = F.conv2d(F.pad(x, (2, 3, 2, 3)), weight, stride=2)
    actual = conv_on_blocks(x, weight)
    grad_y = torch.randn(expected.shape, generator=random, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    of_both = [torch.autograd.grad(y, (x, weight), grad_y) for y in (actual, expected)]
    torch.testing.assert_close(*of_both, rtol=1e-12, atol=1e-12)


def test_the_network_is_the_same_with_its_first_convolution_on_blocks(monkeypatch):
    torch.manual_seed(0)
    network = StackedHourglass(stacks=1, parts=2, features=8, stem_features=4).train()
    images = torch.rand(2, 3, 64, 64) * 2 - 1

    def results():
        with torch.autocast("cpu", torch.bfloat16):
            heatmaps = network(images)
        loss = heatmaps.float().square().sum()
        return heatmaps.detach(), torch.autograd.grad(loss, network.stem.conv.conv.weight)[0]

    plain = results()
    taken = []
    first = network.stem.conv
    monkeypatch.setattr(
        ConvBN, "takes_blocks", lambda layer, x: layer is first and not taken.append(x.shape)
    )
    for actual, expected in zip(results(), plain, strict=True):
        assert actual.dtype == expected.dtype
        difference = (actual.float() - expected.float()).norm() / expected.float().norm()
        assert difference < 0.05  # bfloat16 through a network of twenty layers
    assert taken == [(2, 3, 64, 64)]

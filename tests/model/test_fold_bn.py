"""Batch norm folded into the convolutions, against the network as it was trained."""

from __future__ import annotations

import pytest
import torch

from fasthg.model import StackedHourglass, fold_batch_norm
from fasthg.model.layers import BatchNorm


def trained(**keys: int) -> StackedHourglass:
    """A network with moving statistics and offsets that are not those of the start."""
    torch.manual_seed(0)
    model = StackedHourglass(stacks=2, features=16, stem_features=8, **keys)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_the_maps_are_the_same() -> None:
    model = trained()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    folded = fold_batch_norm(model, torch.float32)
    close = 1e-4 * expected.max().item()
    torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=close)
    assert not any(isinstance(module, BatchNorm) for module in folded.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@torch.no_grad()
def test_half_precision_errs_no_more_than_the_network_under_autocast() -> None:
    model, images = trained(), torch.randn(2, 3, 64, 64)
    exact = trained().double()(images.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fold_batch_norm(model, torch.bfloat16)(images)
        theirs = model(images)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() < 2 * (theirs - exact).norm()


def test_a_folded_network_cannot_be_trained_by_mistake() -> None:
    folded = fold_batch_norm(trained(), torch.float32)
    assert not any(p.requires_grad for p in folded.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        folded(torch.randn(1, 3, 64, 64)).sum().backward()

"""Flat buffers: the network stays what it was, over memory that is one piece."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasthg.model import StackedHourglass, decayed_parameters
from fasthg.training.flat_params import ALIGNMENT, FlatParameters


def network() -> StackedHourglass:
    torch.manual_seed(0)
    small = StackedHourglass(stacks=2, parts=3, features=8, stem_features=4)
    return small.to(memory_format=torch.channels_last)


def flattened() -> tuple[StackedHourglass, FlatParameters[StackedHourglass]]:
    net = network()
    return net, FlatParameters(net, *decayed_parameters(net))


def test_names_values_and_strides_stay() -> None:
    plain, (net, _) = network(), flattened()
    assert list(net.state_dict()) == list(plain.state_dict())
    for (name, was), now in zip(plain.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(was, now), name
        assert was.stride() == now.stride(), name
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
    conv = net.stem.residual1.conv2.conv.weight
    assert conv.is_contiguous(memory_format=torch.channels_last) and not conv.is_contiguous()


def test_weights_with_l2_lie_first_and_statistics_last() -> None:
    net, flat = flattened()
    decayed, plain = decayed_parameters(net)
    sections = {
        (0, flat.num_decayed): decayed,
        (flat.num_decayed, len(flat.weights)): plain,
        (len(flat.weights), len(flat.values)): list(net.buffers()),
    }
    taken = torch.zeros(len(flat.values))
    for (begin, end), tensors in sections.items():
        for tensor in tensors:
            at = (tensor.data_ptr() - flat.values.data_ptr()) // 4
            assert at % ALIGNMENT == 0
            assert begin <= at and at + tensor.numel() <= end
            taken[at : at + tensor.numel()] += 1
    assert taken.max() == 1
    assert not flat.values[taken == 0].any()


def test_gradients_add_up_in_the_flat_buffer() -> None:
    plain, (net, flat) = network(), flattened()
    images = torch.randn(2, 3, 64, 64)
    for model in (plain, net):
        model(images).square().sum().backward()
        model(images).sum().backward()
    for (name, wanted), got in zip(plain.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, msg=name)
        begin, end = flat.gradient.data_ptr(), flat.gradient[-1:].data_ptr()
        assert got.grad is not None and begin <= got.grad.data_ptr() <= end
    flat.gradient.zero_()
    assert not any(p.grad.any() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_written_together(dtype: torch.dtype) -> None:
    net, flat = flattened()
    flat.gradient.fill_(torch.nan)
    weights = flat.parameters
    # As they lie in the network, and as some operators give them; one weight was not used.
    found = [torch.randn(p.shape).to(dtype).contiguous() for p in weights]
    for i in range(0, len(weights), 2):
        found[i] = torch.empty_like(weights[i], dtype=dtype).copy_(found[i])
    flat.set_gradient([None, *found[1:]])
    assert weights[0].grad is not None and not weights[0].grad.any()
    for weight, wanted in zip(weights[1:], found[1:], strict=True):
        assert torch.equal(weight.grad, wanted.float())
    total = sum(g.float().double().square().sum() for g in found[1:])
    used = torch.nan_to_num(flat.gradient).double().square().sum()
    torch.testing.assert_close(used, total)


def test_what_is_written_flat_is_seen_in_the_network() -> None:
    net, flat = flattened()
    flat.weights.fill_(0.5)
    assert all((p == 0.5).all() for p in net.parameters())
    net(torch.randn(2, 3, 64, 64))
    assert flat.values[len(flat.weights) :].any()
    net.load_state_dict({k: torch.full_like(v, 2) for k, v in net.state_dict().items()})
    decayed, plain = flat.groups()
    assert decayed[0] == plain[0] == flat.values[len(flat.weights)] == 2
    flat.gradient.fill_(3.0)
    assert (
        decayed.grad is not None and (decayed.grad == 3).all() and len(decayed) == flat.num_decayed
    )
    assert plain.grad is not None and (plain.grad == 3).all()


def test_a_copy_lies_in_the_same_order() -> None:
    net, flat = flattened()
    other, buffer = flat.copy()
    assert torch.equal(buffer, flat.values)
    buffer.copy_(torch.arange(len(buffer)))
    flat.values.copy_(buffer)
    for (name, mine), its in zip(
        net.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, its) and mine.stride() == its.stride(), name
        assert mine.data_ptr() != its.data_ptr()


def test_what_is_refused() -> None:
    net = network()
    decayed, plain = decayed_parameters(net)
    with pytest.raises(ValueError, match="expected the parameters of the network"):
        FlatParameters(net, decayed, plain[1:])
    FlatParameters(net, decayed, plain[1:], fixed=plain[:1])
    net = nn.Conv2d(1, 1, 1).double()
    with pytest.raises(ValueError, match=r"expected float32 on cpu, got torch\.float64"):
        FlatParameters(net, list(net.parameters()), [])

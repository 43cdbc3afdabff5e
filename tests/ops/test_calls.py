"""How an operator is called: around torch's dispatcher, and through it where something looks on."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fasthg.ops import bn_act, bn_act_inference, conv1x1_act, max_pool2x, upsample2x_add


def maps(*shapes):
    torch.manual_seed(0)
    return [
        torch.randn(shape).contiguous(memory_format=torch.channels_last)
        if len(shape) == 4
        else torch.randn(shape)
        for shape in shapes
    ]


X, CHANNELS, LOW = (2, 8, 6, 6), (8,), (2, 8, 3, 3)
# The call, what it is in torch.ops.fasthg, and the shapes of its tensors.
CALLS = {
    "bn_act": (
        lambda x, beta: bn_act(x, beta, relu=True)[0],
        lambda op, x, beta: op(x, beta, None, None, True, 1e-3)[0],
        (X, CHANNELS),
    ),
    "bn_act_inference": (
        lambda x, beta: bn_act_inference(x, beta.detach(), torch.ones(8), beta),
        lambda op, x, beta: op(x, beta.detach(), torch.ones(8), beta, None, None, False, 1e-3),
        (X, CHANNELS),
    ),
    "conv1x1_act": (
        lambda x, weight, y: conv1x1_act(x, weight, None, y, relu=True),
        lambda op, x, weight, y: op(x, weight.flatten(1), None, y, None, None, True),
        (X, (8, 8, 1, 1), X),
    ),
    "max_pool2x": (lambda x: max_pool2x(x)[0], lambda op, x: op(x)[0], (X,)),
    "upsample2x_add": (upsample2x_add, lambda op, low, high: op(low, high), (LOW, X)),
}
each = pytest.mark.parametrize("name", CALLS)


class Seen(TorchDispatchMode):
    """Names of the operators that the dispatcher was asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        self.names.append(str(function))
        return function(*arguments, **(kwargs or {}))


@each
def test_both_ways_give_the_same_bits(name):
    ours, registered, shapes = CALLS[name]
    results = []
    for call in (ours, lambda *t: registered(getattr(torch.ops.fasthg, name), *t)):
        tensors = [tensor.requires_grad_() for tensor in maps(*shapes)]
        y = call(*tensors)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), tensors)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


@each
def test_a_plain_call_goes_around_the_dispatcher(name):
    ours, _, shapes = CALLS[name]
    tensors = [tensor.requires_grad_() for tensor in maps(*shapes)]
    y = ours(*tensors)
    assert type(y.grad_fn).__name__ == f"{name}Backward"
    with torch.no_grad():
        assert ours(*tensors).grad_fn is None
    assert ours(*(tensor.detach() for tensor in tensors)).grad_fn is None


@each
def test_a_dispatch_mode_and_a_profiler_see_the_operator(name):
    ours, _, shapes = CALLS[name]
    tensors = maps(*shapes)
    with Seen() as seen:
        ours(*tensors)
    assert f"fasthg.{name}.default" in seen.names
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours(*tensors)
    assert f"fasthg::{name}" in {event.name for event in profile.events()}


@each
def test_fake_tensors_and_tracers_see_the_operator(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    ours, _, shapes = CALLS[name]
    tensors = maps(*shapes)
    with FakeTensorMode() as mode:
        fake = ours(*(mode.from_tensor(tensor) for tensor in tensors))
    real = ours(*tensors)
    assert fake.shape == real.shape and fake.stride() == real.stride()
    graph = torch.jit.trace(ours, tuple(tensors), check_trace=False).graph
    assert f"fasthg::{name}" in str(graph)


@each
def test_a_subclass_of_tensor_sees_the_operator(name):
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), kwargs=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, arguments, kwargs or {})

    ours, _, shapes = CALLS[name]
    ours(*(tensor.as_subclass(Watched) for tensor in maps(*shapes)))
    assert f"fasthg.{name}.default" in seen


def test_a_mistake_in_place_is_noticed():
    """The version counter of what the backward needs is looked at, as torch does for its own."""
    x, beta = (tensor.requires_grad_() for tensor in maps(X, CHANNELS))
    kept = x * 1
    y = bn_act(kept, beta)[0]
    kept.data.mul_(1)
    with torch.no_grad():
        kept.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()

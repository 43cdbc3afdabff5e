"""TensorFlow variable names of MARS's network, and loading of their values.

TensorFlow numbers scopes in order of creation, so a name follows from a module's place in the
network: stem first, then stack after stack. Convolution weights are stored
`(height, width, in, out)` there and `(out, in, height, width)` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from fasthg.errors import DataError
from fasthg.model.hourglass import Stack, StackedHourglass
from fasthg.model.layers import Hourglass, Residual

ROOT = "HourGlass"
EMA_SUFFIX = "/ExponentialMovingAverage"


def _scope(name: str, number: int) -> str:
    return name if number == 0 else f"{name}_{number}"


def _conv_bn(scope: str, path: str) -> Iterator[tuple[str, str]]:
    yield f"{scope}/weights", f"{path}.conv.weight"
    yield f"{scope}/BatchNorm/beta", f"{path}.bn.bias"
    yield f"{scope}/BatchNorm/moving_mean", f"{path}.bn.running_mean"
    yield f"{scope}/BatchNorm/moving_variance", f"{path}.bn.running_var"


def _residual(scope: str, path: str, module: Residual) -> Iterator[tuple[str, str]]:
    for number in range(3):
        conv = _scope("Conv", number)
        yield from _conv_bn(f"{scope}/convolution_path/{conv}", f"{path}.conv{number + 1}")
    if module.skip is not None:
        yield from _conv_bn(f"{scope}/skip_path/Conv", f"{path}.skip")


def _hourglass(scope: str, path: str, module: Hourglass) -> Iterator[tuple[str, str]]:
    yield from _residual(f"{scope}/upper_branch/residual", f"{path}.upper", module.upper)
    lower = f"{scope}/lower_branch"
    yield from _residual(f"{lower}/residual", f"{path}.lower1", module.lower1)
    number = 1
    if isinstance(module.lower2, Hourglass):
        yield from _hourglass(f"{lower}/hourglass", f"{path}.lower2", module.lower2)
    else:
        assert isinstance(module.lower2, Residual)
        yield from _residual(f"{lower}/residual_1", f"{path}.lower2", module.lower2)
        number = 2
    yield from _residual(f"{lower}/residual_{number}", f"{path}.lower3", module.lower3)


def _biased(scope: str, path: str) -> Iterator[tuple[str, str]]:
    yield f"{scope}/weights", f"{path}.weight"
    yield f"{scope}/biases", f"{path}.bias"


def variable_names(model: StackedHourglass, root: str = ROOT) -> dict[str, str]:
    """TensorFlow variable name -> `state_dict` name, for every variable of the network."""

    def pairs() -> Iterator[tuple[str, str]]:
        stem = model.stem
        yield from _conv_bn(f"{root}/Conv", "stem.conv")
        for number, residual in enumerate((stem.residual1, stem.residual2, stem.residual3)):
            yield from _residual(
                f"{root}/{_scope('residual', number)}", f"stem.residual{number + 1}", residual
            )
        conv = 1
        for number, stack in enumerate(model.stacks):
            assert isinstance(stack, Stack)
            path = f"stacks.{number}"
            yield from _hourglass(
                f"{root}/{_scope('hourglass', number)}", f"{path}.hourglass", stack.hourglass
            )
            yield from _residual(
                f"{root}/residual_{3 + number}", f"{path}.residual", stack.residual
            )
            yield from _conv_bn(f"{root}/Conv_{conv}", f"{path}.features")
            yield from _biased(f"{root}/Conv_{conv + 1}", f"{path}.heatmap")
            conv += 2
            for remap in ("remap_features", "remap_heatmap"):
                if getattr(stack, remap) is not None:
                    yield from _biased(f"{root}/Conv_{conv}", f"{path}.{remap}")
                    conv += 1

    return dict(pairs())


def network_keys(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Configuration keys that follow from the names and shapes of a network's variables.

    Args:
        shapes: variable name -> shape, convolution weights `(height, width, in, out)`.

    Returns:
        NUM_STACKS, STEM_FEATURES, FEATURES and PARTS.NUM_PARTS, those of them that follow.
    """
    scopes = (name.split("/") for name in shapes)
    stacks = {s[1] for s in scopes if s[0] == ROOT and re.fullmatch(r"hourglass(_\d+)?", s[1])}
    keys = {"NUM_STACKS": len(stacks)} if stacks else {}
    for key, scope in (
        ("STEM_FEATURES", "Conv"),
        ("FEATURES", "Conv_1"),
        ("PARTS.NUM_PARTS", "Conv_2"),
    ):
        shape = shapes.get(f"{ROOT}/{scope}/weights", ())
        if len(shape) == 4:
            keys[key] = shape[3]
    return keys


def load_variables(
    model: StackedHourglass, variables: Mapping[str, np.ndarray], *, ema: bool = False
) -> None:
    """Fill `model` from TensorFlow variables.

    Args:
        variables: variable name -> value; convolution weights `(height, width, in, out)`.
        ema: take the exponential moving averages instead of the raw values.

    Raises:
        DataError: a variable is missing or its shape does not fit the network.
    """
    state = model.state_dict()
    for name, target in variable_names(model).items():
        key = name + EMA_SUFFIX if ema else name
        if key not in variables:
            raise DataError(f"{key}: not among the {len(variables)} variables; wrong NUM_STACKS?")
        value = torch.from_numpy(np.ascontiguousarray(variables[key]))
        if value.ndim == 4:
            value = value.permute(3, 2, 0, 1)
        if value.shape != state[target].shape:
            raise DataError(
                f"{key}: shape {tuple(value.shape)}, the network has {tuple(state[target].shape)};"
                " check PARTS.NUM_PARTS and FEATURES"
            )
        state[target].copy_(value)

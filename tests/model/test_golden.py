"""The network against outputs of the TensorFlow reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fasthg.errors import DataError
from fasthg.interop.tf_names import load_variables, variable_names
from fasthg.model import StackedHourglass, decayed_parameters

WEIGHT_DECAY = 4e-5


@pytest.fixture(scope="module")
def weights(test_data: Path) -> dict[str, np.ndarray]:
    return dict(np.load(test_data / "mars/model/weights_2stack_f32.npz"))


@pytest.fixture(scope="module")
def golden(test_data: Path) -> dict[str, np.ndarray]:
    return dict(np.load(test_data / "mars/model/golden_2stack_f32_with_slots.npz"))


def network(weights: dict[str, np.ndarray], mode: str, dtype: torch.dtype) -> StackedHourglass:
    model = StackedHourglass(stacks=2, parts=7, features=32)
    load_variables(model, weights, ema=mode == "eval_ema")
    model.train(mode == "train_raw")
    return model.to(dtype=dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["eval_raw", "train_raw", "eval_ema"])
def test_outputs_equal_the_reference(
    weights: dict[str, np.ndarray], golden: dict[str, np.ndarray], mode: str
) -> None:
    """In float64 ours is the reference's output but for its rounding. In float32 ours lies as near
    to exact arithmetic as the reference does: how near depends on the order of summation, which
    differs from processor to processor."""
    images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        single = network(weights, mode, torch.float32)(images).permute(0, 1, 3, 4, 2)
        exact = network(weights, mode, torch.float64)(images.double()).permute(0, 1, 3, 4, 2)
    for stack in range(2):
        expected = torch.from_numpy(golden[f"{mode}_stack{stack}"])
        peak = float(expected.abs().max())
        assert float((exact[stack] - expected).abs().max()) <= max(1e-4, 1e-6 * peak)
        error, theirs = ((t.double() - exact[stack]).norm() for t in (single[stack], expected))
        assert error <= 2 * theirs
        if mode != "train_raw":  # statistics of a batch spread roundings of one value to all
            assert float((single[stack] - exact[stack]).abs().max()) <= max(1e-4, 1.25e-6 * peak)


def test_losses_equal_the_reference(
    weights: dict[str, np.ndarray], golden: dict[str, np.ndarray]
) -> None:
    images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    targets = torch.from_numpy(golden["targets"])
    for mode in ("eval_raw", "train_raw"):
        with torch.no_grad():
            output = network(weights, mode, torch.float32)(images).permute(0, 1, 3, 4, 2)
        loss = ((output - targets).double() ** 2).sum(dim=(1, 2, 3, 4)) / 2
        np.testing.assert_allclose(loss.sum().item(), golden[f"{mode}_heatmap_loss"], rtol=1e-5)
        if mode == "train_raw":
            np.testing.assert_allclose(
                loss.numpy(), golden["train_raw_heatmap_loss_per_stack"], rtol=1e-5
            )


def test_l2_covers_convolution_weights_and_biases_only(
    weights: dict[str, np.ndarray], golden: dict[str, np.ndarray]
) -> None:
    decayed, plain = decayed_parameters(network(weights, "eval_raw", torch.float32))
    assert len(decayed) == 106
    assert len(decayed) + len(plain) == 204
    loss = WEIGHT_DECAY * sum(float((p.detach().double() ** 2).sum()) for p in decayed) / 2
    np.testing.assert_allclose(loss, golden["regularisation_loss"], rtol=1e-5)


def test_moving_statistics_after_one_update(
    weights: dict[str, np.ndarray], golden: dict[str, np.ndarray]
) -> None:
    model = network(weights, "train_raw", torch.float32)
    model(torch.from_numpy(golden["images"]).permute(0, 3, 1, 2))
    names, state = variable_names(model), model.state_dict()
    for key in (k for k in golden if k.startswith("after1update__")):
        name = key.removeprefix("after1update__").replace("__", "/")
        before = golden["before__" + name.replace("/", "__")]
        change = float(np.abs(golden[key] - before).max())
        error = float(np.abs(state[names[name]].numpy() - golden[key]).max())
        assert error <= max(1e-3 * change, 5e-7)


@pytest.mark.parametrize("stacks", [2, 8])
def test_names_and_shapes_of_all_variables(test_data: Path, stacks: int) -> None:
    listed = {}
    for line in (test_data / f"mars/model/variables_{stacks}stack.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape, *rest = line.split("\t")
            listed[name] = tuple(int(n) for n in shape.split("x") if n)
    model = StackedHourglass(stacks=stacks, parts=7, features=256)
    state = model.state_dict()
    ours = {}
    for name, target in variable_names(model).items():
        shape = tuple(state[target].shape)
        ours[name] = (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape
    for name, shape in ours.items():
        assert listed[name] == shape
    assert set(ours) == set(state_names(listed))


def state_names(listed: dict[str, tuple[int, ...]]) -> list[str]:
    """Variables of the network itself: no optimiser slot, no shadow, no step."""
    slots = ("ExponentialMovingAverage", "RMSProp", "RMSProp_1", "Momentum")
    return [n for n in listed if n.startswith("HourGlass/") and n.split("/")[-1] not in slots]


@pytest.mark.slow
def test_stock_network_has_the_counts_of_the_reference() -> None:
    model = StackedHourglass()
    assert sum(p.numel() for p in model.parameters()) == 25_278_904
    assert sum(b.numel() for b in model.buffers()) == 121_728


def test_missing_variable_and_wrong_shape_are_named(weights: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="NUM_STACKS"):
        load_variables(StackedHourglass(stacks=3, parts=7, features=32), weights)
    with pytest.raises(DataError, match=r"HourGlass/.*shape"):
        load_variables(StackedHourglass(stacks=2, parts=5, features=32), weights)

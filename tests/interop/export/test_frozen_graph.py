"""MARS's frozen graph: its bytes read by protobuf, its nodes run in torch and in TensorFlow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import graphdef
import numpy as np
import pytest
import torch

from fasthg.config import Config
from fasthg.interop.export import Exported, Trained
from fasthg.interop.export.comparison import run_tensorflow
from fasthg.interop.export.frozen_graph import frozen_graph
from fasthg.interop.export.network import ExportNetwork, traced
from fasthg.interop.tf_names import load_variables
from fasthg.model import StackedHourglass, fold_batch_norm
from fasthg.ops import heatmap_peaks

# Those of TensorFlow 1.0; all it takes to run the file.
OPERATORS = {
    *("Placeholder", "Const", "Conv2D", "BiasAdd", "Relu", "MaxPool", "ResizeNearestNeighbor"),
    *("Add", "Identity"),
}


@pytest.fixture(scope="module")
def program(two_stacks: Trained) -> torch.export.ExportedProgram:
    return traced(ExportNetwork(two_stacks.model), two_stacks.config)


@torch.no_grad()
def test_the_graph_computes_the_last_heatmaps_at_any_batch(two_stacks: Trained, program) -> None:
    content = frozen_graph(program, torch.float32)
    graph = graphdef.parse(content)
    assert graph.SerializeToString(deterministic=True) == content
    assert {node.op for node in graph.node} == OPERATORS
    assert len({node.name for node in graph.node}) == len(graph.node)
    assert graph.versions.producer == 27
    (images,) = (node for node in graph.node if node.op == "Placeholder")
    assert images.name == "images"
    assert [dim.size for dim in images.attr["shape"].shape.dim] == [-1, 64, 64, 3]
    for batch in (1, 3):
        x = torch.rand(batch, 3, 64, 64) * 2 - 1
        expected = two_stacks.model(x)[-1]
        actual = torch.from_numpy(graphdef.run(graph, x.permute(0, 2, 3, 1).numpy()))
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(actual.permute(0, 3, 1, 2), expected, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_the_constants_are_the_folded_network_bit_for_bit(two_stacks: Trained, program) -> None:
    found = graphdef.weights(graphdef.parse(frozen_graph(program, torch.float32)))
    folded = fold_batch_norm(two_stacks.model, torch.float32).state_dict()
    assert {name.removeprefix("network.") for name in found} == set(folded)
    assert all(torch.equal(found[f"network.{name}"], tensor) for name, tensor in folded.items())

    other = ExportNetwork(StackedHourglass(2, features=16, stem_features=8).eval())
    other.load_state_dict(found)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(other(x)[0], ExportNetwork(two_stacks.model)(x)[0])


@pytest.mark.parametrize(("stored", "error"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@torch.no_grad()
def test_half_the_size_with_weights_that_are_cast(
    two_stacks: Trained, program, stored: torch.dtype, error: float
) -> None:
    whole, half = (frozen_graph(program, dtype) for dtype in (torch.float32, stored))
    graph = graphdef.parse(half)
    kinds = Counter(tensor.dtype for tensor in graphdef.weights(graph).values())
    counts = Counter(t.ndim == 4 for t in ExportNetwork(two_stacks.model).state_dict().values())
    assert kinds == {stored: counts[True], torch.float32: counts[False]}
    saved = sum(t.numel() for t in two_stacks.model.state_dict().values() if t.ndim == 4) * 2
    assert len(half) < len(whole) - 0.7 * saved  # each Cast takes some hundred bytes
    x = torch.rand(2, 3, 64, 64)
    expected = two_stacks.model(x)[-1]
    actual = torch.from_numpy(graphdef.run(graph, x.permute(0, 2, 3, 1).numpy())).permute(
        0, 3, 1, 2
    )
    difference = (actual - expected).norm() / expected.norm()
    assert 0 < difference < error


@pytest.fixture(scope="module")
def mars_export(test_data: Path) -> tuple[StackedHourglass, bytes]:
    """The network of MARS's own checkpoint, averages of weights, and its file."""
    model = StackedHourglass(stacks=2, parts=7, features=32)
    load_variables(model, dict(np.load(test_data / "mars/model/weights_2stack_f32.npz")), ema=True)
    program = traced(ExportNetwork(model.eval()), Config())
    return model, frozen_graph(program, torch.float32)


def test_of_mars_own_weights_the_graph_gives_mars_own_heatmaps(
    test_data: Path, mars_export
) -> None:
    golden = np.load(test_data / "mars/model/golden_2stack_f32_with_slots.npz")
    expected = golden["eval_ema_stack1"][:2]
    actual = graphdef.run(graphdef.parse(mars_export[1]), golden["images"][:2])
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max())
    )


@torch.no_grad()
def test_tensorflow_runs_it(test_data: Path, mars_export, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    model, content = mars_export
    path = tmp_path / "mars.pb"
    path.write_bytes(content)
    run = run_tensorflow(Exported(path, "mars-pb", "fp32", None, []))
    golden = np.load(test_data / "mars/model/golden_2stack_f32_with_slots.npz")
    maps = run(torch.from_numpy(golden["images"]).permute(0, 3, 1, 2))[0].permute(0, 2, 3, 1)
    expected = golden["eval_ema_stack1"]
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-4 * scale)

    crops = np.load(test_data / "mars/preprocessing_golden.npz")["three__loose1__crops"]
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
    for batch in (images, images[:1]):
        ours, theirs = model(batch)[-1], run(batch)[0]
        scale = max(1.0, float(ours.abs().max()))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * scale)
        points = [heatmap_peaks(maps, "argmax")[0] for maps in (ours, theirs)]
        assert torch.equal(*points)

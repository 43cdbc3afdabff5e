"""The extension itself: what it links, what happens without it, and how it behaves in a process."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fasthg.ops import (
    _extension,
    conv1x1_act,
    gaussian_heatmaps,
    heatmap_mse,
    heatmap_peaks,
    moving_statistics,
    paths,
    rmsprop_ema,
)
from fasthg.ops._source_hash import source_hash

needs_extension = pytest.mark.skipif(
    isinstance(_extension.native, _extension.Missing), reason="the extension is not built"
)

OPERATORS = ("bn_act", "bn_act_inference", "gaussian_heatmaps", "heatmap_mse", "heatmap_peaks")
OPERATORS += ("conv1x1_act", "conv3x3", "moving_statistics")
OPERATORS += ("max_pool2x", "residual_block", "rmsprop_ema", "upsample2x_add")

RUN_ALL = """
import sys, torch
from fasthg.ops import (
    bn_act,
    gaussian_heatmaps,
    heatmap_mse,
    heatmap_peaks,
    paths,
)
from fasthg.ops import conv1x1_act, conv3x3, max_pool2x, residual_block, upsample2x_add
from fasthg.ops import moving_statistics, rmsprop_ema
assert "torch._dynamo" not in sys.modules, "its import takes seconds"
torch.manual_seed(0)
keypoints, sigmas = torch.rand(2, 3, 2) * 16, torch.rand(2, 3) + 1
predictions = torch.randn(2, 2, 3, 16, 16, requires_grad=True)
maps = gaussian_heatmaps(keypoints, sigmas, 16, subpixel=True)
loss = heatmap_mse(predictions, keypoints, sigmas)
loss.sum().backward()
results = [maps, loss.detach(), predictions.grad]
results += [t.detach() for t in bn_act(predictions[0], torch.zeros(3), relu=True)]
shapes = (1, 3, 1, 1), (1,), (1, 1, 3, 3), (1,), (3, 1, 1, 1), (3,)
y, statistics = residual_block(predictions[0], *(torch.randn(s) for s in shapes))
results += [t.detach() for t in (y, *statistics)]
results += [conv1x1_act(predictions[0], torch.randn(8, 3), relu=True).detach()]
results += [conv3x3(predictions[0], torch.randn(8, 3, 3, 3), relu=True).detach()]
for method in ("argmax", "quarter", "dark", "plateau"):
    results += heatmap_peaks(maps, method)
halved, index = max_pool2x(predictions[0])
results += [halved.detach(), index, upsample2x_add(halved, predictions[1]).detach()]
weights, squares = torch.randn(99), torch.ones(99)
rmsprop_ema(weights, torch.randn(99), squares, torch.tensor(0.1), decay=0.9, eps=1.0)
moving_statistics(squares, weights, squares.clone(), torch.tensor(0.3))
results += [weights, squares]
torch.save([results, [row._asdict() for row in paths()]], sys.argv[1])
"""


def run_all(repository, file, **environment):
    path = os.pathsep.join(filter(None, [str(repository), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    subprocess.run([sys.executable, "-c", RUN_ALL, file], check=True, env=environment, timeout=120)
    return torch.load(file)


@pytest.mark.slow
def test_the_fallback_gives_the_same_results(repository, tmp_path):
    results, rows = run_all(repository, tmp_path / "native.pt", FASTHG_NATIVE_DISABLE="0")
    others, other_rows = run_all(repository, tmp_path / "torch.pt", FASTHG_NATIVE_DISABLE="1")
    for result, other in zip(results, others, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-5, atol=2e-5)
    assert [(row["op"], row["device"]) for row in rows] == [
        (row["op"], row["device"]) for row in other_rows
    ]
    # Where torch has the operator by intention, the extension makes no difference.
    other_rows = [row for row in other_rows if row["path"] != "torch"]
    assert {row["path"] for row in other_rows} == {"torch reference"}
    assert all("FASTHG_NATIVE_DISABLE" in row["reason"] for row in other_rows)


def test_a_missing_extension_explains_itself():
    missing = _extension.Missing("no compiler was found")
    message = r"fasthg\._C\.heatmap_mse_cpu .* no compiler was found; reinstall"
    with pytest.raises(_extension.MissingExtensionError, match=message):
        missing.heatmap_mse_cpu(0)


def test_a_missing_extension_can_be_asked_for_attributes_and_copied():
    missing = _extension.Missing("no compiler was found")
    assert not hasattr(missing, "heatmap_mse_cpu") and not hasattr(missing, "__iter__")
    assert copy.copy(missing).reason == copy.deepcopy(missing).reason == missing.reason


RELOAD = """
import importlib, sys, torch
from fasthg.ops import _extension, max_pool2x
from fasthg.ops import paths
before = paths()
importlib.reload(_extension)
x = torch.randn(1, 8, 4, 4)
expected, _ = max_pool2x(x)
assert _extension.paths() == before
importlib.reload(sys.modules["fasthg.ops.max_pool2x"])
result, _ = torch.compile(max_pool2x, backend="eager", fullgraph=True)(x.requires_grad_())
assert torch.equal(result, expected)
result.sum().backward()
assert x.grad.sum() == result.numel()
assert sorted(_extension.paths()) == sorted(before)
"""


@pytest.mark.slow
def test_the_modules_of_operators_can_be_reloaded(repository):
    """As IPython's autoreload does after an edit."""
    environment = os.environ | {"PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", RELOAD], check=True, env=environment, timeout=120)


def test_the_choice_of_kernels_is_a_constant_for_torch_compile():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked).items() <= vars(_extension._has_kernels).items() and vars(marked)


def test_an_extension_of_other_sources_is_told(tmp_path, monkeypatch):
    (tmp_path / "ops.h").write_text("one")
    extension = SimpleNamespace(version="1.0", source_hash=source_hash(tmp_path))
    assert _extension._difference(extension, tmp_path) is None
    (tmp_path / "ops.h").write_text("two")
    assert f"built from other sources than {tmp_path}" in _extension._difference(
        extension, tmp_path
    )
    assert _extension._difference(SimpleNamespace(version="1.0"), tmp_path)
    # An installed wheel has no csrc next to it.
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    assert _extension._difference(extension, tmp_path / "csrc") is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.1")
    difference = _extension._difference(extension, tmp_path / "csrc")
    assert difference == "the extension is of fasthg 1.0, the package of 1.1"


def test_the_source_hash_knows_names_and_contents(tmp_path):
    hashes = set()
    for name, content in (("a", "12"), ("a", "13"), ("b", "13")):
        folder = tmp_path / f"{len(hashes)}"
        folder.mkdir()
        (folder / name).write_text(content)
        hashes.add(source_hash(folder))
    assert len(hashes) == 3


@needs_extension
def test_an_extension_of_other_sources_is_not_used(monkeypatch):
    monkeypatch.setattr(_extension, "_difference", lambda *arguments: "it is old")
    with pytest.warns(UserWarning, match=r"it is old: .* until it is reinstalled \(make setup\)"):
        missing = _extension._load()
    assert isinstance(missing, _extension.Missing) and missing.reason == "it is old"


def test_paths_name_every_operator_once_a_device():
    rows = paths()
    assert {row.op for row in rows} == set(OPERATORS)
    assert len({(row.op, row.device) for row in rows}) == len(rows) == 2 * len(OPERATORS)
    assert all(row.path in ("native", "torch", "torch reference") and row.reason for row in rows)
    by_torch = [row[:2] for row in rows if row.path == "torch"]
    assert by_torch == [("conv1x1_act", "cpu"), ("conv3x3", "cuda"), ("residual_block", "cpu")]


def test_other_devices_are_not_served():
    assert not _extension.choose("xpu")[0]
    assert not _extension.has_kernel(torch.empty(1, device="meta"))
    assert not _extension.has_kernel(torch.empty(1, dtype=torch.int32))


@needs_extension
def test_the_library_links_neither_torch_nor_a_thread_pool():
    needed = needed_libraries(_extension.native.__file__)
    assert any(name.startswith("libc.so") for name in needed)
    assert not [n for n in needed if n.startswith(("libtorch", "libc10", "libgomp", "libcudart"))]


@needs_extension
def test_a_refusal_of_a_launcher_is_an_exception():
    with pytest.raises(RuntimeError, match="takes float32 and float64"):
        _extension.native.heatmap_peaks_cpu(2, 0, (1, 1, 1, 1), (1, 1, 1, 1), 0, 0, 0, 1)


@needs_extension
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_threads_survive_a_fork():
    """A data-loader worker may draw targets although its parent already did."""
    keypoints = torch.rand(32, 7, 2) * 64
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        expected = gaussian_heatmaps(keypoints, torch.ones(7), 64).numpy()
        child = os.fork()
        if child == 0:
            same = (
                gaussian_heatmaps(keypoints.numpy(), torch.ones(7).numpy(), 64) == expected
            ).all()
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@needs_extension
def test_the_operators_can_be_captured_in_a_graph():
    assert _extension.choose("cuda")[0], _extension.choose("cuda")[1]
    keypoints = torch.rand(2, 3, 2, device="cuda") * 16
    sigmas = torch.ones(3, device="cuda")
    predictions = torch.randn(2, 2, 3, 16, 16, device="cuda", requires_grad=True)
    rate = torch.tensor(0.1, device="cuda")
    maps = torch.randn(2, 16, 16, 16, device="cuda", dtype=torch.bfloat16)

    def step():
        loss = heatmap_mse(predictions, keypoints, sigmas)
        (gradient,) = torch.autograd.grad(loss.sum(), predictions)
        weights, squares = torch.ones(2, gradient.numel(), device="cuda")
        rmsprop_ema(weights, gradient.flatten(), squares, rate, decay=0.9, eps=1.0)
        moving_statistics(squares, weights, weights, rate)
        y = conv1x1_act(maps, maps[0, :, 0, :8].t(), residual=maps[:, :8], relu=True)
        return (
            gradient,
            weights,
            squares,
            y,
            *heatmap_peaks(gaussian_heatmaps(keypoints, sigmas, 16)),
        )

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    keypoints.copy_(torch.rand(2, 3, 2) * 16)
    rate.fill_(0.2)
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        assert torch.equal(actual, expected)


def needed_libraries(path):
    """Names in the DT_NEEDED entries of a 64-bit little-endian ELF file."""
    with open(path, "rb") as file:
        data = file.read()
    assert data[:6] == b"\x7fELF\x02\x01", f"{path}: not a 64-bit little-endian ELF file"
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    (dynamic,) = (section for section in sections if section[1] == 6)
    names = sections[dynamic[6]][4]
    needed = []
    for offset in range(dynamic[4], dynamic[4] + dynamic[5], 16):
        tag, value = struct.unpack_from("<QQ", data, offset)
        if tag == 1:
            start = names + value
            needed.append(data[start : data.index(b"\0", start)].decode())
    return needed

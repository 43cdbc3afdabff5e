"""Builds the CUDA kernels for the host and calls their launchers through the C ABI of ops.h."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
COMPILER = os.environ.get("CXX") or "g++"
LIBRARY = "emulated.so"


class Targets(ctypes.Structure):
    """`struct Targets` of csrc/portable.h."""

    _fields_ = [
        ("keypoints", ctypes.c_void_p),
        ("sigmas", ctypes.c_void_p),
        ("visibility", ctypes.c_void_p),
        ("sigma_stride", ctypes.c_int64),
        ("batch", ctypes.c_int32),
        ("parts", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("subpixel", ctypes.c_bool),
    ]


class BatchNorm(ctypes.Structure):
    """`struct BatchNorm` of csrc/portable.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("beta", "gamma", "mean", "var", "workspace")),
        *((name, ctypes.c_int64) for name in ("rows", "channels", "parts")),
        ("eps", ctypes.c_double),
        ("relu", ctypes.c_bool),
        ("frozen", ctypes.c_bool),
        ("on_chip", ctypes.c_bool),
    ]


class BnFold(ctypes.Structure):
    """`struct BnFold` of csrc/portable.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "mean", "covariance")),
        *((name, ctypes.c_void_p) for name in ("mean_out", "var_out")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
        ("eps", ctypes.c_double),
        ("folded_dtype", ctypes.c_int),
    ]


class Conv1x1(ctypes.Structure):
    """`struct Conv1x1` of csrc/portable.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "x2", "weight2")),
        *((name, ctypes.c_void_p) for name in ("bias", "residual", "y")),
        *((name, ctypes.c_int64) for name in ("rows", "in_", "in2", "outputs")),
        ("relu", ctypes.c_bool),
    ]


BUFFERS = ("values", "gradient", "squares", "momenta", "averages", "bfloat16")
BUFFERS += ("rate", "average_weight", "found_inf")
COUNTS = ("total", "weights", "decayed")
CONSTANTS = ("weight_decay", "decay", "momentum", "eps")


class RmspropStep(ctypes.Structure):
    """`struct RmspropStep` of csrc/portable.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in BUFFERS),
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_double) for name in CONSTANTS),
    ]


class Kernels:
    """The launchers of one library, for either side: `cuda` (emulated) or `cpu`.

    Results come in tensors filled with NaN beforehand, so that a value never written shows.
    """

    def __init__(self, library: ctypes.CDLL, side: str) -> None:
        self.library, self.side = library, side
        # After the arguments both sides share: a thread count, or a device and a stream.
        self.last = (1,) if side == "cpu" else (0, None)

    def call(self, name: str, *arguments: object) -> None:
        function = getattr(self.library, f"fasthg_{name}_{self.side}")
        function.restype = ctypes.c_char_p
        refusal = function(*arguments, *self.last)
        if refusal:
            raise RuntimeError(refusal.decode())

    def targets(self, scene: Sequence[Tensor], height: int, width: int, subpixel: bool) -> Targets:
        keypoints, sigmas, visibility = scene
        batch, parts = keypoints.shape[:2]
        stride = parts if sigmas.dim() == 2 else 0
        pointers = (keypoints.data_ptr(), sigmas.data_ptr(), visibility.data_ptr())
        return Targets(*pointers, stride, batch, parts, height, width, subpixel)

    def gaussian_heatmaps(
        self, scene: Sequence[Tensor], size: tuple[int, int], dtype: torch.dtype, last: bool
    ) -> Tensor:
        height, width = size
        maps = torch.full((scene[0].shape[0], scene[0].shape[1] * height * width), torch.nan)
        maps = maps.to(dtype)
        targets = self.targets(scene, height, width, False)
        pointer = ctypes.c_void_p(maps.data_ptr())
        self.call("gaussian_heatmaps", CODES[dtype], ctypes.byref(targets), pointer, last)
        return maps

    def heatmap_mse(
        self, scene: Sequence[Tensor], size: tuple[int, int], predictions: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """predictions: (stacks, batch, cells of an image in memory order), maybe with gaps."""
        real = torch.float64 if predictions.dtype == torch.float64 else torch.float32
        loss = torch.full(predictions.shape[:2], torch.nan, dtype=real)
        grad_loss = torch.linspace(0.5, 2, loss.numel(), dtype=real).view(loss.shape)
        gradient = torch.full(predictions.shape, torch.nan).to(predictions.dtype)
        shared = (
            CODES[predictions.dtype],
            ctypes.byref(self.targets(scene, *size, True)),
            len(predictions),
            ctypes.c_void_p(predictions.data_ptr()),
            ctypes.c_int64(predictions.stride(0)),
            ctypes.c_int64(predictions.stride(1)),
            last,
        )
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (loss, grad_loss, gradient)]
        self.call("heatmap_mse", *shared, pointers[0])
        self.call("heatmap_mse_backward", *shared, *pointers[1:])
        return loss, gradient

    def bn_act(
        self,
        x: Tensor,
        residual: Tensor | None,
        grad_y: Tensor,
        beta: Tensor,
        gamma: Tensor | None,
        *,
        relu: bool,
        given: tuple[Tensor, Tensor] | None = None,
        parts: int = 3,
        on_chip: bool = False,
    ) -> list[Tensor]:
        """x, residual, grad_y: (rows, channels). given: mean and variance to take.

        Returns y, mean, var and the gradients: of x, beta, gamma and, behind a ReLU, the residual.
        `sums_in_workspace` then says whether the forward and the backward left any there.
        """
        rows, channels = x.shape
        mean, var, grad_beta, grad_gamma = torch.full((4, channels), torch.nan, dtype=beta.dtype)
        if given:
            mean, var = given
        workspace = torch.full((parts, 2, channels), torch.nan, dtype=beta.dtype)
        y, grad_x, grad_residual = (torch.full_like(x, torch.nan) for _ in range(3))
        masked = relu and residual is not None

        def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
            return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]

        described = pointers(beta, gamma, mean, var, workspace)
        frozen = given is not None
        sizes = (rows, channels, parts)
        norm = BatchNorm(*described, *sizes, 1e-3, relu, frozen, on_chip)
        shared = (CODES[x.dtype], ctypes.byref(norm))
        self.call("bn_act", *shared, *pointers(x, residual, y))
        by_forward = not workspace.isnan().all()
        workspace.fill_(torch.nan)
        gradients = (grad_x, grad_residual if masked else None, grad_beta, grad_gamma)
        read = (x, y if masked else None, grad_y)
        self.call("bn_act_backward", *shared, *pointers(*read, *gradients))
        self.sums_in_workspace = (by_forward, not workspace.isnan().all())
        return [y, mean, var, *(t for t in gradients if t is not None)]

    def moments(self, x: Tensor, parts: int = 3, on_chip: bool = False) -> tuple[Tensor, Tensor]:
        """Statistics of x (rows, channels) as `bn_act` finds them, without a result."""
        rows, channels = x.shape
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, var = torch.full((2, channels), torch.nan, dtype=real)
        workspace = torch.full((parts, 2, channels), torch.nan, dtype=real)
        described = (None, None, mean.data_ptr(), var.data_ptr(), workspace.data_ptr())
        norm = BatchNorm(*described, rows, channels, parts, 0.0, False, False, on_chip)
        self.call(
            "bn_act", CODES[x.dtype], ctypes.byref(norm), ctypes.c_void_p(x.data_ptr()), *[None] * 2
        )
        return mean, var

    def channel_covariance(self, x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """x: (rows, channels)."""
        rows, channels = x.shape
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        workspace = torch.full((parts, channels + 1, channels), torch.nan, dtype=real)
        mean = torch.full((channels,), torch.nan, dtype=real)
        covariance = torch.full((channels, channels), torch.nan, dtype=real)
        sizes = [ctypes.c_int64(size) for size in (rows, channels, parts)]
        outs = [ctypes.c_void_p(t.data_ptr()) for t in (workspace, mean, covariance)]
        address = ctypes.c_void_p(x.data_ptr())
        self.call("channel_covariance", CODES[x.dtype], address, *sizes, *outs)
        return mean, covariance

    def bn_fold(
        self,
        weight: Tensor,
        moments: tuple[Tensor, Tensor],
        beta: Tensor,
        product: Tensor,
        total: Tensor,
        rows: int,
        dtype: torch.dtype,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What bn_fold and bn_fold_backward return, but for the gradient of beta."""
        outputs, inputs = weight.shape

        def room(*shape: int, dtype: torch.dtype = weight.dtype) -> Tensor:
            return torch.full(shape, torch.nan).to(dtype)

        def pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
            return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]

        forward = [room(outputs, inputs, dtype=dtype), *(room(outputs) for _ in range(3))]
        described = [t.data_ptr() for t in (weight, *moments, *forward[2:])]
        fold = BnFold(*described, outputs, inputs, 1e-3, CODES[dtype])
        shared = (CODES[weight.dtype], ctypes.byref(fold))
        self.call("bn_fold", *shared, *pointers(beta, *forward[:2]))
        square = room(inputs, inputs, dtype=dtype)
        backward = [room(outputs, inputs), room(inputs, outputs, dtype=dtype), square, room(inputs)]
        given = (*pointers(product, total), ctypes.c_int64(rows))
        workspace = room(2, outputs)
        self.call("bn_fold_backward", *shared, *given, *pointers(workspace, *backward))
        return forward, backward

    def door(self) -> SimpleNamespace:
        """Stands in for `fasthg.ops._extension`: conv1x1_act's own wrapper calls these kernels."""

        def call_kernel(name: str, x: Tensor, described: ctypes.Structure) -> None:
            self.call(name, CODES[x.dtype], ctypes.byref(described))

        return SimpleNamespace(native=SimpleNamespace(Conv1x1=Conv1x1), call_kernel=call_kernel)

    def conv1x1_act(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        second: tuple[Tensor, Tensor] | None = None,
        *,
        relu: bool,
        first: int = 0,
    ) -> Tensor:
        """x: (rows, in), residual: (rows, out). y starts `first` values into its memory."""
        rows, outputs = len(x), len(weight)
        y = torch.full((rows * outputs + first,), torch.nan, dtype=x.dtype)[first:]
        x2, weight2 = second or (None, None)
        tensors = (x, weight, x2, weight2, bias, residual, y)
        pointers = [None if t is None else t.data_ptr() for t in tensors]
        inputs2 = 0 if x2 is None else x2.shape[1]
        conv = Conv1x1(*pointers, rows, x.shape[1], inputs2, outputs, relu)
        self.call("conv1x1_act", CODES[x.dtype], ctypes.byref(conv))
        return y.view(rows, outputs)

    def rmsprop_ema(self, buffers: dict[str, Tensor | None], **numbers: float) -> None:
        """One step in place: `buffers` by the names of `RmspropStep`, and its other numbers."""
        tensors = {name: buffers[name] for name in BUFFERS}
        pointers = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
        counts = {"total": len(buffers["values"]), "weights": len(buffers["gradient"])}
        step = RmspropStep(**pointers, **counts, **numbers)
        self.call("rmsprop_ema", CODES[buffers["values"].dtype], ctypes.byref(step))

    def moving_statistics(
        self, running: Tensor, batch: Tensor, correction: Tensor, weight: Tensor
    ) -> None:
        """One step of `running`, in place."""
        tensors = (running, batch, correction, weight)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        count = ctypes.c_int64(len(running))
        self.call("moving_statistics", CODES[running.dtype], *pointers, count)

    def upsample2x_add(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """low: (rows, width, channels), high: (2 rows, 2 width, channels).

        Returns y, and the gradient of low where high is that of y.
        """
        y, grad_low = torch.full_like(high, torch.nan), torch.full_like(low, torch.nan)
        sizes = [ctypes.c_int64(size) for size in low.shape]
        small, large, out, out_low = (
            ctypes.c_void_p(t.data_ptr()) for t in (low, high, y, grad_low)
        )
        code = CODES[low.dtype]
        self.call("upsample2x_add", code, small, large, *sizes, out)
        self.call("upsample2x_add_backward", code, large, *sizes, out_low)
        return y, grad_low

    def max_pool2x(self, x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (batch, height, width, channels). Returns y, index and the gradient of x."""
        y, grad_x = torch.full_like(grad_y, torch.nan), torch.full_like(x, torch.nan)
        index = torch.full(grad_y.shape, 255, dtype=torch.uint8)
        code, shape = CODES[x.dtype], (ctypes.c_int64 * 4)(*x.shape)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, y, index, grad_y, grad_x)]
        self.call("max_pool2x", code, pointers[0], shape, *pointers[1:3])
        self.call("max_pool2x_backward", code, pointers[3], pointers[2], shape, pointers[4])
        return y, index, grad_x

    def heatmap_peaks(self, maps: Tensor, method: int) -> tuple[Tensor, Tensor]:
        real = torch.float64 if maps.dtype == torch.float64 else torch.float32
        xy = torch.full((*maps.shape[:2], 2), torch.nan, dtype=real)
        score = torch.full(maps.shape[:2], torch.nan, dtype=real)
        four = ctypes.c_int64 * 4
        self.call(
            "heatmap_peaks",
            CODES[maps.dtype],
            ctypes.c_void_p(maps.data_ptr()),
            four(*maps.stride()),
            four(*maps.shape),
            method,
            ctypes.c_void_p(xy.data_ptr()),
            ctypes.c_void_p(score.data_ptr()),
        )
        return xy, score


def compile_for_host(sources: Path, folder: Path, patterns: Sequence[str]) -> ctypes.CDLL:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} to build the emulation with")
    # A pattern that starts at the root is a file of the test's own.
    files = sorted(
        str(path)
        for pattern in patterns
        for path in ([pattern] if pattern.startswith("/") else sources.glob(pattern))
    )
    flags = ["-std=c++17", "-O1", "-fPIC", "-DFASTHG_CUDA_EMULATION", "-Wall", "-Werror"]
    flags += ["-Wno-unknown-pragmas", "-I", str(sources), "-I", str(Path(__file__).parent)]

    def compiled(file: str) -> str:
        target = str(folder / f"{Path(file).name}.o")
        subprocess.run([COMPILER, *flags, "-x", "c++", "-c", file, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, files))
    # Named as the library once it is whole: another process may look for it.
    library, linked = folder / LIBRARY, folder / "linked.so"
    command = [COMPILER, "-shared", *objects, "-o", str(linked), "-lpthread", "-ldl"]
    subprocess.run(command, check=True)
    linked.rename(library)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def build(repository: Path) -> Callable[..., ctypes.CDLL]:
    """Compile csrc, or a copy of it with one piece of text replaced, into a library."""

    def make(folder: Path, patterns: Sequence[str], mutation: tuple[str, str, str] | None = None):
        sources = repository / "csrc"
        if mutation:
            file, text, replacement = mutation
            sources = folder / "csrc"
            shutil.copytree(repository / "csrc", sources)
            original = (sources / file).read_text()
            assert original.count(text) == 1, f"{file} should hold {text!r} once"
            (sources / file).write_text(original.replace(text, replacement))
        return compile_for_host(sources, folder, patterns)

    return make


@pytest.fixture(scope="session")
def library(build, tmp_path_factory) -> ctypes.CDLL:
    patterns = ["*_cuda.cu", "*_cpu.cpp"]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build(tmp_path_factory.mktemp("emulation"), patterns)
    # One for all workers of a run: it takes most of a minute.
    folder = tmp_path_factory.getbasetemp().parent / "emulation"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        made = folder / LIBRARY
        return ctypes.CDLL(str(made)) if made.exists() else build(folder, patterns)


@pytest.fixture
def cpu(library) -> Kernels:
    return Kernels(library, "cpu")


@pytest.fixture
def cuda(library) -> Kernels:
    return Kernels(library, "cuda")


@pytest.fixture
def emulated() -> Callable[[ctypes.CDLL], Kernels]:
    return lambda library: Kernels(library, "cuda")


@pytest.fixture
def scene() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def make(batch: int, parts: int, height: int, width: int, dtype: torch.dtype):
        random = torch.Generator().manual_seed(0)
        keypoints = torch.rand(batch, parts, 2, generator=random) * torch.tensor([width, height])
        keypoints.view(-1)[3::7] = torch.nan
        keypoints.view(-1)[5::11] = 1e30
        sigmas = torch.rand(batch, parts, generator=random) + 1
        visibility = (torch.rand(batch, parts, generator=random) > 0.1).to(torch.uint8)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        return keypoints.to(real), sigmas.to(real), visibility

    return make

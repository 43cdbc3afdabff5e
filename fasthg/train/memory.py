"""How much memory a training step needs, found without running it and without its device."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasthg.config import Config
from fasthg.errors import FasthgError
from fasthg.model import (
    StackedHourglass,
    build_model,
    decayed_parameters,
    normalise,
)
from fasthg.model.hourglass import Stack
from fasthg.model.layers import Residual
from fasthg.model.loss import heatmap_loss
from fasthg.ops import paths
from fasthg.runtime.device import autocast, choose_precision
from fasthg.train.flat_params import FlatParameters
from fasthg.train.half_params import rounded
from fasthg.train.step import choose_mode

GIB = 2.0**30


class Memory(NamedTuple):
    """Bytes of a training step on its device."""

    kept: int
    """Weights, once more in half precision, gradients, the optimiser's state, averages, moving
    statistics, and the copies that the capture of a graph puts back."""
    maps: int
    """What forward, loss and backward have made and not yet freed, where that is most."""

    @property
    def total(self) -> int:
        """Both at once."""
        return self.kept + self.maps


def estimate(config: Config, device: torch.device) -> Memory:
    """The memory of a training step of `config` on `device`, which need not exist here.

    Forward, loss and backward run on fake tensors, which have shapes but no values, and every
    storage counts while it lives; some seconds for eight stacks. A GPU that is not there counts as
    one that our kernels serve and that multiplies bfloat16.

    Not in it: the CUDA context (some 0.5 GiB), rounding and gaps of the allocator, workspaces of
    cuDNN, cuBLAS and oneDNN, temporaries of the optimiser, which runs when the maps are gone, what
    a loader makes ahead, and a validation, whose maps lie beside those of a captured step. STEP
    compile counts as if torch's own modules ran one by one.
    """
    with torch.device("meta"):
        model = build_model(config)
    kept = _kept(config, model, device)
    with FakeTensorMode():
        _materialise(model, _half_weights(config, device))
        return Memory(kept, _maps(config, model, device))


def _maps(config: Config, model: StackedHourglass, device: torch.device) -> int:
    """`Memory.maps` of a model that lies on a CPU, as it would be on `device`."""
    _choose_as_on(model, config, device)
    batch, side, parts = config.BATCH_SIZE, config.INPUT_SIZE, config.PARTS.NUM_PARTS
    model.train()
    # What follows is `TrainStep._device_work`.
    with Live() as live:
        images = torch.zeros(batch, side, side, 3, dtype=torch.uint8)
        targets = (
            torch.zeros(batch, parts, 2),
            torch.ones(batch, parts, dtype=torch.uint8),
            torch.ones(batch, parts),
        )
        with model.collector.collect():
            with autocast(images.device, _precision(config, device)):
                predictions = model(normalise(images))
            loss = heatmap_loss(predictions, *targets, scaling=config.LOSS_SCALING)
            del predictions
            loss.sum().backward()
    return live.peak


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: in its allocator, in a capture, or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    said = str(error)
    return any(words in said for words in ("out of memory", "not enough memory", "can't allocate"))


def out_of_memory(config: Config, device: torch.device, error: Exception) -> FasthgError:
    """What to tell whose step did not fit: need and supply where known, and what helps.

    error: torch's; it stands where the need cannot be estimated.
    """
    try:
        need = f": a step needs about {estimate(config, device).total / GIB:.1f} GiB (estimated)"
    except Exception:  # no failure to explain may hide what is explained
        need = f" ({(str(error).splitlines() or ['out of memory'])[0]})"
    memory = "the GPU's memory" if device.type == "cuda" else "the memory"
    return FasthgError(f"{memory} is full{need}{_supply(device)}; {_remedy(config, device)}")


def _remedy(config: Config, device: torch.device) -> str:
    """The keys that help: first those that keep the results, then those that help most."""
    settings = []
    if config.STEP != "compile":
        if config.RECOMPUTE != "stack":
            settings.append("RECOMPUTE=stack")
        if config.FUSED != "on" and _kernels_serve(device):
            settings.append("FUSED=on")
    lower = [f"BATCH_SIZE (now {config.BATCH_SIZE})"] if config.BATCH_SIZE > 1 else []
    lower += [f"NUM_STACKS (now {config.NUM_STACKS})"] if config.NUM_STACKS > 1 else []
    lower.append(f"INPUT_SIZE (now {config.INPUT_SIZE})")
    *first, last = lower
    smaller = f"lower {', '.join(first)} or {last}" if first else f"lower {last}"
    return f"set {' or '.join(settings)}, or {smaller}" if settings else smaller


def _supply(device: torch.device) -> str:
    """How much memory the device has; empty where nobody knows."""
    try:
        if device.type != "cuda":
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return f", the machine has {total / GIB:.1f}"
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
    except (RuntimeError, ValueError, OSError, AssertionError):
        return ""
    # The context of this process is among them.
    taken = f", {others / GIB:.1f} of it taken by others" if others > GIB else ""
    return f", the GPU has {total / GIB:.1f}{taken}"


def _kept(config: Config, model: StackedHourglass, device: torch.device) -> int:
    flat = FlatParameters(model, *decayed_parameters(model), model.frozen())
    total, weights, statistics = (len(t) for t in (flat.values, flat.weights, flat.statistics))
    states = _states(config) * weights
    # Values and averages, the gradient, and what the batch norms of one batch found.
    values = 2 * total + weights + states + 2 * statistics
    if device.type == "cuda" and choose_mode(config, device).name != "eager":
        # A capture puts back what the runs before it changed.
        values += 2 * total + (states if config.OPTIMIZER == "rmsprop" else 0)
    half = _half_weights(config, device)
    halves = rounded(flat) * half.itemsize if half else 0
    return values * flat.values.itemsize + halves


def _states(config: Config) -> int:
    """How many numbers the optimiser keeps for each weight."""
    match config.OPTIMIZER:
        case "rmsprop":
            return 2 if config.RMSPROP_MOMENTUM else 1
        case "momentum":
            return 1 if config.MOMENTUM else 0
        case "sgd":
            return 0
        case "adagrad":
            return 1
    return 2


def _materialise(model: nn.Module, half: torch.dtype | None) -> None:
    """Put tensors of the open mode in place of a model's own.

    half: of what stands in for convolutions' weights, see `HalfParameters`; None = nothing does.
    """

    def parameter(like: Tensor, dtype: torch.dtype) -> nn.Parameter:
        made = torch.empty_strided(like.shape, like.stride(), dtype=dtype)
        return nn.Parameter(made, requires_grad=like.requires_grad)

    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False)]:
            made = parameter(tensor, tensor.dtype)
            if half and isinstance(module, nn.Conv2d):
                master, made = made, parameter(tensor, half)
                made.master = master  # type: ignore[attr-defined]
            setattr(module, name, made)
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, torch.empty_strided(buffer.shape, buffer.stride()))


def _is_absent(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_available()


def _precision(config: Config, device: torch.device) -> torch.dtype:
    if config.PRECISION == "auto" and _is_absent(device):
        return torch.bfloat16
    return choose_precision(config.PRECISION, device)


def _half_weights(config: Config, device: torch.device) -> torch.dtype | None:
    """The dtype of a `TrainStep`'s `HalfParameters`, where it has some."""
    precision = _precision(config, device)
    compiled = choose_mode(config, device).name == "compile"
    return None if compiled or precision == torch.float32 else precision


def _kernels_serve(device: torch.device) -> bool:
    return _is_absent(device) or any(
        row.device == device.type and row.path == "native" for row in paths()
    )


def _choose_as_on(model: StackedHourglass, config: Config, device: torch.device) -> None:
    """Let layers on a CPU run the operators that they would run on `device` (`runs_fused`)."""
    fused: str = config.FUSED
    if choose_mode(config, device).name == "compile":
        fused = "off"
    if fused != "auto" or device.type != "cuda":
        model.set_fused(fused)
        return
    model.set_fused("on" if _kernels_serve(device) else "off")
    for module in model.modules():
        if isinstance(module, Residual):
            module.fused_for = _never  # type: ignore[method-assign]
        elif isinstance(module, Stack) and _precision(config, device) == torch.float32:
            module.fused = "off"


def _never(x: Tensor) -> bool:
    """`Residual.fused_for` on a GPU, FUSED being auto."""
    return False


def _inside(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that an operator of ours takes beside its results at its end, where that is most.

    It runs as one, so that nobody sees what it makes inside; see `fasthg.ops._residual_passes`. On
    a CPU oneDNN joins maps for some products, which is not in it.
    """
    if func is torch.ops.fasthg.residual_block.default:
        # A narrow map with norm and ReLU.
        x, weight1 = args[:2]
        return int(x.nbytes * len(weight1) // x.shape[1])
    if func is torch.ops.fasthg.residual_block_backward.default:
        # A narrow map's gradient and, with a skip convolution, x's from there.
        _, x, y1, *others = args
        return int(y1.nbytes + (0 if others[-2] is None else x.nbytes))
    return 0


class Live(TorchDispatchMode):
    """While this is open, follows the bytes of the storages that operators make.

    Attributes `now` and `peak`: bytes. What was made before does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for storage in _storages((args, kwargs)):
            self._known.add(storage)
        results = func(*args, **(kwargs or {}))
        for storage in _storages(results):
            # A view's is that of its base.
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now + _inside(func, args))
        return results

    def _free(self, count: int) -> None:
        self.now -= count


def _storages(values: Any) -> Iterator[Any]:
    return (t.untyped_storage() for t in tree_leaves(values) if isinstance(t, Tensor))

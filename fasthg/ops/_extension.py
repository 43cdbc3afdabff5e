"""The only door to the compiled extension, and the only place where operators meet torch.library.

The extension (`fasthg._C`) takes pointers, sizes, a dtype code and a stream; it knows nothing of
torch. Without it every operator still exists and runs its plain torch reference.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

LIBRARY = torch.library.Library("fasthg", "DEF")

# The codes of `enum Dtype` in csrc/portable.h.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# The oldest machine code in the extension; older GPUs cannot run it.
MINIMUM_CAPABILITY = (8, 0)

# Each operator, and why it has no kernel for a kind of device, where it has none.
_operators: dict[str, dict[str, str | None]] = {}


class OpPath(NamedTuple):
    """Which implementation an operator takes on one kind of device, and why."""

    op: str
    device: str
    path: str
    reason: str


class Missing:
    """Stands in for the extension where it cannot be loaded; any use says why and what to do."""

    def __init__(self, reason: str) -> None:
        """Keep the reason, shown by `fasthg doctor` and by every failed use."""
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(
            f"fasthg._C.{name} is not available: {self.reason}; reinstall fasthg where a C++ "
            "compiler is found, or use the plain torch path (fasthg.ops.reference)"
        )


def _load() -> Any:
    if os.environ.get("FASTHG_NATIVE_DISABLE", "0") not in ("", "0"):
        return Missing("switched off by FASTHG_NATIVE_DISABLE")
    try:
        return importlib.import_module("fasthg._C")
    except ModuleNotFoundError:
        return Missing("the extension was not built (no C++ compiler when fasthg was installed)")
    except ImportError as error:
        return Missing(f"the extension does not load: {error}")


native = _load()


@functools.cache
def choose(device_type: str, device_index: int = 0) -> tuple[bool, str]:
    """Say whether the compiled kernels serve a device, and why (not).

    Cached: the answer cannot change while the process lives. Touches the CUDA driver only when
    asked about a CUDA device, so that a process which never uses one may still fork.
    """
    if isinstance(native, Missing):
        return False, native.reason
    build = f"extension {native.version}, {native.compiler}"
    if device_type == "cpu":
        return True, build
    if device_type != "cuda":
        return False, f"no kernels for {device_type}"
    if not native.cuda:
        return False, f"the extension was built without CUDA ({native.cuda_note})"
    if not torch.cuda.is_available():
        return False, f"{build}, {native.cuda_note}, but torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device_index)
    if capability < MINIMUM_CAPABILITY:
        found, needed = (".".join(map(str, c)) for c in (capability, MINIMUM_CAPABILITY))
        return False, f"the GPU has compute capability {found}; the kernels need {needed}"
    problem = native.cuda_problem()
    if problem:
        return False, f"the CUDA runtime in the extension ({native.cuda_note}): {problem}"
    return True, f"{build}, {native.cuda_note}"


def has_kernel(tensor: torch.Tensor) -> bool:
    """Whether the compiled kernels serve this tensor's device and dtype."""
    if tensor.dtype not in DTYPE_CODES:
        return False
    return _served(tensor.device.type, tensor.device.index or 0)


@torch.compiler.assume_constant_result
def _served(device_type: str, device_index: int) -> bool:
    """The choice as torch.compile sees it: a constant, whose reasons it need not trace."""
    return choose(device_type, device_index)[0]


def as_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`, without the microsecond that takes where nothing is to be done."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def call_kernel(name: str, tensor: torch.Tensor, *arguments: Any) -> None:
    """Call the launcher `<name>_cpu` or `<name>_cuda`, whichever fits the tensor's device.

    Adds what every launcher takes: the tensor's dtype code first; last, the thread count on the
    CPU, or the device and torch's current stream on CUDA (asked for at each call, because a graph
    capture uses a stream of its own).
    """
    code = DTYPE_CODES[tensor.dtype]
    if tensor.is_cpu:
        getattr(native, f"{name}_cpu")(code, *arguments, torch.get_num_threads())
    else:
        stream = torch.cuda.current_stream(tensor.device).cuda_stream
        getattr(native, f"{name}_cuda")(code, *arguments, tensor.device.index, stream)


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    cpu: str | None = None,
    cuda: str | None = None,
) -> Any:
    """Register one operator with torch and return it, ready to call.

    schema: `name(Tensor x, ...) -> Tensor`; the name is the operator's word everywhere.
    implementation: runs on real tensors of any device and picks the path itself.
    fake: promises shapes, dtypes and exactly the strides of what `implementation` returns;
        the results of both never alias an input.
    setup_context, backward: the gradient, as `torch.library.register_autograd` takes them; an
        operator without them is called on detached tensors only.
    cpu, cuda: why the operator needs no kernel there: torch serves that device by intention.
    """
    name = schema.partition("(")[0]
    # The one tag that keeps inductor from handing over other strides than the eager call's.
    LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fasthg::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"fasthg::{name}", backward, setup_context=setup_context, lib=LIBRARY
        )
    if not name.endswith("_backward"):
        _operators[name] = {"cpu": cpu, "cuda": cuda}
    return getattr(torch.ops.fasthg, name).default


def paths() -> list[OpPath]:
    """List, for each operator and each kind of device, the path taken and the reason.

    `path` is `native` (compiled kernel), `torch` (by intention) or `torch reference`.
    """
    rows = []
    for op, by_torch in _operators.items():
        for device, why in by_torch.items():
            if why:
                rows.append(OpPath(op, device, "torch", why))
                continue
            served, reason = choose(device)
            rows.append(OpPath(op, device, "native" if served else "torch reference", reason))
    return rows

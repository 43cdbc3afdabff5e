"""Access to the compiled extension, and registration of the operators with torch.library.

No other module of fasthg loads the extension or registers an operator.

The extension (`fasthg._C`) takes pointers, sizes, a dtype code and a stream; it knows nothing of
torch. Without it every operator still exists and runs its plain torch reference.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import forward_ad

from fasthg.ops._source_hash import source_hash

# The codes of `enum Dtype` in csrc/portable.h.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# The oldest machine code in the extension; older GPUs cannot run it.
MINIMUM_CAPABILITY = (8, 0)

# What was registered, by operator; kept when this module is reloaded, since an operator lives as
# long as its library. `_without_kernel`: for each kind of device, why there is no kernel, or None.
_libraries: dict[str, torch.library.Library] = globals().get("_libraries", {})
_without_kernel: dict[str, dict[str, str | None]] = globals().get("_without_kernel", {})


class OpPath(NamedTuple):
    """Which implementation an operator takes on one kind of device, and why."""

    op: str
    device: str
    path: str
    reason: str


class MissingExtensionError(AttributeError):
    """A use of the extension where it cannot be loaded."""


class Missing:
    """Stands in for the extension where it cannot be loaded.

    Every attribute but `reason` raises `MissingExtensionError`, which says why and what to do.
    """

    def __init__(self, reason: str) -> None:
        """Keep the reason, shown by `fasthg doctor` and by every failed use."""
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a protocol that `copy` or `inspect` asks for
            raise AttributeError(name)
        raise MissingExtensionError(
            f"fasthg._C.{name} is not available: {self.reason}; reinstall fasthg where a C++ "
            "compiler is found, or use the plain torch path (fasthg.ops.reference)"
        )


def _load() -> Any:
    if os.environ.get("FASTHG_NATIVE_DISABLE", "0") not in ("", "0"):
        return Missing("switched off by FASTHG_NATIVE_DISABLE")
    try:
        extension = importlib.import_module("fasthg._C")
    except ModuleNotFoundError:
        why = "no C++ compiler, or FASTHG_EXTENSION=off, when fasthg was installed"
        return Missing(f"the extension was not built ({why})")
    except ImportError as error:
        return Missing(f"the extension does not load: {error}")
    if difference := _difference(extension, Path(__file__).resolve().parents[2] / "csrc"):
        warnings.warn(
            f"{difference}: fasthg runs in plain torch until it is reinstalled (make setup)",
            stacklevel=1,
        )
        return Missing(difference)
    return extension


def _difference(extension: Any, sources: Path) -> str | None:
    """Why the extension does not belong to this Python code, or None.

    sources: csrc of an editable checkout, which has changed since if its hash is another; where
    there is no such folder, as in an installed wheel, the versions are compared.
    """
    if (sources / "ops.h").is_file():
        if getattr(extension, "source_hash", None) == source_hash(sources):
            return None
        return f"the extension was built from other sources than {sources}"
    try:
        version = importlib.metadata.version("fasthg")
    except importlib.metadata.PackageNotFoundError:
        return None
    if extension.version == version:
        return None
    return f"the extension is of fasthg {extension.version}, the package of {version}"


native = _load()


@functools.cache
def choose(device_type: str, device_index: int = 0) -> tuple[bool, str]:
    """Whether there are compiled kernels for a device, and the reason in words.

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
        actual, needed = (".".join(map(str, c)) for c in (capability, MINIMUM_CAPABILITY))
        return False, f"the GPU has compute capability {actual}; the kernels need {needed}"
    problem = native.cuda_problem()
    if problem:
        return False, f"the CUDA runtime in the extension ({native.cuda_note}): {problem}"
    return True, f"{build}, {native.cuda_note}"


def has_kernel(tensor: torch.Tensor) -> bool:
    """Whether there are compiled kernels for this tensor's device and dtype."""
    if tensor.dtype not in DTYPE_CODES:
        return False
    return _has_kernels(tensor.device.type, tensor.device.index or 0)


def _has_kernels(device_type: str, device_index: int) -> bool:
    """`choose` as a constant for torch.compile, which then does not trace the reasons."""
    return choose(device_type, device_index)[0]


# What torch.compiler.assume_constant_result sets; its import of torch._dynamo takes three seconds,
# which every process that compiles nothing would wait for.
_has_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def backend(tensor: torch.Tensor) -> str:
    """The device type whose kernels work on a tensor: `cpu` or `cuda`.

    Wrappers ask this function, not the tensor, before they choose what a kernel takes: the tests
    replace it to run the CUDA kernels on the host.
    """
    return tensor.device.type


def as_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`, without the microsecond that it takes where the dtype is the same."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def call_kernel(name: str, tensor: torch.Tensor, *arguments: Any) -> None:
    """Call the launcher `<name>_cpu` or `<name>_cuda`, whichever fits the tensor's device.

    Adds what every launcher takes: the tensor's dtype code first; last, the thread count on the
    CPU, or the device and torch's current stream on CUDA (asked for at each call, because a graph
    capture uses a stream of its own).
    """
    code = DTYPE_CODES[tensor.dtype]
    if backend(tensor) == "cpu":
        getattr(native, f"{name}_cpu")(code, *arguments, torch.get_num_threads())
    else:
        getattr(native, f"{name}_cuda")(code, *arguments, *_device_and_stream(tensor))


def _device_and_stream(tensor: torch.Tensor) -> tuple[int, int]:
    """The index of a CUDA tensor's device, and torch's current stream there as an address."""
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


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
    """Register one operator with torch and return it, ready to call; it refuses tangents.

    schema: `name(Tensor x, ...) -> Tensor`; the name is the operator's word everywhere.
    implementation: runs on real tensors of any device and picks the path itself.
    fake: promises shapes, dtypes and exactly the strides of what `implementation` returns;
        the results of both never alias an input.
    setup_context, backward: the gradient, as `torch.library.register_autograd` takes them; an
        operator without them is called on detached tensors only.
    cpu, cuda: why the operator needs no kernel there: torch is what that device takes by intention.
    """
    name = schema.partition("(")[0]
    if former := _libraries.pop(name, None):
        former._destroy()  # the operator's module was reloaded
    library = _libraries[name] = torch.library.Library("fasthg", "FRAGMENT")
    # The one tag that keeps inductor from handing over other strides than the eager call's.
    library.define(schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fasthg::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(
            f"fasthg::{name}", backward, setup_context=setup_context, lib=library
        )
    if not name.endswith("_backward"):
        _without_kernel[name] = {"cpu": cpu, "cuda": cuda}
    operator = getattr(torch.ops.fasthg, name).default
    with_gradient = operator
    if backward is not None and setup_context is not None:
        with_gradient = _function(name, implementation, setup_context, backward)

    def call(*arguments: Any) -> Any:
        refuse_tangents(name, arguments)
        if needs_dispatcher(arguments):
            return operator(*arguments)
        if torch.is_grad_enabled() and _requires_grad(arguments):
            return with_gradient(*arguments)
        return implementation(*arguments)

    return call


# The types of tensors that no subclass watches.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _function(
    name: str,
    implementation: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """The operator with its gradient as an autograd.Function.

    Its context is set up in `forward`. A Function with a `setup_context` of its own goes through
    torch.func's machinery, and is no quicker than the dispatcher.
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = implementation(*arguments)
        setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)
    return cast(Callable[..., Any], function.apply)


def needs_dispatcher(arguments: Sequence[Any], *, profiled: bool = True) -> bool:
    """Whether anything but autograd looks at a call: then it goes by torch's dispatcher.

    That is a compiler, exporter or tracer, a transform of torch.func, a dispatch mode (which also
    has fake tensors), a profiler, which shows operators by their names, and subclasses of Tensor.

    profiled: whether a profiler counts. It does not where the call would do other work for it.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or (profiled and torch.autograd._profiler_enabled())
    ):
        return True
    return any(isinstance(value, torch.Tensor) and type(value) not in _PLAIN for value in arguments)


def _requires_grad(arguments: Sequence[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in arguments)


def refuse_tangents(op: str, arguments: Sequence[Any]) -> None:
    """Raise NotImplementedError where a tensor carries a tangent.

    torch drops the tangents of a Python operator, so forward-mode derivatives would all be 0.
    """
    # Outside of a dual level, where nothing has a tangent, nothing is looked at.
    if getattr(forward_ad, "_current_level", 0) < 0:
        return
    for value in arguments:
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if (
                isinstance(tensor, torch.Tensor)
                and forward_ad.unpack_dual(tensor).tangent is not None
            ):
                raise NotImplementedError(
                    f"{op}: no forward-mode derivatives (jvp, jacfwd, dual numbers): use reverse "
                    "mode (torch.autograd.grad), or fasthg.ops.reference"
                )


def paths() -> list[OpPath]:
    """List, for each operator and each kind of device, the path taken and the reason.

    `path` is `native` (compiled kernel), `torch` (by intention) or `torch reference`.
    """
    rows = []
    for op, reasons in _without_kernel.items():
        for device, reason in reasons.items():
            if reason:
                rows.append(OpPath(op, device, "torch", reason))
                continue
            has_kernels, reason = choose(device)
            path = "native" if has_kernels else "torch reference"
            rows.append(OpPath(op, device, path, reason))
    return rows

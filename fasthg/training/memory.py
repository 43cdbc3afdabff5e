"""An error that says what helps where a device's memory is full."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from fasthg.config import Config
from fasthg.errors import FasthgError
from fasthg.runtime.process import peak_bytes

GIB = 2.0**30


@contextlib.contextmanager
def explained_out_of_memory(config: Config, device: torch.device) -> Iterator[None]:
    """Turn torch's out-of-memory errors into one line with the keys that help.

    Raises:
        FasthgError: the memory of `device` is full.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory(config, device, error) from error
        raise


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: in its allocator, in a capture, or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = ("out of memory", "not enough memory", "can't allocate")
    return any(word in str(error) for word in words)


def out_of_memory(config: Config, device: torch.device, error: Exception) -> FasthgError:
    """The error to show: what torch tried, how much there is, and the keys that help."""
    memory = "the GPU's memory" if device.type == "cuda" else "the memory"
    # The first two sentences say what torch tried; figures of its allocator follow in one line.
    line = (str(error).splitlines() or ["out of memory"])[0]
    cause = ". ".join(line.split(". ")[:2]).rstrip(".")
    facts = "".join(f", {fact}" for fact in _facts(device))
    return FasthgError(f"{memory} is full ({cause}){facts}; {_remedy(config, device)}")


def _facts(device: torch.device) -> list[str]:
    """How much memory this process took and the device has; empty where nobody knows."""
    try:
        if device.type != "cuda":
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return [
                f"this process took {peak_bytes() / GIB:.1f} GiB at most",
                f"the machine has {total / GIB:.1f}",
            ]
        stats = torch.cuda.memory_stats(device)
        free, total = torch.cuda.mem_get_info(device)
    except (RuntimeError, ValueError, OSError, AssertionError):
        return []
    peak, reserved = (
        stats.get(f"{kind}_bytes.all.{when}", 0)
        for kind, when in (("allocated", "peak"), ("reserved", "current"))
    )
    facts = [
        f"tensors took {peak / GIB:.1f} GiB at most",
        f"torch holds {reserved / GIB:.1f}",
        f"the GPU has {total / GIB:.1f}",
    ]
    # The context of this process is among them.
    others = total - free - reserved
    return [*facts, f"{others / GIB:.1f} of it taken by others"] if others > GIB else facts


def _remedy(config: Config, device: torch.device) -> str:
    """The keys that help: first those that keep network and batch, then those that help most."""
    settings = []
    if config.STEP != "compile" and config.RECOMPUTE != "stack":
        settings.append("RECOMPUTE=stack")
    if device.type == "cuda" and config.PRECISION == "fp32":
        settings.append("PRECISION=auto")
    lower = [f"BATCH_SIZE (now {config.BATCH_SIZE})"] if config.BATCH_SIZE > 1 else []
    lower += [f"NUM_STACKS (now {config.NUM_STACKS})"] if config.NUM_STACKS > 1 else []
    lower.append(f"INPUT_SIZE (now {config.INPUT_SIZE})")
    *first, last = lower
    smaller = f"lower {', '.join(first)} or {last}" if first else f"lower {last}"
    return f"set {' or '.join(settings)}, or {smaller}" if settings else smaller

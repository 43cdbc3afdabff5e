"""Where a call's time goes on a GPU: every kernel by class and stream, as JSON.

A kernel's class comes from its name, and names say what runs, not what for: to torch's own networks
"3x3 convolutions" are all that cuDNN convolves, and "gradient adds" also those of the forward.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

OTHER = "other"
# The first that matches counts. inductor names a kernel after the operators fused in it.
CLASSES = {
    "norms": r"bn_act|batch_?norm|\bbn_(fw|bw)|moving_statistics",
    "loss": r"heatmap_mse|gaussian_heatmaps",
    "pool and upsample": r"max_?pool|upsample|nearest",
    "copies and casts": (
        r"^Mem(cpy|set)|copy_kernel|Copy(Functor)?<|BatchedCopy|FillFunctor|convertTensor"
        r"|nchwToNhwc|nhwcToNchw|triton_poi_fused__?(to_copy|clone)_\d"
    ),
    "optimiser": r"rmsprop|multi_tensor_apply|amp_(update|non_finite)",
    "1x1 convolutions": (
        r"conv1x1|residual_block|nvjet|splitKreduce|xmma_gemm|cublas|triton_tem_fused_.*mm|_t1r1s1"
        r"|cutlass_[^<]*gemm|gemv"
    ),
    "3x3 convolutions": r"cudnn|[fdw](prop|grad)|implicit_gemm|winograd|convol|conv\dx\d|conv2d",
    "gradient adds": r"CUDAFunctor_add|AddFunctor|triton_poi_fused_add_\d",
}
_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in CLASSES.items()}
MOST_CHARACTERS = 200  # of a kernel's name, template arguments included


def classify(kernel: str) -> str:
    """The class of a kernel's name: a key of CLASSES, or `other`."""
    return next((name for name, pattern in _PATTERNS.items() if pattern.search(kernel)), OTHER)


def record(run: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Profile of one call, after one that does not count.

    launches, `ms of kernels` (their times added up) and `ms busy` (when at least one ran: less, if
    kernels overlap); classes and streams: launches and us of each; kernels: a row for each class,
    stream and name, longest first. Streams have the numbers in which the profiler saw them first.
    On a CPU a kernel is an operator of torch without those that it calls, and a stream a thread.
    """
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    for _ in range(2):  # the profiler may miss the first kernels of its first session
        _synchronize(device)
        activity = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as recorded:
            run()
            _synchronize(device)
    kind = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    events = [event for event in recorded.events() if event.device_type == kind]
    return summarise(
        [
            (
                *(event.name, event.device_resource_id),
                event.self_device_time_total if gpu else event.self_cpu_time_total,
                event.time_range.start,
            )
            for event in events
        ]
    )


def summarise(events: list[tuple[str, int, float, float]]) -> dict[str, Any]:
    """As `record`, from name, stream, us and start in us of every launch."""
    numbers: dict[int, int] = {}
    rows: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    classes: dict[str, list[float]] = defaultdict(list)
    streams: dict[int, list[float]] = defaultdict(list)
    busy = end = 0.0
    for name, stream, us, start in sorted(events, key=lambda event: event[3]):
        number = numbers.setdefault(stream, len(numbers))
        kind = classify(name)
        for times in (rows[kind, number, name[:MOST_CHARACTERS]], classes[kind], streams[number]):
            times.append(us)
        busy += max(start + us - max(start, end), 0.0)
        end = max(end, start + us)
    longest = sorted(rows.items(), key=lambda row: -sum(row[1]))
    return {
        "launches": len(events),
        "ms of kernels": round(sum(us for _, _, us, _ in events) / 1e3, 3),
        "ms busy": round(busy / 1e3, 3),
        "classes": _totals(classes),
        "streams": _totals(streams),
        "kernels": [
            {"class": kind, "stream": number, "name": name, **_total(times)}
            for (kind, number, name), times in longest
        ],
    }


def _total(times: list[float]) -> dict[str, Any]:
    return {"launches": len(times), "us": round(sum(times), 1)}


def _totals(groups: dict[Any, list[float]]) -> dict[str, Any]:
    longest = sorted(groups.items(), key=lambda group: -sum(group[1]))
    return {str(name): _total(times) for name, times in longest}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

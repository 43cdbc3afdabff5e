"""What this GPU does with the pieces of a training step: bandwidth, launches, batch norm, convs.

Each probe prints figures; a wrong result ends it with an error. On a CPU (`--device cpu`) shapes
are tiny and the numbers mean nothing.

    python tools/gpu_probe.py memory|capture|launches|norm|conv|profile [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from device_clock import DeviceClock
from gpu_report import COPY_RATE, figure
from torch import Tensor

from fasthg.ops import gaussian_heatmaps, heatmap_mse, heatmap_peaks

CUDA_ONLY = 77  # exit status of a probe that cannot run here


def on_gpu(device: torch.device) -> bool:
    """Whether the numbers are meant."""
    return device.type == "cuda"


def capture(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture `work` in a graph, after two runs on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def kernel_names(work: Callable[[], object]) -> list[str]:
    """Names of the kernels that one call launches, in order; copies and fills are left out."""
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    events = (e for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return [e.name for e in events if not e.name.startswith(("Memcpy", "Memset"))]


def probe_memory(device: torch.device) -> None:
    """Ceilings: a device-to-device copy, bytes read and written; a bfloat16 matrix product."""
    clock = DeviceClock(device, 1 << 22)
    count = (1 << 31 if on_gpu(device) else 1 << 20) // 4
    source, target = torch.randn(count, device=device), torch.empty(count, device=device)
    seconds = clock.seconds(lambda: target.copy_(source))
    figure(COPY_RATE, 2 * 4 * count / seconds / 1e9, "GB/s")
    side = 8192 if on_gpu(device) else 64
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = clock.seconds(lambda: a @ b)
    figure(f"bf16 product of side {side}", 2 * side**3 / seconds / 1e12, "TFLOP/s")


def probe_capture(device: torch.device) -> int:
    """Our kernels on torch's streams: behind its work, on a side stream, in a captured graph.

    The extension has its own copy of the CUDA runtime; this shows that both share one context.
    """
    if not on_gpu(device):
        print("streams and graphs need a GPU")
        return CUDA_ONLY
    sigmas = torch.tensor([1.5, 2.0, 3.0])
    given = torch.zeros(4, 3, 2, device=device)
    predictions = torch.randn(2, 4, 3, 32, 32, device=device, requires_grad=True)
    on_device = sigmas.to(device)
    results: list[Tensor] = []

    def work() -> None:
        maps = gaussian_heatmaps(given, on_device, 32, subpixel=True)
        loss = heatmap_mse(predictions, given, on_device)
        (gradient,) = torch.autograd.grad(loss.sum(), predictions)
        # Without its graph, which would tie the next backward to this one's stream.
        results[:] = [maps, loss.detach(), gradient, *heatmap_peaks(maps)]

    def check(where: str, keypoints: Tensor) -> None:
        torch.cuda.synchronize()
        maps = gaussian_heatmaps(keypoints, sigmas, 32, subpixel=True)
        apart = predictions.detach().cpu().requires_grad_()
        loss = heatmap_mse(apart, keypoints, sigmas)
        (gradient,) = torch.autograd.grad(loss.sum(), apart)
        wanted = [maps, loss, gradient, *heatmap_peaks(maps)]
        for got, right in zip(results, wanted, strict=True):
            torch.testing.assert_close(
                got.detach().cpu(),
                right.detach(),
                rtol=1e-4,
                atol=1e-3,
                msg=lambda problem: f"{where}: {problem}",
            )
        print(f"right {where}")

    keypoints = torch.rand(3, 4, 3, 2) * 31
    queued = keypoints.to(device)
    # The new input arrives after a wait: a kernel on another stream would read the old one.
    torch.cuda._sleep(20_000_000)
    given.copy_(queued[0])
    work()
    check("behind torch's work", keypoints[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        given.copy_(queued[1])
        work()
    check("on a side stream", keypoints[1])
    graph = capture(work)
    given.copy_(queued[2])
    graph.replay()
    check("in a graph", keypoints[2])
    return 0


def probe_launches(device: torch.device) -> int:
    """The shortest time between dependent kernels: launched one by one, and inside a graph."""
    if not on_gpu(device):
        print("launches need a GPU")
        return CUDA_ONLY
    count = 2000
    clock = DeviceClock(device, 1 << 22)
    for size in (1, 1 << 20):
        value = torch.zeros(size, device=device)

        def chain(value: Tensor = value) -> None:
            for _ in range(count):
                value.add_(1)

        chain()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        chain()
        torch.cuda.synchronize()
        figure(f"period of eager add_, {size}", (time.perf_counter() - begin) / count * 1e6, "us")
        graph = capture(chain)
        figure(f"period in a graph, {size}", clock.seconds(graph.replay) / count * 1e6, "us")
    keypoints, sigmas = torch.rand(1, 1, 2, device=device), torch.ones(1, device=device)
    graph = capture(lambda: [gaussian_heatmaps(keypoints, sigmas, 8) for _ in range(200)])
    figure("gaussian_heatmaps 8x8 in a graph", clock.seconds(graph.replay) / 200 * 1e6, "us")
    return 0


def probe_norm(device: torch.device) -> None:
    """Batch norm in training, channels_last: whose kernels, and their bandwidth.

    The network's has no scale to learn; one with a scale stands beside it, because torch chooses
    between cuDNN and its own kernels by that too.
    Bytes counted by hand: forward reads the maps twice and writes them once; backward reads maps
    and gradient twice and writes once.
    """
    clock = DeviceClock(device)
    shapes = [(32, 256, 64), (32, 128, 64), (8, 256, 64), (32, 256, 16)]
    shapes = shapes if on_gpu(device) else [(2, 8, 8)]
    for shape in shapes:
        if shape != shapes[0]:
            _norm(clock, shape, torch.bfloat16, False, named=False)
            continue
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for scaled in (False, True):
                _norm(clock, shape, dtype, scaled, named=on_gpu(device))


def _norm(
    clock: DeviceClock,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    scaled: bool,
    *,
    named: bool,
) -> None:
    batch, channels, side = shape
    device = clock.device
    x = torch.randn(batch, channels, side, side, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    grad_y = torch.randn_like(x)
    mean, bias = torch.zeros(channels, device=device), torch.zeros(channels, device=device)
    variance = torch.ones(channels, device=device)
    # torch has no gradient of an offset where there is no scale.
    scale = torch.ones(channels, device=device, requires_grad=scaled)
    bias.requires_grad_()

    def forward() -> Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, True, 3e-4, 1e-3)

    y = forward()

    def backward() -> object:
        return torch.autograd.grad(y, (x, bias), grad_y, retain_graph=True)

    name = f"{str(dtype).removeprefix('torch.')} {batch}x{channels}x{side}x{side}"
    name += " scaled" if scaled else ""
    size = x.numel() * x.element_size()
    for direction, work, passes in (("forward", forward, 3), ("backward", backward, 5)):
        seconds = clock.seconds(work)
        figure(f"{name} {direction}", seconds * 1e6, "us")
        figure(f"{name} {direction}", passes * size / seconds / 1e9, "GB/s")
        if named:
            names = kernel_names(work)
            by_cudnn = any("cudnn" in kernel.lower() for kernel in names)
            print(f"{name} {direction}: {'cuDNN' if by_cudnn else 'torch'}: {names}")
            figure(f"{name} {direction}", len(names), "kernels")
            figure(f"{name} {direction}", float(by_cudnn), "by cuDNN")


def probe_conv(device: torch.device) -> None:
    """The network's convolutions in bfloat16, channels_last, a batch of 32."""
    torch.backends.cudnn.benchmark = True
    clock = DeviceClock(device)
    # in, out, kernel, side of the input, stride
    shapes = [
        (256, 128, 1, 64, 1),
        (128, 256, 1, 64, 1),
        (256, 256, 1, 64, 1),
        (256, 7, 1, 64, 1),
        (128, 128, 3, 64, 1),
        (128, 128, 3, 32, 1),
        (128, 128, 3, 16, 1),
        (128, 128, 3, 4, 1),
        (64, 64, 3, 128, 1),
        (3, 64, 7, 256, 2),
    ]
    batch = 32 if on_gpu(device) else 1
    for channels, out, kernel, side, stride in shapes if on_gpu(device) else [(4, 4, 3, 8, 1)]:
        x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(out, channels, kernel, kernel, device=device, dtype=torch.bfloat16)
        weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()

        def forward(
            x: Tensor = x, weight: Tensor = weight, stride: int = stride, pad: int = kernel // 2
        ) -> Tensor:
            return F.conv2d(x, weight, stride=stride, padding=pad)

        y = forward()
        grad_y = torch.randn_like(y)
        name = f"{kernel}x{kernel} {channels}->{out} at {side}"
        seconds = clock.seconds(forward)
        operations = 2 * y.numel() * channels * kernel**2
        figure(name, seconds * 1e6, "us forward")
        figure(name, operations / seconds / 1e12, "TFLOP/s")
        for what, tensor in (("to input", x), ("to weight", weight)):

            def backward(y: Tensor = y, tensor: Tensor = tensor, grad_y: Tensor = grad_y) -> object:
                return torch.autograd.grad(y, tensor, grad_y, retain_graph=True)

            figure(name, clock.seconds(backward) * 1e6, f"us {what}")


def probe_profile(device: torch.device) -> None:
    """One training step of the stock network by kernel: count, time together, share; longest first.

    In the eager mode, whose kernels are those of the graph; a capture gives the time of the whole.
    """
    import networks
    from torch.profiler import ProfilerActivity, profile

    from fasthg.model import build_model
    from fasthg.train.step import TrainStep

    sizes: list[tuple[int, int]] = [(8, 8), (8, 32)] if on_gpu(device) else [(1, 1)]
    kind = torch.autograd.DeviceType.CUDA if on_gpu(device) else torch.autograd.DeviceType.CPU
    activity = ProfilerActivity.CUDA if on_gpu(device) else ProfilerActivity.CPU
    for stacks, batch in sizes:
        cfg = networks.config(stacks, batch, STEP="eager")
        given = networks.example(cfg, device)
        step = TrainStep(cfg, build_model(cfg).to(device), device)
        for number in range(3):
            step(given, number)
        with profile(activities=[activity]) as recorded:
            step(given, 3)
            if on_gpu(device):
                torch.cuda.synchronize()
        events = [e for e in recorded.events() if e.device_type == kind]
        name = f"{stacks} stacks, batch {batch}"
        times: dict[str, list[float]] = {}
        for e in events:
            spent = e.self_device_time_total if on_gpu(device) else e.self_cpu_time_total
            times.setdefault(e.name, []).append(spent)
        total = sum(map(sum, times.values()))
        figure(name, len(events), "kernels and copies")
        figure(name, total / 1e3, "ms of kernels")
        for kernel, each in sorted(times.items(), key=lambda item: -sum(item[1]))[:40]:
            print(f"{sum(each) / total:6.1%} {sum(each):9.0f} us {len(each):5} x  {kernel[:150]}")
        del step


PROBES: dict[str, Callable[[torch.device], int | None]] = {
    "memory": probe_memory,
    "capture": probe_capture,
    "launches": probe_launches,
    "norm": probe_norm,
    "conv": probe_conv,
    "profile": probe_profile,
}


def main() -> int:
    """Run the probe that is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("probe", choices=PROBES)
    parser.add_argument("--device", default="cuda", help="cuda or cpu; default cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    return PROBES[arguments.probe](torch.device(arguments.device)) or 0


if __name__ == "__main__":
    sys.exit(main())

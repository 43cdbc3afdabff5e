"""Baselines of the training step: the stock network in plain torch, eager, captured and compiled.

A step is forward, loss, backward, RMSProp and moving averages on images that lie on the device.
Convolutions in fp32 are timed with and without TF32. `compiled` gives torch.compile what its users
would: channels_last, bfloat16, max-autotune, a CUDA graph around the whole step; the optimiser
stays torch's foreach kernels in every row.

    python tools/gpu_steps.py eager|compiled [--stacks 8] [--batch 8 32 64] [--device cuda]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from gpu_probe import capture, kernel_names
from gpu_report import figure
from torch import Tensor

from fasthg.flat import FlatNetwork
from fasthg.model import (
    MovingStatistics,
    StackedHourglass,
    collect_statistics,
    decayed_parameters,
    layers,
)
from fasthg.ops import heatmap_mse
from fasthg.optim import RMSProp

PARTS = 7
# Name -> key FUSED, and the pixels of a batch from which a residual is one operator.
OURS = {
    "": ("off", layers.BLOCK_ROWS),
    "fasthg": ("auto", layers.BLOCK_ROWS),
    "fasthg, no blocks": ("auto", 1 << 62),
    "fasthg, blocks everywhere": ("auto", 0),
}
# A graph and the eager step may pick other convolution algorithms; both sum in bfloat16 maps.
LOSS_AGREEMENT = 0.05


class Step:
    """One configuration of the network with everything that a step touches.

    ours: our operators, as a name of `OURS`, and the flat optimiser; "" = torch's own modules and
    its foreach RMSprop and averages, which the compiled and the eager baselines share.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        stacks: int,
        batch: int,
        bf16: bool,
        channels_last: bool,
        compiled: bool = False,
        ours: str = "",
    ) -> None:
        small = device.type == "cpu"
        features, side = (16, 64) if small else (256, 256)
        torch.manual_seed(0)
        fused, layers.BLOCK_ROWS = OURS[ours]
        model = StackedHourglass(stacks, PARTS, features, features // 4, fused=fused)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device, self.bf16 = device, bf16
        self.model = model.to(device).to(memory_format=layout).train()
        images = torch.rand(batch, 3, side, side, device=device) * 2 - 1
        self.images = images.contiguous(memory_format=layout)
        self.keypoints = torch.rand(batch, PARTS, 2, device=device) * (side // 4)
        self.sigmas = torch.full((batch, PARTS), 2.0, device=device)
        decayed, plain = decayed_parameters(self.model)
        self.flat = FlatNetwork(self.model, decayed, plain) if ours else None
        self.optimizer: torch.optim.Optimizer
        if self.flat:
            _, averages = self.flat.copy()
            share = torch.full((), 1e-4, device=device)
            self.optimizer = RMSProp(self.flat, averages, share, 1e-5, weight_decay=4e-5)
            self.statistics = MovingStatistics(self.model, self.flat.statistics)
        else:
            groups = [
                {"params": decayed, "weight_decay": 4e-5},
                {"params": plain, "weight_decay": 0.0},
            ]
            capturable = device.type == "cuda"
            self.optimizer = torch.optim.RMSprop(
                groups, 1e-5, alpha=0.9, eps=1.0, foreach=True, capturable=capturable
            )
            self.values = [t for t in self.model.state_dict().values() if t.is_floating_point()]
            self.averages = [t.detach().clone() for t in self.values]
        self.loss = torch.zeros((), device=device)
        self._forward: Callable[[Tensor], Tensor] = self._loss_of
        if compiled:
            mode = "max-autotune-no-cudagraphs"
            self._forward = torch.compile(self._loss_of, mode=mode, dynamic=False, fullgraph=True)

    def _loss_of(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.flat:
                with collect_statistics() as found:
                    predictions = self.model(images)
                self.statistics.apply(found)
            else:
                predictions = self.model(images)
        return heatmap_mse(predictions, self.keypoints, self.sigmas).sum()

    def __call__(self) -> None:
        """One step."""
        if self.flat:
            self.flat.gradient.zero_()
        else:
            self.optimizer.zero_grad(set_to_none=True)
        loss = self._forward(self.images)
        loss.backward()
        if not self.flat:
            torch._foreach_lerp_(self.averages, self.values, 1e-4)
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], budget: float = 2.0) -> float:
        """Median of single steps, waiting after each: three to thirty, within the budget."""
        run()
        self.wait()
        times: list[float] = []
        while len(times) < 3 or (sum(times) < budget and len(times) < 30):
            begin = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)


def report(name: str, batch: int, seconds: float) -> None:
    """Milliseconds a step and images a second."""
    figure(f"{name}, batch {batch}", seconds * 1e3, "ms")
    figure(f"{name}, batch {batch}", batch / seconds, "images/s")


@contextlib.contextmanager
def roomy(name: str) -> Iterator[None]:
    """Goes on with the next configuration where the GPU's memory does not hold one."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        print(f"{name}: out of memory")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def graphed(step: Step, name: str, batch: int) -> None:
    """Time a step inside a graph, and hold its first loss against the eager step's."""
    state = [t.detach().clone() for t in step.model.state_dict().values()]
    step()
    wanted = step.loss.item()
    graph = capture(step)
    with torch.no_grad():
        for tensor, value in zip(step.model.state_dict().values(), state, strict=True):
            tensor.copy_(value)
    graph.replay()
    got = step.loss.item()
    assert abs(got - wanted) <= LOSS_AGREEMENT * abs(wanted), f"{name}: loss {got}, eager {wanted}"
    report(name, batch, step.seconds(graph.replay))


def eager(device: torch.device, stacks: int, batches: list[int]) -> None:
    """fp32 with and without TF32, bfloat16, and bfloat16 in a graph."""
    gpu = device.type == "cuda"
    for batch in batches:
        for tf32 in (False, True):
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            name = f"eager fp32 NCHW, TF32 {'on' if tf32 else 'off'}, {stacks} stacks"
            with roomy(name):
                step = Step(device, stacks=stacks, batch=batch, bf16=False, channels_last=False)
                report(name, batch, step.seconds(step))
                step = None
        for ours in OURS:
            name = f"{ours + ' ' if ours else ''}bf16 channels_last, {stacks} stacks"
            with roomy(name):
                if gpu:
                    torch.cuda.reset_peak_memory_stats()
                common = {"stacks": stacks, "batch": batch, "ours": ours}
                step = Step(device, **common, bf16=True, channels_last=True)
                report(f"eager {name}", batch, step.seconds(step))
                assert torch.isfinite(step.loss), f"eager {name}: the loss is {step.loss.item()}"
                if gpu:
                    peak = torch.cuda.max_memory_allocated() / 2**30
                    figure(f"eager {name}, batch {batch}", peak, "GiB")
                if gpu and batch == batches[0]:
                    figure(f"eager {name}, batch {batch}", len(kernel_names(step)), "kernels")
                if gpu:
                    graphed(step, f"graph {name}", batch)
                step = None


def compiled(device: torch.device, stacks: int, batches: list[int]) -> None:
    """max-autotune in a graph, beside the eager step in a graph."""
    for batch in batches:
        name = f"bf16 channels_last, {stacks} stacks"
        with roomy(name):
            common = {"stacks": stacks, "batch": batch}
            step = Step(device, **common, bf16=True, channels_last=True, compiled=True)
            begin = time.perf_counter()
            step()
            step.wait()
            spent = time.perf_counter() - begin
            figure(f"compiled {name}, batch {batch}", spent, "s to compile")
            report(f"compiled {name}", batch, step.seconds(step))
            if device.type == "cuda":
                figure(f"compiled {name}, batch {batch}", len(kernel_names(step)), "kernels")
                graphed(step, f"compiled and graph, {name}", batch)
            step = None


def main() -> int:
    """Run one group of baselines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("group", choices=("eager", "compiled"))
    parser.add_argument("--stacks", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--device", default="cuda", help="cuda or cpu; default cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.backends.cudnn.benchmark = True
    run = eager if arguments.group == "eager" else compiled
    run(device, arguments.stacks, arguments.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())

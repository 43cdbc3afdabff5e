"""The reference recipe with what torch itself offers for speed: channels_last, mixed precision and,
on request, torch.compile and a CUDA graph of the whole step. The baselines to beat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._dynamo
from reference.network import ReferenceHourglass
from reference.scaled_rmsprop import ScaledRMSprop
from reference.training import ReferenceTraining
from torch import Tensor

from fasthg.config import Config
from fasthg.runtime.cuda_graph import GraphedCallable

# Keywords of torch.compile. The modes of the same names would add graphs of their own, and
# `max-autotune` coordinate descent, which times every fused kernel many times, one by one.
DEFAULT: Mapping[str, Any] = {"options": {}}
MAX_AUTOTUNE: Mapping[str, Any] = {
    "options": {"max_autotune": True, "coordinate_descent_tuning": False}
}
# torch gives up after 8 graphs of one function, and all networks of a process share the functions.
RECOMPILE_LIMIT = 64
# torch's first scale, 65536, overflows the summed loss, and the first steps would be lost.
FIRST_SCALE = 256.0


class TunedTraining(ReferenceTraining):
    """`ReferenceTraining` with the same results but for rounding.

    Args:
        precision: dtype of convolutions, under autocast; float32 without. float16 scales the loss,
            without a wait for the device.
        captured: replay the whole step, optimiser and averages included, as a CUDA graph, and
            `predict`, too. The runs before a capture train, and the weight of the averages stays
            that of the capture.
        compiled: keywords of torch.compile, which then makes forward and backward of the stem, each
            stack and the loss. A function serves all modules of a structure: two for the stacks,
            of which the last differs, however many there are; what a compiler would fuse across two
            stacks is one addition.

    `compiled_in`: seconds of the first `step` and the first `predict`, by name, where compiled.
    """

    def __init__(
        self,
        cfg: Config,
        device: torch.device,
        precision: torch.dtype,
        captured: bool = False,
        compiled: Mapping[str, Any] | None = None,
    ) -> None:
        self.precision = precision
        scaled = precision == torch.float16
        if scaled:
            self.rmsprop = ScaledRMSprop
        super().__init__(cfg, device)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=scaled)
        self.compiled_in: dict[str, float] = {}
        self._compiles, self._error = compiled is not None, _squared_error
        if compiled is not None:
            options = {"dynamic": False, "fullgraph": True, **compiled}
            for module in (self.network.stem, *self.network.stacks):
                module.compile(**options)
            self._error = torch.compile(_squared_error, **options)
        self._run_step: Callable[..., Tensor] = super().step
        self._run_network: Callable[..., Tensor] = self._last_maps
        if captured:
            for group in self.optimizer.param_groups:
                group["capturable"] = device.type == "cuda"
            self._run_step = GraphedCallable(super().step, device)
            self._run_network = GraphedCallable(self._last_maps, device)

    def step(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        """As `ReferenceTraining.step`; a captured one overwrites its last result."""
        on_device = (tensor.to(self.device, non_blocking=True) for tensor in (images, heatmaps))
        return self._timed("step", self._run_step, *on_device)

    def _timed(self, name: str, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Result of `work`, whose first call compiles."""
        if not self._compiles or name in self.compiled_in:
            return work(*inputs)
        begin = time.perf_counter()
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            result = work(*inputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.compiled_in[name] = time.perf_counter() - begin
        return result

    def _placed(self, network: ReferenceHourglass) -> ReferenceHourglass:
        return network.to(self.device, memory_format=torch.channels_last)

    def _heatmaps(self, network: ReferenceHourglass, images: Tensor) -> Tensor:
        if network is self.averaged:
            return self._maps(network, images)[-1].float()
        return self._timed("predict", self._run_network, images)

    def _last_maps(self, images: Tensor) -> Tensor:
        return self._maps(self.network, images)[-1].float()

    def _loss(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        return sum(self._error(heatmaps, maps) for maps in self._maps(self.network, images))

    def _maps(self, network: ReferenceHourglass, images: Tensor) -> list[Tensor]:
        enabled = self.precision != torch.float32
        dtype = self.precision if enabled else None
        with torch.autocast(self.device.type, dtype, enabled=enabled):
            return network(images.to(memory_format=torch.channels_last))

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _squared_error(heatmaps: Tensor, maps: Tensor) -> Tensor:
    return ((heatmaps - maps.float()) ** 2).sum() / 2

"""The reference recipe with what torch itself offers for speed: channels_last, mixed precision and,
on request, torch.compile and a CUDA graph of the whole step. The baselines to beat.
"""

from __future__ import annotations

import torch
from reference.network import ReferenceHourglass
from reference.training import ReferenceTraining
from torch import Tensor

from fasthg.config import Config
from fasthg.runtime.cuda_graph import GraphedCallable


class TunedTraining(ReferenceTraining):
    """`ReferenceTraining` with the same results but for rounding.

    Args:
        precision: dtype of convolutions, under autocast; float32 without.
        captured: replay the whole step, optimiser and averages included, as a CUDA graph. The
            weight of the averages stays that of the capture.
        compiled: let torch.compile make forward and backward, on a GPU with max-autotune.
    """

    def __init__(
        self,
        cfg: Config,
        device: torch.device,
        precision: torch.dtype,
        captured: bool = False,
        compiled: bool = False,
    ) -> None:
        self.precision = precision
        super().__init__(cfg, device)
        self._forward, self._infer = self._maps, _last
        self._replayed = GraphedCallable(super().step, device)
        self._captures = captured and device.type == "cuda"
        if compiled:
            mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
            self._forward = torch.compile(self._maps, dynamic=False, fullgraph=True, mode=mode)
            # Inference gets its graphs from torch.compile itself.
            mode = mode.removesuffix("-no-cudagraphs")
            self._infer = torch.compile(_last, dynamic=False, fullgraph=True, mode=mode)
        if self._captures:
            for group in self.optimizer.param_groups:
                group["capturable"] = True

    def step(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        """As `ReferenceTraining.step`."""
        if not self._captures:
            return super().step(images, heatmaps)
        on_device = (tensor.to(self.device, non_blocking=True) for tensor in (images, heatmaps))
        return self._replayed(*on_device)

    def _placed(self, network: ReferenceHourglass) -> ReferenceHourglass:
        return network.to(self.device, memory_format=torch.channels_last)

    def _maps(self, images: Tensor) -> list[Tensor]:
        with self._autocast():
            return self.network(images)

    def _heatmaps(self, network: ReferenceHourglass, images: Tensor) -> Tensor:
        with self._autocast():
            return self._infer(network, images.to(memory_format=torch.channels_last)).float()

    def _loss(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        maps = self._forward(images.to(memory_format=torch.channels_last))
        return sum(((heatmaps - one.float()) ** 2).sum() / 2 for one in maps)

    def _autocast(self) -> torch.autocast:
        enabled = self.precision != torch.float32
        return torch.autocast(
            self.device.type, self.precision if enabled else None, enabled=enabled
        )


def _last(network: ReferenceHourglass, images: Tensor) -> Tensor:
    return network(images)[-1]

"""Running statistics of a whole network, updated by one kernel instead of some for each norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fasthg.model.layers import BatchNorm, BatchStats
from fasthg.ops import moving_statistics


class RunningStats:
    """Updates the running statistics of a network from the batch statistics of one forward.

    Args:
        network: its only buffers are the statistics of `BatchNorm`s. Those of batch norms that are
            not frozen are views of `running`.
        running: `(total,)` float32, the buffers in order, and gaps of zeros (`FlatParameters`).

    Raises:
        ValueError: the network has other buffers, or they are no views of `running`.
    """

    def __init__(self, network: nn.Module, running: Tensor) -> None:
        self.running = running
        norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
        if [id(t) for t in network.buffers()] != [id(t) for m in norms for t in m.buffers()]:
            raise ValueError("expected a network whose only buffers are those of its batch norms")
        self.layers = [norm for norm in norms if norm.bias.requires_grad]
        self._positions = {id(layer): i for i, layer in enumerate(self.layers)}
        buffers = [t for layer in self.layers for t in (layer.running_mean, layer.running_var)]
        begins = [(t.data_ptr() - running.data_ptr()) // running.itemsize for t in buffers]
        ends = [begin + t.numel() for begin, t in zip(begins, buffers, strict=True)]
        if min(begins, default=0) < 0 or max(ends, default=0) > len(running):
            raise ValueError("expected batch norms whose statistics are views of `running`")
        # Mean and variance of each layer in turn, laid out as `running`.
        self._batch = torch.zeros_like(running)
        bounds = list(zip(begins, ends, strict=True))
        self._batch_views = [self._batch[begin:end] for begin, end in bounds]
        self._correction = torch.ones_like(running)
        self._var_corrections = [self._correction[begin:end] for begin, end in bounds[1::2]]
        self._counts: list[int] = []
        # 1 - decay; read on the device, so that a CUDA graph can be replayed with another.
        self._weight = running.new_zeros(())
        self._decay = 1.0

    def set_decay(self, decay: float) -> None:
        """Set the decay of all layers, for the next `apply` or the next replay of one."""
        if decay != self._decay:
            self._decay = decay
            self._weight.fill_(1.0 - decay)
            for layer in self.layers:
                layer.decay = decay

    @torch.no_grad()
    def apply(
        self, stats: Sequence[BatchStats], average: Callable[[Tensor], None] | None = None
    ) -> None:
        """Update the running statistics as `BatchNorm.update_running_stats` would, layer by layer.

        One kernel does it where every layer reported once and all have the decay that was set.
        Otherwise, as with a layer in evaluation mode or used twice, the layers are updated in turn.

        Args:
            stats: batch statistics of one forward, as `BatchStatsCollector.collect` gives them.
            average: replaces a tensor by its mean over all processes, where each has statistics of
                its own batch.
        """
        ordered = sorted(stats, key=lambda one: self._positions.get(id(one.layer), -1))
        once = [id(one.layer) for one in ordered] == [id(layer) for layer in self.layers]
        decays = {one.layer.decay for one in ordered}
        if not once or decays != {self._decay} or not all(one.size for one in ordered):
            for one in stats:
                if average is not None:
                    average(one.mean)
                    average(one.var)
                one.layer.update_running_stats(one.mean, one.var, one.size)
            return
        self._set_corrections([one.size for one in ordered])
        torch._foreach_copy_(self._batch_views, [t for one in ordered for t in (one.mean, one.var)])
        if average is not None:
            average(self._batch)
        moving_statistics(self.running, self._batch, self._correction, self._weight)

    def _set_corrections(self, counts: list[int]) -> None:
        """Write count / (count - 1) to the device; the counts hardly ever change."""
        if counts != self._counts:
            for corrections, count in zip(self._var_corrections, counts, strict=True):
                corrections.fill_(count / max(count - 1, 1))
            self._counts = counts

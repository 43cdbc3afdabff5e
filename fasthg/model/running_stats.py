"""Moving statistics of a whole network in one launch, instead of some for each batch norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fasthg.model.layers import BatchNorm, BatchStats
from fasthg.ops import moving_statistics


class RunningStats:
    """Applies what the batch norms of a network found in one forward; see `collect_batch_stats`.

    Args:
        network: its only buffers are the statistics of `BatchNorm`s, which are views of `running`,
            but for those that are frozen.
        running: `(total,)` float32, the buffers in order, and gaps of zeros (`FlatParameters`).

    Raises:
        ValueError: the network's buffers are others, or lie elsewhere.
    """

    def __init__(self, network: nn.Module, running: Tensor) -> None:
        self.running = running
        norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
        if [id(t) for t in network.buffers()] != [id(t) for m in norms for t in m.buffers()]:
            raise ValueError("expected a network whose only buffers are those of its batch norms")
        self.layers = [norm for norm in norms if norm.bias.requires_grad]
        self._at = {id(layer): i for i, layer in enumerate(self.layers)}
        buffers = [t for layer in self.layers for t in (layer.running_mean, layer.running_var)]
        begins = [(t.data_ptr() - running.data_ptr()) // running.itemsize for t in buffers]
        ends = [begin + t.numel() for begin, t in zip(begins, buffers, strict=True)]
        if min(begins, default=0) < 0 or max(ends, default=0) > len(running):
            raise ValueError("expected batch norms whose statistics are views of `running`")
        self._batch = torch.zeros_like(running)
        bounds = list(zip(begins, ends, strict=True))
        self._places = [self._batch[begin:end] for begin, end in bounds]
        self._correction = torch.ones_like(running)
        self._of_vars = [self._correction[begin:end] for begin, end in bounds[1::2]]
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
        self, found: Sequence[BatchStats], average: Callable[[Tensor], None] | None = None
    ) -> None:
        """Move the statistics as each layer by itself would have: `BatchNorm.move`.

        One launch, where every layer found something once, and all have the decay that was set;
        else, as with a layer in evaluation mode or used twice, each moves by itself.

        average: makes a tensor the mean over all processes, in place, where each found its own.
        """
        order = sorted(found, key=lambda one: self._at.get(id(one.layer), -1))
        once = [id(one.layer) for one in order] == [id(layer) for layer in self.layers]
        decays = {one.layer.decay for one in order}
        if not once or decays != {self._decay} or not all(one.size for one in order):
            for one in found:
                if average is not None:
                    average(one.mean)
                    average(one.var)
                one.layer.move(one.mean, one.var, one.size)
            return
        self._prepare([one.size for one in order])
        torch._foreach_copy_(self._places, [t for one in order for t in (one.mean, one.var)])
        if average is not None:
            average(self._batch)
        moving_statistics(self.running, self._batch, self._correction, self._weight)

    def _prepare(self, counts: list[int]) -> None:
        """Constants on the device, which stay as they are from step to step."""
        if counts != self._counts:
            for factors, count in zip(self._of_vars, counts, strict=True):
                factors.fill_(count / max(count - 1, 1))
            self._counts = counts

"""One training step: normalise, forward, loss, backward, optimiser, moving averages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fasthg.config import Config
from fasthg.data.batch import READ_BY_STEP, Batch
from fasthg.errors import EnvironmentFault
from fasthg.model import (
    RunningStats,
    StackedHourglass,
    decayed_parameters,
    normalise,
)
from fasthg.model.loss import heatmap_loss
from fasthg.runtime.cuda_graph import GraphedCallable
from fasthg.runtime.device import Precision, autocast, choose_precision
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from fasthg.training.flat_params import FlatParameters
from fasthg.training.half_params import HalfParameters
from fasthg.training.optim import RMSProp, build_optimizer, learning_rate, warmed_decay


class StepResult(NamedTuple):
    """What one step reports, still on the device."""

    loss: Tensor
    """`(stacks, batch)` heatmap loss; the next step may write over it."""
    learning_rate: float


class Mode(NamedTuple):
    """How steps are run, and why."""

    name: Literal["eager", "compile", "graph"]
    reason: str


def choose_mode(config: Config, device: torch.device) -> Mode:
    """The mode that STEP means on this device.

    Raises:
        EnvironmentFault: a graph is asked for and the device has none.
    """
    if config.STEP == "auto":
        if device.type == "cuda":
            return Mode("graph", "one launch a step")
        return Mode("eager", "CUDA graphs need a GPU")
    if config.STEP == "graph" and device.type != "cuda":
        raise EnvironmentFault(f"STEP: graph, but the device is {device}; set STEP=auto")
    return Mode(config.STEP, f"STEP is {config.STEP}")


class TrainStep:
    """Network, optimiser and moving averages in training.

    Modes (STEP): `eager`; `graph`, where the same work is captured once as a CUDA graph and
    replayed on inputs and scalars at fixed addresses; `compile`, where torch.compile makes forward
    and backward of torch's own modules, on a GPU captured as well. Optimisers of torch run after
    the graph: on two flat tensors that is a few launches.

    Args:
        config: the run's configuration.
        model: the network, already on `device`.
        device: where to train.
        group: the processes that train together; each calls with its own part of the batch.
        precision: what PRECISION means in this run; None: `choose_precision`, by the first process.
        loss: `(stacks, batch)` of predictions, `(stacks, batch, maps, height, width)`, and the
            targets in READ_BY_STEP; None: `heatmap_loss` as the configuration says.

    Raises:
        EnvironmentFault: see `choose_mode`.
    """

    def __init__(
        self,
        config: Config,
        model: StackedHourglass,
        device: torch.device,
        group: ProcessGroup = SINGLE_PROCESS,
        precision: Precision | None = None,
        loss: Callable[..., Tensor] | None = None,
    ) -> None:
        self.config = config
        self._loss = loss or self._heatmap_loss
        self.group = group
        self.model = model
        self.device = device
        if precision is None:
            # Timings differ between processes: the first one decides for all.
            own = (
                choose_precision(config.PRECISION, device, config.FEATURES) if group.first else None
            )
            precision = group.gathered(own)[0]
        self.precision: Precision = precision
        self.mode = choose_mode(config, device)
        self.flat = FlatParameters(model, *decayed_parameters(model), model.frozen())
        self._ema_model, self.averages = self.flat.copy()
        self._statistics = RunningStats(model, self.flat.statistics)
        self._synced = config.BATCHNORM_SYNC and group.active
        if self._synced:
            model.set_process_group(group)
        self._average_weight = torch.zeros((), device=device)
        self.optimizer = build_optimizer(config, self.flat, self.averages, self._average_weight)
        # torch's first scale, 65536, overflows the summed loss and the first steps would be lost.
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=256.0, enabled=self.precision.dtype == torch.float16
        )
        self._loss_of: Callable[..., Tensor] = self._forward
        self._half: HalfParameters | None = None
        if self.precision.dtype != torch.float32 and self.mode.name != "compile":
            self._half = HalfParameters(self.flat, self.precision.dtype)
        if self.mode.name == "compile":
            # inductor fuses torch's own modules; to it, operators of ours end a fusion.
            model.set_fused("off")
            tuned = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
            self._loss_of = torch.compile(self._forward, dynamic=False, fullgraph=True, mode=tuned)
        self._captures = device.type == "cuda" and self.mode.name != "eager"
        # Training has batches of one shape.
        self._replayed = GraphedCallable(
            self._device_work, device, restore_state=self._restore_state
        )

    def __call__(self, batch: Batch, step: int) -> StepResult:
        """Train on `batch` as step number `step` (the first is 0).

        Raises:
            torch.OutOfMemoryError: the device's memory is full.
        """
        rate = self._schedule(step)
        if not self.model.training:  # a walk through all modules
            self.model.train()
        given = [getattr(batch, name) for name in READ_BY_STEP]
        loss = self._replayed(*given) if self._captures else self._device_work(*given)
        if not self._updates_on_device:
            self._update()
        return StepResult(loss.detach(), rate)

    @property
    def _updates_on_device(self) -> bool:
        """Whether the optimiser reads what changes on the device, so that a graph can hold it."""
        return isinstance(self.optimizer, RMSProp)

    def _schedule(self, step: int) -> float:
        """Set what depends on the step's number, most of it on the device; the learning rate."""
        config = self.config
        rate = learning_rate(config, step, config.BATCH_SIZE * self.group.size)
        for param_group in self.optimizer.param_groups:
            if isinstance(param_group["lr"], Tensor):
                param_group["lr"].fill_(rate)
            else:
                param_group["lr"] = rate
        self._average_weight.fill_(1.0 - warmed_decay(config.MOVING_AVERAGE_DECAY, step))
        decay = config.BATCHNORM_MOVING_AVERAGE_DECAY
        if config.BATCHNORM_DECAY_WARMUP:
            decay = warmed_decay(decay, step)
        self._statistics.set_decay(decay)
        return rate

    def _forward(self, images: Tensor, *targets: Tensor) -> Tensor:
        """Loss `(stacks, batch)` of uint8 images, `targets` as in READ_BY_STEP."""
        with autocast(self.device, self.precision.dtype):
            predictions = self.model(normalise(images))
        return self._loss(predictions, *targets)

    def _heatmap_loss(self, predictions: Tensor, *targets: Tensor) -> Tensor:
        config = self.config
        return heatmap_loss(
            predictions, *targets, subpixel=config.SUBPIXEL_TARGETS, scaling=config.LOSS_SCALING
        )

    def _device_work(self, *given: Tensor) -> Tensor:
        """All that a step does on the device but torch's own optimisers; the loss.

        given: as READ_BY_STEP.

        Nothing here waits for the device or depends on the step's number, so that a graph can be
        captured of it.
        """
        with self._half.used() if self._half else contextlib.nullcontext():
            # Of a forward that fails, nothing is left over.
            with self.model.collector.collect() as stats:
                loss = self._loss_of(*given)
            apart = self.group.active and not self._synced
            self._statistics.apply(stats, self.group.mean if apart else None)
            self._set_gradient(self.scaler.scale(loss.sum()))
            self._reduce_gradient()
        if self._updates_on_device:
            self._update()
        return loss

    def _set_gradient(self, loss: Tensor) -> None:
        """Backward, to all weights and, in half types, to what stands in for them."""
        weights = self.flat.parameters
        # Operators that want full precision take the weight that a half-precision copy stands for.
        halves = self._half.leaves if self._half else [None] * len(weights)
        leaves = [*weights, *(half for half in halves if half is not None)]
        with self.model.side_streams.overlap_weight_gradients(loss):
            found = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
        full = [next(found) for _ in weights]
        rounded = [None if half is None else next(found) for half in halves]
        # A weight is used in one of both, so one of them has its gradient.
        self.flat.set_gradient([r if f is None else f for f, r in zip(full, rounded, strict=True)])

    def _reduce_gradient(self) -> None:
        """Make the gradient that of all processes' batches together; one collective."""
        if self.group.active:
            # As LOSS_SCALING: a sum over instances, or a mean.
            reduce = self.group.mean if self.config.LOSS_SCALING == "mean" else self.group.sum
            reduce(self.flat.gradient)

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.config.GRADIENT_CLIP_NORM is not None:
            nn.utils.clip_grad_norm_(self.flat.weights, self.config.GRADIENT_CLIP_NORM)
        # As in the reference, the averages take the values that this step started from.
        if not isinstance(self.optimizer, RMSProp):
            self.averages.lerp_(self.flat.values, self._average_weight)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @contextlib.contextmanager
    def _restore_state(self) -> Iterator[None]:
        """Undo what the steps inside change."""
        tensors = self._changed_on_device()
        before = [tensor.clone() for tensor in tensors]
        scaler = self.scaler.state_dict()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
            if scaler:  # empty unless in float16
                self.scaler.load_state_dict(scaler)

    def _changed_on_device(self) -> list[Tensor]:
        """What `_device_work` changes and the next step reads, the loss scale apart."""
        tensors = [self.flat.values, self.averages]
        if isinstance(self.optimizer, RMSProp):
            tensors += self.optimizer.state_dict().values()
        return tensors

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return bool(torch.isfinite(self.flat.weights).all())

    def ema_model(self) -> StackedHourglass:
        """The network with the averaged weights, in evaluation mode; the next step moves them."""
        return self._ema_model.eval()

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on bit for bit."""
        return {
            "model": self.model.state_dict(),
            "ema": self._ema_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the weights and moving statistics of a `state_dict`; averages start there."""
        self.model.load_state_dict(tensors)
        self._ema_model.load_state_dict(tensors)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of `state()`."""
        self.model.load_state_dict(state["model"])
        self._ema_model.load_state_dict(state["ema"])
        # The state brings the settings it was saved with; the configuration's are those to go on
        # with.
        settings = [
            {k: v for k, v in param_group.items() if k != "params"}
            for param_group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for param_group, own in zip(self.optimizer.param_groups, settings, strict=True):
            param_group.update(own)
        if state["scaler"]:  # empty unless saved in float16
            self.scaler.load_state_dict(state["scaler"])

"""One training step: normalise, forward, loss, backward, optimiser, moving averages."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.errors import EnvironmentFault
from fasthg.flat import FlatNetwork
from fasthg.loss import heatmap_loss
from fasthg.model import (
    MovingStatistics,
    StackedHourglass,
    collect_statistics,
    decayed_parameters,
)
from fasthg.optim import RMSProp, build_optimizer, learning_rate, warmed_decay


def choose_device(name: str) -> torch.device:
    """The device that DEVICE names; auto takes a GPU where torch sees one.

    Raises:
        EnvironmentFault: cuda is asked for and torch has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("DEVICE: cuda, but torch finds no GPU; set DEVICE=cpu or auto")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype that PRECISION names; auto takes bfloat16 where the hardware multiplies it."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def normalise(images: Tensor) -> Tensor:
    """uint8 `(batch, height, width, 3)` -> float32 `(batch, 3, height, width)` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().mul_(1.0 / 127.5).sub_(1.0)


def autocast(
    device: torch.device, precision: torch.dtype
) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for `precision`; a no-op for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


class StepResult(NamedTuple):
    """What one step reports, still on the device."""

    loss: Tensor
    """`(stacks, batch)` heatmap loss."""
    learning_rate: float


class TrainStep:
    """Network, optimiser and moving averages in training.

    Args:
        config: the run's configuration.
        model: the network, already on `device`.
        device: where to train.
    """

    def __init__(self, config: Config, model: StackedHourglass, device: torch.device) -> None:
        self.config = config
        self.model = model
        self.device = device
        self.precision = choose_precision(config.PRECISION, device)
        self.flat = FlatNetwork(model, *decayed_parameters(model))
        self._ema_model, self.averages = self.flat.copy()
        self._statistics = MovingStatistics(model, self.flat.statistics)
        self._average_weight = torch.zeros((), device=device)
        self.optimizer = build_optimizer(config, self.flat, self.averages, self._average_weight)
        # torch's first scale, 65536, overflows the summed loss and the first steps would be lost.
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=256.0, enabled=self.precision == torch.float16
        )

    def __call__(self, batch: Batch, step: int) -> StepResult:
        """Train on `batch` as step number `step` (the first is 0)."""
        config = self.config
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._average_weight.fill_(1.0 - warmed_decay(config.MOVING_AVERAGE_DECAY, step))
        if config.BATCHNORM_DECAY_WARMUP:
            decay = warmed_decay(config.BATCHNORM_MOVING_AVERAGE_DECAY, step)
            self.model.set_bn_decay(decay)
        self.model.train()
        # Of a forward that fails, nothing is left over.
        with collect_statistics() as found, autocast(self.device, self.precision):
            predictions = self.model(normalise(batch.images))
        self._statistics.apply(found)
        loss = heatmap_loss(
            predictions,
            batch,
            subpixel=config.SUBPIXEL_TARGETS,
            scaling=config.LOSS_SCALING,
        )
        self.flat.gradient.zero_()
        self.scaler.scale(loss.sum()).backward()
        self.scaler.unscale_(self.optimizer)
        if config.GRADIENT_CLIP_NORM is not None:
            nn.utils.clip_grad_norm_(self.flat.weights, config.GRADIENT_CLIP_NORM)
        # As in the reference, the averages take the values that this step started from.
        if not isinstance(self.optimizer, RMSProp):
            self.averages.lerp_(self.flat.values, self._average_weight)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepResult(loss.detach(), rate)

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

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state of `state()`."""
        self.model.load_state_dict(state["model"])
        self._ema_model.load_state_dict(state["ema"])
        # The state brings the settings it was saved with; the configuration's are those to go on
        # with.
        settings = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if state["scaler"]:  # empty unless saved in float16
            self.scaler.load_state_dict(state["scaler"])

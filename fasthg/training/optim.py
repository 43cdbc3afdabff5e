"""Optimisers and learning-rate schedules.

The reference runs TensorFlow's RMSProp with epsilon inside the root and mean squares that start
at 1; `torch.optim.RMSprop` does neither, so it is an operator of its own. Every other optimiser is
torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fasthg.errors import ConfigError
from fasthg.ops import rmsprop_ema
from fasthg.training.flat_params import FlatParameters

if TYPE_CHECKING:
    from fasthg.config import Config


class RMSProp(Optimizer):
    """`rmsprop_ema` over a flat network: RMSProp and the moving averages in one pass.

    A step moves `averages` towards the values that it starts from, also where it then leaves the
    weights as they are because gradients overflowed. Learning rate and average weight are read from
    tensors, so that a CUDA graph can be replayed with other numbers in them.

    Args:
        flat: weights, gradients and moving statistics.
        averages: `(total,)`, see `FlatParameters.copy`.
        average_weight: one value, share of the value in its new average.
        lr: learning rate, kept as a tensor in `param_groups[0]["lr"]`.
        decay, momentum, eps: RMSPROP_DECAY, RMSPROP_MOMENTUM, RMSPROP_EPSILON.
        weight_decay: factor of the L2 gradient of the weights that have it.
    """

    # A GradScaler then hands `found_inf` over instead of waiting for its value.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(
        self,
        flat: FlatParameters[Any],
        averages: Tensor,
        average_weight: Tensor,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.0,
        eps: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.flat, self.averages, self.average_weight = flat, averages, average_weight
        defaults = {"decay": decay, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        rate = torch.tensor(lr, device=flat.values.device)
        super().__init__([flat.weights], {"lr": rate, **defaults})
        self.squares = torch.ones_like(flat.weights)
        self.momenta = torch.zeros_like(flat.weights) if momentum else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the averages, then the weights; see `rmsprop_ema`."""
        loss = None if closure is None else closure()
        group = self.param_groups[0]
        rmsprop_ema(
            *(self.flat.values, self.flat.gradient, self.squares, group["lr"]),
            decay=group["decay"],
            eps=group["eps"],
            momentum=group["momentum"],
            momenta=self.momenta,
            weight_decay=group["weight_decay"],
            decayed=self.flat.num_decayed,
            averages=self.averages,
            average_weight=self.average_weight,
            found_inf=self.found_inf,
        )
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Flat tensors `squares` and, with momentum, `momenta`; no settings."""
        buffers = {"squares": self.squares, "momenta": self.momenta}
        return {name: tensor for name, tensor in buffers.items() if tensor is not None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over flat tensors; momenta start at 0 if none were saved.

        Raises:
            KeyError, ValueError: the state is of another optimiser or network; nothing has changed.
        """
        saved = state_dict["squares"]
        if saved.shape != self.squares.shape:
            raise ValueError(
                f"the optimiser's squares are {tuple(saved.shape)}, this network needs "
                f"{tuple(self.squares.shape)}"
            )
        self.squares.copy_(saved)
        if self.momenta is not None:
            self.momenta.copy_(state_dict.get("momenta", torch.zeros_like(saved)))


def build_optimizer(
    config: Config, flat: FlatParameters[Any], averages: Tensor, average_weight: Tensor
) -> Optimizer:
    """The optimiser that OPTIMIZER names, over the weights of `flat`.

    WEIGHT_DECAY is the loss `WEIGHT_DECAY * sum(w^2) / 2` of the decayed weights, as a gradient;
    adamw decouples it. `RMSProp` alone moves the averages.
    """
    decayed, plain = flat.groups()
    groups = [
        {"params": [decayed], "weight_decay": config.WEIGHT_DECAY},
        {"params": [plain], "weight_decay": 0.0},
    ]
    lr = config.INITIAL_LEARNING_RATE
    betas = (config.ADAM_BETA1, config.ADAM_BETA2)
    match config.OPTIMIZER:
        case "rmsprop":
            return RMSProp(
                flat,
                averages,
                average_weight,
                lr,
                config.RMSPROP_DECAY,
                config.RMSPROP_MOMENTUM,
                config.RMSPROP_EPSILON,
                config.WEIGHT_DECAY,
            )
        case "adam":
            return torch.optim.Adam(groups, lr, betas, config.ADAM_EPSILON)
        case "adamw":
            return torch.optim.AdamW(groups, lr, betas, config.ADAM_EPSILON)
        case "sgd":
            return torch.optim.SGD(groups, lr)
        case "momentum":
            return torch.optim.SGD(groups, lr, momentum=config.MOMENTUM)
        case "adagrad":
            start = config.ADAGRAD_INITIAL_ACCUMULATOR_VALUE
            return torch.optim.Adagrad(groups, lr, initial_accumulator_value=start)
        case "adadelta":
            return torch.optim.Adadelta(
                groups, lr, rho=config.ADADELTA_RHO, eps=config.OPTIMIZER_EPSILON
            )
    raise ConfigError(f"OPTIMIZER: {config.OPTIMIZER!r} is not supported; use rmsprop or adamw")


def learning_rate(config: Config, step: int, batch_size: int | None = None) -> float:
    """Learning rate of training step `step` (the first is 0).

    A linear warm-up of `warmup` = LEARNING_RATE_WARMUP_STEPS steps comes first; every decay counts
    `t = step - warmup` from its end:

    - exponential: `INITIAL * FACTOR ** (t / decay_steps)`, where `decay_steps` are the steps of
      NUM_EPOCHS_PER_DELAY epochs of NUM_TRAIN_EXAMPLES, rounded down as TensorFlow does.
      LEARNING_RATE_STAIRCASE rounds the exponent down.
    - polynomial: `END + (INITIAL - END) * (1 - t / T) ** LEARNING_RATE_DECAY_POWER` with
      `T = NUM_TRAIN_ITERATIONS - warmup`.
    - cosine: `END + (INITIAL - END) * (1 + cos(pi * t / T)) / 2`.

    Sources: `tf.train.exponential_decay`, `tf.train.polynomial_decay`; Loshchilov and Hutter,
    "SGDR", 2017.

    Args:
        config: the run's configuration.
        step: number of the step.
        batch_size: instances in a step of all processes together; BATCH_SIZE where None.
    """
    initial, end = config.INITIAL_LEARNING_RATE, config.END_LEARNING_RATE
    warmup = config.LEARNING_RATE_WARMUP_STEPS
    if step < warmup:
        return initial * (step + 1) / (warmup + 1)
    kind = config.LEARNING_RATE_DECAY_TYPE
    if kind == "fixed":
        return initial
    if kind == "exponential":
        epoch = config.NUM_TRAIN_EXAMPLES / (batch_size or config.BATCH_SIZE)
        delays = (step - warmup) / max(int(epoch * config.NUM_EPOCHS_PER_DELAY), 1)
        if config.LEARNING_RATE_STAIRCASE:
            delays = math.floor(delays)
        return initial * float(config.LEARNING_RATE_DECAY_FACTOR**delays)
    total = max(config.NUM_TRAIN_ITERATIONS - warmup, 1)
    left = 1.0 - min((step - warmup) / total, 1.0)
    if kind == "polynomial":
        return end + (initial - end) * float(left**config.LEARNING_RATE_DECAY_POWER)
    return end + (initial - end) * 0.5 * (1.0 - math.cos(math.pi * left))


def warmed_decay(decay: float, step: int) -> float:
    """`min(decay, (1 + step) / (10 + step))`: short memory at first, as TensorFlow's EMA."""
    return min(decay, (1.0 + step) / (10.0 + step))

"""Optimisers, learning-rate schedules and the moving average of the weights.

The reference runs TensorFlow's RMSProp with epsilon inside the root and mean squares that start
at 1; `torch.optim.RMSprop` does neither, so it has a class of its own here. Every other optimiser
is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasthg.errors import ConfigError

if TYPE_CHECKING:
    from fasthg.config import Config


class RMSPropTF(Optimizer):
    """RMSProp as `tf.train.RMSPropOptimizer` computes it.

    `ms = decay * ms + (1 - decay) * g^2`, `mom = momentum * mom + lr * g / sqrt(ms + eps)`,
    `w -= mom`; `ms` starts at 1.

    Args:
        params: parameters or groups; a group's `weight_decay` adds `weight_decay * w` to g.
        lr: learning rate.
        decay, momentum, eps: RMSPROP_DECAY, RMSPROP_MOMENTUM, RMSPROP_EPSILON.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]],
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.0,
        eps: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "decay": decay,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "ms" not in self.state[p]:
                    self.state[p]["ms"] = torch.ones_like(p)
                    if group["momentum"]:
                        self.state[p]["mom"] = torch.zeros_like(p)
            squares = [self.state[p]["ms"] for p in params]
            grads: list[Tensor] = [p.grad for p in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, grads, grads, value=1.0 - group["decay"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            if group["momentum"]:
                moments = [self.state[p]["mom"] for p in params]
                torch._foreach_mul_(moments, group["momentum"])
                torch._foreach_addcdiv_(moments, grads, roots, value=group["lr"])
                torch._foreach_sub_(params, moments)
            else:
                torch._foreach_addcdiv_(params, grads, roots, value=-group["lr"])
        return loss


def build_optimizer(config: Config, decayed: list[Tensor], plain: list[Tensor]) -> Optimizer:
    """The optimiser that OPTIMIZER names.

    Args:
        decayed: parameters with L2 (convolution weights and biases): the loss
            `WEIGHT_DECAY * sum(w^2) / 2`, as a gradient; adamw decouples it.
        plain: parameters without.
    """
    groups = [
        {"params": decayed, "weight_decay": config.WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    lr = config.INITIAL_LEARNING_RATE
    betas = (config.ADAM_BETA1, config.ADAM_BETA2)
    match config.OPTIMIZER:
        case "rmsprop":
            return RMSPropTF(
                groups,
                lr,
                config.RMSPROP_DECAY,
                config.RMSPROP_MOMENTUM,
                config.RMSPROP_EPSILON,
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


def learning_rate(config: Config, step: int) -> float:
    """Learning rate of training step `step` (the first is 0).

    exponential: `INITIAL * FACTOR ** (step / decay_steps)` with `decay_steps` the steps in
    NUM_EPOCHS_PER_DELAY epochs of NUM_TRAIN_EXAMPLES; LEARNING_RATE_STAIRCASE rounds the exponent
    down. polynomial: from INITIAL to END_LEARNING_RATE over NUM_TRAIN_ITERATIONS, to the power
    LEARNING_RATE_DECAY_POWER. cosine: half a wave between the same ends.
    LEARNING_RATE_WARMUP_STEPS rises linearly to the rate first.
    Sources: `tf.train.exponential_decay`, `tf.train.polynomial_decay`; Loshchilov and Hutter,
    "SGDR", 2017.
    """
    initial, end = config.INITIAL_LEARNING_RATE, config.END_LEARNING_RATE
    warmup = config.LEARNING_RATE_WARMUP_STEPS
    if step < warmup:
        return initial * (step + 1) / (warmup + 1)
    kind = config.LEARNING_RATE_DECAY_TYPE
    if kind == "fixed":
        return initial
    if kind == "exponential":
        epoch = config.NUM_TRAIN_EXAMPLES / config.BATCH_SIZE
        delays = step / max(int(epoch * config.NUM_EPOCHS_PER_DELAY), 1)
        if config.LEARNING_RATE_STAIRCASE:
            delays = math.floor(delays)
        return initial * float(config.LEARNING_RATE_DECAY_FACTOR**delays)
    total = max(config.NUM_TRAIN_ITERATIONS - warmup, 1)
    left = 1.0 - min(max(step - warmup, 0) / total, 1.0)
    if kind == "polynomial":
        return end + (initial - end) * float(left**config.LEARNING_RATE_DECAY_POWER)
    return end + (initial - end) * 0.5 * (1.0 - math.cos(math.pi * left))


def warmed_decay(decay: float, step: int) -> float:
    """`min(decay, (1 + step) / (10 + step))`: short memory at first, as TensorFlow's EMA."""
    return min(decay, (1.0 + step) / (10.0 + step))


class EMA:
    """Exponential moving average of a module's weights and moving statistics.

    Evaluation and export use these values. `shadow = d * shadow + (1 - d) * value` with
    `d = warmed_decay(decay, step)`; shadows start at the initial values.

    Args:
        module: the network in training.
        decay: MOVING_AVERAGE_DECAY.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._values = {k: v for k, v in module.state_dict(keep_vars=True).items()}
        self.shadow = {k: v.detach().clone() for k, v in self._values.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the shadows towards the values that training step `step` starts from.

        The first step is 0. Call it before the optimiser's step: TensorFlow's shadows lag one step
        in this way.
        """
        weight = 1.0 - warmed_decay(self.decay, step)
        torch._foreach_lerp_(
            list(self.shadow.values()), [v.detach() for v in self._values.values()], weight
        )

    def load(self, shadow: dict[str, Tensor]) -> None:
        """Take over saved shadows."""
        for name, value in self.shadow.items():
            value.copy_(shadow[name])

"""The reference recipe, training: MARS's step in plain PyTorch, float32.

For benchmarks and tests only. torch's own RMSprop stands for TensorFlow's, as in any port: it adds
epsilon outside the root, and its mean squares start at 0. Settings of the whole process, such as
TF32 or `torch.backends.cudnn.benchmark`, are the caller's.
"""

from __future__ import annotations

import copy

import torch
from reference.network import BatchNorm, ReferenceHourglass
from torch import Tensor, nn

from fasthg.config import Config

# MARS knows nothing else, and a comparison in which one side ignores a key is none.
ONLY = {
    "OPTIMIZER": "rmsprop",
    "LEARNING_RATE_DECAY_TYPE": "fixed",
    "LEARNING_RATE_WARMUP_STEPS": 0,
    "LOSS_SCALING": "sum",
    "GRADIENT_CLIP_NORM": None,
    "BATCHNORM_EPSILON": 0.001,
}


class ReferenceTraining:
    """Network, optimiser and moving averages.

    Args:
        cfg: NUM_STACKS, PARTS, FEATURES, STEM_FEATURES, HEAD_INIT_SCALE and RANDOM_SEED make the
            network; INITIAL_LEARNING_RATE, WEIGHT_DECAY and the keys of RMSPROP, BATCHNORM and
            MOVING_AVERAGE train it.
        device: where to train.

    Raises:
        ValueError: a key of `ONLY` has another value.
    """

    rmsprop: type[torch.optim.RMSprop] = torch.optim.RMSprop

    def __init__(self, cfg: Config, device: torch.device) -> None:
        if other := [key for key, value in ONLY.items() if getattr(cfg, key) != value]:
            raise ValueError(f"the reference recipe has one value only for {', '.join(other)}")
        self.cfg = cfg
        self.device = device
        self.steps = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.RANDOM_SEED)
            network = ReferenceHourglass(
                cfg.NUM_STACKS, cfg.PARTS.NUM_PARTS, cfg.FEATURES, cfg.STEM_FEATURES
            )
        with torch.no_grad():
            for stack in network.stacks:
                stack.heatmap.weight.mul_(cfg.HEAD_INIT_SCALE)
        self.network = self._placed(network)
        self.norms = [m for m in network.modules() if isinstance(m, BatchNorm)]
        for norm in self.norms:
            norm.momentum = 1 - cfg.BATCHNORM_MOVING_AVERAGE_DECAY

        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        decayed = [p for convolution in convolutions for p in convolution.parameters()]
        self.optimizer = self.rmsprop(
            [
                {"params": decayed, "weight_decay": cfg.WEIGHT_DECAY},
                {"params": [norm.bias for norm in self.norms], "weight_decay": 0.0},
            ],
            lr=cfg.INITIAL_LEARNING_RATE,
            alpha=cfg.RMSPROP_DECAY,
            eps=cfg.RMSPROP_EPSILON,
            momentum=cfg.RMSPROP_MOMENTUM,
        )
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        self._values = _weights_and_statistics(self.network)
        self._averages = _weights_and_statistics(self.averaged)

    def step(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        """Train on one batch; returns its loss, a scalar on the device, without waiting for it.

        images: `(batch, 3, input, input)` float32 in [-1, 1]; heatmaps: `(batch, parts, heatmap,
        heatmap)` float32. The loss is `sum((target - prediction)²) / 2` over batch, parts, cells
        and stacks.
        """
        if not self.network.training:
            self.network.train()
        images = images.to(self.device, non_blocking=True)
        heatmaps = heatmaps.to(self.device, non_blocking=True)
        if self.cfg.BATCHNORM_DECAY_WARMUP:
            for norm in self.norms:
                norm.momentum = 1 - self._warmed(self.cfg.BATCHNORM_MOVING_AVERAGE_DECAY)
        loss = self._loss(images, heatmaps)
        self._update(loss)
        weight = 1 - self._warmed(self.cfg.MOVING_AVERAGE_DECAY)
        torch._foreach_lerp_(self._averages, self._values, weight)
        self.steps += 1
        return loss.detach()

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _placed(self, network: ReferenceHourglass) -> ReferenceHourglass:
        return network.to(self.device)

    def _heatmaps(self, network: ReferenceHourglass, images: Tensor) -> Tensor:
        return network(images)[-1]

    def _loss(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        return sum(((heatmaps - maps) ** 2).sum() / 2 for maps in self.network(images))

    @torch.no_grad()
    def predict(self, images: Tensor, averaged: bool = False) -> Tensor:
        """The last stack's heatmaps, `(batch, parts, heatmap, heatmap)` float32 on the device.

        images: as in `step`. averaged: use the moving averages, as MARS does to evaluate, and not
        the weights of the last step.
        """
        network = self.averaged if averaged else self.network
        if network.training:
            network.eval()
        return self._heatmaps(network, images.to(self.device, non_blocking=True))

    def _warmed(self, decay: float) -> float:
        """TensorFlow's `num_updates`: short memory at first."""
        return min(decay, (1 + self.steps) / (10 + self.steps))


def _weights_and_statistics(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]

"""torch's RMSprop for gradients of a GradScaler, in a step that must not wait for the device.

`GradScaler.step` reads on the host whether a gradient overflowed, which no CUDA graph can hold. An
optimiser that says `_step_supports_amp_scaling`, as torch's fused ones do, gets the flag as a
tensor instead; of RMSprop torch has no fused form.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ScaledRMSprop(torch.optim.RMSprop):
    """RMSprop whose step changes nothing where `found_inf`, which GradScaler sets, is not 0.

    An infinite gradient times 0 is not 0, so that gradients are copied into a flat buffer and
    masked there; the memory traffic is about that of torch's foreach form. Not centered.
    """

    _step_supports_amp_scaling = True
    found_inf: Tensor

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._flat = [_Flat(group["params"]) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """As torch's, after `GradScaler.unscale_`."""
        overflow = self.found_inf.bool()
        kept = 1 - self.found_inf.clamp(max=1)
        for group, flat in zip(self.param_groups, self._flat, strict=True):
            parameters = group["params"]
            torch._foreach_copy_(flat.gradients, [p.grad for p in parameters])
            if group["weight_decay"]:
                torch._foreach_add_(flat.gradients, parameters, alpha=group["weight_decay"])
            flat.gradient.masked_fill_(overflow, 0)
            flat.squares.lerp_(flat.gradient.square(), (1 - group["alpha"]) * kept)
            flat.momentum.mul_(1 - (1 - group["momentum"]) * kept)
            flat.momentum.addcdiv_(flat.gradient, flat.squares.sqrt().add_(group["eps"]))
            torch.mul(flat.momentum, -group["lr"] * kept, out=flat.gradient)
            torch._foreach_add_(parameters, flat.gradients)


class _Flat:
    """Gradients and state of a group in flat buffers; `gradients` are views, one a parameter."""

    def __init__(self, parameters: list[Tensor]) -> None:
        total = sum(p.numel() for p in parameters)
        self.gradient, self.squares, self.momentum = parameters[0].new_zeros(3, total)
        parts = self.gradient.split([p.numel() for p in parameters])
        pairs = zip(parts, parameters, strict=True)
        self.gradients = [part.as_strided(p.shape, p.stride()) for part, p in pairs]

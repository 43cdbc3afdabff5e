"""How much memory a forward pass keeps for its backward pass."""

from __future__ import annotations

import torch

from fasthg.data.batch import READ_BY_STEP, Batch
from fasthg.training.step import TrainStep


def saved_bytes(step: TrainStep, batch: Batch) -> int:
    """Bytes of the tensors that autograd keeps, weights apart; each storage counts once."""
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step._forward(*(getattr(batch, name) for name in READ_BY_STEP))
    # The graph is alive until here, so no two tensors had the same address.
    assert loss.requires_grad
    return sum(saved.values())

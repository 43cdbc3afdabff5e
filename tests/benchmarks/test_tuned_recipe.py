"""The rivals of `benchmarks/reference/tuned.py`: captured as a whole step, scaled, and compiled."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from graph_tape import record
from reference import network as network_module
from reference.scaled_rmsprop import ScaledRMSprop
from reference.training import ReferenceTraining
from reference.tuned import TunedTraining
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fasthg.config import Config
from fasthg.runtime import cuda_graph
from fasthg.runtime.cuda_graph import WARM_UP

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {
    **{"INPUT_SIZE": 64, "HEATMAP_SIZE": 16, "BATCH_SIZE": 2, "FEATURES": 16, "STEM_FEATURES": 8},
    "HEAD_INIT_SCALE": 0.01,
}


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hourglasses of one level: a quarter of the modules."""
    monkeypatch.setattr(network_module, "LEVELS", 1)


def example(device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=random) * 2 - 1
    return images.to(device), torch.rand(2, 7, 16, 16, generator=random).to(device)


def losses(training: ReferenceTraining, count: int) -> list[float]:
    return [float(training.step(*example(training.device))) for _ in range(count)]


def test_a_scaled_step_is_torch_s_and_an_overflow_changes_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3), (16, 8, 1, 1), (5,)]
    start = [torch.randn(shape, generator=random) for shape in shapes]
    start[0] = start[0].contiguous(memory_format=torch.channels_last)
    keys = {"lr": 0.1, "alpha": 0.9, "eps": 1.0, "momentum": 0.9}
    sets, optimizers = [], []
    for kind in (torch.optim.RMSprop, ScaledRMSprop):
        sets.append([value.clone().requires_grad_() for value in start])
        groups = [{"params": sets[-1][:2], "weight_decay": 0.5}, {"params": sets[-1][2:]}]
        optimizers.append(kind(groups, **keys))
    # The flags that torch's waits for are read on the host; those of ours must never be.
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in optimizers]
    for number in range(5):
        gradients = [torch.randn(shape, generator=random) for shape in shapes]
        gradients[1][0, 0] = {1: torch.inf, 2: torch.nan}.get(number, 1.0)
        before = [value.detach().clone() for value in sets[1]]
        for values, optimizer, scaler in zip(sets, optimizers, scalers, strict=True):
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = torch.empty_like(value).copy_(gradient * scaler.get_scale())
            scaler.scale(torch.zeros(()))
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        for got, wanted, old in zip(sets[1], sets[0], before, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
            assert torch.equal(got, old) == (number in (1, 2))
    assert scalers[0].get_scale() == scalers[1].get_scale() == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("precision", "error"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)], ids=["bf16", "fp16"]
)
def test_a_captured_step_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, precision: torch.dtype, error: float
) -> None:
    """With a graph's semantics, in which a step that reads a value on the host is an error."""
    monkeypatch.setattr(cuda_graph, "capture", record)
    cfg = Config(**KEYS, NUM_STACKS=1)
    captured = TunedTraining(cfg, CPU, precision, captured=True)
    got = losses(captured, 4)
    # The runs before the capture, and the tape's recording, train.
    before, count = WARM_UP + 1, len(got)
    eager = TunedTraining(cfg, CPU, precision)
    wanted = losses(eager, before + count)[before:]
    assert got == pytest.approx(wanted, rel=error) and got[0] > got[-1]
    images = example()[0]
    maps = captured.predict(images).clone()
    torch.testing.assert_close(maps, eager.predict(images), rtol=0.1, atol=0.1)
    captured.step(*example())
    assert not torch.equal(captured.predict(images), maps)  # the weights as they are now


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_scaled_losses_are_those_of_float32() -> None:
    cfg = Config(**KEYS, NUM_STACKS=1)
    training = TunedTraining(cfg, CPU, torch.float16)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert losses(training, 4) == pytest.approx(losses(ReferenceTraining(cfg, CPU), 4), rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_all_stacks_are_compiled_as_two() -> None:
    """With the stem and the loss four functions, however many stacks there are."""
    limit = torch._dynamo.config.recompile_limit
    for stacks in (2, 3):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")  # only what is traced counts
        cfg = Config(**KEYS, NUM_STACKS=stacks)
        training = TunedTraining(cfg, CPU, torch.float32, compiled={"backend": counter})
        wanted = losses(ReferenceTraining(cfg, CPU), 3)
        assert losses(training, 3) == pytest.approx(wanted, rel=1e-4)
        assert counter.frame_count == 4
        assert training.compiled_in["step"] > 0 and "predict" not in training.compiled_in
    assert torch._dynamo.config.recompile_limit == limit


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_the_rows_of_compiled_rivals_say_how_long_that_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(networks, "COMPILE", "on")
    monkeypatch.setattr(networks, "COMPILED", {"torch.compile": {"backend": "eager"}})
    monkeypatch.delenv("BENCH_COMPILED", raising=False)
    torch._dynamo.reset()
    cfg = Config(**KEYS, NUM_STACKS=1, PRECISION="fp32")
    given = example()
    makers = networks.rivals(cfg, CPU, lambda one: lambda: one.step(*given))
    run = makers["torch.compile"]()
    figures = networks.step_figures(run, 0.5, batch=2)
    assert figures["images/s"] == 4 and figures["compiled in s"] > 0
    assert float(run()) == pytest.approx(losses(ReferenceTraining(cfg, CPU), 2)[-1], rel=1e-4)
    plain = networks.step_figures(makers["eager channels_last"](), 0.5, batch=2)
    assert "compiled in s" not in plain
    assert makers["captured, fp16"] == networks.ON_GPU


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_graph_gives_the_losses_of_eager_steps(precision: torch.dtype) -> None:
    device = torch.device("cuda")
    cfg = Config(**KEYS, NUM_STACKS=2)
    given = example(device)
    captured = TunedTraining(cfg, device, precision, captured=True)
    captured.step(*given)
    torch.cuda.set_sync_debug_mode("error")  # a step waits for nothing
    try:
        result = captured.step(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wanted = losses(TunedTraining(cfg, device, precision), WARM_UP + 2)[-1]
    assert float(result) == pytest.approx(wanted, rel=2e-2)

"""Training steps: all modes give the same losses and weights."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from graph_tape import Tape, record, tensors_of
from random_batch import batch

from fasthg.config import Config
from fasthg.data.prefetch import Prefetcher
from fasthg.errors import ConfigError, EnvironmentFault
from fasthg.model import build_model
from fasthg.runtime import cuda_graph as graph_module
from fasthg.training import step as step_module
from fasthg.training.step import TrainStep, choose_mode

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {
    **{"NUM_STACKS": 1, "FEATURES": 16, "STEM_FEATURES": 8, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16},
    **{"PRECISION": "fp32", "HEAD_INIT_SCALE": 0.01, "NUM_TRAIN_ITERATIONS": 10},
}
# Everything that changes from step to step does.
CHANGING: dict[str, Any] = {
    "LEARNING_RATE_DECAY_TYPE": "polynomial",
    "INITIAL_LEARNING_RATE": 1e-2,
    "BATCHNORM_DECAY_WARMUP": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "stock": {"NUM_STACKS": 2},
    "torch's modules": {"FUSED": "off"},
    "our operators": {"FUSED": "on"},
    "our operators, bf16": {"FUSED": "on", "PRECISION": "bf16"},  # on a GPU whole residuals, too
    "momentum": {"RMSPROP_MOMENTUM": 0.9},
    "clipped": {"GRADIENT_CLIP_NORM": 1.0},
    "adamw": {"OPTIMIZER": "adamw"},
    "bf16": {"PRECISION": "bf16"},
    "fp16": {"PRECISION": "fp16"},
    "fp16, adamw": {"PRECISION": "fp16", "OPTIMIZER": "adamw"},
    "recompute": {"RECOMPUTE": "stack", "FUSED": "on", "NUM_STACKS": 2},
    "frozen": {
        "INIT": {"WEIGHTS": "w", "FREEZE": ["stem", "stack 0 body"]},
        "PRECISION": "bf16",
        "NUM_STACKS": 2,
    },
}
variants = pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)


def make_step(device: torch.device = CPU, **keys: Any) -> TrainStep:
    config = Config(**{**KEYS, **keys})
    return TrainStep(config, build_model(config).to(device), device)


def taped(monkeypatch: pytest.MonkeyPatch, **keys: Any) -> TrainStep:
    """A step that replays, with a tape in place of a CUDA graph."""
    monkeypatch.setattr(graph_module, "capture", record)
    made = make_step(**keys)
    monkeypatch.setattr(made, "_captures", True)
    return made


def eager_step(monkeypatch: pytest.MonkeyPatch, **keys: Any) -> TrainStep:
    """A step that Python runs anew each time.

    It is recorded as well, though never replayed: autograd adds gradients in place where nobody
    else holds them, which may change strides and so the kernels of torch's own modules.
    """
    made = make_step(**keys)
    work = made._device_work
    monkeypatch.setattr(made, "_device_work", lambda *given: Tape(lambda: work(*given)).result)
    return made


def train(step: TrainStep, count: int = 4) -> list[torch.Tensor]:
    """Losses `(stacks, batch)` of so many steps, each on another batch."""
    return [step(batch(n).to(step.device), n).loss.cpu().clone() for n in range(count)]


def equal_state(one: TrainStep, other: TrainStep) -> None:
    assert torch.equal(one.flat.values, other.flat.values)
    assert torch.equal(one.averages, other.averages)
    for got, wanted in zip(
        *(tensors_of(s.optimizer.state_dict()) for s in (one, other)), strict=True
    ):
        assert torch.equal(got, wanted)
    assert one.scaler.state_dict() == other.scaler.state_dict()


@pytest.mark.slow
@variants
def test_replayed_steps_are_those_that_python_runs(monkeypatch, keys) -> None:
    """Bit for bit: nothing that changes is captured as a number, and the runs before the capture
    leave no trace."""
    eager = eager_step(monkeypatch, **CHANGING, **keys)
    replayed = taped(monkeypatch, **CHANGING, **keys)
    for got, wanted in zip(train(replayed), train(eager), strict=True):
        assert torch.equal(got, wanted)
    equal_state(replayed, eager)


def test_the_tape_sees_a_number_that_was_captured(monkeypatch) -> None:
    """The test above fails where something that changes does not come from the device."""
    keys = {**CHANGING, "FUSED": "on"}
    eager, replayed = make_step(**keys), taped(monkeypatch, **keys)
    statistics, apply = replayed._statistics, replayed._statistics.apply

    def apply_a_number(found, average):
        weight, statistics._weight = statistics._weight, torch.tensor(1 - statistics._decay)
        apply(found, average)
        statistics._weight = weight

    monkeypatch.setattr(statistics, "apply", apply_a_number)
    for got, wanted in zip(train(replayed), train(eager), strict=True):
        assert torch.equal(got, wanted)  # a training forward reads no moving statistics
    assert not torch.equal(replayed.flat.statistics, eager.flat.statistics)


def test_a_host_read_cannot_be_captured(monkeypatch) -> None:
    replayed = taped(monkeypatch)
    monkeypatch.setattr(
        step_module, "heatmap_loss", lambda p, *_, **__: p.sum((2, 3, 4)) * p.max().item()
    )
    with pytest.raises(AssertionError, match="cannot be captured"):
        replayed(batch(0), 0)


@pytest.mark.slow
def test_work_is_captured_once_for_a_shape(monkeypatch) -> None:
    captured: list[object] = []

    def capture(work, device):
        captured.append(work)
        return record(work, device)

    eager, replayed = make_step(FUSED="on"), taped(monkeypatch, FUSED="on")
    monkeypatch.setattr(graph_module, "capture", capture)
    for n, size in enumerate((4, 4, 3, 4)):
        wanted = eager(batch(n, size), n).loss
        assert torch.equal(replayed(batch(n, size), n).loss, wanted)
    assert len(captured) == 3
    equal_state(replayed, eager)


def test_a_capture_that_fails_leaves_no_trace(monkeypatch) -> None:
    def fail(work, device):
        work()
        raise torch.OutOfMemoryError("full")

    eager, replayed = make_step(FUSED="on"), taped(monkeypatch, FUSED="on")
    monkeypatch.setattr(graph_module, "capture", fail)
    with pytest.raises(torch.OutOfMemoryError):
        replayed(batch(0), 0)
    monkeypatch.setattr(graph_module, "capture", record)
    for got, wanted in zip(train(replayed), train(eager), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("fused", ["on", "off", "auto"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_rounded_at_once_are_those_of_autocast(monkeypatch, fused, precision) -> None:
    keys = {"FUSED": fused, "PRECISION": precision}
    at_once, one_by_one = (eager_step(monkeypatch, **keys) for _ in range(2))
    monkeypatch.setattr(one_by_one, "_half", None)
    for got, wanted in zip(train(at_once), train(one_by_one), strict=True):
        assert torch.equal(got, wanted)
    equal_state(at_once, one_by_one)
    names = [name for name, _ in at_once.model.named_parameters()]
    assert names == [name for name, _ in one_by_one.model.named_parameters()]
    assert all(p.dtype == torch.float32 for p in at_once.model.parameters())


def test_weights_are_those_of_the_network_after_a_step_that_fails(monkeypatch) -> None:
    step = make_step(PRECISION="bf16")
    parameters = list(step.model.parameters())
    monkeypatch.setattr(step.model.stacks[-1].heatmap, "forward", lambda x: x.no_such_thing)
    with pytest.raises(AttributeError, match="no_such_thing"):
        step(batch(0), 0)
    assert all(p is q for p, q in zip(step.model.parameters(), parameters, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fused", ["on", "off"])
def test_maps_made_again_change_nothing(fused: str) -> None:
    keys = {"FUSED": fused, "NUM_STACKS": 2}
    plain, again = make_step(**keys), make_step(**keys, RECOMPUTE="stack")
    for got, wanted in zip(train(again), train(plain), strict=True):
        assert torch.equal(got, wanted)
    equal_state(again, plain)


@pytest.mark.slow
def test_compiled_steps_agree(monkeypatch) -> None:
    """What torch.compile is given traces whole, and once: no number of a step is part of it.

    inductor's own code is the business of its makers, and takes minutes to compile."""
    traces: list[int] = []
    real = torch.compile

    def compile_without_inductor(function, **options):
        def backend(graph, inputs):
            traces.append(len(inputs))
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        options.pop("mode")
        return real(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_without_inductor)
    keys = {"NUM_STACKS": 1, "BATCHNORM_DECAY_WARMUP": True}
    eager, compiled = make_step(**keys, FUSED="off"), make_step(**keys, STEP="compile")
    for got, wanted in zip(train(compiled), train(eager), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    statistics = (s.flat.statistics for s in (compiled, eager))
    torch.testing.assert_close(*statistics, rtol=5e-2, atol=1e-2)
    assert len(traces) == 1


def test_modes() -> None:
    cuda = torch.device("cuda")
    assert choose_mode(Config(), CPU).name == "eager"
    assert choose_mode(Config(), cuda).name == "graph"
    assert choose_mode(Config(STEP="compile"), CPU).name == "compile"
    assert choose_mode(Config(STEP="eager"), cuda).name == "eager"
    with pytest.raises(EnvironmentFault, match="STEP: graph, but the device is cpu"):
        choose_mode(Config(STEP="graph"), CPU)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """After some times, memory of the same sizes costs no page faults."""
    code = (
        "import resource, torch; from fasthg.runtime.process import keep_freed_memory\n"
        "assert keep_freed_memory()\n"
        "for _ in range(8):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    maps = [torch.ones(40 << 18) for _ in range(4)]; del maps\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *_, last = map(int, done.stdout.split())
    assert last < first / 100


def test_a_feeder_hands_on_what_the_loader_gives() -> None:
    given = [batch(n) for n in range(3)]
    feeder = Prefetcher(iter(given), CPU)
    assert [b is g for b, g in zip(feeder, given, strict=True)] == [True] * 3
    assert feeder.waited >= 0
    with pytest.raises(ConfigError, match="why"):
        next(Prefetcher(failing(), CPU))


def failing():
    raise ConfigError("why")
    yield


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnGpu:
    """The graph itself, its capture, and copies that overlap with it."""

    @variants
    def test_a_graph_gives_the_losses_of_eager_steps(self, monkeypatch, keys) -> None:
        cuda = torch.device("cuda")
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        # A library may pick another algorithm, which sums in another order, and at a large rate
        # that grows from step to step.
        keys = {**CHANGING, "INITIAL_LEARNING_RATE": 1e-6, "END_LEARNING_RATE": 0.0, **keys}
        eager, graph = (make_step(cuda, STEP=mode, **keys) for mode in ("eager", "graph"))
        close = {"rtol": 2e-2 if "PRECISION" in keys else 1e-3, "atol": 1e-3}
        for got, wanted in zip(train(graph), train(eager), strict=True):
            torch.testing.assert_close(got, wanted, **close)
        torch.testing.assert_close(graph.flat.values, eager.flat.values, rtol=2e-2, atol=2e-3)
        # The weights hardly move at that rate, whatever the gradient is.
        apart = (graph.flat.gradient - eager.flat.gradient).norm() / eager.flat.gradient.norm()
        assert apart < (5e-2 if "PRECISION" in keys else 1e-2)
        assert graph._replayed.captured is not None

    def test_batches_arrive_whole_while_steps_run(self) -> None:
        cuda = torch.device("cuda")
        given = [batch(n) for n in range(8)]
        seen = []
        for fed in Prefetcher(iter(given), cuda):
            torch.cuda._sleep(5_000_000)
            seen.append((fed.images.clone(), fed.keypoints.clone()))
        for (images, keypoints), wanted in zip(seen, given, strict=True):
            assert torch.equal(images.cpu(), wanted.images)
            assert torch.equal(keypoints.cpu(), wanted.keypoints)

    def test_a_step_does_not_wait_for_the_device(self) -> None:
        cuda = torch.device("cuda")
        graph = make_step(cuda)
        given = batch(0).to(cuda)
        graph(given, 0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            graph(given, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")

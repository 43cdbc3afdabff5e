"""Fine-tuning: what a network takes from given weights, and what stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_batch import batch
from rich.console import Console
from saved_activations import saved_bytes
from tiny_run import result, run, tiny
from torch import Tensor

from fasthg.config import Config
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import ConfigError, DataError
from fasthg.model import build_model
from fasthg.runs.checkpoint import load_weights, save_weights
from fasthg.runs.weights import weights_metadata
from fasthg.training.finetune import Start, starting_weights
from fasthg.training.profile import dry_run
from fasthg.training.step import TrainStep

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    **{"NUM_STACKS": 2, "FEATURES": 8, "STEM_FEATURES": 4, "INPUT_SIZE": 64, "HEATMAP_SIZE": 16},
    **{"PRECISION": "fp32", "INITIAL_LEARNING_RATE": 1e-2, "BATCHNORM_DECAY_WARMUP": True},
}
FIVE = ("base of tail", "left ear", "nose", "right ear", "tail tip")
FIVE_PARTS = {
    **{"NUM_PARTS": 5, "NAMES": FIVE, "LEFT_RIGHT_PAIRS": [[1, 3]]},
    **{"SIGMAS": [1.0] * 5},
}


def small(path: Path | None = None, freeze: Any = (), **keys: Any) -> Config:
    init = {"WEIGHTS": None if path is None else str(path), "FREEZE": freeze}
    return Config(**{**SMALL, **keys}, INIT=init)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a network of 2 stacks and 7 parts, no two values alike."""
    config = small(RANDOM_SEED=9)
    state = build_model(config).state_dict()
    generator = torch.Generator().manual_seed(1)
    for tensor in state.values():
        tensor.add_(torch.rand(tensor.shape, generator=generator) / 10)
    save_weights(tmp_path / "w.safetensors", state, weights_metadata(config, 70, 1.0))
    return tmp_path / "w.safetensors"


def start_of(config: Config) -> Start:
    found = starting_weights(config)
    assert found is not None
    return found


def is_frozen(name: str, freeze: tuple[str, ...]) -> bool:
    """Independently of the code under test."""
    first, *rest = name.split(".")
    if first == "stem":
        return "stem" in freeze
    stack, module = f"stack {rest[0]}", rest[1]
    body = f"{stack} body" in freeze and module in ("hourglass", "residual", "features")
    return body or stack in freeze


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freeze", "keys"),
    [
        (("stem", "stack 0"), {}),
        (("stack 0",), {"FUSED": "on"}),
        (("stem", "stack 1 body"), {"PRECISION": "bf16", "RMSPROP_MOMENTUM": 0.9}),
        (("stack 0 body", "stack 0", "stack 1"), {"OPTIMIZER": "adamw", "GRADIENT_CLIP_NORM": 1}),
        (("stem", "stack 0 body", "stack 1 body"), {"RECOMPUTE": "stack"}),
        ((), {}),
    ],
)
def test_what_is_frozen_keeps_its_bits_and_all_else_moves(weights, freeze, keys) -> None:
    config = small(weights, freeze, **keys)
    step = TrainStep(config, build_model(config), CPU)
    step.start_from(start_of(config).tensors)
    given, _ = load_weights(weights)
    assert all(torch.equal(t, given[n]) for n, t in step.model.state_dict().items())
    for n in range(2):
        assert torch.isfinite(step(batch(n, 2), n).loss).all()
    for network in (step.model, step.ema_model()):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, given[name]) == is_frozen(name, freeze), name
    trained = [p for n, p in step.model.named_parameters() if not is_frozen(n, freeze)]
    assert sum(p.numel() for p in trained) <= len(step.flat.weights) == len(step.flat.gradient)
    assert {id(p) for p in step.flat.parameters} == {id(p) for p in trained}


def test_gradients_reach_through_a_frozen_stack(weights) -> None:
    """Those of torch's own modules, its batch norms in inference, are the reference."""
    gradients = []
    for fused in ("on", "off"):
        config = small(weights, ["stack 0"], FUSED=fused)
        step = TrainStep(config, build_model(config), CPU)
        step.start_from(start_of(config).tensors)
        loss = step._forward(*(getattr(batch(0), n) for n in ("images", "keypoints")), *rest(0))
        gradients.append(torch.autograd.grad(loss.sum(), step.model.stem.conv.conv.weight)[0])
        assert not step.model.stacks[0].residual.training and step.model.stacks[1].training
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))
    assert gradients[1].abs().max() > 0


def rest(number: int) -> tuple[Tensor, Tensor]:
    return batch(number).visibility, batch(number).sigmas


def test_parts_of_the_same_name_keep_their_heatmaps(weights) -> None:
    config = small(weights, ["stack 0 body"], PARTS=FIVE_PARTS)
    start, old = start_of(config), load_weights(weights)[0]
    model = build_model(config)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert start.new_parts == ["tail tip"] and start.step == 70
    model.load_state_dict(start.tensors)
    before = build_model(small())
    before.load_state_dict(old)
    names = list(small().PARTS.NAMES)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        ours, its = model.eval()(images)[0], before.eval()(images)[0]
    for row, part in enumerate(FIVE[:-1]):
        torch.testing.assert_close(ours[:, row], its[:, names.index(part)])
        for name in ("stacks.0.remap_heatmap.weight",):
            assert torch.equal(start.tensors[name][:, row], old[name][:, names.index(part)])
    for name in ("stacks.0.heatmap.weight", "stacks.1.heatmap.bias"):
        assert torch.equal(start.tensors[name][4], fresh[name][4])
    name = "stacks.0.remap_heatmap.weight"
    assert torch.equal(start.tensors[name][:, 4], fresh[name][:, 4])
    assert torch.equal(start.tensors["stacks.0.remap_heatmap.bias"], old[name[:-6] + "bias"])
    text = "\n".join(start.lines())
    assert "init     stack 0: 178 tensors taken; body frozen\n" in text
    assert "parts it does not know, random: tail tip" in text
    assert "not used: part top of neck, part right rear knee, part left rear knee" in text


@pytest.mark.slow
def test_stacks_that_both_have_are_taken(weights) -> None:
    old = load_weights(weights)[0]
    more = start_of(small(weights, ["stem", "stack 1 body"], NUM_STACKS=3))
    assert more.taken == {"stem": 44, "stack 0": 178, "stack 1": 174, "stack 2": 0}
    assert more.anew["stack 1"] == ["remap_features", "remap_heatmap"]
    assert all(torch.equal(more.tensors[name], tensor) for name, tensor in old.items())
    fewer = start_of(small(weights, NUM_STACKS=1))
    assert fewer.unused == ["stack 0 remap_features", "stack 0 remap_heatmap", "stack 1"]
    assert all(torch.equal(tensor, old[name]) for name, tensor in fewer.tensors.items())


@pytest.mark.parametrize(
    ("freeze", "keys", "said"),
    [
        ((), {"FEATURES": 16}, "has FEATURES 8, the configuration 16; set FEATURES=8"),
        ((), {"STEM_FEATURES": 8}, "has STEM_FEATURES 4, .*; set STEM_FEATURES=4"),
        (["stack 2"], {"NUM_STACKS": 3}, "has no stack 2, which would stay random; leave it out"),
        (["stack 1"], {"NUM_STACKS": 3}, "has no remap_features, remap_heatmap in stack 1"),
        (["stack 0"], {"PARTS": FIVE_PARTS}, "does not know tail tip.*; write stack 0 body"),
    ],
)
def test_weights_that_do_not_fit(weights, freeze, keys, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        start_of(small(weights, freeze, **keys))


def test_files_that_are_no_weights(tmp_path: Path, weights: Path) -> None:
    for name, content in (("none", None), ("text", b"words"), ("cut", weights.read_bytes()[:999])):
        path = tmp_path / f"{name}.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            start_of(small(path))
    with pytest.raises(DataError, match="not a run folder"):
        start_of(small(tmp_path))
    tensors, metadata = load_weights(weights)
    other = tmp_path / "other.safetensors"
    save_weights(other, tensors, {})
    with pytest.raises(DataError, match="does not say what its parts are"):
        start_of(small(other))
    save_weights(other, {"a": torch.zeros(1)}, metadata)
    with pytest.raises(DataError, match="no tensor of this network"):
        start_of(small(other))
    save_weights(other, {**tensors, "stem.conv.bn.bias": torch.zeros(3)}, metadata)
    with pytest.raises(DataError, match=r"stem\.conv\.bn\.bias is \(3,\) instead of \(4,\)"):
        start_of(small(other))


@pytest.mark.parametrize(
    ("init", "said"),
    [
        ({"FREEZE": ["stem"]}, "random weights would never learn"),
        ({"WEIGHTS": "w", "FREEZE": ["stack 2"]}, "no stack 2; NUM_STACKS is 2; stacks run"),
        ({"WEIGHTS": "w", "FREEZE": ["Stem", "stack 0", "stack  1"]}, "nothing is left to train"),
        ({"WEIGHTS": "w", "FREEZE": ["head"]}, "write stem, stack 0 or stack 0 body"),
        ({"WEIGHTS": "w", "FREEZE": ["stack 00"]}, "write stem, stack 0 or stack 0 body"),
    ],
)
def test_keys_that_contradict(init, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**SMALL, INIT=init)


def test_frozen_blocks_take_less_memory(weights) -> None:
    """No gradients, optimiser state and maps for them."""
    whole, part = (
        TrainStep(config, build_model(config), CPU)
        for config in (small(weights, f) for f in ((), ("stem", "stack 0")))
    )
    for name in ("gradient", "weights"):
        assert len(getattr(part.flat, name)) < 0.6 * len(getattr(whole.flat, name))
    assert len(part.optimizer.squares) == len(part.flat.weights)
    assert saved_bytes(part, batch(0)) < 0.7 * saved_bytes(whole, batch(0))


@pytest.mark.slow
def test_a_training_goes_on_from_a_run(tmp_path: Path) -> None:
    """Bit for bit after an interruption, when its weights may be gone."""
    mice, runs = tmp_path / "mice", tmp_path / "runs"
    write_dataset(mice, seed=5, frames={"train": 4}, size=(160, 128))
    # Without validation: the newest weights count as the best.
    keys: dict[str, Any] = {"LOADER": "portable", "DATA": {"TRAIN": str(mice / "train*")}}
    keys |= {"NUM_TRAIN_ITERATIONS": 2, "LOG_EVERY_N_STEPS": 1, "VALIDATE_EVERY_N_STEPS": 2}
    first = run(tiny(mice, runs, RUN_NAME="first", **keys)).run
    keys |= {"NUM_TRAIN_ITERATIONS": 4, "INIT": {"WEIGHTS": str(first.path), "FREEZE": ["stem"]}}
    whole = run(tiny(mice, runs, **keys)).run
    given, tuned = load_weights(first.best)[0], load_weights(whole.best)[0]
    for name in given:
        assert torch.equal(given[name], tuned[name]) == name.startswith("stem."), name

    assert dry_run(tiny(mice, runs, **keys), Console(quiet=True)) is not None
    part = run(tiny(mice, runs, **{**keys, "NUM_TRAIN_ITERATIONS": 2})).run
    with pytest.raises(ConfigError, match="set FEATURES=8"):
        run(tiny(mice, runs, **{**keys, "RUN_NAME": "other", "FEATURES": 16}))
    assert not (runs / "other").exists()
    first.best.unlink()
    settings = part.config(["NUM_TRAIN_ITERATIONS=4"])
    assert Path(settings.INIT.WEIGHTS or "").is_absolute()
    with pytest.raises(DataError, match=r"its INIT\.FREEZE is \['stem'\]"):
        run(part.config(["NUM_TRAIN_ITERATIONS=4", "INIT.FREEZE=[stack 0]"]), resume=part.path)
    resumed = run(settings, resume=part.path).run
    assert result(resumed) == result(whole)

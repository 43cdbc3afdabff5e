"""Fine-tuning: what of given weights a new network starts from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fasthg.config import Config
from fasthg.config.presets import find_weights
from fasthg.errors import ConfigError, DataError
from fasthg.model import build_model
from fasthg.model.hourglass import block_modules
from fasthg.runs.checkpoint import load_weights
from fasthg.runs.weights import trained

# Which dimension of a tensor has an entry for each part.
_OF_PARTS = {"heatmap.weight": 0, "heatmap.bias": 0, "remap_heatmap.weight": 1}
_STACK = re.compile(r"stacks\.(\d+)\.(.+)")


@dataclass
class Start:
    """What a network starts from."""

    path: Path
    """The weights file."""
    step: int
    """Of its training."""
    tensors: dict[str, Tensor]
    """A whole `state_dict`; what the file lacks is as it was initialised."""
    taken: dict[str, int] = field(default_factory=dict)
    """Block (`stem`, `stack N`) -> tensors that are the file's."""
    anew: dict[str, list[str]] = field(default_factory=dict)
    """Block -> modules that the file lacks."""
    unused: list[str] = field(default_factory=list)
    """What of the file has no place in the network."""
    new_parts: list[str] = field(default_factory=list)
    """Names of PARTS that the file does not know."""
    frozen: Sequence[str] = ()
    """INIT.FREEZE."""

    def lines(self) -> list[str]:
        """For a person."""
        found = [f"init     {self.path} (step {self.step})"]
        for block, count in self.taken.items():
            missing = ", ".join(self.anew.get(block, []))
            text = f"{count} tensors taken" if count else "not in it, random"
            text += f"; random: {missing}" if count and missing else ""
            text += "; frozen" if block in self.frozen else ""
            text += "; body frozen" if f"{block} body" in self.frozen else ""
            found.append(f"init     {block}: {text}")
        if self.new_parts:
            found.append(f"init     parts it does not know, random: {', '.join(self.new_parts)}")
        if self.unused:
            found.append(f"init     not used: {', '.join(self.unused)}")
        return found


def starting_weights(config: Config) -> Start | None:
    """The weights that INIT.WEIGHTS gives a network; None where it is null.

    Tensors are matched by name, heatmap channels by the name of their part: the heatmap
    convolutions' outputs and the inputs of what remaps heatmaps.

    Args:
        config: of the network.

    Raises:
        ConfigError: FEATURES or STEM_FEATURES are not those of the file, or FREEZE names a block
            that it has not, or not whole.
        DataError: the file is missing, damaged, or of another network.
    """
    if config.INIT.WEIGHTS is None:
        return None
    path = trained(find_weights(config.INIT.WEIGHTS)).best
    given, metadata = load_weights(path)
    try:
        parts = list(json.loads(metadata["parts"]))
        step = int(json.loads(metadata.get("step", "0")) or 0)
    except (KeyError, ValueError, TypeError):
        raise DataError(
            f"{path}: does not say what its parts are; give weights that fasthg wrote"
        ) from None
    fresh = build_model(config).state_dict()
    start = Start(path, step, dict(fresh), frozen=config.INIT.FREEZE)
    names = list(config.PARTS.NAMES)
    shared = [(names.index(part), i) for i, part in enumerate(parts) if part in names]
    start.new_parts = [name for name in names if name not in parts]
    _check_sizes(path, given, start.tensors)
    for name, tensor in start.tensors.items():
        block, inner = _block(name)
        start.taken.setdefault(block, 0)
        if name not in given:
            module = inner.partition(".")[0]
            modules = start.anew.setdefault(block, [])
            if module not in modules:
                modules.append(module)
            continue
        value, along = given[name], _OF_PARTS.get(inner)
        wanted = list(tensor.shape)
        if along is not None:
            wanted[along] = len(parts)
        if list(value.shape) != wanted:
            raise DataError(
                f"{path}: {name} is {tuple(value.shape)} instead of {tuple(wanted)}; "
                "give weights that fasthg wrote"
            )
        if along is None:
            tensor = value
        elif shared:
            ours, its = (torch.tensor(rows) for rows in zip(*shared, strict=True))
            tensor = tensor.index_copy(along, ours, value.index_select(along, its))
        start.tensors[name] = tensor
        start.taken[block] += 1
    if not any(start.taken.values()):
        raise DataError(f"{path}: no tensor of this network is in it; give a run's best weights")
    start.unused = list(dict.fromkeys(_what(name) for name in given if name not in fresh))
    start.unused += [f"part {part}" for part in parts if part not in names]
    for block in config.INIT.FREEZE:
        _check_whole(block, start, given, fresh)
    return start


def _block(name: str) -> tuple[str, str]:
    """The block of a tensor, and its name in there."""
    found = _STACK.fullmatch(name)
    return (f"stack {found[1]}", found[2]) if found else ("stem", name.removeprefix("stem."))


def _what(name: str) -> str:
    block, inner = _block(name)
    return f"{block} {inner.partition('.')[0]}" if inner.startswith("remap") else block


def _check_sizes(path: Path, given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    for key, name in (
        ("STEM_FEATURES", "stem.conv.conv.weight"),
        ("FEATURES", "stacks.0.features.conv.weight"),
    ):
        # What is no weight of a convolution at all is refused with the other shapes.
        if name not in given or given[name].dim() != 4:
            continue
        its, wanted = len(given[name]), len(ours[name])
        if its != wanted:
            raise ConfigError(
                f"INIT.WEIGHTS: {path} has {key} {its}, the configuration {wanted}; set {key}={its}"
            )


def _check_whole(
    block: str, start: Start, given: Mapping[str, Tensor], fresh: Mapping[str, Tensor]
) -> None:
    """Raise ConfigError where something random would be frozen."""
    prefixes = tuple(f"{name}." for name in block_modules(block))
    inside = [name for name in fresh if name.startswith(prefixes)]
    missing = [name for name in inside if name not in given]
    heads = any(_block(name)[1] in _OF_PARTS for name in inside)
    if len(missing) == len(inside):
        what, remedy = f"has no {block}", "leave it out"
    elif missing:
        lacks = dict.fromkeys(_block(name)[1].partition(".")[0] for name in missing)
        what, remedy = f"has no {', '.join(lacks)} in {block}", f"write {block} body"
    elif heads and start.new_parts:
        what, remedy = f"does not know {', '.join(start.new_parts)}", f"write {block} body"
    else:
        return
    raise ConfigError(
        f"INIT.FREEZE: {block}: {start.path} {what}, which would stay random; {remedy}"
    )

"""Import of MARS's TensorFlow checkpoints as fasthg weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fasthg.config import Config, Document, read_document, resolve
from fasthg.errors import ConfigError, DataError
from fasthg.interop.tf_checkpoint import Checkpoint, find_prefix
from fasthg.interop.tf_names import (
    EMA_SUFFIX,
    ROOT,
    load_variables,
    network_keys,
    variable_names,
)
from fasthg.model import StackedHourglass, build_model
from fasthg.runs.checkpoint import save_weights
from fasthg.runs.weights import weights_metadata

_STEP = "global_step"
_NAMED = 4
"""Variables that an error names before it counts the rest."""


@dataclass(frozen=True)
class MappedVariable:
    """A TensorFlow variable and the tensor of the network that holds its values."""

    variable: str
    name: str
    """In the network's `state_dict`."""
    shape: tuple[int, ...]
    """Of that tensor: `(out, in, height, width)` of a convolution's weights."""

    @property
    def block(self) -> str:
        """`stem` or `stack N`, counted from 0."""
        first, second, *_ = self.name.split(".")
        return first if first == "stem" else f"stack {second}"


@dataclass(frozen=True)
class ImportedNetwork:
    """The network of a checkpoint."""

    prefix: Path
    config: Config
    ema: bool
    step: int
    tensors: dict[str, Tensor]
    mapped: list[MappedVariable]
    unused: dict[str, int]
    """Variables of the checkpoint that are not taken: kind -> number."""

    def save(self, path: Path) -> None:
        """Write a weights file in the format of a run's best weights.

        Raises:
            FasthgError: it cannot be written.
        """
        origin = {"checkpoint": self.prefix.name, "values": "ema" if self.ema else "raw"}
        metadata = weights_metadata(self.config, self.step, float("inf"))
        save_weights(path, self.tensors, {**metadata, "imported": json.dumps(origin)})


def read_checkpoint(
    path: Path, config: Path | None, overrides: Sequence[str] = (), *, ema: bool = True
) -> ImportedNetwork:
    """Read a checkpoint of MARS's network.

    Args:
        path: as in `find_prefix`.
        config: its `config_train.yaml`; stock values where None. NUM_STACKS, FEATURES and
            STEM_FEATURES are the checkpoint's where the file does not give them.
        overrides: of the configuration, `KEY=VALUE`.
        ema: take the exponential moving averages, as MARS's evaluation and export do, not the raw
            values.

    Raises:
        ConfigError: the configuration is wrong or of another network.
        DataError: the checkpoint is damaged, or of another network than MARS's.
    """
    checkpoint = Checkpoint(find_prefix(path))
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    sizes = network_keys(shapes)
    if "NUM_STACKS" not in sizes:
        raise DataError(
            f"{checkpoint.index}: none of its {len(checkpoint)} variables is of MARS's pose "
            f"network ({ROOT}/hourglass/...); give a checkpoint of hourglass_pose"
        )
    document = Document({}, {}) if config is None else read_document(config)
    for key in ("NUM_STACKS", "FEATURES", "STEM_FEATURES"):
        if key in sizes:
            document.values.setdefault(key, sizes[key])
    source = "the stock values" if config is None else str(config)
    settings = resolve(document, source, overrides)
    _compare(settings, sizes, checkpoint, source)
    model = build_model(settings)
    names = variable_names(model)
    _check(checkpoint, model, names, ema)
    unused = _unused(checkpoint, names, ema)
    load_variables(model, checkpoint, ema=ema)
    tensors = dict(model.state_dict())
    bad = [v for v, name in names.items() if not torch.isfinite(tensors[name]).all()]
    if bad:
        raise DataError(
            f"{checkpoint.index}: not finite, of a training that diverged: {_some(bad)}; "
            "give an older checkpoint"
        )
    mapped = [
        MappedVariable(name + EMA_SUFFIX if ema else name, target, tuple(tensors[target].shape))
        for name, target in names.items()
    ]
    step = int(checkpoint[_STEP]) if shapes.get(_STEP) == () else 0
    return ImportedNetwork(checkpoint.prefix, settings, ema, step, tensors, mapped, unused)


def _compare(config: Config, sizes: Mapping[str, int], checkpoint: Checkpoint, source: str) -> None:
    """Raise ConfigError where the configuration is of another network than the checkpoint."""
    configured = {
        "NUM_STACKS": config.NUM_STACKS,
        "FEATURES": config.FEATURES,
        "STEM_FEATURES": config.STEM_FEATURES,
        "PARTS.NUM_PARTS": config.PARTS.NUM_PARTS,
    }
    wrong = [key for key, value in sizes.items() if configured[key] != value]
    if wrong:
        settings = " ".join(f"{key}={sizes[key]}" for key in wrong)
        parts = ", with NAMES, SIGMAS and LEFT_RIGHT_PAIRS in the order of its training"
        raise ConfigError(
            f"{checkpoint.index}: has {_list(sizes, wrong)}, and {source} "
            f"{_list(configured, wrong)}; set {settings}"
            f"{parts if 'PARTS.NUM_PARTS' in wrong else ''}"
        )


def _list(values: Mapping[str, int], keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {values[key]}" for key in keys)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check(
    checkpoint: Checkpoint, model: StackedHourglass, names: Mapping[str, str], ema: bool
) -> None:
    """Raise DataError unless exactly the network's variables are there, in its shapes."""
    suffix = EMA_SUFFIX if ema else ""
    missing = [name + suffix for name in names if name + suffix not in checkpoint]
    if ema and len(missing) == len(names):
        raise DataError(f"{checkpoint.index}: holds no moving averages (*{EMA_SUFFIX}); give --raw")
    state = model.state_dict()
    shaped = []
    for name, target in names.items():
        expected = tuple(state[target].shape)
        expected = (*expected[2:], expected[1], expected[0]) if len(expected) == 4 else expected
        entry = checkpoint.entries.get(name + suffix)
        if entry is not None and entry.shape != expected:
            shaped.append(f"{name}{suffix} {_by(entry.shape)} instead of {_by(expected)}")
    surplus = [
        name
        for name in checkpoint
        if name.startswith(f"{ROOT}/") and name not in names and _owner(name) not in names
    ]
    faults = [
        f"{what}: {_some(faulty)}"
        for what, faulty in (("missing", missing), ("surplus", surplus), ("shape", shaped))
        if faulty
    ]
    if faults:
        raise DataError(
            f"{checkpoint.index}: not MARS's network; {'; '.join(faults)}; "
            "give a checkpoint of hourglass_pose and the configuration of its training"
        )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _owner(name: str) -> str:
    """The variable whose slot or average this is."""
    return name.rpartition("/")[0]


def _unused(checkpoint: Checkpoint, names: Mapping[str, str], ema: bool) -> dict[str, int]:
    average = EMA_SUFFIX.strip("/")
    kinds: Counter[str] = Counter()
    for name in checkpoint:
        if name in names:
            kind = "raw values"
        elif _owner(name) in names:
            kind = name.rpartition("/")[2]
            kind = "moving averages" if kind == average else kind
        else:
            kind = name
        if kind not in ("moving averages" if ema else "raw values", _STEP):
            kinds[kind] += 1
    return dict(kinds)

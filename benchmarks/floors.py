"""Reads floors.yaml: how many times as fast fasthg must be, by device, group and provider."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("floors.yaml")
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
Floors = dict[str, dict[str, dict[str, float]]]


def read() -> Floors:
    if importlib.util.find_spec("yaml") is None:
        return {}  # a bare machine with a GPU measures all the same
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def of(floors: Floors, name: str, group: str, device: str) -> dict[str, float]:
    """By provider. A group's own count before its benchmark's, `cpu bf16` before `cpu`."""
    keys = [device]
    if any(key.startswith(f"{device} ") for key in floors):
        from fasthg.runtime.device import choose_precision

        keys.append(f"{device} {PRECISIONS[choose_precision('auto', torch.device(device))]}")
    found: dict[str, float] = {}
    for entry, key in itertools.product((name, group), keys):
        found |= floors.get(key, {}).get(entry, {})
    return found


def below(ratios: dict[str, float], floors: dict[str, float]) -> list[str]:
    """A sentence for each floor that is not reached."""
    return [
        f'fasthg is {ratios[name]:.3g} times as fast as "{name}"; the floor is {floor} '
        f"(benchmarks/{FILE.name})"
        for name, floor in floors.items()
        if name in ratios and ratios[name] < floor
    ]


def unknown(floors: Floors, races: Mapping[str, Any], complete: bool) -> list[str]:
    """What the floors name and no benchmark has. complete: `races` are all benchmarks there are."""
    devices = [f"{a}{b}" for a in ("cpu", "cuda") for b in ("", " fp32", " bf16", " fp16")]
    wrong = [f'no device "{key}"' for key in floors if key not in devices]
    for key, groups in floors.items():
        for group, providers in groups.items():
            race = races.get(group.partition(",")[0])
            if race is None and not complete:
                continue
            if race is None or group not in (race.name, *race.groups()):
                wrong.append(f'{key}: no group "{group}"')
                continue
            others = [name for name in race.providers if name != "fasthg"]
            wrong += [f'{key}: {group}: no provider "{p}"' for p in providers if p not in others]
    return wrong

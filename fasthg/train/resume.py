"""What a saved training state must have in common with the run that goes on from it.

A run goes on bit for bit where batches, order and arithmetic stay (on a GPU, with DETERMINISTIC).
The place in the data is the number of steps done, so whatever decides which images a step sees must
not change; other keys may, and what changed is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fasthg.config import Config
from fasthg.errors import DataError

_PLACES = ("DATA", "INIT", "RUNS_DIR", "RUN_NAME", "MARS_PROJECT")


def resume_fingerprint(
    config: Config,
    data: str,
    validation: str | None,
    device: torch.device,
    means: Mapping[str, str],
    processes: int = 1,
) -> dict[str, Any]:
    """The part of a state that says what it was trained on; plain values.

    Args:
        data, validation: fingerprints of the data.
        means: what was chosen here by keys that say `auto`.
        processes: how many train together, each with BATCH_SIZE.
    """
    gpu = device.type == "cuda"
    return {
        "keys": config.model_dump(mode="json"),
        "optimizer_name": config.OPTIMIZER,
        "batch_size": config.BATCH_SIZE * processes,
        "processes": processes,
        "seed": config.RANDOM_SEED,
        "data": data,
        "validation": validation,
        "machine": {
            **means,
            "device": torch.cuda.get_device_name(device)
            if gpu
            else f"cpu, {torch.backends.cpu.get_cpu_capability()}",
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "processes": processes,
        },
    }


def refuse_another_plan(path: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other data, order or optimiser than those of a state.

    Args:
        path: the state's, for messages.
        state, now: as `resume_fingerprint` makes them, of then and now.

    Raises:
        DataError: they differ.
    """
    if state["optimizer_name"] != now["optimizer_name"]:
        raise DataError(
            f"{path}: its optimiser is {state['optimizer_name']}, the configuration's "
            f"{now['optimizer_name']}; resume with its own or start a new run"
        )
    lost = "and the place in the data would be lost"
    state = {"processes": 1, **state}
    if state["batch_size"] != now["batch_size"] and {state["processes"], now["processes"]} != {1}:
        before, after = (
            f"{s['processes']} x BATCH_SIZE {s['batch_size'] // s['processes']}"
            for s in (state, now)
        )
        raise DataError(
            f"{path}: its steps are of {before} (processes x instances), here of {after}, {lost}; "
            f"resume with {state['batch_size']} instances a step in all"
        )
    for field, key in (("batch_size", "BATCH_SIZE"), ("seed", "RANDOM_SEED")):
        if state[field] != now[field]:
            raise DataError(
                f"{path}: its {key} is {state[field]}, the configuration's {now[field]}, {lost}; "
                f"resume with {key}={state[field]} or start a new run"
            )
    frozen, wanted = (list(s["keys"].get("INIT", {}).get("FREEZE", ())) for s in (state, now))
    if frozen != wanted:
        raise DataError(
            f"{path}: its INIT.FREEZE is {frozen}, the configuration's {wanted}; resume with its "
            "own, or start a new run with INIT.WEIGHTS"
        )
    if state["data"] != now["data"]:
        raise DataError(
            f"{path}: the training data changed since (annotations, images or their order); resume "
            "with DATA.TRAIN as it was or start a new run"
        )


def differences(state: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, one line each: keys of the configuration, then the machine."""
    before, after = state["keys"], now["keys"]
    machine = {"processes": 1, **state["machine"]}
    lines = [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if key not in _PLACES and before.get(key) != after.get(key)
    ]
    return lines + [
        f"{name}: {machine.get(name)} -> {value}; not bit for bit the same from here on"
        for name, value in now["machine"].items()
        if machine.get(name) != value
    ]

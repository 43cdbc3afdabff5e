"""Which saved training state a run resumes from, and what must not have changed since.

A resumed run has the same bits as one that was never interrupted where batches, their order and
the arithmetic stay (on a GPU, with DETERMINISTIC). The place in the data is the number of steps
done, so whatever decides which images a step sees must not change; other keys may, and a resumed
run prints what changed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fasthg.config import Config
from fasthg.errors import DataError
from fasthg.files import write_text
from fasthg.runs.checkpoint import load_newest, load_state, load_weights
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.distributed import ProcessGroup

_PLACES = ("DATA", "INIT", "RUNS_DIR", "RUN_NAME", "MARS_PROJECT")


def resume_fingerprint(
    config: Config,
    data: str,
    validation: str | None,
    device: torch.device,
    choices: Mapping[str, str],
    processes: int = 1,
) -> dict[str, Any]:
    """What a training state was trained with; plain values, saved in the state.

    Args:
        data, validation: fingerprints of the splits.
        choices: loader, precision and step mode that keys set to `auto` chose on this machine.
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
            **choices,
            "device": torch.cuda.get_device_name(device)
            if gpu
            else f"cpu, {torch.backends.cpu.get_cpu_capability()}",
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "processes": processes,
        },
    }


def check_resumable(path: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that data, their order and the optimiser are those of the saved state.

    Args:
        path: of the state, for messages.
        state, now: `resume_fingerprint` of the saved and of this run.

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
        saved, ours = (
            f"{s['processes']} x BATCH_SIZE {s['batch_size'] // s['processes']}"
            for s in (state, now)
        )
        raise DataError(
            f"{path}: its steps are of {saved} (processes x instances), here of {ours}, {lost}; "
            f"resume with {state['batch_size']} instances a step in all"
        )
    for field, key in (("batch_size", "BATCH_SIZE"), ("seed", "RANDOM_SEED")):
        if state[field] != now[field]:
            raise DataError(
                f"{path}: its {key} is {state[field]}, the configuration's {now[field]}, {lost}; "
                f"resume with {key}={state[field]} or start a new run"
            )
    before, after = (list(s["keys"].get("INIT", {}).get("FREEZE", ())) for s in (state, now))
    if before != after:
        raise DataError(
            f"{path}: its INIT.FREEZE is {before}, the configuration's {after}; resume with its "
            "own, or start a new run with INIT.WEIGHTS"
        )
    if state["data"] != now["data"]:
        raise DataError(
            f"{path}: the training data changed since (annotations, images or their order); resume "
            "with DATA.TRAIN as it was or start a new run"
        )


def differences(state: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed since a state was saved, one line each: configuration keys, then the machine."""
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


def load_newest_on_all_ranks(
    run: RunFolder, group: ProcessGroup
) -> tuple[Path, dict[str, Any], list[DataError]]:
    """`load_newest` of the run; the first rank searches, which renames damaged files, for all.

    Raises:
        NoCheckpoint, DataError: see `load_newest`; on every rank.
    """
    newest: tuple[Path, dict[str, Any], list[DataError]] | None = None
    answer: tuple[Path, list[DataError]] | DataError | None = None
    if group.first:
        try:
            newest = load_newest(run.checkpoints)
            answer = newest[0], newest[2]
        except DataError as error:
            answer = error
    answer = group.gathered(answer)[0]
    if isinstance(answer, DataError):
        raise answer
    assert answer is not None
    path, damaged = answer
    return path, newest[1] if newest is not None else load_state(path), damaged


def best_so_far(
    run: RunFolder, state: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[float, str | None]:
    """The validation error, px, that new weights have to beat, and why it starts at infinity.

    The second value is None where the saved best still counts.
    """
    if state["validation"] != now["validation"]:
        return float("inf"), "changed  DATA.VAL: the best so far does not count any more"
    if run.best.exists():
        try:
            load_weights(run.best)
        except DataError as error:
            return float("inf"), f"{error}; the next ones count as the best"
    return float(state["best"]), None


class RestartNote:
    """A file in RUNS_DIR with the run folder of this torchrun job, for `--max-restarts`.

    torchrun starts all ranks again when one has died; the note names the run to resume. A
    job is identified by its `--rdzv-id` or, without one, by torchrun's process number, which a
    restart keeps.

    Args:
        runs: RUNS_DIR; on several machines the same folder.
        environment: TORCHELASTIC_RUN_ID and TORCHELASTIC_RESTART_COUNT, which torchrun sets.
    """

    def __init__(self, runs: Path, environment: Mapping[str, str] = os.environ) -> None:
        count = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.restarts = int(count) if count.isdecimal() else 0
        job = environment.get("TORCHELASTIC_RUN_ID", "none")
        if job == "none":
            job = f"process-{os.getppid()}"
        self._path = runs / f".restart-{re.sub(r'[^A-Za-z0-9_-]', '-', job)}"

    def read(self) -> Path | None:
        """The run folder of the attempt before; None in the first attempt, or if it had none."""
        if not self.restarts or not self._path.is_file():
            return None
        run = Path(self._path.read_text(encoding="utf-8"))
        return run if run.is_dir() else None

    def write(self, run: Path) -> None:
        """Keep the run folder for later attempts."""
        write_text(self._path, str(run.absolute()))

    def remove(self) -> None:
        """The job is done, or begins and finds the note of an older one."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

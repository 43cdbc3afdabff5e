"""What a training does before its first step: data, run folder, checks across ranks, the summary.

Nothing is written before the data have been opened and checked.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fasthg import metrics
from fasthg.config import Config, dump_config, inert_keys
from fasthg.config.sides import flip_doubts
from fasthg.data.loader import available_cores, loader_choice
from fasthg.data.split import Split, open_split
from fasthg.drawing.palette import part_colours
from fasthg.errors import ConfigError, DataError, EnvironmentFault
from fasthg.model.hourglass import STRIDE
from fasthg.model.layers import HOURGLASS_LEVELS
from fasthg.runs.run_folder import RunFolder
from fasthg.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from fasthg.training.resume import RestartNote
from fasthg.training.step import TrainStep
from fasthg.words import counted


@contextlib.contextmanager
def open_data(
    config: Config, device: torch.device, group: ProcessGroup = SINGLE_PROCESS
) -> Iterator[tuple[Split, Split | None]]:
    """The training split, and the validation split or None; closed at the end.

    group: the processes that train together; each loads its own part of every batch.

    Raises:
        ConfigError, DataError: the data cannot be used, or a key that only the end of a run reads
            is wrong.
    """
    patterns = config.DATA.TRAIN
    if patterns is None:
        raise ConfigError("DATA.TRAIN: not set; give a glob of TFRecord files or MARS_PROJECT")
    part_colours(config.PARTS)
    metrics.oks_sigmas(config.PARTS.NAMES, config.OKS_SIGMAS)
    own = {"rank": group.rank, "ranks": group.size}
    if group.local_size > 1:
        share = max(available_cores() // group.local_size, 1)
        threads = min(config.NUM_INPUT_THREADS, share)
        config = config.model_copy(update={"NUM_INPUT_THREADS": threads})
    with contextlib.ExitStack() as stack:
        train = open_split(config, patterns, device, training=True, **own)
        stack.callback(train.close)
        _check_labelled(train, patterns)
        validation = None
        if config.DATA.VAL is not None:
            validation = open_split(config, config.DATA.VAL, device, training=False, **own)
            stack.callback(validation.close)
            _check_labelled(validation, config.DATA.VAL, "leave DATA.VAL unset or label it")
        yield train, validation


def check_batch_norm(config: Config, processes: int = 1) -> None:
    """Raise ConfigError where the coarsest maps of a batch have one value a channel: it has no
    variance, and torch refuses it.

    Not among the contradictions of a configuration, since prediction does not mind.
    """
    side = config.INPUT_SIZE // (STRIDE << HOURGLASS_LEVELS)
    together = config.BATCH_SIZE * (processes if config.BATCHNORM_SYNC else 1)
    frozen = {block.split()[1] for block in config.INIT.FREEZE if block != "stem"}
    if together * side**2 == 1 and len(frozen) < config.NUM_STACKS:
        raise ConfigError(
            f"BATCH_SIZE: {config.BATCH_SIZE} with INPUT_SIZE {config.INPUT_SIZE} leaves batch "
            "norm one value a channel in the coarsest maps; set BATCH_SIZE: 2 or more"
        )


def _check_labelled(split: Split, patterns: Sequence[str], remedy: str = "label it") -> None:
    """Raise DataError where no part is labelled: nothing can be learnt or measured."""
    if not split.index.visibility.any():
        raise DataError(f"{', '.join(patterns)}: no labelled part; {remedy}")


def never_labelled(split: Split, names: Sequence[str]) -> list[str]:
    """The parts that no animal of a split has a label of."""
    labelled: npt.NDArray[np.bool_] = np.any(split.index.visibility, axis=0)
    return [name for name, there in zip(names, labelled, strict=True) if not there]


def check_same_data(
    group: ProcessGroup, config: Config, train: Split, validation: Split | None
) -> None:
    """Check that all ranks have the configuration and the data of the first.

    Raises:
        DataError: a rank has others.
    """
    if not group.active:
        return
    validation_data = None if validation is None else validation.index.fingerprint()
    own = {
        "configuration": dump_config(config),
        "training data": train.index.fingerprint(),
        "validation data": validation_data,
    }
    every = group.gathered(own)
    for rank, other in enumerate(every):
        for name, value in other.items():
            if value != every[0][name]:
                raise DataError(
                    f"rank {rank} has another {name} than rank 0; give every machine the same files"
                )


def check_same_weights(group: ProcessGroup, values: Tensor) -> None:
    """Check that all ranks begin with the weights of the first: others would drift apart.

    Raises:
        EnvironmentFault: a rank has others.
    """
    if not group.active:
        return
    checksums = group.gathered(zlib.crc32(values.cpu().numpy().data))
    for rank, checksum in enumerate(checksums):
        if checksum != checksums[0]:
            raise EnvironmentFault(
                f"rank {rank} begins with other weights than rank 0; install the same torch "
                "on every machine"
            )


def open_run(
    config: Config,
    source: Path | None,
    stem: str,
    resume: Path | None,
    group: ProcessGroup,
    note: RestartNote | None,
) -> tuple[RunFolder, bool]:
    """The run folder, which the first rank creates or opens for all, and whether to resume in it.

    Raises:
        DataError: `resume` is no run folder, or another rank does not see the folder.
        FasthgError: the folder cannot be made.
    """
    answer = None
    if group.first:
        if resume is None and note is not None:
            resume = note.read()
        run = RunFolder.create(config, source, stem) if resume is None else RunFolder.open(resume)
        if note is not None:
            note.write(run.path)
        answer = run.path, resume is not None
    path, resumed = group.gathered(answer)[0]
    if not group.first and not path.is_dir():
        raise DataError(
            f"{path}: rank 0 made it, rank {group.rank} has none; put RUNS_DIR where "
            "every machine sees it"
        )
    return RunFolder(path), resumed


def describe_training(
    run: RunFolder, train: Split, validation: Split | None, step: TrainStep, group: ProcessGroup
) -> list[str]:
    """Lines about what will be done, with what, and which keys have no effect."""
    config = step.config
    loader, reason = loader_choice(config, step.device)
    parameters = sum(p.numel() for p in step.model.parameters())
    trained = sum(p.numel() for p in step.flat.parameters)
    frozen = f" ({parameters - trained:,} of them frozen)" if trained < parameters else ""
    also = f", {len(validation.index)} for validation" if validation else ""
    lines = [
        f"run      {run.path}",
        f"data     {counted(len(train.index), 'instance')}{also}",
        f"network  {counted(config.NUM_STACKS, 'stack')}, {config.FEATURES} features, "
        f"{parameters:,} weights{frozen}, on {step.device}",
    ]
    if group.active:
        together = "together" if config.BATCHNORM_SYNC else "each for itself"
        lines.append(
            f"ranks    {group.size} processes of BATCH_SIZE {config.BATCH_SIZE}: "
            f"{config.BATCH_SIZE * group.size} instances a step; batch norm {together}"
        )
    lines += [
        f"numbers  {step.precision.name} ({step.precision.reason})",
        f"step     {step.mode.name} ({step.mode.reason})",
        f"loader   {loader} ({reason})",
    ]
    for name, split in (("training", train), ("validation", validation)):
        missing = never_labelled(split, config.PARTS.NAMES) if split else []
        if missing:
            effect = "not learnt" if split is train else "not measured"
            lines.append(
                f"labels   none in the {name} data of {', '.join(missing)}: {effect}; label "
                f"{'it' if len(missing) == 1 else 'them'} or leave out of PARTS"
            )
    lines += [f"flips    {doubt}" for doubt in flip_doubts(config)]
    return lines + [f"no effect: {key}: {why}" for key, why in inert_keys(config)]

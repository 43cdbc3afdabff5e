"""Thin wrapper over torch.distributed: NCCL or gloo for tensors, gloo for decisions of the host.

torchrun starts one process for each GPU. Tensors are reduced by NCCL on GPUs and by gloo on a CPU.
Decisions of the host, such as a stop or a save, go by gloo everywhere: they never wait for a GPU.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fasthg.errors import ConfigError, EnvironmentFault, FasthgError

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Longer than rank 0 takes to index the largest data, or to write the largest checkpoint.
_PATIENCE = datetime.timedelta(minutes=30)


class LostProcess(FasthgError):
    """Another process of this training ended, and what it owed does not come."""


class ProcessGroup:
    """All processes of this training; one alone where nothing else was started.

    The methods that talk have to be called by every process, in the same order.
    """

    rank = 0
    """Number of this process among all."""
    size = 1
    """Number of processes."""
    local_rank = 0
    """Number of this process on its machine."""
    local_size = 1
    """Number of processes on this machine."""
    active = False
    """Whether there are process groups: also for one process, where torchrun started it."""

    @property
    def first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> None:
        """Write the sum over all processes into `tensor`; can be captured in a CUDA graph."""

    def mean(self, tensor: Tensor) -> None:
        """As `sum`, divided by the number of processes."""

    def stacked(self, tensor: Tensor) -> Tensor:
        """`(size, *tensor.shape)`: the tensor of every process, by rank."""
        return tensor[None]

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all processes; on the host."""
        return list(values)

    def added(self, values: Tensor) -> Tensor:
        """The sum of float64 values on the host over all processes."""
        return values

    def gathered(self, value: Any) -> list[Any]:
        """What each process gives, by rank: anything that can be pickled."""
        return [value]

    def close(self) -> None:
        """Leave the others; afterwards each is alone."""


SINGLE_PROCESS = ProcessGroup()


class TorchrunGroup(ProcessGroup):
    """The processes that torchrun started, or whatever sets its variables.

    Args:
        environment: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
        gpus: whether each process takes the GPU of its LOCAL_RANK.

    Raises:
        ConfigError: a variable is missing or no number.
        EnvironmentFault: there are fewer GPUs than processes, or torch cannot talk.
    """

    active = True

    def __init__(self, environment: Mapping[str, str], *, gpus: bool) -> None:
        missing = [name for name in _VARIABLES if name not in environment]
        if missing:
            raise ConfigError(
                f"RANK is set but {', '.join(missing)} not; start the processes with torchrun"
            )
        try:
            self.rank, self.local_rank, self.size, self.local_size = (
                int(environment[name]) for name in _VARIABLES[:4]
            )
        except ValueError as error:
            raise ConfigError(f"{error} among {', '.join(_VARIABLES[:4])}; use torchrun") from None
        if gpus:
            count = torch.cuda.device_count()
            if self.local_rank >= count:
                raise EnvironmentFault(
                    f"{self.local_size} processes on this machine and {count} GPU"
                    f"{'s' if count != 1 else ''}; start torchrun with --nproc-per-node {count}"
                )
            torch.cuda.set_device(self.local_rank)
        if not dist.is_available():
            raise EnvironmentFault("this torch has no torch.distributed; train in one process")
        device = torch.device("cuda", self.local_rank) if gpus else None
        with _told(EnvironmentFault, "the processes do not find each other", "check MASTER_ADDR"):
            store, _, _ = next(dist.rendezvous("env://", self.rank, self.size))
            # torchrun keeps its store when it starts the processes anew, with the addresses of
            # those that are gone.
            attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(
                "nccl" if gpus else "gloo",
                store=dist.PrefixStore(f"attempt-{attempt}", store),
                rank=self.rank,
                world_size=self.size,
                timeout=_PATIENCE,
                device_id=device,
            )
            self._host = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def sum(self, tensor: Tensor) -> None:
        """See `ProcessGroup`."""
        dist.all_reduce(tensor)

    def mean(self, tensor: Tensor) -> None:
        """See `ProcessGroup`."""
        # gloo has no mean of its own.
        dist.all_reduce(tensor)
        tensor.mul_(1.0 / self.size)

    def stacked(self, tensor: Tensor) -> Tensor:
        """See `ProcessGroup`."""
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(every, tensor.contiguous())
        return torch.stack(every)

    def largest(self, *values: float) -> list[float]:
        """See `ProcessGroup`."""
        every = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(every, dist.ReduceOp.MAX, group=self._host)
        return every.tolist()

    def added(self, values: Tensor) -> Tensor:
        """See `ProcessGroup`."""
        values = values.clone()
        dist.all_reduce(values, group=self._host)
        return values

    def gathered(self, value: Any) -> list[Any]:
        """See `ProcessGroup`."""
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, value, group=self._host)
        return every

    def close(self) -> None:
        """See `ProcessGroup`."""
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _told(kind: type[FasthgError], what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise kind(f"{what} ({_cause(error)}); {remedy}") from error


def _cause(error: Exception) -> str:
    """The first sentence of what torch says, less the place in its sources."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or line


def launched() -> bool:
    """Whether torchrun, or whatever sets its variables, started this process."""
    return "RANK" in os.environ


@contextlib.contextmanager
def open_process_group(device: str) -> Iterator[ProcessGroup]:
    """The processes that train together; just this one where nothing else was started.

    Args:
        device: DEVICE.

    Raises:
        LostProcess: another process ended while this one waited for it.
        ConfigError, EnvironmentFault: see `TorchrunGroup`.
    """
    if not launched():
        yield SINGLE_PROCESS
        return
    gpus = device != "cpu" and torch.cuda.is_available()
    group = TorchrunGroup(os.environ, gpus=gpus)
    try:
        yield group
    except RuntimeError as error:
        if _is_lost(error):
            raise LostProcess(
                f"rank {group.rank}: another process of this training ended ({_cause(error)}); "
                "its message says why"
            ) from error
        raise
    finally:
        group.close()


def _is_lost(error: RuntimeError) -> bool:
    """Whether a collective broke off."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("gloo", "Gloo", "NCCL", "Connection closed by peer")
    )

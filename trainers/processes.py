"""Processes: one training on several devices, each on its share of every batch.

`accelerate launch` or torchrun starts them. Gradients are averaged, so that all hold the same weights.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from bench.base import find_device
from bench.errors import BenchError, MismatchError, TrialError, UsageError, one_line
from trainers.samples import Draw

PATIENCE = timedelta(hours=2)
"""For which the others wait while the first draws or writes; a launcher notices at once if one has ended."""
LEFT_ALONE = (
    "`accelerate launch --cpu` starts one process, whatever --num_processes says; with --multi_gpu in place "
    "of --cpu it starts several, on a CPU too"
)
ENDED = 2
"""Exit code of a process whose error the first one says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among all that train together; alone where no launcher started several."""

    rank: int = 0
    number: int = 1
    local_rank: int = 0
    """Among those of this machine."""

    @property
    def is_first(self) -> bool:
        """The one that writes and says everything."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Each its own GPU, or all the CPU. Raises UsageError where there are more processes than GPUs."""
        found = find_device()
        if self.number == 1:
            return found
        if found.type != "cuda":
            return torch.device("cpu")
        if self.local_rank >= (number := torch.cuda.device_count()):
            raise UsageError(
                f"a process has no GPU: {number} visible, process {self.local_rank + 1} of this machine"
            )
        return torch.device("cuda", self.local_rank)

    def share(self, drawn: Draw) -> Draw:
        """What this process trains on; the processes must divide the samples."""
        return drawn.split(self.number)[self.rank]

    def average(self, *tensors: torch.Tensor) -> None:
        """Each tensor becomes its mean over all processes, the same bits in each. Raises BenchError."""
        for tensor in tensors if self.number > 1 else ():
            with _explained():
                distributed.all_reduce(tensor)
            tensor /= self.number

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each in any process."""
        return [max(values) for values in zip(*self._gathered(numbers), strict=True)]

    def wait(self) -> None:
        """For all others."""
        self._gathered(None)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What goes wrong within, in any process, ends all of them, and the first says it."""
        problem: BenchError | OSError | None = None
        try:
            yield
        except (BenchError, OSError) as error:
            problem = error
        said = self._gathered(problem and str(problem))
        if not any(said):
            return
        if not self.is_first:
            raise SystemExit(ENDED)
        if problem:
            raise problem
        rank = next(rank for rank, text in enumerate(said) if text)
        raise BenchError(f"process {rank + 1} of {self.number}: {said[rank]}")

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises MismatchError if not all processes see the same."""
        for rank, others in enumerate(self._gathered(dict(facts))):
            if differing := [key for key in facts if others[key] != facts[key]]:
                raise MismatchError(
                    f"process {rank + 1} of {self.number} has another {', '.join(differing)}: all must read "
                    "the same files, and see the same output_dir"
                )

    def _gathered(self, value: object) -> list[Any]:
        """Of all processes, by rank."""
        if self.number == 1:
            return [value]
        values: list[Any] = [None] * self.number
        with _explained():
            distributed.all_gather_object(values, value)
        return values


def is_left_alone() -> bool:
    """Whether accelerate was asked for several processes on a CPU, and started one."""
    names = os.environ
    return "MASTER_ADDR" in names and "WORLD_SIZE" not in names and names.get("ACCELERATE_USE_CPU") == "True"


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those that a launcher started with it.

    Raises UsageError if there was none although there are several processes. An error that all of them have
    is said by the first alone.
    """
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        yield Processes()
        return
    backend = "cpu:gloo,cuda:nccl" if find_device().type == "cuda" else "gloo"
    try:
        processes = Processes(
            rank=int(os.environ["RANK"]), number=number, local_rank=int(os.environ["LOCAL_RANK"])
        )
        if processes.device.type == "cuda":
            torch.cuda.set_device(processes.device)
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"WORLD_SIZE is {number}, but the processes do not find each other ({one_line(error)}); start "
            f"them with `accelerate launch --multi_gpu --num_processes {number} -m bench train …`"
        ) from None
    try:
        yield processes
    except TrialError:
        if processes.is_first:
            raise
        raise SystemExit(ENDED) from None
    except KeyboardInterrupt:
        distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise BenchError(
            f"another process of this training has ended ({one_line(error)[:200]}); run the same command to "
            "go on from the last checkpoint"
        ) from None

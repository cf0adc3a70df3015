"""A training loop for small models. On a GPU one whole step is recorded once and replayed as a CUDA graph."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)

WARM_UP_RUNS = 3
STEPS_PER_SYNC = 20
AVERAGE_EVERY = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where to train. `eager` is for machines on which torch.compile does not work."""

    device: torch.device
    eager: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def compiled(self, function: Function) -> Function:
        """The function, or module, through `torch.compile` on a GPU; for one shape of arguments only."""
        if not self.is_gpu or self.eager:
            return function
        fast: Function = torch.compile(function, dynamic=False)  # type: ignore[assignment]
        return fast

    def mixed_precision(self) -> torch.autocast:
        """bfloat16 arithmetic over float32 weights, on a GPU."""
        # A cached cast would be made outside of the graph and never renewed inside of it.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_gpu, cache_enabled=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how fast to learn. The rate falls along a cosine over the given seconds."""

    seconds: float
    learning_rate: float
    max_steps: int | None = None
    weight_decay: float = 0.01
    warm_up_steps: int = 500
    betas: tuple[float, float] = (0.9, 0.99)
    average_decay: float = 0.995
    """Of the averaged weights, every 10 steps: 0.995 averages over about 2,000 steps."""

    def progress(self, seconds: float, step: int) -> float:
        """How much of the training is over, 0 to 1."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(seconds / self.seconds, by_steps))

    def rate(self, progress: float, step: int) -> float:
        """The learning rate at a point of the training."""
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up_steps) * _cosine(progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a training took."""

    steps: int
    seconds: float
    loss: float


class Average:
    """An exponential moving average of parameters, which can stand in for them."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = [p.data for p in parameters]
        self._averages = [p.data.clone() for p in parameters]
        self._decay = decay
        self._updates = 0

    def update(self) -> None:
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 10))
        torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the parameters hold their averages."""
        kept = [p.clone() for p in self._parameters]
        self.load()
        yield
        torch._foreach_copy_(self._parameters, kept)

    def load(self) -> None:
        torch._foreach_copy_(self._parameters, self._averages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshots:
    """Something to do with the averaged weights every so many seconds while they train."""

    every_seconds: float
    save: Callable[[], None]


def train(
    name: str,
    modules: Sequence[nn.Module],
    loss: Callable[[], Tensor],
    schedule: Schedule,
    machine: Machine,
    snapshots: Snapshots | None = None,
) -> Outcome:
    """Minimise `loss`, which draws its own batch, and leave the averaged weights in the modules.

    Everything random in `loss` must come from the device's default generator, and nothing in it may wait
    for the GPU, since its kernels are recorded and replayed.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    rate = torch.zeros((), device=machine.device)
    optimizer = torch.optim.AdamW(
        _groups(parameters, schedule), lr=rate, betas=schedule.betas, fused=True, capturable=machine.is_gpu
    )
    started = time.monotonic()
    step = _recorded(lambda: _step(loss, parameters, optimizer), machine)
    log.info("%s: first steps took %.1f s", name, time.monotonic() - started)
    average = Average(parameters, schedule.average_decay)
    outcome = _loop(name, step, rate, schedule, average, snapshots)
    average.load()
    for module in modules:
        module.eval()
    return outcome


def _loop(
    name: str,
    step: Callable[[], Tensor],
    rate: Tensor,
    schedule: Schedule,
    average: Average,
    snapshots: Snapshots | None,
) -> Outcome:
    started, reported, saved = (time.monotonic(),) * 3
    steps, seconds, value = 0, 0.0, math.nan
    while (progress := schedule.progress(seconds, steps)) < 1:
        rate.fill_(schedule.rate(progress, steps))
        loss = step()
        steps += 1
        if steps % AVERAGE_EVERY == 0:
            average.update()
        if steps % STEPS_PER_SYNC and steps != schedule.max_steps:
            continue
        value = loss.item()
        now = time.monotonic()
        seconds = now - started
        if now - reported > 10:
            reported = now
            left = seconds / max(schedule.progress(seconds, steps), 1e-6) - seconds
            log.info("%s: step %d, loss %.4f, %.0f s left", name, steps, value, left)
        if snapshots and now - saved > snapshots.every_seconds:
            saved = now
            with average.in_place():
                snapshots.save()
    log.info("%s: %d steps in %.0f s, loss %.4f", name, steps, seconds, value)
    return Outcome(steps=steps, seconds=seconds, loss=value)


def _step(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
    optimizer.step()
    return value.detach()


def _recorded(step: Callable[[], Tensor], machine: Machine) -> Callable[[], Tensor]:
    if not machine.is_gpu:
        return step
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()

    def replay() -> Tensor:
        graph.replay()
        return value

    return replay


def _groups(parameters: Sequence[nn.Parameter], schedule: Schedule) -> list[dict[str, object]]:
    """Decay matrices and kernels only: gains and biases have no scale to hold down."""
    decayed = [p for p in parameters if p.ndim > 1]
    free = [p for p in parameters if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))

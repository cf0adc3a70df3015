"""Lanes: threads that compute side by side, each on one core of a processor or in one stream of a GPU.

A small model whose every operation is split among the cores makes them wait for each other thousands of times
a second. Parts of the work that know nothing of each other do not: each lane takes one after the other.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import torch

from bench.base import BaseModel

T = TypeVar("T")
R = TypeVar("R")


class Threads(Protocol):
    """What begins work beside the caller's."""

    def submit(self, work: Callable[..., R], /, *arguments: Any) -> "Future[R]": ...


@contextmanager
def lanes_of(base: BaseModel) -> Iterator[Sequence[BaseModel]]:
    """The base's twins, each with the adapters that are attached to the base now; none where it has none."""
    with ExitStack() as stack:
        for twin in base.twins:
            twin.attached = stack.enter_context(base.attached.lend(twin.unet)) if base.attached else None
            stack.callback(setattr, twin, "attached", None)
        yield base.twins


def each(lanes: Sequence[T], work: Callable[[T, Any], R], items: Iterable[Any]) -> Iterator[R]:
    """What `work(lane, item)` gives, in the order of the items; each lane works on one item at a time."""
    free: SimpleQueue[T] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def on_a_lane(item: Any) -> R:
        lane = free.get()
        try:
            return work(lane, item)
        finally:
            free.put(lane)

    with threads_of(torch.device("cpu"), len(lanes)) as threads:
        for future in [threads.submit(on_a_lane, item) for item in items]:
            yield future.result()


@contextmanager
def threads_of(device: torch.device, number: int | None = None) -> Iterator[Threads]:
    """Threads beside the caller's: on a GPU one, with a stream that does not wait; else one a core.

    At the end all work is done; after an error, what has not begun never does.
    """
    on_gpu = device.type == "cuda"
    stream: Any = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def begin() -> None:
        if on_gpu:
            torch.cuda.set_stream(stream)
        torch.set_num_threads(1)  # of this thread alone

    executor = ThreadPoolExecutor(1 if on_gpu else number or torch.get_num_threads(), initializer=begin)
    try:
        yield executor
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()

"""Lanes: threads that compute side by side, each on one core of a processor; on a GPU a stream beside.

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


class Inline:
    """Does work at once, in the caller's thread; on a GPU in a stream that waits for nothing queued."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def submit(self, work: Callable[..., R], /, *arguments: Any) -> "Future[R]":
        future: Future[R] = Future()
        try:
            with torch.cuda.stream(self._stream):
                future.set_result(work(*arguments))
        except Exception as error:  # raised where its result is asked for, as of a thread
            future.set_exception(error)
        return future


@contextmanager
def threads_of(device: torch.device, number: int | None = None) -> Iterator[Threads]:
    """Threads beside the caller's, one a core. On a GPU none: it has work queued while the host does other.

    At the end all work is done; after an error, what has not begun never does.
    """
    if device.type == "cuda":
        # Before what is queued: it is little, and the host waits for it.
        yield Inline(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-untyped-call]
        return

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread alone

    executor = ThreadPoolExecutor(number or torch.get_num_threads(), initializer=begin)
    try:
        yield executor
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()

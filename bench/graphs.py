"""CUDA graphs: a computation of fixed shapes is launched once, however many kernels it has."""

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

WARM_UPS = 2
"""Libraries choose their kernels, and fused chains are compiled, before the capture."""

Compute = Callable[[], tuple[torch.Tensor, ...]]


def captured(compute: Compute, device: torch.device, pool: Any = None) -> Compute:
    """`compute` as a graph that gives its results in the same tensors at every call; without CUDA, itself.

    It must read all that changes from tensors that stay where they are, and change nothing else. Graphs of
    one `pool` (torch.cuda.graph_pool_handle) share memory, but for what they give.
    """
    if device.type != "cuda":
        return compute
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.empty_cache()  # what the warm-ups held goes to the graph's own pool
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        results = compute()

    def replay() -> tuple[torch.Tensor, ...]:
        graph.replay()
        return results

    return replay


class Aside:
    """Work beside the current stream of a GPU, in a graph a branch: small kernels do not wait for each other.

    Without CUDA, work is done at once.
    """

    LAG = 4
    """Pieces of work whose tensors are held: enough to hide its time, few enough to take little memory."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._held: deque[tuple[Any, tuple[torch.Tensor, ...]]] = deque()
        self._busy = False

    def run(self, work: Callable[[], object], *held: torch.Tensor) -> None:
        """Begin `work` after all that the current stream was given so far.

        It reads `held`, which are not written over before it has, and must leave nothing that it allocated.
        """
        if not held[0].is_cuda or self._is_current():
            work()
            return
        self._held.append((self.begin(work)[1], held))
        while len(self._held) > self.LAG:
            torch.cuda.current_stream().wait_event(self._held.popleft()[0])

    def together(self, work: Callable[[], object], other: Callable[[], T], *held: torch.Tensor) -> T:
        """Both at the same time; what `other` gives, once both are done."""
        if not held[0].is_cuda or self._is_current():
            work()
            return other()
        _, done = self.begin(work)
        result = other()
        torch.cuda.current_stream().wait_event(done)
        return result

    def begin(self, work: Callable[[], T]) -> tuple[T, Any]:
        """On a GPU: what `work` gives, and an event that a stream waits for before it reads that."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._busy = True
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return work(), self._stream.record_event()

    def join(self) -> None:
        """The current stream waits for all work."""
        if self._busy:
            torch.cuda.current_stream().wait_stream(self._stream)
        self._held.clear()
        self._busy = False

    def _is_current(self) -> bool:
        return self._stream is not None and torch.cuda.current_stream() == self._stream


aside = Aside()

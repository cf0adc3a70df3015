"""CUDA graphs: a computation of fixed shapes is launched once, however many kernels it has."""

from collections.abc import Callable
from typing import Any

import torch

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

"""Children on a Ray cluster: an actor a device. Where they are, and what becomes of a node, is Ray's job.

The folders of the run, the cache and the data must be the same on all nodes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from bench.cache import cache_folder
from bench.errors import MissingError, one_line
from bench.workers import OFFLINE, Gone, Load, Pipeline, work

SAME = ("BENCH_CACHE_LIMIT", "HF_HOME", "HF_HUB_CACHE", "OMP_WAIT_POLICY")
"""Variables that a child has as its parent; others are those of its node."""
POLL = 1.0
"""Seconds after which it is seen that an actor has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What a Ray cluster has for us."""

    children: Sequence["Actor"]
    described: str
    """Its devices, in words."""


@contextmanager
def open_cluster(wanted: int | Literal["auto"]) -> Iterator[Cluster]:
    """The cluster that RAY_ADDRESS names or this machine belongs to, or one of this machine alone.

    A child for each GPU, or at most `wanted`; where there is none a child for each node, or the `wanted`
    number. Raises MissingError without Ray.
    """
    try:
        import ray
    except ImportError:
        raise MissingError("--executor ray: Ray is not installed: pip install 'bench[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        resources = ray.cluster_resources()
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        gpus = int(resources.get("GPU", 0))
        if gpus:
            number, need, what = gpus, {"num_gpus": 1}, "GPU"
            number = number if wanted == "auto" else min(number, wanted)
        else:
            number = len(nodes) if wanted == "auto" else wanted
            cpus = max(1, int(resources["CPU"]) // number)
            need, what = {"num_cpus": cpus}, f"{cpus} CPUs"
        yield Cluster(
            children=[Actor(need) for _ in range(number)],
            described=f"ray ({number} x {what} on {len(nodes)} nodes)",
        )
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **options)
    except ConnectionError as error:
        if "RAY_ADDRESS" in os.environ:
            raise MissingError(f"RAY_ADDRESS {os.environ['RAY_ADDRESS']}: {one_line(error)}") from None
        ray.init(**options)


@dataclass(eq=False)
class Actor:
    """A child somewhere in the cluster, see `bench.workers.Child`."""

    need: Mapping[str, float]
    """Of Ray's resources."""
    _actor: Any = field(default=None, init=False)

    def start(self, load: Load) -> None:
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here}  # which does not end with a child's node
        self._told, self._heard = (Bytes(Queue(actor_options=options)) for _ in range(2))
        apart = {"scheduling_strategy": "SPREAD", "max_restarts": 0, "runtime_env": {"env_vars": variables()}}
        actor = ray.remote(_Child).options(**apart, **self.need)
        self._actor = actor.remote()
        self._end = self._actor.work.remote(_Queues(self._told, self._heard), str(Path.cwd()))
        self._told.put((load, self._threads))

    @property
    def _threads(self) -> int:
        return int(self.need.get("num_cpus", torch.get_num_threads()))

    def hear(self) -> tuple[Any, ...]:
        import ray
        from ray.util.queue import Empty

        while True:
            try:
                message: tuple[Any, ...] = self._heard.get(timeout=POLL)
                return message
            except Empty:
                pass
            except Exception as error:  # the queue has ended: with `kill`, or with Ray
                raise Gone(one_line(error)) from None
            ended, _ = ray.wait([self._end], timeout=0)
            if ended and self._heard.empty():
                raise Gone(self._ending())

    def tell(self, answer: Any) -> None:
        with suppress(Exception):  # `hear` says what has become of it
            self._told.put(answer)

    def kill(self) -> None:
        import ray

        if self._actor is not None:
            for actor in (self._actor, self._told.queue.actor, self._heard.queue.actor):
                with suppress(Exception):  # it may have ended, or its node, or Ray itself
                    ray.kill(actor)

    def _ending(self) -> str:
        import ray

        try:
            ray.get(self._end)
        except Exception as error:  # whatever Ray says has become of it
            return f"its actor ended: {one_line(error)[:200]}"
        return "its actor ended"


def variables() -> dict[str, str]:
    """What a child's environment has of ours, whatever its node's has."""
    same = {name: os.environ[name] for name in SAME if name in os.environ}
    return same | OFFLINE | {"BENCH_CACHE": str(cache_folder().absolute())}


class _Child:
    """The actor."""

    def work(self, pipe: Pipeline, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)  # by which the paths of a space are meant
        work(pipe)


@dataclass(frozen=True)
class Bytes:
    """A queue of Ray, whose process need not know what it passes on: else it would load all of ours."""

    queue: Any

    def put(self, message: Any) -> None:
        from ray import cloudpickle

        self.queue.put(cloudpickle.dumps(message))

    def get(self, timeout: float | None = None) -> Any:
        from ray import cloudpickle

        return cloudpickle.loads(self.queue.get(timeout=timeout))

    def empty(self) -> bool:
        return bool(self.queue.empty())


@dataclass(frozen=True)
class _Queues:
    """The child's side of two queues."""

    told: Bytes
    heard: Bytes

    def send(self, message: Any, /) -> None:
        self.heard.put(message)

    def recv(self) -> Any:
        return self.told.get()

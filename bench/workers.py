"""Workers: child processes that train and examine, each on a device of its own.

A worker loads all that a run's space names and works through `Packs`; it writes the files of its trials
itself. The first opens the run for all. What its Packs ask and tell goes over a pipe to the parent, see
`bench/fleet.py`. Messages are pickled, as `multiprocessing` does it: they pass between the processes of one
program alone.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import torch

from bench.config import TrialConfig
from bench.errors import BenchError, DeviceError, one_line
from bench.packs import Packs
from bench.rates import measure
from bench.run import Metadata, Split
from bench.scoring.exam import Exam
from bench.secrets import mask_logs, masked
from bench.space import Sampler

COMMAND = "from bench.workers import main; main()"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
"""With which a worker asks the Hub for nothing and shows it no token: its parent has fetched all."""
PAUSE = 0.2
"""Seconds between two messages that only say how much work was done."""

Load = Callable[["Parent"], tuple[Packs, Callable[[Split], Exam]]]
"""Called in a worker: its Packs, and what gives the Exam of a split."""


@dataclass(frozen=True, slots=True)
class Sheaf:
    """Adapters that are examined side by side: pairs of the file and the folder of its Evaluation."""

    adapters: Sequence[tuple[Path, Path]]

    @property
    def folder(self) -> Path:
        """By which it is known."""
        return self.adapters[0][1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """A rehearsal, for a forecast."""

    folder: Path
    """By which it is known."""
    config: TrialConfig
    sampler: Sampler


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is to be done with the items that follow."""

    split: Split
    """Of the Exam."""
    rungs: tuple[int, ...] = ()
    """At which jobs are scored; none: adapters are examined."""
    most: int | None = None
    """Jobs at a time."""
    rehearses: bool = False
    """The item is an Errand."""


class Pipeline(Protocol):
    """To a child's parent and back."""

    def send(self, message: Any, /) -> None: ...

    def recv(self) -> Any:
        """Raises EOFError when the other side has ended."""


class Gone(Exception):
    """A worker's process has ended, and how."""


class Child(Protocol):
    """A process that works for this one: where it is, and how the two speak."""

    def start(self, load: Load) -> None:
        """Returns at once: it loads for a while."""

    def hear(self) -> tuple[Any, ...]:
        """Its next message: units of work done since the last, a name, details. Raises Gone."""

    def tell(self, answer: Any) -> None:
        """To one that has ended, nothing: `hear` says that it has."""

    def kill(self) -> None: ...


@dataclass(kw_only=True, eq=False)
class Worker:
    """The parent's view of a worker. It asks for an order, then for one item of it after another."""

    number: int
    child: Child
    load: Load
    done: float = 0.0
    """Units of work, see `Packs`."""
    running: dict[Path, Any] = field(default_factory=dict)
    """Jobs, or a Sheaf, that it has and has not ended, by their folders."""
    is_loaded: bool = False
    """Has asked for an order."""
    deaths: int = 0
    """Since it last ended anything."""
    given_up: bool = False
    """Its device is left alone."""
    last_words: str | None = None
    """Why it ends."""
    reason: str = ""
    """Why its last process ended."""

    def start(self) -> None:
        """See `Child.start`."""
        self.is_loaded, self.last_words = False, None
        self.child.start(self.load)

    def hear(self) -> tuple[Any, ...]:
        """See `Child.hear`; what it said last is the reason of Gone."""
        try:
            return self.child.hear()
        except Gone as gone:
            raise Gone(self.last_words or str(gone)) from None

    def tell(self, answer: Any) -> None:
        """See `Child.tell`."""
        self.child.tell(answer)

    def give_up(self) -> None:
        self.given_up = True
        self.running.clear()
        self.kill()

    def kill(self) -> None:
        self.child.kill()


@dataclass(eq=False)
class Process:
    """A child on this machine."""

    number: int
    """Of its device among the visible ones."""
    threads: int = field(default_factory=torch.get_num_threads)
    """Of its processor."""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, load: Load) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for the parent, which ends its workers
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **environment(self.number, os.environ)},
            )
        self.tell((load, self.threads))

    def hear(self) -> tuple[Any, ...]:
        try:
            message: tuple[Any, ...] = self._pipe.recv()
            return message
        except (EOFError, OSError):
            self.kill()
            assert self._process
            raise Gone(_ending(self._process.wait())) from None

    def tell(self, answer: Any) -> None:
        with suppress(OSError):
            self._pipe.send(answer)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


def _ending(code: int) -> str:
    """How a process ended that said nothing."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    return f"its process was ended by {signal.Signals(-code).name}"


def environment(number: int, variables: Mapping[str, str]) -> dict[str, str]:
    """What differs for the worker of a device: it sees that device alone, and finds modules as its parent."""
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    name = names[number].strip() if number < len(names) else str(number)
    return {
        "CUDA_VISIBLE_DEVICES": name,
        "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
        **OFFLINE,
    }


# In the worker


def main() -> None:
    """What `Process.start` runs. Ends with its parent, at once, however that ends."""
    work(Connection(int(sys.argv[1])))


def work(pipe: Pipeline) -> None:
    """What a child does; ends its process."""
    mask_logs()
    try:
        load, threads = pipe.recv()
        torch.set_num_threads(threads)
        parent = Parent(pipe)
        _work(parent, *load(parent))
    except EOFError:
        pass  # the parent ended before it could say what to do
    except BenchError as error:
        pipe.send((0.0, "dying", one_line(error)))
    except Exception as error:
        print(masked(traceback.format_exc()), file=sys.stderr)
        pipe.send((0.0, "dying", f"{type(error).__name__}: {one_line(error)}"))
    os._exit(1)  # whatever state the device is in


def _work(parent: "Parent", packs: Packs, exam_of: Callable[[Split], Exam]) -> None:
    """Until there is an error that is no trial's."""
    packs.listen(
        on_end=lambda job: parent.tell("ended", job.folder, {}),
        on_score=lambda job, epoch, evaluation: parent.tell("scored", job.folder, epoch, evaluation),
        stops=lambda job, epoch: parent.ask("stops", job.folder, epoch),
    )
    while True:
        order = parent.ask("order")
        try:
            if order.split not in packs.exams:
                packs.exams[order.split] = exam_of(order.split)
            _carry_out(parent, packs, order)
        except DeviceError:
            raise
        except BenchError as error:  # no other device would fare better
            parent.tell("broke", error)


def _carry_out(parent: "Parent", packs: Packs, order: Order) -> None:
    items = iter(partial(parent.ask, "take", order), None)
    if order.rungs:
        packs.train(items, order.split, order.rungs, order.most)
        return
    for item in items:
        if order.rehearses:
            parent.tell("rehearsed", measure(packs, item.config, item.sampler))
        else:
            packs.examine(item.adapters, order.split)
        parent.tell("ended", item.folder, packs.refused)


class Parent:
    """The parent as a worker sees it: is asked and told, and shows its progress."""

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._units, self._told, self._status = 0.0, 0.0, ""
        Thread(target=self._listen, daemon=True).start()

    def ask(self, name: str, *details: Any) -> Any:
        self.tell(name, *details)
        return self._answers.get()

    def tell(self, name: str, *details: Any) -> None:
        units, self._units, self._told = self._units, 0.0, time.monotonic()
        self._pipe.send((units, name, *details))

    def _listen(self) -> None:
        try:
            while True:
                self._answers.put(self._pipe.recv())
        finally:
            os._exit(1)  # nobody is left to work for

    def lock(self) -> None:
        """Ask for the run's lock: returns once the parent holds it, or never."""
        self.ask("lock")

    def metadata(self) -> Metadata:
        """Of the run, once another worker has opened it."""
        found: Metadata = self.ask("metadata")
        return found

    def say(self, text: str) -> None:
        """To the user, as it is."""
        self.tell("say", text)

    # Progress

    def total(self, units: float) -> None:
        """Only the parent knows."""

    def best(self, text: str) -> None:
        """Only the parent knows."""

    def advance(self, units: float) -> None:
        self._units += units
        if time.monotonic() > self._told + PAUSE:
            self.tell("worked")

    def status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self.tell("status", text)

    def slots(self, rows: Sequence[str]) -> None:
        self.tell("slots", rows)

    def line(self, text: str) -> None:
        self.tell("line", text)

"""Fleet: several devices at work on one run. The first is this process's own, each other has a worker.

Whoever is free takes the next item. This process alone asks the sampler, prunes, and shows progress: a thread
a worker answers what it asks, in turn with all others. What a worker dies of is tried once more, by a worker.
"""

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Literal

import torch

from bench import run as runs
from bench.base import BaseModel
from bench.errors import one_line
from bench.packs import Job, Packs
from bench.progress import Part, parts_of
from bench.run import Evaluation
from bench.scoring.exam import Exam
from bench.workers import Gone, Load, Order, Sheaf, Worker

MAX_DEATHS = 3
"""Of workers on a device in a row, with nothing ended between: then it is left alone."""
ASKED = {"order", "take", "stops"}
"""What a worker waits for the answer of."""
Item = Job | Sheaf


def count_devices(wanted: int | Literal["auto"], device: torch.device) -> int:
    """How many devices like `device` are used: all visible GPUs, or at most `wanted` of them.

    A processor counts as one, or as the `wanted` number, which share its threads.
    """
    if device.type == "cpu":
        return 1 if wanted == "auto" else wanted
    visible = torch.cuda.device_count() if device.type == "cuda" else 1
    return visible if wanted == "auto" else min(wanted, visible)


@contextmanager
def shared_threads(device: torch.device, num_devices: int) -> Iterator[None]:
    """Where a processor counts as several devices, torch uses the threads of one."""
    threads = torch.get_num_threads()
    if device.type == "cpu" and num_devices > 1:
        torch.set_num_threads(max(1, threads // num_devices))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def on_devices(number: int, packs: Packs, load: Load) -> Iterator["Packs | Fleet"]:
    """What trains and examines on so many devices, `packs` alone on one. No worker outlives it."""
    if number == 1:
        yield packs
        return
    fleet = Fleet(packs, [Worker(number=further, load=load) for further in range(1, number)])
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()


class Fleet:
    """Packs on several devices; Study and Confirmation use them as they use those of one."""

    def __init__(self, packs: Packs, workers: Sequence[Worker]) -> None:
        """`packs` are this process's own."""
        self.packs, self.workers, self.progress = packs, workers, packs.progress
        self.on_end: Callable[[Job], None] = lambda job: None
        self.on_score: Callable[[Job, int, Evaluation], None] = lambda job, epoch, evaluation: None
        self.stops: Callable[[Job, int], str | None] = lambda job, epoch: None
        self._turn = Condition()
        """Held by whoever speaks with the study, or changes what is to be done."""
        self._share, self._order, self._closed = _Share([]), Order(split="dev"), False
        self._parts = parts_of(self.progress, 1 + len(workers))
        self._answers: Mapping[str, Callable[..., Any]] = {
            "order": self._give_order,
            "take": self._give,
            "scored": lambda worker, folder, *score: self.on_score(worker.running[folder], *score),
            "stops": lambda worker, folder, epoch: self.stops(worker.running[folder], epoch),
            "ended": self._take_back,
            "worked": lambda worker: None,
            "status": lambda worker, text: self._part(worker).status(text),
            "slots": lambda worker, rows: self._part(worker).slots(rows),
            "line": lambda worker, text: self._part(worker).line(text),
            "dying": lambda worker, reason: setattr(worker, "last_words", reason),
            "broke": self._raise,
            "gone": self._replace,
        }
        packs.progress = self._parts[0]
        packs.on_end = lambda job: self._in_turn(self.on_end, job)
        packs.on_score = lambda *score: self._in_turn(self.on_score, *score)
        packs.stops = lambda job, epoch: self._in_turn(self.stops, job, epoch)

    def start(self) -> None:
        """Returns at once: workers load while this process goes on."""
        for worker in self.workers:
            self._part(worker).status("loading")
            worker.start()
            Thread(target=self._attend, args=(worker,), daemon=True).start()

    # As Packs

    @property
    def base(self) -> BaseModel:
        return self.packs.base

    @property
    def done(self) -> float:
        return self.packs.done + sum(worker.done for worker in self.workers)

    @property
    def refused(self) -> dict[Path, str]:
        return self.packs.refused

    def drawing(self, exam: Exam) -> float:
        return self.packs.drawing(exam)

    def typical(self, exam: Exam, rungs: Sequence[int]) -> float:
        return self.packs.typical(exam, rungs)

    def train(self, jobs: Iterable[Job], exam: Exam, rungs: Sequence[int], most: int | None = None) -> None:
        """Of `most` jobs no device trains more than its part side by side."""
        part = most and math.ceil(most / self._num_devices)
        order = Order(split=exam.split, rungs=tuple(rungs), most=part)
        self._finish(jobs, order, lambda jobs: self.packs.train(jobs, exam, rungs, part))

    def examine(self, adapters: Sequence[tuple[Path, Path]], exam: Exam) -> None:
        """In parts that are alike, so that all devices end together."""

        def work(sheaves: Iterator[Sheaf]) -> None:
            for sheaf in sheaves:
                self.packs.examine(sheaf.adapters, exam)

        left = [(file, folder) for file, folder in adapters if not runs.has_evaluation(folder)]
        sheaves = sheaves_of(left, self._num_devices, self.packs.num_slots)
        self._finish(sheaves, Order(split=exam.split), work)

    def close(self) -> None:
        """End the workers, whatever they are doing; what they were training starts again another time."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        for worker in self.workers:
            worker.kill()

    # Who does what

    @property
    def _num_devices(self) -> int:
        return 1 + sum(not worker.given_up for worker in self.workers)

    @property
    def _settled(self) -> bool:
        return not self._share.has_more and not any(worker.running for worker in self.workers)

    def _in_turn(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._turn:
            return function(*arguments)

    def _finish(self, items: Iterable[Item], order: Order, work: Callable[[Iterator[Any]], None]) -> None:
        """Until every item has ended; `work` is this process's part. Raises what no worker goes on after."""
        share = _Share(items)
        with self._turn:
            self._share, self._order = share, order
            self._turn.notify_all()
        is_settled = False
        while not is_settled:
            work(iter(partial(self._in_turn, self._own), None))
            self._parts[0].status("")
            with self._turn:
                self._turn.wait_for(lambda: self._settled or (share.back and self._num_devices == 1))
                is_settled = self._settled
        if share.error:
            raise share.error

    def _own(self) -> Item | None:
        """For this process: what a worker died of it takes only where no worker is left to try it again."""
        return self._share.take(new=self._num_devices > 1)

    # What workers ask and tell, each on a thread of its own

    def _attend(self, worker: Worker) -> None:
        while not (worker.given_up or self._closed):
            try:
                message = worker.hear()
            except Gone as gone:
                message = 0.0, "gone", str(gone)
            with self._turn:
                if not self._closed:
                    self._answer(worker, *message)
                self._turn.notify_all()

    def _answer(self, worker: Worker, units: float, name: str, *details: Any) -> None:
        worker.done += units
        self._part(worker).advance(units)
        try:
            answer = self._answers[name](worker, *details)
            if name in ASKED:
                worker.tell(answer)
        except Exception as error:  # `_finish` raises it, once others have done what they have begun
            self._part(worker).line(f"device {worker.number}: {one_line(error)}")
            self._share.end(error)
            worker.give_up()

    def _part(self, worker: Worker) -> Part:
        return self._parts[worker.number]

    def _give_order(self, worker: Worker) -> Order:
        worker.is_loaded = True
        self._part(worker).status("")
        self._turn.wait_for(lambda: self._closed or self._share.has_more)
        return self._order

    def _give(self, worker: Worker, order: Order) -> Item | None:
        """The next item of that order, none if another has come since."""
        item = self._share.take() if order == self._order else None
        if item:
            worker.running[item.folder] = item
        if isinstance(item, Job):
            item.started = time.monotonic()
        return item

    def _take_back(self, worker: Worker, folder: Path, refused: Mapping[Path, str]) -> None:
        worker.deaths = 0
        self.refused.update(refused)
        self._ended(worker.running.pop(folder))

    def _ended(self, item: Item) -> None:
        if isinstance(item, Job):
            item.ended = True
            self.on_end(item)

    def _raise(self, worker: Worker, error: Exception) -> None:
        raise error

    # A worker that died

    def _replace(self, worker: Worker, reason: str) -> None:
        """Start another in its place, and have done again what it had not ended."""
        lost = list(worker.running.values())
        worker.running.clear()
        worker.deaths += 1
        worker.given_up = worker.deaths == MAX_DEATHS
        what = "it is left alone" if worker.given_up else "it starts again"
        self._part(worker).slots([])
        self._part(worker).status("" if worker.given_up else "loading")
        self._part(worker).line(f"device {worker.number}: {reason}; {what}")
        for item in lost:
            self._lose(item, reason)
        if not worker.given_up:
            worker.start()

    def _lose(self, item: Item, reason: str) -> None:
        if isinstance(item, Job) and runs.has_ended(item.folder):
            self._ended(item)  # there was no time to say so
        elif self._share.give_back(item):
            if isinstance(item, Job):
                shutil.rmtree(item.folder, ignore_errors=True)
        elif not self._share.error:
            self._fail(item, f"{reason}, twice")

    def _fail(self, item: Item, reason: str) -> None:
        if isinstance(item, Job):
            runs.start_trial(item.folder, item.config, item.origin)
            runs.end_trial(item.folder, "failed", time.monotonic() - item.started, reason)
            self.progress.line(f"{item.folder.name} failed: {reason}")
            self._ended(item)
            return
        left = [folder for _, folder in item.adapters if not runs.has_evaluation(folder)]
        for folder in left:
            self.refused[folder] = reason
            self.progress.line(f"{folder}: cannot be scored: {reason}")


class _Share:
    """Items for whoever is free; those that were lost with a worker come back, once."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._lost: set[Path] = set()
        self._exhausted = False
        self.back: deque[Item] = deque()
        self.error: Exception | None = None
        """Why nothing more is given out."""

    @property
    def has_more(self) -> bool:
        """As far as is known."""
        return bool(self.back) or not self._exhausted

    def take(self, *, new: bool = False) -> Item | None:
        """The next one; `new`: that was not lost before."""
        if self.back and not new:
            return self.back.popleft()
        item = None if self._exhausted else next(self._items, None)
        self._exhausted = item is None
        return item

    def give_back(self, item: Item) -> bool:
        """False for one that was lost before, or if nothing more is given out."""
        if item.folder in self._lost or self.error:
            return False
        self._lost.add(item.folder)
        self.back.append(item)
        return True

    def end(self, error: Exception) -> None:
        self.error, self._exhausted = error, True
        self.back.clear()


def sheaves_of(adapters: Sequence[tuple[Path, Path]], num_devices: int, num_slots: int) -> list[Sheaf]:
    """As few and as alike as may be, of `num_slots` adapters at most."""
    if not adapters:
        return []
    rounds = math.ceil(len(adapters) / (num_devices * num_slots))
    size = math.ceil(len(adapters) / (num_devices * rounds))
    return [Sheaf(adapters[start : start + size]) for start in range(0, len(adapters), size)]

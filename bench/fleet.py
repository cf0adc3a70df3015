"""Fleet: a worker a device, at work on one run.

Whoever is free takes the next item. This process has no model: it asks the sampler, prunes, records and shows
progress; a thread a worker answers what it asks, in turn with all others. What a worker dies of is tried once
more, alone.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Literal

import torch

from bench import run as runs
from bench.config import TrialConfig
from bench.errors import DeviceError, one_line
from bench.packs import Job, OnEnd, OnScore, Progress, Stops, Survey
from bench.progress import Part, parts_of
from bench.rates import Rates
from bench.run import Metadata, Split
from bench.space import Sampler
from bench.workers import Errand, Gone, Load, Order, Sheaf, Worker

MAX_DEATHS = 3
"""Of workers on a device in a row, with nothing ended between: then it is left alone."""
ASKED = {"lock", "metadata", "order", "take", "stops"}
"""What a worker waits for the answer of."""
Item = Job | Sheaf | Errand


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


class Fleet:
    """Workers on one run; Study and Confirmation use them as they would use Packs."""

    def __init__(
        self,
        workers: Sequence[Worker],
        progress: Progress,
        *,
        join: Load,
        say: Callable[[str], None] = lambda text: None,
        lock: Callable[[], None] = lambda: None,
    ) -> None:
        """The first worker opens the run: it asks for its `lock`, and says what a user should know.

        All others, and what is started in its place, `join` it: they ask for its `metadata`.
        """
        self.workers, self.progress, self._join, self._lock = workers, progress, join, lock
        self.on_end: OnEnd = lambda job: None
        self.on_score: OnScore = lambda job, epoch, evaluation: None
        self.stops: Stops = lambda job, epoch: None
        self.refused: dict[Path, str] = {}
        self._turn = Condition()
        """Held by whoever speaks with the study, or changes what is to be done."""
        self._share, self._order, self._closed = _Share([]), Order(split="dev"), False
        self._share.take(again=False)
        self._is_locked = False
        self._survey: Survey | None = None
        self._rates: Rates | None = None
        self.metadata: Metadata | None = None
        """Of the run, once it is open."""
        self.num_devices = len(workers)
        self._parts = parts_of(self.progress, len(workers))
        self._answers: Mapping[str, Callable[..., Any]] = {
            "lock": self._take_lock,
            "opened": self._opened,
            "metadata": self._give_metadata,
            "order": self._give_order,
            "take": self._give,
            "scored": lambda worker, folder, *score: self.on_score(worker.running[folder], *score),
            "stops": lambda worker, folder, epoch: self.stops(worker.running[folder], epoch),
            "ended": self._take_back,
            "rehearsed": lambda worker, rates: setattr(self, "_rates", rates),
            "worked": lambda worker: None,
            "say": lambda worker, text: say(text),
            "status": lambda worker, text: self._part(worker).status(text),
            "slots": lambda worker, rows: self._part(worker).slots(rows),
            "line": lambda worker, text: self._part(worker).line(text),
            "dying": lambda worker, reason: setattr(worker, "last_words", reason),
            "broke": self._raise,
            "gone": self._replace,
        }

    def start(self) -> None:
        """Returns once the first worker has opened the run; the others load while it goes on.

        Raises the BenchError for which it cannot be opened.
        """
        for worker in self.workers[1:]:
            worker.load = self._join
        for worker in self.workers:
            self._start(worker)
        with self._turn:
            self._turn.wait_for(lambda: self._survey or self._share.error or self._is_alone)
        self._check()

    def _start(self, worker: Worker) -> None:
        self._part(worker).status("loading")
        worker.start()
        Thread(target=self._attend, args=(worker,), daemon=True).start()

    # As Packs

    def listen(self, on_end: OnEnd, on_score: OnScore, stops: Stops) -> None:
        self.on_end, self.on_score, self.stops = on_end, on_score, stops

    @property
    def done(self) -> float:
        return sum(worker.done for worker in self.workers)

    @property
    def survey(self) -> Survey:
        assert self._survey, "start() returns once it is known"
        return self._survey

    def train(self, jobs: Iterable[Job], split: Split, rungs: Sequence[int], most: int | None = None) -> None:
        """Of `most` jobs no device trains more than its part side by side."""
        part = most and math.ceil(most / self._num_devices)
        self._finish(jobs, Order(split=split, rungs=tuple(rungs), most=part))

    def examine(self, adapters: Sequence[tuple[Path, Path]], split: Split) -> None:
        """In parts that are alike, so that all devices end together."""
        left = [(file, folder) for file, folder in adapters if not runs.has_evaluation(folder)]
        self._finish(sheaves_of(left, self._num_devices, self.survey.num_slots), Order(split=split))

    def rehearse(self, config: TrialConfig, sampler: Sampler) -> Rates | None:
        """By one of the workers; see `measure`. None also if it dies of that."""
        self._rates = None
        errand = Errand(folder=Path(), config=config, sampler=sampler)
        self._finish([errand], Order(split="dev", rehearses=True))
        for worker in self.workers:  # what the rehearsal cost counts against no trial
            worker.deaths = 0
        return self._rates

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
        return max(1, sum(not worker.given_up for worker in self.workers))

    @property
    def _is_alone(self) -> bool:
        return all(worker.given_up for worker in self.workers)

    @property
    def _settled(self) -> bool:
        return not self._share.has_more and not any(worker.running for worker in self.workers)

    def _finish(self, items: Iterable[Item], order: Order) -> None:
        """Until every item has ended; raises what no worker goes on after."""
        with self._turn:
            self._share, self._order = _Share(items), order
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._settled or self._is_alone)
        self._check()

    def _check(self) -> None:
        if self._share.error:
            raise self._share.error
        if self._is_alone and not (self._survey and self._settled):
            reasons = "; ".join(f"device {worker.number}: {worker.reason}" for worker in self.workers)
            raise DeviceError(f"{reasons}; finished trials are kept: run it again when mended")

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
            if self._survey:
                self._part(worker).line(f"device {worker.number}: {one_line(error)}")
            self._share.end(error)
            worker.give_up()

    def _part(self, worker: Worker) -> Part:
        return self._parts[worker.number]

    def _take_lock(self, worker: Worker) -> None:
        """Once: a worker that dies before it has opened the run is replaced by one that asks again."""
        if not self._is_locked:
            self._lock()
        self._is_locked = True

    def _opened(self, worker: Worker, metadata: Metadata, survey: Survey) -> None:
        self.metadata, self._survey = metadata, survey
        worker.load = self._join

    def _give_metadata(self, worker: Worker) -> Metadata | None:
        self._turn.wait_for(lambda: self._closed or self.metadata)
        return self.metadata

    def _give_order(self, worker: Worker) -> Order:
        worker.is_loaded = True
        self._part(worker).status("")
        self._turn.wait_for(lambda: self._closed or self._share.has_more)
        return self._order

    def _give(self, worker: Worker, order: Order) -> Item | None:
        """The next item of that order, none if another has come since.

        What was lost with a worker is tried again alone: what else it was lost with may be what killed it.
        """
        if order != self._order or any(self._share.was_lost(item) for item in worker.running.values()):
            return None
        item = self._share.take(again=not worker.running)
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
        worker.reason = reason
        worker.given_up = worker.deaths == MAX_DEATHS
        what = "it is left alone" if worker.given_up else "it starts again"
        self._part(worker).slots([])
        self._part(worker).status("" if worker.given_up else "loading")
        self._part(worker).line(f"device {worker.number}: {reason}; {what}")
        for item in lost:
            self._lose(item, reason)
        if not worker.given_up:
            worker.start()
        elif worker is self.workers[0] and self._survey is None:  # for which all others wait
            self._share.end(DeviceError(f"device {worker.number}: {reason}"))

    def _lose(self, item: Item, reason: str) -> None:
        if isinstance(item, Job) and runs.has_ended(item.folder):
            self._ended(item)  # there was no time to say so
        elif not self._share.give_back(item) and not self._share.error:
            self._fail(item, f"{reason}, twice")

    def _fail(self, item: Item, reason: str) -> None:
        if isinstance(item, Job):
            runs.start_trial(item.folder, item.config, item.origin)
            runs.end_trial(item.folder, "failed", time.monotonic() - item.started, reason)
            self.progress.line(f"{item.folder.name} failed: {reason}")
            self._ended(item)
        if not isinstance(item, Sheaf):
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

    def was_lost(self, item: Item) -> bool:
        return item.folder in self._lost

    def take(self, *, again: bool) -> Item | None:
        """The next one; `again`: or one that was lost before."""
        if self.back and again:
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

"""Packs: jobs that train, and adapters that are examined, side by side; each one's end is recorded."""

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from bench import run as runs
from bench.base import BaseModel, TrainingData
from bench.begun import Begun, forget, rewind, write_begun
from bench.config import TrialConfig
from bench.errors import BenchError, DeviceError, TrialError, one_line
from bench.files import replacing
from bench.lanes import threads_of
from bench.run import Evaluation, Split
from bench.scoring.exam import Exam

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
Losses = NDArray[np.float64] | None

IMAGE_STEP = 0.3
"""Cost of one UNet forward while drawing, in trained samples; only the progress bar depends on it."""


class Rung(Protocol):
    """Trials standing still at an epoch at which they are scored; all other slots wait."""

    @property
    def alive(self) -> Sequence[int]:
        """Indices of the trials that stand at a rung now, in the order in which they are attached."""

    @property
    def diverged(self) -> Sequence[int]:
        """Indices of the trials whose loss is no longer finite; they have left their slots."""

    @property
    def losses(self) -> Mapping[int, Sequence[float]] | Sequence[Sequence[float]]:
        """Training loss of every step so far, by index; the last is not finite if the trial diverged."""

    def epoch(self, index: int) -> int:
        """At which an alive trial stands."""

    def stop(self, index: int) -> None:
        """The trial does not go on."""

    def save_adapter(self, index: int, path: Path) -> None: ...

    def begun(self, index: int) -> Begun:
        """From which an alive trial can go on another time."""


class Trainer(Protocol):
    """Trains configs side by side, the next as soon as a slot is free; see `trainers.loop.train`.

    The index of a config is its position in the order in which they were taken from `configs`; `on_step(n)`
    says that n trials made one step.
    """

    def __call__(
        self,
        base: BaseModel,
        data: TrainingData,
        configs: Iterator[TrialConfig | Begun],
        rungs: Sequence[int],
        num_slots: int,
        on_step: Callable[[int], None],
    ) -> Generator[Rung, None, None]: ...


class Attach(Protocol):
    """Attaches adapter files to a base, one a slot; see `trainers.adapters.attach`."""

    def __call__(
        self, base: BaseModel, paths: Sequence[Path], weight: float = 1.0
    ) -> AbstractContextManager[None]: ...


class Progress(Protocol):
    """What a search says while it works. Units are trained samples, or work of the same cost."""

    def total(self, units: float) -> None: ...

    def advance(self, units: float) -> None: ...

    def status(self, text: str) -> None:
        """What is being done now."""

    def slots(self, rows: Sequence[str]) -> None:
        """What every slot trains."""

    def best(self, text: str) -> None:
        """The best trial so far."""

    def line(self, text: str) -> None:
        """Something that happened, to stay on the screen."""


@dataclass(kw_only=True, slots=True)
class Job:
    """One training: where it is recorded, what it trains, and whether that has ended."""

    folder: Path
    config: TrialConfig
    origin: str
    ended: bool = False
    started: float = 0.0
    """Seconds of a monotonic clock."""


OnEnd = Callable[[Job], None]
"""Called once for each job whose end has been recorded."""
OnScore = Callable[[Job, int, Evaluation], None]
"""Called with what a job scored at an epoch, once it is recorded."""
Stops = Callable[[Job, int], str | None]
"""Why a job does not go on after an epoch, or None; asked once all that stand at a rung are scored."""


@dataclass(kw_only=True)
class _Queue:
    """Jobs as a trainer takes them: those that start again first."""

    waiting: Iterator[Job]
    most: int | None = None
    """Side by side."""
    again: deque[Job] = field(default_factory=deque)
    taken: list[Job] = field(default_factory=list)
    """By index."""
    broken: Exception | None = None
    """Raised where the next job was to be found: no fault of the trials that are running."""

    def fill(self) -> bool:
        """Whether there is another job."""
        if not self.again and (job := next(self.waiting, None)):
            self.again.append(job)
        return bool(self.again)

    def configs(self, start: Callable[[Job], Begun | None]) -> Iterator[TrialConfig | Begun]:
        while self._filled():
            job = self.again.popleft()
            self.taken.append(job)
            yield start(job) or job.config

    @property
    def running(self) -> list[Job]:
        return [job for job in self.taken if not job.ended]

    def restart(self) -> None:
        """Those that are running start again, in their order."""
        self.again.extendleft(reversed(self.running))
        self.taken = []

    def _filled(self) -> bool:
        try:
            return self.fill()
        except Exception as error:
            self.broken = error
            raise


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What must be known of a base, its data and its exams to plan work on them, without having them.

    Work is counted in trained samples.
    """

    resolution: int
    """Pixels, of a side."""
    num_shown: int
    """Samples of an epoch."""
    num_slots: int
    """Adapters side by side on a device."""
    num_drawn: Mapping[Split, int]
    """Forwards of the UNet while one adapter draws the images of a split."""
    image_step: float = IMAGE_STEP
    """Cost of one of them."""

    def drawing(self, split: Split) -> float:
        return self.num_drawn[split] * self.image_step

    def typical(self, split: Split, rungs: Sequence[int]) -> float:
        """Of one training that is not known yet, scored on the prompts of `split` at each rung it passes."""
        return sum(rungs) / len(rungs) * self.num_shown + self.drawing(split) * (len(rungs) + 1) / 2


class Crew(Protocol):
    """What a study has its work done by: Packs in this process, or a Fleet of others."""

    progress: Progress

    def listen(self, on_end: OnEnd, on_score: OnScore, stops: Stops) -> None: ...

    @property
    def num_devices(self) -> int: ...

    @property
    def done(self) -> float: ...

    @property
    def refused(self) -> dict[Path, str]: ...

    @property
    def survey(self) -> Survey: ...

    def train(self, jobs: Iterable[Job], split: Split, rungs: Sequence[int], most: int | None = None) -> None:
        """See `Packs.train`."""

    def examine(self, adapters: Sequence[tuple[Path, Path]], split: Split) -> None:
        """See `Packs.examine`."""


@dataclass(kw_only=True)
class Packs:
    """What is trained and drawn on one base, `num_slots` at a time; where memory runs out, half of them."""

    base: BaseModel
    data: TrainingData
    trainer: Trainer
    attach: Attach
    progress: Progress
    num_slots: int
    exams: dict[Split, Exam] = field(default_factory=dict)
    on_end: OnEnd = lambda job: None
    on_score: OnScore = lambda job, epoch, evaluation: None
    stops: Stops = lambda job, epoch: None
    _unheard: Exception | None = field(default=None, init=False)
    """Raised by who listens."""
    num_devices = 1
    done: float = field(default=0.0, init=False)
    """Units of work done in this session."""
    refused: dict[Path, str] = field(default_factory=dict, init=False)
    """Folder -> why the images of the adapter that was examined for it must not be scored."""

    def listen(self, on_end: OnEnd, on_score: OnScore, stops: Stops) -> None:
        self.on_end, self.on_score = self._heard(on_end), self._heard(on_score)
        self.stops = self._heard(stops)

    def _heard(self, listener: Callable[P, R]) -> Callable[P, R]:
        """What goes wrong there is no fault of the trial that is spoken of."""

        def heard(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return listener(*args, **kwargs)
            except Exception as error:
                self._unheard = error
                raise

        return heard

    # Training

    def train(self, jobs: Iterable[Job], split: Split, rungs: Sequence[int], most: int | None = None) -> None:
        """Train jobs side by side, `most` at most, score them on the prompts of `split` at each rung, and
        record how each one ends.

        A job is asked for when a slot is free for it, so that it may depend on all that has been scored.
        """
        queue = _Queue(waiting=iter(jobs), most=most)
        while queue.fill():
            self._train(queue, self.exams[split], rungs)
        self.progress.slots([])

    def _train(self, queue: _Queue, exam: Exam, rungs: Sequence[int]) -> None:
        """Until there are no more jobs, or until the trainer breaks."""
        broken: str | None = None
        try:
            self._train_all(queue, exam, rungs)
        except (OSError, SafetensorError) as error:
            # The machine's fault, not the trial's: its trials stay `running` and start again next time.
            raise _machine(error) from None
        except Exception as error:  # the trial boundary: what breaks here must not end the study
            if error in (queue.broken, self._unheard):
                raise
            if not isinstance(error, torch.OutOfMemoryError) or self.num_slots == 1:
                broken = f"{type(error).__name__}: {one_line(error)}"
            else:
                self._halve()
        if broken:
            _check_device(self.base.device, broken)
            self._end_broken(queue, broken)
        gc.collect()  # what an error's traceback held
        torch.cuda.empty_cache()
        queue.restart()

    def _train_all(self, queue: _Queue, exam: Exam, rungs: Sequence[int]) -> None:
        def start(job: Job) -> Begun | None:
            job.started = time.monotonic()
            begun = rewind(job.folder, job.config)
            runs.start_trial(job.folder, job.config, job.origin)
            self._show(queue)
            return begun

        def on_step(num_trials: int) -> None:
            self._count(num_trials * queue.taken[0].config.batch_size)
            self.progress.status(f"training {len(queue.running)} side by side")

        configs, num_slots = queue.configs(start), min(self.num_slots, queue.most or self.num_slots)
        with closing(self.trainer(self.base, self.data, configs, rungs, num_slots, on_step)) as standing:
            for rung in standing:
                self._score(rung, queue, exam)
                self._show(queue)

    def _show(self, queue: _Queue) -> None:
        self.progress.slots([f"{job.folder.name}  {describe(job.config)}" for job in queue.running])

    def _end_broken(self, queue: _Queue, reason: str) -> None:
        """A trainer that broke before it took a job broke on the first one: it must not break for ever."""
        if not queue.running and queue.fill():
            job = queue.again.popleft()
            runs.start_trial(job.folder, job.config, job.origin)
            queue.taken.append(job)
        for job in queue.running:
            self._end(job, "failed", reason)

    def _score(self, rung: Rung, queue: _Queue, exam: Exam) -> None:
        for index in (*rung.diverged, *rung.alive):
            runs.write_losses(queue.taken[index].folder, rung.losses[index])
        for index in rung.diverged:
            numbered = enumerate(rung.losses[index], 1)
            step = next(number for number, loss in numbered if not math.isfinite(loss))
            reason = f"the loss was no longer finite at step {step}"
            self._end(queue.taken[index], "failed", reason)
        if not rung.alive:
            return
        self.progress.status(f"scoring {len(rung.alive)} trials")
        with (
            ThreadPoolExecutor(1) as writer,
            threads_of(self.base.device) as threads,
            closing(self._draw(exam, len(rung.alive))) as drawn,
        ):

            def score(index: int, images: NDArray[np.uint8], losses: Losses) -> Future[Evaluation]:
                evaluation = exam.score(images, losses)
                return writer.submit(self._write, rung, index, queue.taken[index].folder, evaluation, images)

            scored = [
                threads.submit(score, index, *of_slot)
                for index, of_slot in zip(rung.alive, drawn, strict=True)
            ]
            for index, evaluation in zip(rung.alive, scored, strict=True):
                self._say_scored(rung, index, queue.taken[index], evaluation)
        for index in rung.alive:
            self._end_at(rung, index, queue.taken[index])

    def _write(
        self, rung: Rung, index: int, folder: Path, evaluation: Evaluation, images: NDArray[np.uint8]
    ) -> Evaluation:
        """Beside the drawing and the scoring of other slots."""
        epoch = rung.epoch(index)
        with replacing(runs.adapter_file(folder, epoch)) as temporary:
            rung.save_adapter(index, temporary)
        runs.write_evaluation(runs.epoch_folder(folder, epoch), evaluation, images)
        return evaluation

    def _say_scored(self, rung: Rung, index: int, job: Job, evaluation: Future[Future[Evaluation]]) -> None:
        try:
            self.on_score(job, rung.epoch(index), evaluation.result().result())
        except TrialError as error:
            self._end(job, "failed", str(error))
            rung.stop(index)

    def _end_at(self, rung: Rung, index: int, job: Job) -> None:
        """End a trial that has come to its last epoch, or that is not to go on."""
        if job.ended:
            return
        epoch = rung.epoch(index)
        if job.config.epochs == epoch:
            self._end(job, "complete")
        elif reason := self.stops(job, epoch):
            self._end(job, "pruned", reason)
            rung.stop(index)
        else:
            write_begun(job.folder, rung.begun(index))

    def _end(self, job: Job, state: runs.State, reason: str | None = None) -> None:
        job.ended = True
        runs.end_trial(job.folder, state, time.monotonic() - job.started, reason)
        forget(job.folder)
        if reason:
            self.progress.line(f"{job.folder.name} {state}: {reason}")
        self.on_end(job)

    # Examining what has been trained

    def examine(self, adapters: Sequence[tuple[Path, Path]], split: Split) -> None:
        """Draw and score adapter files on the prompts of `split`: pairs of the file and the folder of its
        Evaluation.

        Folders that hold one are left alone. An adapter whose images must not be scored gets none, and is
        said; raises UsageError for a file that cannot be read.
        """
        left = [(file, folder) for file, folder in adapters if not runs.has_evaluation(folder)]
        for start in range(0, len(left), self.num_slots):
            self._examine(left[start : start + self.num_slots], self.exams[split])

    def _examine(self, adapters: Sequence[tuple[Path, Path]], exam: Exam) -> None:
        self.progress.status(f"scoring {len(adapters)} adapters on the {exam.split} prompts")
        scored = None
        try:
            scored = self._scored(adapters, exam)
        except (OSError, SafetensorError) as error:
            raise _machine(error) from None
        except torch.OutOfMemoryError as error:
            if len(adapters) == 1:
                raise _machine(error) from None
        if scored is None:  # out of the handler, whose traceback holds what the first attempt allocated
            self._say_halved(len(adapters))
            for half in _halves(adapters):
                self._examine(half, exam)
            return
        for (_, folder), reason in zip(adapters, scored, strict=True):
            if reason:
                self.refused[folder] = reason
                self.progress.line(f"{folder}: cannot be scored: {reason}")

    def _scored(self, adapters: Sequence[tuple[Path, Path]], exam: Exam) -> list[str | None]:
        """Write the Evaluation of each adapter; why there is none where its images must not be scored."""

        def score(folder: Path, images: NDArray[np.uint8], losses: Losses) -> str | None:
            try:
                runs.write_evaluation(folder, exam.score(images, losses), images)
            except TrialError as error:
                return str(error)
            return None

        with (
            self.attach(self.base, [file for file, _ in adapters]),
            threads_of(self.base.device) as threads,
            closing(self._draw(exam, len(adapters))) as drawn,
        ):
            scored = [
                threads.submit(score, folder, *of_slot)
                for (_, folder), of_slot in zip(adapters, drawn, strict=True)
            ]
            return [reason.result() for reason in scored]

    # How much work there is

    @property
    def survey(self) -> Survey:
        return Survey(
            resolution=self.base.resolution,
            num_shown=self.data.num_shown,
            num_slots=self.num_slots,
            num_drawn={split: exam.num_images * exam.sampler.steps * 2 for split, exam in self.exams.items()},
        )

    def _draw(self, exam: Exam, num_slots: int) -> Generator[tuple[NDArray[np.uint8], Losses], None, None]:
        """Images and denoising losses through each attached adapter, as they come."""
        units, drawn = self.survey.drawing(exam.split) * num_slots, 0.0

        def on_progress(fraction: float) -> None:
            nonlocal drawn
            self._count(units * (fraction - drawn))
            drawn = fraction

        losses = exam.denoise(num_slots)
        yield from zip(exam.draw(num_slots, on_progress), losses, strict=True)

    def _count(self, units: float) -> None:
        self.done += units
        self.progress.advance(units)

    def _halve(self) -> None:
        self._say_halved(self.num_slots)
        self.num_slots //= 2

    def _say_halved(self, number: int) -> None:
        self.progress.line(f"out of memory with {number} trials side by side: going on with half of them")


def _halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def _machine(error: Exception) -> BenchError:
    return BenchError(f"{one_line(error)}; finished trials are kept: run it again when mended")


def _check_device(device: torch.device, broken: str) -> None:
    """After some errors a GPU gives this process nothing but the same error: no fault of the next trials."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        raise DeviceError(f"{broken}; finished trials are kept: run it again") from None


def describe(config: TrialConfig) -> str:
    """A configuration on one line."""
    modules = (
        config.target_modules if isinstance(config.target_modules, str) else ",".join(config.target_modules)
    )
    text = f" (text encoders {config.text_encoder_learning_rate:.2g})" if config.trains_text else ""
    return (
        f"rank {config.rank}, alpha {config.alpha:g}, rate {config.learning_rate:.2g}{text}, "
        f"dropout {config.dropout:g}, {config.epochs} epochs, {modules}, seed {config.seed}"
    )

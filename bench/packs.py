"""Packs: jobs that train, and adapters that are examined, side by side; each one's end is recorded."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from bench import run as runs
from bench.base import BaseModel, TrainingData
from bench.config import TrialConfig
from bench.errors import BenchError, TrialError
from bench.files import replacing
from bench.run import Evaluation
from bench.scoring.exam import Exam

T = TypeVar("T")

IMAGE_STEP = 0.3
"""Cost of one UNet forward while drawing, in trained samples; only the progress bar depends on it."""


class Rung(Protocol):
    """A pack of trials standing still at an epoch, its adapters attached to the base."""

    @property
    def alive(self) -> Sequence[int]:
        """Index of the config of each trial that stands at a rung, in the order in which they are drawn."""

    @property
    def diverged(self) -> Sequence[int]:
        """Of each trial whose loss is no longer finite; it has left."""

    @property
    def losses(self) -> Mapping[int, Sequence[float]]:
        """Training loss of every step, by index of the config."""

    def epoch(self, index: int) -> int:
        """At which a trial stands."""

    def stop(self, index: int) -> None:
        """The trial of config `index` does not go on."""

    def save_adapter(self, index: int, path: Path) -> None: ...


class Trainer(Protocol):
    """Trains configs side by side; see `trainers.loop.train`."""

    def __call__(
        self,
        base: BaseModel,
        data: TrainingData,
        configs: Iterator[TrialConfig],
        rungs: Sequence[int],
        num_slots: int,
        on_step: Callable[[int], None],
    ) -> Iterator[Rung]: ...


class Attach(Protocol):
    """Attaches adapter files to a base, one a slot; see `trainers.adapters.attach`."""

    def __call__(self, base: BaseModel, paths: Sequence[Path]) -> AbstractContextManager[None]: ...


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


@dataclass(kw_only=True)
class Packs:
    """What is trained and drawn on one base, `num_slots` at a time; where memory runs out, half of them."""

    base: BaseModel
    data: TrainingData
    trainer: Trainer
    attach: Attach
    progress: Progress
    num_slots: int
    on_end: Callable[[Job], None] = lambda job: None
    """Called once for each job whose end has been recorded."""
    on_score: Callable[[Job, int, Evaluation], None] = lambda job, epoch, evaluation: None
    done: float = field(default=0.0, init=False)
    """Units of work done in this session."""
    refused: dict[Path, str] = field(default_factory=dict, init=False)
    """Folder -> why the images of the adapter that was examined for it must not be scored."""

    # Training

    def train(self, jobs: Sequence[Job], exam: Exam, rungs: Sequence[int]) -> None:
        """Train jobs side by side, score them at each rung, and record how each one ends."""
        for start in range(0, len(jobs), self.num_slots):
            self._train(jobs[start : start + self.num_slots], exam, rungs)

    def _train(self, jobs: Sequence[Job], exam: Exam, rungs: Sequence[int]) -> None:
        for job in jobs:
            runs.start_trial(job.folder, job.config, job.origin)
        started, too_many = time.monotonic(), False
        self.progress.slots([f"{job.folder.name}  {describe(job.config)}" for job in jobs])
        try:
            self._train_pack(jobs, exam, rungs, started)
        except (OSError, SafetensorError) as error:
            # The machine's fault, not the trial's: its trials stay `running` and start again next time.
            raise _machine(error) from None
        except Exception as error:  # the trial boundary: a pack that breaks must not end the study
            too_many = isinstance(error, torch.OutOfMemoryError) and len(jobs) > 1
            for job in () if too_many else jobs:
                self._end(job, started, f"{type(error).__name__}: {_one_line(error)}")
        if too_many:
            self._say_halved(len(jobs))
            for half in _halves([job for job in jobs if not job.ended]):
                self._train(half, exam, rungs)

    def _train_pack(self, jobs: Sequence[Job], exam: Exam, rungs: Sequence[int], started: float) -> None:
        if not jobs:
            return

        batch_size = jobs[0].config.batch_size

        def on_step(number: int) -> None:
            self._count(number * batch_size)
            self.progress.status(f"training {number} side by side")

        configs = iter([job.config for job in jobs])
        for rung in self.trainer(self.base, self.data, configs, rungs, len(jobs), on_step):
            self._score(rung, jobs, exam, started)

    def _score(self, rung: Rung, jobs: Sequence[Job], exam: Exam, started: float) -> None:
        for index in (*rung.alive, *rung.diverged):
            runs.write_losses(jobs[index].folder, rung.losses[index])
        for index in rung.diverged:
            steps = len(rung.losses[index])
            self._end(jobs[index], started, f"the loss was no longer finite at step {steps}")
        if not rung.alive:
            return
        self.progress.status(f"scoring {len(rung.alive)} trials")
        for index, images in zip(rung.alive, self._draw(exam, len(rung.alive)), strict=True):
            job, epoch = jobs[index], rung.epoch(index)
            folder = runs.epoch_folder(job.folder, epoch)
            try:
                evaluation = exam.score(images)
                with replacing(runs.adapter_file(job.folder, epoch)) as temporary:
                    rung.save_adapter(index, temporary)
                runs.write_evaluation(folder, evaluation, images)
                self.on_score(job, epoch, evaluation)
            except TrialError as error:
                self._end(job, started, str(error))
                rung.stop(index)
            if job.config.epochs == epoch:
                self._end(job, started)

    def _end(self, job: Job, started: float, reason: str | None = None) -> None:
        if job.ended:
            return
        job.ended = True
        runs.end_trial(job.folder, "failed" if reason else "complete", time.monotonic() - started, reason)
        if reason:
            self.progress.line(f"{job.folder.name} failed: {reason}")
        self.on_end(job)

    # Examining what has been trained

    def examine(self, adapters: Sequence[tuple[Path, Path]], exam: Exam) -> None:
        """Draw and score adapter files on `exam`: pairs of the file and the folder of its Evaluation.

        Folders that hold one are left alone. An adapter whose images must not be scored gets none, and is
        said; raises UsageError for a file that cannot be read.
        """
        left = [(file, folder) for file, folder in adapters if not runs.has_evaluation(folder)]
        for start in range(0, len(left), self.num_slots):
            self._examine(left[start : start + self.num_slots], exam)

    def _examine(self, adapters: Sequence[tuple[Path, Path]], exam: Exam) -> None:
        self.progress.status(f"scoring {len(adapters)} adapters on the {exam.split} prompts")
        drawn = None
        try:
            drawn, losses = self._drawn(adapters, exam)
        except (OSError, SafetensorError) as error:
            raise _machine(error) from None
        except torch.OutOfMemoryError as error:
            if len(adapters) == 1:
                raise _machine(error) from None
        if drawn is None:  # out of the handler, whose traceback holds what the first attempt allocated
            self._say_halved(len(adapters))
            for half in _halves(adapters):
                self._examine(half, exam)
            return
        for slot, (_, folder) in enumerate(adapters):
            try:
                evaluation = exam.score(drawn[slot], losses[slot])
                runs.write_evaluation(folder, evaluation, drawn[slot])
            except TrialError as error:
                self.refused[folder] = str(error)
                self.progress.line(f"{folder}: cannot be scored: {error}")

    def _drawn(
        self, adapters: Sequence[tuple[Path, Path]], exam: Exam
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Images and denoising losses of each adapter."""
        with self.attach(self.base, [file for file, _ in adapters]):
            images = self._draw(exam, len(adapters))
            losses = exam.loss_gap.losses(len(adapters)) if exam.loss_gap else np.empty((len(adapters), 0))
        return images, losses

    # How much work there is

    def drawing(self, exam: Exam) -> float:
        return exam.num_images * exam.sampler.steps * 2 * IMAGE_STEP

    def typical(self, exam: Exam, rungs: Sequence[int]) -> float:
        """Of one training that is not known yet, scored on `exam` at each rung that it passes."""
        return sum(rungs) / len(rungs) * len(self.data) + self.drawing(exam) * (len(rungs) + 1) / 2

    def training(self, jobs: Sequence[Job]) -> float:
        return float(sum(job.config.epochs for job in jobs) * len(self.data))

    def _draw(self, exam: Exam, num_slots: int) -> NDArray[np.uint8]:
        units, drawn = self.drawing(exam) * num_slots, 0.0

        def on_progress(fraction: float) -> None:
            nonlocal drawn
            self._count(units * (fraction - drawn))
            drawn = fraction

        return exam.draw(num_slots, on_progress)

    def _count(self, units: float) -> None:
        self.done += units
        self.progress.advance(units)

    def _say_halved(self, number: int) -> None:
        self.progress.line(f"out of memory with {number} trials side by side: going on with half of them")


def _halves(items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def _machine(error: Exception) -> BenchError:
    return BenchError(f"{_one_line(error)}; finished trials are kept: run it again when mended")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def describe(config: TrialConfig) -> str:
    """A configuration on one line."""
    modules = (
        config.target_modules if isinstance(config.target_modules, str) else ",".join(config.target_modules)
    )
    return (
        f"rank {config.rank}, alpha {config.alpha:g}, rate {config.learning_rate:.2g}, "
        f"dropout {config.dropout:g}, {config.epochs} epochs, {modules}, seed {config.seed}"
    )

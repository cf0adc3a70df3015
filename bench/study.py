"""The search: ask -> train -> score -> record -> tell, then confirm the best on seeds and prompts unseen."""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Protocol

import optuna
import torch
from optuna.trial import TrialState, create_trial
from safetensors import SafetensorError

from bench import run as runs
from bench.base import BaseModel, TrainingData
from bench.config import TrainingConfig, TrialConfig
from bench.errors import BenchError, StudyError, TrialError
from bench.pareto import Point, finalists
from bench.run import Candidate, Evaluation, Result, Run, TrialRecord
from bench.scoring.exam import Exam
from bench.scoring.measure import combine, gain_between
from bench.scoring.metrics import METRICS, best

FRESH_SEED = 1_000_000
"""Added to the run's seed for the first confirmation: no trial of the search trains on such a seed."""
IMAGE_STEP = 0.3
"""Cost of one UNet forward while drawing, in trained samples; only the progress bar depends on it."""


class Rung(Protocol):
    """A pack of trials standing still at an epoch, its adapters attached to the base."""

    @property
    def epoch(self) -> int: ...

    @property
    def alive(self) -> Sequence[int]:
        """Index of the config in each slot."""

    @property
    def losses(self) -> Sequence[Sequence[float]]:
        """Training loss of every step, by config; the last is not finite if the trial diverged."""

    def stop(self, index: int) -> None:
        """The trial of config `index` does not go on."""

    def save_adapter(self, index: int, path: Path) -> None: ...


class Trainer(Protocol):
    """Trains configs side by side; see `trainers.loop.train`."""

    def __call__(
        self,
        base: BaseModel,
        data: TrainingData,
        configs: Sequence[TrialConfig],
        rungs: Sequence[int],
        on_step: Callable[[int, int], None],
    ) -> Iterator[Rung]: ...


class Progress(Protocol):
    """What the study says while it works. Units are trained samples, or work of the same cost."""

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
    """One training: where it is recorded, and its Optuna trial if it is one of the search."""

    folder: Path
    config: TrialConfig
    origin: str
    trial: optuna.Trial | None = None
    ended: bool = False


@dataclass(kw_only=True)
class Study:
    """A search on a run folder. After an interruption a new Study on the same folder goes on."""

    run: Run
    base: BaseModel
    data: TrainingData
    trainer: Trainer
    dev: Exam
    test: Exam
    progress: Progress
    _done: float = field(default=0.0, init=False)
    _best: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        self.space = self.run.space
        self.optuna = open_study(self.run)
        self._before: float = self.optuna.user_attrs.get("seconds", 0.0)
        self._started = time.monotonic()
        for record in self.run.trials():
            for epoch in record.epochs if record.state == "complete" else ():
                evaluation = runs.read_evaluation(runs.epoch_folder(record.path, epoch))
                self._best = max(self._best, self._goodness(evaluation))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far, those before an interruption included."""
        return self._before + time.monotonic() - self._started

    def search(self, num_trials: int, budget: float | None) -> Result:
        """Run trials until there are `num_trials`, or no further pack fits in `budget` seconds; confirm.

        At least one pack is trained, however small the budget: there must be something to confirm.
        """
        reconcile(self.optuna, self.run)
        while (remaining := num_trials - len(self.run.trials())) > 0 and not self._spent(budget):
            self.progress.total(self._done + remaining * self._typical(self.dev) + self._confirm_units())
            self._train(self._ask(min(remaining, self.space.slots)), self.dev, self.space.rungs)
        return self._confirm()

    # The search

    def _ask(self, num_trials: int) -> list[Job]:
        # A sampler that starts again from its first seed would repeat its first points.
        told = len(self.optuna.get_trials(deepcopy=False))
        seed = int.from_bytes(hashlib.sha256(f"{self.run.metadata.seed}/{told}".encode()).digest()[:4], "big")
        # Random until the first pack is told: its earlier rungs count as trials too.
        self.optuna.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.space.slots)
        jobs = []
        for number in islice(free_numbers(self.run), num_trials):
            trial = self.optuna.ask(fixed_distributions=self.space.distributions)
            trial.set_user_attr("label", f"{number:04d}")
            config = self.space.config_of(trial.params).model_copy(update={"seed": self.run.metadata.seed})
            is_default = self.space.parameters_of(config) == self.space.parameters_of(self.space.default)
            origin = "default" if is_default else "sampled"
            jobs.append(Job(folder=self.run.trial_folder(number), config=config, origin=origin, trial=trial))
        return jobs

    def _spent(self, budget: float | None) -> bool:
        if budget is None:
            return False
        if not self._done:
            return self._before >= budget
        pace = (time.monotonic() - self._started) / self._done
        to_do = self.space.slots * self._typical(self.dev) + self._confirm_units()
        return self.seconds + pace * to_do >= budget

    # Training and scoring

    def _train(self, jobs: Sequence[Job], exam: Exam, rungs: Sequence[int]) -> None:
        """Train jobs side by side and record how each one ends; where memory runs out, half of them."""
        for job in jobs:
            runs.start_trial(job.folder, job.config, job.origin)
        started, too_many = time.monotonic(), False
        self.progress.slots([f"{job.folder.name}  {describe(job.config)}" for job in jobs])
        try:
            self._train_pack(jobs, exam, rungs, started)
        except (OSError, SafetensorError) as error:
            # The machine's fault, not the trial's: its trials stay `running` and start again next time.
            raise BenchError(
                f"{_one_line(error)}; finished trials are kept: run it again when mended"
            ) from None
        except Exception as error:  # the trial boundary: a pack that breaks must not end the study
            too_many = isinstance(error, torch.OutOfMemoryError) and len(jobs) > 1
            for job in () if too_many else jobs:
                self._end(job, started, f"{type(error).__name__}: {_one_line(error)}")
        self.optuna.set_user_attr("seconds", self.seconds)
        if too_many:
            self.progress.line(
                f"out of memory with {len(jobs)} trials side by side: going on with half of them"
            )
            left = [job for job in jobs if not job.ended]
            for half in (left[: len(jobs) // 2], left[len(jobs) // 2 :]):
                self._train(half, exam, rungs)

    def _train_pack(self, jobs: Sequence[Job], exam: Exam, rungs: Sequence[int], started: float) -> None:
        if not jobs:
            return

        def on_step(step: int, total: int) -> None:
            self.progress.advance(self._count(self._training(jobs) / total))
            self.progress.status(f"training {len(jobs)} side by side: step {step} of {total}")

        for rung in self.trainer(self.base, self.data, [job.config for job in jobs], rungs, on_step):
            self._score(rung, jobs, exam, started)

    def _score(self, rung: Rung, jobs: Sequence[Job], exam: Exam, started: float) -> None:
        for index, job in enumerate(jobs):
            runs.write_losses(job.folder, rung.losses[index])
            if not math.isfinite(rung.losses[index][-1]):
                self._end(job, started, f"the loss was no longer finite at step {len(rung.losses[index])}")
        if not rung.alive:
            return
        self.progress.status(f"scoring epoch {rung.epoch} of {len(rung.alive)} trials")
        units = self._drawing(exam) * len(rung.alive)
        drawn = 0.0

        def on_progress(fraction: float) -> None:
            nonlocal drawn
            self.progress.advance(self._count(units * (fraction - drawn)))
            drawn = fraction

        for index, images in zip(rung.alive, exam.draw(len(rung.alive), on_progress), strict=True):
            job = jobs[index]
            folder = runs.epoch_folder(job.folder, rung.epoch)
            try:
                evaluation = exam.score(images)
                with runs.replacing(folder / "adapter.safetensors") as temporary:
                    rung.save_adapter(index, temporary)
                runs.write_evaluation(folder, evaluation, images)
                self._scored(f"{job.folder.name} epoch {rung.epoch}", evaluation, job.trial is not None)
            except TrialError as error:
                self._end(job, started, str(error))
                rung.stop(index)
            if job.config.epochs == rung.epoch:
                self._end(job, started)

    def _end(self, job: Job, started: float, reason: str | None = None) -> None:
        """Record how a job ended and tell Optuna, once."""
        if job.ended:
            return
        job.ended = True
        runs.end_trial(job.folder, "failed" if reason else "complete", time.monotonic() - started, reason)
        if reason:
            self.progress.line(f"{job.folder.name} failed: {reason}")
        if job.trial:
            tell(self.optuna, job.trial, self.space.objectives, runs.read_trial(job.folder))

    def _scored(self, name: str, evaluation: Evaluation, in_search: bool) -> None:
        """Say a score, and whether it is the best of the search."""
        metric, score = METRICS[self.space.select_by], evaluation.scores[self.space.select_by]
        goodness = self._goodness(evaluation)
        gain = "" if score.gain is None else f" ({score.gain:+.3f} over the base)"
        text = f"{name}: {metric.label.lower()} {score.value:.3f} ± {score.stderr:.3f}{gain}"
        self.progress.line(text)
        if in_search and goodness > self._best:
            self._best = goodness
            self.progress.best(text)

    def _goodness(self, evaluation: Evaluation) -> float:
        """The score that trials are ranked by; higher is better."""
        sign = 1 if METRICS[self.space.select_by].direction == "maximize" else -1
        return sign * evaluation.scores[self.space.select_by].value

    # The end

    def _confirm(self) -> Result:
        """Retrain the finalists and the default on fresh seeds, score them on the test prompts."""
        chosen = self._candidates()
        jobs = [job for label, config in chosen.items() for job in self._confirmations(label, config)]
        todo = [job for job in jobs if not job.ended]
        self.progress.total(self._done + sum(self._units(job.config.epochs, self.test, 1) for job in todo))
        for epochs in sorted({job.config.epochs for job in todo}):
            group = [job for job in todo if job.config.epochs == epochs]
            for start in range(0, len(group), self.space.slots):
                self._train(group[start : start + self.space.slots], self.test, [epochs])
        result = self._result(chosen)
        self.run.write_result(result)
        self._write_winner(result)
        return result

    def _candidates(self) -> dict[str, TrialConfig]:
        """Label -> configuration: the default, then the finalists with their best epoch."""
        points = [
            Point(label=record.label, epochs=epoch, values=values_of(record, epoch, self.space.objectives))
            for record in self.run.trials()
            if record.origin != "default"
            for epoch in record.epochs
            if record.state == "complete"
        ]
        directions = [METRICS[name].direction for name in self.space.objectives]
        column = self.space.objectives.index(self.space.select_by)
        chosen = finalists(points, directions, column, self.space.confirm.finalists)
        configs = {record.label: record.config for record in self.run.trials()}
        found = {p.label: configs[p.label].model_copy(update={"epochs": p.epochs}) for p in chosen}
        return {"default": self.space.default} | found

    def _confirmations(self, label: str, config: TrialConfig) -> list[Job]:
        jobs = []
        for number in range(self.space.confirm.seeds):
            seed = self.run.metadata.seed + FRESH_SEED + number
            folder = self.run.confirm_folder(label, config.epochs, number)
            ended = (folder / "trial.json").exists() and runs.read_trial(folder).state == "complete"
            fresh = config.model_copy(update={"seed": seed})
            jobs.append(Job(folder=folder, config=fresh, origin="confirm", ended=ended))
        return jobs

    def _result(self, chosen: dict[str, TrialConfig]) -> Result:
        records = {label: self._confirmed(label, config) for label, config in chosen.items()}
        evaluations = {
            label: [runs.read_evaluation(runs.epoch_folder(r.path, r.config.epochs)) for r in confirmed]
            for label, confirmed in records.items()
            if confirmed
        }
        if not evaluations:
            reasons = [
                record.reason for record in self.run.confirmations() + self.run.trials() if record.reason
            ]
            first = reasons[0] if reasons else "unknown"
            raise StudyError(
                f"no configuration could be confirmed; the first failure: {first}", self.run.path
            )
        candidates = []
        for label, scored in evaluations.items():
            scores, spread = combine(scored)
            names = tuple(record.label for record in records[label])
            candidates.append(
                Candidate(label=label, config=chosen[label], records=names, scores=scores, seed_spread=spread)
            )
        winner = best(candidates, self.space.select_by, lambda c: c.scores[self.space.select_by].value)
        gains = {}
        if "default" in evaluations and winner.label != "default":
            gains = gain_between(evaluations[winner.label], evaluations["default"])
        return Result(
            winner=winner.label,
            candidates=tuple(candidates),
            select_by=self.space.select_by,
            gain_over_default=gains,
            seconds=self.seconds,
        )

    def _confirmed(self, label: str, config: TrialConfig) -> list[TrialRecord]:
        jobs = self._confirmations(label, config)
        records = [runs.read_trial(job.folder) for job in jobs]
        return [record for record in records if record.state == "complete"]

    def _write_winner(self, result: Result) -> None:
        winner = next(c for c in result.candidates if c.label == result.winner)
        record = runs.read_trial(self.run.path / "confirm" / winner.records[0])
        source = runs.epoch_folder(record.path, record.config.epochs) / "adapter.safetensors"
        with runs.replacing(self.run.path / "winner" / "adapter.safetensors") as temporary:
            shutil.copyfile(source, temporary)
        config = TrainingConfig(
            **record.config.model_dump(),
            model_name=self.space.base,
            dataset_name=self.run.metadata.data,
            revision=self.space.revision,
            resolution=self.base.resolution,
            dtype=self.space.dtype,
            trigger=self.space.trigger,
        )
        runs.write_text(self.run.path / "winner" / "training_config.yaml", config.guide_yaml())

    # How much work there is

    def _units(self, epochs: float, exam: Exam, num_rungs: float) -> float:
        return epochs * len(self.data) + num_rungs * self._drawing(exam)

    def _drawing(self, exam: Exam) -> float:
        return exam.num_images * exam.sampler.steps * 2 * IMAGE_STEP

    def _training(self, jobs: Sequence[Job]) -> float:
        return sum(job.config.epochs for job in jobs) * len(self.data)

    def _typical(self, exam: Exam) -> float:
        """Of a trial that has not been sampled yet."""
        rungs = self.space.rungs
        return self._units(sum(rungs) / len(rungs), exam, (len(rungs) + 1) / 2)

    def _confirm_units(self) -> float:
        trainings = (1 + self.space.confirm.finalists) * self.space.confirm.seeds
        return trainings * self._units(sum(self.space.rungs) / len(self.space.rungs), self.test, 1)

    def _count(self, units: float) -> float:
        self._done += units
        return units


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


def values_of(record: TrialRecord, epoch: int, objectives: Sequence[str]) -> tuple[float, ...]:
    """What a recorded trial scored at an epoch, objective by objective."""
    scores = runs.read_evaluation(runs.epoch_folder(record.path, epoch)).scores
    return tuple(scores[name].value for name in objectives)


# Optuna


def open_study(run: Run) -> optuna.Study:
    """The study in the run folder; a new one starts with the configuration to beat and the start points."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{run.path / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    study = optuna.create_study(
        storage=storage,
        study_name=run.metadata.name,
        directions=[METRICS[name].direction for name in run.space.objectives],
        load_if_exists=True,
    )
    if not study.get_trials(deepcopy=False):
        for config in (run.space.default, *run.space.starts):
            study.enqueue_trial(run.space.parameters_of(config))
    return study


def tell(study: optuna.Study, trial: optuna.Trial, objectives: Sequence[str], record: TrialRecord) -> None:
    """Tell how a recorded trial ended; its earlier rungs join the study as trials of fewer epochs."""
    if record.state == "failed":
        trial.set_user_attr("reason", record.reason)
        study.tell(trial, state=TrialState.FAIL)
        return
    values = {epoch: values_of(record, epoch, objectives) for epoch in record.epochs}
    nested = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("nested")]
    there = {(t.user_attrs["label"], t.params["epochs"]) for t in nested}
    for epoch in record.epochs:
        if epoch < record.config.epochs and (record.label, epoch) not in there and "epochs" in trial.params:
            earlier = create_trial(
                params={**trial.params, "epochs": epoch},
                distributions=trial.distributions,
                values=values[epoch],
                user_attrs={"label": record.label, "nested": True},
            )
            study.add_trial(earlier)
    study.tell(trial, values[record.config.epochs])


def reconcile(study: optuna.Study, run: Run) -> None:
    """After an interruption the run folder is the record: what ended is told, the rest starts again."""
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = run.path / "trials" / str(frozen.user_attrs.get("label"))
        ended = (folder / "trial.json").exists() and runs.read_trial(folder).state != "running"
        trial = optuna.Trial(study, frozen._trial_id)
        if ended:
            tell(study, trial, run.space.objectives, runs.read_trial(folder))
            continue
        study.enqueue_trial(frozen.params)
        study.tell(trial, state=TrialState.FAIL)
    for record in run.trials():
        if record.state == "running":
            shutil.rmtree(record.path)


def free_numbers(run: Run) -> Iterator[int]:
    """Trial numbers that have no folder yet."""
    return (number for number in count() if not run.trial_folder(number).exists())

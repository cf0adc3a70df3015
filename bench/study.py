"""The search: ask -> train and score -> tell, until there are enough trials or the time is up."""

import hashlib
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import optuna
from optuna.trial import TrialState, create_trial

from bench import run as runs
from bench.confirm import values_of
from bench.packs import Job, Packs
from bench.run import Evaluation, Run, TrialRecord
from bench.scoring.exam import Exam
from bench.scoring.metrics import METRICS


@dataclass(kw_only=True)
class Study:
    """A search on a run folder. After an interruption a new Study on the same folder goes on."""

    run: Run
    packs: Packs
    dev: Exam
    reserve: float = 0.0
    """Work to come after the search, in the units of `packs`: a budget must suffice for it too."""
    _asked: dict[Path, optuna.Trial] = field(default_factory=dict, init=False)
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
        self.packs.on_end, self.packs.on_score = self._ended, self._scored

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far, those before an interruption included."""
        return self._before + time.monotonic() - self._started

    def search(self, num_trials: int, budget: float | None) -> None:
        """Run trials until there are `num_trials`, or no further pack fits in `budget` seconds.

        At least one pack is trained, however small the budget: there must be something to confirm.
        """
        reconcile(self.optuna, self.run)
        while (remaining := num_trials - len(self.run.trials())) > 0 and not self._spent(budget):
            self.packs.progress.total(self.packs.done + remaining * self._typical + self.reserve)
            self.packs.train(self._ask(min(remaining, self.space.slots)), self.dev, self.space.rungs)
            self.save_seconds()

    def save_seconds(self) -> None:
        self.optuna.set_user_attr("seconds", self.seconds)

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
            jobs.append(Job(folder=self.run.trial_folder(number), config=config, origin=origin))
            self._asked[jobs[-1].folder] = trial
        return jobs

    def _spent(self, budget: float | None) -> bool:
        if budget is None:
            return False
        if not self.packs.done:
            return self._before >= budget
        pace = (time.monotonic() - self._started) / self.packs.done
        return self.seconds + pace * (self.space.slots * self._typical + self.reserve) >= budget

    @property
    def _typical(self) -> float:
        """Work of a trial that has not been sampled yet."""
        return self.packs.typical(self.dev, self.space.rungs)

    # What the packs report

    def _ended(self, job: Job) -> None:
        if trial := self._asked.pop(job.folder, None):
            tell(self.optuna, trial, self.space.objectives, runs.read_trial(job.folder))

    def _scored(self, job: Job, epoch: int, evaluation: Evaluation) -> None:
        """Say a score, and whether it is the best of the search."""
        metric, score = METRICS[self.space.select_by], evaluation.scores[self.space.select_by]
        gain = "" if score.gain is None else f" ({score.gain:+.3f} over the base)"
        name = f"{job.folder.name} epoch {epoch}"
        text = f"{name}: {metric.label.lower()} {score.value:.3f} ± {score.stderr:.3f}{gain}"
        self.packs.progress.line(text)
        if job.folder in self._asked and self._goodness(evaluation) > self._best:
            self._best = self._goodness(evaluation)
            self.packs.progress.best(text)

    def _goodness(self, evaluation: Evaluation) -> float:
        """The score that trials are ranked by; higher is better."""
        return METRICS[self.space.select_by].sign * evaluation.scores[self.space.select_by].value


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

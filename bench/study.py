"""The search: ask -> train and score -> tell, until there are enough trials or the time is up."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count

from bench import run as runs
from bench.config import TrialConfig
from bench.energy import Cost, Meter
from bench.packs import Crew, Job
from bench.run import Evaluation, Run, TrialRecord
from bench.scoring.metrics import METRICS
from bench.searcher import Searcher, open_study
from bench.shared import Shared

COST = "cost"
"""Attribute of a study; of a machine that helps, with its name."""
LOOK = 2.0
"""Seconds between two looks at what others have done."""


@dataclass(kw_only=True)
class Study:
    """A search on a run folder. After an interruption a new Study on the same folder goes on."""

    run: Run
    packs: Crew
    reserve: float = 0.0
    """Work to come after the search, in the units of `packs`: a budget must suffice for it too."""
    shared: Shared | None = None
    """If others work on the same study."""
    num_devices: int = 1
    meter: Meter = field(default_factory=lambda: Meter([]))
    """Of their energy."""
    _best: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        self.space = self.run.space
        if self.shared:
            self.optuna = self.shared.study
        else:
            self.optuna = open_study(self.run.path / "study.db", self.run.metadata.name, self.space)
        owner = self.shared.owner if self.shared else None
        self._searcher = Searcher(self.optuna, self.space, self.run.metadata.seed, owner=owner)
        helps = self.shared and not self.shared.takes_over
        self._cost_key = f"{COST} of {self.shared.owner}" if self.shared and helps else COST
        self._before = Cost(**self.optuna.user_attrs.get(self._cost_key, {}))
        self._started = time.monotonic()
        self.packs.listen(self._ended, self._scored, self._stops)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far, those before an interruption included."""
        return self._before.seconds + time.monotonic() - self._started

    @property
    def cost(self) -> Cost:
        """All so far, what was spent before an interruption and by machines that help included."""
        own, known = self._own_cost, self.optuna.user_attrs.items()
        others = [Cost(**cost) for key, cost in known if key.startswith(f"{COST} of ")]
        return own._replace(device_seconds=own.device_seconds + sum(cost.device_seconds for cost in others))

    @property
    def _own_cost(self) -> Cost:
        seconds = time.monotonic() - self._started
        return self._before.plus(Cost(seconds, seconds * self.num_devices, self.meter.joules()))

    def search(self, num_trials: int, budget: float | None) -> None:
        """Run trials until there are `num_trials`, or no further one fits in `budget` seconds.

        As many as there are slots are trained, however small the budget: there must be something to confirm.
        """
        again = self._reconcile()
        most = len(again) + max(0, num_trials - self._num_asked)
        jobs = chain(again, self._jobs(num_trials, budget))
        with self._alive():
            self.packs.train(jobs, "dev", self.space.rungs, most)
            while self._waits_for_others(num_trials, budget):
                self.packs.train(self._jobs(num_trials, budget), "dev", self.space.rungs, 1)
        self.save_cost()

    def save_cost(self) -> None:
        self.optuna.set_user_attr(self._cost_key, self._own_cost._asdict())

    def _jobs(self, num_trials: int, budget: float | None) -> Iterator[Job]:
        """Asked for one by one, each when a slot is free for it: the sampler knows all scores before."""
        while (left := num_trials - self._num_asked) > 0 and not self._spent(budget):
            running = len(self._searcher.running)
            to_come = (left + running / 2) * self._typical + self.reserve
            self.packs.progress.total(self.packs.done + to_come)
            if asked := self._ask(num_trials):
                yield self._job(*asked)

    def _ask(self, num_trials: int) -> tuple[str, TrialConfig] | None:
        """In a study of its own the next free number, in a shared one that which the study gives.

        None if others have asked for the last at the same moment.
        """
        if self.shared:
            return self._ask_shared(self.shared, num_trials)
        label = next(f"{number:04d}" for number in count() if self._is_free(number))
        return label, self._searcher.ask(label)

    def _ask_shared(self, shared: Shared, num_trials: int) -> tuple[str, TrialConfig] | None:
        shared.refresh(self._searcher)
        label, config = self._searcher.ask_numbered()
        if shared.is_surplus(self._searcher.trial_of(label), num_trials):
            self._searcher.withdraw(label)
            return None
        return label, config

    @property
    def _num_asked(self) -> int:
        return self.shared.num_asked if self.shared else len(self._labels)

    def _job(self, label: str, config: TrialConfig) -> Job:
        is_default = self.space.parameters_of(config) == self.space.parameters_of(self.space.default)
        origin = "default" if is_default else "sampled"
        return Job(folder=self.run.trial_folder(int(label)), config=config, origin=origin)

    @property
    def _labels(self) -> set[str]:
        """Of all trials, those too that another process is about to record."""
        return {record.label for record in self.run.trials()} | set(self._searcher.running)

    def _is_free(self, number: int) -> bool:
        return f"{number:04d}" not in self._searcher.running and not self.run.trial_folder(number).exists()

    def _spent(self, budget: float | None) -> bool:
        """Whether another trial, and those that are running, half done on average, would end too late."""
        if budget is None:
            return False
        if not self.packs.done:
            return self._before.seconds >= budget
        pace = (time.monotonic() - self._started) / self.packs.done
        trials = 1 + len(self._searcher.running) / 2
        return self.seconds + pace * (trials * self._typical + self.reserve) >= budget

    @property
    def _typical(self) -> float:
        """Work of a trial that has not been sampled yet."""
        return self.packs.survey.typical("dev", self.space.rungs)

    def _reconcile(self) -> list[Job]:
        """The run folder is the record: what ended is remembered and told, the rest goes on."""
        records = {record.label: record for record in self.run.trials()}
        interrupted = self._searcher.interrupted()
        given_up = self.shared.given_up() if self.shared else set()
        for record in records.values():
            if record.state != "running" and record.label in given_up:
                self._discard(record)
            elif record.state != "running" or record.label in interrupted:
                self._remember(record)
            else:
                shutil.rmtree(record.path)
        ended = [label for label in interrupted if label in records and records[label].state != "running"]
        for label in ended:
            self._tell(records[label])
        return [self._job(label, config) for label, config in interrupted.items() if label not in ended]

    def _remember(self, record: TrialRecord) -> None:
        for epoch in record.epochs:
            evaluation = runs.read_evaluation(runs.epoch_folder(record.path, epoch))
            self._searcher.scored(record.label, epoch, _values(evaluation))
            if record.state == "complete":
                self._best = max(self._best, self._goodness(evaluation))

    # With others

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Others see that this process is at work."""
        if not self.shared:
            yield
            return
        with self.shared.pulse(self._searcher.running_ids, self.packs.progress.line):
            yield

    def _waits_for_others(self, num_trials: int, budget: float | None) -> bool:
        """Until all have ended elsewhere; True as soon as there is something to be done here."""
        while self.shared:
            self.shared.refresh(self._searcher)
            running = self.shared.num_running  # before: whoever is not has put there what it trained
            for label in self.shared.collect():
                self.packs.progress.line(f"{label}: taken over from another machine")
                self._remember(runs.read_trial(self.run.path / "trials" / label))
            if num_trials > self._num_asked and not self._spent(budget):
                return True
            if not running:
                return False
            self.packs.progress.status(f"waiting for {running} trials at others")
            time.sleep(LOOK)
        return False

    # What the packs report

    def _ended(self, job: Job) -> None:
        if job.folder.name in self._searcher.running:
            self._tell(runs.read_trial(job.folder))
        self.save_cost()

    def _tell(self, record: TrialRecord) -> None:
        assert record.state != "running"
        if self.shared:
            self.shared.upload(self._searcher.trial_of(record.label), record.path)
        if not self._searcher.ended(record.label, record.state, record.config.epochs, record.reason):
            self._discard(record)

    def _discard(self, record: TrialRecord) -> None:
        """A trial that others tried again meanwhile."""
        reason = "was given up by others, who saw no sign of life; what it scored is discarded"
        runs.end_trial(record.path, "failed", record.seconds or 0.0, reason)
        self.packs.progress.line(f"{record.label} {reason}")

    def _stops(self, job: Job, epoch: int) -> str | None:
        if job.folder.name not in self._searcher.running:
            return None
        standing = self._searcher.stops(job.folder.name, epoch)
        return str(standing) if standing else None

    def _scored(self, job: Job, epoch: int, evaluation: Evaluation) -> None:
        """Tell a score, say it, and whether it is the best of the search."""
        metric, score = METRICS[self.space.select_by], evaluation.scores[self.space.select_by]
        gain = "" if score.gain is None else f" ({score.gain:+.3f} over the base)"
        name = f"{job.folder.name} epoch {epoch}"
        text = f"{name}: {metric.label.lower()} {score.value:.3f} ± {score.stderr:.3f}{gain}"
        self.packs.progress.line(text)
        if job.folder.name not in self._searcher.running:
            return
        self._searcher.scored(job.folder.name, epoch, _values(evaluation))
        if self.shared:
            self.shared.tell_scores(self._searcher.trial_of(job.folder.name), epoch, _values(evaluation))
        if self._goodness(evaluation) > self._best:
            self._best = self._goodness(evaluation)
            self.packs.progress.best(text)

    def _goodness(self, evaluation: Evaluation) -> float:
        """The score that trials are ranked by; higher is better."""
        return METRICS[self.space.select_by].sign * evaluation.scores[self.space.select_by].value


def _values(evaluation: Evaluation) -> dict[str, float]:
    return {name: score.value for name, score in evaluation.scores.items()}

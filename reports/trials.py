"""The trials of a run as reports show them: every scored epoch a point."""

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial

from bench.config import TrialConfig
from bench.run import Result, Run, State, epoch_folder, read_evaluation
from bench.scoring import metrics
from bench.scoring.metrics import METRICS, Score
from reports.wording import trial_name

MIN_TRIALS = 4
"""Fewer finished trials say nothing about importances."""


class Point(NamedTuple):
    """A trial at one epoch at which it was scored, or a trial that was never scored."""

    label: str
    epoch: int | None
    kind: str
    """`default` or `sampled`; `winner` for the point that was retrained and won."""
    state: State
    reason: str | None
    seconds: float | None
    config: TrialConfig
    """With `epochs` as scored."""
    scores: dict[str, Score]

    @property
    def title(self) -> str:
        return f"{trial_name(self.label)}, epoch {self.epoch}"

    def value(self, metric: str) -> float:
        score = self.scores.get(metric)
        return math.nan if score is None or score.value is None else score.value


class Importances(NamedTuple):
    """Share of the variation in a score that each parameter accounts for, or why it is not known."""

    shares: dict[str, float]
    missing: str


def read_points(run: Run) -> list[Point]:
    """Every scored (trial, epoch) by number; a trial without a score is one point without scores."""
    won = _winning_point(run.result())
    points = []
    for trial in run.trials():
        for epoch in trial.epochs or (None,):
            kind = "winner" if (trial.label, epoch) == won else trial.origin
            scores = read_evaluation(epoch_folder(trial.path, epoch)).scores if epoch else {}
            config = trial.config.model_copy(update={"epochs": epoch}) if epoch else trial.config
            points.append(
                Point(trial.label, epoch, kind, trial.state, trial.reason, trial.seconds, config, scores)
            )
    return points


def point_folder(run: Run, point: Point) -> Path:
    """The evaluation of a scored point on the dev prompts."""
    return epoch_folder(run.path / "trials" / point.label, point.config.epochs)


def _winning_point(result: Result | None) -> tuple[str, int] | None:
    """Trial and epoch that the winner was retrained from."""
    candidates = result.candidates if result else ()
    return next(((c.label, c.config.epochs) for c in candidates if result and c.label == result.winner), None)


def scored(points: list[Point], *metrics: str) -> list[Point]:
    """Points with a finite score of every one of `metrics`."""
    return [point for point in points if all(math.isfinite(point.value(name)) for name in metrics)]


def best(points: list[Point], metric: str) -> Point | None:
    """The point with the best score of `metric`, among trials that did not fail."""
    found = [point for point in scored(points, metric) if point.state != "failed"]
    return metrics.best(found, metric, lambda point: point.value(metric)) if found else None


def best_so_far(points: list[Point], metric: str) -> list[float]:
    """For each scored point, the best value up to it."""
    running: list[float] = []
    for point in scored(points, metric):
        value = point.value(metric)
        better = max if METRICS[metric].sign > 0 else min
        running.append(better(running[-1], value) if running else value)
    return running


def front(points: list[Point], first: str, second: str) -> list[Point]:
    """Points that no other point beats in both metrics, by the first."""
    sign_x, sign_y = METRICS[first].sign, METRICS[second].sign
    known = sorted(
        scored(points, first, second), key=lambda p: (sign_x * p.value(first), sign_y * p.value(second))
    )
    kept: list[Point] = []
    for point in reversed(known):
        if not kept or sign_y * point.value(second) > sign_y * kept[-1].value(second):
            kept.append(point)
    return kept[::-1]


def importances(run: Run, points: list[Point]) -> Importances:
    """Optuna's importances for `select_by`, on a study rebuilt from the folder: no database is opened."""
    metric = METRICS[run.space.select_by]
    known = scored(points, metric.name)
    if len(known) < MIN_TRIALS:
        return Importances({}, f"Fewer than {MIN_TRIALS} scored trials: too few to tell what mattered.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = _shares(run, known)
    except Exception as error:  # a report must not fail because Optuna cannot make sense of a trial
        return Importances({}, f"Optuna could not compute importances: {error}")
    if not any(shares.values()):
        return Importances({}, "The scored trials do not differ enough to tell what mattered.")
    return Importances(shares, "")


def _shares(run: Run, points: list[Point]) -> dict[str, float]:
    def target(trial: FrozenTrial) -> float:
        return float(trial.values[0])

    metric = METRICS[run.space.select_by]
    study = _quiet_study()
    for point in points:
        # The evaluator asks what leads to low values.
        study.add_trial(
            optuna.create_trial(
                params=run.space.parameters_of(point.config),
                distributions=run.space.distributions,
                value=-metric.sign * point.value(metric.name),
            )
        )
    return optuna.importance.get_param_importances(study, target=target)


def _quiet_study() -> optuna.Study:
    """Optuna announces every study that is made; this one is nobody's business."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="minimize")
    finally:
        optuna.logging.set_verbosity(verbosity)

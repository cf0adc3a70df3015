"""The course of a search: scores in its order, losses, and what a longer search would add."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from bench.run import Result, Run, TrialRecord, read_losses
from bench.scoring.metrics import METRICS, Score
from reports import figures
from reports.cards import key_of
from reports.tables import kind_of, ranked
from reports.trials import Point, best_so_far, scored
from reports.wording import axis_title, duration, model_name, number, trial_name

MAX_CURVE_POINTS = 150
MIN_TRIALS = 6
"""Fewer say nothing about the next."""
GAP, HELD_OUT = "loss_gap", "held_out_loss"


class Longer(NamedTuple):
    """What the last doubling of the number of trials is estimated to have added, which the next adds less."""

    trials: int
    half: int
    added: float
    floor: float | None
    """The smallest difference that is no TIE, where it is known."""
    seconds: float | None
    """That as many trials more would take."""

    @property
    def sentences(self) -> list[str]:
        took = f", about {duration(self.seconds)} more" if self.seconds else ""
        said = [
            f"From {self.half} to {self.trials} trials the best score on the dev prompts is estimated to "
            f"have gained {number(self.added, 4)}. As many again{took}, should add less than that."
        ]
        if self.floor is not None:
            size = "less than" if self.added < self.floor else "more than"
            said.append(f"That is {size} the noise floor of {number(self.floor, 4)}.")
        return said


def longer(run: Run, result: Result | None, points: list[Point]) -> Longer | None:
    """None for few trials."""
    metric = METRICS[run.space.select_by]
    by_trial: dict[str, float] = {}
    for point in scored(points, run.space.select_by):
        value = metric.sign * point.value(metric.name)
        by_trial[point.label] = max(value, by_trial.get(point.label, value))
    if len(by_trial) < MIN_TRIALS:
        return None
    values, half = list(by_trial.values()), len(by_trial) // 2
    found, sides = run.floor(), run.space.confirm.seeds
    known = found is not None and metric.name in found.metrics
    return Longer(
        trials=len(values),
        half=half,
        added=expected_best(values, len(values)) - expected_best(values, half),
        floor=found.smallest(metric.name, sides, sides) if found and known else None,
        seconds=_seconds_of_trials(run),
    )


def expected_best(values: Sequence[float], count: int) -> float:
    """The mean of the largest of `count` values drawn at random, with replacement, from `values`.

    Source: expected validation performance, Dodge et al. 2019, arXiv 1909.03004, equation 1.
    """
    ordered, n = sorted(values), len(values)
    return sum(v * ((i / n) ** count - ((i - 1) / n) ** count) for i, v in enumerate(ordered, start=1))


def _seconds_of_trials(run: Run) -> float | None:
    """About how long all trials took: those side by side share their seconds."""
    seconds = [trial.seconds for trial in run.trials() if trial.seconds]
    slots = run.space.slots if isinstance(run.space.slots, int) else 1
    return sum(seconds) / min(slots, len(seconds)) if seconds else None


def course_figures(
    run: Run, result: Result | None, points: list[Point], base: Mapping[str, Score]
) -> dict[str, go.Figure | None]:
    """By their fixed ids; `base` are the base model's scores on the dev prompts."""
    return {
        "history": _history(run, points, base),
        "losses": _losses(run, result),
        "held-out": _held_out(points),
        "gap": _gap(result) if result else None,
    }


def _history(run: Run, points: list[Point], base: Mapping[str, Score]) -> go.Figure | None:
    name = run.space.select_by
    known = scored(points, name)
    if not known:
        return None
    return figures.history(
        figures.History(
            axis_title(METRICS[name], known[0].scores[name]),
            [point.title for point in known],
            [point.kind for point in known],
            [key_of(point) for point in known],
            [point.value(name) for point in known],
            best_so_far(known, name),
            base[name].value if name in base else None,
        )
    )


def _losses(run: Run, result: Result | None) -> go.Figure | None:
    curves = [curve for trial in run.trials() if (curve := _curve(trial, result))]
    return figures.losses(curves) if curves else None


def _curve(trial: TrialRecord, result: Result | None) -> figures.Curve | None:
    """Smoothed over an eighth of the training, and thinned."""
    table = read_losses(trial.path)
    if len(table) < 2:
        return None
    smooth = table["loss"].ewm(span=max(2, len(table) // 8)).mean()
    every = max(1, len(table) // MAX_CURVE_POINTS)
    kind = "winner" if result and trial.label == result.winner else trial.origin
    return figures.Curve(
        trial_name(trial.label) if kind != "default" else "default config",
        kind if kind in figures.COLOURS else "sampled",
        [int(step) for step in table["step"][::every]],
        [float(loss) for loss in smooth[::every]],
    )


def _held_out(points: list[Point]) -> go.Figure | None:
    """Loss of held-out pictures at every scored epoch, where the space measures it."""
    lines: dict[str, list[Point]] = {}
    for point in scored(points, HELD_OUT):
        lines.setdefault(point.label, []).append(point)
    curves = [
        figures.Curve(
            "default config" if found[0].kind == "default" else trial_name(label),
            next((point.kind for point in found if point.kind != "sampled"), "sampled"),
            [p.epoch or 0 for p in found],
            [p.value(HELD_OUT) for p in found],
        )
        for label, found in lines.items()
    ]
    return figures.losses(curves, "epoch", "loss of held-out pictures", markers=True) if curves else None


def _gap(result: Result) -> go.Figure | None:
    """By how much more training lowered the loss of its pictures than that of held-out ones."""
    rows = [
        figures.Gain(
            model_name(candidate.label),
            kind_of(candidate, result),
            score.value,
            score.stderr,
            score.value - figures.ERRORS * score.stderr,
            score.value + figures.ERRORS * score.stderr,
        )
        for candidate in ranked(result)
        if (score := candidate.scores.get(GAP))
    ]
    title = "loss gained on training pictures<br>beyond held-out ones<br>lines: ± 2 standard errors"
    return figures.gains(title, rows, [], zero="no gap") if rows else None

"""What was pruned, and whether scores at rungs, and of fewer sampler steps, can be trusted: in sentences."""

import plotly.graph_objects as go

from bench.pruning import is_control
from bench.run import Agreement, Result, Run, TrialRecord, epoch_folder, read_evaluation, was_cleaned
from bench.scoring.metrics import METRICS
from bench.scoring.statistics import rank_correlation
from reports import figures
from reports.cards import key_of
from reports.trials import Point, scored
from reports.wording import capital, number, plural, trial_name

MIN_TRIALS = 3
"""Fewer have no rank correlation worth a word."""


def sentences(run: Run, result: Result | None) -> list[str]:
    """For the reader of the trials' table; none where nothing was pruned and no rung can be compared."""
    trials = run.trials()
    return [
        *_pruned(run, trials),
        *_predictions(run, trials),
        *_agreement(run, result),
        *_cleaned(trials),
    ]


def prediction(run: Run, points: list[Point]) -> go.Figure | None:
    """Scores at the first rung against those at the last, of the trials that have both."""
    metric, rungs = METRICS[run.space.select_by], run.space.rungs
    first = {p.label: p for p in scored(points, metric.name) if p.epoch == rungs[0]}
    last = {p.label: p for p in scored(points, metric.name) if p.epoch == rungs[-1]}
    both = [label for label in first if label in last] if len(rungs) > 1 else []
    if len(both) < MIN_TRIALS:
        return None
    marks = []
    for label in both:
        early, end = first[label].scores[metric.name], last[label].scores[metric.name]
        kind = "winner" if "winner" in (first[label].kind, last[label].kind) else last[label].kind
        named = capital(trial_name(label))
        marks.append(
            figures.Mark(named, kind, early.value, end.value, early.stderr, end.stderr, key_of(last[label]))
        )
    titles = [f"{metric.label}<br>after {plural(rung, 'epoch')}" for rung in (rungs[0], rungs[-1])]
    return figures.predicted(figures.Prediction(titles[0], titles[1], marks))


def _cleaned(trials: list[TrialRecord]) -> list[str]:
    cleaned = sum(was_cleaned(trial) for trial in trials)
    if not cleaned:
        return []
    return [
        f"Images and adapters of {plural(cleaned, 'trial')} were removed with bench clean, to free room; "
        "their scores count as before."
    ]


def _pruned(run: Run, trials: list[TrialRecord]) -> list[str]:
    pruned = [trial for trial in trials if trial.state == "pruned"]
    if not pruned:
        return []
    names = [*run.space.objectives, *(["held_out_loss"] if run.space.prune.held_out_loss else [])]
    criteria = ", ".join(METRICS[name].label.lower() for name in names)
    controls = sum(is_control(int(trial.label), run.space.prune) for trial in trials)
    return [
        f"{len(pruned)} of {plural(len(trials), 'trial')} stopped early: at an epoch that they passed they "
        f"were among the last {100 * run.space.prune.fraction:g} %, by non-dominated rank in {criteria}. "
        f"The default config and {plural(controls, 'control')} went on whatever their rank."
    ]


def _predictions(run: Run, trials: list[TrialRecord]) -> list[str]:
    """Of the last epochs by each earlier rung: what was pruned has no end to compare with."""
    last = max(run.space.rungs)
    ended = [t for t in trials if t.state == "complete" and last in t.epochs]
    if len(ended) < MIN_TRIALS:
        return []
    controls = sum(is_control(int(trial.label), run.space.prune) for trial in ended)
    label = METRICS[run.space.select_by].label.lower()
    end = [_value(run, trial, last) for trial in ended]
    found = []
    for rung in run.space.rungs[:-1]:
        tau = rank_correlation([_value(run, trial, rung) for trial in ended], end)
        found.append(
            f"How well {plural(rung, 'epoch')} told the end: the rank correlation (Kendall's tau) with the "
            f"{label} after {last} epochs is {number(tau, 2, signed=True)}, over the "
            f"{plural(len(ended), 'trial')} that went on to there, {plural(controls, 'control')} among them."
        )
    return found


def _agreement(run: Run, result: Result | None) -> list[str]:
    found: Agreement | None = result.agreement if result else None
    if not found:
        return []
    label = METRICS[run.space.select_by].label.lower()
    return [
        f"The dev prompts were drawn with {found.rung_steps} sampler steps, the test prompts with "
        f"{found.steps}: the rank correlation (Kendall's tau) between the {label} of a retraining on the "
        f"two is {number(found.tau, 2, signed=True)}, over {plural(found.num_trainings, 'retraining')}. "
        "The prompts differ too, and all were trained from a few configurations: a hint, no proof."
    ]


def _value(run: Run, trial: TrialRecord, epoch: int) -> float:
    return read_evaluation(epoch_folder(trial.path, epoch)).scores[run.space.select_by].value

"""The evidence behind the verdict of a finished search, section by section."""

from typing import NamedTuple

import plotly.graph_objects as go

from bench.comparison import Comparison, MetricComparison
from bench.run import Result, Run
from bench.scoring.metrics import METRICS, Score, judged
from reports import checkpoints, choice, figures, memorization, preservation, tables
from reports.checkpoints import Checkpoints
from reports.memorization import Memorization
from reports.preservation import Preservation
from reports.tracks import Track, tracks
from reports.verdict import Contests, winner_of
from reports.wording import axis_title, direction, model_name, plus_minus, span

STAGES = (
    ("search: one training, dev prompts", "circle-open", "sampled"),
    ("choice: fresh trainings, dev prompts", "diamond-open", "default"),
    ("result: the same, test prompts", "star", "winner"),
)
INTERVALS, TWO_ERRORS = "95 % intervals", "± 2 standard errors"


class Gains(NamedTuple):
    lines: str
    """What the rows' lines are: INTERVALS of the comparison with the base, or TWO_ERRORS."""
    rows: list[figures.Gain]


class Lead(NamedTuple):
    """The winner minus the default in one tested metric."""

    heading: tables.Heading
    verdict: str
    difference: str
    interval: str
    track: Track


class Proof(NamedTuple):
    confirmed: tables.Confirmed
    leads: list[Lead]
    choices: list[choice.ChoiceRow]
    regret: str
    checkpoints: Checkpoints | None
    memorization: Memorization | None
    preservation: Preservation | None
    bands: list[figures.Band]
    """Of the figure of gains."""


def prove(run: Run, result: Result, found: Contests, base: dict[str, Score]) -> Proof:
    """`base` are the base model's scores on the test prompts."""
    return Proof(
        confirmed=tables.confirmed(result, base, found.over_base),
        leads=[_lead(row) for row in found.over_default.metrics] if found.over_default else [],
        choices=choice.rows(result),
        regret=choice.regret(run, result).sentence(winner_of(result)),
        checkpoints=checkpoints.checkpoints(result),
        memorization=memorization.panel(run, result, base),
        preservation=preservation.panel(result),
        bands=bands(result, result.select_by, found),
    )


def _lead(row: MetricComparison) -> Lead:
    return Lead(
        heading=tables.heading(row.metric, row.a),
        verdict=str(row.verdict),
        difference=plus_minus(row.mean, row.stderr, signed=True),
        interval=span(row.low, row.high),
        track=tracks([row])[0],
    )


def proof_figures(result: Result, found: Contests) -> dict[str, go.Figure | None]:
    """Of the sections of this module, by their fixed ids."""
    judge = judged(result.select_by)
    return {
        "gains": _gains(result, result.select_by, found),
        "gains-judge": _gains(result, judge, found) if judge else None,
        "stages": _stages(result),
        "checkpoints": _checkpoints(result),
    }


def bands(result: Result, metric: str, found: Contests) -> list[figures.Band]:
    """Gains that differ from the base's, or from the default's, by less than the noise floor."""
    spans = []
    default = result.candidate("default")
    base_floor = _floor(found.over_base.get(result.winner), metric)
    if base_floor is not None:
        spans.append(figures.Band("base", "base", -base_floor, base_floor))
    floor = _floor(found.over_default, metric)
    centre = choice.gain_of(default.scores.get(metric)) if default else None
    if floor is not None and centre is not None:
        spans.append(figures.Band("default config", "default", centre.value - floor, centre.value + floor))
    return spans


def _floor(comparison: Comparison | None, metric: str) -> float | None:
    row = _row(comparison, metric)
    return row.floor if row else None


def _row(comparison: Comparison | None, metric: str) -> MetricComparison | None:
    return comparison.row(metric) if comparison else None


def _gains(result: Result, metric: str, found: Contests) -> go.Figure | None:
    shown = gains(result, metric, found)
    score = winner_of(result).scores.get(metric)
    named = axis_title(METRICS[metric], score)
    title = f"gain over the base in<br>{named}<br>{direction(METRICS[metric])}; lines: {shown.lines}"
    return figures.gains(title, shown.rows, bands(result, metric, found)) if shown.rows else None


def gains(result: Result, metric: str, found: Contests) -> Gains:
    """Lines of one figure are of one kind: intervals only where every gain has one."""
    shown = [(c, gain) for c in tables.ranked(result) if (gain := choice.gain_of(c.scores.get(metric)))]
    tested = [row for c, _ in shown if (row := _row(found.over_base.get(c.label), metric))]
    known = len(tested) == len(shown)
    lines = [(row.mean, row.stderr, row.low, row.high) for row in tested]
    if not known:
        lines = [_two_errors(*gain) for _, gain in shown]
    rows = [
        figures.Gain(model_name(candidate.label), tables.kind_of(candidate, result), *line)
        for (candidate, _), line in zip(shown, lines, strict=True)
    ]
    return Gains(INTERVALS if known else TWO_ERRORS, rows)


def _two_errors(gain: float, stderr: float) -> tuple[float, float, float, float]:
    return gain, stderr, gain - figures.ERRORS * stderr, gain + figures.ERRORS * stderr


def _stages(result: Result) -> go.Figure | None:
    rows = choice.rows(result)
    columns = zip(*((row.searched, row.retrained, row.confirmed) for row in rows), strict=True)
    data = [
        figures.Stage(name, symbol, kind, list(gains))
        for (name, symbol, kind), gains in zip(STAGES, columns, strict=True)
    ]
    if not any(gain for stage in data for gain in stage.gains):
        return None
    metric = METRICS[result.select_by]
    title = f"gain over the base in {metric.label.lower()}<br>{direction(metric)}; lines: {TWO_ERRORS}"
    return figures.stages(title, [row.title for row in rows], data)


def _checkpoints(result: Result) -> go.Figure | None:
    found = checkpoints.checkpoints(result)
    if found is None:
        return None
    metric = METRICS[result.select_by]
    score = next(iter(winner_of(result).by_epoch.values()), {}).get(metric.name)
    return figures.checkpoints(f"{axis_title(metric, score)}<br>{direction(metric)}", found.lines)

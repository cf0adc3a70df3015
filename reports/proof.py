"""The evidence behind the verdict of a finished search, section by section."""

from collections.abc import Iterator
from typing import NamedTuple

import plotly.graph_objects as go

from bench.compare import Comparison
from bench.run import Candidate, Result, Run
from bench.scoring.metrics import METRICS, Score, judged
from reports import checkpoints, choice, figures, memorization, preservation, tables
from reports.checkpoints import Checkpoints
from reports.memorization import Memorization
from reports.preservation import Preservation
from reports.verdict import Contests, candidate_of, winner_of
from reports.wording import axis_title, direction, model_name

STAGES = (
    ("search: one training, dev prompts", "circle-open", "sampled"),
    ("choice: fresh trainings, dev prompts", "diamond-open", "default"),
    ("result: the same, test prompts", "star", "winner"),
)


class Proof(NamedTuple):
    confirmed: tables.Confirmed
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
        choices=choice.rows(result),
        regret=choice.regret(run, result).sentence(winner_of(result)),
        checkpoints=checkpoints.checkpoints(result),
        memorization=memorization.panel(run, result, base),
        preservation=preservation.panel(run, result),
        bands=bands(result, result.select_by, found),
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
    default = candidate_of(result, "default")
    base_floor = _floor(found.over_base.get(result.winner), metric)
    if base_floor is not None:
        spans.append(figures.Band("base", "base", -base_floor, base_floor))
    floor, centre = _floor(found.over_default, metric), _gain_of(default, metric)
    if floor is not None and centre is not None:
        spans.append(figures.Band("default config", "default", centre[0] - floor, centre[0] + floor))
    return spans


def _floor(comparison: Comparison | None, metric: str) -> float | None:
    row = comparison.row(metric) if comparison else None
    return row.floor if row else None


def _gain_of(candidate: Candidate | None, metric: str) -> tuple[float, float] | None:
    score = candidate.scores.get(metric) if candidate else None
    if score is None or score.gain is None or score.gain_stderr is None:
        return None
    return score.gain, score.gain_stderr


def _gains(result: Result, metric: str, found: Contests) -> go.Figure | None:
    rows = list(_gain_rows(result, metric))
    score = winner_of(result).scores.get(metric)
    named = axis_title(METRICS[metric], score)
    title = f"gain over the base in<br>{named}<br>{direction(METRICS[metric])}"
    return figures.gains(title, rows, bands(result, metric, found)) if rows else None


def _gain_rows(result: Result, metric: str) -> Iterator[figures.Gain]:
    for candidate in tables.ranked(result):
        gain = _gain_of(candidate, metric)
        if gain:
            kind = tables.kind_of(candidate, result)
            yield figures.Gain(model_name(candidate.label), kind, *gain)


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
    title = f"gain over the base in {metric.label.lower()}<br>{direction(metric)}"
    return figures.stages(title, [row.title for row in rows], data)


def _checkpoints(result: Result) -> go.Figure | None:
    found = checkpoints.checkpoints(result)
    if found is None:
        return None
    metric = METRICS[result.select_by]
    score = next(iter(winner_of(result).by_epoch.values()), {}).get(metric.name)
    return figures.checkpoints(f"{axis_title(metric, score)}<br>{direction(metric)}", found.lines)

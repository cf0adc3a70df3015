"""Slices: the score of every point at its value of one parameter."""

from collections.abc import Mapping

import plotly.graph_objects as go

from bench.run import Run
from bench.scoring.metrics import METRICS, Metric, Score
from bench.space import modules_to_text
from reports import figures
from reports.cards import key_of
from reports.trials import Point, scored

LOG_RATIO = 8
"""A positive parameter whose values span more than this is drawn on a logarithmic axis."""


def slices(run: Run, points: list[Point], base: Mapping[str, Score]) -> dict[str, go.Figure]:
    """By their ids, `slice-` and the name of the parameter; `base` are the base model's dev scores."""
    metric = METRICS[run.space.select_by]
    known = scored(points, metric.name)
    value = base[metric.name].value if metric.name in base else None
    return {f"slice-{name}": _slice(name, known, metric, value) for name in sliced(run, points)}


def sliced(run: Run, points: list[Point]) -> list[str]:
    """The searched parameters that varied."""
    known = scored(points, run.space.select_by)
    return [name for name in run.space.distributions if len({_value(point, name) for point in known}) > 1]


def _slice(name: str, known: list[Point], metric: Metric, base: float | None) -> go.Figure:
    values = [_value(point, name) for point in known]
    texts = any(isinstance(value, str) for value in values)
    return figures.sliced(
        figures.Slice(
            name=name,
            y_title=metric.label,
            values=[str(value) for value in values] if texts else values,
            scores=[point.value(metric.name) for point in known],
            kinds=[point.kind for point in known],
            keys=[key_of(point) for point in known],
            is_log=not texts and _is_wide([float(value) for value in values]),
            base=base,
        )
    )


def _value(point: Point, name: str) -> float | str:
    value = getattr(point.config, name)
    if name == "target_modules":
        return modules_to_text(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _is_wide(values: list[float]) -> bool:
    return min(values) > 0 and max(values) >= LOG_RATIO * min(values)

"""Parallel coordinates: one line a scored point through every parameter that varied.

plotly's own trace for this needs WebGL and `eval`, which the page forbids; plain lines do it here.
"""

import html
import math
from typing import NamedTuple

import plotly.graph_objects as go

from bench.scoring.metrics import METRICS
from bench.space import Parameters, modules_to_text
from reports.figures import COLOURS, laid_out
from reports.trials import Point, scored
from reports.wording import number, short

LOW, HIGH = (138, 155, 173), (213, 94, 0)
"""From grey to the winner's colour: the stronger, the better."""
MAX_TICKS = 6


class Axis(NamedTuple):
    """One parameter: where its ticks and the points' values are, from 0 to 1."""

    name: str
    ticks: list[tuple[float, str]]
    heights: list[float]


class Line(NamedTuple):
    title: str
    heights: list[float]
    strength: float
    """Its rank: 0 for the worst score, 1 for the best; one failure must not make all others look alike."""


class Parallel(NamedTuple):
    axes: list[Axis]
    lines: list[Line]


def parallel(points: list[Point], metric: str) -> Parallel:
    """Axes for the parameters that differ between scored points, and one for the score."""
    known = scored(points, metric)
    axes = [axis for name in Parameters.model_fields if (axis := _axis(name, known))]
    values = [point.value(metric) for point in known]
    score = _numeric(METRICS[metric].label, values, log=False)
    strengths = _ranks([METRICS[metric].sign * value for value in values])
    axes.append(score)
    lines = [
        Line(
            f"{point.title}: {number(values[index])}",
            [axis.heights[index] for axis in axes],
            strengths[index],
        )
        for index, point in enumerate(known)
    ]
    return Parallel(axes, lines)


def figure(data: Parallel) -> go.Figure:
    """The strongest colour on top."""
    figure = go.Figure()
    places = list(range(len(data.axes)))
    for line in sorted(data.lines, key=lambda line: line.strength):
        figure.add_scatter(
            x=places,
            y=line.heights,
            mode="lines",
            line={"color": _mixed(line.strength), "width": 1 + 2 * line.strength},
            opacity=0.35 + 0.65 * line.strength,
            text=[html.escape(line.title)] * len(places),
            hovertemplate="%{text}<extra></extra>",
        )
    for place, axis in enumerate(data.axes):
        figure.add_vline(x=place, line={"color": COLOURS["base"], "width": 1})
        for height, text in axis.ticks:
            label = html.escape(text)
            figure.add_annotation(x=place, y=height, text=label, showarrow=False, xanchor="left", xshift=3)
    names = [html.escape(axis.name.replace("_", " ")) for axis in data.axes]
    names[-1] = "<b>score</b>"
    figure.update_xaxes(tickvals=places, ticktext=names, side="top", showgrid=False, zeroline=False)
    figure.update_xaxes(range=[-0.15, len(places) - 0.4])
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    figure = laid_out(figure, height=400, legend=False)
    return figure.update_layout(margin={"l": 20, "t": 40, "b": 10})


def _axis(name: str, points: list[Point]) -> Axis | None:
    """None for a parameter that has one value everywhere."""
    values = [getattr(point.config, name) for point in points]
    if name == "target_modules":
        return _categories(name, [modules_to_text(value) for value in values])
    if any(value is None or isinstance(value, bool | str) for value in values):
        return _categories(name, [str(value) for value in values])
    if len(set(values)) < 2:
        return None
    positive = min(values) > 0
    return _numeric(
        name, values, log=positive and (name == "learning_rate" or max(values) >= 8 * min(values))
    )


def _ranks(values: list[float]) -> list[float]:
    """Share of the other values that are lower."""
    return [sum(other < value for other in values) / max(1, len(values) - 1) for value in values]


def _categories(name: str, values: list[str]) -> Axis | None:
    known = sorted(set(values))
    if len(known) < 2:
        return None
    height = {value: index / (len(known) - 1) for index, value in enumerate(known)}
    shown = [(height[value], value if len(value) < 20 else value[:18] + "…") for value in known]
    return Axis(name, shown, [height[value] for value in values])


def _numeric(name: str, values: list[float], *, log: bool) -> Axis:
    scale = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    span = high - low or 1.0
    known = sorted(set(values))
    if len(known) > MAX_TICKS:
        known = [known[0], known[-1]]
    ticks = [((scale(value) - low) / span, short(value)) for value in known]
    return Axis(name, ticks, [(scale(value) - low) / span for value in values])


def _mixed(strength: float) -> str:
    channels = (round(low + strength * (high - low)) for low, high in zip(LOW, HIGH, strict=True))
    return "rgb({}, {}, {})".format(*channels)

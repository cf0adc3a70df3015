"""Parallel coordinates: one line a scored point through every parameter that varied.

plotly's own trace for this needs WebGL and `eval`, which the page forbids; lines of the page do it here, and
its script lets a reader narrow every axis down.
"""

import math
from typing import NamedTuple

from bench.scoring.metrics import METRICS
from bench.space import Parameters, modules_to_text
from reports.cards import key_of
from reports.trials import Point, scored
from reports.wording import clipped, number, short

LOW, HIGH = (138, 155, 173), (213, 94, 0)
"""From grey to the winner's colour: the stronger, the better."""
MAX_TICKS = 6
WIDTH, HEIGHT, TOP, LEFT, RIGHT = 1000, 300, 44, 16, 60
"""Of the drawing, in its own units; the lines' part is HEIGHT high."""


class Axis(NamedTuple):
    """One parameter: where its ticks and the points' values are, from 0 to 1."""

    name: str
    ticks: list[tuple[float, str]]
    heights: list[float]


class Line(NamedTuple):
    title: str
    key: str
    """Of the card that is shown for it."""
    heights: list[float]
    strength: float
    """Its rank: 0 for the worst score, 1 for the best; one failure must not make all others look alike."""

    @property
    def colour(self) -> str:
        channels = (round(low + self.strength * (high - low)) for low, high in zip(LOW, HIGH, strict=True))
        return "rgb({}, {}, {})".format(*channels)


class Parallel(NamedTuple):
    axes: list[Axis]
    lines: list[Line]
    """The strongest last, on top."""

    def x(self, index: int) -> float:
        """Of an axis in the drawing."""
        return LEFT + index * (WIDTH - LEFT - RIGHT) / (len(self.axes) - 1)

    def y(self, height: float) -> float:
        return TOP + (1 - height) * HEIGHT

    def path(self, line: Line) -> str:
        return " ".join(f"{self.x(i):.1f},{self.y(height):.1f}" for i, height in enumerate(line.heights))


def parallel(points: list[Point], metric: str) -> Parallel | None:
    """Axes for the parameters that differ between scored points, and one for the score; None if none do."""
    known = scored(points, metric)
    if not known:
        return None
    axes = [axis for name in Parameters.model_fields if (axis := _axis(name, known))]
    values = [point.value(metric) for point in known]
    score = _numeric("score", values, log=False)
    strengths = _ranks([METRICS[metric].sign * value for value in values])
    axes.append(score)
    lines = [
        Line(
            f"{point.title}: {number(values[index])}",
            key_of(point),
            [axis.heights[index] for axis in axes],
            strengths[index],
        )
        for index, point in enumerate(known)
    ]
    lines.sort(key=lambda line: line.strength)
    return Parallel(axes, lines) if len(axes) > 1 else None


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
    shown = [(height[value], clipped(value)) for value in known]
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

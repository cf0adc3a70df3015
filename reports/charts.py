"""Charts drawn as SVG text: plain data -> markup that needs no script. Colours are the page's, by class.

A chart is as wide as a phone, so that its letters keep their size there; wider pages put several
side by side.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 42
STRIP_HEIGHT, STRIP_SIDE = 92, 14
MAX_TICKS = 5
ERRORS = 2
"""Standard errors to each side of a point."""


class Line(NamedTuple):
    """Points joined in the order given; what is not finite is left out."""

    title: str
    kind: str
    """Its class: decides the colour."""
    points: list[tuple[float, float]]
    errors: Sequence[float] = ()
    """A standard error for each point, or none."""
    marks: bool = False
    """Whether points are marked, each with its numbers to be read on hover."""


class Level(NamedTuple):
    """A value that others are held against, over the whole width."""

    title: str
    kind: str
    value: float


class Chart(NamedTuple):
    id: str
    title: str
    description: str
    """For who does not see it: what is drawn, and what it comes to."""
    x_title: str
    lines: list[Line]
    levels: Sequence[Level] = ()
    x_ticks: Sequence[float] = ()
    """Where there are to be some, and no others."""


class Dot(NamedTuple):
    """One value on a strip; what is said of it on hover."""

    title: str
    kind: str
    value: float
    large: bool = False


class Band(NamedTuple):
    low: float
    high: float


class Strip(NamedTuple):
    """Values on one axis, and a span that is shaded."""

    id: str
    title: str
    description: str
    x_title: str
    dots: list[Dot]
    """Later ones lie on top."""
    band: Band | None = None


Key = tuple[str, str, str]
"""Title, kind and sign (`line`, `dashed`, `point` or `area`) of what is drawn."""


class Box(NamedTuple):
    """A chart with what stands around it."""

    svg: Markup
    title: str
    note: str
    keys: Sequence[Key] = ()


class _Axis(NamedTuple):
    """From values to places."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart(data: Chart) -> Markup:
    """Lines over a common x; empty if there is nothing to draw."""
    lines = [_finite(line) for line in data.lines]
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup()
    ends = [y + side * error for line in lines for y, error in _ends(line) for side in (-ERRORS, ERRORS)]
    ends += [level.value for level in data.levels]
    x = _Axis(*_span([x for x, _ in points], 0.02), LEFT, WIDTH - RIGHT)
    y = _Axis(*_span(ends, 0.06), HEIGHT - BOTTOM, TOP)
    parts = [*_frame(data, x, y)]
    parts += [_level(level, y) for level in data.levels]
    parts += [part for line in lines for part in _line(line, x, y)]
    return _svg(data.id, data.title, data.description, HEIGHT, parts)


def strip(data: Strip) -> Markup:
    """Dots on a line; empty if there is none."""
    dots = [dot for dot in data.dots if math.isfinite(dot.value)]
    if not dots:
        return Markup()
    ends = [dot.value for dot in dots] + (list(data.band) if data.band else [])
    x = _Axis(*_span(ends, 0.05), STRIP_SIDE, WIDTH - STRIP_SIDE)
    middle, floor = 28, STRIP_HEIGHT - 40
    parts = [_band(data.band, x, floor)] if data.band else []
    parts.append(_path("axis", [(STRIP_SIDE, floor), (WIDTH - STRIP_SIDE, floor)]))
    for tick in ticks(x.low, x.high):
        place = x.at(tick)
        parts.append(_path("axis", [(place, floor), (place, floor + 4)]))
        parts.append(_text(_label(tick, x), place, floor + 17, "tick middle"))
    parts.append(_text(data.x_title, WIDTH / 2, STRIP_HEIGHT - 5, "name middle"))
    parts += [_dot(dot, x.at(dot.value), middle) for dot in dots]
    return _svg(data.id, data.title, data.description, STRIP_HEIGHT, parts)


def ticks(low: float, high: float, most: int = MAX_TICKS) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` + 1: multiples of 1, 2 or 5 times a power of ten."""
    step = _step(low, high, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def smoothed(values: list[float], span: float) -> list[float]:
    """Exponential moving average, α = 2 / (span + 1), weights of what came before the first left out."""
    decay, total, weight, found = 1 - 2 / (span + 1), 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        found.append(total / weight)
    return found


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` + 1 of them, evenly spread, the last among them."""
    every = max(1, math.ceil(len(points) / most))
    kept = points[::every]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _step(low: float, high: float, most: int) -> float:
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= least * (1 - 1e-9))


def _span(values: Iterable[float], room: float) -> tuple[float, float]:
    """All of them with some room; never empty."""
    known = list(values)
    low, high = min(known), max(known)
    wide = (high - low) or abs(high) or 1.0
    return low - room * wide, high + room * wide


def _finite(line: Line) -> Line:
    errors = line.errors or [0.0] * len(line.points)
    kept = [
        (point, error if math.isfinite(error) else 0.0)
        for point, error in zip(line.points, errors, strict=True)
        if all(map(math.isfinite, point))
    ]
    return line._replace(points=[point for point, _ in kept], errors=[error for _, error in kept])


def _ends(line: Line) -> list[tuple[float, float]]:
    return [(y, error) for (_, y), error in zip(line.points, line.errors, strict=True)]


def _frame(data: Chart, x: _Axis, y: _Axis) -> list[Markup]:
    """Grid, ticks, and what the axis across is."""
    parts = []
    for tick in ticks(y.low, y.high, 4):
        parts.append(_path("grid", [(LEFT, y.at(tick)), (WIDTH - RIGHT, y.at(tick))]))
        parts.append(_text(_label(tick, y, 4), LEFT - 7, y.at(tick) + 4, "tick end"))
    parts.append(_path("axis", [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)]))
    for tick in data.x_ticks or ticks(x.low, x.high):
        parts.append(_text(_label(tick, x), x.at(tick), HEIGHT - BOTTOM + 16, "tick middle"))
    parts.append(_text(data.x_title, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "name middle"))
    return parts


def _level(level: Level, y: _Axis) -> Markup:
    place = y.at(level.value)
    return _path(f"level {level.kind}", [(LEFT, place), (WIDTH - RIGHT, place)], level.title)


def _line(line: Line, x: _Axis, y: _Axis) -> list[Markup]:
    places = [(x.at(point[0]), y.at(point[1])) for point in line.points]
    bars = [
        _path(
            f"error {line.kind}",
            [(place, y.at(value - ERRORS * error)), (place, y.at(value + ERRORS * error))],
        )
        for (place, _), (_, value), error in zip(places, line.points, line.errors, strict=True)
        if error
    ]
    path = [_path(f"line {line.kind}", places, line.title)] if len(places) > 1 else []
    if not line.marks and len(places) > 1:
        return [*bars, *path]
    marks = [
        _dot(Dot(f"{line.title}, {point[0]:g}: {point[1]:.4g}", line.kind, 0.0), *place)
        for point, place in zip(line.points, places, strict=True)
    ]
    return [*bars, *path, *marks]


def _band(band: Band, x: _Axis, height: float) -> Markup:
    low, high = x.at(band.low), x.at(band.high)
    return Markup('<rect class="band" x="{:.1f}" y="4" width="{:.1f}" height="{:.1f}"/>').format(
        low, high - low, height - 4
    )


def _dot(dot: Dot, x: float, y: float) -> Markup:
    radius = 7 if dot.large else 5
    shape = '<circle class="dot-mark {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>'
    return Markup(shape).format(dot.kind, x, y, radius, dot.title)


def _path(kind: str, places: list[tuple[float, float]], title: str = "") -> Markup:
    steps = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places))
    said = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<path class="{}" d="{}">{}</path>').format(kind, steps, said)


def _text(text: str, x: float, y: float, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


def _label(tick: float, axis: _Axis, most: int = MAX_TICKS) -> str:
    """With as many decimals as the step has."""
    step = _step(axis.low, axis.high, most)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick:,.{decimals}f}".replace("-", "−").replace(",", " ")


def _svg(id: str, title: str, description: str, height: int, parts: list[Markup]) -> Markup:
    head = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{id}-title {id}-about">'
        '<title id="{id}-title">{}</title><desc id="{id}-about">{}</desc>'
    ).format(WIDTH, height, title, description, id=escape(id))
    return head + Markup().join(parts) + Markup("</svg>")

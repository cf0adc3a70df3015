"""What is traded for what: the metric that decides against every other objective, and against drift."""

from collections.abc import Mapping

import plotly.graph_objects as go

from bench.run import Run
from bench.scoring.metrics import METRICS, Score
from reports import figures
from reports.cards import key_of
from reports.trials import Point, front, scored
from reports.wording import axis_title, direction

IDS = ("tradeoff-1", "tradeoff-2", "tradeoff-3")


def tradeoffs(run: Run, points: list[Point], base: Mapping[str, Score]) -> dict[str, go.Figure | None]:
    """By their fixed ids; `base` are the base model's scores on the dev prompts."""
    chosen = run.space.select_by
    others = [name for name in dict.fromkeys([*run.space.objectives, "drift"]) if name != chosen]
    return {id: _tradeoff(other, chosen, points, base) for id, other in zip(IDS, others, strict=False)}


def _tradeoff(x: str, y: str, points: list[Point], base: Mapping[str, Score]) -> go.Figure | None:
    known = scored(points, x, y)
    if not known:
        return None
    marks = [_mark(p.title, p.kind, p.scores[x], p.scores[y], key_of(p)) for p in known]
    if x == "drift" and y in base:
        marks.append(figures.Mark("base model", "base", 0.0, base[y].value, 0.0, base[y].stderr))
    elif x in base and y in base:
        marks.append(_mark("base model", "base", base[x], base[y]))
    line = [(point.value(x), point.value(y)) for point in front(known, x, y)]
    titles = [f"{axis_title(METRICS[n], known[0].scores[n])}<br>{direction(METRICS[n])}" for n in (x, y)]
    return figures.tradeoff(figures.Tradeoff(titles[0], titles[1], marks, line))


def _mark(title: str, kind: str, x: Score, y: Score, key: str = "") -> figures.Mark:
    return figures.Mark(title, kind, x.value, y.value, x.stderr, y.stderr, key)

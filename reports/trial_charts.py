"""The charts of a trial's page: scores against epochs, where it stands, and its losses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.run import Run
from bench.scoring.metrics import METRICS, Score
from reports import charts
from reports.charts import Box, Chart, Dot, Key, Level, Line, Strip
from reports.trials import Point
from reports.wording import capital, direction, plural, plus_minus, trial_name

if TYPE_CHECKING:
    import pandas as pd

MAX_POINTS = 160
"""Of a line."""
HELD_OUT = "held_out_loss"


def of_scores(run: Run, base: dict[str, Score], default: Point | None, points: Sequence[Point]) -> list[Box]:
    """Each objective, and drift, against the epochs at which the trial was scored."""
    names = dict.fromkeys([run.space.select_by, *run.space.objectives, "drift"])
    boxes = [_of_metric(name, base, default, points) for name in names]
    return [box for box in boxes if box]


def _of_metric(
    name: str, base: dict[str, Score], default: Point | None, points: Sequence[Point]
) -> Box | None:
    known = [(point, point.scores[name]) for point in points if name in point.scores]
    if not known:
        return None
    metric, kind = METRICS[name], _kind(known[0][0])
    own = Line(
        "epochs",
        kind,
        [(float(point.config.epochs), score.value) for point, score in known],
        [score.stderr for _, score in known],
        marks=True,
    )
    levels = [Level("base model", "base", base[name].value)] if name in base and name != "drift" else []
    if default and name in default.scores and default.label != known[0][0].label:
        levels.append(Level("default config", "default", default.scores[name].value))
    told = "; ".join(f"{plural(p.config.epochs, 'epoch')}: {plus_minus(s.value, s.stderr)}" for p, s in known)
    others = "".join(f"; {level.title}: {level.value:.4g}" for level in levels)
    chart = Chart(
        f"score-{name}",
        f"{metric.label} against epochs",
        f"{told}{others}.",
        "epochs trained",
        [own],
        levels,
        [float(point.config.epochs) for point, _ in known],
    )
    keys = [("this trial", kind, "point"), *((level.title, level.kind, "dashed") for level in levels)]
    return Box(charts.chart(chart), metric.label, direction(metric), keys)


def of_standing(name: str, label: str, bests: Sequence[Point]) -> Box | None:
    """The best epoch of every trial on one axis."""
    if label not in {point.label for point in bests}:
        return None
    metric = METRICS[name]
    order = sorted(bests, key=lambda point: (point.label == label, point.kind != "sampled"))
    dots = [_dot(name, point, label) for point in order]
    strip = Strip("standing", f"{metric.label} of every trial", _told(dots), direction(metric), dots)
    kinds = {dot.kind for dot in dots[:-1]}
    keys = [("this trial", dots[-1].kind, "point")]
    keys += [("default config", "default", "point")] if "default" in kinds else []
    keys += [("winner", "winner", "point")] if "winner" in kinds else []
    keys += [("others", "other", "point")] if "other" in kinds else []
    return Box(
        charts.strip(strip),
        f"Among {plural(len(dots), 'trial')}",
        f"{metric.label}, best epoch of each",
        keys,
    )


def _dot(name: str, point: Point, label: str) -> Dot:
    own = point.label == label
    kind = _kind(point) if own else "other" if point.kind == "sampled" else point.kind
    where = f"{capital(trial_name(point.label))}, {plural(point.config.epochs, 'epoch')}"
    return Dot(f"{where}: {point.value(name):.4g}", kind, point.value(name), own)


def _told(dots: Sequence[Dot]) -> str:
    values = [dot.value for dot in dots]
    return f"From {min(values):.4g} to {max(values):.4g}; {dots[-1].title}."


def of_losses(losses: "pd.DataFrame", points: Sequence[Point]) -> Box | None:
    """Training loss by step, smoothed over an eighth of the training; that of held-out pictures if known."""
    if len(losses) < 2:
        return None
    steps = [float(step) for step in losses["step"]]
    raw = [float(loss) for loss in losses["loss"]]
    smooth = charts.smoothed(raw, max(2, len(raw) // 8))
    thin = [charts.thinned(list(zip(steps, values, strict=True)), MAX_POINTS) for values in (raw, smooth)]
    kind = _kind(points[0]) if points else "own"
    lines = [Line("each step", f"{kind} raw", thin[0]), Line("smoothed", kind, thin[1])]
    keys: list[Key] = [("training, smoothed", kind, "line")]
    if held_out := _held_out(steps, points):
        lines.append(held_out)
        keys.append(("held-out pictures", "held-out", "line"))
    told = f"Smoothed, it went from {smooth[0]:.4g} to {smooth[-1]:.4g} in {plural(len(raw), 'step')}."
    chart = Chart("losses", "Training loss", told, "training step", lines)
    return Box(charts.chart(chart), "Loss", "mean squared error, lower is better", keys)


def _held_out(steps: Sequence[float], points: Sequence[Point]) -> Line | None:
    """At the last step of every scored epoch; None of a training that went on after the last one."""
    known = [(point.config.epochs, point.value(HELD_OUT)) for point in points if HELD_OUT in point.scores]
    if not known or points[0].state not in ("complete", "pruned"):
        return None
    last = max(point.config.epochs for point in points)
    places = [(steps[-1] * epoch / last, value) for epoch, value in known]
    return Line("held-out pictures", "held-out", places, marks=True)


def _kind(point: Point) -> str:
    return point.kind if point.kind in ("default", "winner") else "own"

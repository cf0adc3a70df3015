"""The page of a noise floor: what luck does to scores and to images, and what more trainings would tell."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from bench.files import write_text
from bench.floor import Floor
from bench.run import (
    Evaluation,
    Result,
    Run,
    TrialRecord,
    exam_folder,
    has_evaluation,
    image_files,
    read_evaluation,
)
from bench.scoring.metrics import METRICS, judged
from bench.scoring.statistics import ALPHA
from reports import charts, page
from reports.charts import Band, Box, Chart, Dot, Line, Strip
from reports.floor import FloorTable, floor_table
from reports.images import Column, Grid, grid
from reports.verdict import Fact, Verdict
from reports.wording import direction, duration, number, plural, significant, trial_name

FILE = "floor.html"
MAX_SHOWN = 5
"""Trainings whose images stand side by side."""
NUM_PROMPTS = 4
"""Prompts at which trainings differ most, and as many at which they differ as usual."""
MORE = (2, 3, 5, 8, 12, 20, 30)
"""Numbers of trainings that are held against what there is."""
FAR = 6
"""Floors from the mean: a winner beyond is told, not drawn, lest the trainings become one dot."""


class Training(NamedTuple):
    """One training of the default configuration."""

    title: str
    record: TrialRecord
    folder: Path
    evaluation: Evaluation


class More(NamedTuple):
    """What so many trainings of each side, and of the floor, would come to if the spread stays."""

    num: int
    smallest: str
    share: str
    """Of what it is now."""
    now: bool


def write(run: Run) -> Path | None:
    """Write run.path/"floor.html"; None, and nothing written, where no floor was measured."""
    if (floor := run.floor()) is None:
        return None
    write_text(run.path / FILE, render(run, floor))
    return run.path / FILE


def render(run: Run, floor: Floor) -> str:
    """The page as text."""
    result, name = run.result(), run.space.select_by
    table, found = floor_table(run, result), trainings(run)
    assert table is not None
    sides = table.sides
    strips = [_strip(row.name, floor, sides, found, result) for row in table.tested]
    return page.render(
        "floor.html.j2",
        run=run.metadata,
        has_report=result is not None or bool(run.trials()),
        metric=METRICS[name],
        has_judge=run.metadata.judge is not None and judged(name) is not None,
        num_prompts=len(run.metadata.prompts.get("test", [])),
        floor=table,
        verdict=verdict(run, floor, table),
        strips=[box for box in strips if box],
        grids=luck(run, found),
        num_shown=min(len(found), MAX_SHOWN),
        shrinking=_shrinking(name, floor),
        more=more(name, floor, sides),
        spread=spread_interval(name, floor),
        cost=_cost(found),
        figures={},
    )


def trainings(run: Run) -> list[Training]:
    """Those of the default that were scored on the test prompts, by seed."""
    epochs = run.space.default.epochs
    records = [record for record in run.confirmations() if record.label.startswith("default-seed-")]
    found: list[Training] = []
    for record in sorted(records, key=lambda record: record.config.seed):
        folder = exam_folder(record.path, epochs, "test")
        if has_evaluation(folder):
            title = f"training {len(found) + 1}"
            found.append(Training(title, record, folder, read_evaluation(folder)))
    return found


# In words


def verdict(run: Run, floor: Floor, table: FloorTable) -> Verdict:
    """How small a difference may be luck, in the metric of choice."""
    metric = METRICS[run.space.select_by]
    row = next((row for row in [*table.tested, *table.others] if row.name == metric.name), None)
    prompts = len(run.metadata.prompts.get("test", []))
    how = (
        f"{plural(floor.num_seeds, 'training')} of the default config, which differ in their seed alone, "
        f"drew the same {plural(prompts, 'test prompt')} from the same noise."
    )
    if row is None:
        headline = f"No floor is known of {metric.label.lower()}."
        return Verdict("open", headline, f"{how} Other metrics are below.", [])
    a, b = table.sides
    detail = (
        f"{how} The mean of {plural(a, 'training')} and the mean of {b} have to be further apart than this "
        f"before a difference can be a WIN or a LOSS."
    )
    facts = [
        Fact("smaller is a TIE", row.smallest, metric.unit),
        Fact("spread between trainings", row.training, "standard deviation"),
        Fact("spread between image seeds", row.drawing, "standard deviation, of the base"),
        Fact("found 4 times of 5", row.detectable, "a true difference of this size"),
    ]
    headline = f"In {metric.label.lower()}, a difference below {row.smallest} may be luck alone."
    return Verdict("tie", headline, detail, facts)


def spread_interval(name: str, floor: Floor) -> tuple[str, str] | None:
    """95 % interval of the spread between trainings: s·√((k − 1)/χ²) of k normal values."""
    found, free = floor.metrics.get(name), floor.num_seeds - 1
    if found is None:
        return None
    low, high = (found.seed_spread * math.sqrt(free / chi2.ppf(q, free)) for q in (1 - ALPHA / 2, ALPHA / 2))
    return significant(low), significant(high)


def more(name: str, floor: Floor, sides: tuple[int, int]) -> list[More]:
    """The smallest difference with other numbers of trainings, the present one first."""
    now = floor.smallest(name, *sides)
    if not now:
        return []
    present = More(floor.num_seeds, significant(now), "now", True)
    rows = [(num, _with(name, floor, num)) for num in MORE if num > max(floor.num_seeds, *sides)]
    return [present, *(More(num, significant(value), f"{value / now:.0%}", False) for num, value in rows)]


def _with(name: str, floor: Floor, num: int) -> float:
    """t(0.975, n − 1) · s · √(2/n): if the floor were measured with n trainings, and each side had n."""
    supposed = Floor(num_seeds=num, num_prompts=floor.num_prompts, metrics=floor.metrics)
    return supposed.smallest(name, num, num) or 0.0


def _cost(found: Sequence[Training]) -> str:
    known = [each.record.seconds for each in found if each.record.seconds is not None]
    return duration(float(np.mean(known))) if known else ""


# Charts


def _strip(
    name: str, floor: Floor, sides: tuple[int, int], found: Sequence[Training], result: Result | None
) -> Box | None:
    """Each training as a dot, and the floor around their mean."""
    known = [
        (each.title, each.evaluation.scores[name].value) for each in found if name in each.evaluation.scores
    ]
    smallest = floor.smallest(name, *sides)
    if not known or smallest is None:
        return None
    metric, mean = METRICS[name], float(np.mean([value for _, value in known]))
    band = Band(mean - smallest, mean + smallest)
    dots = [Dot(f"{title}: {value:.4g}", "default", value) for title, value in known]
    said, keys = "", [("a training", "default", "point"), ("the floor around their mean", "floor", "area")]
    if won := _winner(result, name):
        title, value = won
        times = abs(value - mean) / smallest if smallest else math.inf
        if times <= FAR:
            dots.append(Dot(f"{title}, mean: {value:.4g}", "winner", value, large=True))
            keys.append((f"{title}, mean", "winner", "point"))
        said = f"; {title} is {number(times, 1)} floors away" if math.isfinite(times) else ""
    values = [value for _, value in known]
    told = f"{plural(len(known), 'training')} from {min(values):.4g} to {max(values):.4g}"
    about = f"{told}; floor ±{significant(smallest)}{said}."
    strip = Strip(f"floor-{name}", metric.label, about, metric.unit, dots, band)
    return Box(charts.strip(strip), metric.label, f"{direction(metric)}{said}", keys)


def _winner(result: Result | None, name: str) -> tuple[str, float] | None:
    won = result.candidate(result.winner) if result else None
    if won is None or won.label == "default" or name not in won.scores:
        return None
    return trial_name(won.label), won.scores[name].value


def _shrinking(name: str, floor: Floor) -> Box | None:
    """The smallest difference against trainings a side, and a floor of as many."""
    if name not in floor.metrics or not floor.metrics[name].seed_spread:
        return None
    numbers = [float(num) for num in range(2, 21)]
    line = Line(
        "smaller is a TIE", "default", [(num, _with(name, floor, int(num))) for num in numbers], marks=True
    )
    told = f"From {line.points[0][1]:.3g} with 2 trainings to {line.points[-1][1]:.3g} with 20."
    title = f"Smallest difference in {METRICS[name].label.lower()}"
    chart = Chart(
        "shrinking", title, told, "trainings a side, and of the floor", [line], x_ticks=[2, 5, 10, 15, 20]
    )
    return Box(charts.chart(chart), title, "if the spread between trainings stays what it is")


# Images


def luck(run: Run, found: Sequence[Training]) -> list[tuple[str, Grid]]:
    """The same prompts drawn by several trainings: where they differ most, and as usual."""
    prompts, name = run.metadata.prompts.get("test", []), run.space.select_by
    columns = [
        Column(each.title, "default", image_files(each.folder), each.evaluation.per_prompt.get(name, []))
        for each in found[:MAX_SHOWN]
    ]
    columns = [column for column in columns if column.images]
    if not prompts or len(columns) < 2:
        return []
    parts = _parts(columns, len(prompts))
    grids = [
        (title, grid(run, prompts, columns, chosen, 0.4, at_a_glance=0)) for title, chosen in parts if chosen
    ]
    return [(title, shown) for title, shown in grids if shown.rows]


def _parts(columns: Sequence[Column], num: int) -> list[tuple[str, list[int]]]:
    """Prompts whose score differs most between trainings and, of many, those in the middle."""
    if any(len(column.values) < num for column in columns):
        return [("The first prompts", list(range(num))[:NUM_PROMPTS])]
    spread = np.std([column.values[:num] for column in columns], axis=0)
    order = [int(index) for index in np.argsort(-spread, kind="stable")]
    parts = [("Where they differ most", order[:NUM_PROMPTS])]
    if num >= 3 * NUM_PROMPTS:
        middle = num // 2 - NUM_PROMPTS // 2
        parts.append(("Where they differ as usual", order[middle : middle + NUM_PROMPTS]))
    return parts

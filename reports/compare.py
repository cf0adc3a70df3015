"""The report of a comparison: two winners on the same test prompts -> one HTML file."""

from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.compare import Comparison, MetricComparison
from bench.files import write_text
from bench.run import Candidate, Run
from bench.scoring.metrics import METRICS, title
from reports import figures, page, tables
from reports.images import Column, Grid, column, confirmed_folders, grid
from reports.verdict import Fact, Verdict
from reports.wording import (
    decimals_of,
    direction,
    duration,
    number,
    p_value,
    plural,
    plus_minus,
    qualifier,
    settings,
    sign,
    trial_name,
)

NUM_EXTREMES = 4
"""Prompts shown as the best and the worst for A."""


class MetricRow(NamedTuple):
    """One metric of the comparison as text."""

    heading: tables.Heading
    a: str
    b: str
    difference: str
    interval: str
    p_value: str
    p_adjusted: str
    verdict: str


class SideFacts(NamedTuple):
    """One run, in the words of the page."""

    letter: str
    name: str
    winner: str
    facts: list[tuple[str, str]]


def write(comparison: Comparison, run_a: Run, run_b: Run, path: Path) -> Path:
    """Write the report to `path`."""
    write_text(path, render(comparison, run_a, run_b))
    return path


def table(comparison: Comparison) -> Table:
    """The verdicts for a terminal."""
    caption = f"{qualifier(comparison.main.a)} {_seeds(comparison)}"
    found = Table(title=Text(verdict(comparison).headline), caption=Text(caption), box=SIMPLE_HEAD)
    found.add_column("metric", min_width=18)
    for heading in ("verdict", "A minus B", "95 % interval", "p (Holm)"):
        found.add_column(heading, no_wrap=True)
    for row in map(_metric_row, comparison.metrics):
        cells = (row.heading.label, row.verdict, row.difference, row.interval, row.p_adjusted)
        found.add_row(*map(Text, cells))
    return found


def render(comparison: Comparison, run_a: Run, run_b: Run) -> str:
    """The page as text."""
    best, worst = extremes(comparison)
    values_a, values_b = settings(comparison.winner_a.config), settings(comparison.winner_b.config)
    return page.render(
        "compare.html.j2",
        comparison=comparison,
        metric=METRICS[comparison.select_by],
        verdict=verdict(comparison),
        rows=[_metric_row(row) for row in comparison.metrics],
        untested=[title(METRICS[name], comparison.winner_a.scores[name]) for name in comparison.untested],
        best=_grid(comparison, run_a, run_b, best, 0.2),
        worst=_grid(comparison, run_a, run_b, worst, 0.2),
        every=_grid(comparison, run_a, run_b, _order(comparison, run_a), 0.6),
        settings=tables.setting_rows(values_a, values_b),
        sides=[
            _side("A", run_a, comparison.winner_a),
            _side("B", run_b, comparison.winner_b),
        ],
        figures={"differences": differences(comparison), "prompts": prompts(comparison, run_a)},
    )


def verdict(comparison: Comparison) -> Verdict:
    """WIN, TIE or LOSS of A in its `select_by`, in a sentence."""
    row = comparison.main
    metric = METRICS[row.metric]
    a, b = f"A ({comparison.name_a})", f"B ({comparison.name_b})"
    headline = {"WIN": f"WIN: {a} beats {b}.", "LOSS": f"LOSS: {b} beats {a}."}.get(
        row.verdict, f"TIE: {a} and {b} cannot be told apart."
    )
    p = p_value(row.p_adjusted)
    detail = (
        f"{title(metric, row.a)}, {direction(metric)}: A minus B is "
        f"{plus_minus(row.mean, row.stderr, signed=True)}, 95 % interval {_interval(row)}, "
        f"p {p if p.startswith('<') else f'= {p}'} after Holm's correction, "
        f"on {plural(row.num_prompts, 'test prompt')}. {_seeds(comparison)}"
    )
    return Verdict(row.verdict.lower(), headline, detail, _facts(row))


def _seeds(comparison: Comparison) -> str:
    if comparison.seed_noise:
        return "Noise between training seeds is part of every error."
    return (
        "Noise between training seeds is missing: a winner was trained on one seed only, "
        "so another training of it could turn the verdict."
    )


def _facts(row: MetricComparison) -> list[Fact]:
    return [
        Fact("A", plus_minus(row.a.value, row.a.stderr), "± is one standard error"),
        Fact("B", plus_minus(row.b.value, row.b.stderr), "± is one standard error"),
        Fact("A minus B", plus_minus(row.mean, row.stderr, signed=True), "paired by prompt"),
    ]


def _metric_row(row: MetricComparison) -> MetricRow:
    metric = METRICS[row.metric]
    head = tables.Heading(row.metric, metric.label, qualifier(row.a), direction(metric), metric.question)
    return MetricRow(
        heading=head,
        a=plus_minus(row.a.value, row.a.stderr),
        b=plus_minus(row.b.value, row.b.stderr),
        difference=plus_minus(row.mean, row.stderr, signed=True),
        interval=_interval(row),
        p_value=p_value(row.p_value),
        p_adjusted=p_value(row.p_adjusted),
        verdict=row.verdict,
    )


def _interval(row: MetricComparison) -> str:
    decimals = decimals_of(row.stderr) if row.stderr > 0 else 3
    return f"{number(row.low, decimals, signed=True)} to {number(row.high, decimals, signed=True)}"


def differences(comparison: Comparison) -> go.Figure:
    """Leads in standard errors, so that metrics of different units share one axis."""
    rows = []
    for row in comparison.metrics:
        if row.stderr > 0:
            ends = sorted(sign(METRICS[row.metric]) * end / row.stderr for end in (row.low, row.high))
            lead = sign(METRICS[row.metric]) * row.mean / row.stderr
            rows.append(figures.Difference(METRICS[row.metric].label, lead, ends[0], ends[1], row.verdict))
    return figures.differences(rows)


def prompts(comparison: Comparison, run: Run) -> go.Figure | None:
    """The difference of every test prompt, sorted."""
    values = comparison.differences.get(comparison.select_by)
    if values is None:
        return None
    captions = [prompt.text for prompt in run.metadata.prompts["test"]]
    order = sorted(range(len(values)), key=lambda index: values[index])
    label = f"{METRICS[comparison.select_by].label}: A minus B"
    return figures.prompt_differences(label, [captions[i] for i in order], [values[i] for i in order])


def extremes(comparison: Comparison) -> tuple[list[int], list[int]]:
    """Prompts at which A does best and worst against B; none where the metric is not paired."""
    values = comparison.differences.get(comparison.select_by, ())
    good = sign(METRICS[comparison.select_by])
    order = sorted(range(len(values)), key=lambda index: -good * values[index])
    count = min(NUM_EXTREMES, len(order) // 2)
    return order[:count], order[::-1][:count]


def _order(comparison: Comparison, run: Run) -> list[int]:
    """Prompts that are not among the extremes, in the order of the set."""
    best, worst = extremes(comparison)
    return [index for index in range(len(run.metadata.prompts["test"])) if index not in {*best, *worst}]


def _grid(comparison: Comparison, run_a: Run, run_b: Run, order: list[int], share: float) -> Grid:
    columns = [
        _column(f"A: {comparison.name_a}", "a", run_a, comparison.winner_a, comparison.select_by),
        _column(f"B: {comparison.name_b}", "b", run_b, comparison.winner_b, comparison.select_by),
    ]
    return grid(run_a, run_a.metadata.prompts["test"], columns, order, share)


def _column(heading: str, kind: str, run: Run, winner: Candidate, metric: str) -> Column:
    return column(heading, kind, confirmed_folders(run, winner), metric)


def _side(letter: str, run: Run, winner: Candidate) -> SideFacts:
    result = run.result()
    facts = [
        ("training seeds", str(len(winner.records))),
        ("trials searched", str(len(run.trials()))),
        ("whole search", duration(result.seconds if result else None)),
        ("device", run.metadata.device),
        ("started", run.metadata.created),
    ]
    return SideFacts(letter, run.metadata.name, trial_name(winner.label), facts)

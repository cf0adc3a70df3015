"""The report of scored adapter files: sheets, and what they recommend against the base -> one HTML file."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bench.advice import Failure, Finding, Observed, advise
from bench.comparison import Comparison, Side
from bench.files import write_text
from bench.run import Run
from bench.scoring.metrics import METRICS, Score, title
from bench.sheet import Entry, Sheet
from reports import compare, concepts, figures, page, tables
from reports.images import Column, Grid, column, grid
from reports.verdict import Verdict
from reports.wording import MISSING, axis_title, direction, plural, plus_minus

MAX_FILE_NAME = 140
HEADLINES = {
    "WIN": "Use {}: it beats the base.",
    "TIE": "{} is not shown to beat the base.",
    "LOSS": "{} is worse than the base.",
}
MAX_AS_GOOD = 4
"""Settings that are named."""
LUCK = "Of one training: where another would be best is not known."


class Cell(NamedTuple):
    value: str
    gain: str
    """Over the base."""


class Row(NamedTuple):
    """An entry, as text."""

    kind: str
    checkpoint: str
    weight: str
    note: str
    cells: list[Cell]
    """One a metric."""


class Part(NamedTuple):
    """One series, in the words of the page."""

    number: int
    name: str
    recommended: str
    choice: str
    headings: list[tables.Heading]
    rows: list[Row]
    refused: tuple[str, ...]
    checkpoints: list[str]
    weights: list[str]
    grid: Grid
    """Of each prompt the base, then checkpoint by checkpoint every weight, then the real picture."""
    pair: compare.Pair
    """What is recommended against the base."""
    concepts: concepts.Concepts | None


def write(
    sheets: Sequence[Sheet], sides: Sequence[Side], comparisons: Sequence[Comparison], path: Path
) -> Path:
    """Write the page to `path`; `sides` are what each sheet recommends, then the base."""
    write_text(path, render(sheets, sides, comparisons))
    return path


def file_name(sheets: Sequence[Sheet]) -> str:
    """Of the page, the same for the same series: `score-one-two.html`."""
    text = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", sheet.series.name).strip("-") for sheet in sheets)
    if len(text) > MAX_FILE_NAME:
        text = f"{text[:MAX_FILE_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"score-{text}.html"


def render(sheets: Sequence[Sheet], sides: Sequence[Side], comparisons: Sequence[Comparison]) -> str:
    """The page as text."""
    run, over_base = sides[0].run, over_the_base(sides, comparisons)
    parts = [
        _part(run, sheet, number, comparison, 1 / len(sheets))
        for number, (sheet, comparison) in enumerate(zip(sheets, over_base, strict=True), start=1)
    ]
    shown: dict[str, go.Figure | None] = {}
    for part, sheet in zip(parts, sheets, strict=True):
        shown |= {f"{name}-{part.number}": figure for name, figure in _figures(run, sheet).items()}
    return page.render(
        "score.html.j2",
        run=run.metadata,
        select_by=METRICS[sheets[0].select_by],
        others=[METRICS[name] for name in _metrics(sheets[0])[1:]],
        floor=compare.FLOOR,
        lead=lead(sheets, over_base),
        advice=[advice(*both) for both in zip(sheets, over_base, strict=True)],
        parts_of=parts,
        names=[side.name for side in sides],
        matrix=compare.matrix(sides, comparisons) if len(sheets) > 1 else [],
        num_pairs=len(comparisons),
        figures=shown,
    )


def over_the_base(sides: Sequence[Side], comparisons: Sequence[Comparison]) -> list[Comparison]:
    """What each sheet recommends against the base, in their order."""
    return [comparison for comparison in comparisons if comparison.b is sides[-1]]


# In words


def advice(sheet: Sheet, over_base: Comparison) -> list[Finding]:
    """What to do next with a series."""
    side = over_base.a
    return advise(
        Observed(
            select_by=sheet.select_by,
            num_images=side.run.metadata.num_images,
            num_tried=len(sheet.entries) + len(sheet.refused),
            failures=[Failure(reason=reason) for reason in sheet.refused],
            scores=side.scores,
        )
    )


def lead(sheets: Sequence[Sheet], over_base: Sequence[Comparison]) -> Verdict:
    """The first block of the page."""
    if len(sheets) == 1:
        verdict, name = over_base[0].verdict, sheets[0].name
        said = compare.verdict(over_base[0], (sheets[0].title(sheets[0].best), "the base"))
        detail = f"{choice(sheets[0])} {said.detail}"
        return Verdict(verdict.lower(), HEADLINES[verdict].format(name), detail, said.facts)
    wins = sum(comparison.verdict == "WIN" for comparison in over_base)
    against = [
        f"{sheet.name}: {comparison.verdict}, {comparison.reason}."
        for sheet, comparison in zip(sheets, over_base, strict=True)
    ]
    headline = f"{wins} of {len(sheets)} trainings are shown to beat the base."
    detail = " ".join([*against, compare.noise(over_base)])
    return Verdict("win" if wins else "tie", headline, detail, [])


def choice(sheet: Sheet) -> str:
    """What is recommended, of how many, and what cannot be told apart from it."""
    metric, title_of_best = METRICS[sheet.select_by], sheet.title(sheet.best)
    score = sheet.best.scores[metric.name]
    where = f"best on the {plural(score.num_prompts, 'dev prompt')}, by {title(metric, score)}"
    if len(sheet.entries) == 1:
        return f"Drawn at {title_of_best} only."
    return f"Of {len(sheet.entries)} settings, {title_of_best} is {where}. {_as_good(sheet)}{LUCK}"


def _as_good(sheet: Sheet) -> str:
    number = len(sheet.as_good)
    if number == len(sheet.entries) - 1:
        return "No other is told apart from it there. "
    if number > MAX_AS_GOOD:
        return f"{number} others are not told apart from it there. "
    titles = ", ".join(sheet.title(entry) for entry in sheet.as_good)
    return f"Not told apart from it there: {titles}. " if titles else "All others are worse there. "


# The terminal


def table(sheets: Sequence[Sheet], over_base: Sequence[Comparison]) -> Table:
    """Scores of every checkpoint at every weight, and the verdict on what is recommended."""
    said = lead(sheets, over_base)
    next_steps = [
        f"{finding.title} ({finding.evidence}): {finding.step}"
        for each in zip(sheets, over_base, strict=True)
        for finding in advice(*each)
    ]
    caption = Text("\n".join([said.detail, *next_steps]))
    found = Table(title=Text(said.headline), caption=caption, box=SIMPLE_HEAD)
    names = _metrics(sheets[0])
    for heading in ("training", "checkpoint", "weight", *(METRICS[name].label for name in names), ""):
        found.add_column(heading)
    for sheet in sheets:
        for row in _rows(sheet, names):
            values = [cell.value for cell in row.cells]
            found.add_row(*map(Text, (sheet.series.name, row.checkpoint, row.weight, *values, row.note)))
    return found


# Tables


def _metrics(sheet: Sheet) -> list[str]:
    """`select_by` first, then other objectives and drift."""
    known = [name for name in METRICS if any(name in entry.scores for entry in sheet.entries)]
    shown = ("similarity", "clip_score", "diversity", "drift")
    return [sheet.select_by, *(name for name in shown if name in known and name != sheet.select_by)]


def _part(run: Run, sheet: Sheet, number: int, comparison: Comparison, share: float) -> Part:
    names = _metrics(sheet)
    titles = [("Base model", "base"), (sheet.name, "winner")]
    return Part(
        number=number,
        name=sheet.series.name,
        recommended=sheet.name,
        choice=choice(sheet),
        headings=[tables.heading(name, sheet.best.scores[name]) for name in names],
        rows=_rows(sheet, names),
        refused=sheet.refused,
        checkpoints=[checkpoint.title for checkpoint in sheet.series.checkpoints],
        weights=[f"{weight:g}" for weight in sheet.weights],
        grid=_grid(run, sheet, share),
        pair=compare.pair(number, "B", comparison),
        concepts=concepts.of_sides((comparison.b, comparison.a), titles, sheet.select_by),
    )


def _rows(sheet: Sheet, names: Sequence[str]) -> list[Row]:
    several = len(sheet.series.checkpoints) > 1
    return [
        Row(
            kind=_kind(sheet, entry),
            checkpoint=entry.checkpoint.title if several else entry.checkpoint.file.name,
            weight=f"{entry.weight:g}",
            note=_note(sheet, entry),
            cells=[_cell(entry.scores.get(name)) for name in names],
        )
        for entry in sheet.entries
    ]


def _kind(sheet: Sheet, entry: Entry) -> str:
    return "winner" if entry is sheet.best else "sampled"


def _note(sheet: Sheet, entry: Entry) -> str:
    if entry is sheet.best:
        return "recommended"
    return "not told apart" if entry in sheet.as_good else ""


def _cell(score: Score | None) -> Cell:
    if score is None:
        return Cell(MISSING, "")
    gain = plus_minus(score.gain, score.gain_stderr, signed=True) if score.gain is not None else ""
    return Cell(plus_minus(score.value, score.stderr), gain)


# Images and figures


def _grid(run: Run, sheet: Sheet, share: float) -> Grid:
    columns = [column("base", "base", [run.base_folder("dev")], sheet.select_by)]
    for checkpoint in sheet.series.checkpoints:
        columns += [_column(run, sheet, sheet.entry(checkpoint, weight)) for weight in sheet.weights]
    prompts = run.metadata.prompts["dev"]
    return grid(run, prompts, columns, list(range(len(prompts))), share, at_a_glance=0)


def _column(run: Run, sheet: Sheet, entry: Entry | None) -> Column:
    if entry is None:
        return Column("cannot be scored", "sampled", [], [])
    folder = run.adapter_folder(entry.label) / "dev"
    return column(sheet.title(entry), _kind(sheet, entry), [folder], sheet.select_by)


def _figures(run: Run, sheet: Sheet) -> dict[str, go.Figure | None]:
    """Each metric against the weight; that of choice against the checkpoint too."""
    checkpoints, weights = sheet.series.checkpoints, sheet.weights
    ticks = [f"{weight:g}" for weight in weights]
    names = [each.title for each in checkpoints] if len(checkpoints) > 1 else [sheet.series.name]
    of_checkpoint = [
        (name, [sheet.entry(each, weight) for weight in weights])
        for name, each in zip(names, checkpoints, strict=True)
    ]
    found: dict[str, go.Figure | None] = {
        f"weight-{name}": _sweep(run, sheet, name, ("weight", ticks), of_checkpoint)
        for name in _metrics(sheet)
    }
    if len(checkpoints) > 1:
        of_weight = [
            (f"weight {weight:g}", [sheet.entry(each, weight) for each in checkpoints]) for weight in weights
        ]
        found["checkpoint"] = _sweep(run, sheet, sheet.select_by, ("checkpoint", names), of_weight)
    return found


def _sweep(
    run: Run,
    sheet: Sheet,
    metric: str,
    x: tuple[str, list[str]],
    rows: Sequence[tuple[str, Sequence[Entry | None]]],
) -> go.Figure:
    """`x` is the title of the axis and its ticks; one line a row."""
    lines = [
        figures.SweepLine(
            name,
            "winner" if sheet.best in entries else "sampled",
            [entry.scores.get(metric) if entry else None for entry in entries],
            entries.index(sheet.best) if sheet.best in entries else None,
        )
        for name, entries in rows
    ]
    y_title = f"{axis_title(METRICS[metric], sheet.best.scores[metric])}<br>{direction(METRICS[metric])}"
    return figures.sweep(figures.Sweep(*x, y_title, lines, _base_value(run, metric)))


def _base_value(run: Run, metric: str) -> float | None:
    """On the dev prompts; from itself the base does not drift."""
    if metric == "drift":
        return 0.0
    scores = run.base_scores("dev")
    return scores[metric].value if metric in scores else None
